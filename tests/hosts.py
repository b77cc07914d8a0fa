"""A part of `make fleet`: one and two managers with real machines on one forge, real Gitea and the
Forgejo double. The last line is JSON.

Each manager is a host of its own: another name, network, state folder and identity. They share this
machine's processor, so that jobs sleep: what is measured is who makes a machine for which job, not
how fast it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol

from tests.forge.double import Double
from tests.forge.gitea import Repository, Site, until
from tests.ground import Ground, lay
from tests.prepare import FORGEJO, GITEA

FOLDER = Path("/tmp/vmrunner-fleet")
HOSTS = (("fleet-a", "10.88.0.0/24"), ("fleet-b", "10.89.0.0/24"))
SLEEP = 15  # seconds of each job
PATIENCE = 180.0  # seconds that one job may take on a slow day
JOB = "  job{number:02}:\n    runs-on: [debian-12]\n    steps:\n      - run: sleep {seconds}\n"


class Jobs(Protocol):
    """The jobs of one round, at a forge."""

    kind: str
    url: str
    token: str
    image: str

    def queue(self, count: int) -> None:
        """So many begin to wait."""

    def runners(self) -> list[str]:
        """Whose runner each job had that is over, and well."""


class OnGitea:
    """Jobs at the rig's Gitea."""

    kind, image = "gitea", GITEA

    def __init__(self, site: Site) -> None:
        self._site, self.url, self.token = site, site.url, site.token
        self._repository: Repository | None = None

    def queue(self, count: int) -> None:
        jobs = "".join(JOB.format(number=number, seconds=SLEEP) for number in range(count))
        self._repository = self._site.repository("rig", "fleet", "on: [push]\njobs:\n" + jobs)

    def runners(self) -> list[str]:
        assert self._repository
        return [
            job["runner_name"]
            for job in self._repository.jobs()
            if job.get("conclusion") == "success"
        ]


class OnForgejo:
    """Jobs at the double."""

    kind, image = "forgejo", FORGEJO

    def __init__(self, double: Double) -> None:
        self._double, self.url, self.token = double, double.url, double.token
        self._first = 0

    def queue(self, count: int) -> None:
        self._first = len(self._double.jobs)
        for number in range(count):
            self._double.add_job(f"job{number:02}", steps=[f"sleep {SLEEP}"])

    def runners(self) -> list[str]:
        jobs = list(self._double.jobs.values())[self._first :]
        return [job.runner.name for job in jobs if job.runner and job.result == "RESULT_SUCCESS"]


def ground(jobs: Jobs, number: int) -> Ground:
    """One host, at rest, its snapshot made."""
    name, subnet = HOSTS[number]
    found = lay(
        FOLDER / jobs.kind / name,
        name,
        subnet,
        token=jobs.token,
        url=jobs.url,
        kind=jobs.kind,
        image=jobs.image,
        start="snapshot",
        most=1,
    )
    found.run("down", "--now")
    found.run("up", "main")  # "down" holds until then
    found.run("snapshot", "create", "--pool", "main", timeout=900)
    return found


@contextmanager
def serving(grounds: list[Ground]) -> Iterator[None]:
    """Their managers at work; afterwards nothing is left of them."""
    managers = [each.serve() for each in grounds]
    try:
        yield
    finally:
        for manager in managers:
            manager.terminate()
        for manager in managers:
            manager.wait(60)
        for each in grounds:
            each.run("down", "--now")
            each.run("up", "main")


def machines(grounds: list[Ground]) -> int:
    """How many they have made so far."""
    told = [each.run("history", "--json", "--limit", "100000").stdout for each in grounds]
    return sum(len(json.loads(text)) for text in told)


def round_of(jobs: Jobs, grounds: list[Ground], count: int) -> dict[str, float]:
    """So many jobs by these hosts: seconds, machines, and on how many of them no job ran."""
    before = machines(grounds)
    with serving(grounds):
        time.sleep(3)
        began = time.monotonic()
        jobs.queue(count)
        until(lambda: len(jobs.runners()) == count, PATIENCE * count, "every job is over", every=1)
        seconds = time.monotonic() - began
        until(lambda: not any(each.leftovers() for each in grounds), 60, "nothing is left")
    ran = jobs.runners()
    made = machines(grounds) - before
    assert len(set(ran)) == count, f"a machine had more than one job: {sorted(ran)}"
    return {"seconds": round(seconds, 1), "machines": made, "in_vain": made - count}


def compare(jobs: Jobs, count: int) -> dict[str, object]:
    """One host, and two of them, with as many jobs for each."""
    grounds = [ground(jobs, number) for number in range(len(HOSTS))]
    one, two = round_of(jobs, grounds[:1], count), round_of(jobs, grounds, 2 * count)
    throughput = 2 * one["seconds"] / two["seconds"]
    print(f"{jobs.kind}: one host {one}, two {two}: {throughput:.2f} times", file=sys.stderr)
    return {"one": one, "two": two, "throughput": round(throughput, 2)}


def main() -> None:
    """Both forges; exits non-zero where a job is not done, or a machine had more than one. What was
    made in vain is counted.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--jobs", type=int, default=6, help="for each host")
    options = parser.parse_args()
    figures = {}
    with closing(Site()) as site:
        figures["gitea"] = compare(OnGitea(site), options.jobs)
        site.clear()
    with Double("203.0.113.10", host="forge.example") as double:
        figures["forgejo double"] = compare(OnForgejo(double), options.jobs)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
