"""Jobs that a user ends at Gitea 28 and 1.27, through a manager: the fake host, the real client,
and the double. Whatever the lists say, the machine of such a job ends here, and no other one does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.forge.double_gitea import Gitea, Job
from tests.forge.test_behaviour import Runner
from tests.world import POOL, World
from vmrunner.config import ForgeConfig
from vmrunner.forge.connect import connect
from vmrunner.machine.bindings import Bindings
from vmrunner.model.binding import Binding
from vmrunner.model.machine import Ending, EventKind, MachineId
from vmrunner.model.secret import Secret

LABELS = ["debian-12"]


class House:
    """A manager, and what happens in its machines."""

    def __init__(self, world: World, gitea: Gitea) -> None:
        self.world, self.gitea = world, gitea
        self.runners: dict[MachineId, tuple[Runner, str]] = {}

    def start(self, *, knows_cancelling: bool = False) -> MachineId:
        """A machine for what waits, whose runner takes it."""
        before = set(self.world.machines())
        self.passes(1)
        (machine,) = set(self.world.machines()) - before
        self.world.hypervisor.report(machine, EventKind.UP, EventKind.SEED, EventKind.RUNNER)
        runner = Runner(self.world.manager.forge, self.binding(machine).credentials)
        capabilities = ["cancelling"] if knows_cancelling else []
        assert runner.call("Declare", labels=LABELS, capabilities=capabilities).is_success
        task = str(runner.call("FetchTask", tasksVersion="0").json()["task"]["id"])
        self.runners[machine] = runner, task
        self.passes(2)
        return machine

    def binding(self, machine: MachineId) -> Binding:
        found = Bindings(self.world.settings.runtime_dir, "m").find(machine)
        assert found
        return found

    def passes(self, seconds: float, every: float = 2.0) -> None:
        """Time goes by, with passes; runners at work say so."""
        while seconds > 0:
            for machine in self.runners:
                record = self.gitea.runners[self.binding(machine).credentials.id]
                record.seen = record.reported = time.monotonic()
            self.world.clock.now += every
            seconds -= every
            self.world.up()

    def ending(self, machine: MachineId) -> str:
        (line,) = [each for each in self.world.history.all() if each.machine == str(machine)]
        return line.ending


@pytest.fixture
def house(tmp_path: Path, gitea: Gitea) -> Iterator[House]:
    gitea.version = "28.0.0"
    world = World(tmp_path, pools={"p": POOL})
    world.manager.forge = connect(ForgeConfig(kind="gitea", url=gitea.url), Secret(gitea.token))
    yield House(world, gitea)
    world.manager.forge.close()
    assert gitea.faults_of_its_own == []


def cancelled(gitea: Gitea, job: Job) -> None:
    gitea.mark_over(job)


def approved(gitea: Gitea, job: Job) -> None:
    gitea.mark_over(job, "skipped")


def force_cancelled(gitea: Gitea, job: Job) -> None:
    """Also one that is in its clean-up."""
    gitea.cancel(job)
    gitea.mark_over(job)


@pytest.mark.parametrize("end", [cancelled, approved, force_cancelled])
def test_a_job_that_is_over_at_once_takes_its_machine_along(
    house: House, end: Callable[[Gitea, Job], None]
) -> None:
    other = house.gitea.add_job("other", labels=LABELS)
    beside = house.start(knows_cancelling=True)
    job = house.gitea.add_job("job", labels=LABELS)
    machine = house.start(knows_cancelling=True)
    end(house.gitea, job)
    verdict = job.state
    house.passes(12)
    assert machine in house.world.machines(), "its runner gets the time to end by itself"
    del house.runners[machine]
    house.passes(8)
    assert house.world.machines() == [beside]
    assert house.ending(machine) == Ending.CANCELLED.value
    assert (job.state, other.state) == (verdict, "running")
    assert other.task
    assert other.task.log == [], "nothing was said of another job"
    runner, task = house.runners[beside]
    runner.finish(task)
    assert other.state == "success"


def test_a_runner_that_ends_by_itself_is_not_hurried(house: House) -> None:
    job = house.gitea.add_job("job", labels=LABELS)
    machine = house.start()
    house.gitea.mark_over(job)
    house.passes(10)
    del house.runners[machine]
    house.world.hypervisor.power_off(machine)
    house.passes(3)
    assert house.ending(machine) == Ending.DONE.value


def test_the_record_that_stays_goes_with_the_machine(house: House) -> None:
    job = house.gitea.add_job("job", labels=LABELS)
    machine = house.start()
    record = house.binding(machine).credentials.id
    house.gitea.mark_over(job)
    house.passes(14)
    del house.runners[machine]
    house.passes(6)
    house.gitea.runners[record].reported = 0.0  # ten seconds after its last word
    house.passes(4)
    assert house.gitea.runners == {}
    assert house.world.left() == []


def test_one_that_nobody_has_taken_yet_blames_no_pool(house: House) -> None:
    job = house.gitea.add_job("job", labels=LABELS)
    house.passes(1)
    (machine,) = house.world.machines()
    house.world.hypervisor.report(machine, EventKind.UP, EventKind.SEED, EventKind.RUNNER)
    runner = Runner(house.world.manager.forge, house.binding(machine).credentials)
    runner.call("Declare", labels=LABELS)
    house.gitea.mark_over(job)
    house.passes(600, every=20)
    assert house.world.machines() == []
    assert not Ending(house.ending(machine)).blames_pool
    assert job.state == "cancelled"


def test_the_end_of_the_job_that_it_was_made_for_is_not_its_own(house: House) -> None:
    """Gitea gave the machine another job, which is in its clean-up and in no list."""
    wanted = house.gitea.add_job("wanted", labels=LABELS)
    house.passes(1)
    (machine,) = house.world.machines()
    mine = house.gitea.add_job("mine", labels=LABELS)
    house.gitea.jobs = {mine.id: mine, wanted.id: wanted}
    house.world.hypervisor.report(machine, EventKind.UP, EventKind.SEED, EventKind.RUNNER)
    runner = Runner(house.world.manager.forge, house.binding(machine).credentials)
    runner.call("Declare", labels=LABELS, capabilities=["cancelling"])
    task = str(runner.call("FetchTask", tasksVersion="0").json()["task"]["id"])
    house.runners[machine] = runner, task
    assert mine.task
    house.gitea.cancel(mine)  # before any list showed it
    house.gitea.mark_over(wanted)
    house.passes(4)
    del house.runners[machine]  # it says nothing for a while
    house.gitea.runners[house.binding(machine).credentials.id].reported = 0.0
    house.passes(60, every=5)
    assert machine in house.world.machines()
    assert mine.state == "cancelling"
    runner.finish(task)
    assert mine.state == "cancelled"


def test_a_clean_up_that_no_list_shows_goes_on_as_long_as_it_takes(house: House) -> None:
    house.gitea.version = "1.27.3"
    job = house.gitea.add_job("job", labels=LABELS)
    machine = house.start(knows_cancelling=True)
    house.gitea.cancel(job)
    house.passes(240, every=8)
    assert machine in house.world.machines()
    assert job.state == "cancelling"
    runner, task = house.runners.pop(machine)
    runner.finish(task)
    house.world.hypervisor.power_off(machine)
    house.passes(2)
    assert house.ending(machine) == Ending.DONE.value
    assert job.state == "cancelled"
