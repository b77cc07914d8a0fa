"""`make faults`: every step of a job's life with everything that can go wrong at it, with the real
Gitea and real machines.

The steps are not picked by hand: each life is lived once, its passes write down what they do, and
for every step so found, cells are made with every fault. In each cell the life is lived up to the
step, the fault happens, what can be mended is mended, and ordinary passes follow. Then nothing may
be left, and the job has one verdict and ran once. With `--hosts 2` another host on the same forge,
to which nothing happens, takes its turn after each of these passes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import urlsplit

import libvirt

from tests import daemons, quick, steps
from tests.forge.gitea import Repository, Site, until
from tests.ground import lay
from tests.protobuf import fields
from tests.steps import FAULT_HEADER, Fault, Kind

MANAGER, SUBNET = "faults", "10.85.0.0/24"
BESIDE, BESIDE_SUBNET = "beside", "10.84.0.0/24"  # the other host's
FOLDER = Path("/tmp/vmrunner-faults")
PORT = 3001  # of the proxy, on the forge's own address: machines and manager know the forge by it
MEMORY = 1024  # MiB of a machine: what a snapshot's file may take
LIFE = 90.0  # seconds that one wait in a life may take on a slow day
# Seconds that mended things may take to end well, a second machine and a missed deadline included.
SETTLED = 120.0
# Seconds from a job's end to its machine's: what the manager gives a guest that works on, and more.
GRACE = 30.0
_JSON = "application/json"
PASSES = 2  # after which nothing may be left
ATTEMPT = """\
on: [push]
jobs:
  once:
    runs-on: [debian-12]
    steps:
      - run: |
          echo "ran on $(hostname)"
          exec 3<>/dev/tcp/{host}/{port}
          printf 'GET /gate HTTP/1.0\\r\\n\\r\\n' >&3
          cat <&3 >/dev/null
