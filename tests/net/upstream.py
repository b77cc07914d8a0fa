"""A name server for tests, of the world behind the host: `python -m tests.net.upstream ADDRESS`.

What it answers is in ZONE; what is below `slow.test` it never answers, and what is below the names
of DELAYS only after so many seconds.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading
from ipaddress import ip_address

PUBLIC = "198.18.0.10"
"""An address that dnsmasq takes for a public one: those for documentation it does not."""
DELAYS, TTL = {"late.test": 0.1, "near.test": 0.02}, 86_400
ZONE = {
    "ok.test": [PUBLIC],
    "late.test": [PUBLIC],
    "near.test": [PUBLIC],
    "cdn.mirror.test": ["198.51.100.10"],
    "mirror.test": ["198.51.100.20"],
    "app.localtest.test": ["127.0.0.1", "::1"],
    "127.0.0.9.nip.test": ["127.0.0.9"],
    "zero.test": ["0.0.0.0"],  # noqa: S104 — nobody binds to it
    "private.test": ["10.1.2.3", "fd77::10"],
    "192.168.77.10.nip.test": ["192.168.77.10"],
    "mixed.test": ["127.0.0.1", "10.1.2.3"],
    "both.test": [PUBLIC, "192.168.77.10"],
    "metadata.test": ["169.254.169.254"],
    "mapped.test": ["::ffff:10.1.2.3"],
}


def found(name: str) -> list[str]:
    """The addresses of a name; those of names below one are the same."""
    labels = name.split(".")
    return next(
        (ZONE[each] for at in range(len(labels)) if (each := ".".join(labels[at:])) in ZONE), []
    )


def answered(query: bytes) -> tuple[str, bytes]:
    """The name that is asked for, and the answer (RFC 1035)."""
    at, labels = 12, []
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode())
        at += 1 + query[at]
    name, (kind,) = ".".join(labels).lower(), struct.unpack_from("!H", query, at + 1)
    records = [
        struct.pack("!HHHIH", 0xC00C, kind, 1, TTL, len(packed := ip_address(each).packed)) + packed
        for each in found(name)
        if ip_address(each).version == {1: 4, 28: 6}.get(kind)
    ]
    head = query[:2] + struct.pack("!HHHHH", 0x8180, 1, len(records), 0, 0)
    return name, head + query[12 : at + 5] + b"".join(records)


def main() -> None:
    """Until killed."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    server.bind((sys.argv[1], 53))
    print("listening", flush=True)
    while True:
        query, client = server.recvfrom(4096)
        name, answer = answered(query)
        if name.endswith("slow.test"):
            continue
        delay = next((each for end, each in DELAYS.items() if name.endswith(end)), 0.0)
        threading.Timer(delay, server.sendto, (answer, client)).start()


if __name__ == "__main__":
    main()
