"""Lets a network namespace without a way out reach some addresses, such as those of package
registries: it listens there, and connects from where it was started.

usage: relay.py PID LISTEN:PORT=ADDRESS:PORT…    (PID: a process of that namespace)
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from contextlib import suppress

_PIECE = 1 << 16


def main() -> None:
    """Until it is killed."""
    pid, *ways = sys.argv[1:]
    listening = []
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    os.setns(there, os.CLONE_NEWNET)
    for way in ways:
        place, _, target = way.partition("=")
        listening.append((socket.create_server(_pair(place), backlog=64), _pair(target)))
    os.setns(home, os.CLONE_NEWNET)
    threads = [threading.Thread(target=_serve, args=each) for each in listening]
    for thread in threads:
        thread.start()
    print("ready", flush=True)


def _pair(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def _serve(listening: socket.socket, target: tuple[str, int]) -> None:
    while True:
        asking, _ = listening.accept()
        threading.Thread(target=_join, args=(asking, target), daemon=True).start()


def _join(asking: socket.socket, target: tuple[str, int]) -> None:
    with asking, suppress(OSError), socket.create_connection(target, timeout=60) as answering:
        answering.settimeout(None)
        back = threading.Thread(target=_copy, args=(answering, asking))
        back.start()
        _copy(asking, answering)
        back.join()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(_PIECE):
            sink.sendall(piece)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


main()
