"""What to do next, decided from what is seen. Pure: no I/O, no clock, no log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vmrunner.forge import Job, RunnerRecord, Scope
from vmrunner.model import EventKind, Machine, MachineId


@dataclass(frozen=True)
class Desired:
    """One pool as configured; times in seconds."""

    pool: str
    scope: Scope
    max: int
    boot_timeout: float
    pickup_timeout: float
    job_timeout: float
    by_handle: bool  # Forgejo: a machine takes exactly the job it was made for


@dataclass(frozen=True)
class Observed:
    """One pool as seen: this pool's machines, and the forge's side of it."""

    machines: tuple[Machine, ...]
    waiting: tuple[Job, ...] = ()
    running: tuple[Job, ...] = ()
    runners: tuple[RunnerRecord, ...] = ()


@dataclass(frozen=True)
class Start:
    """Start a machine for this job."""

    job: Job


@dataclass(frozen=True)
class DropSeed:
    """The guest has read its seed: delete it from the host."""

    machine: MachineId


@dataclass(frozen=True)
class Destroy:
    """Destroy a machine; `reason` is empty for one that ended by itself, as it should."""

    machine: Machine
    reason: str = ""


@dataclass(frozen=True)
class DeleteRunner:
    """Delete a runner record that no machine explains."""

    runner: RunnerRecord


Action = Start | DropSeed | Destroy | DeleteRunner


@dataclass(frozen=True)
class _Live:
    """The live machines, and what each of them is doing."""

    kept: list[Machine] = field(default_factory=list)
    free: list[Machine] = field(default_factory=list)  # may still take a job


def plan(manager: str, desired: Desired, observed: Observed, now: float) -> list[Action]:
    """One pool's next actions: first what is over, then what is new. `now` is in unix seconds."""
    actions: list[Action] = []
    live = _Live()
    busy = {job.runner_name for job in observed.running}
    records = {record.name for record in observed.runners}
    for machine in observed.machines:
        if not machine.alive:
            actions.append(Destroy(machine))
        elif reason := _overdue(machine, desired, busy, now):
            actions.append(Destroy(machine, reason))
        else:
            live.kept.append(machine)
            if str(machine.id) in records and str(machine.id) not in busy:
                live.free.append(machine)
            if machine.event(EventKind.SEED) and any(name.endswith(".seed.iso") for name in machine.files):
                actions.append(DropSeed(machine.id))
    explained = {str(machine.id) for machine in live.kept}
    actions += [DeleteRunner(record) for record in observed.runners if MachineId.of(manager, record.name) and record.name not in explained]
    actions += [Start(job) for job in _unserved(desired, observed.waiting, live)]
    return actions


def _overdue(machine: Machine, desired: Desired, busy: set[str], now: float) -> str:
    """Why this live machine must go, or nothing."""
    age = now - (machine.metadata.created_at if machine.metadata else now)
    if age > desired.job_timeout + desired.boot_timeout + desired.pickup_timeout:
        return f"it did not power off within its job_timeout of {desired.job_timeout:.0f} s"
    if not machine.event(EventKind.UP):
        return f"its guest did not come up within {desired.boot_timeout:.0f} s" if age > desired.boot_timeout else ""
    # The pick-up deadline is for machines that can be told from busy ones: Forgejo does not say which runner has a job, but
    # its runner exists only for that job's handle, and the runner's status says busy.
    if not machine.event(EventKind.EXIT) and str(machine.id) not in busy and age > desired.boot_timeout + desired.pickup_timeout:
        return f"its runner took no job within {desired.pickup_timeout:.0f} s"
    return ""


def _unserved(desired: Desired, waiting: Sequence[Job], live: _Live) -> list[Job]:
    """The waiting jobs that need a machine of their own now, oldest first, as far as `max` allows."""
    room = max(0, desired.max - len(live.kept))
    if desired.by_handle:
        served = {machine.metadata.job_key for machine in live.kept if machine.metadata}
        wanted = [job for job in waiting if job.key not in served]
    else:
        # Gitea hands any fitting job to any free runner, so only the count matters.
        wanted = list(waiting[len(live.free) :])
    return wanted[:room]
