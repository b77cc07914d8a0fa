"""What to do next, decided from what is seen. Pure: no I/O, no clock, no log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from vmrunner.manager.actions import (
    Action,
    DeleteRunner,
    DropSeed,
    Finish,
    Hold,
    Note,
    Pause,
    Plan,
    Stay,
)
from vmrunner.manager.assign import assign
from vmrunner.manager.observed import (
    Ask,
    Backoff,
    Desired,
    Drain,
    HostLimits,
    Observed,
    Told,
    View,
)
from vmrunner.model.binding import Binding
from vmrunner.model.job import Job, JobState, RunnerRecord, Scope
from vmrunner.model.machine import Ending, EventKind, Machine, MachineId, Metadata
from vmrunner.model.moment import Moment
from vmrunner.text import presentable

CANCEL_GRACE = 15.0
"""Seconds that a guest whose job is over at the forge has to say that its runner has ended; then it
was cancelled and works on.
"""
NO_LIFE = 300.0
"""Seconds without a word of a running job after which its runner must have lost it: Gitea itself
gives it up after ten minutes.
"""
# Seconds that a job may run before its runner is expected to have said something.
_FIRST_WORDS = 30.0
# Seconds that a parked clone may take for it; it takes 5, and 20 with Docker on a busy host.
_REHEARSAL = 60.0
# Seconds that a machine may seem to come from the future before its times can't be right.
_CLOCK_SLIP = 60.0
_ELSEWHERE = "another host's machine has its job"
_WAS_SILENT = "; the forge did not answer for a time meanwhile"
_ASKED = "an admin asked for it"
_LONGEST_TITLE = 120  # characters of a job's name in a reason
_SOON = 1.0  # seconds until a machine is looked at again that waits to be ended


class _Finisher(Protocol):
    """Makes the Finish of the machine that is looked at."""

    def __call__(
        self, ending: Ending, reason: str, *, if_idle: bool = False, ask: Ask | None = None
    ) -> Finish:
        """`ask`: what it rests on."""


def plan(
    manager: str, pools: Sequence[Desired], limits: HostLimits, observed: Observed, now: float
) -> Plan:
    """First what is over, then what is new, then why the rest waits. `now` is in unix seconds.

    Nothing is ended or replaced because of what a list did not show alone: that is asked for first,
    see `Plan.asks`.
    """
    view, sure = View(observed, now), _Sure(observed)
    desired = {pool.pool: pool for pool in pools}
    actions: list[Action] = []
    kept: list[Machine] = []
    judged = [(machine, sure.of(_judge(machine, desired, view))) for machine in observed.machines]
    victim = _victim(judged, limits, observed)
    for machine, action in judged:
        if machine is victim:
            action = _sacrifice(machine, view, observed.capacity.free_disk_mib)
        if action is not None:
            actions.append(action)
        if machine.alive and not isinstance(action, Finish):
            # As it will be: one whose job was just seen to be over is not idle.
            kept.append(
                replace(machine, metadata=action.metadata)
                if isinstance(action, Note | Hold | Stay)
                else machine
            )
            actions += _seeds(machine)
    known = {machine.id for machine in observed.machines}
    over: list[Action] = [
        _finish_dead(Machine(binding.machine, alive=False), view)
        for binding in observed.bindings
        if binding.machine not in known and view.answers(binding.scope)
    ]
    over += _strays(manager, observed, view)
    actions += [action for each in over if (action := sure.of(each))]
    assigned = assign(
        _without_failed(pools, actions, observed, view, now),
        limits,
        _with_held(observed, actions, now),
        view,
        kept,
        now,
    )
    new = [action for each in assigned.actions if (action := sure.of(each))]
    soon = [_SOON] if any(_is_soon_over(each) for each in kept) else []
    again = min((each for each in (assigned.again, *soon) if each), default=0.0)
    # The destroyed ones' records come first, so that a pool at its max has room again.
    return Plan((*actions, *new), assigned.waits, tuple(sure.asks), again, assigned.promised)


def _is_soon_over(machine: Machine) -> bool:
    """Whether its job is over, its guest stays, and nothing is decided yet. libvirt tells of no end
    of it, and nothing new needs to happen.
    """
    metadata = machine.metadata
    stays = metadata is not None and metadata.stays and not machine.is_held
    return stays and (machine.awaits_verdict or bool(metadata and metadata.over_at))


class _Sure:
    """Lets through what does not rest on what a list failed to show, or was asked for since."""

    def __init__(self, observed: Observed) -> None:
        self._asked = observed.asked
        self.asks: dict[Ask, None] = {}  # in their order

    def of(self, action: Action | None) -> Action | None:
        """The action, or None where something has to be asked first."""
        if not isinstance(action, Note | Finish | Hold | DeleteRunner) or action.ask is None:
            return action
        if action.ask in self._asked:
            return action
        self.asks[action.ask] = None
        return None


def _ask_of(binding: Binding) -> Ask:
    """About one that does not."""
    return Ask(binding.scope, binding.credentials.id, binding.repository, binding.job_key)


def _victim(
    judged: Sequence[tuple[Machine, Action | None]], limits: HostLimits, observed: Observed
) -> Machine | None:
    """Whom to destroy for the host's storage: one that is held before any other, and then the
    newest machine, one in each pass, unless one goes anyway and may free enough.
    """
    living = [(machine, action) for machine, action in judged if machine.alive and machine.metadata]
    if observed.capacity.free_disk_mib >= limits.disk_guard_mib or any(
        isinstance(action, Finish) for _, action in living
    ):
        return None
    return max(
        (machine for machine, _ in living),
        key=lambda machine: (
            machine.is_held,
            machine.metadata.created_at if machine.metadata else 0.0,
        ),
        default=None,
    )


def _sacrifice(machine: Machine, view: View, free_mib: int) -> Finish:
    which = "was held" if machine.is_held else "was the newest machine"
    reason = f"the host's storage has {free_mib} MiB left, and it {which}"
    return at_once(machine, Ending.NO_ROOM, reason, view)


def at_once(machine: Machine, ending: Ending, reason: str, view: View) -> Finish:
    """The end of a living machine, whatever runs on it, without an answer of the forge. One whose
    job was over ends as held.
    """
    metadata = machine.metadata
    if machine.is_held:
        return let_go(machine, reason)
    if metadata is None or not metadata.is_bound:
        return Finish(machine.id, ending, reason, machine)
    record, job = view.records.get(metadata.runner_id), view.job_on(machine.id, metadata.job_key)
    had_none = _had_none(record, job)
    job = view.surely_on(metadata.runner_id, job)
    return _unasked(Finish(machine.id, ending, reason, machine, job, had_none=had_none))


def let_go(machine: Machine, reason: str) -> Finish:
    """The end of a machine that was held; it says why that was, too."""
    why = machine.metadata.held_why if machine.metadata else ""
    said = f"{why}; {reason}" if why else reason
    return _unasked(Finish(machine.id, Ending.HELD, said, machine))


def _unasked(finish: Finish) -> Finish:
    """An end that waits for no answer of the forge. So a record that no list shows counts as there:
    its runner may have a job.
    """
    return replace(finish, has_record=True)


def _had_none(record: RunnerRecord | None, job: Job | None) -> bool:
    """Whether the forge shows the runner, and no job on it: then none ran on its machine."""
    return record is not None and job is None and not record.busy


def _with_held(observed: Observed, actions: Sequence[Action], now: float) -> Observed:
    """A job that is held back in this very pass gets no other machine before the next one, which
    knows for how long.
    """
    held = {
        each.seen.metadata.job_key: now + 1.0
        for each in actions
        if isinstance(each, Finish)
        and each.ending is Ending.HELD_BACK
        and each.seen
        and each.seen.metadata
    }
    return replace(observed, held={**observed.held, **held}) if held else observed


def _without_failed(
    pools: Sequence[Desired], actions: Sequence[Action], observed: Observed, view: View, now: float
) -> list[Desired]:
    """A pool whose machine fails in this very pass starts no other before the next one, which knows
    how long to back off.

    One of which only silent files are left, and whose start was not written down, never began: the
    manager was killed while it made it.
    """
    # Of one that is gone its binding knows.
    owners = {
        machine.id: machine.metadata.pool for machine in observed.machines if machine.metadata
    }
    owners = {binding.machine: binding.pool for binding in view.bindings.values()} | owners
    failed = {
        owners.get(each.machine, ""): each.reason
        for each in actions
        if isinstance(each, Finish)
        and each.ending.blames_pool
        and (
            str(each.machine) in observed.started
            or (each.seen and (each.seen.alive or each.seen.events))
        )
    }
    return [
        replace(
            pool,
            backoff=Backoff(
                (pool.backoff.failures if pool.backoff else 0) + 1, now + 1.0, failed[pool.pool]
            ),
        )
        if pool.pool in failed
        else pool
        for pool in pools
    ]


def _seeds(machine: Machine) -> list[Action]:
    """A seed that the guest has read."""
    return (
        [DropSeed(machine.id)]
        if machine.has_read_seed and f"{machine.id}.seed.iso" in machine.files
        else []
    )


def _strays(manager: str, observed: Observed, view: View) -> list[Action]:
    """Runner records with our name and our host's identity that neither a live machine nor a
    binding explains, nor somebody who has just made one, and that are not at work: somebody's
    machine would lose its job.

    Of those that an older vmrunner made, only what this host is known to have made.
    """
    leftovers = observed.leftovers | {
        str(binding.machine) for binding in observed.bindings if not binding.is_minted
    }
    explained = {
        machine.metadata.runner_id
        for machine in observed.machines
        if machine.alive and machine.metadata and not machine.is_held
    }
    explained |= {binding.credentials.id for binding in observed.bindings}
    return [
        DeleteRunner(scope := view.record_scope[record.id], record, Ask(scope, record.id))
        for record in view.records.values()
        if record.id not in explained
        and (machine := MachineId.of(manager, record.name))
        and (machine.host == observed.host or record.name in leftovers)
        and machine not in observed.owned
        and not record.busy
        and record.id not in view.at_work
    ]


def _judge(machine: Machine, pools: dict[str, Desired], view: View) -> Action | None:
    """What has to happen to this machine, if anything."""
    metadata = machine.metadata
    if not machine.alive:
        binding = view.bindings.get(machine.id)
        # What the forge thinks of its job decides how it ended: without an answer it must wait.
        return (
            _finish_dead(machine, view) if binding is None or view.answers(binding.scope) else None
        )
    if metadata is None:  # it is on its way out
        return None
    is_other = metadata.boot != view.moment.boot  # its times are by another clock
    is_future = metadata.created_at > view.by(metadata) + _CLOCK_SLIP
    if metadata.created_at and (is_other or is_future):
        return Note(machine, _reset(metadata, view.moment))
    pool = pools.get(metadata.pool)
    return (
        _judge_bound(machine, metadata, pool, view)
        if metadata.is_bound
        else _judge_unbound(machine, metadata, pool, view)
    )


def _reset(metadata: Metadata, moment: Moment) -> Metadata:
    """How old it is can't be told, as the manager's host was started anew (with its machines on
    another host), or an older vmrunner made it: every deadline starts anew.
    """
    now = moment.now
    return replace(
        metadata,
        offset=moment.offset,
        boot=moment.boot,
        created_at=now,
        bound_at=now if metadata.bound_at else 0.0,
        running_at=now if metadata.running_at else 0.0,
        over_at=now if metadata.over_at else 0.0,
        silent_at=now if metadata.silent_at else 0.0,
        held_at=now if metadata.held_at else 0.0,
        parked_at=now if metadata.parked_at else 0.0,
    )


def _finish_dead(machine: Machine, view: View) -> Finish:
    """A machine whose domain is gone, or a binding whose machine is: what became of its job?"""
    binding = view.bindings.get(machine.id)
    seen = machine if machine.files else None
    if str(machine.id) in view.were_held:
        reason = machine.trouble or "it went while it was held"
        return _unasked(Finish(machine.id, Ending.HELD, reason, seen))
    if binding is None:
        return Finish(
            machine.id,
            Ending.EARLY,
            machine.trouble or "it went before it was given a job",
            seen,
            unexplained=not machine.trouble,
        )
    record = view.records.get(binding.credentials.id)
    job = view.job_on(machine.id, binding.job_key) if binding.is_minted else None
    last = machine.event(EventKind.EXIT)
    is_elsewhere = view.is_elsewhere(binding.credentials.id, job)
    surely = view.surely_on(binding.credentials.id, job)
    is_over = _is_over(view.asked.get(_ask_of(binding)), binding.credentials.id)
    if binding.ending:
        ending, reason = Ending(binding.ending), binding.reason
    elif not binding.is_minted:
        ending, reason = Ending.ABANDONED, "the manager ended while it made it"
    elif is_over:
        ending, reason = Ending.DONE, ""  # the record may be there for a while
    elif is_elsewhere:
        ending, reason = Ending.UNNEEDED, _ELSEWHERE
    elif job or (record and record.busy):
        ending, reason = Ending.DIED, machine.trouble or _last_words(last.text if last else None)
    elif record:
        said = (
            f"its runner ended (exit {last.text or '?'}) before it took a job"
            if last
            else "it went before its runner took a job"
        )
        ending, reason = Ending.EARLY, machine.trouble or said
        if last and binding.bound_at and view.was_silent(binding.scope, binding.bound_at):
            ending, reason = Ending.FORGE_AWAY, said + _WAS_SILENT
    else:
        ending, reason = Ending.DONE, ""
    # Its guest's word and the missing record say the same where all went well: that is the usual
    # end, and costs no request.
    ended_well = record is None and last is not None and last.text == "0"
    is_told = job is not None and (not view.binds_jobs or bool(record and record.busy))
    return Finish(
        machine.id,
        ending,
        reason,
        seen,
        None if is_elsewhere else surely,
        has_record=record is not None,
        had_none=is_elsewhere or (not is_over and _had_none(record, job)),
        unexplained=ending in {Ending.DIED, Ending.EARLY}
        and not (binding.ending or machine.trouble or last),
        elsewhere=is_elsewhere,
        ask=_ask_of(binding) if binding.is_minted and not is_told and not ended_well else None,
    )


def _last_words(exit_text: str | None) -> str:
    if exit_text is None:
        return "it went without a last word from its guest"
    return f"its runner ended (exit {exit_text or '?'}) before its job did"


def _judge_unbound(
    machine: Machine, metadata: Metadata, pool: Desired | None, view: View
) -> Action | None:
    """A warm machine, booting or ready."""

    def finish(ending: Ending, reason: str) -> Finish:
        return Finish(machine.id, ending, reason, machine)

    if machine.trouble:
        return finish(Ending.EARLY, machine.trouble)
    if machine.id in view.bindings or machine.event(EventKind.RUNNER):
        # Killed in the middle of binding it. A machine is cheap, and one that may have seen
        # credentials serves nobody else.
        return finish(Ending.ABANDONED, "the manager ended while it bound it")
    if machine.is_paused and metadata.snapshot and not metadata.parked_at:
        return finish(Ending.ABANDONED, "the manager ended while it cloned it")
    if pool is None or pool.drain is not Drain.NO:
        return finish(
            Ending.UNNEEDED,
            "its pool was drained" if pool else "its pool is not in the configuration any more",
        )
    if not machine.is_ready:
        late = view.awake(metadata, metadata.created_at) > pool.boot_timeout
        return (
            finish(
                Ending.BOOT_TIMEOUT, f"its guest did not come up within {pool.boot_timeout:.0f} s"
            )
            if late
            else None
        )
    if outdated := pool.outdates(metadata):
        return finish(Ending.UNNEEDED, outdated)
    if machine.rehearses and (
        machine.event(EventKind.REHEARSED) or view.awake(metadata, metadata.parked_at) > _REHEARSAL
    ):
        return Pause(machine.id)
    return None


def _judge_bound(
    machine: Machine, metadata: Metadata, pool: Desired | None, view: View
) -> Action | None:
    """A machine with a runner's credentials."""
    record, job = view.records.get(metadata.runner_id), view.job_on(machine.id, metadata.job_key)
    is_known = view.answers(Scope.parse(metadata.scope))
    surely = view.surely_on(metadata.runner_id, job)

    def finish(
        ending: Ending, reason: str, *, if_idle: bool = False, ask: Ask | None = None
    ) -> Finish:
        # Where the forge was not asked it may well have a record, and a job.
        has_record = record is not None or not is_known
        return Finish(
            machine.id,
            ending,
            reason,
            machine,
            surely,
            has_record=has_record,
            if_idle=if_idle,
            had_none=_had_none(record, job),
            ask=ask,
        )

    if metadata.held_at:
        return _judge_held(machine, metadata, pool, view)
    if machine.trouble:
        at_work = metadata.running_at or job or (record and record.busy)
        return _unasked(finish(Ending.DIED if at_work else Ending.EARLY, machine.trouble))
    if machine.is_paused:
        return _unasked(finish(Ending.ABANDONED, "the manager ended while it bound it"))
    if pool and pool.drain.ends_jobs:
        return _unasked(finish(Ending.STOPPED, pool.drain.ends_jobs))
    # A job and a boot go on while nobody looks.
    worked = view.since(metadata, metadata.running_at, unseen=True)
    if metadata.running_at and pool and worked > pool.job_timeout:
        said = f"its job did not end within {pool.job_timeout:.0f} s"
        goes = _unasked(finish(Ending.JOB_TIMEOUT, said))
        wished = replace(metadata, stays=True, held_for=metadata.held_for or pool.hold_failed)
        return _hold(machine, wished, goes, said, view, is_failed=True) if wished.held_for else goes
    if not is_known:
        return None
    said_exit = machine.event(EventKind.EXIT) is not None
    if metadata.stays and said_exit:
        return _judge_stayed(machine, metadata, pool, view)
    if not metadata.stays and not said_exit and (_wish(machine, pool) or metadata.held_for):
        return Stay(machine, replace(metadata, stays=True))
    if job and not metadata.running_at and not said_exit and not (record and record.busy):
        # Its own would have told of it by then; and anybody's may tell that it has this job.
        is_told = metadata.silent_at and view.since(metadata, metadata.silent_at) > _FIRST_WORDS
        if is_told and view.is_elsewhere(metadata.runner_id, job):
            goes = finish(Ending.UNNEEDED, _ELSEWHERE, if_idle=True, ask=Ask.about(metadata))
            return replace(goes, job=None, had_none=True, elsewhere=True)
        if view.binds_jobs:
            return _judge_claimed(machine, metadata, finish, view)
    if (job or (record and record.busy and not _may_be_over(metadata, view))) and not said_exit:
        is_news = job is not None and not metadata.seen_key
        if not metadata.running_at or metadata.over_at or is_news:
            return Note(machine, _running(metadata, job, view), job if is_news else None)
        return _judge_silence(machine, metadata, record, finish, view)
    if _still_runs(metadata, record, view) and not said_exit:
        back = replace(metadata, over_at=0.0)
        found = _judge_silence(machine, back, record, finish, view)
        return found or (Note(machine, back) if metadata.over_at else None)
    # On Forgejo the list of jobs is newer than the record, so a bound job that is not in it is
    # over, or was cancelled. A runner that had its job and is listed without it: likewise, or the
    # list left it out.
    gone = view.binds_jobs and metadata.job_key and metadata.job_key not in view.jobs
    if record is None or gone or said_exit or metadata.running_at:
        return _judge_over(machine, metadata, pool, finish, view)
    if metadata.over_at:  # its record was not listed for a moment
        return Note(machine, replace(metadata, over_at=0.0))
    if pool is None or pool.drain is not Drain.NO:
        return finish(
            Ending.UNNEEDED,
            "its pool was drained" if pool else "its pool is not in the configuration any more",
            if_idle=True,
            ask=Ask.about(metadata),
        )
    return _judge_idle(machine, metadata, pool, record, view)


