"""Which waiting job gets which machine, and why each of the others waits. Pure.

Pools of a higher priority come first; among equals the pool with the fewest machines, and in it the
repository with the fewest, so that one repository with 500 jobs does not starve another.
"""

from __future__ import annotations

import difflib
import heapq
from collections import Counter, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from vmrunner.manager.actions import Action, Bind, Finish, Reason, Start, Wait, WaitKind
from vmrunner.manager.observed import Ask, Desired, Drain, HostLimits, Observed, View
from vmrunner.manager.rivals import Spare
from vmrunner.model.job import Claim, Job, JobState, Scope, ScopeKind
from vmrunner.model.machine import Capacity, Ending, EventKind, Machine, Metadata, Shape

_Seen = tuple[Machine, Metadata]
_CLAIMED = "claimed:"  # beside the scopes that are written down: a repository by its digest
# Seconds in which a runner calls again that was kept from it by the forge, or by the host's sleep.
_CALLS_AGAIN = 30.0


@dataclass
class Assigned:
    """New actions, and the jobs that wait."""

    actions: list[Action] = field(default_factory=list)
    waits: tuple[Wait, ...] = ()
    again: float = 0.0  # see Plan
    promised: frozenset[str] = frozenset()  # likewise


class Room:
    """What the host still has for machines, as they are handed out."""

    def __init__(self, capacity: Capacity, limits: HostLimits, freed: Sequence[Shape]) -> None:
        self._memory = (
            capacity.memory_mib
            - limits.memory_reserve_mib
            - capacity.used_memory_mib
            + sum(shape.memory_mib for shape in freed)
        )
        self._vcpus = (
            capacity.cores * limits.cpu_overcommit
            - capacity.used_vcpus
            + sum(shape.vcpus for shape in freed)
        )
        self._disk = capacity.free_disk_mib - limits.disk_floor_mib

    def lack(self, shape: Shape) -> Reason | None:
        """Why a machine of this shape doesn't fit; None if it does."""
        if self._disk < 0:
            said = f"the storage pool is {-self._disk} MiB below the floor of free space"
            return Reason(WaitKind.NO_DISK, said)
        if shape.memory_mib > self._memory:
            missing = shape.memory_mib - max(0, self._memory)
            return Reason(WaitKind.NO_MEMORY, f"the host lacks {missing} MiB of memory")
        if shape.vcpus > self._vcpus:
            few = shape.vcpus - max(0.0, self._vcpus)
            return Reason(WaitKind.NO_VCPUS, f"the host lacks {few:g} vCPUs")
        return None

    def take(self, shape: Shape) -> None:
        """A machine of this shape is about to be started."""
        self._memory -= shape.memory_mib
        self._vcpus -= shape.vcpus

    def give(self, shape: Shape) -> None:
        """One goes."""
        self._memory += shape.memory_mib
        self._vcpus += shape.vcpus


@dataclass
class _Pool:
    """One pool while jobs are handed out."""

    desired: Desired
    ready: deque[_Seen] = field(default_factory=deque)
    booting: deque[_Seen] = field(default_factory=deque)
    idle: deque[_Seen] = field(default_factory=deque)  # registered, and no waiting job is theirs
    due: int = 0  # registered idle, and one of the waiting jobs is likely theirs
    expected: int = 0  # warm ones that boot still, and get a waiting job then
    count: int = 0  # machines, started ones of this pass included
    change: int = 0  # of their number by the next pass, since room is made for waiting jobs
    held: int = 0  # of these are kept for a person
    # By repository, each with its place in the queue, first ones first.
    jobs: dict[str, deque[tuple[int, Job]]] = field(default_factory=dict)
    # A heap of their repositories: its load, its first job's place, its name.
    turns: list[tuple[int, int, str]] = field(default_factory=list)
    load: Counter[str] = field(default_factory=Counter)  # machines by repository

    def obstacle(self, room: Room, now: float) -> Reason | None:
        """Why no machine can be started here now; None if one can."""
        name, backoff = self.desired.pool, self.desired.backoff
        if self.desired.drain is not Drain.NO:
            said = f"pool {name} is drained (`vmrunner up {name}` ends that)"
            return Reason(WaitKind.DRAINED, said)
        if backoff and backoff.until > now:
            failures = f"{backoff.failures} failure{'s' if backoff.failures > 1 else ''}"
            said = (
                f"pool {name} is backed off for {backoff.until - now:.0f} s after {failures} "
                f"(last: {backoff.last})"
            )
            return Reason(WaitKind.BACKED_OFF, said)
        if self.count >= self.desired.max and self.held:
            kept = f"{self.held} of its machines {'is' if self.held == 1 else 'are'} held"
            said = (
                f"pool {name} is at its max of {self.desired.max}, and {kept} (`vmrunner release` "
                "ends that)"
            )
            return Reason(WaitKind.AT_MAX_HELD, said)
        if self.count >= self.desired.max:
            return Reason(WaitKind.AT_MAX, f"pool {name} is at its max of {self.desired.max}")
        if self.desired.needs_snapshot:
            said = f"pool {name} has no snapshot to start from yet: {self.desired.snapshot}"
            return Reason(WaitKind.NO_SNAPSHOT, said)
        return room.lack(self.desired.shape)

    def is_full(self, room: Room, now: float) -> bool:
        """Whether it can serve no further job now."""
        return not (self.ready or self.booting) and self.obstacle(room, now) is not None


