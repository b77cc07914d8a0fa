"""The quick starts of docs/setups.md as they stand there, with real Gitea: a job runs in each."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.plain import RUNNER
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


SEVERAL = """\
on: [workflow_dispatch]
jobs:
  one:
    runs-on: debian-12
    strategy: {matrix: {number: [1, 2, 3, 4, 5, 6, 7]}}
    steps:
      - run: sleep 5
"""


@contextmanager
def older_runner(site: Site, folder: Path) -> Iterator[None]:
    """What people have before they move: the forge's runner as a process, one job at a time, with
    the same label.
    """
    folder.mkdir()
    token = site.call("POST", "/admin/actions/runners/registration-token")["token"]
    registering = ["register", "--no-interactive", "--instance", URL, "--token", token]
    registering += ["--name", "older", "--labels", "debian-12:host"]
    subprocess.run([RUNNER, *registering], cwd=folder, check=True)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([RUNNER, "daemon"], cwd=folder, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


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
        first = set(records(site, ground))
        assert len(first) == 3
        site.call("GET", "/orgs/acme/actions/runners")

        job = done(site.repository("acme", "one", WORKFLOW))

        used = job["runner_name"]
        assert (job["conclusion"], used in first) == ("success", True)
        until(
            lambda: used not in records(site, ground) and len(waiting(site, ground)) == 3,
            LIFE,
            "three again",
        )
        now = set(records(site, ground))
        assert first - now == {used}, "each is good for one job"
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


@pytest.mark.long
def test_a_runner_from_before_works_beside_it_with_the_same_label(
    site: Site, lay_ground: Callable[..., Ground], tmp_path: Path
) -> None:
    """docs/howto/move.md: nothing has to stop for it."""
    ground = lay_ground(cloned=True)
    repository = site.repository("rig", "several", SEVERAL)
    try:
        with begun(ground, "Serve"):
            with older_runner(site, tmp_path / "older"):
                repository.dispatch()
                both = ended(repository, 7)
            alone = done(site.repository("rig", "one", WORKFLOW))

        ours = f"vmr-{ground.manager}-"
        assert {verdict for _, verdict in both} == {"success"}
        assert {name.startswith(ours) or name for name, _ in both} == {True, "older"}
        assert (alone["conclusion"], alone["runner_name"].startswith(ours)) == ("success", True)
        assert "older" in {runner["name"] for runner in site.runners()}, "it is nobody's to sweep"
        assert (records(site, ground), ground.leftovers()) == ([], [])
    finally:
        for runner in site.runners():
            if runner["name"] == "older":
                site.call("DELETE", f"/admin/actions/runners/{runner['id']}")


def ended(repository: Repository, count: int) -> set[tuple[str, str]]:
    """Runner and verdict of so many jobs, when all are over."""

    def over() -> list[dict[str, Any]] | None:
        jobs = repository.jobs()
        return jobs if len(jobs) == count and {j["status"] for j in jobs} == {"completed"} else None

    jobs: list[dict[str, Any]] = until(over, 2 * LIFE, f"the end of {count} jobs")
    return {(job["runner_name"], job["conclusion"]) for job in jobs}