"""


# ---- between the manager and the forge, and between a job and us ----


@dataclass
class Stage:
    """Holds a job, and a runner that has reported its end, until we have looked; lets everything
    else through. All of it over one port, so that machines need to reach nothing but the forge.
    """

    gate: Event = field(default_factory=Event)  # open: jobs end
    # open: runners hear that the forge has taken their job's end.
    curtain: Event = field(default_factory=Event)
    arrived: Event = field(default_factory=Event)  # a job runs
    over: Event = field(default_factory=Event)  # the forge knows a job's end
    runs: int = 0

    def let_go(self) -> None:
        """From now on nothing waits for us."""
        self.gate.set()
        self.curtain.set()


class Proxy:
    """Hands requests on to the forge; treats those of the manager as their header says."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.stage = Stage()
        self._forge = (parts.hostname or "", parts.port or 80)
        self.url = f"http://{parts.hostname}:{PORT}"
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                proxy._handle(self)

            do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815 — the names that http.server looks for

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer((self._forge[0], PORT), Handler)
        self._server.daemon_threads = True
        Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        with suppress(OSError):  # whoever asked may be dead by now
            self._answer(request)

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        stage = self.stage
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if request.path == "/gate":
            stage.runs += 1
            stage.arrived.set()
            stage.gate.wait(LIFE)
            return self._send(request, 200, b"")
        ours = request.headers.get("User-Agent", "").startswith("vmrunner/")
        fault = request.headers.get(FAULT_HEADER, "") if ours else ""
        if fault in {Kind.ERROR, Kind.DENY}:
            return self._send(request, int(fault), b'{"message": "a fault of the test"}')
        status, answer, kind = self._ask(request, body)
        if fault == Kind.HANG:
            time.sleep(2 * steps._PATIENCE)
            return None
        if fault == Kind.CUT:
            status, answer = 200, answer[: len(answer) // 2] or b'{"mess'
        if fault == Kind.NULL:
            status, answer = 200, b"null"
        if not ours and request.path.endswith("/UpdateTask") and _is_the_end(body):
            stage.over.set()
            stage.curtain.wait(LIFE)
        return self._send(request, status, answer, kind)

    def _ask(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes, str]:
        with closing(HTTPConnection(*self._forge, timeout=30)) as connection:
            dropped = {"host", "connection", "accept-encoding", FAULT_HEADER.lower()}
            headers = {
                name: value
                for name, value in request.headers.items()
                if name.lower() not in dropped
            }
            connection.request(request.command, request.path, body or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers.get("Content-Type", _JSON)

    def _send(
        self, request: BaseHTTPRequestHandler, status: int, body: bytes, kind: str = _JSON
    ) -> None:
        request.send_response(status)
        request.send_header("Content-Type", kind)
        if status != 204:
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)


def _is_the_end(update: bytes) -> bool:
    """Whether the runner says how its task ended: `state.result` of runner.v1.UpdateTaskRequest."""
    state = next(value for number, value in fields(update) if number == 1)
    return isinstance(state, bytes) and any(number == 2 for number, _ in fields(state))


# ---- what a cell is ----


@dataclass(frozen=True)
class Step:
    """One step of one life: in the pass of this phase."""

    life: str
    phase: str
    name: str
    has_qemu: bool

    def __str__(self) -> str:
        return f"{self.life}/{self.phase}/{self.name}"

    @property
    def is_inner(self) -> bool:
        """Whether it is one call of libvirt or one rename, inside a step of the seam or of the
        bindings.
        """
        return self.name.startswith(("vir", "rename"))

    def faults(self) -> list[Kind]:
        """What can go wrong here. Before a call of libvirt is after the one before it."""
        killed = [Kind.LIBVIRTD] + ([Kind.NETWORKS, Kind.STORAGE] if daemons.SEPARATE else [])
        if self.is_inner:
            return (
                [Kind.KILL_BEFORE] if self.name.startswith("rename") else [Kind.KILL_AFTER, *killed]
            )
        is_request = self.name.split(" ")[0] in steps._FORGE
        kinds = [Kind.KILL_BEFORE, Kind.KILL_AFTER, *killed, Kind.DISK]
        kinds += [Kind.LIBVIRTD_MID] if self.name in steps.SLOW else []
        kinds += [Kind.QEMU] if self.has_qemu else []
        return kinds + ([kind for kind in Kind if kind.is_forges] if is_request else [])


@dataclass(frozen=True)
class Cell:
    """One fault at one step."""

    step: Step
    kind: Kind

    def __str__(self) -> str:
        return f"{self.step}: {self.kind}"


class Wrong(Exception):
    """What a cell shows to be wrong."""


class Neighbour:
    """Another host on the same forge, with the same images: its machines are booted."""

    def __init__(
        self, site: Site, url: str, images: Path, one_pass: Callable[[steps.Ground], int]
    ) -> None:
        self.site, self._one_pass = site, one_pass
        state = FOLDER / BESIDE / "state"
        state.mkdir(parents=True, exist_ok=True)
        if not (state / "images").exists():
            (state / "images").symlink_to(images)
        self.ground = lay(
            FOLDER / BESIDE,
            BESIDE,
            BESIDE_SUBNET,
            token=site.token,
            url=url,
            image=quick.QUICK,
            most=1,
            more="vcpus = 1",
        )

    def run(self) -> None:
        """One pass, as its timer would make it."""
        notes = FOLDER / BESIDE / "notes"
        notes.write_text("")
        if code := self._one_pass(steps.Ground(self.ground.config, notes, FOLDER / BESIDE)):
            raise Wrong(f"a pass of the other host ended with {code}: {notes.read_text()}")

    def left(self) -> list[str]:
        """Everything that a machine of it has left on this computer or at the forge."""
        records = [f"runner {record['name']}" for record in self._records()]
        return self.ground.leftovers() + records

    def clean(self) -> None:
        """Remove what it has, and what it knows of the other one."""
        forget_others(self.ground.folder)
        if not self.left():
            return
        self.ground.run("down", "--now")
        self.ground.run("up", "main")  # "down" holds until then
        for record in self._records():
            self.site.call("DELETE", f"/admin/actions/runners/{record['id']}", fine=(404,))

    def _records(self) -> list[dict[str, Any]]:
        head = f"vmr-{BESIDE}-"
        return [record for record in self.site.runners() if record["name"].startswith(head)]


class World:
    """The ground that all cells share, and one attempt at a time on it."""

    def __init__(self, site: Site, start: str, hosts: int = 1) -> None:
        self.site, self.start = site, start
        self.proxy = Proxy(site.url)
        host = urlsplit(site.url).hostname
        self._workflow = ATTEMPT.format(host=host, port=PORT)
        shutil.rmtree(FOLDER / "state", ignore_errors=True)
        self.disk = FOLDER / "disk"
        self.storage = self.disk / MANAGER
        self.ground = lay(
            FOLDER,
            MANAGER,
            SUBNET,
            token=site.token,
            url=self.proxy.url,
            image=quick.QUICK,
            most=1,
            start=start,
            more="vcpus = 1\nwarm = 0",
        )
        images = FOLDER / "state" / "images"
        images.unlink()
        golden = quick.make(images)
        room = (512 << 20) + (MEMORY << 20 if start == "snapshot" else 0)
        self._mount(
            sum((golden.directory / part).stat().st_size for part in golden.manifest.files) + room
        )
        text = self.ground.config.read_text().replace(
            "[libvirt]", f'[libvirt]\nstorage_path = "{self.disk}"'
        )
        deadlines = 'boot_timeout = "60s"\npickup_timeout = "20s"\n'
        self.ground.config.write_text(f'{text}{deadlines}[capacity]\ndisk_floor = "0MiB"\n')
        self._notes = FOLDER / "notes"
        # A pass costs no start of Python, and inherits none of our threads.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.steps"])
        self._process = context.Process
        self.repository: Repository | None = None
        self.forgives = False  # what libvirtd itself forgot in its own folders
        self.neighbour = (
            Neighbour(site, self.proxy.url, images, self._one_pass) if hosts > 1 else None
        )

    def _mount(self, size: int) -> None:
        """A file system of its own for the storage pool, so that it can be filled."""
        self.disk.mkdir(exist_ok=True)
        if not self.disk.is_mount():
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "none", str(self.disk)],
                check=True,
            )

    def close(self) -> None:
        """Take down what we made."""
        self.clean()
        self.proxy.close()
        self.unmake()
        subprocess.run(["umount", "-l", str(self.disk)], check=False)
        shutil.rmtree(FOLDER, ignore_errors=True)

    def unmake(self) -> None:
        """Take the storage pool with its images and the network from the host."""
        with closing(libvirt.open("qemu:///system")) as connection:
            for look_up in (connection.storagePoolLookupByName, connection.networkLookupByName):
                with suppress(libvirt.libvirtError):
                    found = look_up(f"vmr-{MANAGER}")
                    if found.isActive():
                        found.destroy()
                    found.undefine()
        shutil.rmtree(self.storage, ignore_errors=True)

    # ---- passes ----

    def run(self, fault: Fault | None = None, *, drained: bool = False) -> list[dict[str, Any]]:
        """One pass; returns what it wrote down. Raises Wrong where it met a bug."""
        self._notes.write_text("")
        ground = steps.Ground(self.ground.config, self._notes, self.disk)
        code = self._one_pass(ground, fault, drained=drained)
        notes: list[dict[str, Any]] = [
            json.loads(line) for line in self._notes.read_text().splitlines()
        ]
        bugs = [note["bug"] for note in notes if "bug" in note]
        killed = fault and fault.kind in {Kind.KILL_BEFORE, Kind.KILL_AFTER}
        if bugs or code not in ({-9, 0} if killed else {0}):
            raise Wrong(f"a pass ended with {code}: {''.join(bugs)}")
        return notes

    def _one_pass(
        self, ground: steps.Ground, fault: Fault | None = None, *, drained: bool = False
    ) -> int:
        """Its exit code."""
        work = self._process(target=steps.run, args=(ground, fault, drained))
        work.start()
        work.join(LIFE)
        if work.exitcode is None:
            work.kill()
            work.join()
            raise Wrong(f"a pass did not end within {LIFE:.0f} s")
        return work.exitcode

    def run_beside(self) -> None:
        """A pass of the other host, if there is one."""
        if self.neighbour:
            self.neighbour.run()

    def at_work(self) -> bool:
        """Whether a QEMU of ours runs, on whatever host."""
        return bool(steps.machines_of(MANAGER) or steps.machines_of(BESIDE))

    def set_warm(self, warm: int) -> None:
        """How many warm machines the pool shall have."""
        text = self.ground.config.read_text()
        self.ground.config.write_text(re.sub(r"(?m)^warm = \d+", f"warm = {warm}", text))

    def set_start(self, how: str) -> None:
        """How machines are started."""
        text = self.ground.config.read_text()
        self.ground.config.write_text(re.sub(r'(?m)^start = "\w+"', f'start = "{how}"', text))

    def ensure_snapshot(self) -> None:
        """Make the machines' snapshot, if they are cloned and it is not there: a life before this
        one may have lost it.
        """
        if self.start == "snapshot" and not list(self.storage.glob("snapshot-*.manifest.json")):
            self.ground.run("snapshot", "create", "--pool", "main")

    # ---- what is there ----

    def events(self) -> str:
        """What the guests have reported."""
        return "".join(path.read_text(errors="replace") for path in self.storage.glob("*.events"))

    def domains(self) -> set[str]:
        """The machines that libvirt knows."""
        with closing(libvirt.open("qemu:///system")) as connection:
            names = {domain.name() for domain in connection.listAllDomains()}
        return {name for name in names if name.startswith(f"vmr-{MANAGER}-")}

    def left(self) -> list[str]:
        """Everything that a machine of ours has left anywhere."""
        head = f"vmr-{MANAGER}-"
        found = self.ground.leftovers()
        found += [f"file {path.name}" for path in sorted(self.storage.glob(f"{head}*"))]
        found += [] if self.forgives else [f"libvirt {path}" for path in _libvirts_own(head)]
        found += [f"process {pid}" for pid in steps.machines_of(MANAGER)]
        found += self.neighbour.left() if self.neighbour else []
        with closing(libvirt.open("qemu:///system")) as connection, suppress(libvirt.libvirtError):
            bridge = (
                Path("/sys/class/net")
                / connection.networkLookupByName(f"vmr-{MANAGER}").bridgeName()
                / "brif"
            )
            found += [f"tap {path.name}" for path in bridge.glob("*")]
        return found + [
            f"runner {record['name']}"
            for record in self.site.runners()
            if record["name"].startswith(head)
        ]

    def job(self) -> dict[str, Any]:
        """The attempt's one job."""
        assert self.repository is not None
        (job,) = self.repository.jobs()
        return job

    # ---- begin, mend, end ----

    def queue(self) -> None:
        """A job begins to wait."""
        self.repository = self.site.repository("rig", "faults", self._workflow)
        until(lambda: len(self.repository.jobs()) == 1 if self.repository else False, 30, "the job")

    def mend(self) -> None:
        """libvirtd runs, the disk has room, the forge answers."""
        (self.disk / "filler").unlink(missing_ok=True)
        for daemon in (daemons.LOGS, daemons.MACHINES):
            daemons.start(daemon)

    def clean(self) -> None:
        """Remove what the last attempt left, by every means: the next one shall not inherit its
        faults.
        """
        self.proxy.stage.let_go()
        self.mend()
        for name in self.domains():
            with (
                suppress(libvirt.libvirtError),
                closing(libvirt.open("qemu:///system")) as connection,
            ):
                connection.lookupByName(name).destroy()
        for pid in steps.machines_of(MANAGER):
            steps.kill(pid)
        for path in _libvirts_own(f"vmr-{MANAGER}-"):
            shutil.rmtree(path, ignore_errors=True)
        self.forgives = False
        for path in (
            *self.storage.glob("vmr-*"),
            *(FOLDER / "state").glob("history*"),
            *(FOLDER / "run").rglob("*"),
        ):
            if path.is_file():
                path.unlink()
        if self.repository:
            self.repository.delete()
            self.repository = None
        for record in self.site.runners():
            if record["name"].startswith(f"vmr-{MANAGER}-"):
                self.site.call("DELETE", f"/admin/actions/runners/{record['id']}", fine=(404,))
        if self.neighbour:
            self.neighbour.clean()
            forget_others(FOLDER)
        self.set_warm(0)
        self.set_start(self.start)
        (FOLDER / "state" / "snapshots.json").unlink(missing_ok=True)
        self.proxy.stage = Stage()


