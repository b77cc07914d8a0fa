"""From the queue to the first step, in turns: `vmrunner serve`, vmrunner as GARM's provider, and a
provider of the usual kind (peer.py); and what one call of ours to make a machine costs. With idle
runners the first two alone: there GARM's own loop of five seconds is not waited for.
"""

from __future__ import annotations

import http.server
import json
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import libvirt

from tests import stock
from tests.bench.common import GATE, PORT, Gate, median, say, serving
from tests.bench.common import ground as bench_ground
from tests.forge.gitea import Repository, Site, until
from tests.garm.calls import PROGRAM
from tests.garm.demo import FOLDER, clear, place
from tests.garm.site import Garm, wait_for_quiet
from tests.ground import Ground
from tests.prepare import GITEA

LIFE = 600.0  # seconds for a job, on a slow day
PEER, USUAL = Path(__file__).with_name("peer.py"), Path("/var/lib/libvirt/usual")
RUNNERS, DOWNLOADS = Path(__file__).parents[1] / "runner", 3003
LABELS = {"serve": "debian-12", "garm": "for-garm", "peer": "for-peer"}
NETWORK = (
    "<network><name>usual</name><forward mode='nat'/><bridge name='virbr-usual'/>"
    "<ip address='10.95.0.1' netmask='255.255.255.0'>"
    "<dhcp><range start='10.95.0.10' end='10.95.0.250'/></dhcp></ip></network>"
)
TIMED = """#!{python}
import json, os, sys, time
at, began = time.time(), time.monotonic()
child = os.posix_spawn("{program}", ["{program}"], os.environ)
_, status, usage = os.wait4(child, 0)
with open("{log}", "a") as log:
    call = {{"side": "{side}", "command": os.environ["GARM_COMMAND"], "at": at}}
    call |= {{"seconds": time.monotonic() - began, "kib": usage.ru_maxrss}}
    log.write(json.dumps(call) + "\\n")
sys.exit(os.waitstatus_to_exitcode(status))
"""


def timed(side: str, program: Path, log: Path) -> Path:
    """A provider, each call of which is written down with its time and its memory."""
    path = FOLDER / f"timed-{side}"
    path.write_text(TIMED.format(python=sys.executable, program=program, side=side, log=log))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@contextmanager
def usual() -> Iterator[Path]:
    """What the usual provider's machines need: their image, a network with DHCP, and a place that
    has the runner, as a release page would; the image's path.
    """
    USUAL.mkdir(exist_ok=True)
    image = USUAL / "stock.img"
    shutil.copyfile(stock.cached(stock.SUITE), image)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(RUNNERS))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, USUAL)
        host = libvirt.open("qemu:///system")
        stack.callback(host.close)
        network = host.networkCreateXML(NETWORK)
        stack.callback(network.destroy)
        server = stack.enter_context(http.server.ThreadingHTTPServer((GATE, DOWNLOADS), handler))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stack.callback(server.shutdown)
        yield image


def workflow(side: str, gate: Gate) -> str:
    return (
        f"on: [workflow_dispatch]\njobs:\n  {side}:\n    runs-on: [{LABELS[side]}]\n    steps:\n"
        f"      - run: |\n          {gate.visit(side)}\n"
    )


def first_step(repository: Repository, gate: Gate, side: str) -> float:
    """Seconds from the moment when the forge says that the job waits."""
    gate.arrivals.clear()
    before = len(repository.jobs())
    repository.dispatch()
    queued = time.time()
    until(lambda: side in gate.arrivals, LIFE, f"{side}: the first step", every=0.02)

    def is_over() -> bool:
        jobs = repository.jobs()
        return len(jobs) > before and all(job["status"] == "completed" for job in jobs)

    until(is_over, LIFE, f"{side}: the end", every=0.5)
    return gate.arrivals[side] - queued


def usual_machines() -> list[str]:
    told = subprocess.run(
        ["virsh", "-q", "-c", "qemu:///system", "list", "--name"],
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in told.stdout.split() if name.startswith("garm-")]


