"""Runs inside a machine and tries to get out of it. Stands alone, with Python's own library:
machines are given its text.

`probe_network.py try '[["tcp", "192.0.2.1", 80], …]'` tries everything at once and prints a list of
booleans: whether an answer came. `tcp` and `udp` take a refusal for one (the packet was there),
`connect` and `echo` don't: a firewall may have said it. `ping` wants an echo, `dns` an answer with
an address, `tunnel` many of them, `unanswered` as many beside others that have none. `cache` wants
to be told what a cache has, or has not. `spoof` sends a forged frame and is false: who listens
elsewhere knows. Addresses are of IPv4 or IPv6; a link-local one ends in `%`.

`probe_network.py listen PORT GATEWAY` answers on TCP and UDP, and prints its address and MAC, then
the mark of each marked frame that arrives.
"""

import json
import os
import re
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

PATIENCE = float(os.environ.get("PROBE_PATIENCE", "0.7"))  # seconds
MARK = re.compile(rb"<mark ([a-z0-9 -]+)>")
EVERYONE, ALL_NODES = "ff:ff:ff:ff:ff:ff", "33:33:00:00:00:01"
IP4, ARP, VLAN, IP6 = 0x0800, 0x0806, 0x8100, 0x86DD
ROUTER = bytes([134, 0, 0, 0, 64, 0, 7, 8]) + bytes(8)  # a router advertisement: for half an hour
# A header with destination options, which is padding.
NOTHING = bytes([socket.IPPROTO_ICMPV6, 0, 1, 4, 0, 0, 0, 0])
# The header of a fragment, the only one of its packet.
FRAGMENT = bytes([socket.IPPROTO_ICMPV6, 0, 0, 0, 0, 0, 0, 7])


def at(address: str, port: int = 0) -> "tuple[int, Any]":
    """Family and place, as sockets want them."""
    family, *_, place = socket.getaddrinfo(
        f"{address}{interface()}" if address.endswith("%") else address, port
    )[0]
    return family, place


def exchange(kind: socket.SocketKind, address: str, port: int) -> None:
    """Connect; of a datagram see the answer, too.

    Raises OSError, ConnectionRefusedError where somebody says no.
    """
    family, place = at(address, port)
    with socket.socket(family, kind) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(place)
        connection.getpeername()  # a connection has one, whatever connect() came back with
        if kind is socket.SOCK_DGRAM:
            connection.send(b"hello")
            connection.recv(2048)


def answers(kind: socket.SocketKind, address: str, port: int) -> bool:
    """Whether somebody says yes."""
    try:
        exchange(kind, address, port)
    except OSError:
        return False
    return True


def reaches(kind: socket.SocketKind, address: str, port: int) -> bool:
    """Whether somebody says yes or no; which of them, and when, goes to stderr."""
    began, word = time.monotonic(), "yes"
    try:
        exchange(kind, address, port)
    except ConnectionRefusedError:
        word = "no"
    except OSError:
        return False
    after = time.monotonic() - began
    print(f"{kind.name} {address} {port}: {word} after {after:.2f} s", file=sys.stderr)
    return True


def query(name: str, number: int = 4711, flags: int = 0x100) -> bytes:
    """For an address of this name (RFC 1035)."""
    asked = (
        b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
        + b"\0"
        + struct.pack("!HH", 1, 1)
    )
    return struct.pack("!HHHHHH", number, flags, 1, 0, 0, 0) + asked


def dns(server: str, name: str) -> bool:
    """Whether this server answers with an address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.settimeout(PATIENCE)
        try:
            connection.connect((server, 53))
            connection.send(query(name))
            _, flags, _, answers, *_ = struct.unpack("!HHHHHH", connection.recv(2048)[:12])
        except OSError:
            return False
        return bool(answers and not flags & 15)


def tunnel(server: str, name: str, count: int) -> bool:
    """Whether nearly all of so many queries at once are answered: what could carry data in and
    out.
    """
    answered = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.connect((server, 53))
        for number in range(1, count + 1):
            with suppress(OSError):
                connection.send(query(name, number))
            if number % 20 and number < count:
                continue
            # Not more at once than the buffers on the way hold: what is lost in them nobody has
            # closed.
            connection.settimeout(0.05 if number < count else PATIENCE)
            with suppress(OSError):
                while answered < number and connection.recv(2048):
                    answered += 1
    return answered > 0.9 * count


def unanswered(server: str, name: str, count: int) -> bool:
    """The same of as many queries while so many others have no answer: what could take all places
    of a server whose upstream is silent.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.connect((server, 53))
        for number in range(count):
            # It says that it is an answer, and no server answers those.
            connection.send(query(name, number, 0x8100))
            if number % 20 == 0:
                time.sleep(0.02)  # see above
        return tunnel(server, name, count)


