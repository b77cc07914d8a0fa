"""The forge's webhook: who is believed, what wakes `serve`, and what those get who are not the
forge.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import Clock, FakeLog
from tests.forge.gitea import until
from vmrunner.manager import webhook
from vmrunner.manager.webhook import Head, Listener, Verdict, judge, signature
from vmrunner.model.secret import Secret

SECRET = Secret("s3cret-of-the-webhook")
QUEUED = json.dumps(
    {"action": "queued", "workflow_job": {"id": 7, "labels": ["debian-12"]}}
).encode()
SIGNED = {"X-Gitea-Signature": signature(QUEUED, SECRET)}


class Ear:
    """A listener on a port of its own, and what came of it."""

    def __init__(self, folder: Path, listen: str = "127.0.0.1:0") -> None:
        self.wakes: list[float] = []
        self.log, self.clock, self.heard = FakeLog(), Clock(), folder / "m.webhook"
        self.listener = Listener(
            listen,
            SECRET,
            lambda: self.wakes.append(time.monotonic()),
            self.log,
            self.heard,
            self.clock,
        )

    @property
    def port(self) -> int:
        port: int = until(lambda: self.listener.port, 10, "it listens", every=0.01)
        return port

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def send(self, raw: bytes) -> int:
        """The status of the answer; 0 where there is none."""
        with self.connect() as connection:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            return status(connection)

    def post(
        self, body: bytes, fields: dict[str, str], method: str = "POST", path: str = "/webhook"
    ) -> int:
        return self.send(request(body, fields, method, path))

    def count(self, verdict: Verdict) -> int:
        samples = [
            sample
            for metric in self.listener.collect()
            for sample in metric.samples
            if sample.name.endswith("requests_total")
        ]
        return next(
            int(sample.value) for sample in samples if sample.labels["verdict"] == verdict.value
        )


def request(
    body: bytes, fields: dict[str, str], method: str = "POST", path: str = "/webhook"
) -> bytes:
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: runner.example",
        *(f"{name}: {value}" for name, value in fields.items()),
    ]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def status(connection: socket.socket) -> int:
    answer = b""
    try:
        while more := connection.recv(4096):
            answer += more
    except ConnectionResetError:
        pass
    return int(answer.split(b" ")[1]) if answer else 0


def signed(**said: Any) -> tuple[bytes, dict[str, str]]:
    body = json.dumps(said).encode()
    return body, {"X-Gitea-Signature": signature(body, SECRET)}


def queued(number: int) -> tuple[bytes, dict[str, str]]:
    return signed(action="queued", workflow_job={"id": number})


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[Ear]:
    ear = Ear(tmp_path)
    with ear.listener:
        yield ear


# ---- who is believed ----


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Gitea-Signature", signature(QUEUED, SECRET)),
        ("x-forgejo-signature", signature(QUEUED, SECRET)),
        ("X-Hub-Signature-256", "sha256=" + signature(QUEUED, SECRET)),
    ],
)
def test_a_job_that_waits_wakes_it(ear: Ear, name: str, value: str) -> None:
    assert ear.post(QUEUED, {name: value}) == 204
    until(lambda: ear.wakes, 10, "the wake", every=0.01)
    assert ear.count(Verdict.WOKE) == 1
    assert ear.heard.exists()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"X-Gitea-Signature": ""},
        {"X-Gitea-Signature": signature(QUEUED, Secret("another"))},
        {"X-Gitea-Signature": signature(b"another body", SECRET)},
        {"X-Gitea-Signature": signature(QUEUED, SECRET)[:-1]},
        {"X-Gitea-Signature": "sha256=" + signature(QUEUED, SECRET)},
        {"X-Hub-Signature-256": signature(QUEUED, SECRET)},
        {"X-Hub-Signature": "sha1=" + signature(QUEUED, SECRET)},
        {"X-Gitea-Signature": "é" * 64},
    ],
    ids=range(9),
)
def test_what_is_not_signed_does_nothing(ear: Ear, fields: dict[str, str]) -> None:
    assert ear.post(QUEUED, fields) == 401
    assert ear.count(Verdict.FORGED) == 1
    assert ear.post(*queued(1)) == 204, "and the next one is heard"
    until(lambda: ear.wakes, 10, "the wake", every=0.01)
    assert len(ear.wakes) == 1


@pytest.mark.parametrize(
    "said",
    [
        {"action": "waiting", "workflow_job": {"id": 7}},
        {"action": "in_progress", "workflow_job": {"id": 7}},
        {"action": "completed", "workflow_job": {"id": 7}},
        {"action": "queued", "workflow_run": {"id": 7}},
        {"action": ["queued"], "workflow_job": {}},
        {"ref": "refs/heads/main"},
    ],
    ids=range(6),
)
def test_what_the_forge_says_besides_wakes_nothing(ear: Ear, said: dict[str, Any]) -> None:
    assert ear.post(*signed(**said)) == 204
    assert (ear.count(Verdict.OTHER), ear.wakes, ear.heard.exists()) == (1, [], True), (
        "but it was heard"
    )


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b"\xff\xfe", b"null", b"[" * 100_000], ids=range(6)
)
def test_what_is_signed_and_can_not_be_read(body: bytes) -> None:
    head = Head(b"POST", b"/webhook", {b"x-gitea-signature": signature(body, SECRET).encode()})
    assert judge(head, body, SECRET) is Verdict.OTHER


def test_the_same_again_wakes_nothing(ear: Ear) -> None:
    assert [ear.post(QUEUED, SIGNED) for _ in range(20)] == [204] * 20
    until(lambda: ear.wakes, 10, "the wake", every=0.01)
    assert (ear.count(Verdict.WOKE), ear.count(Verdict.REPEATED)) == (1, 19)
    ear.heard.unlink()
    ear.post(QUEUED, SIGNED)
    assert not ear.heard.exists(), "whoever repeats it is not the forge, as far as one can know"


def test_a_burst_is_few_wakes(ear: Ear) -> None:
    began = time.monotonic()
    assert [ear.post(*queued(number)) for number in range(100)] == [204] * 100
    took = time.monotonic() - began
    assert ear.count(Verdict.WOKE) == 100
    until(
        lambda: ear.wakes and time.monotonic() - ear.wakes[-1] > 0.5,
        10,
        "the last wake",
        every=0.05,
    )
    assert 1 <= len(ear.wakes) <= took / webhook._REST + 2


# ---- who is not the forge ----


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        (request(QUEUED, SIGNED, path="/"), 404),
        (request(QUEUED, SIGNED, path="/webhook/"), 404),
        (request(QUEUED, SIGNED, path="/metrics"), 404),
        (request(b"", {}, "GET"), 405),
        (request(QUEUED, SIGNED, "PUT"), 405),
        (b"POST /webhook HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"POST /webhook HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 411),
        (b"POST /webhook HTTP/1.1\r\nContent-Length: 1048577\r\n\r\n", 413),
        (b"POST /webhook HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 413),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"hello\r\n\r\n", 400),
        (b"hello", 400),
        (b"POST /webhook HTTP/1.1\r\nContent-Length: 10\r\n\r\nfive.", 0),
        (b"", 0),
    ],
    ids=range(14),
)
def test_what_is_no_delivery(ear: Ear, raw: bytes, answer: int) -> None:
    assert ear.send(raw) == answer
    assert ear.post(QUEUED, SIGNED) == 204, "and it still listens"
    until(lambda: ear.wakes, 10, "the wake", every=0.01)
    assert len(ear.wakes) == 1


def test_a_head_without_an_end(ear: Ear) -> None:
    with ear.connect() as connection:
        connection.sendall(b"POST /webhook HTTP/1.1\r\nX: " + b"x" * 20_000)
        assert status(connection) in (0, 400)
    assert ear.count(Verdict.GARBAGE) == 1


def test_the_biggest_body(ear: Ear) -> None:
    body = b" " * (1024 * 1024 - len(QUEUED)) + QUEUED
    assert ear.post(body, {"X-Gitea-Signature": signature(body, SECRET)}) == 204
    assert ear.count(Verdict.WOKE) == 1


@given(
    st.binary(max_size=200),
    st.dictionaries(st.binary(max_size=20), st.binary(max_size=20), max_size=5),
)
def test_any_head_is_refused_or_has_a_length(first: bytes, fields: dict[bytes, bytes]) -> None:
    raw = b"\r\n".join([first, *(name + b":" + value for name, value in fields.items())])
    for each in (raw, b"POST /webhook HTTP/1.1\r\n" + raw):
        head = Head.parse(each)
        assert head is None or head.refusal() or 0 <= head.length <= 1024 * 1024


def test_one_who_sends_nothing_is_cut_off(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "_LONGEST", 0.2)
    with ear.connect() as silent, ear.connect() as slow:
        slow.sendall(b"POST /webhook HTTP/1.1\r\nContent-Le")
        assert (status(silent), status(slow)) == (0, 0)
    assert ear.count(Verdict.TOO_SLOW) == 2


def test_a_delivery_that_comes_byte_by_byte(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "_LONGEST", 60)
    with ear.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request(QUEUED, SIGNED):
            connection.sendall(bytes([byte]))
        assert status(connection) == 204


def test_a_thousand_connections_that_send_nothing(ear: Ear) -> None:
    made: list[socket.socket] = []
    heard = threading.Event()

    def flood() -> None:
        while len(made) < 1000 and not heard.is_set():
            made.append(ear.connect())

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        until(lambda: ear.count(Verdict.CROWDED_OUT) > 50, 60, "a crowd", every=0.01)
        assert ear.post(QUEUED, SIGNED) == 204, "the forge is heard in between"
        until(lambda: ear.wakes, 10, "the wake", every=0.01)
        assert len(ear.listener._open) <= webhook._CONNECTIONS + 1
    finally:
        heard.set()
        thread.join()
        for connection in made:
            connection.close()
    until(lambda: sum(map(ear.count, Verdict)) == len(made) + 1, 30, "each is counted")
    assert ear.listener._open == {}


def test_the_log_has_one_line_a_minute(ear: Ear) -> None:
    def complaints() -> list[dict[str, object]]:
        return [fields for line, fields in ear.log.lines if line == "not the forge's webhook"]

    for _ in range(5):
        ear.post(QUEUED, {})
    (first,) = complaints()
    assert (first["verdict"], first["peer"], first["requests"]) == ("forged", "127.0.0.1", 1)
    assert "secret" in str(first["hint"])
    assert SECRET.value not in repr(ear.log.lines)
    ear.clock.now += 61
    ear.post(QUEUED, SIGNED)
    assert len(complaints()) == 1
    ear.post(b"", {}, "GET")
    assert complaints()[1:] == [
        {
            "verdict": "wrong-method",
            "peer": "127.0.0.1",
            "requests": 5,
            "hint": "The webhook's method is POST.",
        }
    ]


# ---- where it listens ----


def test_an_address_that_is_taken_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "_BIND_AGAIN", 0.05)
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        ear = Ear(tmp_path, f"127.0.0.1:{other.getsockname()[1]}")
        with ear.listener:
            until(lambda: ear.log.lines, 10, "it says so", every=0.01)
            time.sleep(0.2)
            assert [line for line, _ in ear.log.lines] == [
                "can't listen for the forge's webhook; tried again"
            ]
            other.close()
            assert ear.post(QUEUED, SIGNED) == 204


def test_it_listens_with_ipv6(tmp_path: Path) -> None:
    ear = Ear(tmp_path, "[::1]:0")
    with ear.listener, socket.create_connection(("::1", ear.port), timeout=30) as connection:
        connection.sendall(request(QUEUED, SIGNED))
        assert status(connection) == 204


@pytest.mark.parametrize("busy", [False, True])
def test_it_ends_at_once(tmp_path: Path, busy: bool) -> None:
    ear = Ear(tmp_path)
    with ExitStack() as stack:
        with ear.listener:
            if busy:
                stack.enter_context(ear.connect()).sendall(b"POST")
                until(lambda: ear.listener._open, 10, "the connection", every=0.01)
        assert not ear.listener._thread.is_alive()


def test_heard_is_wherever_it_can_be_written(tmp_path: Path) -> None:
    ear = Ear(tmp_path)
    ear.listener._heard = tmp_path / "no" / "folder"
    with ear.listener:
        assert ear.post(QUEUED, SIGNED) == 204