def assign(
    pools: Sequence[Desired],
    limits: HostLimits,
    observed: Observed,
    view: View,
    kept: Sequence[Machine],
    now: float,
) -> Assigned:
    """Bindings and starts for the waiting jobs, then warm machines.

    `kept` are the machines that live on after this pass.
    """
    by_name = {pool.pool: _Pool(pool) for pool in pools}
    going = {machine.id for machine in kept}
    freed = [
        by_name[machine.metadata.pool].desired.shape
        for machine in observed.machines
        if machine.alive
        and machine.id not in going
        and machine.metadata
        and machine.metadata.pool in by_name
    ]
    room, assigned, waits = Room(observed.capacity, limits, freed), Assigned(), dict[str, Wait]()
    served = _sort_machines(by_name, view, kept, waits, now)
    # So far these alone have no machine of ours.
    assigned.promised = frozenset(
        key for key, wait in waits.items() if wait.reason.kind is WaitKind.OTHER_HOST
    )
    _sort_jobs(by_name, view, observed, served, waits, now)
    order = sorted(by_name.values(), key=lambda pool: -pool.desired.priority)
    refused: dict[str, Wait] = {}
    for priority in dict.fromkeys(pool.desired.priority for pool in order):
        equals = [pool for pool in order if pool.desired.priority == priority]
        _hand_out(equals, order, view, room, assigned, waits, refused, now)
    for pool in order:
        _top_up(pool, view, room, assigned, now)
    assigned.waits = tuple(sorted((refused | waits).values(), key=lambda wait: wait.job.id))
    return assigned


def _sort_machines(
    pools: dict[str, _Pool], view: View, kept: Sequence[Machine], waits: dict[str, Wait], now: float
) -> set[str]:
    """Count the machines into their pools; returns the keys of the waiting jobs that have a
    machine, each with its reason to wait.
    """
    free: list[_Seen] = []
    for machine in kept:
        metadata = machine.metadata
        pool = pools.get(metadata.pool) if metadata else None
        if metadata is None or pool is None:
            continue
        pool.count += 1
        if machine.is_held:
            pool.held += 1
            continue
        if not metadata.is_bound:
            (pool.ready if machine.is_ready else pool.booting).append((machine, metadata))
            continue
        job = view.job_on(machine.id, metadata.job_key) or view.jobs.get(metadata.job_key)
        if job:
            pool.load[job.repository] += 1
        # An ephemeral runner has one job: one that was seen to run is its last, listed or not.
        if view.is_busy(machine) or metadata.running_at or metadata.over_at:
            continue
        free.append((machine, metadata))
    return _serve(pools, view, free, waits, now)


