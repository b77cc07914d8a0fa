"""Many hosts on one forge, each with a manager of its own, and no coordinator of ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.fleet import hosts_of, measure, meet
from tests.world import World
from vmrunner.manager.actions import WaitKind
from vmrunner.model.fleet import CLAIM, TURN
from vmrunner.model.job import JobState, Scope
from vmrunner.model.machine import MachineId, Metadata

INSTANCE = Scope.parse("instance")
DAY = 86400.0


@pytest.fixture(params=[False, True], ids=["gitea", "forgejo"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[World, World]:
    """Two hosts whose managers have the same name, on one forge."""
    first = World(tmp_path / "first", binds_jobs=request.param)
    return first, World(tmp_path / "second", binds_jobs=request.param, beside=first)


def records(world: World) -> set[str]:
    return {runner.record.name for runner in world.forge.runners_.values()}


def older(world: World, machine: MachineId) -> MachineId:
    """Everything of this machine as a vmrunner without identities would have named it."""
    named = MachineId(machine.manager, machine.serial)
    host, history = world.hypervisor, world.manager.history
    host.domains[named] = replace(host.domains.pop(machine), machine=named)
    host.shapes[named] = host.shapes.pop(machine)
    host.files = {
        (named if owner == machine else owner, file): content
        for (owner, file), content in list(host.files.items())
    }
    for runner in world.forge.runners_.values():
        if runner.record.name == str(machine):
            runner.record = replace(runner.record, name=str(named))
    for path in (world.folder / "run" / "bindings").glob("*"):
        path.rename(path.with_name(path.name.replace(str(machine), str(named))))
    if row := history.find(machine):
        history._write(replace(row, machine=str(named)))
        history._database.execute("DELETE FROM machines WHERE machine = ?", (str(machine),))
    return named


# ---- identity ----


def test_hosts_with_equal_names_leave_each_others_runners_alone(
    pair: tuple[World, World],
) -> None:
    """A job of a minute on one; a pass on the other, in the middle of it and before it began."""
    first, second = pair
    first.forge.queue(1)
    first.up()
    (machine,) = first.machines()
    for _ in range(3):
        second.up()
    assert str(machine) in records(first), "while it boots"
    while first.known_states() != {JobState.RUNNING}:
        first.step(machine)
    for _ in range(30):
        first.clock.now += 10
        second.up()
        first.up()
    assert str(machine) in records(first), "while its job runs"
    assert first.machines() == [machine]
    first.settle()
    second.settle()
    assert first.forge.verdicts == {1: ["success"]}


def test_a_host_sweeps_its_own_and_nobody_elses(pair: tuple[World, World]) -> None:
    first, second = pair
    mine, strangers = first.named("0123abcd"), second.named("0123abcd")
    for name in (mine, strangers):
        first.forge.create_runner(INSTANCE, name, ["x"])
    first.up()
    assert records(first) == {strangers}
    second.up()
    assert not records(first)


def test_machines_of_an_older_version_are_taken_over(pair: tuple[World, World]) -> None:
    first, second = pair
    first.forge.queue(1)
    first.up()
    named = older(first, *first.machines())
    first.restart()
    while first.known_states() != {JobState.RUNNING}:
        first.step(named)
    for _ in range(3):
        second.up()
        first.up()
    assert first.machines() == [named]
    assert str(named) in records(first)
    first.settle()
    assert first.forge.verdicts == {1: ["success"]}
    (row,) = first.history.all()
    assert (row.machine, row.ending, row.verdict) == (str(named), "done", "success")


def test_a_parked_clone_of_an_older_version_gets_a_job(tmp_path: Path) -> None:
    pool = {"labels": ["debian-12"], "image": "debian-12", "max": 2, "warm": 1, "start": "auto"}
    world = World(tmp_path, pools={"p": pool})
    world.make_snapshot("p")
    world.up()
    named = older(world, *world.machines())
    world.step(named)
    world.up()
    world.forge.queue(1)
    world.up()
    assert world.hypervisor.domains[named].is_bound
    assert str(named) in records(world)


def test_a_killed_older_versions_registration_is_swept(pair: tuple[World, World]) -> None:
    """It died between the registration and the note of it."""
    first, second = pair
    first.forge.queue(1)
    first.hypervisor.fail_at = ""
    first.up()
    (machine,) = first.machines()
    bindings = first.manager._bindings
    binding = bindings.find(machine)
    assert binding
    bindings.save(replace(binding, credentials=replace(binding.credentials, id=0)))
    named = older(first, machine)
    first.hypervisor.machines.destroy(named)
    first.forge.cancel(1)
    first.forge.create_runner(INSTANCE, str(named), ["x"])
    for _ in range(2):
        second.up()
    assert str(named) in records(first)
    first.restart()
    first.up()
    first.up()
    assert not records(first)


def test_what_an_older_version_left_is_swept_by_the_host_that_remembers_it(
    pair: tuple[World, World],
) -> None:
    first, _ = pair
    metadata = Metadata(MachineId("m", "0123abcd"), "p", "debian-12/1", first.clock.now)
    first.history.started(metadata, first.clock.now)
    for name in ("vmr-m-0123abcd", "vmr-m-89abcdef"):
        first.forge.create_runner(INSTANCE, name, ["x"])
    for world in pair:
        world.up()
    assert len(records(first)) == 2, "it may have been made just now"
    first.clock.now += 2 * DAY
    for world in pair:
        world.up()
    assert records(first) == {"vmr-m-89abcdef"}, "nobody knows whose that is"


def test_what_an_older_version_made_and_calls_is_not_swept(pair: tuple[World, World]) -> None:
    """This host's disk was copied from another one, whose machine it is."""
    first, _ = pair
    metadata = Metadata(MachineId("m", "0123abcd"), "p", "debian-12/1", first.clock.now)
    first.history.started(metadata, first.clock.now)
    first.forge.create_runner(INSTANCE, "vmr-m-0123abcd", ["x"])
    first.forge.connect("vmr-m-0123abcd")
    first.clock.now += 2 * DAY
    first.up()
    assert records(first) == {"vmr-m-0123abcd"}


