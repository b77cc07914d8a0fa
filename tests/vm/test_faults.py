"""A sample of the fault matrix (`make faults`): something goes wrong at a step, ordinary passes
follow, and all is as it should be.
"""

from __future__ import annotations

import os
from contextlib import closing

import pytest

from tests.faults import World, try_all
from tests.forge.gitea import Site

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(os.environ.get("VMRUNNER_TEST_RIG") == "host", reason="it kills libvirtd"),
]


@pytest.mark.parametrize(
    ("start", "cells", "hosts"),
    [
        pytest.param("boot", 2, 1, marks=pytest.mark.long),
        ("snapshot", 2, 1),
        pytest.param("snapshot", 5, 1, marks=pytest.mark.long),
        pytest.param("snapshot", 5, 2, marks=pytest.mark.long),
    ],
)
def test_whatever_goes_wrong_nothing_is_left_and_the_job_ran_once(
    site: Site, start: str, cells: int, hosts: int
) -> None:
    with closing(World(site, start, hosts)) as world:
        figures = try_all(world, lives=["cold", "warm"], sample=cells)
    assert (figures["failed"], figures["tried"]) == ([], cells)
