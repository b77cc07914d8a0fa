"""`register_idle`: each registered runner is good for one job, and is replaced when it has one; not
because a job waits, a list left something out, or the forge was away.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.world import POOL, World
from vmrunner.model.job import JobState
from vmrunner.model.machine import MachineId

STATIC = POOL | {"register_idle": 3, "max": 6}


@pytest.fixture(params=[False, True], ids=["gitea", "forgejo"])
def world(tmp_path: Path, request: pytest.FixtureRequest) -> World:
    """Three runners are idle."""
    return begun(tmp_path, binds_jobs=request.param)


def begun(folder: Path, *, binds_jobs: bool) -> World:
    world = World(folder, binds_jobs=binds_jobs, pools={"p": STATIC})
    world.up()
    for machine in world.machines():
        assert world.step(machine) == "booted"
    world.up()
    assert len(world.machines()) == 3
    return world


def made(world: World) -> int:
    """How many machines there ever were."""
    return len(world.history.all())


def use(world: World, number: int, machine: MachineId) -> None:
    """It takes this job."""
    while world.step(machine) != "took a job":
        pass
    assert world.forge.known[number].runner_name == str(machine)


def test_a_job_that_waits_for_an_idle_runner_makes_no_other_one(world: World) -> None:
    """It might take the job first; and a job that the forge holds back would be nobody's."""
    first = set(world.machines())
    world.forge.queue(1)
    world.pass_time(300, 5)
    assert set(world.machines()) == first
    use(world, 1, world.machines()[1])
    world.up()
    assert len(world.machines()) == 4, "it has a job: three are idle again"
    assert len(set(world.machines()) - first) == 1


def test_more_jobs_than_idle_runners_get_machines_of_their_own(world: World) -> None:
    first = set(world.machines())
    for number in range(1, 6):
        world.forge.queue(number)
    world.up()
    assert len(set(world.machines()) - first) == 2


def test_a_machine_that_was_made_for_a_cancelled_job_goes_and_no_registered_one(
    world: World,
) -> None:
    first = world.machines()
    for number in range(1, 5):
        world.forge.queue(number)
    world.up()
    (fourth,) = set(world.machines()) - set(first)
    world.step(fourth)
    for number in range(1, 5):
        world.forge.cancel(number)
    world.pass_time(60, 5)
    assert (world.machines(), made(world)) == (first, 4)


def test_a_job_that_another_hosts_runner_takes_replaces_none_here(tmp_path: Path) -> None:
    here = begun(tmp_path / "here", binds_jobs=False)
    there = World(tmp_path / "there", pools={"p": STATIC}, beside=here)
    both = here, there
    there.up()
    for machine in there.machines():
        there.step(machine)
    here.forge.queue(1)
    for world in both:
        world.pass_time(20, 5)
    assert [made(world) for world in both] == [3, 3]
    use(there, 1, there.machines()[0])
    for world in both:
        world.pass_time(20, 5)
    assert [made(world) for world in both] == [3, 4]


def test_an_idle_runner_that_a_list_left_out_is_not_replaced(world: World) -> None:
    first = world.machines()
    world.forge.unlisted_runners.add(2)
    world.pass_time(60, 5)
    assert (world.machines(), made(world)) == (first, 3)
    world.forge.unlisted_runners.clear()
    world.pass_time(60, 5)
    assert (world.machines(), made(world)) == (first, 3)


@pytest.mark.parametrize("binds_jobs", [False, True])
def test_a_machine_for_a_job_whose_record_a_list_left_out_is_not_replaced(
    tmp_path: Path, binds_jobs: bool
) -> None:
    world = World(tmp_path, binds_jobs=binds_jobs)
    world.forge.queue(1)
    world.up()
    world.step(world.machines()[0])
    world.forge.unlisted_runners.add(1)
    world.up()
    assert made(world) == 1


@pytest.mark.parametrize("seconds", [90, 900])
def test_idle_runners_outlive_an_outage(world: World, seconds: float) -> None:
    """A forge shows a runner as offline that has not called for a minute: right after an outage all
    of them, until they call.
    """
    first = world.machines()
    world.pass_time(600)
    world.forge.down = True
    world.pass_time(seconds, 30)
    world.forge.down = False
    silent(world)
    world.up()
    world.clock.now += 5
    for machine in first:
        world.step(machine)
    world.pass_time(600, 5)
    assert (world.machines(), made(world)) == (first, 3)


