"""What a survey says, as the records that `status` prints."""

from __future__ import annotations

import socket

from vmrunner.cli.shown import (
    BackedOff,
    HeldShown,
    LentPool,
    LentShown,
    MachineShown,
    Pool,
    Queue,
    Status,
    Waiting,
)
from vmrunner.machine.instances import Lent
from vmrunner.manager.actions import Wait
from vmrunner.manager.manager import Manager, Survey
from vmrunner.manager.observed import Desired, Drain, View
from vmrunner.model.job import Job
from vmrunner.model.machine import Machine, Phase


def status(manager: Manager, survey: Survey, now: float, seen_at: float | None = None) -> Status:
    """What the survey of `seen_at` (default: now) says, with ages as they are now; unix seconds."""
    view = View(survey.observed)
    queues = survey.observed.queues.items()
    return Status(
        manager=manager.settings.manager,
        host=socket.gethostname(),
        seen_seconds_ago=round(max(0.0, now - seen_at), 1) if seen_at else 0.0,
        forge_down_since=manager.forge_down_since() or None,
        forge=tuple(
            Queue(str(scope), queue.problem, queue.hint, len(queue.jobs), queue.unread)
            for scope, queue in queues
        ),
        pools=tuple(_pool(pool, manager, survey, view, now) for pool in survey.pools),
        garm=_lent(survey, now),
        waiting=tuple(_wait(wait, now) for wait in survey.plan.waits),
    )


def _pool(pool: Desired, manager: Manager, survey: Survey, view: View, now: float) -> Pool:
    backoff = pool.backoff
    configured = manager.settings.pools.get(pool.pool)
    machines = _machines(pool, survey)
    age = round(now - pool.image_built) if pool.image_built else None
    return Pool(
        name=pool.pool,
        max=pool.max,
        warm=pool.warm,
        ready=sum(machine.is_ready for machine in machines),
        image=pool.image,
        image_wanted=configured.image if configured else "",
        image_age_seconds=age,
        image_is_old=age is not None and age > manager.settings.images.max_age.total_seconds(),
        image_note=pool.image_note,
        drained=pool.drain is not Drain.NO,
        snapshot=pool.snapshot,
        running=sum(machine.phase is Phase.RUNNING for machine in machines),
        register_idle=pool.register_idle,
        idle=sum(machine.phase is Phase.IDLE for machine in machines),
        held=sum(machine.is_held for machine in machines),
        catching_seconds=manager.catching.pools().get(pool.pool, 0.0),
        failed=backoff.failures if backoff else 0,
        backoff=BackedOff(backoff.failures, round(max(0.0, backoff.until - now), 1), backoff.last)
        if backoff
        else None,
        machines=tuple(_machine(machine, view) for machine in machines),
    )


def _machine(machine: Machine, view: View) -> MachineShown:
    metadata, job = machine.metadata, _job_of(machine, view)
    return MachineShown(
        name=str(machine.id),
        phase=machine.phase.value,
        paused=machine.is_paused,
        age_seconds=round(view.awake(metadata, metadata.created_at), 1) if metadata else None,
        image=metadata.image if metadata else "",
        job=job.title if job else "",
        job_url=job.url if job else "",
        trouble=machine.trouble,
        dropped_packets=machine.dropped,
        held=_held(machine, view),
    )


def _held(machine: Machine, view: View) -> HeldShown | None:
    metadata = machine.metadata
    if metadata is None or not machine.is_held:
        return None
    seconds = view.awake(metadata, metadata.held_at)
    left = max(0.0, metadata.held_for - seconds)
    return HeldShown(metadata.held_why, round(seconds, 1), round(left, 1))


def _wait(wait: Wait, now: float) -> Waiting:
    job = wait.job
    return Waiting(
        name=job.name,
        id=job.id,
        repository=job.repository,
        labels=tuple(job.labels),
        url=job.url,
        pool=wait.pool,
        kind=wait.reason.kind.value,
        reason=wait.reason.said,
        age_seconds=round(now - job.queued_at.timestamp(), 1) if job.queued_at else None,
    )


def _by_owner(survey: Survey) -> dict[str, list[Lent]]:
    found: dict[str, list[Lent]] = {}
    for each in survey.observed.lent:
        found.setdefault(each.instance.owner, []).append(each)
    return found


def _lent(survey: Survey, now: float) -> tuple[LentPool, ...]:
    return tuple(
        LentPool(
            controller=found[0].instance.controller,
            pool=found[0].instance.pool,
            machines=tuple(
                LentShown(
                    name=str(each.machine.id),
                    instance=each.instance.name,
                    flavor=each.instance.flavor,
                    image=each.instance.image,
                    phase=each.machine.phase.value,
                    age_seconds=round(now - each.instance.created_at, 1),
                    trouble=each.machine.trouble,
                    dropped_packets=each.machine.dropped,
                )
                for each in found
            ),
        )
        for found in _by_owner(survey).values()
    )


def _machines(pool: Desired, survey: Survey) -> list[Machine]:
    return [
        machine
        for machine in survey.observed.machines
        if machine.metadata and machine.metadata.pool == pool.pool
    ]


def _job_of(machine: Machine, view: View) -> Job | None:
    return view.job_on(machine.id, machine.metadata.job_key) if machine.metadata else None
