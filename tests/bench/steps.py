"""Where the time from the queue to a job's first step goes, in steps, with Gitea's own runner: with
`serve`, and beside it the very QEMU that libvirt started, without libvirt and without a manager.
"""

from __future__ import annotations

import random
import sqlite3
import subprocess
import time
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Interface
from itertools import batched
from statistics import median_high
from typing import Any, ClassVar

import libvirt

from tests.bench.common import GATE, LIFE, MANAGER, Ear, Gate, ground, say, serving
from tests.bench.floor import LOGS, TAP, Floor
from tests.bench.life import floor_of
from tests.bench.queue import MODES, is_idle, workflow
from tests.bench.wire import Seen, Wire
from tests.forge.gitea import Repository, Site, until
from tests.ground import STORAGE, Ground
from vmrunner import config
from vmrunner.forge.connect import connect
from vmrunner.hypervisor import events
from vmrunner.hypervisor.seam import File
from vmrunner.machine import seed
from vmrunner.model.job import Scope, ScopeKind

STEPS = {
    "poll": "a poll sees that a job waits",
    "records": "the pass reads rules, machines, the runners' records",
    "jobs": "the jobs that wait",
    "token": "a registration token",
    "record": "the runner's record",
    "overlay": "its binding is written; a volume on the snapshot's disk",
    "process": "libvirt prepares: files, labels, log; QEMU's process begins",
    "listens": "QEMU's own start, until it listens",
    "created": "libvirt around it: labels, cgroup, status file, until the domain is there",
    "loaded": "the rules, the devices' state",
    "written": "its metadata, the seed",
    "resumed": "libvirt lets it go on",
    "seen": "the guest's next look finds its seed",
    "read": "it reads it",
    "stirred": "its clock, its random numbers",
    "chosen": "the runner is told its configuration",
    "seed": "it is another machine: name, hosts, ids",
    "connected": "its address, its route",
    "prepared": "the job's own: its user, the forge's name, its folder",
    "runner": "the runner is told who it is, and may begin",
    "name": "the runner asks for the forge's name",
    "connect": "… and for IPv6's, and connects",
    "declare": "its HTTP",
    "declared": "the forge: Declare",
    "fetch": "the runner: what it can do is told; a look for a task",
    "task": "the forge: FetchTask",
    "received": "the task is read",
    "parsed": "the workflow is parsed, the workspace made",
    "main": "the job's plan; its step is next",
    "script": "the step's script is written",
    "bash": "its shell is chosen",
    "visit": "`bash` begins, and asks for the gate's name",
    "first step": "… and is there",
}
"""In their order: what ends with each of them."""
_HOST_ADDRESS, _GUEST_ADDRESS = "10.85.0.1/24", "10.85.0.9/24"
"""Of the QEMU without libvirt."""
USUAL = ("snapshot", "parked")
_TURN = 5
"""Jobs of one side before it is the other one's turn."""
_GUEST = ("seen", "read", "stirred", "chosen", "seed", "connected", "prepared", "runner")
_CALLS = {"Declare": ("declare", "declared"), "FetchTask": ("fetch", "task")}
_LOG = {
    "received": " received task ",
    "parsed": " workflow prepared",
    "main": " Run Main ",
    "script": " ::group::",
    "bash": " ::endgroup::",
}


@dataclass
class Sides:
    """Of each side, in each run: the seconds from one mark to the next that there is."""

    runs: list[dict[str, float]] = field(default_factory=list)

    def add(self, marks: dict[str, float], begin: float) -> None:
        before = begin
        found = {}
        for name in STEPS:
            if name in marks:
                found[name], before = marks[name] - before, marks[name]
        self.runs.append(found)

    def medians(self) -> dict[str, float]:
        names = [name for name in STEPS if any(name in run for run in self.runs)]
        return {
            name: round(median_high(run.get(name, 0.0) for run in self.runs), 3) for name in names
        }


