"""What the manager's tests share: a world on each kind of forge."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.world import World


@pytest.fixture(params=[False, True], ids=["gitea", "forgejo"])
def world(tmp_path: Path, request: pytest.FixtureRequest) -> World:
    return World(tmp_path, binds_jobs=request.param)
