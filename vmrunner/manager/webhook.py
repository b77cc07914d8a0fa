"""The forge's webhook. It says that a job waits, and nothing in it is believed: it only wakes the
pass, which asks the forge itself.

One thread, with bounds on all that whoever reaches its port may want of it: connections, seconds,
bytes, and how often it reads at all. `serve` shares a processor with it, and does without it
whenever it hears nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path
from typing import Self

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vmrunner.log import Log
from vmrunner.manager.figures import Described
from vmrunner.model.secret import Secret

PATH = "/webhook"
"""Where it is at our address."""

_MOST_HEAD = 16 * 1024
_MOST_BODY = 1024 * 1024  # a forge's own are of a few KiB
_LONGEST = 5.0  # seconds that a connection may take; Gitea gives up after as many, too
_CONNECTIONS = 16  # at the same time
_BETWEEN = 0.01  # seconds between two connections; what comes meanwhile waits in the kernel
_AT_ONCE = 4  # times that a connection is read without a pause: enough for what a forge sends
# Seconds between two reads after that, or one who sends byte by byte would keep us busy.
_PAUSE = 0.02
_REST = 0.2  # seconds between two wakes
_REMEMBERED = 1024  # deliveries
_BIND_AGAIN = 10.0  # seconds
_COMPLAIN_AGAIN = 60.0  # seconds
_SIGNATURES = (
    (b"x-gitea-signature", b""),
    (b"x-forgejo-signature", b""),
    (b"x-hub-signature-256", b"sha256="),
)


class Verdict(StrEnum):
    """What became of a request; also the figure's label."""

    WOKE = "woke"  # the forge says that a job waits
    OTHER = "other"  # the forge says something else
    REPEATED = "repeated"  # what it has said before, word by word: perhaps not by the forge
    FORGED = "forged"
    GARBAGE = "garbage"
    WRONG_PATH = "wrong-path"
    WRONG_METHOD = "wrong-method"
    NO_LENGTH = "no-length"
    TOO_BIG = "too-big"
    TOO_SLOW = "too-slow"
    CROWDED_OUT = "crowded-out"  # by newer connections
    GONE = "gone"  # before it was answered

    @property
    def is_signed(self) -> bool:
        """Whether somebody sent it who knows the secret, now or once."""
        return self in {Verdict.WOKE, Verdict.OTHER, Verdict.REPEATED}

    @property
    def status(self) -> HTTPStatus | None:
        """How it is answered; None: not at all."""
        return HTTPStatus.NO_CONTENT if self.is_signed else _STATUS.get(self)


_REQUESTS = Described(
    "vmrunner_webhook_requests_total",
    "counter",
    ("verdict",),
    "Requests where the forge's webhook is heard",
)
_HEARD = Described(
    "vmrunner_webhook_last_heard_timestamp_seconds",
    "gauge",
    (),
    "When the forge's webhook was heard last",
)
FIGURES = (_REQUESTS, _HEARD)


_STATUS = {
    Verdict.FORGED: HTTPStatus.UNAUTHORIZED,
    Verdict.GARBAGE: HTTPStatus.BAD_REQUEST,
    Verdict.WRONG_PATH: HTTPStatus.NOT_FOUND,
    Verdict.WRONG_METHOD: HTTPStatus.METHOD_NOT_ALLOWED,
    Verdict.NO_LENGTH: HTTPStatus.LENGTH_REQUIRED,
    Verdict.TOO_BIG: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
}
_HINTS = {
    Verdict.FORGED: "Are the webhook's secret and serve.webhook.secret_file the same, and is its "
    "content type application/json?",
    Verdict.WRONG_PATH: f"The webhook's path is {PATH}.",
    Verdict.WRONG_METHOD: "The webhook's method is POST.",
}


