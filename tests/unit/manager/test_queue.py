"""A queue that is longer than a page of the forge's list: what passes read of it, and that nothing
is lost by what they have not read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.world import POOL, World
from vmrunner.errors import ForgeDenied
from vmrunner.manager.actions import WaitKind
from vmrunner.model.job import Job, JobState
from vmrunner.model.machine import Ending


def crowded(folder: Path, jobs: int, **pool: object) -> World:
    world = World(folder, pools={"p": POOL | pool})
    world.whole, world.forge.page = False, 10
    for number in range(1, jobs + 1):
        world.forge.queue(number)
    return world


def denied(*_: object) -> Job | None:
    raise ForgeDenied("Not you.", "read:repository")


def made_for(world: World) -> set[int]:
    """The jobs that machines are made for."""
    keys = {metadata.job_key for metadata in world.hypervisor.domains.values()}
    return {int(key.partition(".")[0]) for key in keys}


def test_the_first_machines_start_without_the_whole_queue(tmp_path: Path) -> None:
    world = crowded(tmp_path, 1000, max=8)
    assert world.up()[0] == 8
    assert world.forge.pages_read == 2
    world.forge.pages_read = 0
    world.up()
    assert world.forge.pages_read == 2, "nor does a pass that has nothing to start"


def test_status_tells_of_every_job(tmp_path: Path) -> None:
    world = crowded(tmp_path, 500)
    world.up()
    reasons = world.reasons()
    assert set(reasons) == set(range(1, 501))
    assert reasons[250].kind is WaitKind.AT_MAX


def test_how_many_wait_is_known_without_reading_them(tmp_path: Path) -> None:
    world = crowded(tmp_path, 500)
    survey = world.manager.survey(whole=False)
    (queue,) = survey.observed.queues.values()
    assert len(queue.jobs) + queue.unread == 500
    assert queue.unread == 480


def test_every_job_runs_once(tmp_path: Path) -> None:
    world = crowded(tmp_path, 150, max=7)
    world.settle()
    assert set(world.starts.values()) == {1}
    assert {number: len(each) for number, each in world.forge.verdicts.items()} == dict.fromkeys(
        range(1, 151), 1
    )


def test_a_job_that_is_not_read_yet_is_not_missing(tmp_path: Path) -> None:
    world = crowded(tmp_path, 0, max=2)
    world.forge.queue(500)
    world.up()
    (machine,) = world.machines()
    for number in range(1, 1000):
        if number != 500:
            world.forge.queue(number)
    world.forge.known = dict(sorted(world.forge.known.items()))  # it is in the middle now
    world.restart()
    world.forge.queues.clear()
    world.pass_time(60, every=5)
    assert machine in world.machines()
    world.step(machine)
    world.forge.take(500, str(machine))
    world.pass_time(60, every=5)
    assert machine in world.machines()


@pytest.mark.parametrize("why", ["cancelled", "elsewhere", "deleted"])
def test_a_job_that_went_since_it_was_read_gets_no_machine(tmp_path: Path, why: str) -> None:
    world = crowded(tmp_path, 300, max=1)
    world.manager._drained.add(["p"], world.clock.now)
    for _ in range(40):
        world.up()  # all are known by now
    lost: dict[str, Callable[[int], object]] = {
        "cancelled": world.forge.cancel,
        "elsewhere": lambda number: world.forge.take(number, "somebody-else"),
        "deleted": world.forge.known.pop,
    }
    (queue,) = world.forge.queues.values()
    for number in range(1, 6):
        lost[why](number)
        assert number in {place.job for place, _ in queue.rows}
    world.manager.resume(["p"])
    queue._next = 20  # the first page's turn is far away
    for _ in range(3):
        world.up()
    assert made_for(world) == {6}


def test_without_the_right_to_ask_what_was_read_has_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = crowded(tmp_path, 100, max=1)
    world.manager._drained.add(["p"], world.clock.now)
    for _ in range(20):
        world.up()
    monkeypatch.setattr(world.forge, "job", denied)
    world.manager.resume(["p"])
    world.up()
    assert len(world.machines()) == 1


def test_a_forge_that_does_not_say_whether_a_job_still_waits_starts_nothing(tmp_path: Path) -> None:
    world = crowded(tmp_path, 100, max=1)
    world.manager._drained.add(["p"], world.clock.now)
    for _ in range(20):
        world.up()
    (queue,) = world.forge.queues.values()
    queue._next = 5
    world.manager.resume(["p"])
    really = world.forge.job
    world.forge.job = lambda *_: world.forge.step("gone") or None  # type: ignore[method-assign]
    world.forge.fail_at = "gone"
    outcome, _ = world.manager.reconcile(whole=False)
    assert outcome.failures
    world.forge.job = really  # type: ignore[method-assign]
    world.up()
    assert len(world.machines()) == 1


def test_whoever_comes_late_has_a_turn_before_a_long_queue_is_done(tmp_path: Path) -> None:
    world = crowded(tmp_path, 400, max=4)
    for _ in range(60):  # the whole queue is known
        world.up()
    for number in range(1001, 1004):
        world.forge.queue(number, repository="o/late")
    for _ in range(12):
        world.up()
        for machine in world.machines():
            if machine in world.hypervisor.domains:
                world.step(machine)
        world.clock.now += 5
    begun = [job.id for job in world.forge.known.values() if job.state is not JobState.WAITING]
    assert {1001, 1002, 1003} <= set(begun)
    assert len(begun) < 30


def test_a_pool_whose_jobs_are_deep_in_the_queue_gets_them(tmp_path: Path) -> None:
    pools = {"p": POOL, "big": POOL | {"labels": ["big"]}}
    world = World(tmp_path, pools=pools)
    world.whole, world.forge.page = False, 10
    for number in range(1, 1000):
        world.forge.queue(number, ["big"] if number == 700 else ["debian-12"])
    for _ in range(40):
        world.up()
    assert 700 in made_for(world)


@pytest.mark.parametrize("may_ask", [True, False])
def test_an_old_list_blames_no_pool(tmp_path: Path, may_ask: bool) -> None:
    """A machine whose job another runner took, as its own page says where it may be asked for; the
    list that was read before still has it as waiting.
    """
    world = crowded(tmp_path, 100, max=1)
    for _ in range(20):
        world.up()
    (machine,) = world.machines()
    world.boot(machine)
    (number,) = made_for(world)
    world.forge.take(number, "somebody-else")
    (queue,) = world.forge.queues.values()
    if not may_ask:
        world.forge.job = denied  # type: ignore[method-assign]
    # Nor does the list of those that run show it, which is another page's slip.
    world.forge.unlisted_jobs = set() if may_ask else {number}
    for _ in range(100):
        world.clock.now += 5
        queue._next = 5
        world.up()
    (line,) = [line for line in world.history.all() if line.machine == str(machine)]
    assert line.ending == Ending.UNNEEDED.value
