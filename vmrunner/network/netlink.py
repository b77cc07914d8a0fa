"""Questions to the Linux kernel by netlink(7), of which Python has the socket alone."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from types import TracebackType

_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300  # NLM_F_…
_ERROR, _DONE = 2, 3  # NLMSG_…
_NESTED, _KIND = 0x8000, 0x3FFF  # NLA_F_NESTED, NLA_TYPE_MASK
_HEAD, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=HH")
_AT_ONCE = 1 << 18  # bytes that one read takes: more than the kernel ever sends at once
_ANSWERS_WITHIN = 10.0  # seconds; it answers at once


class Netlink:
    """A socket to one of the kernel's protocols; a context manager.

    Every call raises OSError: with the kernel's own errno where it refuses.
    """

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        self._socket.settimeout(_ANSWERS_WITHIN)
        self._number = 0

    def __enter__(self) -> Netlink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def dump(self, kind: int, body: bytes) -> Iterator[bytes]:
        """The bodies of all that the kernel answers. No other call until the last one is read."""
        self._send(kind, _DUMP, body)
        return self._answers()

    def change(self, kind: int, body: bytes) -> None:
        """Have the kernel do one thing; returns when it is done."""
        self._send(kind, _ACK, body)
        for _ in self._answers():
            pass

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._number += 1
        head = _HEAD.pack(_HEAD.size + len(body), kind, _REQUEST | flags, self._number, 0)
        self._socket.send(head + body)

    def _answers(self) -> Iterator[bytes]:
        while True:
            told = self._socket.recv(_AT_ONCE)
            while told:
                length, kind, _, number, _ = _HEAD.unpack_from(told)
                body, told = told[_HEAD.size : length], told[_padded(length) :]
                if number != self._number:
                    continue  # the rest of an answer that nobody read to its end
                if kind in {_ERROR, _DONE}:
                    (code,) = struct.unpack_from("=i", body)
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return
                yield body


def attribute(kind: int, content: bytes) -> bytes:
    """One attribute of a message."""
    head = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(content), kind)
    return (head + content).ljust(_padded(len(head) + len(content)), b"\0")


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that is made of others."""
    return attribute(kind | _NESTED, b"".join(attributes))


def attributes(told: bytes) -> dict[int, bytes]:
    """What attributes hold, by their kinds; of those that repeat, the last."""
    found = {}
    while len(told) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(told)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _KIND] = told[_ATTRIBUTE.size : length]
        told = told[_padded(length) :]
    return found


def _padded(length: int) -> int:
    return -(-length // 4) * 4
