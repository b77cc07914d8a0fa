"""A guest that floods what it can write to: the host's disk stays bounded, and the neighbour does
not notice.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.forge.gitea import Site, until
from tests.ground import STORAGE, Ground
from tests.vm.test_endings import serving
from tests.vm.test_jobs import LIFE
from vmrunner.hypervisor.seam import File

pytestmark = pytest.mark.vm
SECONDS = int(os.environ.get("VMRUNNER_TEST_FLOOD_SECONDS", "10"))
MACHINE = ("exec", "--image", "test-gitea", "--memory", "1GiB", "--")
# virtlogd keeps 2 MiB and three older files of each port, and swaps them while we look.
BOUND = 3 * 5 * (2 << 20)
FLOOD = " ".join(
    [
        "line=$(head -c 60 /dev/zero | tr '\\0' a);",
        f"timeout {SECONDS} yes $line >/dev/ttyS0 &",
        f"timeout {SECONDS} yes up 1 $line >/dev/virtio-ports/org.vmrunner.events &",
        f"timeout {SECONDS} yes $line >/dev/virtio-ports/org.vmrunner.log &",
        f"timeout {SECONDS} yes $line >/flood &",
        "wait",
    ]
)


def taken(ground: Ground) -> int:
    """Bytes of the host's disk that its console, its reports and its runner's log take."""
    total = 0
    for path in (STORAGE / ground.manager).glob(f"vmr-{ground.manager}-*"):
        if any(f".{file}" in path.name for file in (File.CONSOLE, File.EVENTS, File.RUNNER_LOG)):
            try:
                total += path.stat().st_blocks * 512
            except FileNotFoundError:  # swapped meanwhile
                continue
    return total


@pytest.mark.long
def test_a_flood(lay_ground: Callable[..., Ground]) -> None:
    ground = lay_ground()
    ground.run("snapshot", "create", "--image", "test-gitea", "--memory", "1GiB")
    environment = {"VMRUNNER_CONFIG": str(ground.config), "PATH": os.environ["PATH"]}
    with subprocess.Popen(
        ground.command(*MACHINE, "sh", "-c", FLOOD), env=environment, stderr=subprocess.DEVNULL
    ) as flooding:
        most = 0
        while flooding.poll() is None:
            most = max(most, taken(ground))
            neighbour = ground.run(*MACHINE, "echo", "undisturbed")
            assert neighbour.stdout == "undisturbed\n"
            time.sleep(0.2)
    print(f"{SECONDS} s: {most >> 10} KiB at most")
    assert flooding.returncode == 0
    assert 0 < most <= BOUND
    assert taken(ground) == 0, "and nothing of it is left"


def resident(process: subprocess.Popen[str]) -> int:
    """KiB of memory that it has."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1])  # type: ignore[index]


@pytest.mark.long
def test_a_job_that_floods_while_the_manager_serves(
    site: Site, lay_ground: Callable[..., Ground]
) -> None:
    ground = lay_ground(cloned=True, most=2)
    neighbours = 3
    commands = {"flood": FLOOD} | {
        f"neighbour-{number}": 'echo "undis""turbed"' for number in range(neighbours)
    }
    jobs = {
        name: {"runs-on": ["debian-12"], "steps": [{"run": command}]}
        for name, command in commands.items()
    }
    repository = site.repository("rig", "flood", json.dumps({"on": ["push"], "jobs": jobs}))
    until(lambda: len(repository.jobs()) == len(jobs), 30, "the jobs")
    most, taken_of_memory = 0, list[int]()
    with serving(ground) as manager:
        deadline = time.monotonic() + LIFE + SECONDS
        while not all(job["status"] == "completed" for job in repository.jobs()):
            assert time.monotonic() < deadline
            if any(
                job["name"] == "flood" and job["status"] == "in_progress"
                for job in repository.jobs()
            ):
                most = max(most, taken(ground))
                taken_of_memory.append(resident(manager))
            time.sleep(0.1)
        until(lambda: not ground.leftovers(), 60, "nothing is left")
    third = len(taken_of_memory) // 3
    early, late = (
        statistics.median(part)
        for part in (taken_of_memory[third : 2 * third], taken_of_memory[2 * third :])
    )
    print(
        f"{SECONDS} s: {most >> 10} KiB at most, the manager {early:.0f} KiB, then {late:.0f} KiB"
    )
    assert {job["name"]: job["conclusion"] for job in repository.jobs()} == dict.fromkeys(
        commands, "success"
    )
    assert all(
        "undisturbed" in repository.said(job["id"])
        for job in repository.jobs()
        if job["name"] != "flood"
    )
    assert 0 < most <= BOUND
    assert late < 1.1 * early
