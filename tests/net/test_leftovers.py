"""The next machine on an address meets nothing of the last one, whatever that has left open."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from itertools import count
from pathlib import Path

import pytest

from tests.net.host import at
from tests.net.place import (
    BRIDGE,
    INTERNET,
    MANAGER,
    WORLD,
    bridge,
    each_rule_alone,
    ip,
    stand_in,
    world,
)
from vmrunner.model.machine import MachineId
from vmrunner.network import leftovers
from vmrunner.network.addresses import Addresses
from vmrunner.network.firewall import Firewall
from vmrunner.network.forge import ForgeAddresses
from vmrunner.network.policy import Bounds, Policy, Reach, pool_policy

SUBNET = IPv4Network("10.86.0.0/29")  # the bridge's gateway is its first address, too
BOUND = 20
PORT, UDP_PORT, OWN_PORT = 8443, 8444, 5555
# Connections that nobody accepts are open all the same. By UDP it answers, and who asks it to
# stay in touch hears from it again and again, until they ask it to stop.
OLD_PEER = """
import socket, sys
tcp, udp = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
tcp.bind((sys.argv[1], int(sys.argv[2])))
tcp.listen(4096)
udp.bind((sys.argv[1], int(sys.argv[3])))
udp.settimeout(0.05)
friends = set()
print("listening", flush=True)
while True:
    try:
        said, whom = udp.recvfrom(2048)
        udp.sendto(said, whom)
        if said == b"stay":
            friends.add(whom)
        if said == b"stop":
            friends.discard(whom)
    except TimeoutError:
        for whom in friends:
            udp.sendto(b"are you there?", whom)
