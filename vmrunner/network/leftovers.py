"""What the host's kernel still knows of machines that are gone, by their addresses: connections,
also those that are closing, and the addresses' MACs.

A connection that was open stays for days in the kernel's table. Until then it takes a place there,
and lets the old peer's packets through to whoever has the address next.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Collection, Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address

from vmrunner.network.netlink import Netlink, attribute, attributes, nested

_Address = IPv4Address | IPv6Address
_ROUTE, _NETFILTER = 0, 12  # NETLINK_…
_GET, _DELETE = 0x101, 0x102  # IPCTNL_MSG_CT_… of NFNL_SUBSYS_CTNETLINK
_ORIGINAL, _REPLY, _ID, _ZONE = 1, 2, 12, 18  # CTA_…
_IP = 1  # CTA_TUPLE_IP
_SOURCE4, _SOURCE6 = 1, 3  # CTA_IP_V4_SRC, CTA_IP_V6_SRC
_CONNECTION = struct.Struct("!BBH")  # struct nfgenmsg: family, version, resource
_ALL = _CONNECTION.pack(socket.AF_UNSPEC, 0, 0)
_DELETE_NEIGHBOUR, _DESTINATION = 29, 1  # RTM_DELNEIGH, NDA_DST
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # struct ndmsg: family, interface, state, flags, type


def remove(bridge: str, addresses: Collection[_Address]) -> None:
    """Make the kernel forget these addresses of machines on this bridge.

    Where it can't (see `lack`), they stay as long as the kernel keeps them.
    """
    with suppress(OSError), Netlink(_NETFILTER) as kernel:
        for connection in list(_connections(kernel, addresses)):
            with suppress(FileNotFoundError):  # it has gone by itself
                kernel.change(_DELETE, connection)
    with suppress(OSError), Netlink(_ROUTE) as kernel:
        interface = socket.if_nametoindex(bridge)
        for address in addresses:
            family = socket.AF_INET if address.version == 4 else socket.AF_INET6
            head = _NEIGHBOUR.pack(family, interface, 0, 0, 0)
            with suppress(FileNotFoundError):
                kernel.change(_DELETE_NEIGHBOUR, head + attribute(_DESTINATION, address.packed))


def connections(addresses: Collection[_Address]) -> int:
    """How many connections of these addresses the kernel knows. Raises OSError where it can't
    say.
    """
    with Netlink(_NETFILTER) as kernel:
        return sum(1 for _ in _connections(kernel, addresses))


def lack() -> str:
    """Why `remove` can't work here, in words; empty where it can, or where only this user may
    not.
    """
    try:
        connections([])
    except PermissionError:
        return ""
    except OSError as error:
        return f"the kernel does not tell of its connections: {error.strerror}"
    return ""


def _connections(kernel: Netlink, addresses: Collection[_Address]) -> Iterator[bytes]:
    """Those that one of the addresses began, or answers: each as the kernel wants it named.

    The kernel could look for one address, but has to go through the whole of its table for each.
    """
    packed = {address.packed for address in addresses}
    # Most are other people's, and there may be a million: they are not taken apart.
    somewhere = re.compile(b"|".join(map(re.escape, packed)) or b"(?!)")
    for answer in kernel.dump(_GET, _ALL):
        if not somewhere.search(answer):
            continue
        told = attributes(answer[_CONNECTION.size :])
        if packed & {_source(told[side]) for side in (_ORIGINAL, _REPLY)}:
            named = [nested(_ORIGINAL, told[_ORIGINAL])]
            named += [attribute(kind, told[kind]) for kind in (_ID, _ZONE) if kind in told]
            yield answer[: _CONNECTION.size] + b"".join(named)


def _source(told: bytes) -> bytes:
    """Whose packets one direction of a connection is."""
    ends = attributes(attributes(told)[_IP])
    return ends.get(_SOURCE4) or ends.get(_SOURCE6, b"")
