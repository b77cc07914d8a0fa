"""Connections to the cache, each served by a thread of its own: what they say is read and written
by h11, socketserver accepts them and starts the threads. The bytes of a body stay in one thread:
to hand them to another one costs about as much as their digests do.

A connection gets on, or is ended: it may be one that says its request byte by byte, or never reads
the answer. One machine keeps no other one out.
"""

from __future__ import annotations

import os
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

import h11

from vmrunner.log import Log

_MOST = 32  # of one machine at the same time
_PATIENCE = 60.0  # seconds in which a connection has to get on
_LONGEST = 7200.0  # seconds that one lasts at most
_READ = 64 * 1024  # bytes that are read at once: more at once would be memory that is new each time
_HEAD = 64 * 1024  # bytes of a head at most
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
        self._connection, self._rest, self._is_whole = connection, b"", False

    def read(self, buffer: bytearray) -> int:
        """Have the next bytes of the body in this buffer, and how many: as many as it has room for,
        or all that are left; 0: there are no more. Raises Gone, h11.RemoteProtocolError.
        """
        filled = 0
        while filled < len(buffer) and (data := self._rest or self._next()):
            much = min(len(data), len(buffer) - filled)
            buffer[filled : filled + much] = data[:much]
            filled, self._rest = filled + much, data[much:]
        return filled

    def _next(self) -> bytes:
        """Some more of the body; empty: that was all."""
        if self._is_whole:
            return b""
        event = self._connection.event()
        if isinstance(event, h11.Data):
            return event.data
        self._is_whole = True
        return b""

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
            while not self._is_whole and not self._connection.is_waited_for and read < _DRAINED:
                read += self.read(buffer)
        return self._is_whole


Answer = Callable[[Request], object]


class _Connection:
    """A socket, and what h11 makes of it."""

    def __init__(self, connected: socket.socket, turn: threading.Lock) -> None:
        self._socket, self._turn = connected, turn
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD)
        self._ends = time.monotonic() + _LONGEST
        self.address: str = connected.getpeername()[0]
        self.reached: tuple[str, int] = connected.getsockname()[:2]
        connected.settimeout(_PATIENCE)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def is_waited_for(self) -> bool:
        """Whether the body comes only when it is asked for."""
        return bool(self._http.they_are_waiting_for_100_continue)

    def serve(self, answer: Answer) -> None:
        """One request after the other. Raises Gone."""
        try:
            while isinstance(said := self.event(time.monotonic() + _PATIENCE), h11.Request):
                request = Request(self, said)
                answer(request)
                if self._http.their_state is h11.SEND_BODY:
                    self._understood()  # of a body that nobody has asked for: its end, if any
                if (self._http.our_state, self._http.their_state) != (h11.DONE, h11.DONE):
                    return
                self._http.start_next_cycle()
        except h11.RemoteProtocolError as error:
            if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                lines = [("content-length", "0"), ("connection", "close")]
                self.say(h11.Response(status_code=error.error_status_hint, headers=lines))
                self.say(h11.EndOfMessage())

    def event(self, until: float = float("inf")) -> Any:
        """The next one; raises Gone where it is not there by then, h11.RemoteProtocolError."""
        while (event := self._understood()) is h11.NEED_DATA:
            if self.is_waited_for:
                self.say(h11.InformationalResponse(status_code=100, headers=[]))
            self._receive(min(until, self._ends))
        return event

    def _understood(self) -> Any:
        """To take bytes apart needs the interpreter: each machine has one turn at it, or one that
        sends many small chunks on all its connections would leave others hardly any.
        """
        with self._turn:
            return self._http.next_event()

    def _receive(self, until: float) -> None:
        try:
            data = self._socket.recv(_READ)
        except OSError:
            raise Gone from None
        if time.monotonic() > until:
            raise Gone
        self._http.receive_data(data)

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
