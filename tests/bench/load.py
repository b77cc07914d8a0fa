"""What a job's network and disk carry: a download and writes with fsync in a machine with our
rules, and in the very same QEMU by hand, on a plain bridge without them.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from ipaddress import IPv4Interface, IPv4Network
from typing import Any

from tests.bench.common import LIFE, ground, say
from tests.bench.floor import TAP, Floor
from tests.bench.life import MEMORY, floor_of
from tests.forge.gitea import Site
from tests.net.place import INTERNET, WORLD, ip, world
from tests.prepare import GITEA
from vmrunner.machine import seed
from vmrunner.network.addresses import gateway

PORT, SIZE, WRITES, BLOCK = 9444, 128 << 20, 1000, 64 << 10
RULES, PLAIN = "with vmrunner's rules", "plain bridge, by hand"
DOWNLOAD, FSYNC = "download, MiB/s", "writes of 64 KiB with fsync, per second"
AIMS = {DOWNLOAD: 0.9, FSYNC: 0.95}
_BRIDGE, _SUBNET = "plain", IPv4Network("10.83.0.0/24")
# What arrives last is the machine's word; the clock is the host's.
_SERVER = """
import json, socket, sys, time
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
content = memoryview(bytes(int(sys.argv[3])))
print("listening", flush=True)
while True:
    peer, _ = server.accept()
    peer.recv(1)
    began = time.monotonic()
    peer.sendall(content)
    peer.recv(1)
    arrived = time.monotonic()
    peer.recv(1)
    print(json.dumps([arrived - began, time.monotonic() - arrived]), flush=True)
"""
_GUEST = """
import os, socket, sys
address, port, size, writes, block = sys.argv[1], *map(int, sys.argv[2:])
server = socket.create_connection((address, port))
into = memoryview(bytearray(1 << 20))
file = os.open("/var/tmp/written", os.O_CREAT | os.O_WRONLY)
content = os.urandom(block)
os.write(file, content)
os.fsync(file)
server.sendall(b"b")
while size:
    size -= server.recv_into(into) or sys.exit("it ended early")
server.sendall(b"a")
for _ in range(writes):
    os.write(file, content)
    os.fsync(file)
server.sendall(b"w")
"""
_COMMAND = ["python3", "-c", _GUEST, INTERNET, *map(str, (PORT, SIZE, WRITES, BLOCK))]


def side_by_side(site: Site, runs: int) -> dict[str, Any]:
    """Medians of both sides, in turns, and what of the plain one ours is."""
    place = ground(site, "boot")
    taken: dict[str, list[list[float]]] = {RULES: [], PLAIN: []}
    with ExitStack() as stack:
        stack.enter_context(world())
        plain, state = floor_of(place, IPv4Interface(f"{_SUBNET[9]}/{_SUBNET.prefixlen}"))
        stack.enter_context(_bridge())
        told = stack.enter_context(_server())

        def ours() -> None:
            place.run("exec", "--image", GITEA, "--memory", MEMORY, "--", *_COMMAND)

        ways: dict[str, Callable[[], None]] = {RULES: ours, PLAIN: lambda: _by_hand(plain, state)}
        for number in range(runs):
            for name, way in ways.items():
                way()
                taken[name].append(json.loads(told()))
            say(
                f"load {number + 1}/{runs}: "
                + ", ".join(f"{name} {_rates(*each[-1])}" for name, each in taken.items())
            )
    found: dict[str, Any] = {
        name: _medians([_rates(*each) for each in values]) for name, values in taken.items()
    }
    found["ratio"] = {what: round(found[RULES][what] / found[PLAIN][what], 3) for what in AIMS}
    return found | {"runs": runs}


def _rates(download: float, writing: float) -> dict[str, float]:
    return {DOWNLOAD: round((SIZE >> 20) / download, 1), FSYNC: round(WRITES / writing, 1)}


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {what: statistics.median(run[what] for run in runs) for what in AIMS}


def _by_hand(floor: Floor, state: str) -> None:
    script = seed.exec_script(_COMMAND, timedelta(seconds=LIFE))
    with floor.alive(state):
        ip("link", "set", TAP, "master", _BRIDGE, "up")
        floor.give(seed.iso(floor.machine, script, floor.address))
        floor.resume()
        floor.await_exit()


@contextmanager
def _bridge() -> Iterator[None]:
    """One that nobody's rules know; the world knows the way back to it."""
    ip("link", "add", _BRIDGE, "type", "bridge")
    try:
        ip("addr", "add", f"{gateway(_SUBNET)}/{_SUBNET.prefixlen}", "dev", _BRIDGE)
        ip("link", "set", _BRIDGE, "up")
        yield
    finally:
        ip("link", "del", _BRIDGE)


@contextmanager
def _server() -> Iterator[Callable[[], str]]:
    """What the server tells of each machine, as a line."""
    command = [sys.executable, "-c", _SERVER, INTERNET, str(PORT), str(SIZE)]
    with subprocess.Popen(
        ["ip", "netns", "exec", WORLD, *command], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout
            assert server.stdout.readline() == "listening\n"
            yield server.stdout.readline
        finally:
            server.kill()
