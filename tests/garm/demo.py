"""`make garm`: a job at the real Gitea, a machine that the real GARM asks vmrunner for, the real
runner; shown as a timeline beside what GARM saw.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from tests.bench.common import GATE
from tests.demo import out, seconds
from tests.forge.gitea import Site, until
from tests.garm.calls import PROGRAM, with_flavor
from tests.garm.site import PORT, Garm, wait_for_quiet
from tests.ground import Ground, lay
from tests.prepare import GITEA

FOLDER = Path("/tmp/vmrunner-garm")
DEADLINE = 600.0  # seconds for a job, on a slow day
WORKFLOW = """\
on: [push]
jobs:
  hello:
    runs-on: [for-garm]
    steps:
      - run: echo "hello from $(hostname)"
"""
TEMPLATE = Path(__file__).with_name("install.tmpl")


def place(site: Site, more: str = "") -> Ground:
    """A host for GARM alone, with a flavor; `more` is added to it."""
    ground = lay(FOLDER / "ground", "garm", "10.94.0.0/24", token=site.token, start="auto")
    with_flavor(ground, more)
    head = ground.config.read_text()
    first, _, rest = head.partition("[pools.main]")
    ground.config.write_text(first + rest[rest.index("[garm.") :])
    return ground


def clear(ground: Ground) -> None:
    """Nothing of an earlier run."""
    ground.run("down", "--all", "--purge")


def events(instance: dict[str, Any]) -> list[tuple[str, float]]:
    """What GARM wrote down of an instance, with its times."""
    found = instance.get("status_messages") or []
    rows = [
        (
            " ".join(str(each["message"]).split()),
            datetime.fromisoformat(each["created_at"]).timestamp(),
        )
        for each in found
    ]
    return sorted(rows, key=lambda row: row[1])


def timeline(job: dict[str, Any], record: dict[str, Any], told: list[tuple[str, float]]) -> Table:
    """The job's life, ours and GARM's, in seconds since it was queued."""
    steps = job["steps"] or []
    began = seconds(job["created_at"])
    marks = [
        ("Gitea", "queued", began),
        ("vmrunner", "machine asked for", record["created"]),
        ("vmrunner", "overlay", record["overlay"]),
        ("vmrunner", "machine started", record["started"]),
        ("guest", "runner started", record["runner"]),
        ("Gitea", "runner took the job", seconds(job["started_at"])),
        ("Gitea", "first step", min((seconds(each["started_at"]) for each in steps), default=0.0)),
        ("Gitea", "job ended", seconds(job["completed_at"])),
        ("guest", "powered off", record["exit"]),
        ("vmrunner", "gone", record["destroyed"]),
        *(("GARM", text, at) for text, at in told),
    ]
    table = Table("who", "what", "after", box=None, title=job["runner_name"], title_justify="left")
    for who, what, at in sorted((mark for mark in marks if mark[2]), key=lambda mark: mark[2]):
        table.add_row(who, what[:60], f"{at - began:6.1f} s")
    return table


def main() -> None:
    """One job; exits non-zero unless its verdict is right and nothing is left anywhere."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--jobs", type=int, default=0, help="Many of them, with faults: the soak.")
    parser.add_argument("--idle", type=int, default=0, help="Runners that wait.")
    parser.add_argument(
        "--compare", type=int, default=0, help="So many jobs, beside serve and a usual provider."
    )
    parser.add_argument(
        "--own", action="store_true", help="With an install script of the pool's own."
    )
    options = parser.parse_args()
    if options.jobs:
        from tests.garm import soak

        soak.run(options.jobs, options.idle)
        return
    if options.compare:
        from tests.garm import compare

        compare.run(options.compare, options.idle)
        return
    site = Site()
    with ExitStack() as stack:
        stack.callback(site.close)
        own = f'install = "machine"\nallow = ["{GATE}:{PORT}"]\n' if options.own else ""
        ground = place(site, own)
        clear(ground)
        stack.callback(clear, ground)
        out.print("$ vmrunner snapshot create --flavor small --image test-gitea", style="bold")
        ground.run("snapshot", "create", "--flavor", "small", "--image", GITEA, timeout=DEADLINE)
        garm = Garm(FOLDER, {"vmrunner": (PROGRAM, ground.config)}, address=GATE)
        stack.callback(garm.stop)
        garm.start()
        garm.set_up(site)
        organisation = garm.organisation(site, "garm-demo")
        script = {"runner_install_template": base64.b64encode(TEMPLATE.read_bytes()).decode()}
        pool = garm.pool(organisation, GITEA, extra_specs=script if options.own else {})
        out.print(f"GARM has a pool, {pool}, with no idle runner. A push to Gitea …", style="bold")
        time.sleep(6)  # GARM looks at a new pool every five seconds
        repository = site.repository("garm-demo", "hello", WORKFLOW)
        told: dict[str, list[tuple[str, float]]] = {}
        shown = False

        def is_done() -> bool:
            nonlocal shown
            for each in garm.instances():
                told[each["name"]] = events(garm.call("GET", f"/instances/{each['name']}"))
                if not shown and each["runner_status"] in {"idle", "active"}:
                    shown = True
                    out.print("\n$ vmrunner status", style="bold")
                    out.print(ground.run("status").stdout, markup=False)
            jobs = repository.jobs()
            return bool(jobs) and jobs[0]["status"] == "completed"

        try:
            until(is_done, DEADLINE, "the job is over", every=1)
            (job,) = repository.jobs()
            until(lambda: not ground.leftovers(), DEADLINE, "the machine is gone", every=1)
            wait_for_quiet(garm, DEADLINE)
        except BaseException:
            out.print("\n".join(garm.told().splitlines()[-40:]), markup=False)
            raise
        told.setdefault(job["runner_name"], [])
        records = json.loads(ground.run("history", "--json").stdout)
        (record,) = (each for each in records if each["made_for"] == job["runner_name"])
        out.print(timeline(job, record, told[job["runner_name"]]))
        out.print(f"\nthe forge's verdict: {job['conclusion']}", style="bold")
        out.print(f"left at GARM: {garm.instances()}, on the host: {ground.leftovers()}")
        garm.close_pool(organisation, pool)
        repository.delete()
    if job["conclusion"] != "success":
        sys.exit("the demo did not end as it should")


if __name__ == "__main__":
    main()
