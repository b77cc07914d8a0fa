"""When what went over the wire: of one machine, and between the manager and the forge.

The kernel's own time stamps of packets, read from a packet socket (packet(7), SO_TIMESTAMPNS of
socket(7)): the machine knows nothing of it, and nobody's clock but the host's is asked.
"""

from __future__ import annotations

import socket
import struct
import threading
from dataclasses import dataclass
from ipaddress import IPv4Address

_ALL_PROTOCOLS, _IPV4, _TCP, _UDP = 3, 0x0800, 6, 17
_SO_TIMESTAMPNS = 35
_SYN, _ACK = 0x02, 0x10
_REQUESTS = (b"GET ", b"POST ", b"PUT ", b"PATCH ", b"DELETE ")


@dataclass(frozen=True)
class Seen:
    """A packet that begins something: a connection, a request, an answer, a name that is asked."""

    at: float  # unix seconds
    sender: IPv4Address
    receiver: IPv4Address
    what: str  # "POST /path", "answer", "connect", "accept", "name", "name's answer"


class Wire:
    """Listens on every interface of this network namespace until it is closed."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS)
        )
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self._socket.settimeout(0.2)
        self._over = threading.Event()
        self._known: set[bytes] = set()
        self.seen: list[Seen] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no longer."""
        self._over.set()
        self._thread.join()
        self._socket.close()

    def clear(self) -> None:
        """Forget what was seen."""
        self.seen, self._known = [], set()

    def _listen(self) -> None:
        while not self._over.is_set():
            try:
                frame, ancillary, _, address = self._socket.recvmsg(2048, 64)
            except TimeoutError:
                continue
            if address[1] != _IPV4 or not ancillary:
                continue
            seconds, nanoseconds = struct.unpack("qq", ancillary[0][2])
            packet = frame[14:]
            what = _what(packet)
            # A packet comes by several interfaces: its first time counts. The TTL and the checksum
            # change on its way, addresses and identification don't.
            key = packet[4:6] + packet[12:40]
            if what and key not in self._known:
                self._known.add(key)
                self.seen.append(
                    Seen(
                        seconds + nanoseconds / 1e9,
                        IPv4Address(packet[12:16]),
                        IPv4Address(packet[16:20]),
                        what,
                    )
                )


def _what(packet: bytes) -> str:
    """Of an IPv4 packet; empty for what begins nothing."""
    head = (packet[0] & 15) * 4
    if packet[9] == _UDP:
        source, target = struct.unpack("!HH", packet[head : head + 4])
        return "name" if target == 53 else "name's answer" if source == 53 else ""
    if packet[9] != _TCP:
        return ""
    flags = packet[head + 13]
    if flags & _SYN:
        return "accept" if flags & _ACK else "connect"
    payload = packet[head + (packet[head + 12] >> 4) * 4 :]
    if payload.startswith(_REQUESTS):
        return payload.split(b"\r\n", 1)[0].rsplit(b" ", 1)[0].decode(errors="replace")
    return "answer" if payload.startswith(b"HTTP/1.") else ""
