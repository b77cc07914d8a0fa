"""Both seams in memory: the hypervisor and the forge that the manager's tests run on, with a clock
that stands still until it is told.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

from vmrunner.errors import ForgeDenied, ForgeUnreachable, HypervisorError, NameClash, SnapshotError
from vmrunner.forge.queue import LongQueue, Row
from vmrunner.forge.trace import Place
from vmrunner.hypervisor.acceleration import NoKvm
from vmrunner.hypervisor.cgroup import Cgroups
from vmrunner.hypervisor.seam import (
    SNAPSHOT_PREFIX,
    File,
    Output,
    Purged,
    Residue,
    Snapshot,
    Talk,
    Volume,
    Way,
    image_stem,
)
from vmrunner.image.versions.store import MANIFEST
from vmrunner.log import Say
from vmrunner.machine.bindings import Bindings
from vmrunner.model.binding import Binding
from vmrunner.model.image import DISK, Golden
from vmrunner.model.job import (
    Claim,
    Credentials,
    Job,
    JobFacts,
    JobState,
    Listing,
    RunnerRecord,
    Scope,
    ScopeKind,
    Sought,
    Want,
)
from vmrunner.model.machine import (
    NO_LIMITS,
    Capacity,
    EventKind,
    GuestEvent,
    Limits,
    Machine,
    MachineId,
    Metadata,
    Shape,
)
from vmrunner.model.used import Used


@dataclass
class Clock:
    """Unix seconds, as the host shows them. Time that passes adds to `now`; `jump` is a clock that
    was set, or a host that slept: the steady clock knows nothing of it.
    """

    now: float = 1_000_000.0
    set_by: float = 0.0

    def jump(self, seconds: float) -> None:
        self.now += seconds
        self.set_by += seconds

    def steady(self) -> float:
        return self.now - self.set_by

    def __call__(self) -> float:
        return self.now


class Killed(BaseException):
    """`kill -9`: nothing of the manager's process runs any more, its clean-up included."""


@dataclass
class Doom:
    """Kills the manager's process at one of its next steps."""

    after: int | None = None  # steps
    dead: bool = False

    def step(self) -> None:
        """Called at each step that changes something anywhere; raises Killed when the time has
        come, and ever after.
        """
        if self.after is not None:
            self.dead = self.dead or self.after == 0
            self.after -= 1
        if self.dead:
            raise Killed


class FakeBindings(Bindings):
    """The real files, that a dead process can't change any more."""

    def __init__(self, runtime_dir: Path, manager: str, doom: Doom) -> None:
        super().__init__(runtime_dir, manager)
        self._doom = doom

    def save(self, binding: Binding) -> None:
        self._doom.step()
        super().save(binding)

    def drop(self, machine: MachineId) -> None:
        self._doom.step()
        super().drop(machine)


@dataclass
class FakeLog:
    """Remembers what was logged."""

    lines: list[tuple[str, dict[str, object]]] = field(default_factory=list)

    def info(self, event: str, **fields: object) -> None:
        self.lines.append((event, fields))

    def debug(self, event: str, **fields: object) -> None: ...

    warning = error = info


