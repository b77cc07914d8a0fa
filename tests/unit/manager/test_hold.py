"""Machines that are kept for a person: which, for how long, what they count for, how they end."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import Killed
from tests.unit.manager.test_plan import HOST, NOW, POOL, decide, machine, record, waiting
from tests.world import POOL as SECTION
from tests.world import World
from vmrunner.errors import WrongCommand
from vmrunner.hypervisor.domain import NAMESPACE, metadata_xml, parse_metadata
from vmrunner.manager import keep
from vmrunner.manager.actions import Finish, Note, WaitKind
from vmrunner.manager.observed import Drain
from vmrunner.model.job import JobState
from vmrunner.model.machine import Ending, EventKind, Machine, MachineId, Phase
from vmrunner.text import presentable

KEEPING = SECTION | {"hold_failed": "10m"}


def world_of(folder: Path, *, binds_jobs: bool = False, **section: Any) -> World:
    return World(folder, binds_jobs=binds_jobs, pools={"p": KEEPING | section})


def finish(world: World, verdict: str = "failure") -> MachineId:
    """A job comes, runs and ends so; its machine."""
    number = len(world.forge.known) + 1
    world.forge.queue(number)
    before = set(world.machines())
    world.up()
    (machine,) = set(world.machines()) - before
    for _ in range(2):  # boots, takes it
        world.step(machine)
    world.up()
    assert world.step(machine, lambda choices: next(c for c in choices if c == verdict)) == (
        "finished"
    )
    return machine


def rows(world: World) -> list[tuple[str, str, str]]:
    return [(row.ending, row.verdict, row.reason) for row in world.history.all()]


@pytest.fixture(params=[False, True], ids=["gitea", "forgejo"])
def world(tmp_path: Path, request: pytest.FixtureRequest) -> World:
    return world_of(tmp_path, binds_jobs=request.param)


def test_a_machine_whose_job_failed_is_held_until_its_time_is_over(world: World) -> None:
    machine = finish(world)
    world.up()
    metadata = world.hypervisor.domains[machine]
    assert (metadata.held_for, metadata.held_why) == (600, "its job o/r: job 1 failed")
    assert (world.phase(machine), world.hypervisor.isolated) == (Phase.HELD, {machine})
    assert world.forge.runners_ == {}
    assert list((world.folder / "run" / "bindings").iterdir()) == []
    assert world.step(machine) == "held"
    world.up()
    assert rows(world) == [("", "failure", "")], "which job it was is known at once"
    world.restart()
    world.pass_time(595)
    assert world.machines() == [machine]
    world.pass_time(10)
    assert world.left() == []
    ((ending, verdict, reason),) = rows(world)
    assert (ending, verdict) == ("held", "failure")
    assert reason == "its job o/r: job 1 failed; it was held for 600 s"
    assert world.manager.desired()[0].backoff is None


@pytest.mark.parametrize("verdict", ["success", "cancelled"])
def test_one_whose_job_did_not_fail_goes_at_once(world: World, verdict: str) -> None:
    machine = finish_cancelled(world) if verdict == "cancelled" else finish(world, verdict)
    world.up()
    assert machine not in world.hypervisor.domains
    world.up()
    assert rows(world) == [("done", verdict, "")]


def finish_cancelled(world: World) -> MachineId:
    """A user cancels it, and its runner ends."""
    world.forge.queue(1)
    world.up()
    (machine,) = world.machines()
    for _ in range(2):
        world.step(machine)
    world.up()
    world.forge.cancel(1)
    world.hypervisor.report(machine, EventKind.EXIT, text="0")
    return machine


def test_a_runner_that_was_killed_fails_its_job_and_its_machine_is_held(world: World) -> None:
    world.forge.queue(1)
    world.up()
    (machine,) = world.machines()
    for _ in range(2):
        world.step(machine)
    world.up()
    world.hypervisor.report(machine, EventKind.EXIT, text="137")
    world.up()
    assert world.forge.known[1].conclusion == "failure"
    assert world.phase(machine) is Phase.HELD
    assert world.forge.logs[1][0].endswith(
        "is held: its runner ended (exit 137) before its job did"
    )


def test_a_job_that_does_not_end_is_failed_and_its_machine_is_held(world: World) -> None:
    machine = running(world)
    world.pass_time(3 * 3600 + 10, every=600)
    assert world.forge.known[1].conclusion == "failure"
    assert world.forge.logs[1][0].endswith("is held: its job did not end within 10800 s")
    assert (world.phase(machine), world.hypervisor.isolated) == (Phase.HELD, {machine})
    assert world.forge.runners_ == {}
    assert list((world.folder / "run" / "bindings").iterdir()) == []
    assert machine in world.hypervisor.told_to_stay
    world.pass_time(620)
    assert world.left() == []
    ((ending, verdict, reason),) = rows(world)
    assert (ending, verdict) == ("held", "failure")
    assert reason == "its job did not end within 10800 s; it was held for 600 s"


def test_a_job_that_does_not_end_and_a_forge_that_does_not_take_that(world: World) -> None:
    machine = running(world)
    world.forge.fail_at = "fail_job"
    world.pass_time(3 * 3600 + 10, every=3 * 3600 + 10)
    assert world.phase(machine) is Phase.HELD
    assert world.forge.known[1].state is JobState.RUNNING
    world.up()
    assert world.forge.known[1].conclusion == "failure"
    assert list((world.folder / "run" / "bindings").iterdir()) == []


def test_where_the_forge_does_not_tell_how_it_ended_it_goes(world: World) -> None:
    machine = finish(world)
    world.forge.forgets = True
    world.up()
    assert world.phase(machine) is Phase.FINISHED
    assert world.manager.survey().plan.again == 1.0, "it is asked again soon"
    world.pass_time(55, every=5)
    assert world.machines() == [machine]
    world.pass_time(10, every=5)
    assert machine not in world.hypervisor.domains


def test_one_that_the_forge_tells_late_is_held(world: World) -> None:
    machine = finish(world)
    world.forge.forgets = True
    world.up()
    world.forge.forgets = False
    world.clock.now += 2
    world.up()
    assert world.phase(machine) is Phase.HELD


def test_while_the_forge_is_silent_nothing_is_decided(world: World) -> None:
    machine = finish(world)
    world.forge.down = True
    world.pass_time(4000)
    assert world.phase(machine) is Phase.FINISHED
    world.forge.down = False
    world.up()
    assert world.phase(machine) is Phase.HELD


def test_held_ones_count_and_say_so(tmp_path: Path) -> None:
    world = world_of(tmp_path, max=1)
    machine = finish(world)
    world.up()
    world.forge.queue(2)
    world.up()
    assert world.machines() == [machine]
    reason = world.reasons()[2]
    assert reason.kind is WaitKind.AT_MAX_HELD
    assert reason.said == (
        "pool p is at its max of 1, and 1 of its machines is held (`vmrunner release` ends that)"
    )
    used = world.hypervisor.facts.capacity()
    assert used.used_memory_mib == world.settings.pools["p"].memory


def test_an_idle_one_makes_room_but_a_held_one_does_not() -> None:
    held = held_machine("a")
    idle = machine("b", runner=0, job="", events="up seed ready")
    found = decide([held, idle], [waiting(1)], pools=[replace(POOL, warm=1)])
    assert not any(isinstance(each, Finish) for each in found.actions)


def held_machine(serial: str, **more: Any) -> Machine:
    """One that has been held for 100 of 600 s."""
    found = machine(serial, age=300, running=200, events="up seed ready runner exit")
    assert found.metadata
    metadata = replace(
        found.metadata,
        network="",
        stays=True,
        held_at=NOW - 100,
        held_for=600.0,
        held_why="its job failed",
        **more,
    )
    return replace(found, metadata=metadata)


def reason(found: list[Any]) -> tuple[Ending, str]:
    (only,) = [each for each in found if isinstance(each, Finish)]
    return only.ending, only.reason


def test_down_leaves_them_to_their_time_and_down_now_does_not() -> None:
    held = held_machine("a")
    for drain in (Drain.NO, Drain.IDLE):
        assert decide([held], pools=[replace(POOL, drain=drain)]).actions == ()
    assert decide([held], pools=[]).actions == (), "its pool is not in the configuration any more"
    found = list(decide([held], pools=[replace(POOL, drain=Drain.ALL)]).actions)
    assert reason(found) == (Ending.HELD, "its job failed; vmrunner down --now")
    found = list(decide([held], pools=[replace(POOL, drain=Drain.HALT)]).actions)
    assert reason(found) == (Ending.HELD, "its job failed; the host shuts down")


def test_a_silent_forge_does_not_keep_them_longer() -> None:
    old = held_machine("a")
    assert old.metadata
    late = replace(old, metadata=replace(old.metadata, held_at=NOW - 601))
    found = list(decide([late], problem="it does not answer").actions)
    assert reason(found) == (Ending.HELD, "its job failed; it was held for 600 s")


def test_they_go_first_where_the_storage_gets_full() -> None:
    newer = machine("b", age=5, runner=0, job="", events="up")
    found = decide([held_machine("a"), newer], host=replace(HOST, free_disk_mib=1024)).actions
    (only,) = [each for each in found if isinstance(each, Finish)]
    assert only.machine == MachineId("m", "a" * 8)
    assert "1024 MiB left, and it was held" in only.reason


def test_one_whose_disk_fails_goes() -> None:
    broken = replace(held_machine("a"), trouble="its disk could not be written")
    assert reason(list(decide([broken]).actions))[0] is Ending.HELD


def test_a_record_of_its_runner_that_is_left_is_swept() -> None:
    held = held_machine("a")
    (found,) = decide([held], records=[record(held)]).actions
    assert type(found).__name__ == "DeleteRunner"


def test_a_host_that_was_started_anew_begins_its_time_anew() -> None:
    held = held_machine("a", boot="another")
    (note,) = decide([held]).actions
    assert isinstance(note, Note)
    assert note.metadata.held_at == NOW


def test_what_its_domain_says_of_it_is_read_back() -> None:
    """Anybody may call a job what they like."""
    plain = held_machine("a").metadata
    assert plain
    why = presentable("its job o/r: <x> & \"y\" 'z' \x00\x1b[31m\ud800\n{{ 1 }} failed")
    for metadata in (
        plain,
        replace(plain, held_why=why),
        replace(plain, held_at=0.0, held_why=""),  # an admin has asked for it
        replace(plain, held_at=0.0, held_for=0.0, held_why=""),
        replace(plain, stays=False, held_at=0.0, held_for=0.0, held_why=""),
    ):
        namespaced = metadata_xml(metadata).replace("<machine", f'<machine xmlns="{NAMESPACE}"')
        text = f"<domain><metadata>{namespaced}</metadata></domain>"
        assert parse_metadata(text, metadata.machine) == metadata


@pytest.mark.parametrize("step", range(12))
def test_a_manager_that_is_killed_while_it_holds_one(world: World, step: int) -> None:
    machine = finish(world)
    world.doom.after = step
    with suppress(Killed):
        world.up()
    world.restart()
    world.up()
    world.up()
    assert world.phase(machine) is Phase.HELD
    assert machine in world.hypervisor.isolated
    assert world.forge.runners_ == {}
    assert list((world.folder / "run" / "bindings").iterdir()) == []
    assert rows(world) == [("", "failure", "")]


def test_one_that_goes_while_it_is_held_blames_nobody(world: World) -> None:
    """With its host, say: then libvirt and the runtime folder know nothing of it any more."""
    machine = finish(world)
    world.up()
    world.hypervisor.die(machine)
    world.up()
    assert world.left() == []
    assert rows(world) == [("held", "failure", "it went while it was held")]
    assert world.manager.desired()[0].backoff is None


# ---- its job asks for it ----


@pytest.mark.parametrize(
    ("section", "asked", "held_for"),
    [
        ({"job_may_hold": "20m"}, "300", 300),
        ({"job_may_hold": "20m"}, "9000", 1200),  # the pool's bound
        ({"job_may_hold": "20m", "hold_failed": None}, "300", 300),
        ({"job_may_hold": None, "hold_failed": None}, "300", 0),  # it may not
        ({"job_may_hold": "20m", "hold_failed": None}, "-5", 0),
        ({"job_may_hold": "20m", "hold_failed": None}, "nan", 0),
        ({"job_may_hold": "20m", "hold_failed": None}, "9" * 30, 0),
    ],
)
def test_a_job_asks_for_it(
    tmp_path: Path, section: dict[str, Any], asked: str, held_for: float
) -> None:
    world = world_of(tmp_path, **section)
    machine = finish(world, "success")
    world.hypervisor.report(machine, EventKind.HOLD, text=asked)
    world.up()
    found = world.hypervisor.domains.get(machine)
    assert (found.held_for if found and found.held_at else 0) == held_for
    if found and held_for:
        assert found.held_why == "its job asked for it"


# ---- by hand ----


def running(world: World) -> MachineId:
    world.forge.queue(len(world.forge.known) + 1)
    before = set(world.machines())
    world.up()
    (machine,) = set(world.machines()) - before
    for _ in range(2):
        world.step(machine)
    world.up()
    return machine


def test_an_admin_asks_for_it_while_the_job_runs(tmp_path: Path) -> None:
    world = World(tmp_path)
    machine = running(world)
    kept = keep.hold(world.manager, str(machine)[-8:], timedelta(minutes=5))
    assert (kept.id, kept.is_held) == (machine, False)
    assert world.hypervisor.told_to_stay == {machine}
    world.step(machine)  # a success
    world.up()
    assert world.hypervisor.domains[machine].held_why == "an admin asked for it"
    world.clock.now += 200
    keep.hold(world.manager, str(machine), timedelta(minutes=5))  # from now on
    world.pass_time(290)
    assert world.machines() == [machine]
    outcome = keep.release(world.manager, str(machine))
    assert outcome
    assert outcome.destroyed == 1
    assert world.left() == []
    assert rows(world) == [("held", "success", "an admin asked for it; `vmrunner release`")]


def test_one_whose_job_a_user_cancels_is_kept_all_the_same(tmp_path: Path) -> None:
    """The guest never hears of it: its runner works on."""
    world = World(tmp_path)
    machine = running(world)
    keep.hold(world.manager, str(machine), timedelta(minutes=5))
    world.forge.cancel(1)
    world.pass_time(30, every=5)
    assert world.hypervisor.domains[machine].held_why == "an admin asked for it"
    assert machine in world.hypervisor.isolated
    world.pass_time(320)
    assert world.left() == []
    assert rows(world)[0][:2] == ("held", "cancelled")


def test_what_was_asked_for_may_be_taken_back(tmp_path: Path) -> None:
    world = World(tmp_path)
    machine = running(world)
    keep.hold(world.manager, str(machine), timedelta(minutes=5))
    assert keep.release(world.manager, str(machine)) is None
    world.step(machine)
    world.up()
    assert world.left() == []


def test_the_next_failed_machine_of_a_pool_is_held_once(tmp_path: Path) -> None:
    world = World(tmp_path)
    at_work = running(world)  # its seed says nothing of it
    world.manager.catching.put("p", 300.0)
    world.up()
    assert at_work in world.hypervisor.told_to_stay
    world.step(at_work)
    world.up()
    assert world.machines() == [], "a success goes"
    caught = finish(world)
    world.up()
    assert world.hypervisor.domains[caught].held_for == 300
    assert world.manager.catching.pools() == {}
    other = finish(world)
    world.step(other)
    world.up()
    assert world.machines() == [caught]


def test_a_guest_that_can_not_be_told_ends_as_always(tmp_path: Path) -> None:
    world = World(tmp_path)
    machine = running(world)
    world.manager.catching.put("p", 300.0)
    world.hypervisor.fail_at = "stay"
    world.up()
    assert "machine can't be kept" in [event for event, _ in world.log.lines]
    world.step(machine)
    world.step(machine)
    world.up()
    assert world.left() == []
    assert rows(world)[0][0] == "done"


def test_destroy_fails_the_job_with_a_line_that_says_why(tmp_path: Path) -> None:
    world = World(tmp_path)
    machine = running(world)
    keep.destroy(world.manager, str(machine))
    assert world.left() == []
    assert world.forge.known[1].conclusion == "failure"
    assert world.forge.logs[1][0].endswith("is gone: `vmrunner destroy`")
    assert rows(world)[0][::2] == ("stopped", "`vmrunner destroy`")


def test_destroy_of_a_warm_one_and_of_a_held_one(tmp_path: Path) -> None:
    world = world_of(tmp_path, warm=1)
    world.up()
    (warm,) = world.machines()
    keep.destroy(world.manager, str(warm))
    assert rows(world) == [("unneeded", "", "`vmrunner destroy`")]
    world.configure({"p": KEEPING})
    world.clock.now += 1  # rows have their order by that
    machine = finish(world)
    world.up()
    keep.destroy(world.manager, str(machine))
    assert rows(world)[-1] == (
        "held",
        "failure",
        "its job o/r: job 1 failed; `vmrunner destroy`",
    )


@pytest.mark.parametrize("name", ["", "x", "vmr-m-00000000", "../etc", "a" * 300, "%", "\n"])
def test_a_name_that_is_nobodys(tmp_path: Path, name: str) -> None:
    world = World(tmp_path)
    running(world)
    for act in (keep.release, keep.destroy, keep.find):
        with pytest.raises(WrongCommand, match="There is no machine"):
            act(world.manager, name)


def test_what_can_not_be_held_says_why(tmp_path: Path) -> None:
    world = World(tmp_path, pools={"p": SECTION | {"warm": 1}})
    world.up()
    (warm,) = world.machines()
    world.boot(warm)
    with pytest.raises(WrongCommand, match="has had no job"):
        keep.hold(world.manager, str(warm), timedelta(minutes=1))
    with pytest.raises(WrongCommand, match="is not held"):
        keep.release(world.manager, str(warm))
    machine = running_on(world, warm)
    world.step(machine)
    with pytest.raises(WrongCommand, match="powers off just now"):
        keep.hold(world.manager, str(machine), timedelta(minutes=1))


def running_on(world: World, warm: MachineId) -> MachineId:
    world.forge.queue(1)
    world.up()
    for _ in range(2):
        world.step(warm)
    assert world.forge.known[1].state is JobState.RUNNING
    return warm


def test_what_is_garms_is_left_to_garm(tmp_path: Path) -> None:
    world = World(tmp_path)
    machine = running(world)
    metadata = world.hypervisor.domains[machine]
    world.hypervisor.domains[machine] = replace(metadata, instance="garm-1")
    with pytest.raises(WrongCommand, match=r"is GARM's") as error:
        keep.destroy(world.manager, str(machine))
    assert error.value.hint == "There it is called garm-1."


def test_which_pools_catch_is_kept(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.manager.catching.put("p", 300.0)
    world.manager.catching.put("p", 60.0)
    world.restart()
    assert world.manager.catching.pools() == {"p": 60.0}
    assert json.loads((tmp_path / "catching.json").read_text()) == {"p": 60.0}
    (tmp_path / "catching.json").write_text("not json")
    assert world.manager.desired()[0].hold_failed == 0
