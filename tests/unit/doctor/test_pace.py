"""What doctor expects of a job's start: what was measured here, or what was not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.world import POOL, World
from vmrunner.doctor import pace
from vmrunner.doctor.pace import Start
from vmrunner.manager.record import Record


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    pools = {"p": POOL | {"start": "auto"}, "warm": POOL | {"start": "auto", "warm": 1},
             "boots": POOL | {"start": "boot"}}  # fmt: skip
    made = World(tmp_path, pools=pools)
    yield made
    made.history.close()


def lines(world: World, **measured: list[float]) -> list[str]:
    return [each.said for each in pace.look(world.settings, world.hypervisor, measured)]


def test_each_pool_has_a_line_by_how_its_machines_start(world: World) -> None:
    assert all("booted machines" in each for each in lines(world)), "no snapshot yet"
    world.make_snapshot("p")
    assert [line.partition("; ")[0] for line in lines(world)] == [
        "pool p has clones of a snapshot",
        "pool warm has parked clones",
        "pool boots has booted machines",
    ]


def test_what_was_measured_here_counts(world: World) -> None:
    first, second, _ = lines(world, p=[0.5, 9.0, 0.7])
    assert "it took 0.7 s here (median of the last 3)" in first
    assert "expect" in second


@pytest.mark.parametrize(("kvm", "words"), [(True, "nobody has measured"), (False, "emulation")])
def test_where_nothing_ran_that_is_said(kvm: bool, words: str) -> None:
    line = pace.said("p", Start.CLONED, [], kvm=kvm)
    assert "1.2 s" in line
    assert words in line


@pytest.mark.parametrize(
    ("record", "seconds"),
    [
        (Record("m", queued=100.0, created=100.2, runner=101.2), 1.0),  # made for its job
        (Record("m", queued=100.0, created=50.0, runner=100.5), 0.5),  # warm
        (Record("m", queued=10.0, created=100.0, runner=102.0), 2.0),  # the job waited for a place
        (Record("m", created=100.0, runner=103.0), 3.0),  # the forge doesn't tell when
        (Record("m", queued=100.0, created=100.2), None),
        (Record("m", queued=100.0, created=100.2, runner=99.0), None),  # its clock was off
    ],
)
def test_how_long_a_job_waited_for_its_runner(record: Record, seconds: float | None) -> None:
    assert record.start_seconds == (pytest.approx(seconds) if seconds else None)