def _serve(
    pools: dict[str, _Pool], view: View, free: Sequence[_Seen], waits: dict[str, Wait], now: float
) -> set[str]:
    """Match the bound machines without a job to the waiting jobs that they will get."""
    served: set[str] = set()
    spare: list[_Seen] = []
    for machine, metadata in free:
        job = view.jobs.get(metadata.job_key)
        yields = job is not None and not view.binds_jobs and view.rivals.comes_before(job)
        if job and job.state is JobState.WAITING and job.key not in served and not yields:
            served.add(job.key)
            waits[job.key] = Wait(
                job,
                _soon(machine, metadata, pools[metadata.pool].desired, view, now),
                metadata.pool,
            )
        else:
            spare.append((machine, metadata))
    for job in view.jobs.values() if view.rivals.fleet.records else ():
        if job.state is not JobState.WAITING or job.key in served:
            continue
        if host := view.rivals.maker(job):
            served.add(job.key)
            waits[job.key] = Wait(job, _made_by(host))
    others = _Others(
        [
            job
            for job in view.jobs.values()
            if job.state is JobState.WAITING and job.key not in served and not job.is_caller
        ]
        if spare or view.rivals.spares
        else [],
        view,
    )
    # Theirs and ours in the same order on every host.
    theirs = deque([] if view.binds_jobs else view.rivals.spares)
    for machine, metadata in sorted(spare, key=lambda seen: seen[1].runner_id):
        while theirs and theirs[0].runner_id < metadata.runner_id:
            _serve_theirs(theirs.popleft(), others, served, waits)
        pool = pools[metadata.pool]
        # Where jobs are bound, a runner that was made for one takes no other.
        takes = not view.binds_jobs or not metadata.job_key
        likely = takes and not _calls_no_more(machine, metadata, view)
        job = others.take(_labels(metadata, pool, view), metadata.scope) if likely else None
        if job:
            served.add(job.key)
            waits[job.key] = Wait(
                job, _soon(machine, metadata, pool.desired, view, now), metadata.pool
            )
            pool.due += not metadata.job_key
        elif takes:
            pool.idle.append((machine, metadata))
    for each in theirs:
        _serve_theirs(each, others, served, waits)
    return served


def _labels(metadata: Metadata, pool: _Pool, view: View) -> frozenset[str]:
    """What its runner takes: the pool may have other labels by now."""
    record = view.records.get(metadata.runner_id)
    return frozenset(record.labels) if record and record.labels else pool.desired.labels


def _calls_no_more(machine: Machine, metadata: Metadata, view: View) -> bool:
    """Whether a runner that is registered idle is likely dead: no job waits for it then, though it
    has more time than this before it is ended.
    """
    return bool(
        not metadata.job_key
        and metadata.silent_at
        and machine.event(EventKind.RUNNER)
        and view.since(metadata, metadata.silent_at) > _CALLS_AGAIN
    )


def _serve_theirs(spare: Spare, others: _Others, served: set[str], waits: dict[str, Wait]) -> None:
    """What another host's runner takes that has lost the job that it was made for."""
    if job := others.take(spare.labels, f"{_CLAIMED}{spare.claim.repository}", theirs=True):
        served.add(job.key)
        said = "another host's machine, which is free, takes it"
        waits[job.key] = Wait(job, Reason(WaitKind.OTHER_HOST, said))


def _made_by(host: str) -> Reason:
    return Reason(WaitKind.OTHER_HOST, f"the host {host} makes a machine for it")


class _Others:
    """Waiting jobs, to be taken one by one.

    Those that are alike share a queue: many machines must not each look through many jobs.
    """

    def __init__(self, jobs: Sequence[Job], view: View) -> None:
        self._view = view
        self._alike: dict[
            tuple[tuple[str, ...], str, frozenset[Scope], bool], deque[tuple[int, Job]]
        ] = {}
        for number, job in enumerate(jobs):
            is_ours = view.rivals.is_overdue(job)
            self._alike.setdefault(
                (job.labels, job.repository, frozenset(view.visible[job.key]), is_ours), deque()
            ).append((number, job))
        self._known: dict[tuple[frozenset[str], str, bool], list[deque[tuple[int, Job]]]] = {}

    def take(self, labels: frozenset[str], scope: str, *, theirs: bool = False) -> Job | None:
        """The first one that a runner of this scope with these labels gets. `theirs`: another
        host's, which is not waited for where others had their time.
        """
        queues = self._known.get((labels, scope, theirs))
        if queues is None:
            heads = ((queue, queue[0][1]) for queue in self._alike.values() if queue)
            queues = [
                queue
                for queue, job in heads
                if job.fits(labels)
                and _has_in_scope(scope, job, self._view)
                and not (theirs and self._view.rivals.is_overdue(job))
            ]
        self._known[labels, scope, theirs] = queues = [queue for queue in queues if queue]
        return min(queues, key=lambda queue: queue[0][0]).popleft()[1] if queues else None