def _wish(machine: Machine, pool: Desired | None) -> float:
    """For how many seconds it may be kept by what its pool says: for its failed job, or since its
    job asks for it.
    """
    asked = min(machine.asked_hold, pool.job_may_hold) if pool else 0.0
    return max(asked, pool.hold_failed if pool else 0.0)


def _judge_stayed(
    machine: Machine, metadata: Metadata, pool: Desired | None, view: View
) -> Action | None:
    """Its runner has ended, and its guest waits to be ended: it is as good as powered off. Or it is
    kept, where somebody asked for that, or its job failed.
    """
    goes = _finish_dead(machine, view)
    ended = view.verdicts.get(metadata.runner_id)
    is_over = ended is not None and ended.state is JobState.DONE
    if is_over and goes.ending is Ending.EARLY:  # its record is there for a moment more
        goes = replace(goes, ending=Ending.DONE, reason="", had_none=False)
    if goes.ending not in {Ending.DONE, Ending.DIED}:
        return goes  # no job ran on it
    if metadata.held_for:
        return _hold(machine, metadata, goes, _ASKED, view)
    asked = min(machine.asked_hold, pool.job_may_hold) if pool else 0.0
    if asked:
        wished = replace(metadata, held_for=asked)
        return _hold(machine, wished, goes, "its job asked for it", view)
    if pool is None or not pool.hold_failed:
        return goes
    wished = replace(metadata, held_for=pool.hold_failed)
    if goes.ending is Ending.DIED:
        return _hold(machine, wished, goes, goes.reason, view, is_failed=True)
    if ended is not None and is_over:
        if ended.conclusion != "failure":
            return goes
        why = f"its job {presentable(ended.title, _LONGEST_TITLE)} failed"
        return _hold(machine, wished, goes, why, view, is_failed=True)
    # The forge tells a moment later, or never.
    if not metadata.over_at:
        return Note(machine, replace(metadata, over_at=view.by(metadata)))
    return goes if view.since(metadata, metadata.over_at) > pool.teardown_timeout else None


