"""The machines' resolver, dnsmasq with our options, beside stand-in machines and a name server in
the world: whose queries wait, what is cached, which names resolve.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.net import upstream
from tests.net.place import (
    ADDRESSES,
    GATEWAY,
    INTERNET,
    LAN,
    MANAGER,
    MIRROR,
    ONE,
    RESOLVER,
    SUBNET,
    TWO,
    ask,
    bridge,
    machines,
    world,
    written,
)
from tests.net.resolving import addresses, asked, asking, inside, name_server, resolver
from tests.net.test_firewall import without
from vmrunner.model.machine import MachineId
from vmrunner.network import allowed, queries
from vmrunner.network.firewall import Firewall
from vmrunner.network.forge import ForgeAddresses
from vmrunner.network.policy import Bounds, Destination, Policy, Reach, pool_policy

TABLE = f"vmr-{MANAGER}"
BOUNDS = Bounds(connections=1000, new_connections=1000, dns_queries=200, dns_waiting=256)
_ENOUGH = 20.0  # seconds for an answer on a busy computer: it is about whether it comes
POLICIES = (
    Policy(Reach.NONE, Reach.NONE),
    Policy(pool_policy("internet"), Reach.INTERNET),
    Policy(pool_policy("allowlist"), Reach.ALLOWLIST, (Destination.parse("mirror.test:80"),)),
)


@pytest.fixture(scope="module", autouse=True)
def place() -> Iterator[None]:
    with world(), bridge(), machines(ports=(8080,)):
        yield


@pytest.fixture
def firewall(tmp_path: Path) -> Iterator[Firewall]:
    made = build(tmp_path)
    yield made
    made.remove()


def build(folder: Path, bounds: Bounds = BOUNDS) -> Firewall:
    return Firewall(MANAGER, SUBNET, POLICIES, bounds, ForgeAddresses("", folder), folder)


@contextmanager
def resolving(
    firewall: Firewall, *more: str, mode: str = "internet", places: int = 0
) -> Iterator[None]:
    """The resolver as libvirt starts it, and both machines admitted."""
    firewall.ensure()
    for machine, address in ADDRESSES.items():
        firewall.forget(machine)
        firewall.admit(machine, address, pool_policy(mode))
    options = [
        f"dns-forward-max={places}" if places and option.startswith("dns-forward-max") else option
        for option in firewall.dns_options
    ]
    with name_server(), resolver([*options, *more]):
        yield


def count_of(took: list[float | None]) -> int:
    return sum(each is not None for each in took)


def nft(*words: str) -> str:
    return subprocess.run(["nft", *words], check=True, capture_output=True, text=True).stdout


def waiting(machine: MachineId) -> int:
    """Queries of it that are not answered, as the kernel counts them."""
    listed = nft("list", "set", "inet", TABLE, f"waiting-{ADDRESSES[machine]}")
    return len(re.findall(r"\bexpires\b", listed))


def test_a_neighbour_is_answered_beside_one_that_asks_for_a_dead_zone(firewall: Firewall) -> None:
    with resolving(firewall), asking(ONE, "*.slow.test", 0, 200) as attack:
        calm = asked(TWO, "*.ok.test", 30, 10, patience=_ENOUGH)
        assert BOUNDS.dns_waiting / 2 < waiting(ONE) <= BOUNDS.dns_waiting
        attack.kill()
    assert count_of(calm) == 30
    assert firewall.dropped()[ONE] > 0
    assert firewall.dropped()[TWO] == 0


@pytest.mark.long
def test_without_the_bound_and_the_places_nobody_is_answered(firewall: Firewall) -> None:
    """So the test above can fail."""
    with resolving(firewall, places=150):
        nft("flush", "chain", "inet", TABLE, "dns")
        nft("add", "rule", "inet", TABLE, "dns", "udp", "dport", "53", "accept")
        with asking(ONE, "*.slow.test", 0, 200) as attack:
            asked(TWO, "*.early.ok.test", 15, 10)
            assert count_of(asked(TWO, "*.ok.test", 10, 10)) == 0
            attack.kill()


@pytest.mark.long
def test_what_a_machine_that_waits_for_much_may_still_ask(firewall: Firewall) -> None:
    """A job that looks for a host which is away is slowed down, and not cut off."""
    with resolving(firewall):
        asked(ONE, "*.slow.test", 400, 400, patience=0.1)
        few = asked(ONE, "*.few.ok.test", 40, queries.held(BOUNDS) / 2, patience=_ENOUGH)
        assert count_of(few) >= 35
        assert count_of(asked(ONE, "*.many.ok.test", 200, 400)) < 200
        asked(TWO, "ok.test", 110, 10)
        assert waiting(ONE) == 0, "dnsmasq gives up, and so does the count"
        assert count_of(asked(ONE, "*.ok.test", 200, 150, patience=_ENOUGH)) == 200


@pytest.mark.long
@pytest.mark.parametrize("name", ["*.late.test", "*.ok.test"])
def test_a_usual_build_loses_nothing(firewall: Firewall, name: str) -> None:
    """300 names in two seconds."""
    with resolving(firewall):
        assert count_of(asked(ONE, name, 300, 150, patience=_ENOUGH)) == 300
    assert firewall.dropped()[ONE] == 0


@pytest.mark.long
def test_one_name_again_and_again_is_answered(firewall: Firewall) -> None:
    with resolving(firewall), forwarded() as count:
        assert count_of(asked(ONE, "late.test", 1000, 100, patience=_ENOUGH)) == 1000
        assert count() < 100, "the rest came from the cache"
    assert firewall.dropped()[ONE] == 0


@contextmanager
def forwarded() -> Iterator[Callable[[], int]]:
    """How many queries the resolver has asked the world's name server since."""
    rule = f"ip daddr {RESOLVER} udp dport 53 counter"
    nft("add table ip counted; add chain ip counted out { type filter hook output priority 0; }")
    nft(f"add rule ip counted out {rule}")
    try:
        yield lambda: int(re.findall(r"packets (\d+)", nft("list", "table", "ip", "counted"))[0])
    finally:
        nft("delete", "table", "ip", "counted")


