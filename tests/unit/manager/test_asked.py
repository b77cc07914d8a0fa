"""Nothing is destroyed on one look: what a list did not show is asked for by its id first. Lists
that change between their pages, that leave jobs out, and ends that are real.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.manager.test_plan import HOST, LIMITS, NOW, POOL, SCOPE, machine
from tests.world import POOL as SECTION
from tests.world import World
from vmrunner.errors import ForgeDenied, ForgeNotFound
from vmrunner.forge.gitea import Gitea
from vmrunner.forge.http import Http
from vmrunner.machine import ownership
from vmrunner.manager.actions import DeleteRunner, Finish, Note
from vmrunner.manager.observed import Ask, Drain, Observed, Queue, Told
from vmrunner.manager.plan import CANCEL_GRACE, NO_LIFE, plan
from vmrunner.model.job import RunnerRecord, Scope
from vmrunner.model.machine import EventKind, GuestEvent, Machine, MachineId
from vmrunner.model.secret import Secret


@pytest.fixture
def gitea(tmp_path: Path) -> World:
    return World(tmp_path)


def started(world: World, *, until: str = "") -> MachineId:
    """A machine for job 1, and its guest's steps up to this one."""
    world.forge.queue(1)
    world.up()
    (found,) = world.machines()
    while until and world.step(found) != until:
        pass
    return found


def endings(world: World) -> list[str]:
    return [row.ending for row in world.history.all() if row.ending]


# ---- a job that no list shows ----


def test_a_job_in_clean_up_goes_on_although_no_list_shows_it(gitea: World) -> None:
    """Gitea 1.27's list of running jobs has none that is being cancelled, and its runner works on:
    nobody had seen it run before.
    """
    found = started(gitea, until="took a job")
    gitea.forge.unlisted_jobs.add(1)
    gitea.pass_time(600, 5)
    assert gitea.machines() == [found]
    assert gitea.hypervisor.domains[found].running_at, "its own page shows it"
    gitea.forge.cancel(1)
    gitea.hypervisor.power_off(found)
    gitea.up()
    assert (endings(gitea), gitea.left()) == (["done"], [])


def test_a_job_that_was_seen_and_is_listed_no_more_goes_on(world: World) -> None:
    found = started(world, until="took a job")
    world.up()
    world.forge.unlisted_jobs.add(1)
    asked = world.forge.by_id
    world.pass_time(270, 5)
    assert world.machines() == [found]
    assert world.forge.by_id - asked < 50, "it is not asked for in each pass"
    world.forge.unlisted_jobs.clear()
    world.up()
    assert world.hypervisor.domains[found].over_at == 0.0
    world.settle()
    assert world.forge.verdicts == {1: ["success"]}


def test_another_job_than_it_was_made_for_in_clean_up(gitea: World) -> None:
    """Whose id nobody knows: its record is there, and tells of it."""
    found = started(gitea, until="booted")
    gitea.forge.finish(1, "cancelled")
    gitea.forge.queue(2)
    assert gitea.step(found) == "took a job"
    gitea.forge.unlisted_jobs.add(2)
    runner = gitea.forge.by_name(str(found))
    assert runner
    runner.record = replace(runner.record, busy=True)
    gitea.pass_time(600, 5)
    assert gitea.machines() == [found]


def test_a_job_that_is_over_while_its_record_stays_ends_its_machine(gitea: World) -> None:
    """As Gitea 28 marks a cancelled job over at once."""
    found = started(gitea, until="took a job")
    gitea.up()
    runner = gitea.forge.by_name(str(found))
    gitea.forge.cancel(1)
    assert runner
    gitea.forge.runners_[runner.record.id] = runner
    gitea.pass_time(30, 5)
    assert endings(gitea) == ["cancelled"]
    assert gitea.left() == []


