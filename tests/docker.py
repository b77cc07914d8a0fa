"""A part of `make images`: how long a job's first `docker run` takes in a clone, and in a machine that was booted a minute ago.

Jobs of the real Gitea, one at a time; in the clone's job nothing comes before it. The container image is one that the recipe brings.
Seconds by the machine's own clock; the last line is JSON.
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
    file: str  # the workflow's
    idle: int  # seconds that pass in the job before the first run


_WAYS = {"clone": Way("main", "ci.yaml", 0), "booted a minute ago": Way("booted", "booted.yaml", 60)}
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
    repository.dispatch(way.file)
    until(lambda: len(repository.jobs()) > before, WITHIN, "the forge has the job")
    ground.run("up", way.pool)  # one pass, of the pool that may be down: while the job runs nothing else does
    until(lambda: repository.jobs()[-1]["status"] == "completed", WITHIN, "the job is done", every=1)
    ground.run("up")
    job = repository.jobs()[-1]
    log = repository.log(job["id"])
    found = re.search(r"took ([0-9. ]+)", log)
    assert found, log
    times = [float(time) for time in found[1].split()]
    return [after - before for before, after in pairwise(times)]


def side_by_side(ground: Ground, repository: Repository, machines: int) -> dict[str, Any]:
    """Medians of so many machines of each kind, which take turns, and how much longer the first run takes in a clone."""
    taken: dict[str, list[list[float]]] = {name: [] for name in _WAYS}
    for number in range(machines):
        for name, way in _WAYS.items():
            taken[name].append(runs_in_one(ground, repository, way))
            said = ", ".join(f"{run} {seconds:.2f} s" for run, seconds in zip(RUNS, taken[name][-1], strict=True))
            print(f"{number + 1}/{machines}, {name}: {said}", file=sys.stderr, flush=True)
    rows = {
        name: dict(zip(RUNS, (median(list(run)) for run in zip(*each, strict=True)), strict=True)) | {"machines": machines}
        for name, each in taken.items()
    }
    clone, booted = rows.values()
    return {**rows, "ratio": round(clone["first run"] / booted["first run"], 2)}


def main() -> None:
    """Three of each, or `--machines` so many. The figures join those of tests.recipes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machines", type=int, default=3)
    options = parser.parse_args()
    with closing(Site()) as site:
        clone, booted = _WAYS.values()
        ground = lay(
            Path("/tmp/vmrunner-docker"),
            "docker",
            "10.84.0.0/24",
            token=site.token,
            image=DOCKER,
            labels=clone.pool,
            start="snapshot",
            more=f'[pools.{booted.pool}]\nlabels = ["{booted.pool}"]\nimage = "{DOCKER}"\nmemory = "1GiB"\ndisk = "6GiB"\nstart = "boot"\n',
        )
        ground.run("down", "--all", "--purge")
        ground.run("snapshot", "create", "--pool", clone.pool, timeout=600)
        repository = site.repository("rig", "docker-runs", workflow(clone))
        repository.push(workflow(booted), booted.file)
        figures = {"docker run": side_by_side(ground, repository, options.machines)}
        ground.run("down", "--all", "--purge")
        repository.delete()
    recipes.noted(figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
