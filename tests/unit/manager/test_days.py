"""What weeks of use leave in the folders of a host: what the days leave that are kept, no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.world import POOL, World

DAY = 86400.0
JOBS = 24  # of a day


@pytest.mark.long
@pytest.mark.parametrize("binds_jobs", [False, True])
def test_days_of_use_make_no_file_and_no_table_grow(tmp_path: Path, binds_jobs: bool) -> None:
    """With outages, failed jobs, held machines and a runner that gives up now and then."""
    world = World(
        tmp_path,
        binds_jobs=binds_jobs,
        pools={"p": POOL | {"max": 4, "warm": 1, "hold_failed": "1h"}},
        history={"keep_days": 2},
    )
    seen = [_day(world, number) for number in range(6)]
    files, numbers, sizes = zip(*seen, strict=True)
    # Those of the days that are kept are there from the third day on.
    assert files[3] == files[4] == files[5]
    assert max(sizes[4:]) <= 1.1 * sizes[3]
    assert max(numbers[4:]) <= 1.1 * numbers[3]
    assert len(world.hypervisor.domains) <= 2, "a warm one, and one that is held"


def _day(world: World, number: int) -> tuple[set[str], int, int]:
    """At its end: the files that are not named after a machine or an address; how many all are, and
    their bytes.
    """
    for hour in range(JOBS):
        verdict = min(hour % 5, 1)
        job = number * JOBS + hour + 1
        world.forge.queue(job)
        if hour % 9 == 4:
            world.forge.down = True
            world.pass_time(90, 30)
            world.forge.down = False
        for _ in range(8):
            world.up()
            for machine in world.machines():
                if machine in world.hypervisor.domains:
                    world.step(machine, lambda kinds, verdict=verdict: kinds[verdict])
            world.manager.chores()
            world.clock.now += 5
        world.pass_time(DAY / JOBS, DAY / JOBS)
    found = [path for path in world.folder.rglob("*") if path.is_file()]
    names = {
        str(path.relative_to(world.folder))
        for path in found
        if "vmr-" not in path.name and path.parent.name != "addresses"
    }
    return names, len(found), sum(path.stat().st_size for path in found)
