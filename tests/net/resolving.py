"""Name servers for stand-in machines, and what these ask them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.net.place import BRIDGE, GATEWAY, ONE, RESOLVER, WORLD
from vmrunner.model.machine import MachineId

_ADDRESSES = """
import sys
from ipaddress import IPv4Address
from vmrunner.network import lookup
server, name = sys.argv[1:]
found = lookup.addresses(IPv4Address(server), [name], ipv6=True, patience=5)
print(*found[name])
"""


@contextmanager
def name_server() -> Iterator[None]:
    """The world's, see upstream.py."""
    command = ["ip", "netns", "exec", WORLD, sys.executable, "-m", "tests.net.upstream", RESOLVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            assert server.stdout.readline() == "listening\n"
            yield
        finally:
            server.kill()


@contextmanager
def resolver(options: Sequence[str]) -> Iterator[None]:
    """The machines', as libvirt starts it; it asks the world's."""
    command = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file="]
    command += ["--bind-dynamic", f"--interface={BRIDGE}", "--except-interface=lo", "--no-resolv"]
    command += [f"--server={RESOLVER}", *(f"--{option}" for option in options)]
    with subprocess.Popen(command) as process:
        try:
            until_it_answers()
            yield
        finally:
            process.kill()


def until_it_answers() -> None:
    """It has started."""
    for _ in range(100):
        if any(asked(ONE, "ok.test", 1, 10, patience=0.1)):
            return
    raise AssertionError("the resolver does not answer")


def asking(
    machine: MachineId, name: str, count: int, rate: float, *, patience: float = 1.0
) -> subprocess.Popen[str]:
    """See asking.py."""
    words = [GATEWAY, name, str(count), str(rate), str(patience)]
    return inside(machine, "-m", "tests.net.asking", *words)


def asked(
    machine: MachineId, name: str, count: int, rate: float, *, patience: float = 1.0
) -> list[float | None]:
    """How long each took, in seconds; None where no answer came."""
    with asking(machine, name, count, rate, patience=patience) as process:
        took: list[float | None] = json.loads(process.communicate()[0])
    return took


def addresses(machine: MachineId, name: str) -> set[str]:
    """What the resolver says that a name is."""
    with inside(machine, "-c", _ADDRESSES, GATEWAY, name) as process:
        return set(process.communicate()[0].split())


def inside(machine: MachineId, *words: str) -> subprocess.Popen[str]:
    """Python in a stand-in machine."""
    command = ["ip", "netns", "exec", str(machine), sys.executable, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
