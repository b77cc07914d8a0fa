"""Other firewalls on the host: they open nothing that is closed, and what they close opens as
docs/security.md says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.net.host import host
from tests.net.place import HOST_PUBLIC, ONE, ask
from tests.net.rivals import BOX, PUBLISHED, Docker, Firewalld, Rival, Ufw
from tests.net.test_firewall import CELLS, admit, build

DOCS = Path(__file__).parents[2] / "docs" / "security.md"
LIBVIRT = Path("/etc/libvirt/network.conf")
BACKENDS = (
    ("iptables", "nftables")
    if LIBVIRT.exists() and "firewall_backend" in LIBVIRT.read_text()
    else ("iptables",)
)
"""How libvirtd can write its rules: it has the choice since 10.4.

Debian's default is iptables, Fedora's nftables.
"""

# The internet, and a private network: whoever reaches more than that reaches what is closed.
WIDEST = "mirror"
CONTAINERS = {
    "a container's published port": ["tcp", HOST_PUBLIC, PUBLISHED],
    "a container": ["tcp", BOX, 443],
}
# What is open has to answer: another firewall's refusal is not enough.
STRICT = {"tcp": "connect", "udp": "echo"}
OPEN: dict[str, list[Any]] = {
    name: [STRICT.get(cell[0], cell[0]), *cell[1:]]
    for name, (cell, modes) in CELLS.items()
    if WIDEST in modes
}
CLOSED: dict[str, list[Any]] = {
    name: cell for name, (cell, modes) in CELLS.items() if WIDEST not in modes
} | CONTAINERS
RESOLVER = {"our resolver", "our resolver over TCP"}
BEYOND = OPEN.keys() - RESOLVER - {"the forge"}
OURS_ALONE = {
    "the LAN",
    "the LAN by UDP",
    "the metadata service",
    "carrier-grade NAT",
    "another resolver",
}
"""Closed by nobody else, wherever machines reach the internet."""


def reached(cells: dict[str, list[Any]]) -> set[str]:
    return {name for name, got in zip(cells, ask(ONE, list(cells.values())), strict=True) if got}


def documented(firewall: str) -> list[str]:
    """The commands that the docs give for it: the indented lines of its section."""
    section = DOCS.read_text(encoding="utf-8").split(f"\n### {firewall}\n")[1].split("\n#")[0]
    commands = [line.strip() for line in section.splitlines() if line.startswith("    ")]
    assert commands, section
    return commands


SHUT: list[tuple[Rival, str, set[str]]] = [
    # What else is closed, beside which of libvirt's rules: those in iptables come before the rules
    # of ufw and docker.
    (Ufw(), "iptables", {"the forge"}),
    (Ufw(), "nftables", {"the forge"} | RESOLVER | BEYOND - {"the internet by ICMP"}),
    (Firewalld(), BACKENDS[-1], {"the forge"}),
    (Docker(), "iptables", set()),
    (Docker(), "nftables", set(BEYOND)),
]


def each_case() -> Iterator[Any]:
    """The slower ones are for `make long`."""
    for rival, backend, shut in SHUT:
        if backend in BACKENDS:
            is_quick = backend == BACKENDS[-1] and not isinstance(rival, Firewalld)
            marks = () if is_quick else pytest.mark.long
            yield pytest.param(rival, backend, shut, id=f"{rival.name}-{backend}", marks=marks)


@pytest.mark.parametrize(("rival", "backend", "shut"), list(each_case()))
def test_beside(rival: Rival, backend: str, shut: set[str], tmp_path: Path) -> None:
    with host(backend, has_forge=not rival.has_forge) as its, ExitStack() as stack:
        ours = build(tmp_path)
        admit(ours, WIDEST)
        rival.start(its, stack)
        assert reached(OPEN | CLOSED) == OPEN.keys() - shut, "started after ours"

        ours.remove()
        admit(ours, WIDEST)
        assert reached(OPEN | CLOSED) == OPEN.keys() - shut, "ours after it"

        for command in documented(rival.name):
            its.run("sh", "-ec", command)
        rival.restart(its)
        rival.reload(its)
        assert reached(OPEN | CLOSED) == OPEN.keys(), (
            "as the docs say, and it was restarted and reloaded after ours"
        )
        assert ours.drift() == ""

        ours.remove()
        assert reached({name: CLOSED[name] for name in OURS_ALONE}) == OURS_ALONE, (
            "the other one closes none of these"
        )


def test_beside_nftables_service(tmp_path: Path) -> None:
    """Debian's own file begins with `flush ruleset`: our tables, and libvirt's rules, are gone
    until somebody puts them back.
    """
    with host(BACKENDS[-1], has_forge=True) as its:
        ours = build(tmp_path)
        admit(ours, WIDEST)
        its.run("nft", "-f", "/etc/nftables.conf")
        assert "is gone" in ours.drift()
        assert reached({name: CLOSED[name] for name in OURS_ALONE}) == OURS_ALONE, (
            "as the docs warn"
        )
        assert not its.has_network_rules()

        admit(ours, WIDEST)
        assert ours.drift() == ""
        assert reached(OPEN | CLOSED) == OPEN.keys(), "the next pass puts them back"

        assert documented("nftables.service") == ["systemctl restart libvirtd"]
        its.restart_libvirt()
        assert reached(OPEN | CLOSED) == OPEN.keys()
        assert ours.drift() == ""
