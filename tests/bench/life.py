"""The whole life of a machine that runs `true`: `vmrunner exec`, the floors under it, and the usual
ways to do it without vmrunner.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from ipaddress import IPv4Interface, IPv4Network
from typing import Any

from tests.bench import homemade
from tests.bench.common import MANAGER, SUBNET, ground, median, p95, say
from tests.bench.floor import Floor, logged
from tests.bench.lightning import Lightning
from tests.forge.gitea import Site
from tests.ground import STORAGE, Ground
from tests.prepare import GITEA

MEMORY = "1GiB"
_ADDRESS = IPv4Interface(f"{IPv4Network(SUBNET)[9]}/24")

_VIRT_INSTALL, _LIGHTNING = "virt-install and cloud-init", "virt-lightning, stock image"
_BEGINS = {_VIRT_INSTALL: "… until its script begins", _LIGHTNING: "… until ssh answers"}


def _command(*options: str) -> list[str]:
    return ["exec", "--image", GITEA, "--memory", MEMORY, *options, "--", "true"]


def _exec(place: Ground, *options: str) -> float:
    """Seconds."""
    began = time.monotonic()
    place.run(*_command(*options))
    return time.monotonic() - began


def floor_of(place: Ground, address: IPv4Interface = _ADDRESS) -> tuple[Floor, str]:
    """A clone's QEMU without libvirt, and the state that it begins with; makes the snapshot."""
    place.run("snapshot", "drop", "--yes")
    place.run("snapshot", "create", "--image", GITEA, "--memory", MEMORY)
    (snapshot,) = json.loads(place.run("snapshot", "list", "--json").stdout)
    state = next(
        str(STORAGE / MANAGER / name) for name in snapshot["files"] if name.endswith(".state")
    )
    return Floor(*logged(place, *_command()), address), state


def whole_lives(site: Site, runs: int) -> dict[str, Any]:
    """`exec -- true` and the QEMU under it, cloned and booted, `virt-install`, and virt-lightning,
    in turn; seconds.
    """
    place = ground(site, "boot")
    clone, state = floor_of(place)
    boot = Floor(*logged(place, *_command("--boot")), _ADDRESS)
    lightning = Lightning()
    begins: dict[str, list[float]] = {_VIRT_INSTALL: [], _LIGHTNING: []}

    def life(name: str, live: Callable[[], tuple[float, float]]) -> float:
        begin, whole = live()
        begins[name].append(begin)
        return whole

    ways: dict[str, tuple[float, Callable[[], float]]] = {
        # How often of all runs: what takes long is tried less often.
        "exec, snapshot": (1.0, lambda: _exec(place)),
        "raw QEMU, snapshot": (1.0, lambda: clone.run(state)),
        "exec, boot": (0.25, lambda: _exec(place, "--boot")),
        "raw QEMU, boot": (0.25, lambda: boot.run(None)),
        _VIRT_INSTALL: (0.15, lambda: life(_VIRT_INSTALL, lambda: homemade.life(_ADDRESS))),
        _LIGHTNING: (0.15, lambda: life(_LIGHTNING, lightning.life)),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(runs):
        for name, (share, way) in ways.items():
            if number < max(3, runs * share):
                taken[name].append(way())
        say(
            f"life {number + 1}/{runs}: "
            + ", ".join(f"{name} {values[-1]:.2f} s" for name, values in taken.items())
        )
    rows: dict[str, list[float]] = {}
    for name, values in taken.items():
        rows[name] = values
        if name in begins:
            rows[_BEGINS[name]] = begins[name]
    return {
        name: {"median": median(values), "p95": p95(values), "runs": len(values)}
        for name, values in rows.items()
    }
