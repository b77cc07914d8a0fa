"""An outage costs what it lasts, and a clock that is set costs nothing: no deadline runs while the
forge is silent or the host sleeps, machines that fail together are one failure, and a good image
stays.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.manager.test_rollback import current, switch
from tests.world import POOL, World
from vmrunner.hypervisor.domain import metadata_xml, parse_metadata
from vmrunner.manager import outages
from vmrunner.model.job import JobState
from vmrunner.model.machine import EventKind, MachineId

EIGHT = {"p": POOL | {"max": 8, "pickup_timeout": "60s", "job_timeout": "10m"}}
HOURS = 3600.0


@pytest.fixture(params=[False, True], ids=["gitea", "forgejo"])
def world(tmp_path: Path, request: pytest.FixtureRequest) -> World:
    return World(tmp_path, binds_jobs=request.param, pools=EIGHT)


def waiting(world: World, count: int = 8) -> list[MachineId]:
    """Machines whose runners wait for their jobs."""
    for number in range(1, count + 1):
        world.forge.queue(number)
    world.up()
    for machine in world.machines():
        world.step(machine)
    world.up()
    return world.machines()


def at_work(world: World, count: int = 1) -> list[MachineId]:
    """Machines with a job."""
    found = waiting(world, count)
    for machine in found:
        assert world.step(machine) == "took a job"
    world.up()
    return found


def away(world: World, seconds: float, every: float = 5.0) -> None:
    """The forge is silent for so long."""
    world.forge.down = True
    world.pass_time(seconds, every)
    world.forge.down = False


def endings(world: World) -> list[str]:
    return [row.ending for row in world.history.all() if row.ending]


# ---- no deadline runs while the forge is silent ----


@pytest.mark.parametrize("seconds", [10, 240, 3 * HOURS])
@pytest.mark.parametrize("every", [5.0, 50.0])
def test_machines_that_wait_for_their_job_wait_on(
    world: World, seconds: float, every: float
) -> None:
    found = waiting(world)
    away(world, seconds, every)
    assert world.up()[1] == 0, "the first pass after it, before their runners could call"
    assert world.machines() == found
    world.settle()
    assert world.forge.verdicts == {number: ["success"] for number in range(1, 9)}
    assert set(endings(world)) == {"done"}


def test_an_outage_in_which_nobody_looked(world: World) -> None:
    """The manager was stopped, too."""
    found = waiting(world)
    world.clock.now += 2 * HOURS
    world.restart()
    world.up()
    assert world.machines() == found


def test_many_short_outages_are_as_good_as_a_long_one(world: World) -> None:
    found = waiting(world)
    for _ in range(20):
        away(world, 15)
        world.pass_time(5)
    assert world.machines() == found


def test_a_deadline_goes_on_after_the_outage(tmp_path: Path) -> None:
    """What was used up before stays so; its host or its image may be to blame all the same."""
    world = World(tmp_path, pools=EIGHT)
    (found,) = waiting(world, 1)
    world.forge.runners_[1].record = replace(world.forge.runners_[1].record, online=False)
    world.pass_time(200)
    away(world, 600)
    world.pass_time(120, 5)
    assert world.machines() == [found]
    world.pass_time(100, 5)
    assert endings(world) == ["forge-away"]


def test_an_outage_holds_no_job_back_of_a_forge_that_is_often_busy(tmp_path: Path) -> None:
    """It has another machine at once."""
    world = World(tmp_path, pools=EIGHT)
    world.forge.may_throttle = True
    (found,) = waiting(world, 1)
    world.pass_time(30)
    away(world, 600)
    while not endings(world):
        world.pass_time(50)
    assert endings(world) == ["forge-away"]
    assert found not in world.machines()
    world.settle()
    assert world.forge.verdicts == {1: ["success"]}


def test_a_job_has_its_time_and_the_outage(world: World) -> None:
    found = at_work(world)
    world.pass_time(500)
    away(world, 400)
    world.pass_time(60, 5)
    assert world.machines() == found
    world.pass_time(100, 5)
    assert endings(world) == ["job-timeout"]


def test_a_job_that_tells_nothing_is_not_lost_by_an_outage(world: World) -> None:
    found = at_work(world)
    for runner in world.forge.runners_.values():
        runner.record = replace(runner.record, busy=False, is_silent=True)
    world.pass_time(100)
    away(world, 280)
    world.pass_time(50, 5)
    assert world.machines() == found
    world.pass_time(260, 5)
    assert endings(world) == ["died"]


def test_one_scopes_outage_is_not_the_others(tmp_path: Path) -> None:
    pools = {
        "p": EIGHT["p"] | {"scope": ["organisation:o"]},
        "q": EIGHT["p"] | {"scope": ["organisation:x"]},
    }
    world = World(tmp_path, binds_jobs=True, pools=pools)
    world.forge.queue(1, repository="o/r")
    world.forge.queue(2, repository="x/r")
    world.up()
    for machine in world.machines():
        world.step(machine)
    world.forge.silent_scopes = {"organisation:o"}
    world.pass_time(600, 5)
    world.forge.silent_scopes = set()
    assert {row.pool for row in world.history.all() if row.ending} == {"q"}, "it waited too long"
    world.settle()
    assert world.forge.verdicts == {1: ["success"], 2: ["success"]}


# ---- machines that fail together are one failure ----


def refused(world: World) -> None:
    """Each runner finds no forge, and its guest powers off."""
    for machine in world.machines():
        world.hypervisor.report(machine, EventKind.UP, EventKind.SEED, EventKind.RUNNER)
        world.hypervisor.report(machine, EventKind.EXIT, text="1")
        world.hypervisor.die(machine)


@pytest.mark.parametrize("seen", [True, False], ids=["seen", "between two passes"])
def test_a_restart_of_the_forge_is_one_failure_of_seconds(world: World, seen: bool) -> None:
    for number in range(1, 9):
        world.forge.queue(number)
    world.up()
    if seen:
        away(world, 10)
    else:
        world.clock.now += 10
    refused(world)
    world.up()
    assert set(endings(world)) == {"forge-away" if seen else "early"}
    (pool,) = world.manager.desired()
    if seen:
        assert pool.backoff is None
    else:
        assert pool.backoff
        assert (pool.backoff.failures, pool.backoff.until - world.clock.now) == (1, 10.0)
    world.settle()
    assert world.forge.verdicts == {number: ["success"] for number in range(1, 9)}


def test_a_good_image_is_not_rolled_back_by_outages(tmp_path: Path) -> None:
    world = World(tmp_path, pools=EIGHT)
    world.publish("2", {"kind": "gitea-runner", "path": "/r", "sha256": "2"})
    (tmp_path / "images" / "debian-12" / "current").unlink()
    switch(world, "1")
    switch(world, "2")
    world.clock.now = 4_000_000_000.0  # promotions are written with the real time
    for number in range(1, 9):
        world.forge.queue(number)
    world.up()
    world.clock.now += 10
    refused(world)  # by an outage that no pass saw
    for _ in range(5):
        world.pass_time(20)
        away(world, 10)
        refused(world)
        world.up()
    world.up()
    assert current(world) == "2"
    world.settle()
    assert world.forge.known[8].state is JobState.DONE


def test_an_image_whose_runners_all_fail_is_to_blame_all_the_same(tmp_path: Path) -> None:
    world = World(tmp_path, pools=EIGHT)
    for number in range(1, 9):
        world.forge.queue(number)
    for failures in (1, 2, 3):
        world.pass_time(100)
        refused(world)
        world.up()
        (pool,) = world.manager.desired()
        assert pool.backoff
        assert pool.backoff.failures == failures


def test_a_failure_of_before_the_outage_is_the_pools(tmp_path: Path) -> None:
    world = World(tmp_path, pools=EIGHT)
    away(world, 60)
    world.pass_time(60)
    world.forge.queue(1)
    world.up()
    refused(world)
    world.up()
    assert endings(world) == ["early"]


# ---- the host's clock ----


@pytest.mark.parametrize("hours", [5, -5, 24 * 365, -24 * 365])
def test_a_clock_that_is_set_or_a_host_that_slept_ends_nothing(world: World, hours: float) -> None:
    running, wait, boots = at_work(world)[0], [], []
    world.forge.queue(2)
    world.up()
    wait = [machine for machine in world.machines() if machine != running]
    world.step(wait[0])
    world.forge.queue(3)
    world.up()
    boots = [machine for machine in world.machines() if machine not in (running, *wait)]
    world.clock.jump(hours * HOURS)
    world.up()
    world.restart()
    world.up()
    assert set(world.machines()) == {running, *wait, *boots}
    world.pass_time(30)
    assert set(world.machines()) == {running, *wait, *boots}
    world.settle()
    assert world.forge.verdicts == {number: ["success"] for number in (1, 2, 3)}


@pytest.mark.parametrize("hours", [0, 5, -5])
def test_deadlines_are_kept_over_jumps_and_restarts(world: World, hours: float) -> None:
    """A clock that jumps does not make them longer either."""
    found = at_work(world)
    world.pass_time(400)
    world.clock.jump(hours * HOURS)
    world.restart()
    world.pass_time(180)
    assert world.machines() == found
    world.clock.jump(-hours * HOURS)
    world.restart()
    world.pass_time(40)
    assert endings(world) == ["job-timeout"]


def test_a_warm_machine_boots_and_is_bound_beside_a_clock_that_jumps(tmp_path: Path) -> None:
    world = World(tmp_path, pools={"p": EIGHT["p"] | {"warm": 1, "max": 1}})
    world.up()
    world.clock.jump(5 * HOURS)
    world.up()
    (machine,) = world.machines()
    world.step(machine)
    world.clock.jump(-9 * HOURS)
    world.forge.queue(1)
    world.up()
    assert world.step(machine) == "bound"
    world.clock.jump(9 * HOURS)
    world.pass_time(30)
    assert world.machines() == [machine]
    assert [world.step(machine) for _ in range(2)] == ["took a job", "finished"]


def test_after_another_boot_of_the_managers_host_deadlines_begin_anew(world: World) -> None:
    """Its machines are on another host: how long ago that was nobody can tell."""
    found = at_work(world)
    world.pass_time(590)
    world.manager._boot = "another"
    world.clock.set_by = world.clock.now - 20.0
    world.up()
    world.pass_time(590)
    assert world.machines() == found
    world.pass_time(30)
    assert endings(world) == ["job-timeout"]


def test_a_machine_of_an_older_vmrunner_is_taken_over(world: World) -> None:
    (found,) = at_work(world)
    old = world.hypervisor.domains[found]
    world.hypervisor.domains[found] = replace(old, boot="", offset=0.0)
    world.clock.jump(5 * HOURS)
    world.up()
    now = world.hypervisor.domains[found]
    assert (now.boot, now.running_at) == (old.boot, world.clock.now)


def test_what_is_remembered_of_silences_is_read_again(world: World) -> None:
    waiting(world, 1)
    world.forge.down = True
    world.pass_time(20, 5)
    path = world.settings.runtime_dir / "outages.json"
    known = outages.load(path)
    assert [each.scope for each in known.known] == ["instance"]
    path.write_text('{"boot": "b"')
    assert outages.load(path).known == ()
    outages.save(path, known)
    assert outages.load(path) == known


def test_the_clocks_offset_is_kept_with_the_machine(world: World) -> None:
    (found,) = at_work(world)
    kept = world.hypervisor.domains[found]
    text = f"<domain><metadata>{metadata_xml(kept)}</metadata></domain>".replace(
        "<machine ", '<machine xmlns="https://vmrunner.dev/xmlns/1" '
    )
    read = parse_metadata(text, found)
    assert read
    assert (read.boot, round(read.offset, 2), read.seen_key, read.repository) == (
        kept.boot,
        round(kept.offset, 2),
        kept.seen_key,
        kept.repository,
    )
