"""Many jobs through the real GARM, while it is killed, its provider is killed in the middle of
making machines, and a webhook gets lost: every verdict is right, and nothing is left.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.demo import out
from tests.forge.gitea import Site, until
from tests.garm.calls import PROGRAM
from tests.garm.demo import FOLDER, clear, place
from tests.garm.site import Garm, wait_for_quiet
from tests.prepare import GITEA

PATIENCE = 1800.0  # seconds for all of it, and for the rest of it then
AT_ONCE = 3  # runners
JOB = """\
  job{number:02}:
    runs-on: [for-garm]
    steps:
      - run: echo "job {number} on $(hostname)"; sleep 3; exit {code}
"""


def code(number: int) -> int:
    """Every fifth job fails, as it shall."""
    return 3 if number % 5 == 4 else 0


def kill_a_create() -> bool:
    """`kill -9` for a provider that makes a machine now."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if b"GARM_COMMAND=CreateInstance" in path.read_bytes():
                line = (path.parent / "cmdline").read_bytes()
                if str(PROGRAM).encode() in line:
                    os.kill(int(path.parent.name), signal.SIGKILL)
                    return True
    return False


def remove_failed(garm: Garm) -> None:
    """As an admin does: GARM 0.2.1 wants to make a failed instance anew, and forbids itself that:
    it stays, with its place in the pool.
    """
    for each in garm.instances():
        if each["status"] == "error":
            garm.call("DELETE", f"/instances/{each['name']}?forceRemove=true", fine=(400, 404, 500))


def runners(site: Site) -> list[dict[str, Any]]:
    """The forge's records of GARM's runners."""
    return [each for each in site.runners() if each["name"].startswith("garm-")]


def run(count: int, idle: int) -> None:
    """Exits non-zero unless each verdict is right and nothing is left anywhere."""
    site = Site()
    with ExitStack() as stack:
        stack.callback(site.close)
        ground = place(site)
        clear(ground)
        stack.callback(clear, ground)
        ground.run("snapshot", "create", "--flavor", "small", "--image", GITEA, timeout=600)
        for old in runners(site):  # of a soak that was ended
            site.call("DELETE", f"/admin/actions/runners/{old['id']}", fine=(404,))
        garm = Garm(FOLDER, {"vmrunner": (PROGRAM, ground.config)})
        stack.callback(garm.stop)
        garm.start()
        garm.set_up(site)
        organisation = garm.organisation(site, "garm-soak")
        pool = garm.pool(organisation, GITEA, max_runners=AT_ONCE, min_idle_runners=idle)
        time.sleep(6)
        jobs = "".join(JOB.format(number=number, code=code(number)) for number in range(count))
        began = time.monotonic()
        repository = site.repository("garm-soak", "jobs", f"on: [push]\njobs:\n{jobs}")
        until(lambda: len(repository.jobs()) == count, 60, "all jobs queued")
        kills, restarts, shown = 0, 0, -1
        while time.monotonic() - began < PATIENCE:
            done = sum(job["status"] == "completed" for job in repository.jobs())
            if done != shown:
                shown = done
                out.print(f"{time.monotonic() - began:6.0f} s  {done} of {count} jobs")
            if done == count:
                break
            if kills < 5 and done >= kills * count // 6 and kill_a_create():
                kills += 1
                out.print(f"{time.monotonic() - began:6.0f} s  provider killed in CreateInstance")
            if restarts < 2 and done >= (restarts + 1) * count // 3:
                restarts += 1
                garm.kill()
                # Webhooks of these seconds are lost.
                time.sleep(4)
                garm.start()
                out.print(f"{time.monotonic() - began:6.0f} s  GARM killed and started again")
            remove_failed(garm)
            time.sleep(0.1)
        verdicts = {job["name"]: job["conclusion"] for job in repository.jobs()}
        wanted = {
            f"job{number:02}": "failure" if code(number) else "success" for number in range(count)
        }
        wrong = {name: verdicts.get(name) for name in wanted if verdicts.get(name) != wanted[name]}
        out.print(
            f"{count - len(wrong)} right verdicts of {count} in {time.monotonic() - began:.0f} s"
        )
        garm.close_pool(organisation, pool)
        time.sleep(30)  # what was being made is made
        garm.dismiss()
        try:
            wait_for_quiet(garm, PATIENCE)
        except AssertionError:
            out.print([(each["name"], each["status"]) for each in garm.instances()])
        ground.run("up")
        records = [each["name"] for each in runners(site)]
        left = [each["name"] for each in garm.instances()]
        machines = ground.leftovers()
        out.print(f"killed: {kills} providers, GARM {restarts} times")
        out.print(f"left: at GARM {left}, at Gitea {records}, on the host {machines}")
        repository.delete()
        if wrong or left or records or machines:
            sys.exit(f"the soak did not end as it should: {wrong}")
