"""What Docker is told of the size of packets, before it starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.guest.programs import load

SETTINGS = {"bip": "198.18.0.1/24", "default-network-opts": {"overlay": {"a": "b"}}}


@pytest.mark.parametrize("mtu", [1280, 1400, 9000])
@pytest.mark.parametrize("before", [None, SETTINGS], ids=["no settings", "the recipe's settings"])
def test_its_networks_are_as_narrow_as_the_machines(
    tmp_path: Path, mtu: int, before: dict[str, Any] | None
) -> None:
    settings = run(tmp_path, {"eth0": mtu}, before)
    assert settings["mtu"] == mtu
    networks = settings.pop("default-network-opts")
    assert networks.pop("bridge") == {"com.docker.network.driver.mtu": str(mtu)}
    assert before is None or (settings["bip"], networks) == (
        "198.18.0.1/24",
        {"overlay": {"a": "b"}},
    ), "what else is in there stays"


def test_of_the_usual_size_nothing_is_said(tmp_path: Path) -> None:
    assert run(tmp_path / "one", {"eth0": 1500}, None) == {}
    assert run(tmp_path / "two", {}, SETTINGS) == SETTINGS


def run(folder: Path, cards: dict[str, int], before: dict[str, Any] | None) -> dict[str, Any]:
    """Run it on a machine with these cards, and the loopback; what Docker's settings are then."""
    for name, mtu in cards.items():
        (folder / "net" / name / "device").mkdir(parents=True)
        (folder / "net" / name / "mtu").write_text(f"{mtu}\n")
    (folder / "net" / "lo").mkdir(parents=True)
    (folder / "net" / "lo" / "mtu").write_text("65536\n")
    program: Any = load("docker_mtu.py")
    program.LINKS, program.DAEMON = folder / "net", folder / "daemon.json"
    if before is not None:
        program.DAEMON.write_text(json.dumps(before))
    program.main()
    found: dict[str, Any] = (
        json.loads(program.DAEMON.read_text()) if program.DAEMON.exists() else {}
    )
    return found
