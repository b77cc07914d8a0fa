"""What was said in and about machines, and what they took, of jobs of the real Gitea: while they
run, after their end, and where `serve` is killed.
"""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.forge.gitea import Repository, Site, until
from tests.ground import Ground
from tests.page import TOKEN, free_port, with_logs
from tests.vm.test_endings import serving
from tests.vm.test_jobs import LIFE
from vmrunner.page.seen import Reader

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


@pytest.mark.long
def test_the_page_shows_what_is_said(
    site: Site, lay_ground: Callable[..., Ground], tmp_path: Path
) -> None:
    """While a job runs, to many who look, beside whom passes go on; and when it has ended."""
    port = free_port()
    page = f'[page]\nlisten = "127.0.0.1:{port}"\n{with_logs(tmp_path)}'
    ground = lay_ground(cloned=True, more=page)

    def shown(address: str) -> str:
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}/machines/{address}",
            headers={"Authorization": f"Bearer {TOKEN}"},
        )
        with urllib.request.urlopen(asked, timeout=30) as answer:
            text: str = answer.read().decode()
            return text

    with serving(ground):
        wait = WAIT.format(url=f"{site.url}/api/v1/repos/rig/shown")
        repository = site.repository("rig", "shown", JOB.format(wait=wait))
        (machine,) = until(lambda: running(ground), LIFE, "a machine with a job")
        until(lambda: "past the runner" in shown(machine), 60, "the page shows what it says")
        assert "is being asked for" not in shown(machine)
        seen = Reader(ground.folder / "run" / "suite.seen.json")
        with ThreadPoolExecutor(80) as many:
            looking = [many.submit(shown, machine) for _ in range(300)]
            for _ in range(3):
                at = seen.seen().at
                until(lambda at=at: seen.seen().at > at, 30, "a pass", every=0.1)
            assert all("past the runner" in each.result() for each in looking)
        whole = shown(f"{machine}/log")
        assert all(f"  {source}" in whole for source in ("console", "runner", "guest", "manager"))
        assert "hush-hush" not in whole
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/machines/{machine}/log")
        end(site, repository)
        until(lambda: rows(ground), LIFE, "the job's verdict")
        whole = until(
            lambda: found if "machine destroyed" in (found := shown(f"{machine}/log")) else "",
            60,
            "its end",
        )
    assert whole.count("past the runner") == 1
    printed = ground.run("logs", machine).stdout
    assert whole.splitlines() == printed.splitlines()


def phases(ground: Ground) -> list[str]:
    return [machine["phase"] for machine in ground.status()["pools"][0]["machines"]]


def running(ground: Ground) -> list[str]:
    machines = ground.status()["pools"][0]["machines"]
    return [machine["name"] for machine in machines if machine["phase"] == "running"]
