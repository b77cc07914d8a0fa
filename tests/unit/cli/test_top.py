"""`vmrunner top`: what it draws, and what becomes of keys."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.fakes import FakeLog
from tests.screen import Screen, screen
from tests.unit.cli.test_cli import run
from tests.unit.test_hostile import NASTY
from tests.world import POOL, World
from vmrunner import config
from vmrunner.cli import shown, surveyed
from vmrunner.cli.shown import HeldShown, MachineShown, Queue, Status, Waiting
from vmrunner.cli.top_looks import Looks, done, of_day
from vmrunner.cli.top_picture import picture, whole
from vmrunner.cli.top_state import Log, Seen, State, Today, Wish, keys, rows, struck
from vmrunner.errors import WrongCommand
from vmrunner.manager.history import History
from vmrunner.manager.record import Record
from vmrunner.manager.status_socket import StatusSocket
from vmrunner.model.entry import Entry, Source
from vmrunner.model.pace import Pace
from vmrunner.model.used import Used

SIZES = [(200, 50), (80, 24), (40, 24), (40, 5), (20, 3), (1, 1)]
DAY = Today(4, 1, 10.0, 4.0)


def machine(number: int, phase: str = "running", job: str = "o/r: build") -> MachineShown:
    name = f"vmr-m-0a0b0c0d{number:08}"
    return MachineShown(name, phase, False, 75.0, "web/1", job, "", "", 0, None)


def seen(tmp_path: Path, *machines: MachineShown, waiting: tuple[str, ...] = ()) -> Seen:
    """One pool with these machines."""
    world = World(tmp_path, pools={"p": POOL})
    status = surveyed.status(world.manager, world.manager.survey(), 0.0)
    pool = replace(status.pools[0], machines=machines, running=len(machines))
    jobs = tuple(
        Waiting(name, 1, "o/r", (), "", "p", "at-max", "pool p is at its max of 2", 5.0)
        for name in waiting
    )
    return Seen(replace(status, pools=(pool,), waiting=jobs), today=DAY)


def text(lines: Iterable[object]) -> str:
    return "\n".join(str(line).rstrip() for line in lines)


def drawn(seen: Seen) -> str:
    return text(picture(seen, Log(), State(), 80, 24))


def test_all_of_it(tmp_path: Path) -> None:
    found = seen(tmp_path, machine(1), machine(2, "ready", ""), waiting=("lint",))
    name = machine(1).name
    used = {name: Used(2, 1024, 205, 30.0, 0.0, 75 << 20, 0, 0)}
    measured = replace(found, used=used, paces={name: Pace(1.43, 2 << 20, 0, 1 << 10)})
    lines = drawn(measured).splitlines()
    host = found.status.host
    assert lines == [
        f"manager {found.status.manager} on {host}",
        "today: 4 jobs, 1 failed, in the queue 2.5 s on average, 4.0 s at most",
        "p: 2 of 2 machines, 2 running, 0 warm, 1 waiting",
        "  machine  phase     age  cpu  memory  disk/s in/s   out/s job",
        "> 00000001 running 1m15s 143% 205 MiB 2.0 MiB    - 1.0 KiB o/r: build",
        "  00000002 ready   1m15s    -       -       -    -       -",
        "waiting job age why",
        "o/r: lint    5s pool p is at its max of 2",
        *[""] * 14,
        f"{name}: o/r: build",
        "j/k choose  l log  h hold  r release  d destroy  p pause  q quit",
    ]
    mean = drawn(replace(measured, paces={})).splitlines()[4]
    assert "~40%" in mean
    assert "~1.0 MiB" in mean, "on average, since it was made"


def test_a_pipe_gets_whole_lines(tmp_path: Path) -> None:
    job = "a job " * 30
    found = text(whole(seen(tmp_path, machine(1, job=job), waiting=("x" * 150,)), 0))
    assert machine(1).name in found
    assert job.strip() in found
    assert "x" * 150 in found
    assert "quit" not in found


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("log_of", ["", machine(3).name])
def test_it_fits_every_terminal(tmp_path: Path, width: int, height: int, log_of: str) -> None:
    machines = [machine(number, job="日本語 " * 40) for number in range(60)]
    found = seen(tmp_path, *machines, waiting=tuple(f"job {number}" for number in range(50)))
    log = Log(log_of, tuple(Entry(1.0, Source.CONSOLE, f"line {n}") for n in range(200)))
    for chosen in (machine(0), machine(37), machine(59)):
        state = State(chosen.name, log_of=log_of)
        for each in (state, replace(state, said="word " * 90), replace(state, asked_of="vmr-a")):
            lines = picture(found, log, each, width, height)
            assert len(lines) == height
            assert max(cell_len(str(line)) for line in lines) <= width
        if height >= 24:
            plain = text(picture(found, log, state, width, height))
            assert f"> {chosen.name[-8:]}" in plain or f"> {chosen.name}" in plain
            assert ("line 199" in plain) == bool(log_of)
            assert ("pool p is" in plain) != bool(log_of)
            assert "machine " in plain


@pytest.mark.parametrize("nasty", NASTY)
def test_others_words_are_words(tmp_path: Path, nasty: str) -> None:
    bad = replace(machine(1), job=nasty, held=HeldShown(nasty, 1.0, 60.0))
    found = seen(tmp_path, bad, replace(machine(2, job=nasty), trouble=nasty), waiting=(nasty,))
    status = replace(
        found.status,
        manager=nasty,
        forge=(Queue("instance", nasty, nasty, 0, 3),),
        waiting=(replace(found.status.waiting[0], reason=nasty, repository=nasty),),
    )
    hostile = replace(found, status=status, problem=nasty)
    state = State(said=nasty, log_of="x")
    log = Log("x", (Entry(1.0, Source.CONSOLE, nasty),), nasty)
    for lines in (whole(hostile, 0), picture(hostile, log, state, 80, 40)):
        assert all(str(line).isprintable() for line in lines)


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    found = seen(tmp_path, machine(1))
    forge = (Queue("instance", "The forge is away.", "", 0, 0),)
    away = replace(found, status=replace(found.status, forge=forge), problem="libvirt is gone.")
    assert "The forge is away." in drawn(away)
    assert "libvirt is gone." in drawn(away)
    assert "no machines" in drawn(seen(tmp_path))
    assert "the history can't be read" in drawn(replace(found, today=None))


def test_what_is_typed() -> None:
    assert keys(b"j\x1b[A\x1bOBq") == ["j", "k", "j", "q"]
    assert keys(b"\x1b") == ["\x1b"]
    assert keys(b"\x1b[15~d") == [""], "F5, whose end nobody knows"
    assert keys(b"\xff\x00") == ["\xff", "\x00"]


A, B, C = (machine(number).name for number in (1, 2, 3))


@pytest.mark.parametrize(
    ("typed", "wish", "machine", "state"),
    [
        (b"j", None, "", State(B)),
        (b"jj\x1b[Bj", None, "", State(C)),
        (b"jk\x1b[A", None, "", State(A)),
        (b"q", Wish.QUIT, "", State()),
        (b"h", Wish.HOLD, A, State(A, said=f"holding {A} …")),
        (b"jr", Wish.RELEASE, B, State(B, said=f"releasing {B} …")),
        (b"d", None, "", State(A, asked_of=A)),
        (b"dy", None, "", State(A, asked_of=A)),  # a paste is no answer
        (b"l", None, "", State(A, log_of=A)),
        (b"lj", None, "", State(B, log_of=B)),
        (b"ll", None, "", State(A)),
        (b"l\x1b", None, "", State(A)),
        (b"p", None, "", State(is_paused=True)),
        (b"pp", None, "", State()),
        (b"xyzDY\xff", None, "", State(A)),
    ],
)
def test_what_keys_do(typed: bytes, wish: Wish | None, machine: str, state: State) -> None:
    assert struck(State(), typed, [A, B, C]) == (state, wish, machine)


@pytest.mark.parametrize("typed", [b"n", b"q", b"\x1b", b"\x1b[A", b"Y", b"d"])
def test_anything_but_y_destroys_nothing(typed: bytes) -> None:
    state, wish, machine = struck(State(B, asked_of=B), typed, [A, B])
    assert (state.asked_of, wish, machine, state.said) == ("", None, "", "Nothing was done.")


def test_y_destroys_the_one_that_was_asked_about() -> None:
    """Also when another one has its line by then, or it is gone from the screen."""
    assert struck(State(B, asked_of=B), b"y", [A, C])[1:] == (Wish.DESTROY, B)


def test_without_machines_keys_do_nothing() -> None:
    for key in b"jkhrdl":
        assert struck(State(), bytes([key]), []) == (State(), None, "")


def test_the_day_is_what_is_over(tmp_path: Path) -> None:
    with closing(History(tmp_path / "h.sqlite", print)) as history:
        one = Record(A, "p", job="a", queued=100.0, job_started=103.0, created=1.0, ending="done")
        history._write(replace(one, destroyed=110.0, verdict="failure"))
        history._write(replace(one, machine=B, pool="q", destroyed=120.0, job_started=101.0))
        history._write(replace(one, machine=C, destroyed=90.0))
        assert of_day(history, 100.0) == Today(2, 1, 4.0, 3.0)
        assert of_day(history, 500.0) == Today(0, 0, 0.0, 0.0)


def test_wishes_do_as_the_commands(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.forge.queue(1, ["debian-12"])
    world.up()
    (found,) = world.machines()
    name = str(found)
    assert done(world.manager, Wish.HOLD, name) == f"{name} is held for 1h when its job is over"
    assert done(world.manager, Wish.RELEASE, name) == f"{name} goes with its job"
    assert done(world.manager, Wish.DESTROY, name) == f"{name} is destroyed"
    assert world.machines() == []
    with pytest.raises(WrongCommand):
        done(world.manager, Wish.HOLD, name)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [("--every 1", "a duration is written like"), ("--every 10ms", "10ms is too often")],
)
def test_what_can_not_be_meant_is_said(arguments: str, said: str) -> None:
    refused = run("top", *arguments.split())
    assert (refused.returncode, said.lower() in refused.stderr.lower()) == (2, True), refused


@dataclass
class Host:
    """Where a `serve` seems to run, which tells this."""

    folder: Path
    status: Status

    @property
    def config(self) -> str:
        return str(self.folder / "c.toml")

    def measure(self, seconds: float) -> None:
        with closing(History(self.folder / "state" / "history.sqlite", print)) as history:
            for number, each in enumerate(rows(self.status)):
                cpu = seconds * (number + 1)
                history._write(Record(each.name, "p", memory_peak_mib=200, cpu_seconds=cpu))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    folder = Path(tempfile.mkdtemp())  # a socket's path must be short
    for name in ("run", "state"):
        (folder / name).mkdir()
    (folder / "c.toml").write_text(
        f'manager = "m"\nstate_dir = "{folder}/state"\nruntime_dir = "{folder}/run"\n'
        f'[forge]\nkind = "gitea"\nurl = "http://192.0.2.7:9"\ntoken_file = "{folder}/none"\n'
        '[libvirt]\nuri = "test:///default"\n[pools.p]\nlabels = ["a"]\nimage = "web"\n'
    )
    found = seen(tmp_path, machine(1), machine(2, "ready", "\x1b[31mred"), waiting=("lint",))
    there = Host(folder, found.status)
    there.measure(1.0)

    def told() -> bytes:
        return json.dumps(shown.plain(there.status)).encode()

    with StatusSocket(folder / "run" / "m.status", told, FakeLog()):
        yield there
    shutil.rmtree(folder)


def test_in_a_pipe_it_is_one_picture(host: Host) -> None:
    for arguments in ((), ("--once",)):
        printed = run("top", *arguments, "-c", host.config)
        assert printed.returncode == 0, printed.stderr
        assert machine(1).name in printed.stdout
        assert "pool p is at its max" in printed.stdout
        assert "\x1b" not in printed.stdout


def top_on(host: Host, *arguments: str) -> AbstractContextManager[Screen]:
    return screen(sys.executable, "-m", "vmrunner.cli.main", "top", *arguments, "-c", host.config)


def test_a_person_at_a_terminal(host: Host) -> None:
    with top_on(host, "--every", "500ms") as top:
        at = top.until(b"q quit")
        assert b"\x1b[31mred" not in top.written
        top.type(b"j")
        at = top.until(b"> 00000002", at)
        top.resize(40, 12)
        at = top.until(b"j k  l log", at)
        top.type(b"l")
        at = top.until(b"log of 00000002 (l closes it)", at)
        top.type(b"\x1b")
        at = top.until(b"o/r: lint", at)
        top.type(b"d")
        at = top.until(b"Destroy 00000002? Its job fails. [y/n]", at)
        top.type(b"n")
        at = top.until(b"Nothing was done.", at)
        top.type(b"h")  # there is no token: a sentence, not the end
        at = top.until(b"none", at)
        top.type(b"p")
        at = top.until(b"paused at", at)
        top.type(b"q")
        assert top.ended() == 0


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (lambda top: top.type(b"\x03"), 130),
        (lambda top: top.process.send_signal(signal.SIGTERM), 143),
        (lambda top: top.process.send_signal(signal.SIGINT), 130),
    ],
)
def test_however_it_ends_the_terminal_is_as_it_was(
    host: Host, end: Callable[[Screen], None], code: int
) -> None:
    with top_on(host) as top:
        top.until(b"q quit")
        end(top)
        assert top.ended() == code


def test_a_bug_leaves_the_terminal_as_it_was(host: Host) -> None:
    with top_on(host, "--every", "500ms") as top:
        top.until(b"q quit")
        # What is no record of a machine is nothing that a history should have.
        with closing(History(host.folder / "state" / "history.sqlite", print)) as history:
            history._database.execute("UPDATE machines SET cpu_seconds = 'x'")
        top.until(b"Traceback")
        assert top.ended() == 1


def test_what_serve_measures_becomes_a_pace(host: Host) -> None:
    looks, over = Looks(config.load(Path(host.config))), threading.Event()
    assert looks.look().paces == {}
    thread = threading.Thread(target=looks.run, args=(0.5, over))
    thread.start()
    began = time.monotonic()
    try:
        while not (looks.seen and looks.seen.paces):
            assert time.monotonic() - began < 60
            assert looks.fault is None
            host.measure(time.monotonic() - began + 2.0)
            time.sleep(0.7)
    finally:
        over.set()
        thread.join()
    assert set(looks.seen.paces) == {machine(1).name, machine(2).name}
    assert looks.seen.paces[machine(2).name].cpu > looks.seen.paces[machine(1).name].cpu > 0


def test_without_serve_the_last_look_stays(host: Host) -> None:
    looks = Looks(config.load(Path(host.config)))
    looks.look()
    (host.folder / "run" / "m.status").unlink()
    looks.again()  # there is no token to look with
    assert looks.seen
    assert looks.seen.problem
    assert rows(looks.seen.status)


def test_a_bug_beside_the_screen_ends_it(host: Host) -> None:
    looks = Looks(config.load(Path(host.config)))
    looks.look()
    looks._view = None  # type: ignore[assignment]  # as no type allows: so it is a bug
    looks.run(0.0, threading.Event())
    assert isinstance(looks.fault, AttributeError)