# ---- whose turn a job is ----


def made(worlds: list[World]) -> int:
    return sum(line == "machine started" for world in worlds for line, _ in world.log.lines)


def go_on(worlds: list[World], *, until_running: int = 0) -> None:
    """Guests boot and take jobs, but none ends; with passes on all hosts."""
    forge = worlds[0].forge
    for _ in range(40):
        for world in worlds:
            for machine in world.machines():
                runner = forge.by_name(str(machine))
                if machine in world.hypervisor.domains and not (runner and runner.job):
                    world.step(machine)
        for world in worlds:
            world.up()
        forge.clock.now += 1
        running = sum(job.state is JobState.RUNNING for job in forge.known.values())
        if until_running and running >= until_running:
            return


@pytest.mark.parametrize("binds_jobs", [False, True], ids=["gitea", "forgejo"])
@pytest.mark.parametrize("known", [False, True], ids=["strangers", "known"])
def test_two_hosts_have_the_capacity_of_two(tmp_path: Path, binds_jobs: bool, known: bool) -> None:
    """F1: one machine each at most, two jobs of an hour."""
    worlds = hosts_of(tmp_path, 2, binds_jobs=binds_jobs)
    if known:
        meet(worlds)
    for number in (1, 2):
        worlds[0].forge.queue(number)
    for _ in range(4):
        for world in worlds:
            world.up()
        worlds[0].clock.now += 1
    assert [len(world.machines()) for world in worlds] == [1, 1]
    go_on(worlds, until_running=2)
    running = {job.id for job in worlds[0].forge.known.values() if job.state is JobState.RUNNING}
    assert running == {1, 2}


def simultaneous(worlds: list[World]) -> None:
    """All of them look before any of them acts."""
    worlds[0].forge.freeze()
    for world in worlds:
        world.up()
    worlds[0].forge.thaw()


@pytest.mark.parametrize("binds_jobs", [False, True], ids=["gitea", "forgejo"])
def test_who_comes_first_keeps_a_job_that_two_claim(tmp_path: Path, binds_jobs: bool) -> None:
    worlds = hosts_of(tmp_path, 2, binds_jobs=binds_jobs)
    for number in (1, 2):
        worlds[0].forge.queue(number)
    simultaneous(worlds)
    claims = [runner.record.claim for runner in worlds[0].forge.runners_.values()]
    assert claims[0] == claims[1], "neither knew of the other"
    for _ in range(3):
        for world in worlds:
            world.up()
        worlds[0].clock.now += 1
    go_on(worlds, until_running=2)
    assert made(worlds) <= 3
    ended = [row for world in worlds for row in world.history.all() if row.ending]
    assert {row.ending for row in ended} <= {"unneeded"}
    while worlds[0].known_states() != {JobState.DONE}:
        for world in worlds:
            for machine in world.machines():
                world.step(machine)
            world.up()
    assert worlds[0].forge.verdicts.keys() == {1, 2}


