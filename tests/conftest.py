"""What all tests with a forge share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.forge.gitea import Site


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    with closing(Site()) as site:
        site.clear()
        yield site
