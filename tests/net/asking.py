"""Asks a name server as fast or as slowly as it is told, each time for a name of its own:
`python -m tests.net.asking SERVER NAME COUNT RATE [PATIENCE]`.

A `*` in the name becomes a number. Prints for each query how many seconds its answer took, or null;
`RATE` is queries a second.
"""

from __future__ import annotations

import json
import selectors
import socket
import struct
import sys
import time
from contextlib import suppress


def query(number: int, name: str, kind: int = 1) -> bytes:
    """For this name's addresses, with this number (RFC 1035)."""
    labels = b"".join(bytes([len(each)]) + each.encode() for each in name.split("."))
    return struct.pack("!HHHHHH", number, 0x100, 1, 0, 0, 0) + labels + struct.pack("!xHH", kind, 1)


def ask(
    server: str, name: str, count: int, rate: float, patience: float = 1.0
) -> list[float | None]:
    """Each query has a socket of its own, as those of C libraries have."""
    waiting = selectors.DefaultSelector()
    took: list[float | None] = [None] * count
    began = time.monotonic()
    sent = 0
    while time.monotonic() < began + count / rate + patience:
        now = time.monotonic()
        while sent < count and began + sent / rate <= now:
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            client.connect((server, 53))
            client.send(query(sent * 7919 % 65536, name.replace("*", f"n{sent}")))
            waiting.register(client, selectors.EVENT_READ, (sent, time.monotonic()))
            sent += 1
        next_one = began + sent / rate - time.monotonic() if sent < count else patience
        for key, _ in waiting.select(max(0.0, min(next_one, 0.05))):
            number, at = key.data
            client = key.fileobj  # type: ignore[assignment]
            # REFUSED is no answer, and is quick; so is a resolver that has ended.
            with suppress(OSError):
                flags, answers = struct.unpack_from("!2xH2xH", client.recv(4096))
                took[number] = time.monotonic() - at if flags & 15 == 0 and answers else None
            waiting.unregister(client)
            client.close()
        if sent == count and not waiting.get_map():
            break
    return took


def main() -> None:
    """The command line."""
    server, name, count, rate, *patience = sys.argv[1:]
    print(json.dumps(ask(server, name, int(count), float(rate), *map(float, patience))))


if __name__ == "__main__":
    main()