@dataclass
class FakeMachines:
    """The machines of the fake host."""

    host: FakeHypervisor

    def all(self) -> list[Machine]:
        named: dict[MachineId, list[str]] = {machine: [] for machine in self.host.domains}
        for machine, file in self.host.files:
            named.setdefault(machine, []).append(f"{machine}.{file}")
        return [
            Machine(
                machine,
                machine in self.host.domains,
                self.host.domains.get(machine),
                self.host.events.get(machine, ()),
                tuple(names),
                self.host.troubles.get(machine, ""),
                0,
                machine in self.host.paused and machine in self.host.domains,
            )
            for machine, names in sorted(named.items(), key=lambda item: str(item[0]))
        ]

    def create_overlay(
        self, machine: MachineId, golden: Golden, disk_gib: int, snapshot: Snapshot | None = None
    ) -> None:
        self.host.step("create_overlay")
        self.host.files[machine, File.OVERLAY] = b""
        self.host.lies_on[machine] = (
            f"{SNAPSHOT_PREFIX}{snapshot.key}.qcow2"
            if snapshot
            else f"{image_stem(golden.name, golden.version)}{DISK}"
        )

    def put(self, machine: MachineId, file: File, content: bytes) -> None:
        self.host.step(f"put {file}")
        self.host.files[machine, file] = content

    def read(self, machine: MachineId, file: File, *, tail: int = 65536) -> bytes:
        if file is File.EVENTS:
            events = self.host.events.get(machine, ())
            return "".join(f"{each.kind} {each.at} {each.text}\n" for each in events).encode()
        return self.host.files.get((machine, file), b"")[-tail:]

    def said(self, machine: MachineId, file: File, *, tail: int) -> bytes:
        return self.read(machine, file, tail=tail)

    def delete(self, machine: MachineId, file: File) -> None:
        self.host.step("delete")
        self.host.files.pop((machine, file), None)

    def drop_seed(self, machine: MachineId) -> None:
        self.delete(machine, File.SEED)

    def start(
        self,
        golden: Golden,
        shape: Shape,
        metadata: Metadata,
        snapshot: Snapshot | None = None,
        limits: Limits = NO_LIMITS,
    ) -> None:
        self.host.step("start")
        if snapshot:
            self.host.files[metadata.machine, File.SEED] = b""
            if self.host.clones_fail:
                raise SnapshotError("The fake's snapshot can't be used.", "It was told so.")
            self.host.paused.add(metadata.machine)
        if metadata.machine in self.host.domains:
            raise NameClash("It exists.", "")
        assert (metadata.machine, File.OVERLAY) in self.host.files
        assert (metadata.machine, File.SEED) in self.host.files
        if metadata.address:
            address = IPv4Interface(metadata.address).ip
            owner = self.host.known.setdefault(address, metadata.machine)
            assert owner == metadata.machine, "it meets what another machine has left"
        self.host.domains[metadata.machine], self.host.shapes[metadata.machine] = metadata, shape
        if metadata.stays:  # its seed says so
            self.host.told_to_stay.add(metadata.machine)
        self.host.limits[metadata.machine] = limits
        self.host.logs[metadata.machine] = ""
        if self.host.wake:
            self.host.wake()

    def bind(self, metadata: Metadata, seed: bytes) -> None:
        self.host.step("bind")
        assert not self.host.domains[metadata.machine].is_bound, "a machine is bound once"
        self.host.paused.add(metadata.machine)
        self.host.domains[metadata.machine] = metadata
        self.host.step("bind seed")
        self.host.files[metadata.machine, File.SEED] = seed
        if metadata.stays:
            self.host.told_to_stay.add(metadata.machine)
        self.host.paused.discard(metadata.machine)

    def pause(self, machine: MachineId) -> None:
        self.host.step("pause")
        if machine in self.host.domains:
            self.host.paused.add(machine)

    def stay(self, machine: MachineId) -> None:
        self.host.step("stay")
        if machine in self.host.domains:
            self.host.told_to_stay.add(machine)

    def isolate(self, machine: MachineId) -> None:
        self.host.step("isolate")
        if machine in self.host.domains:
            assert not self.host.domains[machine].network, "the next pass would let it through"
            self.host.isolated.add(machine)

    def note(self, metadata: Metadata) -> None:
        self.host.step("note")
        if metadata.machine in self.host.domains:
            self.host.domains[metadata.machine] = metadata

    def stream(
        self, machine: MachineId, output: Output, write: Callable[[bytes], bool | None]
    ) -> None:
        raise NotImplementedError("the fake's machines have no output")

    def talk(self, machine: MachineId, way: Way) -> Talk:
        return self.host.speakers[machine, way]()

    def alive(self, machine: MachineId) -> bool:
        return machine in self.host.domains

    def destroy(self, machine: MachineId) -> None:
        self.host.step("destroy")
        self.host.domains.pop(machine, None)
        self.host.events.pop(machine, None)
        self.host.troubles.pop(machine, None)
        self.host.paused.discard(machine)
        self.host.told_to_stay.discard(machine)
        self.host.isolated.discard(machine)
        self.host.shapes.pop(machine, None)
        self.host.limits.pop(machine, None)
        self.host.lies_on.pop(machine, None)
        self.host.logs.pop(machine, None)
        for file in File:
            self.host.files.pop((machine, file), None)

    def used(self) -> dict[MachineId, Used]:
        some = {
            machine: Used(shape.vcpus, shape.memory_mib, 300, 40.0, 5.0, 30 << 20, 9 << 20, 1 << 20)
            for machine, shape in self.host.shapes.items()
        }
        return some | self.host.used

    def last_words(self, machine: MachineId) -> str:
        return self.host.logs.get(machine, "")

    def logged(self) -> frozenset[MachineId]:
        return frozenset(self.host.logs)

    def drop_log(self, machine: MachineId) -> None:
        self.host.step("drop_log")
        self.host.logs.pop(machine, None)

    def residue(self) -> Residue:
        return Residue(
            tuple(map(str, self.host.domains)),
            tuple(f"{machine}.{file}" for machine, file in self.host.files),
            tuple(map(str, self.host.logs)),
        )


