"""What is kept of the lines about each machine."""

from __future__ import annotations

import gzip
import os
import stat
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes import FakeLog
from tests.world import POOL, World
from vmrunner.errors import HypervisorError
from vmrunner.hypervisor.seam import File
from vmrunner.manager.history import History
from vmrunner.manager.logbook import Logbook, Noting
from vmrunner.manager.stream import stream
from vmrunner.model.entry import Entry, Source
from vmrunner.model.machine import Ending, EventKind, GuestEvent, MachineId, Metadata

NAME = "vmr-m-0123456789abcdef"
SAID = [Entry(2.0, Source.CONSOLE, "boots"), Entry(4.0, Source.RUNNER, "runs")]


def mine(at: float, text: str) -> Entry:
    return Entry(at, Source.MANAGER, text)


@pytest.fixture
def book(tmp_path: Path) -> Logbook:
    def warn(sentence: str) -> None:
        raise AssertionError(sentence)

    return Logbook(tmp_path / "logs", warn)


def test_before_and_after_the_end_and_what_is_said_later(book: Logbook, tmp_path: Path) -> None:
    book.note(NAME, mine(1.0, "started"))
    book.note(NAME, mine(3.0, "running"))
    assert [entry.text for entry in book.entries(NAME)] == ["started", "running"]
    assert book.keep(NAME, SAID) == 4096
    book.note(NAME, mine(5.0, "job ended"))
    expected = ["started", "boots", "running", "runs", "job ended"]
    assert [entry.text for entry in book.entries(NAME)] == expected
    (path,) = (tmp_path / "logs").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_kill_anywhere_in_the_end_costs_no_line_and_doubles_none(
    book: Logbook, tmp_path: Path
) -> None:
    live = tmp_path / "logs" / f"{NAME}.jsonl"
    book.note(NAME, mine(1.0, "started"))
    before = live.read_bytes()
    book.keep(NAME, SAID)
    live.write_bytes(before)  # it was killed before it removed this
    expected = ["started", "boots", "runs"]
    assert [entry.text for entry in book.entries(NAME)] == expected
    book.keep(NAME, SAID)
    assert [entry.text for entry in book.entries(NAME)] == expected
    book.keep(NAME, [])  # it was killed after it had destroyed the machine
    assert [entry.text for entry in book.entries(NAME)] == expected


def test_the_end_alone_is_the_end_of_the_whole(book: Logbook) -> None:
    for number in range(50):
        book.note(NAME, mine(float(number), f"before {number}"))
    book.keep(NAME, [Entry(n / 10, Source.RUNNER, f"runs {n}") for n in range(500)])
    for number in range(50, 60):
        book.note(NAME, mine(float(number), f"after {number}"))
    whole = book.entries(NAME)
    for most in (1, 7, 60, 559, 560, 561, 10_000):
        assert book.entries(NAME, most)[-most:] == whole[-most:]
    assert len(book.entries(NAME, 7)) == 7


@pytest.mark.parametrize(
    "harm",
    [lambda raw: raw[:-9], lambda raw: raw + b"\x1f\x8bno", lambda raw: b"", lambda raw: b"{" * 99],
)
def test_a_file_that_is_broken_shows_what_is_whole(book: Logbook, tmp_path: Path, harm) -> None:
    book.keep(NAME, SAID)
    path = tmp_path / "logs" / f"{NAME}.jsonl.gz"
    path.write_bytes(harm(path.read_bytes()))
    assert set(book.entries(NAME)) <= set(SAID)
    with (tmp_path / "logs" / f"{NAME}.jsonl").open("wb") as live:
        live.write(b'[1.0, "manager", "whole"]\n[2.0, "nobody", "x"]\n[]\n[3.0, "mana')
    assert mine(1.0, "whole") in book.entries(NAME)


def test_a_bomb_is_not_unpacked(book: Logbook, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    line = b'[1.0, "manager", "%s"]\n' % (b"a" * 1000)
    (tmp_path / "logs" / f"{NAME}.jsonl.gz").write_bytes(gzip.compress(line * 50_000))
    assert len(book.entries(NAME)) == 1, "the same line once"


def test_no_machine_fills_the_disk_with_what_the_manager_says(
    book: Logbook, tmp_path: Path
) -> None:
    for number in range(200):
        book.note(NAME, mine(number, "x" * 1000))
    (live,) = (tmp_path / "logs").iterdir()
    assert live.stat().st_size < 70_000


def test_a_disk_that_is_full_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("not a folder")
    said: list[str] = []
    book = Logbook(tmp_path / "logs", said.append)
    book.note(NAME, mine(1.0, "started"))
    assert book.keep(NAME, SAID) == 0
    assert len(said) == 2


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / f"{NAME}.jsonl").symlink_to(tmp_path / "victim")
    Logbook(tmp_path / "logs", said.append).note(NAME, mine(1.0, "started"))
    assert not (tmp_path / "victim").exists()
    assert len(said) == 1


def test_what_no_history_knows_goes_after_a_while_once_a_day(book: Logbook, tmp_path: Path) -> None:
    book.keep(NAME, SAID)
    book.note("vmr-m-live", mine(1.0, "started"))
    for path in (tmp_path / "logs").iterdir():
        os.utime(path, (1000.0, 1000.0))
    (tmp_path / "logs" / "else").touch()
    book.sweep(1000.0 + 50, 100.0)
    assert len(list((tmp_path / "logs").iterdir())) == 4
    book.sweep(1000.0 + 200, 100.0)
    assert len(list((tmp_path / "logs").iterdir())) == 4, "once a day"
    book.sweep(1000.0 + 90_000, 100.0)
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {"else", "swept"}