def cache(address: str, port: int) -> bool:
    """Whether the cache of jobs there gives us anything: an entry, or the word that there is
    none.
    """
    asked = f"GET /_apis/artifactcache/cache?keys=k&version=v HTTP/1.0\r\nHost: {address}\r\n\r\n"
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        # Its process may be busy; and it may wait for the forge to tell whose we are.
        connection.settimeout(max(PATIENCE, 5.0))
        try:
            connection.connect((address, port))
            connection.sendall(asked.encode())
            return re.match(rb"HTTP/1\.[01] 2", connection.recv(2048)) is not None
        except OSError:
            return False


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def ping(address: str) -> bool:
    """Whether an ICMP echo comes back."""
    family, place = at(address)
    four = family == socket.AF_INET
    with socket.socket(
        family, socket.SOCK_RAW, socket.IPPROTO_ICMP if four else socket.IPPROTO_ICMPV6
    ) as raw:
        raw.settimeout(PATIENCE)
        body = struct.pack("!HH", 4711, 1) + b"vmrunner"
        # Of IPv4 the kernel shows the whole packet.
        kind, (reply, begins) = (8, (0, 20)) if four else (128, (129, 0))
        # Of IPv6 it makes the checksum itself.
        head = struct.pack("!BBH", kind, 0, checksum(struct.pack("!BBH", kind, 0, 0) + body))
        try:
            raw.sendto(head + body, place)
            while True:  # the socket hears every echo of this machine
                answer, (source, *_) = raw.recvfrom(2048)
                if source == place[0] and answer[begins] == reply:
                    return True
        except OSError:
            return False


def shared() -> bool:
    """Whether there is a way to the host beside the network: a shared folder, or a socket."""
    with open("/proc/mounts") as file:
        return os.path.exists("/dev/vsock") or any(
            line.split()[2] in {"9p", "virtiofs"} for line in file
        )


# ---- forged frames, each with a mark by which a listener knows it ----


def mark(name: str) -> bytes:
    """What MARK finds."""
    return f"<mark {name}>".encode()


def packet(source: str, target: str, name: str, ports: "tuple[int, int]" = (9, 9)) -> bytes:
    """IPv4 and UDP, without a UDP checksum."""
    content = mark(name)
    datagram = struct.pack("!HHHH", *ports, 8 + len(content), 0) + content
    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    head = (
        struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(datagram), 1, 0, 64, socket.IPPROTO_UDP, 0)
        + addresses
    )
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + datagram


def arp(operation: int, mac: str, address: str, asked: str, name: str) -> bytes:
    """1 asks, 2 answers."""
    sender = bytes.fromhex(mac.replace(":", "")) + socket.inet_aton(address)
    return (
        struct.pack("!HHBBH", 1, IP4, 6, 4, operation)
        + sender
        + bytes(6)
        + socket.inet_aton(asked)
        + mark(name)
    )


def six(address: str) -> bytes:
    """An IPv6 address on the wire."""
    return socket.inet_pton(socket.AF_INET6, address)


def packet6(
    source: str,
    target: str,
    name: str,
    content: bytes,
    protocol: int = socket.IPPROTO_ICMPV6,
    before: bytes = b"",
) -> bytes:
    """IPv6, with the mark behind its end, so that its length is right.

    `before` is an extension header: NOTHING or FRAGMENT.
    """
    next_header = {
        b"": protocol,
        NOTHING: socket.IPPROTO_DSTOPTS,
        FRAGMENT: socket.IPPROTO_FRAGMENT,
    }[before]
    addresses = six(source) + six(target)
    found = 2 if protocol == socket.IPPROTO_ICMPV6 else 6  # where the checksum is
    total = struct.pack(
        "!H", checksum(addresses + struct.pack("!II", len(content), protocol) + content)
    )
    payload = before + content[:found] + total + content[found + 2 :]
    return (
        struct.pack("!IHBB", 6 << 28, len(payload), next_header, 255)
        + addresses
        + payload
        + mark(name)
    )


def datagram6(source: str, target: str, name: str, ports: "tuple[int, int]" = (9, 9)) -> bytes:
    """IPv6 and UDP."""
    return packet6(source, target, name, struct.pack("!HHHH", *ports, 8, 0), socket.IPPROTO_UDP)


def discovery(kind: int, about: str, *macs: str) -> bytes:
    """RFC 4861: 135 solicits (option 1 is the source's MAC), 136 advertises (option 2 is the
    target's MAC).
    """
    options = (
        struct.pack("!BB", kind - 134, 1) + bytes.fromhex(mac.replace(":", "")) for mac in macs
    )
    return (
        struct.pack("!BBHI", kind, 0, 0, 0x60000000 if kind == 136 else 0)
        + six(about)
        + b"".join(options)
    )


