"""Runs inside a machine and tries to get out of it. Stands alone, with Python's own library: machines are given its text.

`probe.py try '[["tcp", "192.0.2.1", 80], …]'` tries everything at once and prints a list of booleans: whether an answer came. `tcp`
and `udp` take a refusal for one (the packet was there), `connect` and `echo` don't: a firewall may have said it. `ping` wants an echo,
`dns` an answer with an address. `spoof` sends a forged frame and is false: who listens elsewhere knows.

`probe.py listen PORT GATEWAY` answers on TCP and UDP, and prints its address and MAC, then the mark of each marked frame that arrives.
"""

import json
import os
import re
import selectors
import socket
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

PATIENCE = float(os.environ.get("PROBE_PATIENCE", "0.7"))  # seconds
MARK = re.compile(rb"<mark ([a-z0-9 -]+)>")
EVERYONE, ALL_NODES = "ff:ff:ff:ff:ff:ff", "33:33:00:00:00:01"
IP4, ARP, VLAN, IP6 = 0x0800, 0x0806, 0x8100, 0x86DD


def exchange(kind: socket.SocketKind, address: str, port: int) -> None:
    """Connect; of a datagram see the answer, too. Raises OSError, ConnectionRefusedError where somebody says no."""
    with socket.socket(socket.AF_INET, kind) as connection:
        connection.settimeout(PATIENCE)
        connection.connect((address, port))
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
    """Whether somebody says yes or no."""
    try:
        exchange(kind, address, port)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True


def dns(server: str, name: str) -> bool:
    """Whether this server answers with an address (RFC 1035)."""
    asked = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0" + struct.pack("!HH", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.settimeout(PATIENCE)
        try:
            connection.connect((server, 53))
            connection.send(struct.pack("!HHHHHH", 4711, 0x100, 1, 0, 0, 0) + asked)
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
        raw.settimeout(PATIENCE)
        body = struct.pack("!HH", 4711, 1) + b"vmrunner"
        head = struct.pack("!BBH", 8, 0, checksum(struct.pack("!BBH", 8, 0, 0) + body))
        try:
            raw.sendto(head + body, (address, 0))
            while True:  # the socket hears every echo of this machine
                answer, (source, _) = raw.recvfrom(2048)
                if source == address and answer[20] == 0:
                    return True
        except OSError:
            return False


def shared() -> bool:
    """Whether there is a way to the host beside the network: a shared folder, or a socket."""
    with open("/proc/mounts") as file:
        return os.path.exists("/dev/vsock") or any(line.split()[2] in {"9p", "virtiofs"} for line in file)


# ---- forged frames, each with a mark by which a listener knows it ----


def mark(name: str) -> bytes:
    """What MARK finds."""
    return f"<mark {name}>".encode()


def packet(source: str, target: str, name: str, ports: "tuple[int, int]" = (9, 9)) -> bytes:
    """IPv4 and UDP, without a UDP checksum."""
    content = mark(name)
    datagram = struct.pack("!HHHH", *ports, 8 + len(content), 0) + content
    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(datagram), 1, 0, 64, socket.IPPROTO_UDP, 0) + addresses
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + datagram


def arp(operation: int, mac: str, address: str, asked: str, name: str) -> bytes:
    """1 asks, 2 answers."""
    sender = bytes.fromhex(mac.replace(":", "")) + socket.inet_aton(address)
    return struct.pack("!HHBBH", 1, IP4, 6, 4, operation) + sender + bytes(6) + socket.inet_aton(asked) + mark(name)


def icmp6(name: str, kind: int) -> bytes:
    """To all nodes: 128 is an echo request, 134 a router advertisement."""
    body = bytes([kind, 0, 0, 0]) + bytes(12) + mark(name)
    addresses = socket.inet_pton(socket.AF_INET6, "fe80::1") + socket.inet_pton(socket.AF_INET6, "ff02::1")
    return struct.pack("!IHBB", 0x60000000, len(body), socket.IPPROTO_ICMPV6, 255) + addresses + body