def test_lines_about_a_machine_are_noted_others_are_not(book: Logbook) -> None:
    log = FakeLog()
    noting = Noting(log, book, lambda: 7.0)
    noting.info("machine started", machine=NAME, pool="p", job="o/r: a\nb", console="long")
    noting.warning("forge does not answer")
    noting.debug("planned", machine=NAME)
    assert book.entries(NAME) == [mine(7.0, 'machine started pool=p job="o/r: a\\nb"')]
    assert len(log.lines) == 2


def ran(world: World) -> MachineId:
    """A machine that had a job and is no more."""
    world.forge.queue(1)
    world.up()
    (machine,) = world.machines()
    for _ in range(4):
        world.step(machine)
        world.hypervisor.files[machine, File.CONSOLE] = b"[    1.0] boots\n"
        world.hypervisor.files[machine, File.RUNNER_LOG] = b"its token is token-1\n"
        world.up()
    return machine


def test_a_machines_stream_while_it_lives_and_after(world: World) -> None:
    book = Logbook(world.manager.settings.logs_dir)
    world.forge.queue(1)
    world.up()
    (machine,) = world.machines()
    world.hypervisor.files[machine, File.CONSOLE] = b"[    1.0] boots\n[    2.0] half a li"
    (living,) = world.history.living()
    machines = world.hypervisor.machines
    texts = [entry.text for entry in stream(living, book, machines, world.clock.now)]
    assert "[    1.0] boots" in texts
    assert not any("half" in text for text in texts)
    assert any(text.startswith("machine started pool=p") for text in texts)
    without = [entry.text for entry in stream(living, book, None, world.clock.now)]
    assert set(without) < set(texts), "libvirt does not answer"
    machine = ran(world)
    (row,) = world.history.all()
    found = stream(row, book, None, world.clock.now)
    assert [entry.at for entry in found] == sorted(entry.at for entry in found)
    texts = [entry.text for entry in found]
    assert "its token is ***" in texts
    assert "[    1.0] boots" in texts
    assert any(text.startswith("machine destroyed") for text in texts)
    assert any(text.startswith("destroyed: done") for text in texts)
    assert row.log_bytes == 4096
    assert {entry.source for entry in found} == set(Source)


def test_storage_that_can_not_be_read_keeps_no_machine(world: World) -> None:
    def refuse(*_: object, **__: object) -> bytes:
        raise HypervisorError("It does not answer.")

    world.hypervisor.machines.said = refuse  # type: ignore[method-assign]
    ran(world)
    assert world.left() == []
    assert world.history.all()[0].ending == "done"


def test_nothing_is_kept_where_nothing_shall_be(tmp_path: Path) -> None:
    world = World(tmp_path, pools={"p": POOL}, history={"keep_logs": "0MiB"})
    ran(world)
    assert not world.manager.settings.logs_dir.exists() or not list(
        world.manager.settings.logs_dir.glob("*.jsonl*")
    )


def test_logs_go_with_the_history_and_before_it_where_they_take_too_much(tmp_path: Path) -> None:
    with closing(History(tmp_path / "h.sqlite", print, keep_days=1)) as history:
        for number in range(4):
            machine = MachineId("m", f"{number:08x}")
            history.started(Metadata(machine, "p", "i/1", 1000.0 + number), 1001.0)
            history.ended(
                machine, None, Ending.DONE, "", 2000.0 + number, log_bytes=4096 * (number > 0)
            )
        assert history.drop_logs(3 * 4096) == []
        assert history.drop_logs(2 * 4096) == ["vmr-m-00000001"], "the oldest that has one"
        assert history.drop_logs(2 * 4096) == []
        assert history.drop_logs(0) == ["vmr-m-00000002", "vmr-m-00000003"]
        assert history.prune(1000.0 + 86400.0 + 1.5) == ["vmr-m-00000000", "vmr-m-00000001"]


def test_a_pass_forgets_logs(world: World) -> None:
    machine = ran(world)
    book = Logbook(world.manager.settings.logs_dir)
    assert book.entries(str(machine))
    world.clock.now += 91 * 86400.0
    world.up()
    assert book.entries(str(machine)) == []
    assert world.history.all() == []


def test_chores_bring_all_logs_to_their_bound(tmp_path: Path) -> None:
    world = World(tmp_path, pools={"p": POOL}, history={"keep_logs": "1MiB"})
    machine = ran(world)
    book = Logbook(world.manager.settings.logs_dir)
    world.manager.chores()
    assert book.entries(str(machine))
    (row,) = world.history.all()
    world.history._write(replace(row, log_bytes=(1 << 20) + 1))
    world.manager.chores()
    assert book.entries(str(machine)), "once a minute"
    world.clock.now += 61
    world.manager.chores()
    assert book.entries(str(machine)) == []
    assert world.history.all()[0].log_bytes == 0


def test_a_guests_clock_orders_what_it_says(world: World) -> None:
    """As the real reports have it."""
    world.forge.queue(1)
    world.up()
    (machine,) = world.machines()
    (row,) = world.history.living()
    world.hypervisor.events[machine] = (GuestEvent(EventKind.CLOCK, row.created + 5.0, "100.0"),)
    world.hypervisor.files[machine, File.CONSOLE] = b"[  103.0] three later\n"
    now = row.created + 60
    found = stream(row, Logbook(Path("/nowhere")), world.hypervisor.machines, now)
    assert next(e.at for e in found if e.source is Source.CONSOLE) == row.created + 8.0
