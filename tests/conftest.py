"""What all tests share: a forge, and the end of worlds on the fakes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import HealthCheck, settings

from tests.forge.gitea import Site
from tests.world import World

# No test judges times, Hypothesis' own limits included: a busy host makes any of them slow.
settings.register_profile("vmrunner", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vmrunner")


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    with closing(Site()) as site:
        site.clear()
        yield site


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """No test leaves a history open."""
    yield
    while World.opened:
        World.opened.pop().history.close()
