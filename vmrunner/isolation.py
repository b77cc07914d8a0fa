"""`vmrunner doctor --isolation`: two machines, and from inside one of them a try at everything that it must not reach, and that it must."""

from __future__ import annotations

import json
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from ipaddress import IPv4Address, IPv4Interface, IPv6Address
from pathlib import Path
from typing import Any

from vmrunner import oneshot
from vmrunner.addresses import gateway, paired
from vmrunner.config import Config
from vmrunner.errors import MachineError, VmrunnerError
from vmrunner.forge.addresses import ForgeAddresses, forge_host
from vmrunner.hypervisor import Output
from vmrunner.hypervisor.host import LibvirtHost
from vmrunner.hypervisor.network import bridge_name
from vmrunner.image.store import Golden
from vmrunner.model import MachineId, Shape
from vmrunner.policy import CLOSED, Policy, Reach
from vmrunner.render import source
from vmrunner.sniff import Ears

_PUBLIC, _RESOLVER = "192.0.2.1", "192.0.2.53"  # addresses for documentation: nobody has them, and they are routed like any other
_PUBLIC6 = "2001:db8::1"  # one, too
_PORT = 8080  # of the neighbour
_TIMEOUT = timedelta(minutes=5)
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
_AT_THE_HOST6 = (
    "another ipv6 address",
    "a link-local address",
    "a neighbours ipv6 address",
    "ipv6 from another mac",
    "advertisement for the gateway",
    "advertisement for a neighbour",
    "advertisement without a mac",
    "advertisement with another mac",
    "advertisement behind a header",
    "advertisement as a fragment",
    "solicitation with another mac",
    "solicitation with two macs",
    "router advertisement of its own",
    "redirect",
    "mld query",
)
_AT_THE_NEIGHBOUR6 = ("dhcpv6 offer", "ipv6 multicast", "solicitation of a neighbour", "straight to a neighbour by ipv6")
_PRIVATE6 = (
    "fd00::77",
    "fe80::77%",
    "fec0::77",
    "64:ff9b::a00:4d",
    "64:ff9b:1::a00:4d",
    "2001:0:a00:4d::77",
    "2002:a00:4d::77",
    "100::77",
    "5f00::77",
)
"""What is not the internet in IPv6; the fourth to seventh lead to 10.0.0.77 where somebody translates them."""
_FREEBIND = 78  # IPV6_FREEBIND: a gateway without machines yet waits for a neighbour that might have its address


@dataclass(frozen=True)
class Cell:
    """One thing that was tried from inside a machine."""

    policy: str
    group: str
    what: str
    is_open: bool
    should_be_open: bool

    @property
    def is_right(self) -> bool:
        """Whether it is as the policy says."""
        return self.is_open is self.should_be_open


@dataclass(frozen=True)
class _Try:
    group: str
    what: str
    command: list[Any]
    allowed: bool = False
    goes_to: IPv4Address | IPv6Address | None = None  # a packet that leaves the host for it has got through, answer or not
    mark: str = ""  # a frame that arrives with it has got through: at the host, or for the group `neighbour` there


