"""The forge is stopped while a job ends, in the middle of one, and while a runner starts: nobody's
verdict changes.

In booted machines and in clones, under Gitea's own runner. `make outage` has the forge away for
four and for two minutes; the suite for less, and not in the middle. The runner itself goes on
trying for about 50 s.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.forge.gitea import URL, VERSION, Repository, Site, until
from tests.forge.process import GiteaProcess
from tests.ground import Ground
from tests.vm.test_endings import machine_of, serving
from tests.vm.test_jobs import LIFE

pytestmark = pytest.mark.vm

# The first kind ends when the forge goes, the second goes on until it is back.
ENDS = f"while curl -fsm 2 {VERSION} >/dev/null; do sleep 0.3; done"
GOES_ON = f"{ENDS}; until curl -fsm 2 {VERSION} >/dev/null; do sleep 1; done; sleep 3"
JOB = """\
  {name}:
    runs-on: [{label}]
    steps:
      - run: |
          {command}
          echo "over"
"""
POOL = (
    '[pools.{label}]\nlabels = ["{label}"]\nimage = "test-gitea"\nmemory = "1GiB"\ndisk = '
    '"6GiB"\nstart = "{start}"\nmax = 2\n'
)
WHOLE = bool(os.environ.get("VMRUNNER_TEST_WHOLE"))
AWAY = {"when-it-ends": (ENDS, 240.0 if WHOLE else 60.0)} | (
    {"in-the-middle": (GOES_ON, 120.0)} if WHOLE else {}
)
"""What the job does, and how many seconds the forge is away."""


@pytest.fixture
def server() -> Iterator[GiteaProcess]:
    """Whatever a test does, the ones after it have a forge."""
    found = GiteaProcess()
    yield found
    if not found.answers:
        found.start()


def workflow(*jobs: tuple[str, str, str]) -> str:
    """Jobs by name, label and command."""
    return "on: [push]\njobs:\n" + "".join(
        JOB.format(name=name, label=label, command=command) for name, label, command in jobs
    )


def verdicts(repository: Repository) -> dict[str, Any]:
    """Of all its jobs, once they have one."""

    def over() -> list[dict[str, Any]] | None:
        jobs = repository.jobs()
        return jobs if all(job["status"] == "completed" for job in jobs) else None

    return {job["name"]: job["conclusion"] for job in until(over, LIFE, "every job over")}


def pools(ground: Ground) -> None:
    """One pool of booted machines, one of clones."""
    text = ground.config.read_text()
    more = POOL.format(label="booted", start="boot") + POOL.format(label="cloned", start="snapshot")
    ground.config.write_text(text[: text.index("[pools.main]")] + more)
    ground.run("snapshot", "create", "--pool", "cloned")


@pytest.mark.long
@pytest.mark.parametrize(("command", "away"), AWAY.values(), ids=AWAY.keys())
def test_a_forge_that_is_away(
    site: Site, lay_ground: Callable[..., Ground], server: GiteaProcess, command: str, away: float
) -> None:
    ground = lay_ground()
    pools(ground)
    labels = ("booted", "cloned")
    repository = site.repository(
        "rig", "outage", workflow(*((label, label, command) for label in labels))
    )
    with serving(ground):
        for label in labels:
            machine_of(ground, repository, label)
        time.sleep(2)
        server.kill()
        time.sleep(away)
        server.start()
        assert verdicts(repository) == dict.fromkeys(labels, "success")
        until(lambda: not ground.leftovers(), LIFE, "nothing left", every=1)


@contextmanager
def unreachable_for_machines() -> Iterator[None]:
    """The forge refuses machines' connections, as one that is away does; the manager's go through.

    So no job is given away in the very moment when the forge is stopped: such a one is failed after
    five minutes, which is right, and not what is tried here.
    """
    server = urlsplit(URL)
    rules = (
        "table inet test_outage { chain in { type filter hook input priority -200; "
        f'iifname != "lo" tcp dport {server.port} reject with tcp reset; }}\n}}'
    )
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
    try:
        yield
    finally:
        subprocess.run(["nft", "delete", "table", "inet", "test_outage"], check=True)


@pytest.mark.long
def test_a_forge_that_is_away_while_runners_start(
    site: Site, lay_ground: Callable[..., Ground], server: GiteaProcess
) -> None:
    ground = lay_ground()
    pools(ground)
    for label in ("booted", "cloned"):
        repository = site.repository("rig", f"start-{label}", workflow((label, label, "true")))
        until(lambda repository=repository: repository.jobs(), 30, "the job")
        with unreachable_for_machines():
            done = ground.run("up")  # the machine has its runner's credentials
            server.kill()
        time.sleep(10)
        server.start()

        def over(repository: Repository = repository) -> bool:
            ground.run("up")
            return repository.jobs()[0]["status"] == "completed" and not ground.leftovers()

        until(over, LIFE, f"the job in a {label} machine is over", every=1)
        (job,) = repository.jobs()
        assert (job["conclusion"], job["run_attempt"]) == ("success", 1)
        assert {job["runner_name"]} == set(re.findall(r"vmr-suite-[0-9a-f]{16}", done.stderr)), (
            "the very machine that started while the forge was away"
        )