def forget_others(folder: Path) -> None:
    """This host knows of no other one: else it would leave half of the jobs to it for a time, and
    which ones, nobody can choose.
    """
    (folder / "state" / "fleet.json").unlink(missing_ok=True)


def _libvirts_own(head: str) -> list[Path]:
    """What libvirt keeps of these machines for itself: sockets, keys, state."""
    folders = (Path("/run/libvirt/qemu"), Path("/var/lib/libvirt/qemu"))
    return [path for folder in folders for path in sorted(folder.rglob(f"*{head}*"))]


# ---- lives ----

# A life gives, for each of its passes, the phase; what has to happen before the pass happens before
# it is given.
Life = Callable[[World], Iterator[str]]


def _wait(event: Event, what: str) -> None:
    if not event.wait(LIFE):
        raise Wrong(f"not within {LIFE:.0f} s: {what}")


def _await(check: Callable[[], Any], what: str) -> None:
    try:
        until(check, LIFE, what, every=0.1)
    except AssertionError as error:
        raise Wrong(str(error)) from None


def _job(world: World) -> Iterator[str]:
    """From the moment when a machine has got its runner."""
    _wait(world.proxy.stage.arrived, "the job runs")
    yield "run"
    world.proxy.stage.gate.set()
    _wait(world.proxy.stage.over, "the job's end")
    yield "over"
    world.proxy.stage.curtain.set()
    _await(
        lambda: not steps.machines_of(MANAGER) and not world.domains(), "the machine's power-off"
    )
    yield "finish"