def side_by_side(site: Site, gate: Gate, mode: str, runs: int) -> dict[str, dict[str, float]]:
    """Medians in seconds, of vmrunner and of the QEMU underneath, which take turns."""
    events.start()
    how = MODES[mode]
    place = ground(site, "boot")
    floor, state = floor_of(place)
    place = how.ground(site)
    repository = site.repository("rig", "bench", workflow(["first"], gate))
    ours, theirs = Sides(), Sides()
    with closing(Wire()) as wire, closing(Watch()) as watch:
        jobs = Jobs(place, repository, gate, wire, watch)
        for turn in batched(range(runs), _TURN):
            with serving(place):
                for _ in turn:
                    until(lambda: is_idle(place, how), LIFE, "it waits for a job", every=1.0)
                    ours.add(*_managed(jobs))
            for _ in turn:
                theirs.add(*(_raw_parked if how.warm else _raw)(jobs, floor, state))
            say(f"steps/{mode} {turn[-1] + 1}/{runs}")
    repository.delete()
    return {"vmrunner": ours.medians(), "raw QEMU": theirs.medians()}


class Watch:
    """When libvirt told that a machine was created, and that it goes on, until it is closed."""

    _MARKS: ClassVar = {
        libvirt.VIR_DOMAIN_EVENT_STARTED: "created",
        libvirt.VIR_DOMAIN_EVENT_RESUMED: "resumed",
    }

    def __init__(self) -> None:
        self._told: dict[str, dict[str, float]] = defaultdict(dict)
        self._connection = libvirt.open("qemu:///system")
        self._connection.domainEventRegisterAny(
            None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle, None
        )

    def close(self) -> None:
        """Listen no longer."""
        self._connection.close()

    def told(self, machine: str) -> dict[str, float]:
        """Of this machine (unix seconds); the last time of each, as a parked one goes on twice."""
        return self._told[machine]

    def _lifecycle(self, _connection: Any, domain: Any, event: int, *_: object) -> None:
        if mark := self._MARKS.get(event):
            self._told[domain.name()][mark] = time.time()


@dataclass(frozen=True)
class Jobs:
    """One job after the other, and all that is known of it."""

    place: Ground
    repository: Repository
    gate: Gate
    wire: Wire
    watch: Watch

    def queue(self) -> float:
        """One more; when it was in the queue (unix seconds)."""
        self.gate.arrivals.clear()
        time.sleep(random.random())  # noqa: S311 — jobs don't come in step with the manager's polls
        self.wire.clear()
        self.repository.dispatch()
        return time.time()

    def await_step(self) -> None:
        """Until the job's step has visited the gate."""
        until(lambda: self.gate.arrivals, LIFE, "the first step", every=0.02)

    def guest(self, ear: Ear) -> dict[str, float]:
        """The marks of the machine that does the job.

        What the job's log says is of the guest's clock, which is set by what the guest told.
        """
        job = until(self._over, LIFE, "the job is over")
        marks = {word: ear.heard[word] for word in _GUEST}
        behind = min(ear.heard[word] - ear.said[word] for word in ("seed", "runner"))
        marks["written"] = ear.written
        for line in self.repository.log(job["id"]).splitlines():
            for name, word in _LOG.items():
                if word in line and name not in marks:
                    # Go's nanoseconds are more than Python reads.
                    said = datetime.fromisoformat(line[:26]).replace(tzinfo=UTC)
                    marks[name] = said.timestamp() + behind
        arrival = self.gate.arrivals["first"]
        address = next(seen.sender for seen in self.wire.seen if seen.what == "GET /first")
        mine = [seen for seen in self.wire.seen if address in (seen.sender, seen.receiver)]
        marks |= _first(mine, {"name": "name", "connect": "connect"})
        for request, (asked, answered) in _CALLS.items():
            at = next(i for i, seen in enumerate(mine) if seen.what.endswith(f"/{request}"))
            marks[asked] = mine[at].at
            marks |= _first(mine[at:], {answered: "answer"})
        last = [seen for seen in mine if marks["task"] < seen.at < arrival]
        marks |= _first(last, {"visit": "connect"}) | _first(last, {"visit": "name"})
        return marks | {"first step": arrival}

    def _over(self) -> dict[str, Any] | None:
        job = self.repository.jobs()[-1]
        return job if job["status"] == "completed" else None


def _first(seen: list[Seen], words: dict[str, str]) -> dict[str, float]:
    """The marks whose packet is among these."""
    found = {}
    for mark, what in words.items():
        at = next((one.at for one in seen if one.what == what), None)
        if at is not None:
            found[mark] = at
    return found


