"""What idle machines cost the host."""

from __future__ import annotations

import re
import time
from functools import partial
from pathlib import Path
from typing import Any

from tests import steps
from tests.bench.common import LIFE, MANAGER, ground, say
from tests.forge.gitea import Site, until
from tests.ground import Ground

SIZES = (1, 4, 8)
_SETTLE = 5.0  # seconds until a machine that has just booted is idle


def idle(site: Site, start: str) -> dict[str, Any]:
    """MiB for one of 1, 4 and 8 idle machines of 1 GiB (proportional set size), and what 8 of them
    take of the host's memory.
    """
    found: dict[str, Any] = {}
    for number in SIZES:
        # Eight of two would not fit on two cores.
        place = ground(site, start, most=number, warm=number, vcpus=1)
        before = _available()
        place.run("up", "main")
        until(partial(_are_idle, place, start, number), LIFE, f"{number} idle machines", every=2.0)
        time.sleep(_SETTLE)
        sizes = [_pss(pid) for pid in steps.machines_of(MANAGER)]
        found[f"pss_mib_of_one_of_{number}"] = round(sum(sizes) / len(sizes))
        found[f"host_mib_for_{number}"] = before - _available()
        say(
            f"memory/{start} {number}: "
            + ", ".join(f"{name} {value}" for name, value in found.items())
        )
        place.run("down", "--now")
    return found


def _are_idle(place: Ground, start: str, number: int) -> bool:
    place.run("up")
    machines = place.status()["pools"][0]["machines"]
    return (
        sum(
            machine["phase"] == "ready" and (start == "boot" or machine["paused"])
            for machine in machines
        )
        == number
    )


def _pss(pid: int) -> int:
    return _kib(Path(f"/proc/{pid}/smaps_rollup"), "Pss") >> 10


def _available() -> int:
    return _kib(Path("/proc/meminfo"), "MemAvailable") >> 10


def _kib(path: Path, field: str) -> int:
    found = re.search(rf"(?m)^{field}:\s+(\d+) kB", path.read_text())
    if not found:
        raise ValueError(f"{path} has no {field}")
    return int(found[1])