def test_without_the_permission_to_ask_for_a_job_its_record_has_to_do(
    gitea: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object) -> None:
        raise ForgeDenied("The forge refuses reading a job.", "read:repository")

    monkeypatch.setattr(gitea.forge, "job", denied)
    found = started(gitea, until="took a job")
    gitea.up()
    gitea.forge.unlisted_jobs.add(1)
    gitea.pass_time(270, 5)
    assert gitea.machines() == [found]
    gitea.forge.finish(1)
    gitea.pass_time(30, 5)
    assert endings(gitea) == ["cancelled"]


def test_a_machine_that_makes_room_is_asked_for_its_job_too(gitea: World) -> None:
    """It seems to be idle, is drained, and its runner has a job that no list shows."""
    found = started(gitea, until="took a job")
    gitea.forge.unlisted_jobs.add(1)
    gitea.manager._drained.add(["p"], gitea.clock.now)
    gitea.up()
    gitea.up()
    assert gitea.machines() == [found]


@pytest.mark.parametrize("cause", ["no room", "down --now", "job_timeout"])
def test_an_end_that_waits_for_no_answer_ends_a_job_that_no_list_shows(
    gitea: World, cause: str
) -> None:
    """Neither the job nor the record was listed in the pass that ended the machine: the binding
    stays until the job is found.
    """
    found = started(gitea, until="took a job")
    gitea.up()
    gitea.forge.unlisted_jobs.add(1)
    gitea.forge.unlisted_runners.add(1)
    if cause == "no room":
        gitea.hypervisor.free_disk_mib = 1
    elif cause == "job_timeout":
        gitea.clock.now += 6 * 3600
    gitea.manager.reconcile({"p": Drain.ALL} if cause == "down --now" else None)
    assert found not in gitea.machines()
    gitea.forge.unlisted_jobs.clear()
    gitea.forge.unlisted_runners.clear()
    gitea.up()
    assert gitea.forge.verdicts == {1: ["failure"]}
    assert gitea.left() == []


