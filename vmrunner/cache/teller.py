"""Tells the cache's process which jobs run on which machines, and where they come from: in `serve`,
beside its passes, which wait for nothing of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmrunner.cache import who
from vmrunner.errors import ForgeError
from vmrunner.forge.seam import Forge
from vmrunner.log import Log
from vmrunner.manager.actions import Finish, Hold, Note
from vmrunner.manager.manager import Survey
from vmrunner.model.job import JobFacts, Scope
from vmrunner.model.machine import EventKind
from vmrunner.waiting import retry_at

_FIRST_REST, _LONGEST_REST = 0.5, 60.0  # seconds until the forge is asked again for one job
_IDLE = 3600.0  # seconds; a pass comes long before


@dataclass(frozen=True)
class Running:
    """A job that was seen on a machine."""

    machine: str
    scope: Scope
    repository: str
    key: str
    runner_id: int


def running(survey: Survey) -> Iterator[Running]:
    """What runs after this pass: not on a machine that is held, or goes."""
    over = {
        action.machine if isinstance(action, Finish) else action.machine.id
        for action in survey.plan.actions
        if isinstance(action, Finish | Hold)
    }
    news = {
        action.machine.id: action.metadata
        for action in survey.plan.actions
        if isinstance(action, Note)
    }
    for machine in survey.observed.machines:
        metadata = news.get(machine.id, machine.metadata)
        if metadata is None or not metadata.seen_key or not machine.alive or machine.id in over:
            continue
        if not (metadata.held_at or metadata.over_at or machine.event(EventKind.EXIT)):
            yield Running(
                str(machine.id),
                Scope.parse(metadata.scope),
                metadata.repository,
                metadata.seen_key,
                metadata.runner_id,
            )


class Teller:
    """While it is entered, what passes see is told. A machine has one job in its life: the forge is
    asked once for each.
    """

    def __init__(self, path: Path, log: Log, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._log, self._clock = path, log, clock
        # What was told before `serve` was started anew holds for the machines that are still there.
        self._known = {machine: facts for machine, facts in who.reader(path).now().items() if facts}
        self._failed: dict[str, tuple[int, float]] = {}  # how often, and when it is asked again
        self._unknown: dict[str, None] = {}  # which the forge did not tell
        self._written: who.Told | None = None
        self._seen: tuple[Forge, Sequence[Running]] | None = None
        self._said = ""
        self._wake = threading.Event()
        self._over = False

    def __enter__(self) -> Teller:
        # A forge that does not answer must not keep the process from its end.
        threading.Thread(target=self._run, name="teller", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._wake.set()

    def saw(self, forge: Forge, jobs: Sequence[Running]) -> None:
        """These run now. Takes no time."""
        self._seen = forge, jobs
        self._wake.set()

    def _run(self) -> None:
        rest = _IDLE
        while not self._over:
            self._wake.wait(rest)
            self._wake.clear()
            rest = self.tell()

    def tell(self) -> float:
        """Write down what is known, and ask for the rest; the seconds until there is more to do."""
        if self._seen is None:
            return _IDLE
        seen = forge, jobs = self._seen
        there = {job.machine for job in jobs}
        self._known = {each: facts for each, facts in self._known.items() if each in there}
        self._failed = {each: when for each, when in self._failed.items() if each in there}
        self._unknown = {each: None for each in self._unknown if each in there}
        self._write()
        for job in jobs:
            count, again = self._failed.get(job.machine, (0, 0.0))
            if job.machine in self._known or self._clock() < again:
                continue
            if facts := self._ask(forge, job):
                self._known[job.machine] = facts
                self._failed.pop(job.machine, None)
                self._unknown.pop(job.machine, None)
            else:
                now = self._clock()
                later = retry_at(now, count + 1, _FIRST_REST, _LONGEST_REST, now)
                self._failed[job.machine] = count + 1, later
            self._write()
            if self._seen is not seen:
                # A forge may take long: what a later pass has ended or held meanwhile goes first.
                return 0.0
        waits = [again - self._clock() for _, again in self._failed.values()]
        return max(0.0, min([*waits, _IDLE]))

    def _ask(self, forge: Forge, job: Running) -> JobFacts | None:
        try:
            return forge.facts(job.scope, job.repository, job.key, job.runner_id)
        except ForgeError as error:
            self._unknown[job.machine] = None  # it is refused at once, and need not wait
            if error.sentence != self._said:
                self._said = error.sentence
                self._log.warning(
                    "a job goes on without the cache",
                    machine=job.machine,
                    reason=error.sentence,
                    hint=error.hint,
                )
            return None

    def _write(self) -> None:
        told: who.Told = {**self._unknown, **self._known}
        if told == self._written:
            return
        try:
            who.write(self._path, told)
        except OSError as error:
            if self._said != str(error.strerror):
                self._said = str(error.strerror)
                self._log.warning("jobs go on without the cache", reason=error.strerror)
        else:
            self._written = told
