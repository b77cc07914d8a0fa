"""Whose connections wait for whose."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import h11
import pytest

from vmrunner.cache.connections import Connections
from vmrunner.log import Format, Level, open_log

ASKED = b"GET / HTTP/1.1\r\nhost: cache\r\n\r\n"
LONG = 30.0  # seconds


@contextmanager
def served() -> Iterator[tuple[str, int]]:
    """Whoever asks is answered that there is nothing."""
    log = open_log(Format.TEXT, Level.ERROR)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        made = Connections(listening, lambda request: request.answer(204), log)
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        try:
            yield listening.getsockname()
        finally:
            made.shutdown()
            thread.join()
            made.server_close()


def asked(place: tuple[str, int], machines: Sequence[str]) -> list[bytes]:
    """What connections of these addresses are told, which all ask before any of them listens."""
    with ExitStack() as stack:
        opened = [
            stack.enter_context(socket.create_connection(place, LONG, (address, 0)))
            for address in machines
        ]
        for each in opened:
            each.sendall(ASKED)
        return [each.recv(1024).split(b"\r\n")[0] for each in opened]


def test_one_machines_connections_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = threading.Lock()  # somebody looks at what is said
    met: list[bool] = []

    class Watched(h11.Connection):
        def next_event(self) -> object:
            alone = inside.acquire(blocking=False)
            met.append(not alone)
            try:
                threading.Event().wait(0.005)  # so that others would come
                return super().next_event()
            finally:
                if alone:
                    inside.release()

    monkeypatch.setattr(h11, "Connection", Watched)
    with served() as place:
        assert asked(place, ["127.0.0.1"] * 12) == [b"HTTP/1.1 204 "] * 12
    assert len(met) >= 12
    assert not any(met)


def test_no_machine_waits_for_another_ones_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2)

    class Watched(h11.Connection):
        waits = True

        def next_event(self) -> object:
            if self.waits:
                self.waits = False
                both.wait(LONG)  # raises where the other one never comes meanwhile
            return super().next_event()

    monkeypatch.setattr(h11, "Connection", Watched)
    with served() as place:
        machines = ["127.0.0.1", "127.0.0.2"]
        assert asked(place, machines) == [b"HTTP/1.1 204 "] * 2
