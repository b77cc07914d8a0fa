"""Connections to the cache, each served by a thread of its own: heads are read and answers written
by h11, socketserver accepts them and starts the threads. The bytes of a body stay in one thread:
to hand them to another one costs about as much as their digests do. None of them goes through h11,
which would copy each several times.

A connection gets on, or is ended: it may be one that says its request byte by byte, or never reads
the answer. One machine keeps no other one out.
"""

from __future__ import annotations

import os
import re
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import h11

from vmrunner.log import Log

_MOST = 32  # of one machine at the same time
_PATIENCE = 60.0  # seconds in which a connection has to get on
_LONGEST = 7200.0  # seconds that one lasts at most
_READ = 64 * 1024  # bytes that are read at once: more at once would be memory that is new each time
_NEVER = float("inf")
_HEAD = 64 * 1024  # bytes of a head at most
_LINE = 4096  # bytes of a chunk's first line at most
_RAW = 256 * 1024  # bytes of chunks that are read at once
_FIELDS = 100  # of a query
_REST = 1.0  # seconds until the next try, where there are too many open files
_DRAINED = 128 * 1024 * 1024  # bytes that are read for nothing, so that the answer is heard


class Gone(Exception):
    """Whoever asked has gone, or does not get on."""


class Request:
    """One request, and its answer."""

    def __init__(self, connection: _Connection, said: h11.Request) -> None:
        path, _, query = said.target.decode("ascii").partition("?")
        try:
            fields = parse_qsl(query, keep_blank_values=True, max_num_fields=_FIELDS)
        except ValueError:
            raise h11.RemoteProtocolError("too many fields") from None
        self.method, self.path, self.query = said.method.decode("ascii"), path, dict(fields)
        self.headers = {name.decode(): value.decode("latin-1") for name, value in said.headers}
        self.address, self.reached = connection.address, connection.reached
        self.has_answer = False  # begun
        self._connection = connection

    def read(self, buffer: bytearray) -> int:
        """Have the next bytes of the body in this buffer, and how many: as many as it has room for,
        or all that are left; 0: there are no more. Raises Gone, h11.RemoteProtocolError.
        """
        room, filled = memoryview(buffer), 0
        while filled < len(room) and (read := self._connection.read(room[filled:])):
            filled += read
        return filled

    def answer(self, status: int, headers: Mapping[str, str] = {}, body: bytes = b"") -> None:
        """All of it. Raises Gone."""
        some = {} if status == HTTPStatus.NO_CONTENT else {"content-length": str(len(body))}
        self.begin(status, {**some, **headers}, is_last=not self._drain())
        if body and self.method != "HEAD":
            self.send(body)
        self.end()

    def begin(self, status: int, headers: Mapping[str, str], *, is_last: bool = False) -> None:
        """An answer whose bytes are sent by `send`, and then `end`. Raises Gone."""
        self.has_answer = True
        lines = [*headers.items(), *([("connection", "close")] if is_last else [])]
        self._connection.say(h11.Response(status_code=status, headers=lines))

    def send(self, data: bytes | memoryview) -> None:
        """More of the answer. Raises Gone."""
        self._connection.say(h11.Data(data=data))  # type: ignore[arg-type]  # it takes both

    def end(self) -> None:
        """That was the answer. Raises Gone."""
        self._connection.say(h11.EndOfMessage())

    def _drain(self) -> bool:
        """Who is still sending hears no answer. Whether all has come now: who waits to be asked for
        the rest, or has too much of it, is answered all the same.
        """
        buffer, read = bytearray(_READ), 0
        with suppress(h11.RemoteProtocolError):
            while not self._connection.is_waited_for and read < _DRAINED:
                if not (more := self.read(buffer)):
                    return True
                read += more
        return False


_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n\0]*")
Answer = Callable[[Request], object]
Received = TypeVar("Received", bytes, int)


def _http() -> h11.Connection:
    return h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD)


class _Line(Enum):
    """Those around chunks."""

    SIZE = auto()
    END = auto()
    TRAILER = auto()


