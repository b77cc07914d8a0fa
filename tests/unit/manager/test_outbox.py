"""Notices: a receiver that is slow, broken or gone, and passes that go on."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import FakeLog
from tests.world import POOL, World
from vmrunner.manager.outbox import MOST, Outbox, Sender, open_sender
from vmrunner.model.notice import Kind, Known, Notice
from vmrunner.waiting import Deadline

SECRET = "s3cret"
LOW = Notice(Kind.STORAGE_LOW, "storage", "low")


class Receiver:
    """A server that keeps what it got, and answers as it is told: a status, or not at all."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, Any], dict[str, str], bytes]] = []
        self.answers: list[int | None] = []  # the last one stays; None: none comes
        self.over = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((json.loads(body), dict(self.headers), body))
                more = len(receiver.answers) > 1
                status = receiver.answers.pop(0) if more else (receiver.answers or [204])[0]
                if status is None:
                    receiver.over.wait(60)
                    return
                self.send_response(status)
                self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"

    @property
    def ids(self) -> list[str]:
        return [body["id"] for body, _, _ in self.got]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    thread = threading.Thread(target=found.server.serve_forever, args=(0.01,))
    thread.start()
    yield found
    found.over.set()
    found.server.shutdown()
    thread.join()
    found.server.server_close()


@contextmanager
def told(folder: Path, url: str) -> Iterator[tuple[World, Outbox, Sender]]:
    (folder / "secret").write_text(SECRET)
    (folder / "secret").chmod(0o600)
    section = {"url": url, "secret_file": str(folder / "secret")}
    world = World(folder, notify=section)
    sender = open_sender(world.settings, world.log, world.log.warning)
    assert sender
    yield world, Outbox(world.settings.notices_dir, "m", world.log), sender


def test_who_is_told_gets_it_signed(tmp_path: Path, receiver: Receiver) -> None:
    with told(tmp_path, receiver.url) as (_, outbox, sender):
        outbox.put([LOW], Known(), 1_700_000_000.0)
        assert sender.send_all()
        ((body, headers, raw),) = receiver.got
        assert outbox.waiting() == []
    assert body == {
        "id": body["id"],
        "event": "storage-low",
        "at": "2023-11-14T22:13:20+00:00",
        "manager": "m",
        "subject": "storage",
        "text": "low",
    }
    mine = hmac.new(SECRET.encode(), raw, hashlib.sha256).hexdigest()
    assert headers["X-Vmrunner-Signature"] == f"sha256={mine}"
    assert (headers["X-Vmrunner-Event"], headers["X-Vmrunner-Delivery"]) == (
        "storage-low",
        body["id"],
    )


@pytest.mark.parametrize("status", [500, 503, 429, 404, 401, 302])
def test_what_does_not_arrive_is_sent_again_and_in_order(
    tmp_path: Path, receiver: Receiver, status: int
) -> None:
    with told(tmp_path, receiver.url) as (_, outbox, sender):
        now = time.time()
        outbox.put([LOW, LOW], Known(), now)
        receiver.answers = [status]
        assert not sender.send_all()
        assert len(receiver.got) == 1
        receiver.answers = [200]
        assert sender.send_all()
    first, again, second = receiver.ids
    assert first == again != second


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_the_receiver_will_never_want_is_in_nobodys_way(
    tmp_path: Path, receiver: Receiver, status: int
) -> None:
    with told(tmp_path, receiver.url) as (world, outbox, sender):
        outbox.put([LOW, LOW], Known(), time.time())
        receiver.answers = [status, 200]
        assert sender.send_all()
        assert (len(set(receiver.ids)), outbox.waiting()) == (2, [])
        assert "notice given up" in str(world.log.lines)


def test_what_is_a_day_old_is_tried_once_more_alone(tmp_path: Path, receiver: Receiver) -> None:
    with told(tmp_path, receiver.url) as (_, outbox, sender):
        receiver.answers = [500]
        outbox.put([LOW], Known(), time.time() - 90_000)
        assert sender.send_all()
        assert outbox.waiting() == []


