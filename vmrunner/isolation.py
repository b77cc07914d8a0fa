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
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from vmrunner import oneshot
from vmrunner.addresses import gateway
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
    goes_to: IPv4Address | None = None  # a packet that leaves the host for it has got through, answer or not
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
        self._forge = ForgeAddresses(settings.forge_url, settings.runtime_dir)()
        self._gateway = str(gateway(settings.libvirt.subnet))
        self._patience = "1" if host.kvm else "4"

    def cells(self, policy: Policy) -> Iterator[Cell]:
        """The whole matrix under one policy. Raises HypervisorError without root, MachineError where a machine does not do its part."""
        with ExitStack() as stack:
            ears = stack.enter_context(closing(Ears(bridge_name(self._settings.manager))))
            its_host = stack.enter_context(closing(self._open()))
            neighbour = stack.enter_context(closing(_Neighbour(partial(self._run, its_host), policy, self._gateway, self._host)))
            port = _own_ports(stack, self._gateway)
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
        for at in self._forge:  # it has to answer: a refusal may be another firewall's of this host
            yield _Try("forge", f"{at.address} port {at.port}", ["connect", str(at.address), at.port], True)
        name, may_ask = forge_host(self._settings.forge_url), policy.reach is not Reach.NONE
        if name and not name.replace(".", "").isdigit():
            yield _Try("DNS", f"our resolver, for {name}", ["dns", self._gateway, name], may_ask)
        yield _Try("internet", f"{_PUBLIC} port 443", ["tcp", _PUBLIC, 443], policy.reach is Reach.INTERNET, IPv4Address(_PUBLIC))
        yield _Try("DNS", f"another resolver, {_RESOLVER}", ["dns", _RESOLVER, name or "forge.example"], False, IPv4Address(_RESOLVER))
        for to in policy.allow:
            if not to.name and to.protocol == "tcp":
                address = to.host[0] if not isinstance(to.host, str) else IPv4Address(0)
                yield _Try("allowed", f"{address} port {to.ports[0]}", ["tcp", str(address), to.ports[0]], True, address)

    def _closed(self, policy: Policy) -> Iterator[_Try]:
        """One address of each range that is not the internet; those that never leave a machine, or are multicast, are left out."""
        metadata = IPv4Address("169.254.169.254")
        forge = {at.address for at in self._forge}
        for block in CLOSED:
            address = metadata if metadata in block else block[77]
            if block[0].is_loopback or block[0].is_multicast or str(block).startswith("0.") or address in forge:
                continue
            if any(not isinstance(to.host, str) and address in to.host for to in policy.allow):
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
