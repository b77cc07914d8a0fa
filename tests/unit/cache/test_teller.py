"""What the cache is told of a pass, and how often the forge is asked for it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import Clock, FakeLog
from vmrunner.cache import who
from vmrunner.cache.teller import Running, Teller, running
from vmrunner.errors import ForgeDenied
from vmrunner.manager.actions import Finish, Hold, Note, Plan
from vmrunner.manager.manager import Survey
from vmrunner.manager.observed import Observed
from vmrunner.model.job import JobFacts, Scope
from vmrunner.model.machine import (
    UNBOUNDED,
    Capacity,
    Ending,
    EventKind,
    GuestEvent,
    Machine,
    MachineId,
    Metadata,
)

ONE, TWO = (MachineId("m", serial) for serial in ("00000001", "00000002"))
FACTS = JobFacts("o/r", "refs/heads/main", "push", None, "main", from_fork=False)
INSTANCE = Scope.parse("instance")


def job(machine: MachineId, key: str = "7.1", runner: int = 3) -> Running:
    return Running(str(machine), INSTANCE, "o/r", key, runner)


@dataclass
class Answers:
    """A forge that says this of jobs, by their keys, and counts how often it is asked."""

    says: dict[str, JobFacts | Exception | None] = field(default_factory=dict)
    asked: list[tuple[str, int]] = field(default_factory=list)

    def facts(self, scope: Scope, repository: str, key: str, runner_id: int) -> JobFacts | None:
        assert (scope, repository) == (INSTANCE, "o/r")
        self.asked.append((key, runner_id))
        answer = self.says.get(key)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def forge() -> Any:
    return Answers({"7.1": FACTS})


@pytest.fixture
def teller(tmp_path: Path, clock: Clock) -> Teller:
    return Teller(tmp_path / "jobs.json", FakeLog(), clock)


def told(folder: Path) -> who.Told:
    return who.reader(folder / "jobs.json").now()


def test_a_job_is_asked_for_once(tmp_path: Path, teller: Teller, forge: Any) -> None:
    for _ in range(3):
        teller.saw(forge, [job(ONE)])
        teller.tell()
    assert told(tmp_path) == {str(ONE): FACTS}
    assert forge.asked == [("7.1", 3)]
    teller.saw(forge, [])
    teller.tell()
    assert told(tmp_path) == {}


def test_a_new_serve_knows_what_the_old_one_told(
    tmp_path: Path, teller: Teller, forge: Any, clock: Clock
) -> None:
    forge.says["8.1"] = ForgeDenied("No.", "")
    teller.saw(forge, [job(ONE), job(TWO, "8.1")])
    teller.tell()
    assert told(tmp_path) == {str(ONE): FACTS, str(TWO): None}
    again = Teller(tmp_path / "jobs.json", FakeLog(), clock)
    assert told(tmp_path) == {str(ONE): FACTS, str(TWO): None}, "until it has looked"
    forge.asked.clear()
    again.saw(forge, [job(ONE), job(TWO, "8.1")])
    again.tell()
    assert told(tmp_path) == {str(ONE): FACTS, str(TWO): None}
    assert forge.asked == [("8.1", 3)]


def test_a_job_that_the_forge_does_not_tell_yet_is_asked_for_again(
    tmp_path: Path, teller: Teller, forge: Any, clock: Clock
) -> None:
    forge.says["7.1"] = None
    teller.saw(forge, [job(ONE)])
    assert teller.tell() == pytest.approx(0.5)
    assert told(tmp_path) == {}, "who asks waits for it"
    assert teller.tell() == pytest.approx(0.5)
    assert len(forge.asked) == 1
    clock.now += 0.5
    forge.says["7.1"] = FACTS
    teller.tell()
    assert told(tmp_path) == {str(ONE): FACTS}


def test_a_forge_that_refuses_is_said_once_and_nobody_waits(
    tmp_path: Path, clock: Clock, forge: Any
) -> None:
    log = FakeLog()
    teller = Teller(tmp_path / "jobs.json", log, clock)
    forge.says = dict.fromkeys(("7.1", "8.1"), ForgeDenied("It refuses that.", "read:repository"))
    teller.saw(forge, [job(ONE), job(TWO, "8.1")])
    for _ in range(5):
        teller.tell()
        clock.now += 100
    assert told(tmp_path) == {str(ONE): None, str(TWO): None}
    assert [fields["reason"] for _, fields in log.lines] == ["It refuses that."]
    forge.says["7.1"] = FACTS
    teller.tell()
    assert told(tmp_path) == {str(ONE): FACTS, str(TWO): None}


def test_a_disk_that_is_full_stops_nothing(tmp_path: Path, clock: Clock, forge: Any) -> None:
    log = FakeLog()
    teller = Teller(tmp_path / "none" / "jobs.json", log, clock)
    for _ in range(3):
        teller.saw(forge, [job(ONE)])
        teller.tell()
    assert [event for event, _ in log.lines] == ["jobs go on without the cache"]
    (tmp_path / "none").mkdir()
    teller.tell()
    assert told(tmp_path / "none") == {str(ONE): FACTS}
    assert len(forge.asked) == 1


def test_it_tells_in_a_thread_of_its_own(tmp_path: Path, teller: Teller, forge: Any) -> None:
    from tests.forge.gitea import until

    with teller:
        teller.saw(forge, [job(ONE)])
        until(lambda: told(tmp_path), 20, "it is told", every=0.01)


AT_WORK = Metadata(
    ONE,
    "p",
    "i/1",
    1.0,
    running_at=2.0,
    runner_id=3,
    scope="instance",
    seen_key="7.1",
    repository="o/r",
)
EXIT = (GuestEvent(EventKind.EXIT, 3.0, "0"),)


def survey(machine: Machine, *actions: Any) -> Survey:
    capacity = Capacity(1 << 20, 4, 0, 0, UNBOUNDED)
    observed = Observed((machine,), {}, False, capacity)
    return Survey((), observed, Plan(tuple(actions), ()))


@pytest.mark.parametrize(
    ("machine", "is_running"),
    [
        (Machine(ONE, True, AT_WORK), True),
        (Machine(ONE, False, AT_WORK), False),
        (Machine(ONE, True), False),
        (Machine(ONE, True, replace(AT_WORK, seen_key="")), False),
        (Machine(ONE, True, replace(AT_WORK, held_at=3.0)), False),
        (Machine(ONE, True, replace(AT_WORK, over_at=3.0)), False),
        (Machine(ONE, True, AT_WORK, EXIT), False),
    ],
)
def test_which_jobs_run(machine: Machine, is_running: bool) -> None:
    assert list(running(survey(machine))) == ([job(ONE)] if is_running else [])


def test_what_a_pass_does_counts() -> None:
    fresh = Machine(ONE, True, replace(AT_WORK, seen_key="", running_at=0.0, repository="o/x"))
    assert list(running(survey(fresh, Note(fresh, AT_WORK)))) == [job(ONE)]
    at_work = Machine(ONE, True, AT_WORK)
    goes = Finish(ONE, Ending.DONE, "over")
    assert list(running(survey(at_work, goes))) == []
    assert list(running(survey(at_work, Hold(at_work, AT_WORK, goes)))) == []


def test_what_ends_while_the_forge_takes_long_is_not_told_any_more(
    tmp_path: Path, teller: Teller, forge: Any
) -> None:
    three = MachineId("m", "00000003")
    forge.says |= {"8.1": FACTS, "9.1": FACTS}
    teller.saw(forge, [job(ONE)])
    teller.tell()
    answer = forge.facts

    def slow(*asked: Any) -> Any:
        teller.saw(forge, [job(TWO, "8.1"), job(three, "9.1")])  # the first one has ended
        return answer(*asked)

    forge.facts = slow
    teller.saw(forge, [job(ONE), job(TWO, "8.1"), job(three, "9.1")])
    assert teller.tell() == 0
    forge.facts = answer
    teller.tell()
    assert forge.asked == [("7.1", 3), ("8.1", 3), ("9.1", 3)], "each of them once"
    assert told(tmp_path) == {str(TWO): FACTS, str(three): FACTS}