@dataclass
class FakeSnapshots:
    """The snapshots of the fake host."""

    host: FakeHypervisor

    def all(self) -> list[Snapshot]:
        return list(self.host.kept.values())

    def key(self, golden: Golden, shape: Shape) -> str:
        return hashlib.sha256(
            f"{golden.name}{golden.version}{golden.tools_id}{shape}".encode()
        ).hexdigest()[:16]

    def find(self, golden: Golden, shape: Shape) -> Snapshot | None:
        return self.host.kept.get(self.key(golden, shape))

    def make(
        self,
        golden: Golden,
        shape: Shape,
        machine: MachineId,
        seed: bytes,
        timeout: float,
        say: Say,
    ) -> Snapshot:
        self.host.step("make_snapshot")
        key = self.key(golden, shape)
        self.host.kept[key] = Snapshot(
            key, golden.id, shape, self.host.now(), "10.0.0", "11.3.0", {}, tools=golden.tools_id
        )
        return self.host.kept[key]

    def verify(self, snapshot: Snapshot) -> None: ...

    def drop(self, key: str) -> list[str]:
        self.host.step("drop_snapshot")
        self.host.kept.pop(key, None)
        return []


@dataclass
class FakeImages:
    """What the fake host has of published images."""

    host: FakeHypervisor

    def volumes(self) -> list[Volume]:
        bases = dict.fromkeys(self.host.published, "")
        for key, kept in self.host.kept.items():
            bases[f"{SNAPSHOT_PREFIX}{key}.qcow2"] = f"{image_stem(*kept.image.split('/'))}{DISK}"
        for machine, file in self.host.files:
            bases[f"{machine}.{file}"] = (
                self.host.lies_on.get(machine, "") if file is File.OVERLAY else ""
            )
        return [
            Volume(name, f"/pool/{name}", f"/pool/{base}" if base else "", True)
            for name, base in bases.items()
        ]

    def drop(self, names: Sequence[str]) -> None:
        self.host.step("drop_volumes")
        for volume in self.volumes():
            assert volume.backing.removeprefix("/pool/") not in names, f"{volume.name} lies on it"
        self.host.published = [name for name in self.host.published if name not in names]


@dataclass
class FakeFacts:
    """What the fake host is and has."""

    host: FakeHypervisor
    kvm: bool = True
    no_kvm: NoKvm | None = None
    cgroups: Cgroups = field(default_factory=lambda: Cgroups(memory=True, cpu=True, unified=True))
    network: str = "vmr-m"

    def versions(self) -> dict[str, str]:
        return {"libvirt": "11.3.0", "QEMU": "10.0.0"}

    def capacity(self) -> Capacity:
        used = [self.host.shapes[machine] for machine in self.host.domains]
        return Capacity(
            self.host.memory_mib,
            self.host.cores,
            sum(each.memory_mib for each in used),
            sum(each.vcpus for each in used),
            self.host.free_disk_mib,
        )

    def closed_storage(self) -> tuple[str, str] | None:
        return None

    def network_drift(self) -> list[str] | None:
        return []

    def rules_drift(self) -> str | None:
        return ""

    def leftovers_lack(self) -> str:
        return self.host.leftovers_lack