def _hold(
    machine: Machine,
    metadata: Metadata,
    goes: Finish,
    why: str,
    view: View,
    *,
    is_failed: bool = False,
) -> Hold:
    """In place of this end."""
    held = replace(metadata, held_at=view.by(metadata), held_why=why, network="")
    return Hold(machine, held, goes, is_failed)


def _judge_held(
    machine: Machine, metadata: Metadata, pool: Desired | None, view: View
) -> Action | None:
    """Nothing runs on it any more; it is there for a person, until its time is over."""
    if machine.trouble:
        return let_go(machine, machine.trouble)
    if pool and pool.drain.ends_jobs:
        return let_go(machine, pool.drain.ends_jobs)
    if view.awake(metadata, metadata.held_at) > metadata.held_for:
        return let_go(machine, f"it was held for {metadata.held_for:.0f} s")
    binding = view.bindings.get(machine.id)
    if binding and view.answers(binding.scope):  # the manager ended in the middle of it
        return Hold(machine, metadata, _finish_dead(machine, view))
    return None


def _judge_claimed(
    machine: Machine, metadata: Metadata, finish: _Finisher, view: View
) -> Action | None:
    """The job that it was made for runs, and its runner has said nothing of it yet: Forgejo does
    not tell who has it.
    """
    if not metadata.silent_at or metadata.over_at:
        since = metadata.silent_at or view.by(metadata)
        return Note(machine, replace(metadata, silent_at=since, over_at=0.0))
    if view.since(metadata, metadata.silent_at) > NO_LIFE:
        said = f"its job began, and its runner told the forge nothing of it for {NO_LIFE:.0f} s"
        return finish(Ending.DIED, said, ask=Ask.about(metadata))
    return None