def _has_in_scope(scope_text: str, job: Job, view: View) -> bool:
    if scope_text.startswith(_CLAIMED):
        return Claim.of(job).repository == scope_text.removeprefix(_CLAIMED)
    scope = Scope.parse(scope_text)
    if scope.kind is ScopeKind.REPOSITORY and job.repository:
        return scope.name == job.repository
    return scope.kind is ScopeKind.INSTANCE or scope in view.visible[job.key]


def _soon(machine: Machine, metadata: Metadata, pool: Desired, view: View, now: float) -> Reason:
    """Why a job waits that has a machine."""
    if not machine.is_up or not metadata.is_bound:
        usual = f" of ~{pool.typical_boot:.0f} s" if pool.typical_boot else ""
        age = view.awake(metadata, metadata.created_at)
        return Reason(WaitKind.BOOTING, f"machine {machine.id} is booting ({age:.0f} s{usual})")
    record = view.records.get(metadata.runner_id)
    if record and record.online and view.binds_jobs and machine.event(EventKind.RUNNER):
        said = (
            f"the forge has not handed it to its runner {machine.id} yet; a concurrency group "
            "may hold it back"
        )
        return Reason(WaitKind.HELD, said)
    return Reason(WaitKind.RUNNER_STARTS, f"machine {machine.id} is starting its runner")


def _sort_jobs(
    pools: dict[str, _Pool],
    view: View,
    observed: Observed,
    served: set[str],
    waits: dict[str, Wait],
    now: float,
) -> None:
    """Put each waiting job without a machine into the pools that could serve it."""
    labels = sorted({label for pool in pools.values() for label in pool.desired.labels})
    fits: dict[tuple[str, ...], list[_Pool]] = {}  # jobs are many, and what they ask for is not
    nobody: dict[tuple[str, ...], Reason] = {}
    oldest_first = sorted(view.jobs.values(), key=lambda job: job.id)
    queue = view.rivals.preferred(oldest_first)
    for place, job in enumerate(queue):
        if job.state is JobState.BLOCKED:
            said = "blocked at the forge, by `needs` or a concurrency group"
            waits[job.key] = Wait(job, Reason(WaitKind.BLOCKED, said))
        if job.state is not JobState.WAITING or job.key in served:
            continue
        if job.is_caller:
            said = (
                "without runs-on it looks like the call of a reusable workflow, which needs no "
                "machine; the jobs in there get theirs"
            )
            waits[job.key] = Wait(job, Reason(WaitKind.CALLER, said))
            continue
        until = observed.held.get(job.key, 0.0)
        if until > now:
            said = (
                "the forge held it back from its runner (a concurrency group?); tried again in "
                f"{until - now:.0f} s"
            )
            waits[job.key] = Wait(job, Reason(WaitKind.HELD, said))
            continue
        if job.labels not in fits:
            fits[job.labels] = [pool for pool in pools.values() if pool.desired.serves(job)]
            nobody[job.labels] = _nobody(job, labels, bool(fits[job.labels]))
        seeing = [
            pool
            for pool in fits[job.labels]
            if not view.visible[job.key].isdisjoint(pool.desired.scopes)
        ]
        if not seeing:
            waits[job.key] = Wait(job, nobody[job.labels])
        for pool in seeing:
            if job.repository not in pool.jobs:
                pool.jobs[job.repository] = deque()
                heapq.heappush(pool.turns, (pool.load[job.repository], place, job.repository))
            pool.jobs[job.repository].append((place, job))


def _nobody(job: Job, labels: Sequence[str], fits: bool) -> Reason:
    """Why no pool serves a job."""
    if fits:
        said = (
            "no pool with its labels has its scope"
            if job.labels
            else "no pool with takes_unlabelled has its scope"
        )
        return Reason(WaitKind.NO_SCOPE, said)
    if not job.labels:
        said = "it has no runs-on, and no pool has takes_unlabelled"
        return Reason(WaitKind.UNLABELLED, said)
    missing = [label for label in job.labels if label not in labels]
    if not missing:
        said = f"no single pool has all of its labels {', '.join(job.labels)}"
        return Reason(WaitKind.NO_POOL_WITH_ALL_LABELS, said)
    near = difflib.get_close_matches(missing[0], labels, n=1, cutoff=0.0)
    said = f"no pool has the label {missing[0]}" + (f" (nearest: {near[0]})" if near else "")
    return Reason(WaitKind.NO_LABEL, said)