@dataclass
class FakeHypervisor:
    """A host in memory; its parts keep all that they know here.

    `fail_at` names a step (a method, or `put seed.iso`) that fails once, before it did anything.
    """

    manager: str = "m"
    fail_at: str = ""
    memory_mib: int = 1 << 20
    cores: int = 1 << 10
    free_disk_mib: int = 1 << 20
    domains: dict[MachineId, Metadata] = field(default_factory=dict)
    shapes: dict[MachineId, Shape] = field(default_factory=dict)
    limits: dict[MachineId, Limits] = field(default_factory=dict)
    files: dict[tuple[MachineId, File], bytes] = field(default_factory=dict)
    events: dict[MachineId, tuple[GuestEvent, ...]] = field(default_factory=dict)
    troubles: dict[MachineId, str] = field(default_factory=dict)
    kept: dict[str, Snapshot] = field(default_factory=dict)
    paused: set[MachineId] = field(default_factory=set)
    told_to_stay: set[MachineId] = field(default_factory=set)
    isolated: set[MachineId] = field(default_factory=set)
    published: list[str] = field(default_factory=list)  # volumes of images
    leftovers_lack: str = ""
    # Whose connections it knows, by their addresses.
    known: dict[IPv4Address, MachineId] = field(default_factory=dict)
    lies_on: dict[MachineId, str] = field(default_factory=dict)  # an overlay's base
    logs: dict[MachineId, str] = field(default_factory=dict)  # what QEMU said last
    used: dict[MachineId, Used] = field(default_factory=dict)
    # Who speaks for a machine, by what is spoken with.
    speakers: dict[tuple[MachineId, Way], Callable[[], Talk]] = field(default_factory=dict)
    clones_fail: bool = False
    wake: Callable[[], None] | None = None
    now: Callable[[], float] = time.time
    doom: Doom = field(default_factory=Doom)

    def __post_init__(self) -> None:
        self.machines, self.snapshots = FakeMachines(self), FakeSnapshots(self)
        self.images, self.facts = FakeImages(self), FakeFacts(self)

    def step(self, name: str) -> None:
        """Called at the beginning of every method that changes something."""
        self.doom.step()
        if name == self.fail_at:
            self.fail_at = ""
            raise HypervisorError(f"The fake fails at {name}.", "It was told to.")

    def prepare(self, golden: Golden, say: Say = lambda _: None) -> None:
        self.step("prepare")
        for each in golden.parts:
            stem = image_stem(each.name, each.version)
            self.published += [
                name for part in (DISK, MANIFEST) if (name := f"{stem}{part}") not in self.published
            ]

    def guard(self) -> None: ...

    def vacate(self, addresses: Sequence[IPv4Address]) -> None:
        self.step("vacate")
        for address in addresses:
            self.known.pop(address, None)

    def watch(
        self, wake: Callable[[], None], progress: Callable[[], object] = lambda: None
    ) -> None:
        self.wake = wake

    def close(self) -> None: ...

    def reopen(self) -> bool:
        return False

    def purge(self) -> Purged:
        names = tuple(f"machine {machine}" for machine in self.domains)
        self.domains.clear()
        self.files.clear()
        return Purged(names, ())

    def report(self, machine: MachineId, *kinds: EventKind, text: str = "") -> None:
        """The guest reports these phases."""
        self.events[machine] = self.events.get(machine, ()) + tuple(
            GuestEvent(kind, 1.0, text) for kind in kinds
        )

    def power_off(self, machine: MachineId) -> None:
        """The guest powers off; the transient domain vanishes."""
        self.report(machine, EventKind.EXIT, text="0")
        self.die(machine)

    def die(self, machine: MachineId) -> None:
        """The domain vanishes without a word."""
        del self.domains[machine]
        if self.wake:
            self.wake()


