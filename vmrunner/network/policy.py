"""What machines may reach: the words of the configuration as frozen records. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network

CLOSED = tuple(
    IPv4Network(block)
    for block in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private (RFC 1918)
        "100.64.0.0/10",  # carrier-grade NAT (RFC 6598)
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local, and the clouds' metadata services (RFC 3927)
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # IETF protocol assignments
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarking between devices of one network (RFC 2544)
        "224.0.0.0/3",  # multicast, reserved, broadcast
    )
)
"""What is not the internet (IANA's special-purpose registry, without the ranges for documentation,
which lead nowhere).
"""

UNIQUE_LOCAL = IPv6Network("fc00::/7")
CLOSED6 = tuple(
    IPv6Network(block)
    for block in (
        # Before the global ones: loopback, IPv4-mapped, NAT64 (64:ff9b::/96 and 64:ff9b:1::/48),
        # discard (100::/64).
        "::/3",
        # IETF protocol assignments, with Teredo, which leads to IPv4 addresses, and ORCHID.
        "2001::/23",
        "2002::/16",  # 6to4, which leads to IPv4 addresses
        "4000::/2",  # after the global ones: segment routing (5f00::/16)
        # Unique local (fc00::/7), link-local (fe80::/10), site-local (fec0::/10), multicast
        # (ff00::/8).
        "8000::/1",
    )
)
"""The same in IPv6: all but 2000::/3, of which IANA gives out global addresses, and what of that
leads elsewhere.
"""

_DESTINATION = re.compile(
    r"(?:(?P<host>[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?(?P<prefix>/\d{1,2})?)|\[(?P<six>[0-9A-Fa-f:.]{2,45}(?:/\d{1,3})?)\])"
    r":(?P<ports>\d{1,5}(?:,\d{1,5})*)(?:/(?P<protocol>tcp|udp))?"
)


class Reach(StrEnum):
    """A pool's `network`."""

    INTERNET = "internet"  # the forge, DNS, and every public address
    ALLOWLIST = "allowlist"  # the forge, DNS, and what `allow` names
    NONE = "none"  # the forge


@dataclass(frozen=True)
class Destination:
    """A host, by name, address or network, and ports of it.

    A name stands for all names below it, too.
    """

    host: str | IPv4Network | IPv6Network
    ports: tuple[int, ...]
    protocol: str = "tcp"

    @classmethod
    def parse(cls, text: str) -> Destination:
        """`deb.debian.org:80,443`, `192.0.2.7:3142`, `192.0.2.0/24:123/udp` or `[2001:db8::7]:443`.

        Raises ValueError.
        """
        found = _DESTINATION.fullmatch(text)
        if not found:
            raise ValueError(
                'a destination is written like "deb.debian.org:80,443", "192.0.2.7:3142", '
                '"192.0.2.0/24:123/udp" or "[2001:db8::7]:443"'
            )
        ports = tuple(sorted({int(port) for port in found["ports"].split(",")}))
        if not all(0 < port < 65536 for port in ports):
            raise ValueError("ports are 1 to 65535")
        host: str | IPv4Network | IPv6Network = (found["host"] or "").lower()
        if found["six"]:
            host = IPv6Network(found["six"])
        elif found["prefix"] or re.fullmatch(r"[\d.]+", found["host"]):
            host = IPv4Network(found["host"])
        return cls(host, ports, found["protocol"] or "tcp")

    @property
    def name(self) -> str:
        """The host's DNS name; empty where it is an address or a network."""
        return self.host if isinstance(self.host, str) else ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if isinstance(self.host, IPv6Network) else str(self.host)
        udp = "" if self.protocol == "tcp" else f"/{self.protocol}"
        return f"{host}:{','.join(map(str, self.ports))}{udp}"


@dataclass(frozen=True)
class Policy:
    """What the machines of one kind may reach."""

    name: str  # of its chain
    reach: Reach
    allow: tuple[Destination, ...] = ()
    # TCP ports of the host's own address in the machines' network, beside the resolver's.
    host_ports: tuple[int, ...] = ()


@dataclass(frozen=True)
class Bounds:
    """What one machine may do to the network, whatever it may reach."""

    connections: int  # at the same time
    new_connections: int  # a second
    dns_queries: int  # a second
    dns_waiting: int  # DNS queries that have no answer yet; while they are so many, it may ask few


def pool_policy(pool: str) -> str:
    """The name of a pool's policy."""
    return f"pool-{pool}"


def flavor_policy(flavor: str) -> str:
    """The name of the policy of a flavor for GARM."""
    return f"garm-{flavor}"
