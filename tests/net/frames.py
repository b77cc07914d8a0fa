"""Frames as a hostile machine would write them by hand. Each carries a mark, by which a listener knows it."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address

from tests.net.probe import checksum

BROADCAST = "ff:ff:ff:ff:ff:ff"


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ethernet(source: str, target: str, kind: int, payload: bytes) -> str:
    """One frame, as hex."""
    return (_mac(target) + _mac(source) + struct.pack("!H", kind) + payload).hex()


def mark(name: str) -> bytes:
    """What tests.net.sniff looks for."""
    return f"<mark {name}>".encode()


def udp(source: str, target: str, name: str, ports: tuple[int, int] = (9, 9)) -> bytes:
    """An IPv4 packet; its UDP checksum is left out."""
    content = mark(name)
    datagram = struct.pack("!HHHH", *ports, 8 + len(content), 0) + content
    head = struct.pack(
        "!BBHHHBBH4s4s",
        0x45,
        0,
        20 + len(datagram),
        1,
        0,
        64,
        socket.IPPROTO_UDP,
        0,
        IPv4Address(source).packed,
        IPv4Address(target).packed,
    )
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + datagram


def arp(operation: int, mac: str, address: str, asked: str, name: str) -> bytes:
    """An ARP packet (1 asks, 2 answers), with the mark behind it."""
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
    return head + _mac(mac) + IPv4Address(address).packed + bytes(6) + IPv4Address(asked).packed + mark(name)


def ipv6(name: str, icmp_type: int = 128) -> bytes:
    """An ICMPv6 packet to all nodes: 128 is an echo request, 134 a router advertisement."""
    body = bytes([icmp_type, 0, 0, 0]) + bytes(12) + mark(name)
    source, target = socket.inet_pton(socket.AF_INET6, "fe80::1"), socket.inet_pton(socket.AF_INET6, "ff02::1")
    return struct.pack("!IHBB", 0x60000000, len(body), socket.IPPROTO_ICMPV6, 255) + source + target + body


def vlan(number: int, kind: int, payload: bytes) -> bytes:
    """What follows the type 0x8100."""
    return struct.pack("!HH", number, kind) + payload