class _Connection:
    """A socket, and what h11 makes of it."""

    def __init__(self, connected: socket.socket, turn: threading.Lock) -> None:
        self._socket, self._turn = connected, turn
        self._http = _http()
        # What is read already and not yet understood: from `at` up to `to`.
        self._raw = bytearray()  # of its size only for who sends chunks
        self._at, self._to = 0, 0
        # Of a body: how many bytes are to come next, whether chunks come after them, whether any of
        # it has come; which line comes next, what of it has, and how many bytes of the last ones.
        self._left, self._is_chunked, self._has_begun = 0, False, False
        self._expects, self._part, self._trailers = _Line.SIZE, b"", 0
        self._ends = time.monotonic() + _LONGEST
        self.address: str = connected.getpeername()[0]
        self.reached: tuple[str, int] = connected.getsockname()[:2]
        connected.settimeout(_PATIENCE)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def is_waited_for(self) -> bool:
        """Whether the body comes only when it is asked for."""
        return self._http.they_are_waiting_for_100_continue and not self._has_begun

    def serve(self, answer: Answer) -> None:
        """One request after the other. Raises Gone."""
        try:
            while isinstance(said := self._event(time.monotonic() + _PATIENCE), h11.Request):
                self._begin_body(said)
                answer(Request(self, said))
                if not self._begin_next():
                    return
        except h11.RemoteProtocolError as error:
            if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                lines = [("content-length", "0"), ("connection", "close")]
                self.say(h11.Response(status_code=error.error_status_hint, headers=lines))
                self.say(h11.EndOfMessage())

    def _begin_body(self, said: h11.Request) -> None:
        """RFC 9112, 6.3; h11 has seen that it is one length, or chunked and nothing else."""
        headers = dict(said.headers)
        self._is_chunked = b"transfer-encoding" in headers
        self._expects, self._part, self._trailers = _Line.SIZE, b"", 0
        self._left = 0 if self._is_chunked else int(headers.get(b"content-length", b"0"))
        ahead, _ = self._http.trailing_data
        self._raw[: len(ahead)], self._at, self._to = ahead, 0, len(ahead)
        self._has_begun = self._is_whole or bool(ahead)

    @property
    def _is_whole(self) -> bool:
        return not (self._left or self._is_chunked)

    def _begin_next(self) -> bool:
        """Whether another request can come on this connection."""
        if not self._is_whole or self._http.our_state is not h11.DONE:
            return False
        self._http = _http()  # it has not seen that body
        if self._at < self._to:
            self._http.receive_data(bytes(self._raw[self._at : self._to]))
        return True

    def read(self, room: memoryview) -> int:
        """Have some bytes of the body there, and how many; 0: there are no more. Raises Gone,
        h11.RemoteProtocolError.
        """
        if self._at == self._to and self._left and not self._is_chunked:
            much = self._more(room[: self._left])
            self._left -= much
            return much
        while not (much := self._take(room)) and not self._is_whole:
            if len(self._raw) < _RAW:
                self._raw = bytearray(_RAW)
            self._at, self._to = 0, self._more(memoryview(self._raw))
        return much

    def _take(self, room: memoryview) -> int:
        """The same of what is read already, where 0 may be for want of that. To take bytes apart
        needs the interpreter: each machine has one turn at it, or one that sends many small chunks
        on all its connections would leave others hardly any.
        """
        filled = 0
        with self._turn:
            while filled < len(room) and (self._left or self._begins_chunk()):
                much = min(self._to - self._at, self._left, len(room) - filled)
                if not much:
                    break
                room[filled : filled + much] = memoryview(self._raw)[self._at : self._at + much]
                self._at, self._left, filled = self._at + much, self._left - much, filled + much
        return filled

    def _begins_chunk(self) -> bool:
        """Whether one with bytes does: RFC 9112, 7.1. After the last one come lines that nobody
        needs.
        """
        while self._is_chunked and (line := self._line()) is not None:
            if self._expects is _Line.SIZE:
                if not (found := _CHUNK.fullmatch(line)):
                    raise h11.RemoteProtocolError("it is no chunk")
                self._left = int(found[1], 16)
                self._expects = _Line.END if self._left else _Line.TRAILER
                if self._left:
                    return True
            elif self._expects is _Line.END:
                if line:
                    raise h11.RemoteProtocolError("a chunk does not end where it should")
                self._expects = _Line.SIZE
            elif not line:
                self._is_chunked = False
            else:
                self._trailers += len(line)
                if self._trailers > _HEAD or not _TRAILER.fullmatch(line):
                    raise h11.RemoteProtocolError("this does not belong after the last chunk")
        return False

    def _line(self) -> bytes | None:
        """The next one of those around chunks, without its end; None where that is not there."""
        end = self._raw.find(b"\n", self._at, self._to) + 1
        self._part += self._raw[self._at : end or self._to]
        self._at = end or self._to
        if len(self._part) > _LINE:
            raise h11.RemoteProtocolError("a line is too long")
        if not end:
            return None
        line, self._part = self._part, b""
        if not line.endswith(b"\r\n"):
            raise h11.RemoteProtocolError("a line does not end as it should")
        return line[:-2]

    def _more(self, room: memoryview) -> int:
        """Of the body, and what is around its chunks: have it there, and how many bytes."""
        if self.is_waited_for:
            self.say(h11.InformationalResponse(status_code=100, headers=[]))
        if not (read := self._receive(lambda: self._socket.recv_into(room))):
            raise h11.RemoteProtocolError("the body has ended before its end")
        self._has_begun = True
        return read

    def _event(self, until: float) -> Any:
        """The next one; raises Gone where it is not there by then, h11.RemoteProtocolError."""
        while (event := self._understood()) is h11.NEED_DATA:
            self._http.receive_data(self._receive(lambda: self._socket.recv(_READ), until))
        return event

    def _understood(self) -> Any:
        with self._turn:  # see _take
            try:
                return self._http.next_event()
            except ValueError:  # a length of thousands of digits (h11 0.14)
                raise h11.RemoteProtocolError("that is no length") from None

    def _receive(self, receive: Callable[[], Received], until: float = _NEVER) -> Received:
        try:
            received = receive()
        except OSError:
            raise Gone from None
        if time.monotonic() > min(until, self._ends):
            raise Gone
        return received

    def say(self, event: Any) -> None:
        """Send all of it. Raises Gone."""
        pieces = self._http.send_with_data_passthrough(event) or []
        if not isinstance(event, h11.Data):
            pieces = [b"".join(pieces)]  # a head is one packet, not one for each line
        try:
            for data in pieces:
                self._socket.sendall(data)
        except OSError:
            raise Gone from None
        if time.monotonic() > self._ends:
            raise Gone


