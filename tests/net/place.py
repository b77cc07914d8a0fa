"""A place for the firewall's rules: a bridge with two stand-in machines, and a world with an
internet, a LAN and a metadata service.

Everything is in network namespaces: this process's own (the rig's) is the host. A stand-in machine
is a namespace whose wire is named and addressed as a machine's tap, so that the rules can't tell
the difference; what real machines see is tested with real machines.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

from vmrunner import files
from vmrunner.model.machine import MachineId
from vmrunner.network.addresses import gateway, paired
from vmrunner.network.names import bridge_name
from vmrunner.resources import folder

PROBE = folder("images") / "guest" / "probe_network.py"
MANAGER, SUBNET, PREFIX = "fw", IPv4Network("10.86.0.0/24"), IPv6Network("fd86::/64")
GATEWAY, GATEWAY6 = str(gateway(SUBNET)), str(gateway(PREFIX))
BRIDGE = bridge_name(MANAGER)
ONE, TWO = MachineId(MANAGER, "00000001"), MachineId(MANAGER, "00000002")
ADDRESSES = {ONE: IPv4Address("10.86.0.11"), TWO: IPv4Address("10.86.0.12")}
FORGE, FORGE_PORT = "203.0.113.10", 3000  # the rig's Gitea, an address of the host
HOST_PUBLIC = "203.0.113.77"  # another address of it
WORLD = "vmr-world"  # the namespace of all that is behind the host
INTERNET, MIRROR, RESOLVER = "198.51.100.10", "198.51.100.20", "198.51.100.53"
LAN, METADATA, CGNAT = "192.168.77.10", "169.254.169.254", "100.64.7.7"
_WORLD = (INTERNET, MIRROR, RESOLVER, LAN, METADATA, CGNAT)
_LINK, _LINK6, _ROUTER = "10.85.0.", "fd85::", "fe80::1/64"
HOST_PUBLIC6, FORGE6 = "2001:db8:77::77", "2001:db8:3::10"  # what the stand-ins' forge has, too
BOTH_FORGE = "both.forge.example"  # a name of its own: others use the rig's forge meanwhile
INTERNET6, MIRROR6, LAN6 = "2001:db8:10::10", "2001:db8:20::20", "fd77::10"
NAT64, SIX_TO_FOUR, TEREDO = "64:ff9b::a00:10", "2002:a00:10::10", "2001:0:a00:10::10"
_WORLD6 = (INTERNET6, MIRROR6, LAN6, NAT64, SIX_TO_FOUR, TEREDO)


def ip(*words: str, check: bool = True) -> None:
    """iproute2's ip."""
    subprocess.run(["ip", *words], check=check, capture_output=True)


def ip_batch(lines: list[str], *words: str) -> None:
    """Many of ip's commands by one program."""
    command = ["ip", *words, "-batch", "-"]
    subprocess.run(command, check=True, capture_output=True, input="\n".join(lines), text=True)


def address6(address: IPv4Address) -> str:
    """What a machine with this address has in IPv6."""
    found = paired(IPv4Interface((address, SUBNET.prefixlen)), PREFIX)
    assert found
    return str(found.ip)


