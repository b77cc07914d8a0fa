"""`make demo`: a two-job workflow on real Gitea, run by `vmrunner up` in throwaway machines, shown
phase by phase.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sqlite3
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.forge.gitea import Repository, Site, until
from tests.ground import Ground, lay

WORKFLOW = """\
on: [push]
jobs:
  passes:
    runs-on: [debian-12]
    steps:
      - name: greet
        run: |
          echo "hello from $(hostname), a $(. /etc/os-release; echo $PRETTY_NAME)"
          uname -r
      - name: whoami
        run: id
      - name: work
        run: sleep 5
  fails:
    runs-on: [debian-12]
    steps:
      - name: look
        run: df -h /; sleep 5
      - name: break
        run: echo "this one fails on purpose"; exit 3
"""
DEADLINE = 300.0  # seconds for both jobs
out = Console(highlight=False, width=110)


def seconds(stamp: str) -> float:
    """A forge's time as unix seconds; 0 where it is not set."""
    at = datetime.fromisoformat(stamp).timestamp() if stamp else 0.0
    return at if at > 86400 else 0.0


def timeline(job: dict[str, Any], record: sqlite3.Row) -> Table:
    """One job's phases, in seconds since it was queued."""
    steps = job["steps"] or []
    marks = [
        ("queued", seconds(job["created_at"])),
        ("overlay", record["overlay"]),
        ("domain created", record["started"]),
        ("guest up", record["up"]),
        ("seed read", record["seed"]),
        ("runner started", record["runner"]),
        ("runner connected", seconds(job["started_at"])),
        ("first step", min((seconds(step["started_at"]) for step in steps), default=0.0)),
        ("last step ended", max((seconds(step["completed_at"]) for step in steps), default=0.0)),
        ("powered off", record["exit"]),
        ("destroyed", record["destroyed"]),
    ]
    began = marks[0][1]
    table = Table(
        "phase",
        "after",
        "",
        box=None,
        title=f"{job['name']}: {record['machine']}",
        title_justify="left",
    )
    for name, at in marks:
        table.add_row(
            name,
            f"{at - began:6.1f} s" if at else "-",
            "▪" * min(60, int(at - began)) if at else "",
        )
    return table


def picture(path: Path, title: str, *parts: Any) -> None:
    """An SVG of what a terminal shows; without the web fonts that rich would link to."""
    console = Console(record=True, file=io.StringIO(), width=100, highlight=False)
    for part in parts:
        console.print(part)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        re.sub(r"@font-face \{.*?\}", "", console.export_svg(title=title), flags=re.DOTALL)
    )


def follow(ground: Ground, repository: Repository, pictures: Path | None) -> list[dict[str, Any]]:
    """`vmrunner up` again and again until the forge calls both jobs done and no machine is left."""
    deadline, shown, warned = time.monotonic() + DEADLINE, False, False
    while time.monotonic() < deadline:
        done = ground.run("up")
        for line in (done.stderr + done.stdout).splitlines():
            if not line.startswith("0 started, 0 destroyed, 0") and not (
                warned and line.startswith("warning: ")
            ):
                out.print(f"  {line}", markup=False)
            warned = warned or line.startswith("warning: ")
        jobs = repository.jobs()
        machines = ground.status()["pools"][0]["machines"]
        if any(machine["phase"] == "running" for machine in machines) and not shown:
            shown = True
            out.print("\n$ vmrunner status", style="bold")
            status = ground.run("status").stdout
            out.print(status, markup=False)
            if pictures:
                picture(pictures / "status.svg", "vmrunner status", status.rstrip())
        if jobs and all(job["status"] == "completed" for job in jobs) and not ground.leftovers():
            return jobs
        states = (
            ", ".join(f"{job['name']} {job['status']}" for job in jobs)
            + "; "
            + ", ".join(machine["phase"] for machine in machines)
        )
        out.print(
            f"  {time.monotonic() - deadline + DEADLINE:5.1f} s  {states}",
            style="dim",
            markup=False,
        )
        time.sleep(1)
    sys.exit(f"the jobs were not done within {DEADLINE:.0f} s")


def main() -> None:
    """Run the demo; exits non-zero unless both verdicts are right and nothing is left."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--pictures",
        type=Path,
        help="Also draw the status and the timelines as SVG into this folder.",
    )
    options = parser.parse_args()
    site = Site()
    ground = lay(Path("/tmp/vmrunner-demo"), "demo", "10.92.0.0/24", token=site.token, start="auto")
    ground.run("down", "--now", timeout=60)  # what an interrupted demo left
    ground.run("up", "main")  # "down" holds until a pool is brought up by its name
    out.print(
        "$ vmrunner snapshot create --pool main        (boots a machine once; every later one is a "
        "clone of it)",
        style="bold",
    )
    environment = os.environ | {"VMRUNNER_CONFIG": str(ground.config)}
    subprocess.run(
        ground.command("snapshot", "create", "--pool", "main"),
        env=environment,
        check=True,
        timeout=DEADLINE,
    )
    site.organisation("demo")
    out.print(
        "Pushing a repository with two jobs, one that passes and one that fails, to Gitea …",
        style="bold",
    )
    repository = site.repository("demo", "two-jobs", WORKFLOW)
    until(lambda: len(repository.jobs()) == 2, 30, "both jobs queued")
    out.print("$ vmrunner up        (again every second until both are done)", style="bold")
    jobs = follow(ground, repository, options.pictures)
    history = sqlite3.connect(ground.folder / "state" / "history.sqlite")
    history.row_factory = sqlite3.Row
    tables = []
    for job in jobs:
        record = history.execute(
            "SELECT * FROM machines WHERE machine = ?", (job["runner_name"],)
        ).fetchone()
        out.print()
        tables.append(timeline(job, record))
        out.print(tables[-1])
        out.print(
            f"the forge's verdict: {job['name']} is {job['status']}, {job['conclusion']}",
            style="bold",
            markup=False,
        )
        # The first two are the runner's own.
        for line in repository.said(job["id"]).splitlines()[2:6]:
            out.print(f"  log | {line}", markup=False)
    history.close()
    if options.pictures:
        picture(options.pictures / "timeline.svg", "make demo", *tables)
    records = [
        runner["name"] for runner in site.runners() if runner["name"].startswith("vmr-demo-")
    ]
    left = ground.leftovers()
    out.print(
        f"\nLeft on the host: {len(left)} domains, volumes or seeds {left or ''}",
        style="bold",
        markup=False,
    )
    out.print(
        f"Left at the forge: {len(records)} runner records {records or ''}",
        style="bold",
        markup=False,
    )
    repository.delete()
    site.close()
    if os.environ.get("VMRUNNER_TEST_RIG") == "host":
        out.print("\n$ vmrunner down --all --purge", style="bold")
        out.print(ground.run("down", "--all", "--purge").stdout, markup=False)
    verdicts = {job["name"]: job["conclusion"] for job in jobs}
    if verdicts != {"passes": "success", "fails": "failure"} or left or records:
        sys.exit("the demo did not end as it should")


if __name__ == "__main__":
    main()
