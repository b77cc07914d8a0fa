"""What was said in and about machines, and what they took, of jobs of the real Gitea: while they
run, after their end, and where `serve` is killed.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.forge.gitea import Repository, Site, until
from tests.ground import Ground
from tests.vm.test_endings import serving
from tests.vm.test_jobs import LIFE

pytestmark = pytest.mark.vm

# It ends when somebody has made a label.
JOB = """\
on: [push]
jobs:
  talks:
    runs-on: [debian-12]
    steps:
      - run: |
          echo "::add-mask::hush-hush"; echo "hush-hush"
          dd if=/dev/zero of=/big bs=1M count=24 conv=fsync 2>/dev/null
          echo "past the runner" >/dev/console
          {wait}
          exit 3
"""
WAIT = "for n in $(seq 240); do curl -s {url}/labels | grep -q enough && break; sleep 0.5; done"


def entries(ground: Ground, *of: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(ground.run("logs", *of, "--json").stdout)
    return found


def said(found: list[dict[str, Any]], source: str) -> str:
    return "\n".join(each["text"] for each in found if each["source"] == source)


def check_whole(found: list[dict[str, Any]]) -> None:
    """Every source, in the order of time; nothing that the runner masks."""
    assert [each["at"] for each in found] == sorted(each["at"] for each in found)
    assert "task" in said(found, "runner"), found
    assert "past the runner" in said(found, "console"), found
    assert "runner" in said(found, "guest"), found
    assert "machine started" in said(found, "manager"), found
    assert "hush-hush" not in json.dumps(found)


def end(site: Site, repository: Repository) -> None:
    site.call("POST", f"/repos/{repository.name}/labels", {"name": "enough", "color": "00aabb"})


def rows(ground: Ground) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(ground.run("history", "--json").stdout)
    return [row for row in found if row["verdict"]]


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("booted", {}),
        ("cloned", {"cloned": True}),
        ("parked", {"cloned": True, "more": "warm = 1"}),
        ("apart", {"cloned": True, "more": 'network = "none"'}),
    ],
)
def test_a_job_is_looked_into_while_it_runs_and_after(
    site: Site, lay_ground: Callable[..., Ground], kind: str, more: dict[str, Any]
) -> None:
    ground = lay_ground(**more)
    with serving(ground) as server:
        if kind == "parked":
            until(lambda: "ready" in phases(ground), LIFE, "a parked machine")
        wait = WAIT.format(url=f"{site.url}/api/v1/repos/rig/talks")
        repository = site.repository("rig", "talks", JOB.format(wait=wait))
        (machine,) = until(lambda: running(ground), LIFE, "a machine with a job")

        def talks() -> bool:
            found = entries(ground, machine)
            return "past the runner" in said(found, "console") and "task" in said(found, "runner")

        until(talks, 60, "what it says is there while it runs")
        with subprocess.Popen(
            [*ground.command("logs", machine, "-f"), "-c", str(ground.config)],
            stdout=subprocess.PIPE,
            text=True,
        ) as following:
            server.kill()
            server.wait()
            check_whole(entries(ground, machine))
            end(site, repository)
            with serving(ground):
                printed, _ = following.communicate(timeout=LIFE)
                (row,) = until(lambda: rows(ground), 60, "the job's verdict")
    lines = printed.splitlines()
    assert "destroyed: done" in printed
    assert "machine destroyed" in printed
    assert len({line[25:] for line in lines if "console" in line}) == len(
        [line for line in lines if "console" in line]
    ), "each line once"
    found = entries(ground, row["url"])
    check_whole(found)
    for each in ("machine destroyed", "job ended"):
        assert each in said(found, "manager")
    assert row["machine"] == machine
    assert (row["vcpus"], row["memory_mib"]) == (2, 1024)
    assert 100 < row["memory_peak_mib"] < 1300
    assert 100 < row["guest_peak_mib"] < 1024
    assert row["cpu_seconds"] > 0
    assert row["written_bytes"] > 20 << 20
    assert row["received_bytes"] > 0
    assert row["sent_bytes"] > 0
    shown = ground.run("history", "show", machine).stdout
    assert f"vmrunner logs {machine}" in shown


def phases(ground: Ground) -> list[str]:
    return [machine["phase"] for machine in ground.status()["pools"][0]["machines"]]


def running(ground: Ground) -> list[str]:
    machines = ground.status()["pools"][0]["machines"]
    return [machine["name"] for machine in machines if machine["phase"] == "running"]
