"""What keeps one machine's DNS queries from taking the resolver from the others.

The network's dnsmasq has a number of places for queries that wait for an answer from outside, and
refuses everybody while all are taken. So each machine has a set of its own of the queries that are
not answered yet. While it is full the machine may ask a few a second only. Pure.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network

from vmrunner.network.policy import Bounds
from vmrunner.render import text

LANE = re.compile(r"(?:waiting|asks|told)-([\d.]+)")
"""The names of what a machine has of its own; the group is its address."""
MAPS = ("asks", "told")
LOOKUPS = 2
"""Connections to the resolver of one machine at the same time."""
_FORGOTTEN = 10  # seconds until dnsmasq gives up its place to another query (its TIMEOUT)
# … and until it has forgotten it where nobody wants the place: its clients count until then.
_REMEMBERED = 4 * _FORGOTTEN
_MOST_PLACES = 1_000_000  # more machines than this is enough for no host has


def held(bounds: Bounds) -> int:
    """Queries a second of a machine whose set is full."""
    return bounds.dns_waiting // 16


def places(subnet: IPv4Network, bounds: Bounds) -> int:
    """How many places the resolver needs, so that all machines together can't take them all."""
    full, burst = _REMEMBERED // _FORGOTTEN * bounds.dns_waiting, 4 * held(bounds)
    of_one = full + burst + _REMEMBERED * held(bounds)
    return min(of_one * subnet.num_addresses, _MOST_PLACES)


def rules(table: str, address: IPv4Address, bounds: Bounds) -> str:
    """What the machine with this address has; what it had is as it was made again."""
    chains = [f"{kind}-{address}" for kind in MAPS]
    made = f"table inet {table} {{ {' '.join(f'chain {chain} {{ }};' for chain in chains)} }}\n"
    return (
        made
        + "".join(f"flush chain inet {table} {chain}\n" for chain in chains)
        + text(
            "nftables-dns.j2",
            table=table,
            address=address,
            waiting=bounds.dns_waiting,
            forgotten=_FORGOTTEN,
        )
    )


def without(table: str, address: IPv4Address) -> str:
    """The end of all that this machine has; it has to be there."""
    return "".join(
        f"delete element inet {table} {kind} {{ {address} }}\n"
        f"delete chain inet {table} {kind}-{address}\n"
        for kind in MAPS
    ) + (f"delete set inet {table} waiting-{address}\n")
