"""Caches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cache.world import World, Worlds
from vmrunner.cache.store import Limits


@pytest.fixture
def worlds(tmp_path: Path) -> Iterator[Worlds]:
    """Opens the store of one folder, with these limits; all are closed at the end."""
    made: list[World] = []

    def open_one(**limits: Any) -> World:
        made.append(World(tmp_path / "cache", Limits(**{"keep_free": 0} | limits)))
        return made[-1]

    yield open_one
    for each in made:
        each.store.close()


@pytest.fixture
def world(worlds: Worlds) -> World:
    return worlds()