def test_nobody_listens(tmp_path: Path) -> None:
    with told(tmp_path, "http://127.0.0.1:9/secret-path") as (world, outbox, sender):
        outbox.put([LOW], Known(), time.time())
        assert not sender.send_all()
        assert len(outbox.waiting()) == 1
        assert "secret-path" not in str(world.log.lines)


def test_of_too_many_the_oldest_go(tmp_path: Path) -> None:
    log = FakeLog()
    outbox = Outbox(tmp_path / "notices", "m", log)
    for at in range(MOST + 5):
        outbox.put([LOW], Known(), float(at))
    assert len(outbox.waiting()) == MOST
    assert outbox.waiting()[0].name.startswith("000000000006-")


def test_a_file_that_is_damaged_is_in_nobodys_way(tmp_path: Path, receiver: Receiver) -> None:
    with told(tmp_path, receiver.url) as (_, outbox, sender):
        outbox.put([LOW], Known(), time.time())
        for number, damage in enumerate([b"", b"[1]", b"\xff{", b'{"at": "x"}']):
            (tmp_path / "notices" / f"0-{number}.json").write_bytes(damage)
        (tmp_path / "notices" / "known").write_bytes(b"{]")
        assert sender.send_all()
        assert (len(receiver.got), outbox.waiting(), outbox.known()) == (1, [], None)


def test_a_folder_that_can_not_be_written_stops_no_pass(tmp_path: Path) -> None:
    with told(tmp_path, "http://127.0.0.1:9/") as (world, _, _):
        world.settings.notices_dir.write_text("a file")
        world.hypervisor.free_disk_mib = 1
        world.up()
        assert "notice not written" in str(world.log.lines)


def test_a_receiver_that_hangs_delays_no_pass_and_no_end(
    tmp_path: Path, receiver: Receiver
) -> None:
    with told(tmp_path, receiver.url) as (world, outbox, sender):
        receiver.answers = [None]
        outbox.put([LOW], Known(), time.time())
        with sender:
            deadline = Deadline(20)
            while not receiver.got and not deadline.is_over:
                deadline.pause(0.01)
            for number in range(1, 4):
                world.forge.queue(number)
                world.up()  # while it hangs
            assert len(world.machines()) == 2
        assert len(outbox.waiting()) == 1  # for the next process
        fresh = open_sender(world.settings, world.log, world.log.warning)
        assert fresh
        fresh.flush(0.05)  # the hanging one holds the lock: nothing is sent twice at once
        assert len(receiver.got) == 1
        receiver.over.set()


def test_serve_sends_what_a_pass_found(tmp_path: Path, receiver: Receiver) -> None:
    with told(tmp_path, receiver.url) as (world, outbox, sender):
        receiver.answers = [500, 204]
        world.clock.now = time.time()
        with sender:
            world.forge.down = True
            world.pass_time(150)
            world.forge.down = False
            world.up()
            deadline = Deadline(20)
            while outbox.waiting() and not deadline.is_over:
                deadline.pause(0.01)
        events = [body["event"] for body, _, _ in receiver.got]
    assert events == ["forge-away", "forge-away", "forge-back"]


def test_only_what_is_wanted_and_once_over_processes(tmp_path: Path) -> None:
    with told(tmp_path, "http://127.0.0.1:9/") as (world, outbox, _):
        world.forge.queue(1)
        world.hypervisor.fail_at = "start"
        for _ in range(5):
            world.hypervisor.fail_at = "start"
            world.pass_time(1000, every=500)
            world.restart()
        (path,) = outbox.waiting()
        assert json.loads(path.read_text())["event"] == "pool-backed-off"
        path.unlink()
        section = {**world.settings.notify.model_dump(mode="json"), "events": ["storage-low"]}
        world.configure({"p": POOL}, notify=section)
        world.hypervisor.fail_at = ""
        world.pass_time(2000)
        world.settle()
        world.up()
        assert outbox.waiting() == []
        assert outbox.known() == Known()