def _managed(jobs: Jobs) -> tuple[dict[str, float], float]:
    """The marks of a job under `serve`, and when it was queued."""
    with closing(Ear(STORAGE / MANAGER, f"*.{File.EVENTS}", f"*.{File.SEED}")) as ear:
        queued = jobs.queue()
        jobs.await_step()
        machine = jobs.repository.jobs()[-1]["runner_name"]
        marks = {"process": _process(machine)} | jobs.watch.told(machine) | jobs.guest(ear)
    marks |= _manager(jobs.wire.seen)
    with closing(sqlite3.connect(jobs.place.folder / "state" / "history.sqlite")) as database:
        (marks["overlay"],) = database.execute(
            "SELECT overlay FROM machines WHERE machine = ?", [machine]
        ).fetchone()
    return {name: at for name, at in marks.items() if at > queued}, queued


def _raw(jobs: Jobs, floor: Floor, state: str) -> tuple[dict[str, float], float]:
    """The marks of a job in a clone that is made when it is queued; its runner's record is there
    before.
    """
    content = _seed(jobs, floor)
    queued = jobs.queue()
    with floor.alive(state), closing(_ear(floor)) as ear:
        _begin(jobs, floor, content)
        marks = jobs.guest(ear)
    return marks | _of_floor(floor), queued


def _raw_parked(jobs: Jobs, floor: Floor, state: str) -> tuple[dict[str, float], float]:
    """The marks of a job in a clone that has been made and has rehearsed before."""
    content = _seed(jobs, floor)
    rehearsal = seed.rehearsal_script("gitea", floor.machine, "root")
    with floor.alive(state):
        with closing(_ear(floor)) as ear:
            floor.give(seed.iso(floor.machine, rehearsal, None, rehearsal=True))
            floor.resume()
            until(lambda: "rehearsed" in ear.heard, LIFE, "it has rehearsed")
            floor.pause()
        with closing(_ear(floor)) as ear:
            queued = jobs.queue()
            _begin(jobs, floor, content)
            return jobs.guest(ear) | {"resumed": floor.marks["resume"]}, queued


def _of_floor(floor: Floor) -> dict[str, float]:
    names = {"overlay": "overlay", "listens": "create", "loaded": "load", "resumed": "resume"}
    return {mark: floor.marks[name] for mark, name in names.items()}


def _ear(floor: Floor) -> Ear:
    return Ear(floor.events.parent, floor.events.name, floor.seed.name)


def _begin(jobs: Jobs, floor: Floor, content: bytes) -> None:
    """The job's seed, and the way to the forge; until its first step."""
    for command in (["addr", "add", _HOST_ADDRESS, "dev", TAP], ["link", "set", TAP, "up"]):
        subprocess.run(["ip", *command], check=True)
    floor.give(content)
    floor.resume()
    floor.mark("resume")
    jobs.await_step()


def _seed(jobs: Jobs, floor: Floor) -> bytes:
    """A job's, with credentials of its own. The forge's name is in it: nobody answers for names
    here.
    """
    settings = config.load(jobs.place.config)
    pool = settings.pools["main"]
    token = config.forge_token(settings.forge, lambda _: None)
    with closing(connect(settings.forge, token)) as forge:
        scope = Scope(ScopeKind.REPOSITORY, jobs.repository.name)
        credentials = forge.create_runner(scope, str(floor.machine), pool.label_names)
    job = seed.Job(
        "gitea",
        settings.forge.url,
        floor.machine,
        credentials,
        pool.labels,
        pool.job_timeout,
        pool.pickup_timeout,
        forge_address=GATE,
    )
    return seed.iso(floor.machine, seed.job_script(job), IPv4Interface(_GUEST_ADDRESS))


def _manager(seen: list[Seen]) -> dict[str, float]:
    """What the manager asked the forge, up to the runner's record."""
    mine = [one for one in seen if one.sender == one.receiver]
    minted = next(i for i, one in enumerate(mine) if one.what.endswith("/registration-token"))
    listed = [i for i, one in enumerate(mine[:minted]) if "/runners?" in one.what][-1]
    asked = [i for i, one in enumerate(mine[:minted]) if "/actions/jobs?" in one.what][-1]
    answers = {"record": minted + 2, "token": minted, "jobs": asked, "records": listed}
    marks = {"poll": mine[listed].at}
    for mark, at in answers.items():
        marks |= _first(mine[at:], {mark: "answer"})
    return marks


def _process(machine: str) -> float:
    """When libvirt began this machine's process."""
    log = (LOGS / f"{machine}.log").read_text().rpartition(": starting up libvirt")[0]
    stamp = log.splitlines()[-1].removesuffix("+0000")
    return datetime.fromisoformat(stamp).replace(tzinfo=UTC).timestamp()