def ask(machine: MachineId, what: list[Any]) -> list[bool]:
    """Try each of these from inside a machine, all at once; whether each got through."""
    probe = [sys.executable, str(PROBE), "try", json.dumps(what)]
    done = subprocess.run(
        ["ip", "netns", "exec", str(machine), *probe],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    answers: list[bool] = json.loads(done.stdout)
    return answers


def namespace(stack: ExitStack, name: str) -> None:
    """An empty one, as long as the stack lasts."""
    ip("netns", "del", name, check=False)
    ip("netns", "add", name)
    stack.callback(ip, "netns", "del", name)
    ip("-n", name, "link", "set", "lo", "up")
    # As in our images; what others say in IPv6 by themselves is dropped, and would be counted.
    ip("netns", "exec", name, "sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6")


def _give6(namespace: str, link: str, address: str, router: str) -> None:
    """As a seed does: this address alone, and no way but this."""
    settings = {"addr_gen_mode": 1, "accept_ra": 0, "disable_ipv6": 0}
    script = "".join(
        f"echo {value} >/proc/sys/net/ipv6/conf/{link}/{key};" for key, value in settings.items()
    )
    ip("netns", "exec", namespace, "sh", "-c", script)
    ip("-n", namespace, "addr", "add", address, "dev", link, "nodad")
    ip("-n", namespace, "route", "add", "default", "via", router)


def listen(stack: ExitStack, where: str, listens: list[tuple[str, int]]) -> None:
    """Answer at these addresses and ports, in a namespace or ("") here, as long as the stack
    lasts.
    """
    inside = ["ip", "netns", "exec", where] if where else []
    command = [*inside, sys.executable, "-m", "tests.net.echo", json.dumps(listens)]
    process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    stack.callback(process.kill)
    assert process.stdout
    assert process.stdout.readline() == "listening\n"


@contextmanager
def written(path: Path, text: str) -> Iterator[None]:
    """A file that says something else for a while."""
    before = path.read_text()
    _write(path, text)
    try:
        yield
    finally:
        _write(path, before)


def _write(path: Path, text: str) -> None:
    """Of a file that others read meanwhile: never a part."""
    if path.is_relative_to("/proc"):
        path.write_text(text)
        return
    files.write_whole(path, text, path.stat().st_mode & 0o777)


@contextmanager
def each_rule_alone() -> Iterator[None]:
    """Where the kernel shows frames on a bridge to the rules for packets (br_netfilter), these stop
    what they should not have to.
    """
    with ExitStack() as stack:
        for program in ("iptables", "ip6tables"):
            shown = Path(f"/proc/sys/net/bridge/bridge-nf-call-{program}")
            if shown.exists():
                stack.enter_context(written(shown, "0"))
        yield


@contextmanager
def _world6() -> Iterator[None]:
    """What the world has in IPv6, and a host that forwards it."""
    with ExitStack() as stack:
        stack.enter_context(written(Path("/proc/sys/net/ipv6/conf/all/forwarding"), "1"))
        # Routers ask for each other from link-local addresses.
        for address in (f"{_LINK6}1/64", _ROUTER):
            ip("addr", "add", address, "dev", "uplink", "nodad")
        _give6(WORLD, "eth0", f"{_LINK6}2/64", f"{_LINK6}1")
        ip("-n", WORLD, "addr", "add", "fe80::2/64", "dev", "eth0", "nodad")
        ip("-6", "route", "add", "default", "via", f"{_LINK6}2")
        for address in _WORLD6:
            ip("-n", WORLD, "addr", "add", f"{address}/128", "dev", "lo", "nodad")
        for address in (HOST_PUBLIC6, FORGE6):
            ip("addr", "add", f"{address}/128", "dev", "lo", "nodad")
            stack.callback(ip, "addr", "del", f"{address}/128", "dev", "lo")
        listen(stack, WORLD, [(address, port) for address in _WORLD6 for port in (53, 80, 443)])
        listen(
            stack, "", [(HOST_PUBLIC6, 53), (HOST_PUBLIC6, 8080), (FORGE6, 3000), (FORGE6, 8080)]
        )
        yield


@contextmanager
def world(*, ipv6: bool = False) -> Iterator[None]:
    """An internet, a LAN, a metadata service behind the host, and the host's other address; each
    answers on some ports.
    """
    with ExitStack() as stack:
        namespace(stack, WORLD)
        ip("link", "del", "uplink", check=False)
        # Not vmr…: what docs/security.md says to allow for vmr+ must not match it.
        ip("link", "add", "uplink", "type", "veth", "peer", "name", "eth0", "netns", WORLD)
        ip("addr", "add", f"{_LINK}1/24", "dev", "uplink")
        ip("link", "set", "uplink", "up")
        ip("-n", WORLD, "addr", "add", f"{_LINK}2/24", "dev", "eth0")
        ip("-n", WORLD, "link", "set", "eth0", "up")
        ip("-n", WORLD, "route", "add", "default", "via", f"{_LINK}1")
        ip("route", "add", "default", "via", f"{_LINK}2")
        for address in _WORLD:
            ip("-n", WORLD, "addr", "add", f"{address}/32", "dev", "lo")
            ip("route", "add", f"{address}/32", "via", f"{_LINK}2")
        ip("addr", "add", f"{HOST_PUBLIC}/32", "dev", "lo")
        stack.callback(ip, "addr", "del", f"{HOST_PUBLIC}/32", "dev", "lo")
        listen(
            stack,
            WORLD,
            [
                (address, port)
                for address in _WORLD
                for port in (53, 80, 443)
                if (address, port) != (RESOLVER, 53)
            ],
        )
        listen(stack, "", [(HOST_PUBLIC, 53), (HOST_PUBLIC, 8080), (FORGE, 8080)])
        if ipv6:
            stack.enter_context(_world6())
        yield


@contextmanager
def bridge() -> Iterator[None]:
    """As libvirt makes it."""
    ip("link", "del", BRIDGE, check=False)
    ip("link", "add", BRIDGE, "type", "bridge")
    try:
        ip("addr", "add", f"{GATEWAY}/{SUBNET.prefixlen}", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        yield
    finally:
        ip("link", "del", BRIDGE)


def stand_in(stack: ExitStack, machine: MachineId, address: IPv4Address) -> None:
    """A machine on the bridge that is there, as long as the stack lasts."""
    name = str(machine)
    namespace(stack, name)
    # A namespace that was deleted a moment ago still has its wires.
    ip("link", "del", machine.tap, check=False)
    peer = f"peer name eth0 netns {name} address {machine.mac}"
    outside = [
        f"link add {machine.tap} type veth {peer}",
        f"link set {machine.tap} master {BRIDGE} up",
        f"link set {machine.tap} type bridge_slave isolated on",
    ]
    inside = [
        f"addr add {address}/{SUBNET.prefixlen} dev eth0",
        "link set eth0 up",
        f"route add default via {GATEWAY}",
    ]
    ip_batch(outside)
    ip_batch(inside, "-n", name)


@contextmanager
def machines(*, ipv6: bool = False, ports: Sequence[int] = (53, 8080)) -> Iterator[None]:
    """Two stand-ins on the bridge that is there, and what listens on these ports of the gateway."""
    with ExitStack() as stack:
        for machine, address in ADDRESSES.items():
            stand_in(stack, machine, address)
        if ipv6:
            hosts = Path("/etc/hosts")
            named = "".join(f"{at} {BOTH_FORGE}\n" for at in (FORGE, FORGE6))
            stack.enter_context(written(hosts, hosts.read_text() + named))
            for at in (f"{GATEWAY6}/{PREFIX.prefixlen}", _ROUTER):
                ip("addr", "add", at, "dev", BRIDGE, "nodad")
            for machine, address in ADDRESSES.items():
                _give6(str(machine), "eth0", f"{address6(address)}/{PREFIX.prefixlen}", GATEWAY6)
        listen(
            stack,
            "",
            [(at, port) for at in (GATEWAY, *([GATEWAY6] if ipv6 else [])) for port in ports],
        )
        for machine, address in ADDRESSES.items():
            listen(
                stack,
                str(machine),
                [(at, 8080) for at in (str(address), *([address6(address)] if ipv6 else []))],
            )
        yield


@contextmanager
def laid_out(*, ipv6: bool = False) -> Iterator[None]:
    """The world, and a bridge with two stand-in machines; all gone at the end."""
    with world(ipv6=ipv6), bridge(), machines(ipv6=ipv6):
        yield
