"""A part of `make images`: how long the first `docker run` takes in a clone of a snapshot, and in a machine that was booted a minute ago.

The container image is one that the recipe brings. Seconds by the machine's own clock; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from tests import recipes
from tests.bench.common import median
from tests.containers import NAME
from tests.forge.gitea import Site
from tests.ground import Ground, lay
from tests.prepare import DOCKER

MEMORY = "1GiB"
IDLE = 60  # seconds between a boot and the first run
RUNS = f"""
sleep "$0"
read -r began _ </proc/uptime
docker run --rm {NAME} echo one
read -r first _ </proc/uptime
docker run --rm {NAME} echo two
read -r second _ </proc/uptime
echo "$began $first $second"
"""
_WAYS: dict[str, tuple[tuple[str, ...], int]] = {"clone": ((), 0), "booted a minute ago": (("--boot",), IDLE)}


def runs_in_one(ground: Ground, options: tuple[str, ...], idle: int) -> tuple[float, float]:
    """Seconds of the first `docker run` and of the second, in a machine of its own."""
    done = ground.run("exec", "--image", DOCKER, "--memory", MEMORY, *options, "--", "sh", "-euc", RUNS, str(idle), timeout=600)
    one, two, times = done.stdout.split("\n")[:3]
    assert (one, two) == ("one", "two"), done.stdout
    began, first, second = (float(time) for time in times.split())
    return first - began, second - first


def side_by_side(ground: Ground, machines: int) -> dict[str, Any]:
    """Medians of so many machines of each kind, which take turns, and how much longer the first run takes in a clone."""
    taken: dict[str, list[tuple[float, float]]] = {way: [] for way in _WAYS}
    for number in range(machines):
        for way, (options, idle) in _WAYS.items():
            taken[way].append(runs_in_one(ground, options, idle))
            first, second = taken[way][-1]
            print(f"{number + 1}/{machines}, {way}: {first:.2f} s, then {second:.2f} s", file=sys.stderr, flush=True)
    rows = {
        way: {"first": median([first for first, _ in each]), "second": median([second for _, second in each]), "machines": machines}
        for way, each in taken.items()
    }
    clone, booted = rows.values()
    return {**rows, "ratio": round(clone["first"] / booted["first"], 2)}


def main() -> None:
    """Three of each, or `--machines` so many. The figures join those of tests.recipes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machines", type=int, default=3)
    options = parser.parse_args()
    with closing(Site()) as site:
        ground = lay(Path("/tmp/vmrunner-docker"), "docker", "10.84.0.0/24", token=site.token, image=DOCKER)
        ground.run("down", "--all", "--purge")
        ground.run("snapshot", "create", "--image", DOCKER, "--memory", MEMORY, timeout=600)
        figures = {"docker run": side_by_side(ground, options.machines)}
        ground.run("down", "--all", "--purge")
    recipes.noted(figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
