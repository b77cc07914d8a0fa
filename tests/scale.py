"""`make scale`: what a pass costs with many machines and jobs, whether `serve` keeps its memory
over a hundred thousand jobs, and what a long queue costs at the real Gitea (see long_queue.py).

The rest runs in this process: the fakes (see world.py), and libvirt's own mock `test:///default`
under the real LibvirtHost.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, NoReturn

import libvirt

from tests import long_queue
from tests.fakes import FakeRunner
from tests.world import POOL, World
from vmrunner.hypervisor.host import LibvirtHost
from vmrunner.hypervisor.seam import File
from vmrunner.manager.actions import Plan
from vmrunner.manager.history import History
from vmrunner.manager.manager import Manager
from vmrunner.manager.observed import Desired, HostLimits, Observed, Queue
from vmrunner.manager.plan import plan
from vmrunner.manager.record import Record
from vmrunner.manager.serve import Server
from vmrunner.model.binding import Binding
from vmrunner.model.job import Credentials, Job, JobState, RunnerRecord, Scope
from vmrunner.model.machine import (
    Capacity,
    Ending,
    EventKind,
    GuestEvent,
    Machine,
    MachineId,
    Metadata,
    Shape,
)
from vmrunner.render import xml
from vmrunner.waiting import boot

SIZES = (100, 300, 1000, 3000)  # machines
JOBS_PER_MACHINE = 5  # that wait
ROWS_PER_MACHINE = 20  # of history
REPOSITORIES = [f"o{number % 5}/r{number}" for number in range(50)]
POOLS: dict[str, tuple[float, dict[str, Any]]] = {
    "linux": (0.5, {"labels": ["debian-12"]}),
    "big": (0.2, {"labels": ["debian-12", "big"], "priority": 1}),
    "team": (0.15, {"labels": ["team"], "scope": ["organisation:o1"]}),
    "arm": (0.1, {"labels": ["arm64"]}),
    "spare": (0.05, {"labels": ["spare"]}),  # all warm, and nobody asks for one
}
"""Each pool's share of the machines; all are at their max."""
WANTED = [
    ("debian-12",),
    ("debian-12",),
    ("debian-12",),
    ("debian-12", "big"),
    ("arm64",),
    ("team",),
    ("debian-12",),
    ("riscv",),
]
TIMES = 7  # that everything is measured
AT_MOST = 1.0  # seconds, for a pass at LIMIT_AT machines
LIMIT_AT = 1000
WORSE = 2.0  # how much more a machine may cost among 3,000 than among 300
GROWTH = 0.10  # of memory, from early to late
_LOOKS = 100  # at the memory


# ---- many machines ----


@contextmanager
def crowd(machines: int, *, binds_jobs: bool) -> Iterator[World]:
    """A world at rest: every pool at its max, most machines with a job, and far more jobs than
    machines.
    """
    folder = Path(tempfile.mkdtemp(prefix="vmrunner-scale-", dir="/dev/shm"))
    counts = {name: max(1, round(machines * share)) for name, (share, _) in POOLS.items()}
    counts["linux"] += machines - sum(counts.values())
    pools = {name: POOL | section | {"max": counts[name]} for name, (_, section) in POOLS.items()}
    pools["spare"]["warm"] = counts["spare"]
    world = World(folder, binds_jobs=binds_jobs, pools=pools)
    try:
        world.hypervisor.memory_mib, world.hypervisor.cores = 1 << 24, 1 << 14
        _wait_for_machines(world, machines * JOBS_PER_MACHINE)
        numbers = iter(range(1, machines + 1))
        for name, count in counts.items():
            for place in range(count):
                _settle_in(world, name, next(numbers), place)
        _remember(world, machines * ROWS_PER_MACHINE)
        world.history.seen(world.hypervisor.domains.values())
        yield world
    finally:
        World.opened.remove(world)
        world.history.close()
        shutil.rmtree(folder)


