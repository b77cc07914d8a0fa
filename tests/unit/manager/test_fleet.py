"""Many hosts on one forge, each with a manager of its own, and no coordinator of ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.world import World
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
    for path in (world.folder / "run" / "bindings").iterdir():
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