class Lab:
    """Where machines are probed: this host's own libvirt, network and rules. `open_host` is called for each machine that runs at once."""

    def __init__(
        self,
        settings: Config,
        open_host: Callable[[], LibvirtHost],
        golden: Golden,
        shape: Shape,
        *,
        snapshot: bool,
        say: Callable[[str], None],
    ) -> None:
        host = open_host()
        self._settings, self._golden, self._shape, self._snapshot, self._say = settings, golden, shape, snapshot, say
        self._open, self._host = open_host, host
        self._ipv6 = settings.network.ipv6
        self._forge = ForgeAddresses(settings.forge_url, settings.runtime_dir, ipv6=self._ipv6 is not None)()
        self._gateway = str(gateway(settings.libvirt.subnet))
        self._gateways = (self._gateway, *([str(gateway(self._ipv6))] if self._ipv6 else []))
        self._patience = "1" if host.kvm else "4"

    def cells(self, policy: Policy) -> Iterator[Cell]:
        """The whole matrix under one policy. Raises HypervisorError without root, MachineError where a machine does not do its part."""
        with ExitStack() as stack:
            ears = stack.enter_context(closing(Ears(bridge_name(self._settings.manager))))
            its_host = stack.enter_context(closing(self._open()))
            neighbour = stack.enter_context(closing(_Neighbour(partial(self._run, its_host), policy, self._gateway, self._host)))
            port = _own_ports(stack, self._gateways)
            tries = [*self._allowed(policy), *self._closed(policy), *self._at_host(port), *self._near(neighbour)]
            output: list[bytes] = []
            command = ["try", json.dumps([each.command for each in tries])]
            code = self._run(
                self._host, policy, command, lambda stream, chunk: output.append(chunk) if stream is Output.STDOUT else None, lambda _: None
            )
            try:
                answers = json.loads(b"".join(output))
            except ValueError:
                raise MachineError(f"The probe ended with exit code {code}, and without its answers.", "Has the image Python?") from None
            heard = {"spoofing": ears.marks, "neighbour": neighbour.marks()}
        for each, answered in zip(tries, answers, strict=True):
            got = answered or each.goes_to in ears.left or each.mark in heard.get(each.group, ())
            yield Cell(policy.name, each.group, each.what, bool(got), each.allowed)

    def _run(
        self,
        host: LibvirtHost,
        policy: Policy,
        command: Sequence[str],
        write: Callable[[Output, bytes], None],
        started: Callable[[MachineId], None],
    ) -> int:
        return oneshot.run(
            host,
            self._settings,
            self._golden,
            ["env", f"PROBE_PATIENCE={self._patience}", "python3", "-c", source("probe.py"), *command],
            shape=self._shape,
            boot_timeout=_TIMEOUT,
            timeout=_TIMEOUT,
            snapshot=self._snapshot,
            network=policy.name,
            write=write,
            say=self._say,
            started=started,
        )

    def _allowed(self, policy: Policy) -> Iterator[_Try]:
        for at in self._forge:
            yield _Try("forge", f"{at.address} port {at.port}", ["tcp", str(at.address), at.port], True, at.address)
        name, may_ask = forge_host(self._settings.forge_url), policy.reach is not Reach.NONE
        if name and ":" not in name and not name.replace(".", "").isdigit():
            yield _Try("DNS", f"our resolver, for {name}", ["dns", self._gateway, name], may_ask)
        publics: list[IPv4Address | IPv6Address] = [IPv4Address(_PUBLIC), *([IPv6Address(_PUBLIC6)] if self._ipv6 else [])]
        for public in publics:
            yield _Try("internet", f"{public} port 443", ["tcp", str(public), 443], policy.reach is Reach.INTERNET, public)
        yield _Try("DNS", f"another resolver, {_RESOLVER}", ["dns", _RESOLVER, name or "forge.example"], False, IPv4Address(_RESOLVER))
        for to in policy.allow:
            if not isinstance(to.host, str) and to.protocol == "tcp":
                address: IPv4Address | IPv6Address = to.host[0]
                yield _Try("allowed", f"{address} port {to.ports[0]}", ["tcp", str(address), to.ports[0]], True, address)

    def _closed(self, policy: Policy) -> Iterator[_Try]:
        """One address of each range that is not the internet; those that never leave a machine, or are multicast, are left out."""
        metadata = IPv4Address("169.254.169.254")
        forge = {at.address for at in self._forge}
        for block in CLOSED:
            address = metadata if metadata in block else block[77]
            if block[0].is_loopback or block[0].is_multicast or str(block).startswith("0.") or address in forge:
                continue
            if not _is_allowed(policy, address):
                yield _Try("private", f"{address} port 80", ["tcp", str(address), 80], False, address)
        for text in _PRIVATE6 if self._ipv6 else ():
            six = IPv6Address(text.rstrip("%"))
            if six not in forge and not _is_allowed(policy, six):
                yield _Try("private", f"{six} port 80", ["tcp", text, 80], False, six)

    def _at_host(self, port: int) -> Iterator[_Try]:
        open_anyway = {(str(at.address), at.port) for at in self._forge}
        open_anyway |= {(self._gateway, 53)}
        for address in self._gateways:
            at = "the gateway" if address == self._gateway else f"the gateway, {address},"
            yield _Try("host", f"{at} by ICMP", ["ping", address])
            yield _Try("host", f"{at.rstrip(',')}, TCP port {port}, opened for this", ["tcp", address, port])
            yield _Try("host", f"{at.rstrip(',')}, UDP port {port}, opened for this", ["udp", address, port])
        addresses = sorted({*self._gateways, *_addresses(), *(_addresses6(bridge_name(self._settings.manager)) if self._ipv6 else ())})
        for kind in ("tcp", "udp"):
            for number in sorted(_listening(kind))[:_MOST_PORTS]:
                for address in addresses:
                    if (address, number) not in open_anyway:
                        yield _Try("host", f"{address}, {kind.upper()} port {number}", [kind, address, number])
        yield _Try("host", "a shared folder, or a socket to the host", ["shared"])

    def _near(self, neighbour: _Neighbour) -> Iterator[_Try]:
        six = paired(IPv4Interface(f"{neighbour.address}/{self._settings.libvirt.subnet.prefixlen}"), self._ipv6)
        forged = ((_AT_THE_HOST, _AT_THE_NEIGHBOUR), (_AT_THE_HOST6, _AT_THE_NEIGHBOUR6))
        of_both = zip(("", " over IPv6"), (neighbour.address, *([str(six.ip)] if six else [])), self._gateways, forged, strict=False)
        for over, address, its_gateway, (at_the_host, at_the_neighbour) in of_both:
            yield _Try("neighbour", f"TCP{over}", ["tcp", address, _PORT])
            yield _Try("neighbour", f"UDP{over}", ["udp", address, _PORT])
            yield _Try("neighbour", f"ICMP{over}", ["ping", address])
            for group, names in (("spoofing", at_the_host), ("neighbour", at_the_neighbour)):
                for name in names:
                    yield _Try(group, name, ["spoof", name, its_gateway, address, neighbour.mac], mark=name)


