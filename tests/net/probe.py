"""Runs inside a machine and tries to get through: `python -m tests.net.probe '[["tcp", "192.0.2.1", 80]]'` prints a list of booleans.

`tcp` and `udp` want an answer (a refusal is one, too: the packet was there), `ping` an echo, `dns` an answer with an address; `frame` sends
bytes on the wire, and who listens elsewhere knows. Stands alone: machines are given its text.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_PATIENCE = float(os.environ.get("PROBE_PATIENCE", "0.7"))  # seconds


def tcp(address: str, port: int) -> bool:
    """Whether somebody answers a SYN."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.settimeout(_PATIENCE)
        try:
            connection.connect((address, port))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        return True


def udp(address: str, port: int) -> bool:
    """Whether somebody answers a datagram."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.settimeout(_PATIENCE)
        connection.connect((address, port))
        connection.send(b"hello")
        try:
            connection.recv(2048)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        return True


def dns(server: str, name: str) -> bool:
    """Whether this server answers with an address (RFC 1035)."""
    asked = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0" + struct.pack("!HH", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.settimeout(_PATIENCE)
        connection.connect((server, 53))
        connection.send(struct.pack("!HHHHHH", 4711, 0x100, 1, 0, 0, 0) + asked)
        try:
            _, flags, _, answers, *_ = struct.unpack("!HHHHHH", connection.recv(2048)[:12])
        except OSError:
            return False
        return bool(answers and not flags & 15)


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def ping(address: str) -> bool:
    """Whether an ICMP echo comes back."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.settimeout(_PATIENCE)
        body = struct.pack("!HH", 4711, 1) + b"vmrunner"
        head = struct.pack("!BBH", 8, 0, checksum(struct.pack("!BBH", 8, 0, 0) + body))
        try:
            raw.sendto(head + body, (address, 0))
            while True:  # its own socket hears every echo of this machine
                answer, (source, _) = raw.recvfrom(2048)
                if source == address and answer[20] == 0:
                    return True
        except OSError:
            return False


def frame(content: str) -> bool:
    """Put this frame (hex) on the wire; always false."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((next(name for _, name in socket.if_nameindex() if name != "lo"), 0))
        raw.send(bytes.fromhex(content))
    return False


_KINDS = {"tcp": tcp, "udp": udp, "ping": ping, "dns": dns, "frame": frame}


def main() -> None:
    """All at once."""
    wanted: list[list[Any]] = json.loads(sys.argv[1])
    with ThreadPoolExecutor(len(wanted)) as pool:
        print(json.dumps(list(pool.map(lambda each: _KINDS[each[0]](*each[1:]), wanted))))


if __name__ == "__main__":
    main()