def _running(metadata: Metadata, job: Job | None, view: View) -> Metadata:
    """A job was seen on it; this one, if the forge tells which."""
    return replace(
        metadata,
        running_at=metadata.running_at or view.by(metadata),
        over_at=0.0,
        silent_at=metadata.silent_at if metadata.running_at else 0.0,
        seen_key=job.key if job else metadata.seen_key,
        repository=(job.repository if job else "") or metadata.repository,
    )


def _still_runs(metadata: Metadata, record: RunnerRecord | None, view: View) -> bool:
    """Whether a job goes on that no list shows, by what the forge said when it was asked: the
    record of an ephemeral runner that has its job goes with that job.

    On Forgejo the runner that took the job may be another one; there the record tells of it.
    """
    told = view.asked.get(Ask.about(metadata))
    return bool(
        told
        and record
        and not view.binds_jobs
        and metadata.running_at
        and not _is_over(told, metadata.runner_id)
    )


def _is_over(told: Told | None, runner_id: int) -> bool:
    """Whether the forge said that this runner's job is over. One that it was made for, and that
    another runner had, or none, says nothing of its own.
    """
    job = told.job if told else None
    return bool(job and job.state is JobState.DONE and job.runner_id == runner_id)


def _may_be_over(metadata: Metadata, view: View) -> bool:
    """Whether its runner may work on in vain: the list does not have its job, which was seen. Gitea
    28 marks a job over at once and drops what the runner still reports.
    """
    return bool(not view.binds_jobs and metadata.running_at and metadata.seen_key)