@pytest.mark.parametrize("others", [0, 1])
def test_the_job_of_a_dead_idle_runner_is_failed_as_soon_as_a_list_shows_it(
    tmp_path: Path, others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forgejo does not tell which one it had, and a moment later not even that it had one. Another
    job that runs is not it.
    """
    section = SECTION | {"register_idle": 1, "max": 3}
    world = World(tmp_path, binds_jobs=True, pools={"p": section})
    world.up()
    (found,) = world.machines()
    world.step(found)
    world.forge.queue(1)
    assert world.step(found) == "took a job"
    for number in range(2, 2 + others):
        world.forge.queue(number)
        world.forge.create_runner(Scope.parse("instance"), f"other-{number}", ["debian-12"])
        world.forge.take(number, f"other-{number}")
    world.up()
    world.forge.unlisted_jobs.add(1)
    runner = world.forge.by_name(str(found))
    assert runner
    world.hypervisor.die(found)
    with monkeypatch.context() as patch:
        world.up()
        runner.record = replace(runner.record, busy=False)
        patch.setattr(world.forge, "runner", lambda *_: runner.record)
        world.pass_time(120, 30)
    assert world.forge.by_name(str(found)), "without its record nobody could end its job"
    world.forge.unlisted_jobs.clear()
    world.up()
    assert world.forge.verdicts == {1: ["failure"]}
    assert world.forge.by_name(str(found)) is None


# ---- a record that no list shows ----


def test_a_record_that_slipped_over_a_pages_end_is_not_missing(world: World) -> None:
    found = started(world)
    world.forge.unlisted_runners.add(1)
    world.up()
    assert world.machines() == [found], "it boots"
    world.step(found)
    world.up()
    world.forge.unlisted_runners.clear()
    world.up()
    assert world.hypervisor.domains[found].over_at == 0.0, "its grace begins anew"
    world.forge.unlisted_runners.add(1)
    world.pass_time(40, 5)
    assert found in world.machines()
    world.forge.unlisted_runners.clear()
    world.settle()
    assert world.forge.verdicts == {1: ["success"]}


def test_a_record_that_is_gone_is_gone(world: World) -> None:
    started(world)
    world.forge.runners_.clear()
    world.up()
    assert endings(world) == ["cancelled"]
    assert world.forge.by_id == 2, "the record, and the job"


@pytest.mark.parametrize("call", ["runner", "job"])
def test_without_an_answer_nothing_is_ended(world: World, call: str) -> None:
    found = started(world)
    world.forge.runners_.clear()
    world.forge.fail_at = call
    assert world.up() == (0, 0, 0, 1)
    assert world.machines() == [found]
    world.up()
    assert endings(world) == ["cancelled"]


def test_a_record_that_cannot_be_read_holds_up_no_other_one(world: World) -> None:
    world.forge.queue(1)
    world.forge.queue(2)
    world.up()
    assert len(world.machines()) == 2
    world.forge.runners_.clear()
    world.forge.fail_at = "runner"
    assert world.up()[-1] == 1, "the pass has failed"
    assert endings(world) == ["cancelled"] * 2, "the first one was asked for once more"


def test_a_machine_that_died_with_its_job_on_a_bad_page_has_it_failed(gitea: World) -> None:
    found = started(gitea, until="took a job")
    gitea.up()
    gitea.forge.unlisted_jobs.add(1)
    gitea.forge.unlisted_runners.add(1)
    gitea.hypervisor.die(found)
    gitea.up()
    assert endings(gitea) == ["died"]
    assert gitea.forge.verdicts == {1: ["failure"]}
    assert gitea.left() == []


def test_the_usual_end_of_a_job_costs_no_question(world: World) -> None:
    found = started(world, until="took a job")
    world.up()
    world.step(found)
    world.step(found)
    world.up()
    assert (endings(world), world.forge.by_id) == (["done"], 0)


def test_a_stray_that_is_at_work_stays(gitea: World) -> None:
    """Such as a host's whose disk this one's was copied from: its list said nothing of a job."""
    gitea.forge.queue(1)
    name = gitea.named("0123abcd")
    gitea.forge.create_runner(Scope.parse("instance"), name, ["debian-12"])
    gitea.forge.take(1, name)
    runner = gitea.forge.by_name(name)
    assert runner
    assert gitea.up()[2] == 0, "the list of jobs names it"
    gitea.forge.unlisted_jobs.add(1)
    idle, runner.record = runner.record, replace(runner.record, busy=True)
    assert gitea.up()[2] == 0, "it tells of a job"
    runner.record = idle
    listed = list(gitea.forge.runners(SCOPE))
    runner.record = replace(idle, busy=True)
    seen = replace(observed([], listed), host=gitea.manager.host)
    decided = plan("m", [POOL], LIMITS, seen, NOW)
    (ask,) = decided.asks
    asked = {ask: Told(gitea.forge.runner(ask.scope, ask.runner_id))}
    decided = plan("m", [POOL], LIMITS, replace(seen, asked=asked), NOW)
    assert decided.actions == (), "it began to, between the list and the look"


def test_a_record_of_a_process_beside_the_manager_stays_while_that_lives(gitea: World) -> None:
    """Such as the one of `doctor --isolation`, which tries what a runner's credentials are good
    for.
    """
    name = gitea.named("0123abcd")
    gitea.forge.create_runner(Scope.parse("instance"), name, ["isolation"])
    its = MachineId.of(gitea.manager.settings.manager, name)
    assert its
    with ownership.owning(gitea.manager.settings.runtime_dir, its):
        assert gitea.up()[2] == 0
    assert gitea.up()[2] == 1, "it was killed"


def observed(machines: list[Machine], records: list[RunnerRecord]) -> Observed:
    return Observed(
        tuple(machines), {SCOPE: Queue((), tuple(records))}, binds_jobs=False, capacity=HOST
    )


def test_a_job_that_only_its_own_page_shows_is_watched_for_silence() -> None:
    """A record that stays, and a job that nobody knows: not for ever."""
    mine = machine("a", age=900, running=400, over=CANCEL_GRACE + 1, events="up seed runner")
    silent = RunnerRecord(1, str(mine.id), online=True, is_silent=True)
    assert mine.metadata
    seen = observed([mine], [silent])
    (ask,) = plan("m", [POOL], LIMITS, seen, NOW).asks
    assert ask == Ask(SCOPE, 1, "", "seen")
    told = replace(seen, asked={ask: Told(silent)})
    (note,) = plan("m", [POOL], LIMITS, told, NOW).actions
    assert isinstance(note, Note)
    assert (note.metadata.over_at, note.metadata.silent_at) == (0.0, NOW)
    long = replace(mine, metadata=replace(mine.metadata, silent_at=NOW - NO_LIFE - 1))
    (finish,) = plan("m", [POOL], LIMITS, replace(told, machines=(long,)), NOW).actions
    assert isinstance(finish, Finish)
    assert finish.ending.value == "died"


# ---- pages that change while they are read ----


class Changing(Http):
    """Gitea's runners and jobs in memory, by pages; something changes after each page."""

    def __init__(self, records: dict[int, dict[str, Any]], jobs: dict[int, dict[str, Any]]) -> None:
        super().__init__("https://forge.example", Secret("t"))
        self.tables = {"runners": records, "jobs": jobs}
        self.order: dict[str, list[int]] = {name: list(of) for name, of in self.tables.items()}
        self.change: Any = lambda: None
        self.singles = 0

    def call(self, method: str, path: str, doing: str, **asked: Any) -> tuple[Any, httpx.Headers]:
        *_, name, last = path.split("/")
        if last == "version":
            return {"version": "1.27.3"}, httpx.Headers()
        if last.isdigit():
            self.singles += 1
            if int(last) not in self.tables[name]:
                raise ForgeNotFound("Gone.", "")
            return self.tables[name][int(last)], httpx.Headers()
        page, limit = asked["params"]["page"], asked["params"]["limit"]
        # The list's filter for running jobs leaves out one that is being cancelled.
        shown = [
            self.tables[last][number]
            for number in self.order[last]
            if not self.tables[last][number].get("cancelling")
        ]
        answer = {
            "total_count": len(shown),
            last: shown[(page - 1) * limit : page * limit],
        }
        self.change()
        return answer, httpx.Headers()


def runner_of(number: int, name: str, *, busy: bool = False) -> dict[str, Any]:
    return {"id": number, "name": name, "status": "online", "busy": busy, "ephemeral": True}


def job_of(number: int, runner: int, name: str) -> dict[str, Any]:
    return {
        "id": number,
        "url": f"https://forge.example/api/v1/repos/o/r/actions/jobs/{number}",
        "name": f"job {number}",
        "status": "in_progress",
        "run_attempt": 1,
        "runner_id": runner,
        "runner_name": name,
        "labels": ["debian-12"],
    }


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    ours=st.integers(1, 60),
    strangers=st.integers(0, 940),
    strays=st.integers(0, 3),
    start=st.integers(0, 1 << 32),
    changes=st.integers(0, 60),
)
def test_pages_that_change_lose_no_machine_and_no_record(
    ours: int, strangers: int, strays: int, start: int, changes: int
) -> None:
    seed = Random(start)  # noqa: S311 — hypothesis' own is too slow for so many draws
    records, jobs, machines = {}, {}, []
    for number in range(1, ours + 1):
        identity = MachineId("m", f"{number:08x}")
        how = seed.choice(["boots", "starts", "idle", "runs", "runs unseen", "cleans up"])
        has_job = how in {"runs", "runs unseen", "cleans up"}
        records[number] = runner_of(number, str(identity))
        jobs[number] = job_of(number, number, str(identity))
        jobs[number]["cancelling"] = how == "cleans up"
        if not has_job:
            waits = {"status": "queued", "run_attempt": 0, "runner_id": 0, "runner_name": ""}
            jobs[number] |= waits
        old = machine("a", age=seed.choice([5, 900]), running=500 if how == "runs" else 0)
        assert old.metadata
        events = () if how == "boots" else (EventKind.UP, EventKind.SEED, EventKind.RUNNER)
        metadata = replace(
            old.metadata,
            machine=identity,
            runner_id=number,
            # One that has no job yet is within its time.
            bound_at=NOW - (900 if has_job else 5),
            over_at=seed.choice([0.0, NOW - 20]),
            job_key=f"{number}.0",
            repository="o/r",
        )
        machines.append(
            Machine(identity, True, metadata, tuple(GuestEvent(kind, 1.0) for kind in events))
        )
    used = set(records)
    for number in range(1001, 1001 + strangers):
        records[number] = runner_of(number, f"builder-{number}", busy=seed.random() < 0.1)
        jobs[number] = job_of(number, number, f"builder-{number}")
    lost = {2001 + number for number in range(strays)}
    records |= {number: runner_of(number, f"vmr-m-{number:08x}") for number in lost}
    in_use = {3001, 3002}  # somebody's of the same name, with a job; it tells of it, or is listed
    records |= {number: runner_of(number, f"vmr-m-{number:08x}", busy=True) for number in in_use}
    http = Changing(records, jobs)

    fresh = count(10_000)

    def change() -> None:
        for _ in range(seed.randint(0, changes)):
            what = seed.choice(["insert", "remove", "order", "move"])
            for name, table in http.tables.items():
                order = http.order[name]
                if what == "insert":
                    number = next(fresh)
                    table[number] = (
                        runner_of(number, f"builder-{number}")
                        if name == "runners"
                        else job_of(number, number, f"builder-{number}")
                    )
                    order.insert(seed.randint(0, len(order)), number)
                elif what == "remove":
                    others = [number for number in order if number > 1000 and number not in in_use]
                    if others:
                        number = seed.choice(others)
                        order.remove(number)
                        del table[number]
                elif what == "order" and seed.random() < 0.1:
                    seed.shuffle(order)
                elif order:
                    order.insert(
                        seed.randint(0, len(order) - 1), order.pop(seed.randrange(len(order)))
                    )

    http.change = change
    forge = Gitea(http)
    for _ in range(3):
        runners = tuple(forge.runners(SCOPE))
        seen = Observed(
            tuple(machines),
            {SCOPE: Queue(tuple(forge.jobs(SCOPE)), runners)},
            binds_jobs=False,
            capacity=HOST,
        )
        pool = replace(POOL, max=len(machines))
        decided = plan("m", [pool], LIMITS, seen, NOW)
        before = http.singles
        told: dict[Ask, Told] = {}
        for _ in range(2):  # an answer may raise another question
            told |= {
                ask: Told(
                    forge.runner(ask.scope, ask.runner_id),
                    forge.job(ask.scope, ask.repository, ask.job_key) if ask.job_key else None,
                )
                for ask in decided.asks
            }
            decided = plan("m", [pool], LIMITS, replace(seen, asked=told), NOW)
        ended = [action for action in decided.actions if isinstance(action, Finish)]
        swept = {action.runner.id for action in decided.actions if isinstance(action, DeleteRunner)}
        assert ended == [], "a machine that is at work, or waits for its runner"
        assert swept.isdisjoint(used | in_use)
        assert swept <= lost, "a stranger's"
        assert not decided.asks
        assert http.singles - before <= 2 * ours + strays
        if not changes:
            assert swept == lost & set(http.tables["runners"])
    http.close()


def test_a_list_that_stands_still_costs_no_questions_but_for_strays(tmp_path: Path) -> None:
    world = World(tmp_path, pools={"p": SECTION | {"max": 20}})
    for number in range(1, 21):
        world.forge.queue(number)
    world.up()
    for each in world.machines():
        world.step(each)
        world.step(each)
    world.pass_time(60, 5)
    assert world.forge.by_id == 0
    world.forge.create_runner(SCOPE, world.named("0123abcd"), ["debian-12"])
    assert world.up()[2] == 1
    assert world.forge.by_id == 1