@dataclass
class FakeRunner:
    """A runner record with what the forge knows beside it."""

    record: RunnerRecord
    scope: Scope
    credentials: Credentials
    job: int = 0  # the one job that it has or had


@dataclass
class FakeForge:
    """A forge in memory; `binds_jobs` as Forgejo has it, or not as Gitea.

    `down` makes every call fail, `fail_at` one.
    """

    binds_jobs: bool = False
    may_throttle: bool = False
    down: bool = False
    fail_at: str = ""
    forbids_repositories: bool = False  # the token lacks the scope for runners of one repository
    clock: Clock = field(default_factory=Clock)
    known: dict[int, Job] = field(default_factory=dict)
    runners_: dict[int, FakeRunner] = field(default_factory=dict)
    logs: dict[int, list[str]] = field(default_factory=dict)
    verdicts: dict[int, list[str]] = field(default_factory=dict)  # every final report of a job
    url: str = "https://forge.example"
    asked: Sequence[Sought] = ()  # whose ended jobs were asked for the last time
    questions: int = 0  # how often that was
    # What the lists leave out although it is there: jobs by number, records by id.
    unlisted_jobs: set[int] = field(default_factory=set)
    unlisted_runners: set[int] = field(default_factory=set)
    silent_scopes: set[str] = field(default_factory=set)  # whose lists get no answer
    page: int = 0  # jobs in a page of the list; 0: it is not paged
    queues: dict[Scope, LongQueue] = field(default_factory=dict)
    pages_read: int = 0  # of waiting jobs
    # What the lists show instead, as whoever looked a moment ago saw it; what is asked for by its
    # id is as it is.
    frozen: tuple[dict[int, FakeRunner], dict[int, Job]] | None = None
    by_id: int = 0  # how often a record or a job was asked by its id
    forgets: bool = False  # which jobs its runners had
    last_id: int = 0
    doom: Doom = field(default_factory=Doom)

    @property
    def kind(self) -> str:
        return "forgejo" if self.binds_jobs else "gitea"

    def step(self, name: str) -> None:
        """Called at the beginning of every method of the seam."""
        self.doom.step()
        if self.down or name == self.fail_at:
            self.fail_at = ""
            raise ForgeUnreachable("The fake forge does not answer.", "It was told to.")

    def close(self) -> None: ...

    # ---- what users and runners do ----

    def queue(
        self,
        number: int,
        labels: Sequence[str] = ("debian-12",),
        repository: str = "o/r",
        *,
        blocked: bool = False,
    ) -> Job:
        """A job begins to wait."""
        handle = f"handle-{number}" if self.binds_jobs else ""
        state = JobState.BLOCKED if blocked else JobState.WAITING
        at = datetime.fromtimestamp(self.clock.now, UTC)
        self.known[number] = Job(
            number,
            f"job {number}",
            tuple(labels),
            state,
            handle or f"{number}.0",
            handle,
            repository,
            queued_at=at,
        )
        return self.known[number]

    def by_name(self, name: str) -> FakeRunner | None:
        """A machine's runner; the newest where an interrupted pass left one of the same name."""
        return next(
            (runner for runner in reversed(self.runners_.values()) if runner.record.name == name),
            None,
        )

    def freeze(self) -> None:
        """From now on the lists show what there is now."""
        runners = {number: replace(runner) for number, runner in self.runners_.items()}
        self.frozen = runners, dict(self.known)

    def thaw(self) -> None:
        """They show all again."""
        self.frozen = None

    def connect(self, name: str) -> None:
        """A runner declares itself."""
        if runner := self.by_name(name):
            runner.record = replace(
                runner.record, online=True, claim=runner.record.claim if self.binds_jobs else None
            )

    def fetch(self, name: str, job_key: str = "") -> int:
        """What a runner does again and again until it gets a job; 0 while there is none for it."""
        runner = self.by_name(name)
        if runner is None or runner.record.disabled or runner.job:
            return 0
        self.connect(name)
        for number, job in sorted(self.known.items()):
            covered = runner.scope.kind is ScopeKind.INSTANCE or runner.scope.name in (
                job.repository,
                job.repository.partition("/")[0],
            )
            if (
                job.state is JobState.WAITING
                and covered
                and job.fits(runner.record.labels)
                and (not self.binds_jobs or job_key in ("", job.key))
            ):
                self.take(number, name)
                return number
        return 0

    def take(self, number: int, name: str) -> None:
        """A runner takes a job."""
        assert self.known[number].state is JobState.WAITING
        # Gitea counts the attempt when it begins.
        key = self.known[number].key if self.binds_jobs else f"{number}.1"
        now = datetime.fromtimestamp(int(self.clock.now), UTC)  # a forge's times are whole seconds
        runner = self.by_name(name)
        self.known[number] = replace(
            self.known[number],
            state=JobState.RUNNING,
            runner_name=name,
            runner_id=runner.record.id if runner else 0,
            key=key,
            task_id=1000 + number,
            attempt=1,
            sha=f"{number:040x}",
            url=f"{self.url}/jobs/{number}",
            started_at=now,
        )
        if runner:
            runner.job = number
            runner.record = replace(runner.record, online=True, busy=self.binds_jobs)

    def finish(self, number: int, verdict: str = "success") -> None:
        """The job is done; its ephemeral runner's record goes."""
        runner = self.known[number].runner_name
        now = datetime.fromtimestamp(int(self.clock.now), UTC)
        self.known[number] = replace(
            self.known[number], state=JobState.DONE, conclusion=verdict, finished_at=now
        )
        self.verdicts.setdefault(number, []).append(verdict)
        self.runners_ = {
            key: known
            for key, known in self.runners_.items()
            if known.record.name != runner or not runner
        }

    def cancel(self, number: int) -> None:
        """A user cancels a job."""
        self.finish(number, "cancelled")

    # ---- the seam ----

    def jobs(self, scope: Scope) -> list[Job]:
        self.step("jobs")
        return [
            replace(job, runner_name="") if self.binds_jobs else job  # Forgejo doesn't tell
            for job in (self.frozen[1] if self.frozen else self.known).values()
            if job.state is not JobState.DONE
            and job.id not in self.unlisted_jobs
            and (
                scope.kind is ScopeKind.INSTANCE
                or scope.name in (job.repository, job.repository.partition("/")[0])
            )
        ]

    def look(self, scope: Scope, wants: Sequence[Want]) -> Listing:
        jobs = self.jobs(scope)
        if not self.page or len(jobs) <= self.page:
            return Listing(tuple(jobs))
        queue = self.queues.setdefault(scope, LongQueue(partial(self._page, scope), self.page))
        is_short = queue.look(wants)
        running = self.running(scope)
        for job in running:
            queue.forget(job.id)
        known, old = [job for _, job in queue.rows], queue.old
        keys = frozenset(job.key for job in known if job.id in old)
        return Listing((*known, *running), queue.unread, keys, is_short)

    def _page(self, scope: Scope, page: int) -> tuple[list[Row], int]:
        self.pages_read += 1
        waiting = [job for job in self.jobs(scope) if job.state is JobState.WAITING]
        first = (page - 1) * self.page
        rows = [(Place(job.repository, job.id), job) for job in waiting[first : first + self.page]]
        return rows, len(waiting)

    def running(self, scope: Scope) -> list[Job]:
        return [job for job in self.jobs(scope) if job.state is JobState.RUNNING]

    def ended_jobs(self, scope: Scope, sought: Sequence[Sought]) -> dict[int, Job | None]:
        self.step("ended_jobs")
        self.asked, self.questions = sought, self.questions + 1
        return {each.runner_id: None if self.forgets else self._had(each) for each in sought}

    def _had(self, sought: Sought) -> Job | None:
        """Gitea knows a job's runner; Forgejo does not tell it, but binds it to the job by its
        key.
        """
        keys = {hint.key for hint in sought.hints}
        return next(
            (
                job
                for job in self.known.values()
                if job.runner_id
                and (job.key in keys if self.binds_jobs else job.runner_id == sought.runner_id)
            ),
            None,
        )

    def waiting(self, scope: Scope) -> int | None:
        return (
            None
            if self.binds_jobs
            else sum(job.state is JobState.WAITING for job in self.jobs(scope))
        )

    def runners(self, scope: Scope) -> list[RunnerRecord]:
        self.step("runners")
        if str(scope) in self.silent_scopes:
            raise ForgeUnreachable("The fake forge does not answer for this scope.", "")
        return [
            runner.record
            for runner in (self.frozen[0] if self.frozen else self.runners_).values()
            if (scope.kind is ScopeKind.INSTANCE or scope == runner.scope)
            and runner.record.id not in self.unlisted_runners
        ]

    def runner(self, scope: Scope, runner_id: int) -> RunnerRecord | None:
        self.step("runner")
        self.by_id += 1
        found = self.runners_.get(runner_id)
        covers = found and (scope.kind is ScopeKind.INSTANCE or scope == found.scope)
        if not found or not covers:
            return None
        # One at work tells of its job every five seconds.
        job = self.known.get(found.job)
        at_work = job is not None and job.state is JobState.RUNNING
        return replace(found.record, busy=True) if at_work else found.record

    def job(self, scope: Scope, repository: str, key: str) -> Job | None:
        self.step("job")
        self.by_id += 1
        if self.binds_jobs:
            found = next((job for job in self.known.values() if job.key == key), None)
            return (
                replace(found, runner_name="", runner_id=0) if found and _is_open(found) else None
            )
        number = int(key.partition(".")[0])
        known = self.known.get(number)
        if known is None or known.state is not JobState.WAITING:
            for queue in self.queues.values():
                queue.forget(number)
        return known if known and known.repository == repository else None

    def facts(self, scope: Scope, repository: str, key: str, runner_id: int) -> JobFacts | None:
        self.step("facts")
        job = next((job for job in self.known.values() if job.key == key), None)
        if job is None or (job.state, job.runner_id) != (JobState.RUNNING, runner_id):
            return None
        return JobFacts(job.repository, "refs/heads/main", "push", None, "main", from_fork=False)

    def create_runner(
        self, scope: Scope, name: str, labels: Sequence[str], claim: Claim | None = None
    ) -> Credentials:
        self.step("create_runner")
        if self.forbids_repositories and scope.kind is ScopeKind.REPOSITORY:
            raise ForgeDenied("The fake forge refuses making a runner.", "write:repository")
        self.last_id += 1
        credentials = Credentials(self.last_id, f"uuid-{self.last_id}", f"token-{self.last_id}")
        record = RunnerRecord(self.last_id, name, online=False, labels=tuple(labels), claim=claim)
        self.runners_[self.last_id] = FakeRunner(record, scope, credentials)
        return credentials

    def delete_runner(self, scope: Scope, runner_id: int) -> None:
        self.step("delete_runner")
        self.runners_.pop(runner_id, None)

    def disable_runner(self, scope: Scope, runner_id: int) -> None:
        self.step("disable_runner")
        if not self.binds_jobs and runner_id in self.runners_:
            runner = self.runners_[runner_id]
            runner.record = replace(runner.record, disabled=True)

    def fail_job(self, job: Job, credentials: Credentials, lines: Sequence[str]) -> bool:
        self.step("fail_job")
        runner = self.runners_.get(credentials.id)
        if (
            runner is None
            or runner.job != job.id
            or self.known[job.id].state is not JobState.RUNNING
        ):
            return False
        self.logs.setdefault(job.id, []).extend(lines)
        self.finish(job.id, "failure")
        return True


def _is_open(job: Job) -> bool:
    return job.state in {JobState.WAITING, JobState.RUNNING}