def frames(mac: str, address: str, gateway: str, router: str, peer: str, peer_mac: str) -> "dict[str, tuple[str, str, int, bytes]]":
    """Source, target, type and content of each, by name. `router` is the gateway's MAC, `peer` the neighbour's address."""
    stranger, nowhere = "52:54:00:ff:ff:ff", "0.0.0.0"  # noqa: S104 — as one asks DHCP
    return {
        "honest": (mac, router, IP4, packet(address, gateway, "honest")),
        "another mac": (stranger, router, IP4, packet(address, gateway, "another mac")),
        "another address": (mac, router, IP4, packet("192.0.2.99", gateway, "another address")),
        "a neighbours address": (mac, router, IP4, packet(peer, gateway, "a neighbours address")),
        "a neighbour altogether": (peer_mac, router, IP4, packet(peer, gateway, "a neighbour altogether")),
        "no address": (mac, EVERYONE, IP4, packet(nowhere, "255.255.255.255", "no address", (68, 67))),
        "arp for the gateway": (mac, EVERYONE, ARP, arp(2, mac, gateway, gateway, "arp for the gateway")),
        "arp with another mac": (mac, EVERYONE, ARP, arp(2, peer_mac, address, address, "arp with another mac")),
        "arp from another mac": (peer_mac, EVERYONE, ARP, arp(2, mac, address, address, "arp from another mac")),
        "ipv6": (mac, ALL_NODES, IP6, icmp6("ipv6", 128)),
        "router advertisement": (mac, ALL_NODES, IP6, icmp6("router advertisement", 134)),
        "vlan": (mac, router, VLAN, struct.pack("!HH", 7, IP4) + packet(address, gateway, "vlan")),
        "dhcp offer": (mac, EVERYONE, IP4, packet(address, "255.255.255.255", "dhcp offer", (67, 68))),
        "multicast": (mac, "01:00:5e:00:00:fb", IP4, packet(address, "224.0.0.251", "multicast", (5353, 5353))),
        "broadcast": (mac, EVERYONE, IP4, packet(address, "255.255.255.255", "broadcast")),
        "arp to a neighbour": (mac, EVERYONE, ARP, arp(1, mac, address, peer, "arp to a neighbour")),
        "straight to a neighbour": (mac, peer_mac, IP4, packet(address, peer, "straight to a neighbour")),
    }


def interface() -> str:
    """The one that is not the loopback."""
    return next(name for _, name in socket.if_nameindex() if name != "lo")


def own(gateway: str) -> "tuple[str, str]":
    """This machine's address and MAC."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection, open(f"/sys/class/net/{interface()}/address") as file:
        connection.connect((gateway, 9))
        return connection.getsockname()[0], file.read().strip()


def spoof(name: str, gateway: str, peer: str, peer_mac: str) -> bool:
    """Send one of the forged frames."""
    address, mac = own(gateway)
    with open("/proc/net/arp") as file:
        router = next((line.split()[3] for line in file if line.split()[0] == gateway), EVERYONE)
    source, target, kind, content = frames(mac, address, gateway, router, peer, peer_mac)[name]
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
        listener = socket.socket(socket.AF_INET, kind)
        listener.bind(("", port))
        if kind is socket.SOCK_STREAM:
            listener.listen(64)
        waiting.register(listener, selectors.EVENT_READ)
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
    raw.bind((interface(), 0))
    waiting.register(raw, selectors.EVENT_READ)
    while True:
        for key, _ in waiting.select():
            if key.fileobj is raw:
                content, (_, _, direction, *_) = raw.recvfrom(65536)
                if direction != 4:  # PACKET_OUTGOING
                    for found in MARK.findall(content):
                        print(found.decode(), flush=True)
            elif key.fileobj.type == socket.SOCK_STREAM:
                key.fileobj.accept()[0].close()
            else:
                key.fileobj.sendto(b"echo", key.fileobj.recvfrom(2048)[1])


KINDS = {
    "tcp": partial(reaches, socket.SOCK_STREAM),
    "udp": partial(reaches, socket.SOCK_DGRAM),
    "connect": partial(answers, socket.SOCK_STREAM),
    "echo": partial(answers, socket.SOCK_DGRAM),
    "ping": ping,
    "dns": dns,
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