def frames(
    mac: str, address: str, gateway: str, router: str, peer: str, peer_mac: str
) -> "dict[str, tuple[str, str, int, bytes]]":
    """Source, target, type and content of each, by name.

    `router` is the gateway's MAC, `peer` the neighbour's address.
    """
    stranger, nowhere = "52:54:00:ff:ff:ff", "0.0.0.0"  # noqa: S104 — as one asks DHCP
    return {
        "honest": (mac, router, IP4, packet(address, gateway, "honest")),
        "another mac": (stranger, router, IP4, packet(address, gateway, "another mac")),
        "another address": (mac, router, IP4, packet("192.0.2.99", gateway, "another address")),
        "a neighbours address": (mac, router, IP4, packet(peer, gateway, "a neighbours address")),
        "a neighbour altogether": (
            peer_mac,
            router,
            IP4,
            packet(peer, gateway, "a neighbour altogether"),
        ),
        "no address": (
            mac,
            EVERYONE,
            IP4,
            packet(nowhere, "255.255.255.255", "no address", (68, 67)),
        ),
        "arp for the gateway": (
            mac,
            EVERYONE,
            ARP,
            arp(2, mac, gateway, gateway, "arp for the gateway"),
        ),
        "arp with another mac": (
            mac,
            EVERYONE,
            ARP,
            arp(2, peer_mac, address, address, "arp with another mac"),
        ),
        "arp from another mac": (
            peer_mac,
            EVERYONE,
            ARP,
            arp(2, mac, address, address, "arp from another mac"),
        ),
        "ipv6": (
            mac,
            ALL_NODES,
            IP6,
            packet6("fe80::1", "ff02::1", "ipv6", bytes([128]) + bytes(15)),
        ),
        "router advertisement": (
            mac,
            ALL_NODES,
            IP6,
            packet6("fe80::1", "ff02::1", "router advertisement", ROUTER),
        ),
        "vlan": (mac, router, VLAN, struct.pack("!HH", 7, IP4) + packet(address, gateway, "vlan")),
        "dhcp offer": (
            mac,
            EVERYONE,
            IP4,
            packet(address, "255.255.255.255", "dhcp offer", (67, 68)),
        ),
        "multicast": (
            mac,
            "01:00:5e:00:00:fb",
            IP4,
            packet(address, "224.0.0.251", "multicast", (5353, 5353)),
        ),
        "broadcast": (mac, EVERYONE, IP4, packet(address, "255.255.255.255", "broadcast")),
        "arp to a neighbour": (
            mac,
            EVERYONE,
            ARP,
            arp(1, mac, address, peer, "arp to a neighbour"),
        ),
        "straight to a neighbour": (
            mac,
            peer_mac,
            IP4,
            packet(address, peer, "straight to a neighbour"),
        ),
    }


def frames6(
    mac: str, address: str, gateway: str, peer: str, peer_mac: str
) -> "dict[str, tuple[str, str, int, bytes]]":
    """The same in IPv6, for machines that have it."""
    solicit, advertise, stranger = 135, 136, "52:54:00:ff:ff:ff"

    def made(name: str, content: bytes, before: bytes = b"") -> "tuple[str, str, int, bytes]":
        return mac, ALL_NODES, IP6, packet6(address, "ff02::1", name, content, before=before)

    def sent(
        name: str, source: str, target: str, ports: "tuple[int, int]" = (9, 9)
    ) -> "tuple[str, str, int, bytes]":
        return mac, ALL_NODES, IP6, datagram6(source, target, name, ports)

    return {
        "honest ipv6": sent("honest ipv6", address, gateway),
        "honest solicitation": made("honest solicitation", discovery(solicit, gateway, mac)),
        "honest advertisement": made("honest advertisement", discovery(advertise, address, mac)),
        "another ipv6 address": sent("another ipv6 address", "2001:db8::99", gateway),
        "a link-local address": sent("a link-local address", "fe80::99", gateway),
        "a neighbours ipv6 address": sent("a neighbours ipv6 address", peer, gateway),
        "ipv6 from another mac": (
            stranger,
            ALL_NODES,
            IP6,
            datagram6(address, gateway, "ipv6 from another mac"),
        ),
        "advertisement for the gateway": made(
            "advertisement for the gateway", discovery(advertise, gateway, mac)
        ),
        "advertisement for a neighbour": made(
            "advertisement for a neighbour", discovery(advertise, peer, mac)
        ),
        "advertisement without a mac": made(
            "advertisement without a mac", discovery(advertise, gateway)
        ),
        "advertisement with another mac": made(
            "advertisement with another mac", discovery(advertise, address, peer_mac)
        ),
        "advertisement behind a header": made(
            "advertisement behind a header", discovery(advertise, gateway, mac), NOTHING
        ),
        "advertisement as a fragment": made(
            "advertisement as a fragment", discovery(advertise, gateway, mac), FRAGMENT
        ),
        "solicitation with another mac": made(
            "solicitation with another mac", discovery(solicit, gateway, peer_mac)
        ),
        "solicitation with two macs": made(
            "solicitation with two macs", discovery(solicit, gateway, mac, peer_mac)
        ),
        "router advertisement of its own": made("router advertisement of its own", ROUTER),
        "redirect": made("redirect", bytes([137]) + bytes(7) + six(address) + six(gateway)),
        "mld query": made("mld query", bytes([130]) + bytes(23)),
        "dhcpv6 offer": sent("dhcpv6 offer", address, "ff02::1", (547, 546)),
        "ipv6 multicast": sent("ipv6 multicast", address, "ff02::fb", (5353, 5353)),
        "solicitation of a neighbour": made(
            "solicitation of a neighbour", discovery(solicit, peer, mac)
        ),
        "straight to a neighbour by ipv6": (
            mac,
            peer_mac,
            IP6,
            datagram6(address, peer, "straight to a neighbour by ipv6"),
        ),
    }