@dataclass(frozen=True)
class Head:
    """What comes before a request's body. Names of fields are in small letters."""

    method: bytes
    path: bytes
    fields: dict[bytes, bytes]

    @classmethod
    def parse(cls, raw: bytes) -> Head | None:
        """None where it is not HTTP."""
        first, *lines = raw.split(b"\r\n")
        words = first.split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return None
        pairs = (line.partition(b":") for line in lines)
        return cls(
            words[0], words[1], {name.strip().lower(): value.strip() for name, _, value in pairs}
        )

    @property
    def length(self) -> int:
        """The body's; only for one that is not refused."""
        return int(self.fields[b"content-length"])

    def refusal(self) -> Verdict | None:
        """Why no body is wanted; None: it is."""
        length = self.fields.get(b"content-length", b"")
        if self.path != PATH.encode():
            return Verdict.WRONG_PATH
        if self.method != b"POST":
            return Verdict.WRONG_METHOD
        if not length.isdigit():
            return Verdict.NO_LENGTH
        return Verdict.TOO_BIG if len(length) > 10 or int(length) > _MOST_BODY else None


def judge(head: Head, body: bytes, secret: Secret) -> Verdict:
    """What a whole request says.

    Only its body is signed, so only that is read, and only after that.
    """
    wanted = signature(body, secret).encode()
    given = [(head.fields.get(name, b""), prefix) for name, prefix in _SIGNATURES]
    if not any(hmac.compare_digest(value, prefix + wanted) for value, prefix in given):
        return Verdict.FORGED
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return Verdict.OTHER
    is_waiting = (
        isinstance(said, dict) and "workflow_job" in said and said.get("action") == "queued"
    )
    return Verdict.WOKE if is_waiting else Verdict.OTHER


def signature(body: bytes, secret: Secret) -> str:
    """Both forges' of a body."""
    return hmac.new(secret.value.encode(), body, hashlib.sha256).hexdigest()


