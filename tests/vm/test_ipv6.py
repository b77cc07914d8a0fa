"""What real machines have and reach where IPv6 is asked for beside IPv4: booted, booted with
cloud-init, and cloned.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.ground import Ground
from tests.net import place
from tests.net.place import HOST_PUBLIC6, INTERNET, INTERNET6, LAN6, NAT64, world

pytestmark = pytest.mark.vm
PREFIX, GATEWAY, FORGE = "fd90::/64", "fd90::1", "203.0.113.10"
CELLS: dict[str, tuple[list[Any], bool]] = {
    "the internet": (["tcp", INTERNET6, 443], True),
    "the internet by ICMP": (["ping", INTERNET6], True),
    "the internet in IPv4": (["tcp", INTERNET, 443], True),
    "the forge": (["tcp", FORGE, 3000], True),
    "the gateway's resolver": (["tcp", GATEWAY, 53], False),
    "the gateway by ICMP": (["ping", GATEWAY], False),
    "the host's other address": (["tcp", HOST_PUBLIC6, 8080], False),
    "the LAN": (["tcp", LAN6, 80], False),
    "a way to IPv4 by NAT64": (["tcp", NAT64, 80], False),
}


@pytest.fixture(scope="module", autouse=True)
def outside() -> Iterator[None]:
    with world(ipv6=True):
        yield


@pytest.fixture
def ground(lay_ground: Callable[..., Ground]) -> Ground:
    return lay_ground(start="snapshot", more=f'[network]\nipv6 = "{PREFIX}"\n')


@pytest.mark.long
@pytest.mark.parametrize(
    ("image", "start"),
    [("test-gitea", "boot"), ("test-gitea", "snapshot"), ("test-cloud-init", "boot")],
)
def test_what_a_machine_has_and_reaches(ground: Ground, image: str, start: str) -> None:
    options = ["--image", image, "--memory", "1GiB"]
    if start == "snapshot":
        ground.run("snapshot", "create", *options)
    else:
        options.append("--boot")
    tried = [cell for cell, _ in CELLS.values()]
    script = (
        "hostname; ip -4 route show default | cut -d' ' -f1-3; getent ahostsv4 forge.example "
        "| head -n 1 | cut -d' ' -f1\n"
    )
    script += (
        f"cat /proc/net/if_inet6\nPROBE_PATIENCE=4 python3 - try '{json.dumps(tried)}' <<'PROBE'\n"
    )
    script += f"{place.PROBE.read_text()}\nPROBE\n"
    done = ground.run("exec", *options, "--", "sh", "-c", script)
    assert (": cloned" in done.stderr) is (start == "snapshot")
    name, route, forge, *addresses, answers = done.stdout.splitlines()
    assert (name[:4], route[:17], forge) == ("vmr-", "default via 10.90", FORGE)
    assert dict(zip(CELLS, json.loads(answers), strict=True)) == {
        name: is_open for name, (_, is_open) in CELLS.items()
    }
    own = [
        line.split()[0]
        for line in addresses
        if line.split()[3] == "00" and not line.startswith("0" * 31)
    ]
    assert [digits[:16] for digits in own] == ["fd90" + 12 * "0"], (
        "one address, and none that it made itself"
    )
    if image != "test-cloud-init":
        assert not any(line.startswith("fe80") for line in addresses)


@pytest.mark.long
def test_doctor_tries_ipv6_from_inside(ground: Ground) -> None:
    ground.run("snapshot", "create", "--pool", "main")
    done = ground.run("doctor", "--isolation", "--policy", "internet", "--json", check=False)
    cells = json.loads(done.stdout)
    wrong = [
        f"{cell['group']}: {cell['what']}"
        for cell in cells
        if cell["is_open"] is not cell["should_be_open"]
    ]
    print(done.stderr, *wrong, sep="\n")
    assert (done.returncode, wrong) == (0, [])
    assert {cell["what"] for cell in cells if cell["is_open"]} == {
        f"{FORGE} port 3000",
        "our resolver, for forge.example",
        "192.0.2.1 port 443",
        "2001:db8::1 port 443",
    }
    named = {f"{cell['group']}: {cell['what']}" for cell in cells}
    assert {
        "neighbour: TCP over IPv6",
        "neighbour: solicitation of a neighbour",
        "spoofing: advertisement for the gateway",
        "spoofing: router advertisement of its own",
        "private: fd00::77 port 80",
        "private: fe80::77 port 80",
        f"host: the gateway, {GATEWAY}, by ICMP",
        f"host: {HOST_PUBLIC6}, TCP port 8080",
    } <= named
