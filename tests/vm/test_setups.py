"""The quick starts of docs/setups.md as they stand there, with real Gitea: a job runs in each."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.fenced import quick_start
from tests.forge.gitea import URL, Repository, Site, until
from tests.ground import Ground
from tests.prepare import GITEA
from tests.vm.test_jobs import LIFE, records, up_until_done

pytestmark = pytest.mark.vm

WORKFLOW = """\
on: [push]
jobs:
  one:
    runs-on: debian-12
    steps:
      - run: echo "ran on $(hostname)"
"""


@contextmanager
def begun(ground: Ground, title: str) -> Iterator[None]:
    """The quick start's configuration is in place and its commands were given; the last one runs
    until the end, if it is a daemon.
    """
    found = quick_start(title)
    ground.config.write_text(
        found.at(ground.folder, URL, manager=ground.manager, image=GITEA, subnet="10.90.0.0/24")
    )
    server: subprocess.Popen[bytes] | None = None
    try:
        for command in found.commands:
            if command == "vmrunner serve":
                server = ground.serve()
            else:
                ground.run(*command.split()[1:])
        yield
    finally:
        if server:
            server.terminate()
            server.wait()
        ground.run("down", "--now", check=False)


def waiting(site: Site, ground: Ground) -> set[str]:
    """The names of this manager's runners that the forge shows as idle."""
    ours = set(records(site, ground))
    return {
        runner["name"]
        for runner in site.runners()
        if runner["name"] in ours and runner["status"] == "online" and not runner["busy"]
    }


def done(repository: Repository) -> dict[str, Any]:
    """The repository's one job, when it is over."""

    def over() -> dict[str, Any] | None:
        jobs = repository.jobs()
        return jobs[0] if jobs and jobs[0]["status"] == "completed" else None

    job: dict[str, Any] = until(over, LIFE, "the job's end")
    return job


def test_three_runners_are_idle_and_one_that_is_used_is_replaced(
    site: Site, lay_ground: Callable[..., Ground]
) -> None:
    site.organisation("acme")
    ground = lay_ground(cloned=True)
    with begun(ground, "Static"):
        until(lambda: len(waiting(site, ground)) == 3, LIFE, "three idle runners")
        first = waiting(site, ground)
        site.call("GET", "/orgs/acme/actions/runners")

        job = done(site.repository("acme", "one", WORKFLOW))

        assert (job["conclusion"], job["runner_name"] in first) == ("success", True)
        until(lambda: len(waiting(site, ground)) == 3, LIFE, "three again")
        now = waiting(site, ground)
        assert first - now == {job["runner_name"]}, "each is good for one job"
        assert len(now - first) == 1
        (pool,) = ground.status()["pools"]
        assert (pool["idle"], pool["running"]) == (3, 0)
    assert (records(site, ground), ground.leftovers()) == ([], [])


@pytest.mark.long
def test_serve_makes_a_machine_for_the_job(site: Site, lay_ground: Callable[..., Ground]) -> None:
    ground = lay_ground(cloned=True)
    with begun(ground, "Serve"):
        until(
            lambda: any(each["paused"] for each in ground.status()["pools"][0]["machines"]),
            LIFE,
            "the warm machine",
        )
        assert records(site, ground) == [], "nothing idles at the forge"
        assert done(site.repository("rig", "one", WORKFLOW))["conclusion"] == "success"
    assert (records(site, ground), ground.leftovers()) == ([], [])


@pytest.mark.long
def test_the_timers_passes_do_a_job(site: Site, lay_ground: Callable[..., Ground]) -> None:
    ground = lay_ground(cloned=True)
    with begun(ground, "Timer"):
        repository = site.repository("rig", "one", WORKFLOW)
        (job,) = up_until_done(ground, repository)
        assert job["conclusion"] == "success"
    assert (records(site, ground), ground.leftovers()) == ([], [])