class _Reading:
    """What has been read of a connection."""

    def __init__(self, loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
        self._loop, self._connection, self._times = loop, connection, 0
        self.raw = bytearray()

    async def until(self, enough: Callable[[], bool], most: int) -> bool:
        """Read on until it is enough; False where it has ended before that, or is as long as
        `most`.
        """
        while not enough():
            if self._times >= _AT_ONCE:
                await asyncio.sleep(_PAUSE)
            more = await self._loop.sock_recv(self._connection, 65536)
            self._times += 1
            self.raw += more
            if not more or (len(self.raw) >= most and not enough()):
                return False
        return True


class Listener(Collector):
    """Hears the webhook while it is entered, and calls `wake`, in its own thread, when a job waits.

    At most five times a second: the first time at once, and what comes soon after that together. It
    also tells Prometheus what it heard.
    """

    def __init__(
        self,
        listen: str,
        secret: Secret,
        wake: Callable[[], object],
        log: Log,
        heard: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address, self._secret, self._wake, self._log, self._heard, self._clock = (
            listen,
            secret,
            wake,
            log,
            heard,
            clock,
        )
        self._verdicts: Counter[Verdict] = Counter()
        self._last_heard = 0.0
        self._seen: deque[str] = deque(maxlen=_REMEMBERED)
        self._open: dict[asyncio.Task[None], socket.socket] = {}  # oldest first
        self._waking: asyncio.TimerHandle | None = None
        self._rested_at = 0.0
        self._refused = 0  # since the last complaint
        self._complained_at: float | None = None
        self.port: int | None = None  # where it listens, once it does

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(self._listen())
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        requests = CounterMetricFamily(
            _REQUESTS.name, _REQUESTS.text, labels=list(_REQUESTS.labels)
        )
        for verdict in Verdict:
            requests.add_metric([verdict.value], self._verdicts[verdict])
        yield requests
        yield GaugeMetricFamily(_HEARD.name, _HEARD.text, value=self._last_heard)

    def _run(self) -> None:
        try:
            with suppress(asyncio.CancelledError):
                self._loop.run_until_complete(self._task)
        finally:
            self._loop.close()

    async def _listen(self) -> None:
        async with asyncio.TaskGroup() as group:
            with await self._bound() as listening:
                self.port = listening.getsockname()[1]
                self._log.info("hears the forge's webhook", listen=self._address, path=PATH)
                while True:
                    try:
                        connection, peer = await self._accept(listening)
                    except OSError:  # no file descriptor is left, or it has gone already
                        await asyncio.sleep(_PAUSE)
                        continue
                    if len(self._open) >= _CONNECTIONS:
                        # A forge's takes milliseconds: the oldest is none.
                        next(iter(self._open)).cancel()
                    task = group.create_task(self._attend(connection, peer[0]))
                    self._open[task] = connection
                    task.add_done_callback(self._close)
                    await asyncio.sleep(_BETWEEN)

    async def _bound(self) -> socket.socket:
        """The socket.

        An address that this host has not yet, or that is taken, is tried again: there is the poll
        meanwhile.
        """
        host, _, port = self._address.rpartition(":")
        host, told = host.strip("[]"), False
        while True:
            try:
                listening = socket.create_server(
                    (host, int(port)),
                    family=socket.AF_INET6 if ":" in host else socket.AF_INET,
                    backlog=64,
                )
            except OSError as error:
                if not told:
                    self._log.warning(
                        "can't listen for the forge's webhook; tried again",
                        listen=self._address,
                        reason=str(error),
                    )
                told = True
                await asyncio.sleep(_BIND_AGAIN)
            else:
                listening.setblocking(False)
                return listening

    async def _accept(self, listening: socket.socket) -> tuple[socket.socket, tuple[str, int]]:
        # Not the loop's own sock_accept: when that is cancelled, it may lose a connection that it
        # has accepted already.
        ready = asyncio.Event()
        self._loop.add_reader(listening, ready.set)
        try:
            await ready.wait()
        finally:
            self._loop.remove_reader(listening)
        connection, peer = listening.accept()
        connection.setblocking(False)
        return connection, peer

    async def _attend(self, connection: socket.socket, peer: str) -> None:
        """One connection, and one request in it."""
        verdict = Verdict.GONE
        try:
            async with asyncio.timeout(_LONGEST):
                verdict = await self._request(connection)
                if status := verdict.status:
                    answer = (
                        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Length: "
                        "0\r\nConnection: close\r\n\r\n"
                    )
                    await self._loop.sock_sendall(connection, answer.encode())
        except TimeoutError:
            verdict = verdict if verdict.is_signed else Verdict.TOO_SLOW
        except OSError:
            pass  # it went away
        except asyncio.CancelledError:
            verdict = verdict if verdict.is_signed else Verdict.CROWDED_OUT
            raise
        finally:
            self._count(verdict, peer)

    def _close(self, task: asyncio.Task[None]) -> None:
        # Not in the task: one that is cancelled before its first step has none.
        self._open.pop(task).close()

    async def _request(self, connection: socket.socket) -> Verdict:
        """Read it, and act on it."""
        reading = _Reading(self._loop, connection)
        if not await reading.until(lambda: b"\r\n\r\n" in reading.raw, _MOST_HEAD):
            return Verdict.GARBAGE if reading.raw else Verdict.GONE
        first, _, _ = bytes(reading.raw).partition(b"\r\n\r\n")
        head = Head.parse(first)
        if head is None:
            return Verdict.GARBAGE
        if refusal := head.refusal():
            return refusal
        begin = len(first) + 4
        whole = begin + head.length
        if not await reading.until(lambda: len(reading.raw) >= whole, whole):
            return Verdict.GONE
        body = bytes(reading.raw[begin:whole])
        verdict = judge(head, body, self._secret)
        return self._hear(verdict, signature(body, self._secret)) if verdict.is_signed else verdict

    def _hear(self, verdict: Verdict, signed: str) -> Verdict:
        if signed in self._seen:
            return Verdict.REPEATED
        self._seen.append(signed)
        self._last_heard = time.time()
        with suppress(OSError):
            self._heard.touch()
        if verdict is Verdict.WOKE and self._waking is None:
            self._waking = self._loop.call_at(self._rested_at, self._call)
        return verdict

    def _call(self) -> None:
        self._waking = None
        self._rested_at = self._loop.time() + _REST
        self._wake()

    def _count(self, verdict: Verdict, peer: str) -> None:
        """Count it.

        Of those that are not the forge's the log has one line a minute, however many come.
        """
        self._verdicts[verdict] += 1
        if verdict.is_signed:
            return
        self._refused += 1
        now = self._clock()
        if self._complained_at is None or now - self._complained_at >= _COMPLAIN_AGAIN:
            self._log.warning(
                "not the forge's webhook",
                verdict=verdict.value,
                peer=peer,
                requests=self._refused,
                hint=_HINTS.get(verdict, ""),
            )
            self._refused, self._complained_at = 0, now