class Connections(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """All of them, on a socket that listens."""

    # What its threads read and write is closed after it: it waits for them.
    daemon_threads, block_on_close = False, True

    def __init__(self, listening: socket.socket, answer: Answer, log: Log) -> None:
        handler = socketserver.BaseRequestHandler  # see finish_request
        super().__init__(listening.getsockname(), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        listening.setblocking(False)
        self._answer, self._log = answer, log
        self._lock = threading.Lock()
        self._all: dict[socket.socket, str] = {}  # and the address of each
        self._turns: dict[str, threading.Lock] = {}  # by address

    def serve(self) -> None:
        """Whoever comes, until this process's standard input ends: whoever has started it holds
        that, so that it does not outlive a killed `serve`.
        """
        threading.Thread(target=self.serve_forever, daemon=True).start()
        try:
            while os.read(0, 1024):
                pass
        finally:
            self.shutdown()
            # At once: who is being answered asks again.
            with self._lock:
                for each in self._all:
                    with suppress(OSError):
                        each.shutdown(socket.SHUT_RDWR)
            self.server_close()

    def get_request(self) -> tuple[socket.socket, Any]:
        """See socketserver."""
        try:
            return super().get_request()
        except BlockingIOError:
            raise
        except OSError:  # too many open files
            time.sleep(_REST)
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether this machine may have one more."""
        address = client_address[0]
        with self._lock:
            if sum(each == address for each in self._all.values()) >= _MOST:
                return False
            self._all[request] = address
            self._turns.setdefault(address, threading.Lock())
        return True

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In a thread of its own."""
        with suppress(Gone, OSError):
            _Connection(request, self._turns[client_address[0]]).serve(self._answer)

    def shutdown_request(self, request: Any) -> None:
        """It is over, whatever has ended it."""
        with self._lock:
            self._all.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """It has failed, and no other one has."""
        error = repr(sys.exc_info()[1])
        self._log.error("a request to the cache has failed", error=error)