SAME = """
import socket, sys
from vmrunner.network.lookup import query
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.connect((sys.argv[1], 53))
client.settimeout(0.002)
for number in range(600):
    client.send(query(7, f"n{number}.slow.test" if number % 2 else "ok.test", 1))
    try:
        client.recv(2048)
    except OSError:
        pass
"""


@pytest.mark.long
@pytest.mark.usefixtures("firewall")
def test_queries_of_one_number_do_not_hide_each_other(tmp_path: Path) -> None:
    """Whose answers would be taken for those of queries that wait."""
    few = build(tmp_path, replace(BOUNDS, dns_waiting=16))
    with resolving(few), inside(ONE, "-c", SAME, GATEWAY) as process:
        assert process.wait() == 0
    assert few.dropped()[ONE] > 100


CONNECT = """
import socket, sys
kept = []
for number in range(6):
    client = socket.socket()
    client.settimeout(0.3)
    try:
        client.connect((sys.argv[1], 53))
        kept.append(client)
    except OSError:
        pass
print(len(kept))
"""


@pytest.mark.long
def test_connections_to_the_resolver_are_few(firewall: Firewall) -> None:
    with resolving(firewall):
        for machine in (ONE, TWO):
            with inside(machine, "-c", CONNECT, GATEWAY) as process:
                assert int(process.communicate()[0]) == queries.LOOKUPS


def test_which_names_resolve(firewall: Firewall) -> None:
    with resolving(firewall):
        fine = {
            "app.localtest.test": {"127.0.0.1", "::1"},
            "127.0.0.9.nip.test": {"127.0.0.9"},
            "zero.test": {"0.0.0.0"},  # noqa: S104 — as its own machine takes it: loopback
            "ok.test": {upstream.PUBLIC},
        }
        assert {name: addresses(ONE, name) for name in fine} == fine
        closed = ["private.test", "192.168.77.10.nip.test", "mixed.test", "both.test"]
        closed += ["metadata.test", "mapped.test"]
        assert {name: addresses(ONE, name) for name in closed} == {name: set() for name in closed}


def test_what_is_of_one_machine_is_made_again_and_goes_with_it(
    firewall: Firewall, tmp_path: Path
) -> None:
    firewall.ensure()
    for machine, address in ADDRESSES.items():
        firewall.admit(machine, address, pool_policy("internet"))
    assert firewall.drift() == ""
    lane = f"asks-{ADDRESSES[ONE]}"
    for change in (
        lambda: nft("flush", "chain", "inet", TABLE, lane),
        lambda: nft("add", "rule", "inet", TABLE, lane, "accept"),
        lambda: nft("delete", "element", "inet", TABLE, "asks", f"{{ {ADDRESSES[ONE]} }}"),
        lambda: nft("delete", "element", "inet", TABLE, "told", f"{{ {ADDRESSES[TWO]} }}"),
    ):
        change()
        assert firewall.drift()
        firewall.ensure()
        assert firewall.drift() == ""
    other = build(tmp_path, replace(BOUNDS, dns_waiting=100))
    other.ensure()
    assert "size 100" in nft("list", "set", "inet", TABLE, f"waiting-{ADDRESSES[ONE]}")
    nft("delete", "element", "inet", TABLE, "asks", f"{{ {ADDRESSES[ONE]} }}")
    for machine in ADDRESSES:
        other.forget(machine)
    listed = nft("list", "table", "inet", TABLE)
    assert not any(str(address) in listed for address in ADDRESSES.values())