def _judge_silence(
    machine: Machine,
    metadata: Metadata,
    record: RunnerRecord | None,
    finish: _Finisher,
    view: View,
) -> Action | None:
    """A job runs on it, says the forge.

    Its runner may know nothing of that: the forge's answer did not reach it.
    """
    is_silent = (
        record is not None
        and record.is_silent
        and view.since(metadata, metadata.running_at) > _FIRST_WORDS
    )
    if not is_silent:
        return Note(machine, replace(metadata, silent_at=0.0)) if metadata.silent_at else None
    if not metadata.silent_at:
        return Note(machine, replace(metadata, silent_at=view.by(metadata)))
    if view.since(metadata, metadata.silent_at) > NO_LIFE:
        return finish(
            Ending.DIED, f"its runner told the forge nothing of its job for {NO_LIFE:.0f} s"
        )
    return None


def _judge_over(
    machine: Machine,
    metadata: Metadata,
    pool: Desired | None,
    finish: _Finisher,
    view: View,
) -> Action | None:
    """Nothing more can come to it: its job is done or cancelled, or its runner gave up.

    It should power off by itself.
    """
    last = machine.event(EventKind.EXIT)
    if not metadata.over_at:
        if last is None and machine.event(EventKind.RUNNER) is None:
            # Its runner does not run yet, so there is nothing to wait for.
            return finish(
                Ending.CANCELLED,
                "its job was cancelled before its runner ran",
                ask=Ask.about(metadata),
            )
        # One that had no job yet counts as gone then, and another one is made.
        ask = None if last or metadata.running_at else Ask.about(metadata)
        return Note(machine, replace(metadata, over_at=view.by(metadata)), ask=ask)
    waited = view.since(metadata, metadata.over_at)
    limit = pool.teardown_timeout if pool else CANCEL_GRACE
    if last is None and waited > CANCEL_GRACE:
        goes = finish(
            Ending.CANCELLED,
            f"the forge ended its job, and its runner worked on for {CANCEL_GRACE:.0f} s",
            ask=Ask.about(metadata),
        )
        return _hold(machine, metadata, goes, _ASKED, view) if metadata.held_for else goes
    if waited > limit:
        return finish(
            Ending.TEARDOWN_TIMEOUT,
            f"it did not power off within {limit:.0f} s after its runner had ended",
            ask=None if last else Ask.about(metadata),
        )
    return None


