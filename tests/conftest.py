"""What all tests share: a forge, and the end of worlds on the fakes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.forge.gitea import Site
from tests.world import World


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
