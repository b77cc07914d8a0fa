"""The network: two machines, and from inside one of them a try at everything that it must not reach, and that it must."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from vmrunner.addresses import gateway
from vmrunner.forge.addresses import forge_host
from vmrunner.hypervisor.network import bridge_name
from vmrunner.isolation.companion import Companion
from vmrunner.isolation.ears import Ears
from vmrunner.isolation.lab import Cell, Lab
from vmrunner.policy import CLOSED, Policy, Reach

_PUBLIC, _RESOLVER = "192.0.2.1", "192.0.2.53"  # addresses for documentation: nobody has them, and they are routed like any other
_PORT = 8080  # of the neighbour
_ON_THE_WAY = 0.5  # seconds that a frame takes from one machine to the other's words
_MOST_PORTS = 100
_AT_THE_HOST = (
    "another mac",
    "another address",
    "a neighbours address",
    "a neighbour altogether",
    "no address",
    "arp for the gateway",
    "arp with another mac",
    "arp from another mac",
    "ipv6",
    "router advertisement",
    "vlan",
)
_AT_THE_NEIGHBOUR = ("dhcp offer", "multicast", "broadcast", "arp to a neighbour", "straight to a neighbour")


@dataclass(frozen=True)
class _Try:
    group: str
    what: str
    command: list[Any]
    allowed: bool = False
    goes_to: IPv4Address | None = None  # a packet that leaves the host for it has got through, answer or not
    mark: str = ""  # a frame that arrives with it has got through: at the host, or for the group `neighbour` there


class Matrix:
    """What is tried under one policy."""

    def __init__(self, lab: Lab, policy: Policy) -> None:
        self._lab, self._policy = lab, policy
        self._forge = lab.forge()
        self._gateway = str(gateway(lab.settings.libvirt.subnet))

    def cells(self) -> Iterator[Cell]:
        """All of it. Raises HypervisorError without root, MachineError where a machine does not do its part."""
        with ExitStack() as stack:
            ears = stack.enter_context(closing(Ears(bridge_name(self._lab.settings.manager))))
            neighbour = stack.enter_context(closing(_Neighbour(self._lab, self._policy, self._gateway)))
            port = _own_ports(stack, self._gateway)
            tries = [*self._allowed(), *self._closed(), *self._at_host(port), *self._near(neighbour)]
            answers = self._lab.answers("probe.py", "try", json.dumps([each.command for each in tries]), policy=self._policy.name)
            heard = {"spoofing": ears.marks, "neighbour": neighbour.marks()}
        for each, answered in zip(tries, answers, strict=True):
            got = answered or each.goes_to in ears.left or each.mark in heard.get(each.group, ())
            yield Cell(self._policy.name, each.group, each.what, bool(got), each.allowed)

    def _allowed(self) -> Iterator[_Try]:
        for at in self._forge:  # it has to answer: a refusal may be another firewall's of this host
            yield _Try("forge", f"{at.address} port {at.port}", ["connect", str(at.address), at.port], True)
        name, may_ask = forge_host(self._lab.settings.forge_url), self._policy.reach is not Reach.NONE
        if name and not name.replace(".", "").isdigit():
            yield _Try("DNS", f"our resolver, for {name}", ["dns", self._gateway, name], may_ask)
        yield _Try("internet", f"{_PUBLIC} port 443", ["tcp", _PUBLIC, 443], self._policy.reach is Reach.INTERNET, IPv4Address(_PUBLIC))
        yield _Try("DNS", f"another resolver, {_RESOLVER}", ["dns", _RESOLVER, name or "forge.example"], False, IPv4Address(_RESOLVER))
        for to in self._policy.allow:
            if not to.name and to.protocol == "tcp":
                address = to.host[0] if not isinstance(to.host, str) else IPv4Address(0)
                yield _Try("allowed", f"{address} port {to.ports[0]}", ["tcp", str(address), to.ports[0]], True, address)

    def _closed(self) -> Iterator[_Try]:
        """One address of each range that is not the internet; those that never leave a machine, or are multicast, are left out."""
        metadata = IPv4Address("169.254.169.254")
        forge = {at.address for at in self._forge}
        for block in CLOSED:
            address = metadata if metadata in block else block[77]
            if block[0].is_loopback or block[0].is_multicast or str(block).startswith("0.") or address in forge:
                continue
            if any(not isinstance(to.host, str) and address in to.host for to in self._policy.allow):
                continue
            yield _Try("private", f"{address} port 80", ["tcp", str(address), 80], False, address)

    def _at_host(self, port: int) -> Iterator[_Try]:
        open_anyway = {(str(at.address), at.port) for at in self._forge}
        open_anyway |= {(self._gateway, 53)}
        yield _Try("host", "the gateway by ICMP", ["ping", self._gateway])
        yield _Try("host", f"the gateway, TCP port {port}, opened for this", ["tcp", self._gateway, port])
        yield _Try("host", f"the gateway, UDP port {port}, opened for this", ["udp", self._gateway, port])
        addresses = sorted({self._gateway, *_addresses()})
        for kind in ("tcp", "udp"):
            for number in sorted(_listening(kind))[:_MOST_PORTS]:
                for address in addresses:
                    if (address, number) not in open_anyway:
                        yield _Try("host", f"{address}, {kind.upper()} port {number}", [kind, address, number])
        yield _Try("host", "a shared folder, or a socket to the host", ["shared"])

    def _near(self, neighbour: _Neighbour) -> Iterator[_Try]:
        address, mac = neighbour.address, neighbour.mac
        yield _Try("neighbour", "TCP", ["tcp", address, _PORT])
        yield _Try("neighbour", "UDP", ["udp", address, _PORT])
        yield _Try("neighbour", "ICMP", ["ping", address])
        for group, names in (("spoofing", _AT_THE_HOST), ("neighbour", _AT_THE_NEIGHBOUR)):
            for name in names:
                yield _Try(group, name, ["spoof", name, self._gateway, address, mac], mark=name)


class _Neighbour(Companion):
    """The other machine: it answers on a port, and says which marked frames it has seen."""

    def __init__(self, lab: Lab, policy: Policy, gateway: str) -> None:
        super().__init__(lab, "probe.py", "listen", str(_PORT), gateway, policy=policy.name)
        self.address, _, self.mac = self.first.partition(" ")

    def marks(self) -> set[str]:
        """Those that it has seen so far."""
        time.sleep(_ON_THE_WAY)
        return set(self.lines())


def _own_ports(stack: ExitStack, address: str) -> int:
    """A port of the gateway that somebody listens on for sure, on TCP and UDP; returns its number."""
    tcp = stack.enter_context(socket.create_server((address, 0)))
    port = int(tcp.getsockname()[1])
    udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    udp.bind((address, port))

    def answer() -> None:
        with suppress(OSError):
            while True:
                udp.sendto(b"here", udp.recvfrom(2048)[1])

    threading.Thread(target=answer, daemon=True).start()
    return port


def _listening(kind: str) -> set[int]:
    """The ports that something on this host listens on (proc(5)); of UDP those that are bound and connected to nobody."""
    wanted, found = {"tcp": "0A", "udp": "07"}[kind], set()
    for path in (Path("/proc/net", kind), Path("/proc/net", f"{kind}6")):
        with suppress(OSError):
            for line in path.read_text(encoding="ascii").splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                address, port = local.split(":")
                if state == wanted and address not in {"0100007F", "00000000000000000000000001000000"}:
                    found.add(int(port, 16))
    return found


def _addresses() -> set[str]:
    """This host's IPv4 addresses, loopback aside (/proc/net/fib_trie names each before its line `/32 host LOCAL`)."""
    found, last = set(), ""
    for line in Path("/proc/net/fib_trie").read_text(encoding="ascii").splitlines():
        words = line.split()
        if words and words[0] in {"|--", "+--"}:
            last = words[1]
        elif words[:2] == ["/32", "host"] and words[-1] == "LOCAL" and not last.startswith("127."):
            found.add(last)
    return found