def _judge_idle(
    machine: Machine,
    metadata: Metadata,
    pool: Desired,
    record: RunnerRecord,
    view: View,
) -> Action | None:
    """Its runner has no job yet."""

    def finish(ending: Ending, reason: str) -> Finish:
        return Finish(
            machine.id,
            ending,
            reason,
            machine,
            has_record=True,
            if_idle=True,
            ask=Ask.about(metadata),
        )

    job = view.jobs.get(metadata.job_key)
    has_begun = record.online or machine.event(EventKind.RUNNER) is not None
    if view.binds_jobs and job and not has_begun and view.rivals.comes_before(job):
        return replace(
            finish(Ending.UNNEEDED, "another host makes a machine for its job"), elsewhere=True
        )
    if record.disabled:  # by us, in a pass that ended there, or by an admin
        return finish(Ending.UNNEEDED, "its runner was disabled at the forge")
    if not machine.is_up:
        late = view.since(metadata, metadata.bound_at, unseen=True) > pool.boot_timeout
        return (
            finish(
                Ending.BOOT_TIMEOUT, f"its guest did not come up within {pool.boot_timeout:.0f} s"
            )
            if late
            else None
        )
    was_warm = bool(metadata.snapshot) or machine.event(EventKind.READY) is not None
    limit = pool.pickup_timeout + (0.0 if was_warm else pool.boot_timeout)
    is_early = view.since(metadata, metadata.bound_at) <= limit
    if not metadata.job_key:
        silent_at = 0.0 if record.online else metadata.silent_at or view.by(metadata)
        if silent_at != metadata.silent_at:
            return Note(machine, replace(metadata, silent_at=silent_at))
        # A forge shows it as offline that has not called for a minute. Right after an outage that
        # is each of them, however long it has been there.
        is_early |= bool(silent_at) and view.since(metadata, silent_at) <= pool.pickup_timeout
    if is_early:
        return None
    was_silent = view.was_silent(Scope.parse(metadata.scope), metadata.bound_at - metadata.offset)
    if not record.online:
        return finish(
            Ending.FORGE_AWAY if was_silent else Ending.PICKUP_TIMEOUT,
            f"its runner did not connect to the forge within {pool.pickup_timeout:.0f} s"
            + (_WAS_SILENT if was_silent else ""),
        )
    if not metadata.job_key:  # registered and idle, as it is meant to be
        # Not before another one can take its place.
        outdated = pool.outdates(metadata) if pool.starts(view.moment.now) else ""
        return finish(Ending.UNNEEDED, outdated) if outdated else None
    if view.binds_jobs:
        return finish(
            Ending.HELD_BACK,
            "its runner was connected, but the forge did not hand out the job: a concurrency "
            "group?",
        )
    told = view.asked.get(Ask.about(metadata))
    made_for = told.job if told and told.job else None
    if made_for is None and metadata.job_key not in view.old:
        made_for = view.jobs.get(metadata.job_key)
    if made_for and made_for.state is JobState.WAITING:
        may_be_passed_over = view.may_throttle or made_for.is_caller or not made_for.labels
        if may_be_passed_over and not was_silent:
            return finish(
                Ending.HELD_BACK,
                "its runner was connected, but the forge did not hand out the job: it is busy, or "
                "the job only calls a workflow",
            )
        return finish(
            Ending.FORGE_AWAY if was_silent else Ending.PICKUP_TIMEOUT,
            f"its runner got no job within {pool.pickup_timeout:.0f} s, although one waited"
            + (_WAS_SILENT if was_silent else ""),
        )
    return finish(Ending.UNNEEDED, "another runner took its job")
