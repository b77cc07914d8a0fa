"""From the moment when a job is queued at a real Gitea to its first step, with `serve`; and jobs
per minute.
"""

from __future__ import annotations

import random
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from tests.bench.common import LIFE, Gate, ground, median, p95, say, serving
from tests.forge.gitea import Repository, Site, until
from tests.ground import Ground

JOB = """\
  {name}:
    runs-on: [debian-12]
    steps:
      - run: |
          {visit}
"""


@dataclass(frozen=True)
class Mode:
    """How machines start, how many are kept warm, or registered idle, and the user that runs their
    jobs.
    """

    start: str
    warm: int = 0
    user: str = "root"
    idle: int = 0

    def ground(self, site: Site, **more: str) -> Ground:
        """With one machine at a time."""
        return ground(site, self.start, warm=self.warm, user=self.user, idle=self.idle, **more)


MODES = {
    "snapshot": Mode("snapshot"),
    "parked": Mode("snapshot", warm=1),
    "boot": Mode("boot"),
    "idle": Mode("snapshot", idle=1),
    "snapshot-as-runner": Mode("snapshot", user="runner"),
    "parked-as-runner": Mode("snapshot", warm=1, user="runner"),
}
_LONG_IDLE = 15.0  # seconds
USUAL = ("snapshot", "parked", "boot")
PHASES = ("created", "overlay", "started", "seed", "runner", "first step")


def workflow(names: list[str], gate: Gate) -> str:
    """A job for each, whose step visits the gate at once."""
    return "on: [workflow_dispatch]\njobs:\n" + "".join(
        JOB.format(name=name, visit=gate.visit(name)) for name in names
    )


def first_steps(site: Site, gate: Gate, mode: str, runs: int) -> dict[str, Any]:
    """Median and p95 of `runs` jobs, one after the other, and when each phase was reached (medians,
    seconds since the job was queued).
    """
    how = MODES[mode]
    place = how.ground(site)
    repository = site.repository("rig", "bench", workflow(["first"], gate))
    taken: list[float] = []
    phases: dict[str, list[float]] = {name: [] for name in PHASES}
    with serving(place):
        for number in range(runs):
            took, record = first_step(place, how, gate, repository)
            taken.append(took)
            for name, at in record.items():
                phases[name].append(at)
            say(f"queue/{mode} {number + 1}/{runs}: {took:.2f} s")
    repository.delete()
    return {
        "median": median(taken),
        "p95": p95(taken),
        "runs": runs,
        "phases": {name: median(values) for name, values in phases.items()},
    }


def first_step(
    place: Ground, how: Mode, gate: Gate, repository: Repository
) -> tuple[float, dict[str, float]]:
    """Seconds from the queue to one job's first step, and to each phase; the machine is gone
    afterwards.
    """
    until(
        lambda: is_idle(place, how),
        LIFE,
        "the machines before are gone, the warm ones parked",
        every=1.0,
    )
    gate.arrivals.clear()
    before = len(_ended(place))
    # A runner that waits asks less and less often.
    time.sleep(_LONG_IDLE if how.idle else 0)
    time.sleep(random.random())  # noqa: S311 — jobs don't come in step with the manager's polls
    repository.dispatch()
    queued = time.time()  # its answer comes when the job waits
    until(lambda: gate.arrivals, LIFE, "the first step", every=0.02)
    took = gate.arrivals["first"] - queued
    until(lambda: len(_ended(place)) > before, LIFE, "the machine's end", every=0.5)
    record = _ended(place)[-1]
    return took, {name: record[name] - queued for name in PHASES[:-1]} | {PHASES[-1]: took}


def is_idle(place: Ground, how: Mode) -> bool:
    """Whether all that there is waits for a job."""
    machines = place.status()["pools"][0]["machines"]
    count = how.warm + how.idle
    return (
        len(machines) == count
        and all(machine["paused"] or machine["phase"] == "idle" for machine in machines)
        and (count > 0 or not place.leftovers())
    )


def _ended(place: Ground) -> list[dict[str, float]]:
    """The records of machines that did jobs and are gone, in their order."""
    with closing(sqlite3.connect(place.folder / "state" / "history.sqlite")) as database:
        database.row_factory = sqlite3.Row
        rows = database.execute(
            "SELECT * FROM machines WHERE job != '' AND destroyed > 0 ORDER BY destroyed"
        ).fetchall()
        return [dict(row) for row in rows]


def throughput(site: Site, gate: Gate, start: str, jobs: int) -> dict[str, Any]:
    """Short jobs, two machines at once: jobs per minute, and the manager's own processor time for
    one.
    """
    place = ground(site, start, most=2)
    names = [f"job{number}" for number in range(jobs)]
    repository = site.repository("rig", "bench", workflow(names, gate))
    with serving(place) as server:
        gate.arrivals.clear()
        before, began = _processor_seconds(server.pid), time.monotonic()
        repository.dispatch()
        until(
            lambda: len(gate.arrivals) == jobs and not place.leftovers(),
            LIFE * jobs / 2,
            "every job's end",
            every=0.5,
        )
        took, used = time.monotonic() - began, _processor_seconds(server.pid) - before
    repository.delete()
    say(f"throughput/{start}: {jobs} jobs in {took:.0f} s")
    return {
        "jobs_per_minute": round(jobs * 60 / took, 1),
        "manager_seconds_per_job": round(used / jobs, 2),
        "jobs": jobs,
    }


def _processor_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    # User and system time, its own and its children's, in ticks.
    return sum(map(int, fields[11:15])) / 100