@pytest.mark.parametrize("binds_jobs", [False, True], ids=["gitea", "forgejo"])
def test_known_hosts_that_look_at_once_do_not_claim_one_job(
    tmp_path: Path, binds_jobs: bool
) -> None:
    worlds = hosts_of(tmp_path, 3, binds_jobs=binds_jobs, maximum=4)
    meet(worlds)
    for number in range(1, 10):
        worlds[0].forge.queue(number)
    for _ in range(12):
        simultaneous(worlds)
        worlds[0].clock.now += 0.5
    assert made(worlds) == 9
    claims = [runner.record.claim for runner in worlds[0].forge.runners_.values()]
    assert len({claim.job for claim in claims if claim}) == 9


@pytest.mark.parametrize("binds_jobs", [False, True], ids=["gitea", "forgejo"])
def test_a_dead_host_costs_a_turn(tmp_path: Path, binds_jobs: bool) -> None:
    worlds = hosts_of(tmp_path, 3, binds_jobs=binds_jobs, maximum=20)
    meet(worlds)
    alive = worlds[:2]
    for number in range(1, 13):
        worlds[0].forge.queue(number)
    waited = 0.0
    while made(alive) < 12:
        assert waited < 3 * TURN
        simultaneous(alive)
        worlds[0].clock.now += 0.5
        waited += 0.5
    worlds[0].forge.queue(20)
    simultaneous(alive)
    worlds[0].clock.now += 1
    for _ in range(6):
        simultaneous(alive)
        worlds[0].clock.now += 0.5
    assert made(alive) in {13, 14}, "who learnt of it may go at once, and so may who comes next"


def test_a_claim_whose_host_died_is_not_believed_for_ever(tmp_path: Path) -> None:
    worlds = hosts_of(tmp_path, 2, binds_jobs=True)
    meet(worlds)
    worlds[0].forge.queue(1)
    worlds[1].clock.now += 3 * TURN
    first = worlds[0]
    first.up()
    first.clock.now += 3 * TURN
    first.up()
    assert first.machines()  # and dies with its host
    second = worlds[1]
    second.up()
    assert (made([second]), second.reasons()[1].kind) == (0, WaitKind.OTHER_HOST)
    second.clock.now += CLAIM + 20
    second.up()
    assert made([second]) == 1
    second.settle()
    assert second.forge.verdicts == {1: ["success"]}


@pytest.mark.parametrize("binds_jobs", [False, True], ids=["gitea", "forgejo"])
def test_a_slow_start_is_waited_for(tmp_path: Path, binds_jobs: bool) -> None:
    """Two minutes, as under emulation; and a little more until its runner has the job."""
    worlds = hosts_of(tmp_path, 2, binds_jobs=binds_jobs)
    meet(worlds)
    first, second = worlds
    first.forge.queue(1)
    first.clock.now += 3 * TURN
    first.up()
    first.clock.now += 3 * TURN
    first.up()
    (machine,) = first.machines()
    for seconds in range(0, 170, 5):
        if seconds == 115:
            first.boot(machine)
            runner = first.forge.by_name(str(machine))
            assert runner
            runner.record = replace(runner.record, online=True)
        for world in worlds:
            world.up()
        first.clock.now += 5
    assert made([second]) == 0
    assert first.machines() == [machine]


@pytest.mark.parametrize("binds_jobs", [False, True], ids=["gitea", "forgejo"])
def test_a_host_alone_waits_for_nobody(tmp_path: Path, binds_jobs: bool) -> None:
    (world,) = hosts_of(tmp_path, 1, binds_jobs=binds_jobs, maximum=5)
    for number in range(1, 6):
        world.forge.queue(number)
    survey = world.manager.survey()
    assert survey.plan.again == 0.0
    world.up()
    assert len(world.machines()) == 5
    assert "peers" in (tmp_path / "0" / "fleet.json").read_text()
    world.settle()
    assert not world.manager.survey().observed.fleet.peers


