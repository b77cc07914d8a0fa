"""Asks a name server as fast or as slowly as it is told, each time for a name of its own:
`python -m tests.net.asking SERVER NAME COUNT RATE [PATIENCE]`.

A `*` in the name becomes a number. Prints for each query how many seconds its answer took, or null;
`RATE` is queries a second. With a count of 0 it asks until it is killed, for no answer; with a rate
of 0, too, as fast as it can.
"""

from __future__ import annotations

import itertools
import json
import selectors
import socket
import struct
import sys
import time
from contextlib import suppress

from vmrunner.network.lookup import query

A = 1  # the type of records (RFC 1035)
_LATE = 0.05  # seconds


def ask(
    server: str, name: str, count: int, rate: float, patience: float = 1.0
) -> list[float | None]:
    """Each query has a socket of its own, as those of C libraries have."""
    waiting = selectors.DefaultSelector()
    took: list[float | None] = [None] * count
    sent, due = 0, time.monotonic()
    while sent < count or (waiting.get_map() and time.monotonic() < due + patience):
        while sent < count and (now := time.monotonic()) >= due:
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            client.connect((server, 53))
            client.send(query(sent * 7919 % 65536, name.replace("*", f"n{sent}"), A))
            waiting.register(client, selectors.EVENT_READ, (sent, time.monotonic()))
            sent += 1
            # What a busy computer has kept from it is not made up for, or it would ask all at once.
            due = max(due, now - _LATE) + 1 / rate
        for key, _ in waiting.select(min(max(0.0, due - time.monotonic()), 0.05) or 0.001):
            number, at = key.data
            client = key.fileobj  # type: ignore[assignment]
            # REFUSED is no answer, and is quick; so is a resolver that has ended.
            with suppress(OSError):
                flags, answers = struct.unpack_from("!2xH2xH", client.recv(4096))
                took[number] = time.monotonic() - at if flags & 15 == 0 and answers else None
            waiting.unregister(client)
            client.close()
    return took


def flood(server: str, name: str, rate: float) -> None:
    """Until killed."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect((server, 53))
        began = time.monotonic()
        for sent in itertools.count():
            with suppress(OSError):
                client.send(query(sent % 65536, name.replace("*", f"n{sent}"), A))
            if rate and (early := began + sent / rate - time.monotonic()) > 0:
                time.sleep(early)


def main() -> None:
    """The command line."""
    server, name, count, rate, *patience = sys.argv[1:]
    if not int(count):
        flood(server, name, float(rate))
    print(json.dumps(ask(server, name, int(count), float(rate), *map(float, patience))))


if __name__ == "__main__":
    main()
