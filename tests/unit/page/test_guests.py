"""How the page asks what guests of living machines say: through a process that may hang or fail,
without waiting for it.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.fakes import FakeHypervisor
from tests.forge.gitea import until
from tests.world import World
from vmrunner.errors import HypervisorError
from vmrunner.hypervisor.seam import File
from vmrunner.machine.bindings import Bindings
from vmrunner.manager.logbook import understood
from vmrunner.model.binding import Binding
from vmrunner.model.job import Credentials, Scope
from vmrunner.model.machine import MachineId
from vmrunner.page import guests, teller
from vmrunner.page.guests import Guests
from vmrunner.page.teller import Teller

HEAD = "import json, sys, time, os; asked = open({marks!r}, 'a'); "
TELLS = (
    "[(asked.write('x'), asked.flush(), print(json.dumps([len(line), '']), flush=True), "
    "sys.stdout.buffer.write(line), sys.stdout.buffer.flush()) for line in sys.stdin.buffer]"
)
NAME = "vmr-m-0123456789abcdef"


class Asked:
    """A process that answers with its question, or does `instead`; and how often it was asked."""

    def __init__(self, folder: Path, instead: str = TELLS) -> None:
        self._marks = folder / "marks"
        self._marks.touch()
        self.command = [sys.executable, "-c", HEAD.format(marks=str(self._marks)) + instead]

    @property
    def times(self) -> int:
        return self._marks.stat().st_size


def test_an_answer_is_shared_while_it_is_fresh(tmp_path: Path) -> None:
    asked = Asked(tmp_path)
    asking = Guests(asked.command)
    answers = [asking.said(NAME, 5.0, 30.0) for _ in range(10)]
    assert answers[0]
    assert json.loads(answers[0].lines) == [NAME, 5.0]
    assert set(answers) == {answers[0]}
    assert asked.times == 1


def test_of_a_hundred_who_look_at_once_one_asks(tmp_path: Path) -> None:
    asked, found = Asked(tmp_path), list[object]()
    asking = Guests(asked.command)
    readers = [
        threading.Thread(target=lambda: found.append(asking.said(NAME, 5.0, 30.0)))
        for _ in range(100)
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(60)
    assert (len(found), None in found, asked.times) == (100, False, 1)


def test_each_machine_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "_KEPT", 3)
    asking = Guests(Asked(tmp_path).command)
    for number in range(6):
        answer = asking.said(f"m{number}", number, 30.0)
        assert answer
        assert json.loads(answer.lines) == [f"m{number}", number]
    assert list(asking._known) == ["m3", "m4", "m5"]


def test_who_is_in_a_hurry_gets_what_was_said_a_moment_ago(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    asking = Guests(Asked(tmp_path).command, clock=lambda: now)
    first = asking.said(NAME, 5.0, 30.0)
    monkeypatch.setattr(guests._Line, "ask", lambda *_: time.sleep(600))
    now = 30.0
    assert asking.said(NAME, 5.0, 0.01) == first
    now = 90.0
    assert asking.said(NAME, 5.0, 0.01) is None


@pytest.mark.parametrize(
    ("instead", "says"),
    [
        ("time.sleep(600)", "libvirt does not answer"),
        ("print('[5, \"\"]', flush=True); time.sleep(600)", "libvirt does not answer"),
        ("sys.exit(1)", "What asks libvirt has ended"),
        ("print('no'); sys.exit()", "What asks libvirt has ended"),
        ("print('[5]'); sys.exit()", "What asks libvirt has ended"),
        ("print('5'); sys.exit()", "What asks libvirt has ended"),
        ("print('[null, 1]'); sys.exit()", "What asks libvirt has ended"),
        ("print('{}'); sys.exit()", "What asks libvirt has ended"),
        ("print('[\"x\", 1]'); sys.exit()", "What asks libvirt has ended"),
        ("print('x' * 100000)", "What asks libvirt has ended"),
    ],
)
def test_a_process_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instead: str, says: str
) -> None:
    if "sleep" in instead:
        monkeypatch.setattr(guests, "_LATE", 0.2)
        monkeypatch.setattr(guests, "_START", 0.1)
    answer = Guests(Asked(tmp_path, instead).command).said(NAME, 5.0, 30.0)
    assert answer
    assert (answer.lines, says in answer.problem) == (b"", True)


def test_one_that_hangs_later_is_told_sooner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its start may take long, its answers not."""
    monkeypatch.setattr(guests, "_LATE", 0.05)
    first = "line = sys.stdin.readline(); print('[0, \"\"]', flush=True); time.sleep(600)"
    now = 0.0
    asking = Guests(Asked(tmp_path, first).command, clock=lambda: now)
    answers = [asking.said(NAME, 5.0, 60.0)]
    now = 5.0
    answers.append(asking.said(NAME, 5.0, 20.0))
    assert [each and each.problem for each in answers] == ["", "libvirt does not answer."]


