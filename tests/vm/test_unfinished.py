"""No unfinished job is ever a success: each way in which a machine or its runner can be told to
end, or ends, while a job runs on it.

Gitea's own runner (1.0.8) calls a job a success when it is told to end in the middle of it, unless
its configuration says how long it has to wait for the job. The suite tries some of them, `make
unfinished` tries all, in booted, cloned and parked machines.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import libvirt
import pytest

from tests.forge.gitea import Repository, Site, until
from tests.ground import Ground
from tests.vm.test_endings import qemu_of, serving
from tests.vm.test_jobs import LIFE

pytestmark = pytest.mark.vm

JOB = """\
  {name}:
    runs-on: [debian-12]
    steps:
      - run: |
          echo "began"
          sync
          {command}
          sleep {seconds}
          echo "went to its end"
  after-{name}:
    needs: [{name}]
    runs-on: [debian-12]
    steps:
      - run: "true"
"""
RUNNER = "$PPID"
FROM_INSIDE = {
    "shutdown": "systemctl poweroff",
    "reboot": "systemctl reboot",
    "reset": "echo b >/proc/sysrq-trigger",
    "panic": "echo c >/proc/sysrq-trigger",
    "unit-stopped": "systemctl stop --no-block vmrunner-guest.service",
    "term-runner": f"kill -TERM {RUNNER}",
    "int-runner": f"kill -INT {RUNNER}",
    "hup-runner": f"kill -HUP {RUNNER}",
    "quit-runner": f"kill -QUIT {RUNNER}",
    "kill-runner": f"kill -KILL {RUNNER}",
    "term-group": f"kill -TERM -- -{RUNNER}",
    "int-group": f"kill -INT -- -{RUNNER}",
    "term-step": "kill -TERM $$",
    "term-everything": "kill -TERM -1",
    "kill-everything": "kill -KILL -1",
    "memory-of-step": "tail /dev/zero",
    "memory-of-runner": f"echo 1000 >/proc/{RUNNER}/oom_score_adj; tail /dev/zero",
}
"""What a step can do."""
WORKS_ON = {"term-runner", "int-runner", "term-group", "int-group"}
"""With these the runner waits for its job, whose steps have groups of their own: it goes on to its
end, and only then is a success.
"""


def domain_of(machine: str) -> Any:
    return libvirt.open("qemu:///system").lookupByName(machine)


FROM_OUTSIDE: dict[str, Callable[[Ground, str], object]] = {
    "virsh-shutdown": lambda ground, machine: domain_of(machine).shutdown(),
    "virsh-reboot": lambda ground, machine: domain_of(machine).reboot(),
    "virsh-destroy": lambda ground, machine: domain_of(machine).destroy(),
    "qemu-killed": lambda ground, machine: os.kill(qemu_of(machine), signal.SIGKILL),
    "qemu-told": lambda ground, machine: os.kill(qemu_of(machine), signal.SIGTERM),
    "down-now": lambda ground, machine: (ground.run("down", "--now"), ground.run("up", "main")),
}
"""What may be done on the host."""
SAMPLE = ("shutdown", "term-runner", "term-everything", "virsh-shutdown", "down-now")
"""What the suite tries in each kind of machine; in clones more of it."""
MORE = ("panic", "kill-runner", "unit-stopped", "memory-of-runner", "qemu-killed")
WHOLE = bool(os.environ.get("VMRUNNER_TEST_WHOLE"))
MODES = {"cloned": {"cloned": True}, "parked": {"cloned": True, "more": "warm = 2"}, "booted": {}}


def workflow(names: list[str]) -> str:
    """A job for each, with one that needs it."""
    jobs = [
        JOB.format(
            name=name,
            command=FROM_INSIDE.get(name, ":"),
            seconds=3 if name in WORKS_ON else 60 if name in FROM_INSIDE else 600,
        )
        for name in names
    ]
    return "on: [push]\njobs:\n" + "".join(jobs)


def machine_at_work(repository: Repository, name: str) -> str | None:
    """The machine on which this job's step has begun."""
    job = next((job for job in repository.jobs() if job["name"] == name), None)
    began = any(
        step["started_at"] > "1971"
        for step in (job or {}).get("steps") or []
        if step.get("started_at")
    )
    return str(job["runner_name"]) if job and job["status"] == "in_progress" and began else None


@pytest.mark.parametrize(
    "mode",
    [pytest.param(mode, marks=[] if mode == "parked" else [pytest.mark.long]) for mode in MODES],
)
def test_no_unfinished_job_is_a_success(
    site: Site, lay_ground: Callable[..., Ground], mode: str
) -> None:
    sample = SAMPLE + (MORE if mode == "cloned" else ())
    names = [name for name in (*FROM_INSIDE, *FROM_OUTSIDE) if WHOLE or name in sample]
    ground = lay_ground(most=2, **MODES[mode])
    inside = [name for name in names if name in FROM_INSIDE]
    repository = site.repository("rig", "unfinished", workflow(inside))
    repositories = dict.fromkeys(inside, repository)
    with serving(ground):
        until(lambda: over(repository, inside), LIFE * 4, "every job over", every=1)
        for name in names:
            if name in FROM_OUTSIDE:
                repositories[name] = site.repository("rig", f"unfinished-{name}", workflow([name]))
                machine = until(
                    lambda name=name: machine_at_work(repositories[name], name),
                    LIFE,
                    f"the job of {name} runs",
                )
                time.sleep(1)
                FROM_OUTSIDE[name](ground, machine)
                until(
                    lambda name=name: over(repositories[name], [name]),
                    LIFE,
                    f"{name}: the job over",
                    every=0.5,
                )
    ground.run("down", "--now")
    assert ground.leftovers() == []
    found = {}
    for name in names:
        jobs = {job["name"]: job for job in repositories[name].jobs()}
        after = jobs[f"after-{name}"]
        finished = "went to its end" in repositories[name].said(jobs[name]["id"])
        found[name] = (
            jobs[name]["conclusion"],
            finished,
            after["conclusion"],
            after.get("runner_name") or "",
        )
    wrong = {
        name: seen
        for name, seen in found.items()
        if not (seen[0] in ("failure", "cancelled") and seen[2:] == ("skipped", ""))
        and not (name in WORKS_ON and seen[:3] == ("success", True, "success"))
    }
    assert not wrong, wrong


def over(repository: Repository, names: list[str]) -> bool:
    """Whether all of them and those that need them are."""
    jobs = repository.jobs()
    return len(jobs) == 2 * len(names) and all(job["status"] == "completed" for job in jobs)