def test_a_job_on_another_hosts_machine_frees_this_one(tmp_path: Path) -> None:
    """On Forgejo: both runners were there already, so neither withdrew."""
    worlds = hosts_of(tmp_path, 2, binds_jobs=True)
    forge = worlds[0].forge
    forge.queue(1)
    simultaneous(worlds)
    for world in worlds:
        (machine,) = world.machines()
        world.boot(machine)
    for world in worlds:
        world.up()
        assert world.machines(), "its runner may have the job any moment"
    first, second = worlds
    first.step(*first.machines())
    forge.queue(2)
    second.up()
    second.up()
    assert str(second.machines()[0]) in records(second)
    forge.clock.now += 31
    go_on(worlds, until_running=2)
    assert [job.state for job in forge.known.values()] == [JobState.RUNNING] * 2
    ended = [(row.ending, row.job) for row in second.history.all() if row.ending]
    assert ended == [("unneeded", "")]


def test_until_a_runner_says_that_it_has_the_job_none_goes(tmp_path: Path) -> None:
    """Forgejo shows a runner at work only once it has reported: up to then it may be either's."""
    worlds = hosts_of(tmp_path, 2, binds_jobs=True)
    forge = worlds[0].forge
    forge.queue(1)
    simultaneous(worlds)
    for world in worlds:
        world.boot(*world.machines())
    first = worlds[0]
    (machine,) = first.machines()
    first.step(machine)
    runner = forge.by_name(str(machine))
    assert runner
    runner.record = replace(runner.record, busy=False)
    for _ in range(3):
        for world in worlds:
            world.up()
    assert [len(world.machines()) for world in worlds] == [1, 1]
    assert not any(row.running for world in worlds for row in world.history.all())
    runner.record = replace(runner.record, busy=True)
    for world in worlds:
        world.up()
    assert [len(world.machines()) for world in worlds] == [1, 1], "anybody may say so"
    first.clock.now += 31
    for world in worlds:
        world.up()
    assert [len(world.machines()) for world in worlds] == [1, 0]
    assert [row.job for row in first.history.all()] == ["job 1"]


def test_a_spare_goes_when_no_job_is_left_for_it(tmp_path: Path) -> None:
    """On Gitea: it does not wait out its time to pick up a job."""
    (world,) = hosts_of(tmp_path, 1, binds_jobs=False, maximum=2)
    for number in (1, 2):
        world.forge.queue(number)
    world.up()
    one, two = world.machines()
    for _ in range(2):
        world.step(one)
    world.forge.create_runner(INSTANCE, "builder", ["debian-12"])
    world.forge.fetch("builder")
    world.up()
    assert world.machines() == [one]
    row = world.history.find(two)
    assert row
    assert (row.ending, row.job) == ("unneeded", "")


def test_a_spare_whose_job_a_list_left_out_stays(tmp_path: Path) -> None:
    (world,) = hosts_of(tmp_path, 1, binds_jobs=False)
    world.forge.queue(1)
    world.up()
    world.forge.unlisted_jobs.add(1)
    world.up()
    assert len(world.machines()) == 1
    assert world.forge.by_id


def test_a_spare_serves_another_job(tmp_path: Path) -> None:
    """On Gitea: whichever host made it, no other machine is made for that job."""
    worlds = hosts_of(tmp_path, 3, binds_jobs=False)
    meet(worlds)
    first = worlds[0]
    first.forge.queue(1)
    while not made(worlds):
        simultaneous(worlds)
        first.clock.now += 0.5
    first.forge.create_runner(INSTANCE, "builder", ["debian-12"])
    first.forge.fetch("builder")
    first.forge.queue(2)
    for _ in range(10):
        simultaneous(worlds)
        first.clock.now += 0.5
    assert made(worlds) == 1
    go_on(worlds, until_running=2)
    assert made(worlds) == 1
    assert {job.state for job in first.forge.known.values() if job.id < 9} == {JobState.RUNNING}


# ---- the small version of `make fleet` ----


@pytest.mark.parametrize("binds_jobs", [False, True], ids=["gitea", "forgejo"])
def test_three_hosts_share_their_jobs(binds_jobs: bool) -> None:
    result = measure(3, 12, binds_jobs=binds_jobs)
    assert result.faults() == []
    assert result.made <= 13, "two that look in the same half second may take one job"


def test_a_host_that_dies_takes_only_the_job_that_ran_on_it_along() -> None:
    result = measure(3, 9, binds_jobs=True, kill_at=30.0)
    assert result.faults() == []
    assert result.killed == 1
