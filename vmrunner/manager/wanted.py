"""Which waiting jobs are worth reading, and what is asked before one gets a machine. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

from vmrunner.manager.actions import Bind, Plan, Start
from vmrunner.manager.observed import Desired, Drain, Observed
from vmrunner.model.job import Job, Scope, Want
from vmrunner.model.machine import Capacity, Machine


def wants(
    scope: Scope, pools: Sequence[Desired], machines: Sequence[Machine], capacity: Capacity
) -> list[Want]:
    """What this scope's queue could be read for: each pool's machines that have no job yet, and
    those that the pool may still have and such a host can hold.
    """
    at_work = Counter(
        machine.metadata.pool
        for machine in machines
        if machine.alive and machine.metadata and machine.metadata.running_at
    )
    places = {
        pool.pool: min(pool.max, capacity.memory_mib // pool.shape.memory_mib) - at_work[pool.pool]
        for pool in pools
        if scope in pool.scopes and pool.drain is Drain.NO
    }
    return [Want(places[pool.pool], pool.serves) for pool in pools if places.get(pool.pool, 0) > 0]


def unsure(decided: Plan, observed: Observed, trusted: Collection[str]) -> list[Job]:
    """Jobs that would get a machine now, and that may be gone: nobody has looked at them again.
    `trusted` are the keys of those that can't be asked for.
    """
    old = {key for queue in observed.queues.values() for key in queue.old} - set(trusted)
    jobs = [
        action.job for action in decided.actions if isinstance(action, Start | Bind) and action.job
    ]
    return [job for job in jobs if job.key in old]


def told(observed: Observed, before: Job, now: Job | None) -> Observed:
    """With one of these jobs as the forge shows it by its id; None where it is no more."""
    queues = {
        scope: queue.told(before, now) if before.key in queue.old else queue
        for scope, queue in observed.queues.items()
    }
    return replace(observed, queues=queues)


def without(decided: Plan, jobs: Collection[Job]) -> Plan:
    """The plan without what it would do for these jobs; a later one asks again."""
    keys = {job.key for job in jobs}
    kept = (
        action
        for action in decided.actions
        if not (isinstance(action, Start | Bind) and action.job and action.job.key in keys)
    )
    return replace(decided, actions=tuple(kept))