"""


@pytest.fixture(scope="module", autouse=True)
def place() -> Iterator[None]:
    with ExitStack() as stack:
        for each in (each_rule_alone(), world(), bridge()):
            stack.enter_context(each)
        command = [sys.executable, "-c", OLD_PEER, INTERNET, str(PORT), str(UDP_PORT)]
        peers = subprocess.Popen(
            ["ip", "netns", "exec", WORLD, *command], stdout=subprocess.PIPE, text=True
        )
        stack.enter_context(peers)
        stack.callback(peers.kill)
        assert peers.stdout
        assert peers.stdout.readline() == "listening\n"
        yield


@dataclass(frozen=True)
class Machines:
    """Stand-ins on one /29, one after the other."""

    firewall: Firewall
    addresses: Addresses
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    @contextmanager
    def life(self, address: IPv4Address | None = None) -> Iterator[Life]:
        """One that is off at the end: its wire is cut while everything is open."""
        machine = MachineId(MANAGER, f"{next(self.numbers):08x}")
        address = address or self.addresses.take(machine).ip
        with ExitStack() as sockets, ExitStack() as stack:
            stand_in(stack, machine, address)
            stack.callback(ip, "link", "del", machine.tap)
            self.firewall.admit(machine, address, pool_policy("internet"))
            yield Life(machine, address, sockets)

    def end(self, life: Life) -> None:
        """As a pass does it."""
        self.firewall.forget(life.machine)
        self.addresses.sweep((), partial(leftovers.remove, BRIDGE))


@dataclass(frozen=True)
class Life:
    """One stand-in, while it is there."""

    machine: MachineId
    address: IPv4Address
    sockets: ExitStack

    def connect(self, how_many: int, patience: float = 10.0) -> int:
        """Open TCP connections to the old peer; how many come about, each within `patience`
        seconds.
        """
        found = 0
        with at(Path(f"/run/netns/{self.machine}")):
            for _ in range(how_many):
                connection = self.sockets.enter_context(socket.socket())
                connection.settimeout(patience)
                with suppress(TimeoutError):
                    connection.connect((INTERNET, PORT))
                    found += 1
        return found

    def udp(self, port: int = 0) -> socket.socket:
        """A socket of it."""
        with at(Path(f"/run/netns/{self.machine}")):
            made = self.sockets.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        made.bind(("", port))
        made.settimeout(20)
        return made


def ask(asking: socket.socket, what: bytes = b"hello") -> None:
    """A stream, as the kernel calls what went both ways more than once."""
    for _ in range(3):
        asking.sendto(what, (INTERNET, UDP_PORT))
        while asking.recv(99) != what:
            pass


@pytest.fixture
def firewall(tmp_path: Path) -> Iterator[Firewall]:
    made = Firewall(
        MANAGER,
        SUBNET,
        (Policy(Reach.NONE, Reach.NONE), Policy(pool_policy("internet"), Reach.INTERNET)),
        Bounds(connections=BOUND, new_connections=10_000, dns_queries=1000, dns_waiting=1000),
        ForgeAddresses("", tmp_path),
        tmp_path,
    )
    made.ensure()
    yield made
    made.remove()


@pytest.fixture
def machines(firewall: Firewall, tmp_path: Path) -> Machines:
    return Machines(firewall, Addresses(tmp_path, SUBNET))


def counted() -> dict[str, int]:
    """How many elements the sets that count and admit machines have."""
    sets = {}
    for family in ("bridge", "inet"):
        told = subprocess.run(
            ["nft", "-j", "list", "table", family, f"vmr-{MANAGER}"],
            check=True,
            capture_output=True,
            text=True,
        )
        for each in json.loads(told.stdout)["nftables"]:
            for kind in ("set", "map"):
                if kind in each and each[kind]["name"] != "closed":
                    sets[f"{family} {each[kind]['name']}"] = len(each[kind].get("elem", []))
    return sets


def neighbours() -> list[str]:
    told = subprocess.run(
        ["ip", "neigh", "show", "dev", BRIDGE], check=True, capture_output=True, text=True
    )
    return told.stdout.split("\n")[:-1]


def known(*addresses: IPv4Address) -> int:
    """Connections of these machines, or of all."""
    return leftovers.connections(addresses or list(SUBNET.hosts())[1:])


def test_twenty_machines_in_a_row_open_all_that_each_may(machines: Machines) -> None:
    before = counted()
    for number in range(20):
        with machines.life() as life:
            assert life.connect(BOUND) == BOUND, f"machine {number + 1}"
            if number == 0:
                assert life.connect(1, 0.3) == 0, "the bound is one"
            assert known(life.address) >= BOUND
        machines.end(life)
    assert known() == 0
    assert counted() == before
    assert neighbours() == []


def test_streams_by_udp_go_too(machines: Machines) -> None:
    """What went both ways for a while stays for two minutes."""
    for _ in range(6):
        with machines.life() as life:
            for _ in range(BOUND):
                ask(life.udp())
            assert known(life.address) == BOUND
        machines.end(life)
        assert known(life.address) == 0


@pytest.mark.parametrize("cleaned", [True, False], ids=["cleaned", "as it was"])
def test_an_old_peer_does_not_reach_the_next_machine(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, *, cleaned: bool
) -> None:
    if not cleaned:
        monkeypatch.setattr(leftovers, "remove", lambda *_: None)
    with machines.life() as first:
        ask(first.udp(OWN_PORT), b"stay")
    machines.end(first)
    with machines.life(first.address) as second:
        heard = second.udp(OWN_PORT)
        if cleaned:
            heard.settimeout(1)
            with pytest.raises(TimeoutError):
                heard.recv(99)
            heard.settimeout(20)
        else:
            assert heard.recv(99) == b"are you there?"
        ask(heard, b"stop")
    monkeypatch.undo()
    leftovers.remove(BRIDGE, [first.address])
    machines.end(second)


def test_who_is_killed_in_between_is_made_up_for(machines: Machines) -> None:
    with machines.life() as life:
        assert life.connect(BOUND) == BOUND

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        machines.addresses.sweep((), killed)
    taken = {machines.addresses.take(MachineId(MANAGER, f"{number:08x}")).ip for number in range(4)}
    assert life.address not in taken, "it is not free yet"
    machines.end(life)
    assert known() == 0


def test_it_goes_where_the_rules_were_lost_meanwhile(
    machines: Machines, firewall: Firewall
) -> None:
    with machines.life() as life:
        assert life.connect(BOUND) == BOUND
    firewall.remove()
    firewall.ensure()
    machines.end(life)
    assert known() == 0


def test_a_machine_that_lives_keeps_its_connections_when_another_one_goes(
    machines: Machines,
) -> None:
    with machines.life() as living:
        assert living.connect(BOUND) == BOUND
        with machines.life() as other:
            assert other.connect(BOUND) == BOUND
        machines.firewall.forget(other.machine)
        machines.addresses.release(other.machine, partial(leftovers.remove, BRIDGE))
        assert known(other.address) == 0
        assert known(living.address) == BOUND
        assert living.connect(1, 0.3) == 0, "what is counted of it still is"
    machines.end(living)


def test_the_kernel_of_this_host_can() -> None:
    assert leftovers.lack() == ""
