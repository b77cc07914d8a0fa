"""What the manager's tests share: a world on each kind of forge, and its end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.world import World


@pytest.fixture(params=[False, True], ids=["gitea", "forgejo"])
def world(tmp_path: Path, request: pytest.FixtureRequest) -> World:
    return World(tmp_path, binds_jobs=request.param)


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while World.opened:
        World.opened.pop().history.close()
