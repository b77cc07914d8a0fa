"""A way to the internet of 1400 bytes whose routers tell nobody: what machines, their containers
and containers in those fetch arrives.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.net.host import at
from tests.net.place import (
    BRIDGE,
    INTERNET,
    INTERNET6,
    ONE,
    PREFIX,
    WORLD,
    each_rule_alone,
    ip,
    ip_batch,
    laid_out,
    namespace,
)
from tests.net.test_firewall import admit, build, without
from vmrunner.network.firewall import Firewall

NARROW, PORT, SIZE = 1400, 9443, 1 << 20
# Whoever connects gets this much, and is asked for as much.
SERVER = """
import socket, sys, threading
size = int(sys.argv[2])
def serve(peer):
    with peer:
        peer.sendall(bytes(size))
        left = size
        while left and (got := len(peer.recv(65536))):
            left -= got
        peer.sendall(b"got it")
server = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
print("listening", flush=True)
while True:
    peer, _ = server.accept()
    threading.Thread(target=serve, args=(peer,), daemon=True).start()
"""
# Also what is bigger only until a network card cuts it: see `small`.
HOLE = """
table inet narrow {{
  chain there {{ type filter hook input priority 0; meta length > {size} drop; }}
  chain back {{ type filter hook output priority 0; meta length > {size} drop; }}
}}
"""
BEHIND = "table ip behind { chain nat { type nat hook postrouting priority srcnat; masquerade; }; }"


@pytest.fixture(scope="module", autouse=True)
def place() -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(each_rule_alone())
        stack.enter_context(laid_out(ipv6=True))
        inside(WORLD, "nft", "-f", "-", told=HOLE.format(size=NARROW))
        for where in (WORLD, str(ONE)):
            small(where, "eth0")
        box(stack, "vmr-box", str(ONE), 30)
        box(stack, "vmr-inner", "vmr-box", 31)
        command = [sys.executable, "-c", SERVER, str(PORT), str(SIZE)]
        server = stack.enter_context(
            subprocess.Popen(
                ["ip", "netns", "exec", WORLD, *command], stdout=subprocess.PIPE, text=True
            )
        )
        stack.callback(server.kill)
        assert server.stdout
        assert server.stdout.readline() == "listening\n"
        yield


def inside(where: str, *words: str, told: str = "") -> None:
    command = ["ip", "netns", "exec", where, *words]
    subprocess.run(command, input=told, text=True, check=True, capture_output=True)


def small(where: str, link: str) -> None:
    """No packet leaves here that is still to be cut."""
    ip("-n", where, "link", "set", link, "gso_max_segs", "1")


def box(stack: ExitStack, name: str, behind: str, number: int) -> None:
    """A container of a machine, or of a container, as Docker makes it: it thinks of 1500 bytes."""
    namespace(stack, name)
    net = f"198.18.{number}"
    ip("-n", behind, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
    ip_batch([f"addr add {net}.1/24 dev {name}", f"link set {name} up"], "-n", behind)
    ip_batch(
        [
            f"addr add {net}.2/24 dev eth0",
            "link set eth0 up",
            f"route add default via {net}.1",
        ],
        "-n",
        name,
    )
    small(name, "eth0")
    inside(behind, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
    inside(behind, "nft", "-f", "-", told=BEHIND)


@pytest.fixture
def firewall(tmp_path: Path) -> Iterator[Firewall]:
    made = build(tmp_path, ipv6=PREFIX)
    admit(made, "internet")
    yield made
    made.remove()


@pytest.fixture(params=["the host's own link is narrow", "mtu = 1400"])
def known(request: pytest.FixtureRequest) -> Iterator[str]:
    """Who knows how narrow the way is: the host, or its admin, who says it to the network."""
    tight = {BRIDGE: "", "eth0": str(ONE)} if request.param == "mtu = 1400" else {"uplink": ""}

    def resize(size: int) -> None:
        for link, where in tight.items():
            ip(*(["-n", where] if where else []), "link", "set", link, "mtu", str(size))

    resize(NARROW)
    yield request.param
    resize(1500)


def fetches(where: str, address: str, patience: float = 20) -> bool:
    """Whether so much comes and goes, with no rest of so many seconds."""
    with at(Path(f"/run/netns/{where}")):
        client = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    with client:
        client.settimeout(patience)
        try:
            client.connect((address, PORT))
            left = SIZE
            while left:
                left -= len(client.recv(min(left, 65536))) or left
            client.sendall(bytes(SIZE))
            return client.recv(99) == b"got it"
        except TimeoutError:
            return False


PLACES = {
    "a machine": (str(ONE), INTERNET),
    "a machine by IPv6": (str(ONE), INTERNET6),
    "a container": ("vmr-box", INTERNET),
    "a container in a container": ("vmr-inner", INTERNET),
}


def test_what_is_fetched_arrives(firewall: Firewall, known: str) -> None:
    assert {name: fetches(*each) for name, each in PLACES.items()} == dict.fromkeys(PLACES, True)


def test_without_the_rule_it_does_not(firewall: Firewall) -> None:
    ip("link", "set", "uplink", "mtu", str(NARROW))
    try:
        without("inet", "segments", "maxseg")
        assert not fetches(*PLACES["a container"], patience=1)
        assert not fetches(*PLACES["a machine by IPv6"], patience=1)
    finally:
        ip("link", "set", "uplink", "mtu", "1500")


def test_where_nobody_knows_it_does_not(firewall: Firewall) -> None:
    """So the network's `mtu` is needed there."""
    assert not fetches(*PLACES["a container"], patience=1)