def _cold(world: World) -> Iterator[str]:
    """A machine is made for the job."""
    world.ensure_snapshot()
    world.queue()
    yield "create"
    _await(lambda: "seed" in world.events(), "the guest has read its seed")
    yield "boot"
    yield from _job(world)


def _warm(world: World) -> Iterator[str]:
    """A machine is there before the job."""
    world.ensure_snapshot()
    world.set_warm(1)
    yield "create"
    if world.start == "boot":  # a clone is, from the start
        _await(lambda: "ready" in world.events(), "the guest is ready")
    yield "ready"
    world.queue()
    yield "bind"
    world.set_warm(0)
    yield from _job(world)


def _fresh(world: World) -> Iterator[str]:
    """The first machine on a host: storage pool, network and image are not there yet."""
    world.unmake()
    world.set_start("auto")  # booted: the snapshot went with the storage pool
    world.queue()
    yield "create"
    yield from _job(world)


def _dead(world: World) -> Iterator[str]:
    """Its QEMU dies while the job runs."""
    for phase in _cold(world):
        yield phase
        if phase == "run":
            break
    for pid in steps.machines_of(MANAGER):
        steps.kill(pid)
    _await(lambda: not world.domains(), "libvirt has noticed")
    yield "dead"


def _drained(world: World) -> Iterator[str]:
    """Its pool is drained before it has the job; afterwards the pool works again."""
    world.ensure_snapshot()
    world.queue()
    yield "create"
    yield "drain"