def test_one_that_fails_is_started_again(tmp_path: Path) -> None:
    now, flag = 0.0, tmp_path / "flag"
    once = f"os.path.exists({str(flag)!r}) or (open({str(flag)!r}, 'w'), os._exit(1)); {TELLS}"
    asking = Guests(Asked(tmp_path, once).command, clock=lambda: now)
    first = asking.said(NAME, 5.0, 30.0)
    now = 5.0
    second = asking.said(NAME, 5.0, 30.0)
    assert first
    assert second
    assert (bool(first.problem), bool(second.problem)) == (True, False)


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    answer = Guests([str(tmp_path / "none")]).said(NAME, 5.0, 30.0)
    assert answer
    assert answer.problem


def test_it_goes_when_nobody_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "_IDLE", 0.05)
    now = 0.0
    asked = Asked(tmp_path)
    asking = Guests(asked.command, clock=lambda: now)
    assert asking.said(NAME, 5.0, 30.0)
    until(lambda: not asking._works, 30, "nobody asks", every=0.01)
    now = 10.0
    assert asking.said(NAME, 5.0, 30.0)
    assert asked.times == 2


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def machine(world: World) -> MachineId:
    """One whose guest speaks, with its runner's token."""
    found = MachineId.parse(NAME)
    assert found
    world.hypervisor.files[found, File.CONSOLE] = b"[    3.0] boots\nlogin: "
    world.hypervisor.files[found, File.RUNNER_LOG] = b"with the token hush\n"
    Bindings(world.settings.runtime_dir, "m").save(
        Binding(found, "p", Scope.parse("instance"), credentials=Credentials(1, "u", "hush"))
    )
    return found


def test_what_the_teller_says(world: World) -> None:
    name, out = str(machine(world)), io.BytesIO()
    own = Teller(world.settings, lambda: world.hypervisor)
    teller.answer(own, json.dumps([name, 1000.0]).encode() + b"\n", out)
    head, _, lines = out.getvalue().partition(b"\n")
    assert json.loads(head) == [len(lines), ""]
    said = {each.text for each in understood(lines)}
    assert said == {"[    3.0] boots", "with the token ***"}
    assert b"hush" not in out.getvalue()


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "m", "vmr-m-", "vmr-x\n-1"])
def test_names_that_are_none_are_not_asked_for(world: World, name: str) -> None:
    def connect() -> FakeHypervisor:
        raise AssertionError

    assert Teller(world.settings, connect).tell(name, 0.0) == (b"", "")


def test_a_libvirt_that_is_away_is_asked_anew(world: World) -> None:
    found, away = machine(world), True

    def connect() -> FakeHypervisor:
        if away:
            raise HypervisorError("libvirt does not run.")
        return world.hypervisor

    own = Teller(world.settings, connect)
    assert own.tell(str(found), 0.0) == (b"", "libvirt does not run.")
    away = False
    lines, problem = own.tell(str(found), 0.0)
    assert (problem, b"boots" in lines) == ("", True)


def test_the_teller_ends_with_who_asks_also_while_it_waits(tmp_path: Path) -> None:
    program = (
        "import time; from vmrunner.page import teller; questions = teller._questions(); "
        "print(next(questions), flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"[1, 2]\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"b'[1, 2]\\n'\n"
    process.stdin.close()
    assert process.wait(30) == 0
    process.stdout.close()