def _hand_out(
    pools: Sequence[_Pool],
    everyone: Sequence[_Pool],
    view: View,
    room: Room,
    assigned: Assigned,
    waits: dict[str, Wait],
    refused: dict[str, Wait],
    now: float,
) -> None:
    """Hand machines of pools of equal priority to their jobs, one by one, to whoever has the
    fewest.

    `waits` gets the jobs that have one now, `refused` the others: a pool of a lower priority may
    still serve them.
    """
    obstacles: dict[str, Reason] = {}
    open_pools = list(pools)
    while open_pools:
        pool = min(open_pools, key=lambda each: (each.count, each.desired.pool))
        job = _next_job(pool, waits)
        if job is None:
            open_pools.remove(pool)
            continue
        scope, fallback = _scopes(pool.desired, job, view)
        name = pool.desired.pool
        obstacle = None if pool.ready or pool.booting else pool.obstacle(room, now)
        patience = view.rivals.patience(job)
        if patience and not obstacle:
            waits[job.key] = Wait(job, _another_first(view.rivals.first(job), patience), name)
            assigned.again = min(assigned.again or patience, patience)
            continue
        if pool.ready:
            metadata = pool.ready.popleft()[1]
            assigned.actions.append(
                Bind(metadata, name, job, scope, fallback, is_last=pool.is_full(room, now))
            )
            waits[job.key] = Wait(job, Reason(WaitKind.BOUND, "a warm machine gets it now"), name)
        elif pool.booting:
            waits[job.key] = Wait(
                job, _soon(*pool.booting.popleft(), pool.desired, view, now), name
            )
            pool.expected += 1
        elif obstacle:
            gone = [] if patience else _make_room(pool, everyone, room, now)
            if not gone:
                # For this job another pool may still do; this one can start no more.
                obstacles[name] = obstacle
                open_pools.remove(pool)
                continue
            assigned.actions += gone
            waits[job.key] = Wait(
                job, Reason(WaitKind.ROOM_IS_MADE, "an idle machine makes room for it now"), name
            )
        else:
            room.take(pool.desired.shape)
            pool.count += 1
            is_last = pool.is_full(room, now)
            assigned.actions.append(Start(name, job, scope, fallback, is_last=is_last))
            waits[job.key] = Wait(
                job, Reason(WaitKind.STARTED, "a machine is started for it now"), name
            )
        pool.load[job.repository] += 1
    for pool in pools:
        for job in (job for jobs in pool.jobs.values() for _, job in jobs):
            if job.key not in waits and pool.desired.pool in obstacles:
                refused.setdefault(
                    job.key, Wait(job, obstacles[pool.desired.pool], pool.desired.pool)
                )


def _another_first(host: str, patience: float) -> Reason:
    said = f"it is the turn of the host {host}, and this one's in {patience:.1f} s"
    return Reason(WaitKind.OTHER_HOST, said)


def _make_room(pool: _Pool, everyone: Sequence[_Pool], room: Room, now: float) -> list[Finish]:
    """Idle machines that go, so that a waiting job's machine can be started by the next pass; none
    where that would not do.
    """
    desired, victims = pool.desired, list[tuple[_Pool, deque[_Seen], _Seen]]()
    if not desired.starts(now):
        return []
    over = max(0, pool.count + pool.change + 1 - desired.max)  # places that it lacks of its own
    # A job that waits is worth more than a machine that waits, whatever their pools' priorities.
    queues = (
        [(pool, pool.idle)]
        if over
        else [
            (each, queue)
            for each in reversed(everyone)
            for queue in (each.ready, each.booting, each.idle)
        ]
    )
    # The newest ones of its own, and the first ones of each other queue.
    candidates = (
        (each, queue, seen)
        for each, queue in queues
        for seen in (reversed(queue) if over else queue)
    )
    for each, queue, seen in candidates:
        if len(victims) >= over and not room.lack(desired.shape):
            break
        room.give(each.desired.shape)
        victims.append((each, queue, seen))
    fits = len(victims) >= over and not room.lack(desired.shape)
    for each, _, _ in victims:
        room.take(each.desired.shape)  # they are there until the next pass
    if not (fits and victims):
        return []
    pool.change += 1
    for each, queue, _ in victims:
        each.change -= 1
        queue.pop() if over else queue.popleft()
    reason = "a waiting job needs its place"
    return [
        Finish(
            machine.id,
            Ending.UNNEEDED,
            reason,
            machine,
            has_record=metadata.is_bound,
            if_idle=metadata.is_bound,
        )
        for _, _, (machine, metadata) in victims
    ]