def test_idle_runners_outlive_their_hosts_sleep(world: World) -> None:
    first = world.machines()
    world.pass_time(600)
    world.clock.jump(5 * 3600)
    silent(world)
    world.up()
    for machine in first:
        world.step(machine)
    world.pass_time(600, 5)
    assert (world.machines(), made(world)) == (first, 3)


def test_an_idle_runner_that_calls_no_more_is_replaced(world: World) -> None:
    """However long ago it was registered, it has the time of one that starts."""
    world.pass_time(600)
    first = world.machines()
    silent(world)
    world.pass_time(100, 5)
    assert world.machines() == first
    world.pass_time(60, 5)
    assert set(world.machines()).isdisjoint(first)
    assert {row.ending for row in world.history.all() if row.ending} == {"pickup-timeout"}


def test_a_job_does_not_wait_for_a_runner_that_calls_no_more(world: World) -> None:
    world.pass_time(600)
    first = world.machines()
    for machine in first:
        world.step(machine)
    silent(world)
    world.forge.queue(1)
    world.pass_time(20, 5)
    assert world.machines() == first, "after an outage each of them is so, until it calls"
    world.pass_time(20, 5)
    (new,) = set(world.machines()) - set(first)
    assert new.serial in world.reasons()[1].said


def test_a_job_does_not_wait_for_a_runner_with_the_labels_of_before(world: World) -> None:
    """It was registered with those that the pool had, and takes no other jobs."""
    first = world.machines()
    world.configure({"p": STATIC | {"labels": [*POOL["labels"], "new"]}})
    world.forge.queue(1, ["new"])
    world.up()
    assert len(set(world.machines()) - set(first)) == 1
    world.forge.queue(2)
    world.up()
    assert len(world.machines()) == 4, "this one they take"


def silent(world: World) -> None:
    """The forge shows no runner as online, until it calls."""
    for runner in world.forge.runners_.values():
        runner.record = replace(runner.record, online=False)


def test_a_surplus_takes_the_newest(world: World) -> None:
    first = world.machines()
    world.configure({"p": STATIC | {"register_idle": 4}})
    world.up()
    (last,) = set(world.machines()) - set(first)
    world.configure({"p": STATIC})
    world.up()
    assert last not in world.machines()
    assert world.machines() == first


STEPS = st.lists(
    st.sampled_from(["queue", "pass", "pass", "guest", "guest", "late", "left out", "whole"]),
    min_size=5,
    max_size=60,
)


@settings(
    max_examples=60,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(steps=STEPS, binds=st.booleans(), data=st.data())
def test_one_is_made_for_each_that_was_used(
    steps: list[str], binds: bool, data: st.DataObject
) -> None:
    """Whatever the lists show late, or leave out, while no more jobs wait than runners are idle: as
    many machines are made as had a job, and three; none but used ones go.
    """
    with TemporaryDirectory(dir="/dev/shm") as folder:
        world = begun(Path(folder), binds_jobs=binds)
        forge = world.forge
        for number, step in enumerate(steps, start=1):
            waiting = [job for job in forge.known.values() if job.state is JobState.WAITING]
            match step:
                case "queue" if len(waiting) < idle(world) and not forge.frozen:
                    forge.queue(number)
                case "pass":
                    world.up()
                case "guest":
                    world.step(data.draw(st.sampled_from(world.machines())))
                case "late":  # the lists show what is now, for a time
                    forge.freeze()
                case "left out":
                    records = st.sets(st.sampled_from(sorted(forge.runners_)))
                    forge.unlisted_runners = data.draw(records)
                case "whole":
                    forge.thaw()
                    forge.unlisted_runners = set()
            world.clock.now += 1
            used = len(world.starts)
            assert made(world) <= 3 + used, (step, world.log.lines[-12:])
        forge.thaw()
        forge.unlisted_runners = set()
        for _ in range(8):
            world.up()
            for machine in world.machines():
                world.step(machine)
            world.clock.now += 5
        world.up()
        assert made(world) == 3 + len(world.starts)
        assert len(world.machines()) == 3
        ended = {row.machine for row in world.history.all() if row.ending}
        assert ended == {job.runner_name for job in forge.known.values() if job.runner_name}
        assert {row.ending for row in world.history.all() if row.ending} <= {"done"}


def idle(world: World) -> int:
    """Runners that may take a job."""
    runners = (world.forge.by_name(str(machine)) for machine in world.machines())
    return sum(1 for runner in runners if runner and not runner.job)
