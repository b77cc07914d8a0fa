"""What a resolver says about names, asked as a machine asks it (RFC 1035).

This host may find other addresses for them.
"""

from __future__ import annotations

import secrets
import socket
import struct
import time
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address

Address = IPv4Address | IPv6Address
_A, _AAAA, _IN = 1, 28, 1
_KINDS: dict[int, Callable[[bytes], Address]] = {_A: IPv4Address, _AAAA: IPv6Address}
_NO_ERROR, _NO_SUCH_NAME = 0, 3


def addresses(
    server: IPv4Address, names: Sequence[str], *, ipv6: bool, patience: float, port: int = 53
) -> dict[str, list[Address]]:
    """The addresses of each name that this server knows something of within `patience` seconds:
    none, where it says that there are none. Of IPv6 only if asked for.

    A name that is missing in it may have addresses: nobody said.
    """
    kinds = (_A, _AAAA) if ipv6 else (_A,)
    first = secrets.randbelow(1 << 16)
    asked = {
        (first + number) % (1 << 16): (name, kind)
        for number, (name, kind) in enumerate((name, kind) for name in names for kind in kinds)
    }
    found: dict[str, list[Address]] = {}
    deadline = time.monotonic() + patience
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
            connection.connect((str(server), port))
            for number, (name, kind) in asked.items():
                connection.send(query(number, name, kind))
            while asked and (left := deadline - time.monotonic()) > 0:
                connection.settimeout(left)
                number, listed = answer(connection.recv(4096))
                name, _ = asked.pop(number, ("", 0))
                if name and listed is not None:
                    found.setdefault(name, []).extend(listed)
    except (OSError, ValueError):
        return found  # nobody is there, or nobody who speaks DNS
    return found


def query(number: int, name: str, kind: int) -> bytes:
    """One for records of this kind. Raises ValueError where that is no name."""
    labels = [part.encode("ascii") for part in name.rstrip(".").split(".")]
    if not all(0 < len(label) < 64 for label in labels):
        raise ValueError(f"{name!r} is not a DNS name")
    asked = b"".join(bytes([len(label)]) + label for label in labels)
    head = struct.pack("!HHHHHH", number, 0x100, 1, 0, 0, 0)
    return head + asked + struct.pack("!xHH", kind, _IN)


def answer(message: bytes) -> tuple[int, list[Address] | None]:
    """The number of the query, and the addresses in its answer: None where the server could not
    say.

    Raises ValueError for what is no answer.
    """
    try:
        number, flags, questions, answers, *_ = struct.unpack_from("!HHHHHH", message)
        if not flags & 0x8000:
            raise ValueError("a query, not an answer")
        if flags & 15 not in {_NO_ERROR, _NO_SUCH_NAME}:
            return number, None
        at, found = 12, list[Address]()
        for _ in range(questions):
            at = _behind_name(message, at) + 4
        for _ in range(answers):
            at = _behind_name(message, at)
            kind, _, _, length = struct.unpack_from("!HHIH", message, at)
            at += 10
            if kind in _KINDS:
                found.append(_KINDS[kind](message[at : at + length]))
            at += length
    except (struct.error, IndexError) as error:
        raise ValueError(f"not a DNS message: {error}") from None
    return number, found


def _behind_name(message: bytes, at: int) -> int:
    while message[at]:
        if message[at] >= 0xC0:  # the rest is elsewhere in the message
            return at + 2
        at += 1 + message[at]
    return at + 1
