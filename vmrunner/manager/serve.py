"""`vmrunner serve`: the same pass as `up`, again and again, woken by the hypervisor's events,
guests' reports, new jobs and the webhook.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import sdnotify

from vmrunner.errors import ForgeError, HypervisorError, MachineError, VmrunnerError
from vmrunner.hypervisor.seam import File
from vmrunner.log import Log
from vmrunner.manager.actions import Bind, Finish, Start
from vmrunner.manager.manager import Manager, Survey
from vmrunner.manager.metrics import Figures
from vmrunner.manager.observed import Drain, Queue
from vmrunner.model.job import JobState, Listing
from vmrunner.model.machine import EventKind, Machine, MachineId
from vmrunner.waiting import Deadline

_TICK = 0.2  # seconds between two looks at the guests that are expected to report something
_SHORTEST = 0.01  # seconds that it waits, at least
_LONGEST = 5.0  # seconds between two passes, whatever happens: deadlines are kept to this
_MAKER_REST = 60.0  # seconds between the beginnings of two processes that make snapshots
_SHORTEST_COUNT = 0.1  # seconds between two counts of the jobs
_SLOWEST_POLL = 60.0  # seconds between two polls of a forge that does not answer


@dataclass(frozen=True)
class Seen:
    """What a pass saw, by whom and when (unix seconds)."""

    manager: Manager
    survey: Survey
    at: float


class Background(Protocol):
    """A process."""

    def poll(self) -> int | None:
        """Its exit code once it has ended."""


class Poll:
    """Asks the forge for its jobs, at most every `every` seconds, and less often while it is slow
    or down.

    Where the forge tells their mere number for less, it is asked for that in between: a job that
    comes changes it.
    """

    def __init__(self, manager: Manager, log: Log, clock: Callable[[], float]) -> None:
        self._manager, self._log, self._clock = manager, log, clock
        self._every = manager.settings.serve.poll.total_seconds()
        self._wait = self._every
        self._next = 0.0
        self._next_count = 0.0
        self._took = 0.0  # the last poll that was answered, in seconds
        self._known: frozenset[tuple[str, str, str]] | None = None
        self._listed = self._counted = 0  # jobs that wait, by the last list and by the last count
        self._down = False
        self._scopes = list(
            dict.fromkeys(
                scope for section in manager.settings.pools.values() for scope in section.scope
            )
        )

    def saw(self, survey: Survey) -> None:
        """A pass has just asked: the next poll is compared with what it saw."""
        queues = survey.observed.queues.values()
        self._known = self._learn(queues)
        self._answered(all(not queue.problem for queue in queues))

    def changed(self) -> bool:
        """Whether it is time to ask and something is new.

        A forge that does not answer is nothing new.
        """
        began = self._clock()
        if began < self._next:
            return began >= self._next_count and self._has_more()
        try:
            jobs = self._learn(self._manager.forge.look(scope, ()) for scope in self._scopes)
        except ForgeError as error:
            if not self._down:
                self._log.warning("forge does not answer", reason=error.sentence)
            self._answered(False)
            return False
        was_down, self._took = self._down, self._clock() - began
        self._answered(True)
        return was_down or jobs != self._known

    def _learn(self, listings: Iterable[Listing | Queue]) -> frozenset[tuple[str, str, str]]:
        """What of their jobs would be news if it were different: of a queue that is not read to its
        end which ones run, and how many wait.
        """
        known: list[tuple[str, str, str]] = []
        self._listed = 0
        for each in listings:
            waiting = [job for job in each.jobs if job.state is JobState.WAITING]
            self._listed += len(waiting) + each.unread
            known += [
                (job.key, job.state.value, job.runner_name)
                for job in each.jobs
                if job.state is not JobState.WAITING or not each.unread
            ]
            if each.unread:
                known.append(("", "waiting", str(len(waiting) + each.unread)))
        return frozenset(known)

    def _has_more(self) -> bool:
        """Whether more jobs wait than were listed.

        Only the list is believed: a number that never agrees with it is news once.
        """
        began, before = self._clock(), self._counted
        self._next_count = self._next
        try:
            counts = [self._manager.forge.waiting(scope) for scope in self._scopes]
        except ForgeError:
            return False  # the next list says why
        known = [count for count in counts if count is not None]
        if len(known) == len(counts):
            now = self._clock()
            self._counted, self._next_count = sum(known), now + self._rest(now - began)
        return self._counted > self._listed and self._counted != before

    def _rest(self, took: float) -> float:
        """Between a count and the next one, or a list."""
        return max(_SHORTEST_COUNT, self._every / 4, took * 10)

    def _answered(self, fine: bool) -> None:
        if fine and self._down:
            self._log.info("forge answers again")
        self._down = not fine
        # A forge that takes long to answer is not asked all the time: ten times as long, at most.
        self._wait = (
            max(self._every, min(self._took * 10, _SLOWEST_POLL))
            if fine
            else min(max(self._wait, 0.5) * 2, _SLOWEST_POLL)
        )
        self._next = self._clock() + self._wait
        self._next_count = self._clock() + self._rest(0.0) if fine else self._next

    def again_at(self) -> float:
        """When the forge is asked next, by the given clock."""
        return min(self._next, self._next_count)


class Server:
    """The loop. `open_manager` reads the configuration anew; it raises a VmrunnerError where that
    is wrong.

    `make_snapshot` begins to make that of a pool; `saw` is told what each pass saw. `wait` waits
    for an event for some seconds, by the same `clock`; `notify` speaks to systemd.
    """

    def __init__(
        self,
        open_manager: Callable[[], Manager],
        log: Log,
        *,
        make_snapshot: Callable[[str], Background],
        saw: Callable[[Seen], object] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
        notify: Callable[[str], object] | None = None,
    ) -> None:
        self._open, self._log, self._clock, self._wait = open_manager, log, clock, wait
        self._manager = open_manager()
        self._figures = Figures(self._manager.history)
        self._wake = threading.Event()
        self._stop = self._reload = False
        self._make_snapshot, self._saw = make_snapshot, saw
        self._maker: Background | None = None
        self._next_maker = 0.0
        self._notify = notify or sdnotify.SystemdNotifier().notify
        self._reports: dict[MachineId, bytes] = {}
        self._said: dict[str, float] = {}  # failures that were logged a moment ago
        self.seen: Seen | None = None  # by the last pass; for other threads, too
        self._in_use = threading.Lock()  # of the manager, by other threads

    @property
    def figures(self) -> Figures:
        """For Prometheus."""
        return self._figures

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; SIGHUP reads the configuration again."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop())
        signal.signal(signal.SIGHUP, lambda *_: self.reload())
        self.serve()

    def serve(self) -> None:
        """Serve until `stop` is called."""
        self._begin()
        self._notify("READY=1")
        self._log.info("serving", pools=",".join(self._manager.settings.pools), pid=os.getpid())
        while not self._stop:
            survey = self._pass({})
            self._make_snapshots(survey)
            self._sleep(survey)
            if self._reload:
                self._again()
        self._notify("STOPPING=1")
        if self._manager.settings.serve.on_stop == "drain":
            self._drain()
        self._log.info(
            "stopped; machines that run are left alone"
            if self._manager.settings.serve.on_stop == "leave"
            else "stopped"
        )

    def _begin(self) -> None:
        self._manager.hypervisor.watch(self._wake.set, lambda: self._notify("WATCHDOG=1"))
        self._poll = Poll(self._manager, self._log, self._clock)

    def stop(self) -> None:
        """End the loop, or the draining that follows it. Called by a signal's handler, so it does
        not touch the event: the main thread may be inside that event's lock just now, and would
        wait for itself. The next tick sees the flag.
        """
        self._stop = True

    def reload(self) -> None:
        """Read the configuration again; see `stop`."""
        self._reload = True

    def chores(self) -> None:
        """See Manager. For another thread."""
        with self._in_use:
            self._manager.chores()

    def wake(self) -> None:
        """Have a pass now, or as soon as this one is over. For other threads."""
        self._wake.set()

    def _again(self) -> None:
        """Read the configuration again; a wrong one changes nothing."""
        self._reload = False
        try:
            fresh = self._open()
        except VmrunnerError as error:
            self._log.error(
                "configuration not reloaded; the old one stays",
                reason=error.sentence,
                hint=error.hint,
            )
            return
        old, self._manager = self._manager, fresh
        # Before the old one is closed: a scrape reads it in another thread.
        self._figures.follow(fresh.history)
        is_free = self._in_use.acquire(timeout=_LONGEST)  # a QEMU may not answer at all
        old.close()
        if is_free:
            self._in_use.release()
        self._begin()
        self._log.info("configuration reloaded", pools=",".join(fresh.settings.pools))

    def _pass(self, drain: dict[str, Drain]) -> Survey | None:
        """One pass; what goes wrong is logged, and the next one tries again."""
        self._notify("WATCHDOG=1")
        self._wake.clear()
        try:
            self._manager.hypervisor.reopen()
            with self._manager.lock():
                outcome, survey = self._manager.reconcile(drain, whole=False)
        except VmrunnerError as error:
            self._complain(error)
            with suppress(HypervisorError):
                self._manager.hypervisor.reopen()
            return None
        for failure in outcome.failures:
            if not isinstance(failure, MachineError):
                self._complain(failure)
            elif failure.console:  # the rest is logged already
                self._log.warning(failure.sentence, console=failure.last_lines)
        self.seen = Seen(self._manager, survey, time.time())
        self._figures.saw(survey, self.seen.at)
        self._poll.saw(survey)
        self._saw(self.seen)
        return survey

    def _make_snapshots(self, survey: Survey | None) -> None:
        """Make what is missing, in the background and one after the other; machines are booted
        meanwhile.
        """
        if self._maker is not None:
            if (code := self._maker.poll()) is None:
                return
            tell = self._log.error if code else self._log.info
            tell("snapshot not made" if code else "snapshot made", exit_code=code)
            self._maker = None
        if survey and (missing := survey.missing_snapshots()) and self._clock() >= self._next_maker:
            # Should one end without a word, such as one killed for want of memory, the next one
            # waits.
            self._maker, self._next_maker = (
                self._make_snapshot(missing[0]),
                self._clock() + _MAKER_REST,
            )
            self._log.info("making a snapshot", pool=missing[0])

    def _complain(self, error: VmrunnerError) -> None:
        """The same failure is logged once a minute, however often it comes."""
        now = self._clock()
        self._said = {sentence: at for sentence, at in self._said.items() if now - at < 60}
        if error.sentence not in self._said:
            self._said[error.sentence] = now
            self._log.error(
                error.sentence,
                hint=error.hint.splitlines()[0] if error.hint else "",
                kind=type(error).__name__,
            )

    def _sleep(self, survey: Survey | None) -> None:
        """Until something happens that a pass should see."""
        again = survey.plan.again if survey else 0.0
        until = Deadline(min(again, _LONGEST) if again else _LONGEST, self._clock)
        watched = (
            [machine for machine in survey.observed.machines if _is_awaited(machine)]
            if survey
            else []
        )
        if survey and any(
            isinstance(action, Start | Bind | Finish) for action in survey.plan.actions
        ):
            # So that new machines are among the watched, and a place that became free is used.
            until = Deadline(min(again, 1.0) if again else 1.0, self._clock)
        if survey and any(queue.is_short for queue in survey.observed.queues.values()):
            until = Deadline(_TICK, self._clock)  # the queue is read on
        while not until.is_over and not self._stop and not self._reload:
            # A poll is not late by the rest of a tick. A short rest there is all the same: it may
            # be due by what others spent.
            if self._wait(
                self._wake, min(_TICK, max(_SHORTEST, self._poll.again_at() - self._clock()))
            ):
                return
            self._notify("WATCHDOG=1")
            if self._reported(watched) or self._poll.changed():
                return

    def _reported(self, machines: list[Machine]) -> bool:
        """Whether one of these guests has said something new.

        All are read each time: a pass sees all that they said, so one is enough.
        """
        before = self._reports
        try:
            self._reports = {
                machine.id: self._manager.hypervisor.machines.read(machine.id, File.EVENTS)
                for machine in machines
            }
        except HypervisorError:
            return True
        return any(raw != before.get(machine, b"") for machine, raw in self._reports.items())

    def _drain(self) -> None:
        """Wait for the running jobs; nothing new is started. A second signal ends this, too."""
        self._stop = False
        self._log.info("draining: waiting for running jobs")
        while not self._stop:
            # There is nothing to reload for; left set, it would end every sleep at once.
            self._reload = False
            survey = self._pass(dict.fromkeys(self._manager.settings.pools, Drain.IDLE))
            # Those that are held run no job: the next start adopts them.
            if (
                survey
                and not survey.observed.bindings
                and all(machine.is_held for machine in survey.observed.machines)
            ):
                return
            self._sleep(survey)


def _is_awaited(machine: Machine) -> bool:
    """Whether a report of this guest would change what a pass does."""
    if not machine.alive or machine.is_ready or machine.is_held:
        return machine.rehearses
    return machine.event(EventKind.RUNNER) is None or machine.event(EventKind.EXIT) is not None