@pytest.mark.long
def test_the_probe_of_doctor_finds_the_bound_and_its_absence(
    firewall: Firewall, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROBE_PATIENCE", "2")
    tried = [["unanswered", GATEWAY, "ok.test", BOUNDS.dns_waiting]]
    with resolving(firewall):
        assert ask(ONE, tried) == [False]
        without("inet", "dns", "@held")
        assert ask(TWO, tried) == [True]


OPEN = [["tcp", MIRROR, 80], ["tcp", MIRROR, 443], ["tcp", INTERNET, 80]]
"""Of mirror.test, of cdn.mirror.test."""


def forgotten(firewall: Firewall) -> None:
    """The rules are flushed by somebody, and loaded anew."""
    nft("delete", "table", "inet", TABLE)
    nft("delete", "table", "bridge", TABLE)
    firewall.ensure()
    for machine, address in ADDRESSES.items():
        firewall.admit(machine, address, pool_policy("allowlist"))


@pytest.mark.parametrize(
    "source",
    [
        "hosts",
        pytest.param("host-record", marks=pytest.mark.long),
        pytest.param("address", marks=pytest.mark.long),
    ],
)
def test_an_allowed_name_is_open_whatever_its_source(
    firewall: Firewall, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setattr(allowed, "_AGAIN", 0.0)
    hosts, more = Path("/etc/hosts"), ()
    text = hosts.read_text()
    if source == "hosts":
        text += f"{MIRROR} mirror.test # ours\n{INTERNET} files.mirror.test\n{LAN} amirror.test\n"
    elif source == "host-record":
        more = (f"host-record=mirror.test,{MIRROR}",)
    else:
        more = (f"address=/mirror.test/{MIRROR}",)
    below = source == "hosts"
    with written(hosts, text), resolving(firewall, *more, mode="allowlist"):
        assert addresses(ONE, "mirror.test") == {MIRROR}
        firewall.ensure()
        assert ask(ONE, OPEN) == [True, False, below]
        assert ask(ONE, [["tcp", LAN, 80]]) == [False], "another name's end"
        forgotten(firewall)
        assert ask(ONE, OPEN) == [True, False, below]


@pytest.mark.long
def test_an_allowed_name_stays_open_while_the_resolver_has_it_cached(firewall: Firewall) -> None:
    with resolving(firewall, mode="allowlist"):
        for name, where in {"mirror.test": MIRROR, "cdn.mirror.test": INTERNET}.items():
            assert addresses(ONE, name) == {where}
        assert ask(ONE, OPEN) == [True, False, True]
        firewall.ensure()
        forgotten(firewall)
        assert addresses(ONE, "cdn.mirror.test") == {INTERNET}
        assert ask(ONE, OPEN) == [True, False, True]


def test_what_is_resolved_again_stays_as_long_as_what_is_new(firewall: Firewall) -> None:
    """dnsmasq adds an address each time, and to add what is there does nothing: so a pass makes
    room, and an address that a machine has just been told is not gone a moment later.
    """
    firewall.ensure()
    nft("add", "element", "inet", TABLE, "to-mirror.test", f"{{ {MIRROR} expires 9s }}")
    nft("add", "element", "inet", TABLE, "kept-mirror.test", f"{{ {MIRROR} expires 9s }}")

    def left(kind: str) -> str:
        return nft("list", "set", "inet", TABLE, f"{kind}-mirror.test")

    assert re.search(r"expires \ds", left("kept"))
    firewall.ensure()
    assert MIRROR not in left("to")
    assert re.search(r"expires (1h|59m)", left("kept"))
    nft("add", "element", "inet", TABLE, "to-mirror.test", f"{{ {MIRROR} }}")
    assert re.search(r"expires (1h|59m)", left("to"))


BELIEVED = """
import socket, struct, sys
from vmrunner.network.lookup import query
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.connect((sys.argv[1], 53))
client.settimeout(20)
for number in (1, 2):
    client.send(query(number, "mirror.test", 1))
    print(struct.unpack("!I", client.recv(2048)[-10:-6])[0])
"""


def test_no_answer_is_believed_for_longer_than_its_address_stays(firewall: Firewall) -> None:
    """New, and from the cache."""
    with resolving(firewall), inside(ONE, "-c", BELIEVED, GATEWAY) as process:
        seconds = [int(line) for line in process.communicate()[0].split()]
    assert len(seconds) == 2
    assert all(0 < each <= 1800 for each in seconds), "of the day that the name server says"