def _wait_for_machines(world: World, jobs: int) -> None:
    for number in range(1, jobs + 1):
        labels = WANTED[number % len(WANTED)]
        # The second half of the list of repositories begins at another label, so that each
        # repository asks for several.
        repository = REPOSITORIES[(number + number // len(REPOSITORIES)) % len(REPOSITORIES)]
        world.forge.queue(number, labels, repository, blocked=number % 50 == 0)


def _settle_in(world: World, pool: str, number: int, place: int) -> None:
    """One machine of a pool: nine of ten run a job, the tenth boots for one that waits; warm ones
    are ready or boot.
    """
    machine, forge, now = MachineId("m", f"{number:08x}"), world.forge, world.clock.now
    section = world.settings.pools[pool]
    metadata = Metadata(machine, pool, "debian-12/1", now - 60, overlay_at=now - 59, boot=boot())
    boots = place % 10 == 0
    if pool == "spare":
        boots = place % 2 == 0
        said = () if boots else (EventKind.UP, EventKind.SEED, EventKind.READY)
    else:
        job = _job_for(world, pool, section.labels, 10_000_000 + number)
        scope = (
            section.scope[0]
            if world.forge.binds_jobs
            else Scope.parse(f"repository:{job.repository}")
        )
        credentials = Credentials(number, f"uuid-{number}", f"token-{number}")
        record = RunnerRecord(
            number,
            str(machine),
            online=not boots,
            busy=forge.binds_jobs and not boots,
            labels=section.labels,
        )
        forge.runners_[number] = FakeRunner(record, scope, credentials, 0 if boots else job.id)
        key = job.key if forge.binds_jobs else f"{job.id}.1"
        if not boots:
            forge.known[job.id] = replace(
                job, state=JobState.RUNNING, runner_name=str(machine), key=key
            )
        world.manager._bindings.save(Binding(machine, pool, scope, job.key, credentials))
        running_at = 0.0 if boots else now - 20
        metadata = replace(
            metadata,
            bound_at=now - 58,
            running_at=running_at,
            runner_id=number,
            scope=str(scope),
            job_key=job.key,
            seen_key="" if boots else key,
        )
        said = () if boots else (EventKind.UP, EventKind.SEED, EventKind.RUNNER)
    forge.last_id = number
    world.hypervisor.domains[machine], world.hypervisor.shapes[machine] = metadata, section.shape
    files = (File.OVERLAY, File.EVENTS, File.CONSOLE, File.RUNNER_LOG)
    for file in (*files, *((File.SEED,) if boots else ())):
        world.hypervisor.files[machine, file] = b""
    world.hypervisor.report(machine, *said)


def _job_for(world: World, pool: str, labels: Sequence[str], number: int) -> Job:
    repository = REPOSITORIES[number % len(REPOSITORIES)]
    return world.forge.queue(number, labels, "o1/r1" if pool == "team" else repository)


def _remember(world: World, rows: int) -> None:
    """Rows of machines that were, of all pools and some endings."""
    history, pools, endings = (
        world.history,
        list(POOLS),
        [Ending.DONE] * 8 + [Ending.CANCELLED, Ending.HELD_BACK],
    )
    history._database.execute("BEGIN")
    for number in range(rows):
        at = world.clock.now - 86400 * 60 * (1 - number / rows)
        ending = endings[number % len(endings)]
        phases = {
            "created": at,
            "started": at + 1,
            "up": at + 8,
            "runner": at + 9,
            "running": at + 10,
            "exit": at + 60,
        }
        row = Record(
            str(MachineId("n", f"{number:08x}")),
            pools[number % len(pools)],
            "debian-12/1",
            f"job {number}",
            f"{number}.0",
        )
        history._write(replace(row, **phases, destroyed=at + 61, ending=ending.value))
    history._database.execute("COMMIT")


def one_pass(manager: Manager) -> None:
    """A pass in which there is nothing to do."""
    outcome, survey = manager.reconcile()
    assert not outcome.acts, outcome.acts
    assert not outcome.failures, outcome.failures
    assert not survey.plan.actions, survey.plan.actions[:3]


@dataclass(frozen=True)
class Cost:
    """Of some calls: the median of their times, and the least that the processor worked for one,
    which no neighbour adds to.
    """

    seconds: float
    work: float

    @classmethod
    def of(cls, call: Callable[[], object], times: int = TIMES) -> Cost:
        """Measure; a first call does not count."""
        call()
        gc.collect()
        took, worked = [], []
        for _ in range(times):
            began, at = time.perf_counter(), time.process_time()
            call()
            worked.append(time.process_time() - at)
            took.append(time.perf_counter() - began)
        return cls(statistics.median(took), min(worked))


# ---- the busiest decisions ----

HUGE = Capacity(1 << 30, 1 << 20, 0, 0, 1 << 30)
RUSHES = ("bind", "start", "make room", "another's job")


def rush(kind: str, machines: int) -> tuple[list[Desired], Observed]:
    """Something happens to all machines and jobs in one pass; jobs are five for each machine, half
    as many repositories as machines.
    """
    scope, now = Scope.parse("instance"), 1_000_000.0
    pool = Desired(
        "p", (scope,), frozenset({"x"}), Shape(1, 1024, 10), machines, 300, 120, 10800, 60
    )
    idle = replace(pool, pool="idle", labels=frozenset({"y"}), warm=machines, priority=-1)
    wanted = "z" if kind == "another's job" else "x"
    jobs = [
        Job(
            number,
            "j",
            (wanted,),
            JobState.WAITING,
            f"{number}.0",
            repository=f"o/r{number % max(1, machines // 2)}",
        )
        for number in range(machines * JOBS_PER_MACHINE)
    ]
    seen = []
    for number in range(machines if kind != "start" else 0):
        machine = MachineId("m", f"{number:08x}")
        metadata = Metadata(
            machine, "p" if kind in ("bind", "another's job") else "idle", "i/1", now - 60
        )
        events = tuple(
            GuestEvent(each, 1.0) for each in (EventKind.UP, EventKind.SEED, EventKind.READY)
        )
        if kind == "another's job":
            metadata, events = (
                replace(
                    metadata,
                    runner_id=number + 1,
                    scope="instance",
                    job_key="gone",
                    bound_at=now - 60,
                ),
                (),
            )
        seen.append(Machine(machine, alive=True, metadata=metadata, events=events))
    records = tuple(
        RunnerRecord(number + 1, str(machine.id), online=False)
        for number, machine in enumerate(seen)
        if machine.is_bound
    )
    capacity = replace(HUGE, used_memory_mib=HUGE.memory_mib) if kind == "make room" else HUGE
    return [pool, idle] if kind == "make room" else [pool], Observed(
        tuple(seen), {scope: Queue(tuple(jobs), records)}, False, capacity
    )


def decision(kind: str, machines: int) -> Callable[[], Plan]:
    """The plan for such a rush, to be made as often as one likes."""
    pools, observed = rush(kind, machines)

    def decide() -> Plan:
        return plan("m", pools, HostLimits(4.0, 0, 0), observed, 1_000_000.0)

    assert len(decide().actions) == (0 if kind == "another's job" else machines), kind
    return decide


# ---- libvirt's mock ----

MOCK = "test:///default"
DOMAIN = (
    "<domain type='test'><name>{name}</name><memory>1024</memory>"
    "<os><type>hvm</type></os><metadata>{metadata}</metadata></domain>"
)


@contextmanager
def mock_host(world: World) -> Iterator[LibvirtHost]:
    """The real LibvirtHost over the mock, with a domain for each machine of this world.

    Files, and so guests' reports, are absent.
    """
    # As long as one is open, all connections of a process to the mock share its state.
    keep = libvirt.open(MOCK)
    for machine, metadata in world.hypervisor.domains.items():
        keep.createXML(
            DOMAIN.format(
                name=machine, metadata=xml("metadata.xml.j2", metadata=metadata, in_domain=True)
            ),
            0,
        )
    host = LibvirtHost(
        uri=MOCK,
        manager="m",
        storage_path=Path("/nowhere"),
        subnet=IPv4Network("10.87.0.0/24"),
        accelerator="software",
        warn=print,
    )
    try:
        yield host
    finally:
        host.close()
        for domain in keep.listAllDomains():
            if MachineId.of("m", domain.name()):
                domain.destroy()
        keep.close()


def over(world: World, host: LibvirtHost) -> Manager:
    """A manager of this world on that host."""
    return Manager(
        world.settings,
        host,
        world.forge,
        world.history,
        world.log,
        bindings=world.manager._bindings,
        clock=world.clock,
        steady=world.clock.steady,
        workers=1,
    )


# ---- many jobs ----

BATCH = 1000  # jobs a shift; then everything is idle for some hours, and history forgets
SHIFT = 6 * 3600.0  # seconds
OPEN = 40  # jobs that wait or run at the same time
BUSY_POOLS = {"p": POOL | {"max": 30, "warm": 4}, "q": POOL | {"max": 10, "labels": ["big"]}}


class Tally:
    """A log that keeps nothing but how often each event came."""

    def __init__(self) -> None:
        self.events: Counter[str] = Counter()

    def info(self, event: str, **_fields: object) -> None:
        self.events[event.partition(" vmr-")[0]] += 1

    def debug(self, event: str, **fields: object) -> None: ...

    warning = error = info


class Traffic:
    """What happens while `serve` waits: users queue and cancel, guests boot, work and power off,
    some die, and the forge goes away.
    """

    def __init__(self, world: World, wanted: int, look: Callable[[int], None]) -> None:
        self._world, self._wanted, self._look = world, wanted, look
        self._queued = self._ticks = 0
        self._shift_ends = BATCH
        self.done: Counter[str] = Counter()  # jobs by their one verdict
        self.stop: Callable[[], None]

    def wait(self, event: threading.Event, _seconds: float) -> bool:
        """Instead of waiting. A second passes."""
        self._ticks += 1
        self._world.clock.now += 1.0
        self._world.forge.down = self._ticks % 500 < 3
        for machine in self._world.machines():
            self._guest(machine)
        self._users()
        return event.is_set()

    def _guest(self, machine: MachineId) -> None:
        runner = self._world.forge.by_name(str(machine))
        if runner and runner.job % 50 == 49:
            self._world.hypervisor.die(machine)
        else:
            self._world.step(machine, lambda choices: choices[machine.serial < "4"])

    def _users(self) -> None:
        forge = self._world.forge
        for number, job in list(forge.known.items()):
            if number % 50 == 7 and job.state is JobState.WAITING and self._ticks % 5 == 0:
                forge.cancel(number)
            if forge.known[number].state is JobState.DONE:
                (verdict,) = forge.verdicts.pop(number)
                self.done[verdict] += 1
                # The fakes' own, which would be taken for a leak.
                for memory in (forge.known, forge.logs, self._world.starts, self._world.taken):
                    memory.pop(number, None)  # type: ignore[attr-defined]
                self._look(self.done.total())
        shapes = self._world.hypervisor.shapes
        for machine in shapes.keys() - self._world.hypervisor.domains.keys():
            del shapes[machine]
        while len(forge.known) < OPEN and self._queued < min(self._wanted, self._shift_ends):
            self._queued += 1
            forge.queue(
                self._queued,
                ["big"] if self._queued % 4 == 0 else ["debian-12"],
                REPOSITORIES[self._queued % len(REPOSITORIES)],
            )
        if not forge.known and self._queued == self._wanted:
            self.stop()
        elif (
            not forge.known
            and not forge.runners_
            and all(machine.is_ready for machine in self._world.hypervisor.machines.all())
        ):
            self._world.clock.now += SHIFT
            self._shift_ends += BATCH


def serve_jobs(
    jobs: int, look: Callable[[int], None], *, binds_jobs: bool = False
) -> dict[str, int]:
    """Run the real loop until so many jobs have ended; `look` is called with their number after
    each. Returns what was counted.
    """
    folder = Path(tempfile.mkdtemp(prefix="vmrunner-scale-", dir="/dev/shm"))
    world, log = World(folder, binds_jobs=binds_jobs, pools=BUSY_POOLS), Tally()
    world.history.close()
    world.history = History(folder / "history.sqlite", log.warning, keep_days=1)
    manager = Manager(
        world.settings,
        world.hypervisor,
        world.forge,
        world.history,
        log,
        clock=world.clock,
        steady=world.clock.steady,
        workers=1,
    )
    traffic = Traffic(world, jobs, look)
    try:
        server = Server(
            lambda: manager,
            log,
            make_snapshot=_no_snapshot,
            clock=world.clock,
            wait=traffic.wait,
            notify=lambda _: None,
        )
        traffic.stop = server.stop
        server.serve()
        rows = len(world.history.all())
    finally:
        World.opened.remove(world)
        manager.close()
        shutil.rmtree(folder)
    assert traffic.done.total() == jobs, traffic.done
    assert not any(event.startswith("runner record") for event in log.events), log.events
    return {
        "jobs": jobs,
        **traffic.done,
        "machines": log.events["machine destroyed"],
        "rows_kept": rows,
    }


# ---- the report ----


def costs(machines: int) -> dict[str, Cost]:
    """Everything that is measured with this many machines."""
    found = {}
    for binds_jobs in (False, True):
        with crowd(machines, binds_jobs=binds_jobs) as world:
            found[f"fakes, {world.forge.kind}: pass"] = Cost.of(lambda: one_pass(world.manager))
            if not binds_jobs:
                with mock_host(world) as host:
                    assert len(host.machines.all()) == machines
                    found["test:///: machines.all()"] = Cost.of(host.machines.all)
                    found["test:///: pass"] = Cost.of(lambda: one_pass(over(world, host)))
    return found | {f"plan, {kind}": Cost.of(decision(kind, machines)) for kind in RUSHES}


def curve(sizes: Sequence[int]) -> dict[str, dict[int, Cost]]:
    """Measure at each size, and print the table."""
    table: dict[str, dict[int, Cost]] = {}
    for size in sizes:
        for name, cost in costs(size).items():
            table.setdefault(name, {})[size] = cost
        print(
            f"{size} machines, {size * JOBS_PER_MACHINE} waiting jobs: measured",
            file=sys.stderr,
            flush=True,
        )
    print(f"{'ms, and µs a machine':28}" + "".join(f"{size:>16}" for size in sizes))
    for name, row in table.items():
        cells = (
            f"{cost.seconds * 1e3:.0f} ({cost.work / size * 1e6:.0f})" for size, cost in row.items()
        )
        print(f"{name:28}" + "".join(f"{cell:>16}" for cell in cells))
    return table


def worse(row: dict[int, Cost], few: int, many: int) -> float:
    """How much more work a machine is among many than among few."""
    return (row[many].work / many) / (row[few].work / few)


def resident_mib() -> float:
    """This process's memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / (1 << 20)


def memory(jobs: int) -> tuple[dict[str, int], float, float]:
    """What was counted, and the memory early and late: medians of the second to fourth tenth of the
    jobs, and of the last three.

    A single look says little: what the allocator keeps between two of them differs by a quarter.
    """
    began, seen = time.monotonic(), list[float]()

    def look(done: int) -> None:
        if done % (jobs // _LOOKS) == 0:
            seen.append(resident_mib())
        if done % (jobs // 20) == 0:
            print(
                f"{time.monotonic() - began:6.1f} s  {done} of {jobs} jobs, {seen[-1]:.1f} MiB",
                file=sys.stderr,
                flush=True,
            )

    counted = serve_jobs(jobs, look)
    third = 3 * _LOOKS // 10
    return (
        counted,
        statistics.median(seen[_LOOKS // 10 : _LOOKS // 10 + third]),
        statistics.median(seen[-third:]),
    )


def _no_snapshot(pool: str) -> NoReturn:
    raise AssertionError(f"{pool} is to be booted")


def main() -> None:
    """Measure all; the last line is the figures as JSON; exits non-zero where a limit is
    exceeded.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=100_000, help=f"a multiple of {_LOOKS}")
    jobs: int = parser.parse_args().jobs
    # Memory first: what the big crowds leave behind in the process would hide a small growth.
    counted, early, late = memory(jobs)
    table = curve(SIZES)
    passes = {
        name: round(row[LIMIT_AT].seconds, 3)
        for name, row in table.items()
        if name.endswith("pass")
    }
    bends = {name: round(worse(row, 300, 3000), 2) for name, row in table.items()}
    growth = late / early - 1
    faults = [
        f"{name} takes {seconds} s with {LIMIT_AT} machines"
        for name, seconds in passes.items()
        if seconds > AT_MOST
    ]
    faults += [
        f"{name}: a machine costs {bend} times as much among 3,000 as among 300"
        for name, bend in bends.items()
        if bend > WORSE
    ]
    faults += [f"the memory grew by {growth:.1%}"] if growth > GROWTH else []
    queue = long_queue.measure()
    faults += long_queue.report(queue)
    for fault in faults:
        print(fault, file=sys.stderr)
    figures = {
        "machines": LIMIT_AT,
        "waiting_jobs": LIMIT_AT * JOBS_PER_MACHINE,
        "pass_seconds": passes,
        "cost_3000_to_300": bends,
        "served": counted,
        "memory_mib": [round(early, 1), round(late, 1)],
        "memory_growth_percent": round(growth * 100, 1),
        "long_queue": queue,
        "faults": faults,
    }
    print(json.dumps(figures))
    if faults:
        sys.exit(1)


if __name__ == "__main__":
    main()
