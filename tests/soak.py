"""`make soak JOBS=20`: jobs through real Gitea, two at a time, a third failing on purpose; every verdict and leftover is checked.

`vmrunner serve` runs them, and is killed (-9) and started again every minute.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

from tests.forge.gitea import Site, until
from tests.ground import Ground, lay

JOB = """\
  {name}:
    runs-on: [debian-12]
    steps:
      - run: |
          test ! -e /marker
          touch /marker
          echo "{name} ran"
      - run: {end}
"""
PER_PAIR = 150.0  # seconds that two jobs may take on a slow day


def serve(ground: Ground) -> subprocess.Popen[bytes]:
    """The manager, in the background, its log beside its configuration."""
    with (ground.folder / "serve.log").open("ab") as log:
        return subprocess.Popen(ground.command("serve"), stdout=log, stderr=log, env=os.environ | {"VMRUNNER_CONFIG": str(ground.config)})


def main() -> None:
    """Run the soak; the last line is its figures as JSON; exits non-zero unless all is right."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--kill-every", type=float, default=60.0, help="Seconds between two kills of the manager.")
    parser.add_argument("--start", default="snapshot", choices=("snapshot", "boot"), help="How machines are started.")
    options = parser.parse_args()
    wanted = {f"job{number:03}": "failure" if number % 3 == 0 else "success" for number in range(1, options.jobs + 1)}
    parts = [JOB.format(name=name, end="exit 3" if verdict == "failure" else "exit 0") for name, verdict in wanted.items()]
    with closing(Site()) as site:
        ground = lay(Path("/tmp/vmrunner-soak"), "soak", "10.86.0.0/24", token=site.token, start=options.start)
        ground.run("down", "--now")
        ground.run("up", "main")  # "down" holds until then
        if options.start == "snapshot":
            ground.run("snapshot", "create", "--pool", "main")
        repository = site.repository("rig", "soak", "on: [push]\njobs:\n" + "".join(parts))
        until(lambda: len(repository.jobs()) == len(wanted), 60, "every job queued")
        began, kills, most = time.monotonic(), 0, 0
        deadline, next_kill = began + PER_PAIR * (len(wanted) / 2 + 1), began + options.kill_every
        manager = serve(ground)
        while True:
            time.sleep(3)
            if time.monotonic() > next_kill:
                manager.kill()
                manager.wait()
                kills, next_kill, manager = kills + 1, time.monotonic() + options.kill_every, serve(ground)
            jobs = repository.jobs()
            left = ground.leftovers()
            machines = sum(name.startswith("domain ") for name in left)
            most = max(most, machines)
            done = sum(job["status"] == "completed" for job in jobs)
            print(f"{time.monotonic() - began:6.1f} s  {done} of {len(wanted)} jobs done, {machines} machines", file=sys.stderr, flush=True)
            if (done == len(wanted) and not left) or time.monotonic() > deadline or manager.poll() is not None:
                break
        seconds = time.monotonic() - began
        manager.kill()
        manager.wait()
        wrong = [job["name"] for job in jobs if job["conclusion"] != wanted[job["name"]]]
        twice = [job["name"] for job in jobs if repository.log(job["id"]).count(f"{job['name']} ran") != 1]
        shared = len(jobs) - len({job["runner_name"] for job in jobs})
        records = [record["name"] for record in site.runners() if record["name"].startswith("vmr-soak-")]
        left = ground.leftovers()
        repository.delete()
    print(
        f"wrong verdicts: {wrong}; not run exactly once: {twice}; left on the host: {left}; left at the forge: {records}", file=sys.stderr
    )
    figures = {
        "jobs": len(wanted),
        "verdicts_right": len(jobs) - len(wrong),
        "ran_once": len(jobs) - len(twice),
        "machines_shared": shared,
        "leftovers": len(left) + len(records),
        "machines_at_once": most,
        "manager_kills": kills,
        "seconds": round(seconds, 1),
        "seconds_per_job": round(seconds / len(wanted), 1),
    }
    print(json.dumps(figures))
    if wrong or twice or shared or left or records or most > 2:
        print((ground.folder / "serve.log").read_text()[-20000:], file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
