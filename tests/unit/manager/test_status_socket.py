"""The socket by which `serve` tells what it saw."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from pathlib import Path

import pytest

from tests.fakes import FakeLog
from vmrunner.manager import status_socket
from vmrunner.manager.status_socket import StatusSocket, ask


def test_who_asks_is_told_what_there_is_now(tmp_path: Path) -> None:
    place, words = tmp_path / "m.status", iter([b"", b"one", b"x" * 5_000_000])
    assert ask(place) == b"", "nobody is there"
    with StatusSocket(place, lambda: next(words), FakeLog()):
        assert [ask(place), ask(place), len(ask(place))] == [b"", b"one", 5_000_000]
    assert not place.exists()
    assert ask(place) == b""


@pytest.mark.parametrize("umask", [0o077, 0o022, 0])
def test_it_is_the_groups_and_no_others(tmp_path: Path, umask: int) -> None:
    """Whatever the umask, which is 077 under systemd."""
    before = os.umask(umask)
    try:
        with StatusSocket(tmp_path / "m.status", lambda: b"one", FakeLog()):
            assert stat.S_IMODE((tmp_path / "m.status").stat().st_mode) == 0o660
    finally:
        os.umask(before)


def test_what_a_killed_one_left_is_replaced(tmp_path: Path) -> None:
    place = tmp_path / "m.status"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(place))
    assert ask(place) == b"", "nobody listens there"
    with StatusSocket(place, lambda: b"new", FakeLog()):
        assert ask(place) == b"new"


def test_who_takes_nothing_keeps_nobody_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_socket, "_PATIENCE", 0.2)
    place, told = tmp_path / "m.status", threading.Event()

    def tell() -> bytes:
        told.set()
        return b"x" * 5_000_000

    with (
        StatusSocket(place, tell, FakeLog()),
        socket.socket(socket.AF_UNIX) as slow,
        socket.socket(socket.AF_UNIX) as gone,
    ):
        slow.connect(str(place))
        gone.connect(str(place))
        gone.close()
        assert told.wait(10)
        monkeypatch.setattr(status_socket, "_PATIENCE", 10)
        assert len(ask(place)) == 5_000_000


def test_a_place_that_cannot_be_is_said_and_stops_nothing(tmp_path: Path) -> None:
    for place in (tmp_path / "none" / "m.status", tmp_path / ("long" * 50) / "m.status"):
        log = FakeLog()
        with StatusSocket(place, lambda: b"one", log):
            assert ask(place) == b""
        assert [event for event, _ in log.lines] == ["status is not told"]


def test_it_ends_at_once_and_leaves_no_thread(tmp_path: Path) -> None:
    with StatusSocket(tmp_path / "m.status", lambda: b"one", FakeLog()):
        pass
    until = time.monotonic() + 10
    while any(each.name == "status" for each in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.01)
