"""A part of `make images`: how long a job's first `docker run` takes in a clone, and in a machine
that was booted a minute ago.

Jobs of the real Gitea, one at a time; in a clone's job nothing comes before it. The container image
is one that the recipe brings. Seconds by the machine's own clock; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from tests import recipes
from tests.bench.common import median
from tests.containers import NAME
from tests.forge.gitea import Repository, Site, until
from tests.ground import Ground, lay
from tests.prepare import DOCKER

WITHIN = 600.0  # seconds; a job takes 100 at most


class Way(NamedTuple):
    """How the machine of a job starts."""

    pool: str  # and its label
    start: str
    warm: int
    idle: int  # seconds that pass in the job before the first run

    @property
    def file(self) -> str:
        """The workflow's."""
        return f"{self.pool}.yaml"

    @property
    def section(self) -> str:
        """Of the configuration."""
        return (
            f'[pools.{self.pool}]\nlabels = ["{self.pool}"]\nimage = "{DOCKER}"\nmemory = '
            '"1GiB"\ndisk = "6GiB"\nmax = 1\n'
            f'start = "{self.start}"\nwarm = {self.warm}\n'
        )


_WAYS = {
    "parked clone": Way("parked", "snapshot", 1, 0),
    "clone": Way("clone", "snapshot", 0, 0),
    "booted a minute ago": Way("booted", "boot", 0, 60),
}
RUNS = ("first run", "second run")
WORKFLOW = f"""\
on: workflow_dispatch
jobs:
  runs:
    runs-on: [LABEL]
    steps:
      - run: |
          sleep IDLE
          now() {{ read -r uptime _ </proc/uptime; times="$times $uptime"; }}
          now
          docker run --rm {NAME} echo one
          now
          docker run --rm {NAME} echo two
          now
          echo "took" "$times"
"""


def workflow(way: Way) -> str:
    """Of jobs in machines of this kind."""
    return WORKFLOW.replace("LABEL", way.pool).replace("IDLE", str(way.idle))


def runs_in_one(ground: Ground, repository: Repository, way: Way) -> list[float]:
    """Seconds of each of RUNS, in the job of a machine of its own."""
    before = len(repository.jobs())
    until(lambda: _parked(ground, way) == way.warm, WITHIN, "a parked clone", every=1)
    repository.dispatch(way.file)
    until(lambda: len(repository.jobs()) > before, WITHIN, "the forge has the job")
    ground.run("up", way.pool)  # one pass, of one pool: while the job runs nothing else does
    until(
        lambda: repository.jobs()[-1]["status"] == "completed", WITHIN, "the job is done", every=1
    )
    ground.run("down", way.pool)
    job = repository.jobs()[-1]
    log = repository.said(job["id"])
    found = re.search(r"took ([0-9. ]+)", log)
    assert found, log
    times = [float(time) for time in found[1].split()]
    return [after - before for before, after in pairwise(times)]


def _parked(ground: Ground, way: Way) -> int:
    """How many clones of its pool have rehearsed, and are paused."""
    ground.run("up", way.pool)
    pools = {pool["name"]: pool for pool in ground.status()["pools"]}
    return sum(machine["paused"] for machine in pools[way.pool]["machines"])


def side_by_side(ground: Ground, repository: Repository, machines: int) -> dict[str, Any]:
    """Medians of so many machines of each kind, which take turns, and how much longer the first run
    takes in clones.
    """
    taken: dict[str, list[list[float]]] = {name: [] for name in _WAYS}
    for number in range(machines):
        for name, way in _WAYS.items():
            taken[name].append(runs_in_one(ground, repository, way))
            said = ", ".join(
                f"{run} {seconds:.2f} s" for run, seconds in zip(RUNS, taken[name][-1], strict=True)
            )
            print(f"{number + 1}/{machines}, {name}: {said}", file=sys.stderr, flush=True)
    rows = {
        name: dict(zip(RUNS, (median(list(run)) for run in zip(*each, strict=True)), strict=True))
        | {"machines": machines}
        for name, each in taken.items()
    }
    *clones, booted = rows
    return rows | {
        f"{clone} / {booted}": round(rows[clone]["first run"] / rows[booted]["first run"], 2)
        for clone in clones
    }


def main() -> None:
    """Three of each, or `--machines` so many. The figures join those of tests.recipes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machines", type=int, default=3)
    options = parser.parse_args()
    with closing(Site()) as site:
        ground = lay(
            Path("/tmp/vmrunner-docker"),
            "docker",
            "10.79.0.0/24",
            token=site.token,
            more="".join(way.section for way in _WAYS.values()),
        )
        ground.run("down", "--all", "--purge")
        ground.run("snapshot", "create", "--pool", _WAYS["clone"].pool, timeout=600)
        repository = site.repository("rig", "docker-runs", "on: workflow_dispatch\njobs: {}\n")
        for way in _WAYS.values():
            repository.push(workflow(way), way.file)
        figures = {"docker run": side_by_side(ground, repository, options.machines)}
        ground.run("down", "--all", "--purge")
        repository.delete()
    recipes.noted(figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