def run(rounds: int, idle: int) -> None:
    """Prints a table, and one line of JSON."""
    sides = ["serve", "garm"] if idle else list(LABELS)
    site = Site()
    with ExitStack() as stack:
        stack.callback(site.close)
        gate = Gate(site)
        stack.callback(gate.close)
        ours = place(site, f'allow = ["{GATE}:{PORT}"]\n')
        clear(ours)
        stack.callback(clear, ours)
        ours.run("snapshot", "create", "--flavor", "small", "--image", GITEA, timeout=LIFE)
        serve = bench_ground(site, "snapshot", idle=idle, most=idle + 1)
        stack.callback(clear, serve)
        image = stack.enter_context(usual())
        log = FOLDER / "calls"
        log.unlink(missing_ok=True)
        providers = {
            "vmrunner": (timed("garm", PROGRAM, log), ours.config),
            "peer": (timed("peer", PEER, log), image),
        }
        garm = Garm(FOLDER, providers, address=GATE)
        stack.callback(garm.stop)
        garm.start()
        garm.set_up(site)
        organisation = garm.organisation(site, "garm-compare")
        pools = [
            garm.pool(organisation, GITEA, min_idle_runners=idle, max_runners=idle + 1),
            garm.pool(organisation, "stock", provider_name="peer", tags=[LABELS["peer"]]),
        ]
        stack.enter_context(serving(serve))
        time.sleep(6)  # GARM looks at a new pool every five seconds
        repositories = {
            side: site.repository("garm-compare", side, workflow(side, gate)) for side in sides
        }
        taken: dict[str, list[float]] = {side: [] for side in sides}
        called: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(rounds):
            for side, repository in repositories.items():
                if idle:
                    _ready(site, idle)
                else:
                    _quiet(garm, ours, serve)
                taken[side].append(first_step(repository, gate, side))
                say(f"{number + 1}/{rounds} {side}: {taken[side][-1]:.2f} s")
                if creates := [call for call in calls(log, side) if not idle]:
                    called[side].append(gate.arrivals[side] - creates[-1]["at"])
        for pool in pools:
            garm.close_pool(organisation, pool)
        time.sleep(10)  # what was being made is made
        garm.dismiss()
        _quiet(garm, ours, *([] if idle else [serve]))
        for repository in repositories.values():
            repository.delete()
        print(json.dumps(_figures(taken, called, calls(log, "garm"))))


def _quiet(garm: Garm, *grounds: Ground) -> None:
    wait_for_quiet(garm, LIFE)
    until(
        lambda: not usual_machines() and not any(each.leftovers() for each in grounds),
        LIFE,
        "all machines are gone",
        every=0.5,
    )


def _ready(site: Site, idle: int) -> None:
    """Returns when each side's runners wait at the forge, and nothing works."""

    def waiting() -> bool:
        records = [each for each in site.runners() if each["status"] == "online"]
        idlers = [each["name"].partition("-")[0] for each in records if not each["busy"]]
        return len(records) == 2 * idle and idlers.count("garm") == idlers.count("vmr") == idle

    until(waiting, LIFE, "the runners are idle again", every=0.5)
    time.sleep(3)  # and whoever made them is done


def calls(log: Path, side: str) -> list[dict[str, Any]]:
    """Those to make a machine, oldest first."""
    found = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [call for call in found if (call["side"], call["command"]) == (side, "CreateInstance")]


def _figures(
    taken: dict[str, list[float]], called: dict[str, list[float]], creates: list[dict[str, Any]]
) -> dict[str, Any]:
    """`called` are seconds from GARM's call to the first step: what is before it is GARM's."""
    middle = {side: median(values) for side, values in taken.items()}
    since = {side: median(values) for side, values in called.items() if values}
    return {
        "first step (s)": middle,
        "all (s)": {side: [round(each, 2) for each in values] for side, values in taken.items()},
        "first step after the call (s)": {side: round(each, 2) for side, each in since.items()},
        "garm to serve": round(middle["garm"] / middle["serve"], 2),
        "peer to garm": round(middle["peer"] / middle["garm"], 2) if "peer" in middle else None,
        "the same after the call": round(since["peer"] / since["garm"], 2) if since else None,
        "a create (s)": [round(call["seconds"], 2) for call in creates],
        "memory of a create (MiB)": round(max(call["kib"] for call in creates) / 1024),
    }