def _next_job(pool: _Pool, done: Collection[str]) -> Job | None:
    """The oldest job of the repository that has the fewest machines of this pool."""
    while pool.turns:
        *then, repository = pool.turns[0]
        jobs = pool.jobs[repository]
        while jobs and jobs[0][1].key in done:
            jobs.popleft()
        if not jobs:
            del pool.jobs[repository]
            heapq.heappop(pool.turns)
        elif then != [
            pool.load[repository],
            jobs[0][0],
        ]:  # it got a machine since, so others may come before it
            heapq.heapreplace(pool.turns, (pool.load[repository], jobs[0][0], repository))
        else:
            return jobs[0][1]
    return None


def _scopes(pool: Desired, job: Job, view: View) -> tuple[Scope, Scope]:
    """Where to register the runner for this job, and where if the forge does not permit that.

    A forge that hands any fitting job to any runner, oldest first, would give every machine to the
    repository with the longest queue. A runner of the job's own repository gets only that one's
    jobs.
    """
    wide = next(scope for scope in pool.scopes if scope in view.visible[job.key])
    if view.binds_jobs or not job.repository or wide.kind is ScopeKind.REPOSITORY:
        return wide, wide
    return Scope(ScopeKind.REPOSITORY, job.repository), wide


def _is_spare(metadata: Metadata, view: View) -> bool:
    """Whether the job that it was made for does not wait, by all that is known of it."""
    if not view.answers(Scope.parse(metadata.scope)) or metadata.runner_id not in view.records:
        return False
    told = view.asked.get(Ask.about(metadata))
    jobs = (view.jobs.get(metadata.job_key), told.job if told else None)
    return all(job is None or job.state is not JobState.WAITING for job in jobs)


def _top_up(pool: _Pool, view: View, room: Room, assigned: Assigned, now: float) -> None:
    """Warm and registered-idle machines: what is missing is started, what is too much is
    destroyed.
    """
    desired = pool.desired
    # One is replaced when it has its job, and not before. Which runner takes a job nobody knows,
    # and the job may go, or be held back.
    surplus = len(pool.ready) + len(pool.booting) + pool.expected - desired.warm
    for _ in range(min(surplus, len(pool.ready))):
        machine, _ = pool.ready.pop()
        pool.count -= 1
        assigned.actions.append(
            Finish(
                machine.id, Ending.UNNEEDED, "there were more warm machines than wanted", machine
            )
        )
    for_any = [machine for machine, metadata in pool.idle if not metadata.job_key]
    for machine in for_any[desired.register_idle :]:
        reason = "there were more registered machines than wanted"
        assigned.actions.append(
            Finish(machine.id, Ending.UNNEEDED, reason, machine, has_record=True, if_idle=True)
        )
    for machine, metadata in pool.idle:
        if metadata.job_key and _is_spare(metadata, view):
            assigned.actions.append(
                Finish(
                    machine.id,
                    Ending.UNNEEDED,
                    "no job waits any more that it could take",
                    machine,
                    has_record=True,
                    if_idle=True,
                    ask=Ask.about(metadata),
                )
            )
    missing_idle = desired.register_idle - len(for_any) - pool.due
    for kind, missing in (("warm", -surplus), ("idle", missing_idle)):
        for _ in range(missing):
            if pool.obstacle(room, now):
                return
            room.take(desired.shape)
            pool.count += 1
            scope = desired.scopes[0] if kind == "idle" else None
            assigned.actions.append(Start(desired.pool, None, scope, scope))