class _Neighbour:
    """The other machine: it answers on a port, and says which marked frames it has seen."""

    def __init__(self, run: Callable[..., int], policy: Policy, gateway: str, host: LibvirtHost) -> None:
        self._host = host
        self._machine: MachineId | None = None
        self._lines: queue.Queue[str] = queue.Queue()
        self._text = b""
        self._failure: VmrunnerError | None = None
        self._thread = threading.Thread(target=self._live, args=(run, policy, gateway), daemon=True)
        self._thread.start()
        while True:
            with suppress(queue.Empty):
                self.address, _, self.mac = self._lines.get(timeout=0.5).partition(" ")
                return
            if not self._thread.is_alive():
                raise self._failure or MachineError("The neighbour ended before it listened.", "Has the image Python?")

    def _live(self, run: Callable[..., int], policy: Policy, gateway: str) -> None:
        try:
            run(policy, ["listen", str(_PORT), gateway], self._hear, self._began)
        except VmrunnerError as error:  # its end is always one: it listens until it is destroyed
            self._failure = error

    def _began(self, machine: MachineId) -> None:
        self._machine = machine

    def _hear(self, stream: Output, chunk: bytes) -> None:
        if stream is Output.STDOUT:
            *lines, self._text = (self._text + chunk).split(b"\n")
            for line in lines:
                self._lines.put(line.decode(errors="replace"))

    def marks(self) -> set[str]:
        """Those that it has seen so far."""
        seen = set()
        with suppress(queue.Empty):
            while True:
                seen.add(self._lines.get(timeout=0.5))
        return seen

    def close(self) -> None:
        """Destroy it."""
        if self._machine is None:
            self._thread.join()
            return
        with suppress(VmrunnerError):  # whoever waits for its end destroys it, too, and one finds files that are gone
            self._host.destroy(self._machine)
        self._thread.join()
        self._host.destroy(self._machine)


def _own_ports(stack: ExitStack, addresses: Sequence[str]) -> int:
    """A port of the gateway that somebody listens on for sure, on TCP and UDP, at each of its addresses; returns its number."""
    port = 0
    for address in addresses:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            listener = stack.enter_context(socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind))
            if ":" in address:
                listener.setsockopt(socket.IPPROTO_IPV6, _FREEBIND, 1)
            listener.bind((address, port))
            port = int(listener.getsockname()[1])
            if kind is socket.SOCK_STREAM:
                listener.listen()
            else:
                threading.Thread(target=_answer, args=(listener,), daemon=True).start()
    return port


def _answer(listener: socket.socket) -> None:
    with suppress(OSError):
        while True:
            listener.sendto(b"here", listener.recvfrom(2048)[1])


def _is_allowed(policy: Policy, address: IPv4Address | IPv6Address) -> bool:
    return any(not isinstance(to.host, str) and address in to.host for to in policy.allow)


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


def _addresses6(bridge: str) -> set[str]:
    """This host's IPv6 addresses, loopback aside (/proc/net/if_inet6, with the scope 20 for link-local ones: only the bridge's is near)."""
    found = set()
    with suppress(OSError):  # a kernel without IPv6
        for line in Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines():
            digits, _, _, scope, _, name = line.split()
            address = IPv6Address(bytes.fromhex(digits))
            if not address.is_loopback and (scope != "20" or name == bridge):
                found.add(f"{address}%" if scope == "20" else str(address))
    return found