def interface() -> str:
    """The one that is not the loopback."""
    return next(name for _, name in socket.if_nameindex() if name != "lo")


def own(gateway: str) -> "tuple[str, str]":
    """This machine's address and MAC."""
    family, place = at(gateway, 9)
    with (
        socket.socket(family, socket.SOCK_DGRAM) as connection,
        open(f"/sys/class/net/{interface()}/address") as file,
    ):
        connection.connect(place)
        return connection.getsockname()[0], file.read().strip()


def spoof(name: str, gateway: str, peer: str, peer_mac: str) -> bool:
    """Send one of the forged frames."""
    address, mac = own(gateway)
    if ":" in gateway:
        made = frames6(mac, address, gateway, peer, peer_mac)
    else:
        with open("/proc/net/arp") as file:
            router = next(
                (line.split()[3] for line in file if line.split()[0] == gateway), EVERYONE
            )
        made = frames(mac, address, gateway, router, peer, peer_mac)
    source, target, kind, content = made[name]
    head = bytes.fromhex((target + source).replace(":", "")) + struct.pack("!H", kind)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((interface(), 0))
        raw.send(head + content)
    return False


def listen(port: int, gateway: str) -> None:
    """Until killed."""
    print(*own(gateway), flush=True)
    waiting = selectors.DefaultSelector()
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        for family in (socket.AF_INET, socket.AF_INET6):
            with suppress(OSError):  # a kernel without IPv6
                listener = socket.socket(family, kind)
                if family is socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind(("", port))
                if kind is socket.SOCK_STREAM:
                    listener.listen(64)
                waiting.register(listener, selectors.EVENT_READ, listener)
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
    raw.bind((interface(), 0))
    waiting.register(raw, selectors.EVENT_READ, raw)
    while True:
        for key, _ in waiting.select():
            heard: socket.socket = key.data
            if heard is raw:
                content, (_, _, direction, *_) = raw.recvfrom(65536)
                if direction != 4:  # PACKET_OUTGOING
                    for found in MARK.findall(content):
                        print(found.decode(), flush=True)
            elif heard.type == socket.SOCK_STREAM:
                heard.accept()[0].close()
            else:
                heard.sendto(b"echo", heard.recvfrom(2048)[1])


KINDS: dict[str, Callable[..., bool]] = {
    "tcp": partial(reaches, socket.SOCK_STREAM),
    "udp": partial(reaches, socket.SOCK_DGRAM),
    "connect": partial(answers, socket.SOCK_STREAM),
    "echo": partial(answers, socket.SOCK_DGRAM),
    "ping": ping,
    "dns": dns,
    "tunnel": tunnel,
    "unanswered": unanswered,
    "cache": cache,
    "shared": shared,
    "spoof": spoof,
}


def main() -> None:
    """The command line."""
    if sys.argv[1] == "listen":
        listen(int(sys.argv[2]), sys.argv[3])
        return
    wanted = json.loads(sys.argv[2])
    with ThreadPoolExecutor(len(wanted)) as pool:
        print(json.dumps(list(pool.map(lambda each: KINDS[each[0]](*each[1:]), wanted))))


if __name__ == "__main__":
    main()
