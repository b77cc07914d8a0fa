"""The host's ears: which packets of a machine arrive at the host, and which leave it."""

from __future__ import annotations

import re
import socket
import threading
from ipaddress import IPv4Address, IPv6Address

from vmrunner.errors import HypervisorError

_ALL = 3  # ETH_P_ALL
_OUTGOING = 4  # PACKET_OUTGOING
_IP4, _IP6 = b"\x08\x00", b"\x86\xdd"
_MARK = re.compile(rb"<mark ([a-z0-9 -]+)>")  # as images/guest/probe_network.py writes them


class Ears:
    """Listens on every interface from now until closed. Raises HypervisorError without CAP_NET_RAW.

    `inside` are the interface of the machines' bridge; what goes out elsewhere has left the host.
    """

    def __init__(self, inside: str) -> None:
        self._inside = inside
        self.marks: set[str] = set()  # of frames that arrived on the bridge
        self.left: set[IPv4Address | IPv6Address] = set()  # where packets went that left the host
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
        except PermissionError:
            raise HypervisorError(
                "Only root may listen to the host's network.", "Run it with sudo."
            ) from None
        self._socket.settimeout(0.2)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._over.set()
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                content, (interface, _, kind, *_) = self._socket.recvfrom(65536)
            except TimeoutError:
                continue
            if interface == self._inside and kind != _OUTGOING:
                self.marks |= {found.decode() for found in _MARK.findall(content)}
            elif kind == _OUTGOING and interface not in {self._inside, "lo"}:
                if content[12:14] == _IP4:
                    self.left.add(IPv4Address(content[30:34]))
                elif content[12:14] == _IP6:
                    self.left.add(IPv6Address(content[38:54]))