LIVES: dict[str, Life] = {
    "cold": _cold,
    "warm": _warm,
    "dead": _dead,
    "drained": _drained,
    "fresh": _fresh,
}


def is_tried(step: Step, *, cloned: bool) -> bool:
    """Whether another step stands for it: a life that begins like another, an inner one whose step
    has no other.
    """
    if step.is_inner:
        return (step.life, step.phase) in {("fresh", "create"), ("warm", "bind")} | (
            {("cold", "create")} if cloned else set()
        )
    return (
        step.life in {"cold", "warm"}
        or step.phase in {"dead", "drain"}
        or str(step) == "fresh/create/prepare"
    )


def live(
    world: World, name: str, fault: tuple[str, Fault] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Live this life to its end, or to the fault's phase.

    Returns what each phase's pass wrote down.
    """
    notes: dict[str, list[dict[str, Any]]] = {}
    for phase in LIVES[name](world):
        here = fault[1] if fault and fault[0] == phase else None
        notes[phase] = world.run(here, drained=phase == "drain")
        if here:
            break
        world.run_beside()
    return notes


def settle(world: World, *, may_fail: bool) -> None:
    """Mend, then ordinary passes until the job is over and two more.

    Raises Wrong unless all is as it should be.
    """
    world.mend()
    world.proxy.stage.let_go()
    world.set_warm(0)
    if world.repository is None:
        world.queue()
    living = world.domains()
    stale = {
        name for left in world.left() for name in re.findall(rf"vmr-{MANAGER}-[0-9a-f]{{16}}", left)
    } - living
    deadline, ended, after, said = time.monotonic() + SETTLED, 0.0, 0, list[str]()
    for number in range(1, 10_000):
        status = world.job()["status"]
        ended = ended or (time.monotonic() if status == "completed" else 0.0)
        is_over = bool(ended) and (not world.at_work() or time.monotonic() > ended + GRACE)
        said += [note["failure"] for note in world.run() if "failure" in note]
        world.run_beside()
        left = world.left()
        if number == PASSES and (
            kept := [each for each in left if any(name in each for name in stale)]
        ):
            raise Wrong(
                f"left after {PASSES} passes of machines that were gone before: {kept}; {said}"
            )
        after += is_over
        if is_over and not left:
            break
        if after >= PASSES:
            raise Wrong(f"left after {after} passes: {left}; {said}")
        if time.monotonic() > deadline:
            raise Wrong(f"the job is not over: {world.job()['status']}; left: {left}; {said}")
        if number >= PASSES and not is_over:
            _doze(world, was_over=bool(ended))
    _judge(world, may_fail=may_fail, said=said)


def _doze(world: World, *, was_over: bool) -> None:
    """Until the next pass: a second, or shorter where something ends."""
    until_then = time.monotonic() + 1.0
    while time.monotonic() < until_then and (
        world.at_work() if was_over else not world.proxy.stage.over.is_set()
    ):
        time.sleep(0.1)


def _judge(world: World, *, may_fail: bool, said: Sequence[str]) -> None:
    """One verdict, one run; one that may fail has its machine's end in its log, and need not have
    begun.
    """
    assert world.repository is not None
    job, runs = world.job(), world.proxy.stage.runs
    log = world.repository.said(job["id"])
    verdict = job["conclusion"]
    failed_rightly = may_fail and verdict == "failure" and "vmrunner: machine" in log
    if job["run_attempt"] != 1 or not (
        log.count("ran on") == runs == 1 or (failed_rightly and log.count("ran on") <= runs <= 1)
    ):
        raise Wrong(
            f"attempt {job['run_attempt']}, {log.count('ran on')} times in its log, {runs} times "
            f"at the gate; {said}\n{log}"
        )
    if verdict == "success" or failed_rightly:
        return
    raise Wrong(f"the job's verdict is {verdict}; {said}\n{log}")


def try_cell(world: World, cell: Cell) -> None:
    """Raises Wrong or an AssertionError unless this fault at this step does no harm."""
    notes = live(world, cell.step.life, (cell.step.phase, Fault(cell.step.name, cell.kind)))
    if not any("hit" in note for note in notes.get(cell.step.phase, ())):
        raise Wrong("the pass did not come to this step")
    # A libvirtd that dies while it starts a domain leaves that one's monitor socket and key for
    # ever; no call of its API removes them.
    world.forgives = cell.kind is Kind.LIBVIRTD_MID and cell.step.name == "start"
    job = world.job()["status"] if world.repository else ""
    # A machine that is gone while its job ran, or that had a full disk: it may have taken the job
    # any moment. (A clone dies of a full tmpfs even while it only reads: there, and not on a disk,
    # the holes of the memory file take room when they are read.)
    may_fail = (
        cell.step.life == "dead"
        or (cell.kind is Kind.QEMU and job != "queued")
        or (cell.kind is Kind.DISK and cell.step.has_qemu)
    )
    settle(world, may_fail=may_fail)


# ---- the matrix ----


@contextmanager
def attempt(world: World) -> Iterator[None]:
    """Clean before and after; a failure shows what the last pass did."""
    world.clean()
    try:
        yield
    finally:
        world.clean()


def find_steps(world: World, lives: Sequence[str]) -> list[Step]:
    """Live these lives once without a fault."""
    found = []
    for name in lives:
        began = time.monotonic()
        with attempt(world):
            notes = live(world, name)
            settle(world, may_fail=name == "dead")
        lived = [
            Step(name, phase, note["step"], note["qemu"])
            for phase, lines in notes.items()
            for note in lines
            if "step" in note
        ]
        print(
            f"{name}: {len(lived)} steps, {time.monotonic() - began:.1f} s",
            file=sys.stderr,
            flush=True,
        )
        found += [step for step in lived if is_tried(step, cloned=world.start == "snapshot")]
    return found


def chosen(cells: Sequence[Cell], only: str, sample: int) -> list[Cell]:
    """Those that match the pattern; of them `sample`, each kind of fault as often as the others,
    always the same ones.
    """
    matching = [cell for cell in cells if re.search(only, str(cell))]
    by_kind: dict[Kind, list[Cell]] = defaultdict(list)
    for cell in random.Random(1).sample(matching, len(matching)):  # noqa: S311 — not for secrets
        by_kind[cell.kind].append(cell)
    turns = list(by_kind.values())
    mixed = [
        kind[turn]
        for turn in range(max(map(len, turns), default=0))
        for kind in turns
        if turn < len(kind)
    ]
    return mixed[:sample] if sample else mixed


def matrix(cells: Sequence[Cell], results: dict[Cell, str]) -> str:
    """A row for each step, a column for each fault: `.` fine, `F` not, blank where it can't be, `-`
    not tried.
    """
    kinds = list(Kind)
    rows: dict[Step, dict[Kind, str]] = defaultdict(dict)
    for cell in cells:
        rows[cell.step][cell.kind] = "-" if cell not in results else "F" if results[cell] else "."
    width = max(len(str(step)) for step in rows)
    lines = [" " * width + "  " + " ".join(kinds)]
    lines += [
        f"{step!s:{width}}  " + " ".join(f"{row.get(kind, ' '):^{len(kind)}}" for kind in kinds)
        for step, row in rows.items()
    ]
    return "\n".join(line.rstrip() for line in lines)


def try_all(
    world: World,
    *,
    lives: Sequence[str] = (),
    only: str = "",
    sample: int = 0,
    listed: bool = False,
    kept: Path | None = None,
) -> dict[str, Any]:
    """Try the cells, a line each; returns the figures. Cells that passed are noted in `kept`; those
    that are noted there already are not tried again.
    """
    began = time.monotonic()
    every = [
        Cell(step, kind)
        for step in find_steps(world, lives or list(LIVES))
        for kind in step.faults()
    ]
    cells, results = chosen(every, only, sample), dict[Cell, str]()
    noted = set(kept.read_text().splitlines()) if kept and kept.exists() else set[str]()
    before = dict.fromkeys((cell for cell in cells if str(cell) in noted), "")
    cells = [cell for cell in cells if cell not in before]
    if listed:
        print(*sorted(map(str, cells)), sep="\n")
        cells = []
    for number, cell in enumerate(cells, 1):
        at = time.monotonic()
        results[cell] = ""
        with attempt(world):
            try:
                try_cell(world, cell)
            except (Wrong, AssertionError) as wrong:
                results[cell] = str(wrong) or "assertion"
            except Exception:
                # The next cell begins on clean ground all the same.
                results[cell] = traceback.format_exc()
        if kept and not results[cell]:
            with kept.open("a") as file:
                file.write(f"{cell}\n")
        verdict = "FAILED" if results[cell] else "ok"
        print(
            f"{number:3}/{len(cells)} {verdict:6} {time.monotonic() - at:5.1f} s  {cell}",
            file=sys.stderr,
            flush=True,
        )
        if results[cell]:
            print("    " + results[cell].replace("\n", "\n    "), file=sys.stderr, flush=True)
    print(matrix(every, before | results), file=sys.stderr)
    failed = [str(cell) for cell, wrong in results.items() if wrong]
    return {
        "steps": len({cell.step for cell in every}),
        "cells": len(every),
        "passed_before": len(before),
        "tried": len(results),
        "passed": len(results) - len(failed),
        "failed": failed,
        "seconds": round(time.monotonic() - began, 1),
    }


@contextmanager
def open_world(start: str, hosts: int) -> Iterator[World]:
    """The ground, made and taken down."""
    with closing(Site()) as site:
        site.clear()
        with closing(World(site, start, hosts)) as world:
            yield world


def main() -> None:
    """Run the matrix; the last line is its figures as JSON; exits non-zero unless all is right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--only",
        default="",
        metavar="PATTERN",
        help="a regular expression, such as 'warm/bind/.*: kill'",
    )
    parser.add_argument(
        "--sample",
        type=int,
        default=0,
        metavar="N",
        help="N cells, spread over the faults, always the same",
    )
    parser.add_argument("--list", action="store_true", help="list the cells and try none")
    parser.add_argument(
        "--life",
        action="append",
        default=[],
        choices=list(LIVES),
        help="this life only; may be given again",
    )
    parser.add_argument(
        "--start", default="snapshot", choices=("snapshot", "boot"), help="how machines are started"
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FILE",
        help="note the cells that pass there, and go on behind those of a run before",
    )
    parser.add_argument("--hosts", type=int, default=1, choices=(1, 2), help="on the forge")
    options = parser.parse_args()
    if os.environ.get("VMRUNNER_TEST_RIG") == "host":
        sys.exit("this kills libvirtd: not the host's own, please")
    with open_world(options.start, options.hosts) as world:
        figures = try_all(
            world,
            lives=options.life,
            only=options.only,
            sample=options.sample,
            listed=options.list,
            kept=options.keep,
        )
    print(json.dumps(figures))
    sys.exit(1 if figures["failed"] else 0)


if __name__ == "__main__":
    main()
