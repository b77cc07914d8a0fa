"""How `top` looks, in a thread of its own, and what it does for a person, in another: neither a
forge that is slow nor a machine that will not go keeps its keys waiting.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from vmrunner.cli import hold_cmd, logs_cmd
from vmrunner.cli.status_cmd import View
from vmrunner.cli.top_state import Log, Seen, Today, Wish
from vmrunner.errors import ConfigError, HypervisorError, VmrunnerError
from vmrunner.log import words
from vmrunner.model.by import By
from vmrunner.model.entry import Entry
from vmrunner.model.pace import Gauge

if TYPE_CHECKING:
    from vmrunner.config import Config
    from vmrunner.manager.history import History
    from vmrunner.manager.manager import Manager, Outcome
    from vmrunner.model.used import Used

_TICK = 0.5  # seconds between two looks at what `serve` has measured, which it does each 2 s
_TODAY = 15.0  # seconds between two sums of the day
_LINES = 200  # of a log, which are more than a screen has
_HOLD = "1h"


@dataclass
class Quiet:
    """A log that keeps the last thing that is wrong, in place of writing over the screen."""

    last: str = ""

    def debug(self, event: str, **fields: object) -> None:
        """Nothing."""

    info = debug

    def warning(self, event: str, **fields: object) -> None:
        """Keep it."""
        self.last = words(event, fields)

    error = warning

    def warn(self, sentence: str) -> None:
        """Keep it."""
        self.last = sentence


@dataclass
class Looks:
    """What there is, again and again: `seen` is the last of it."""

    settings: Config
    clock: Callable[[], float] = time.monotonic
    seen: Seen | None = None
    log_of: str = ""  # a machine whose log is wanted
    log: Log = field(default_factory=Log)
    fault: BaseException | None = None  # of ours: it ended the thread

    _quiet: Quiet = field(default_factory=Quiet)
    _gauge: Gauge = field(default_factory=lambda: Gauge(fresh=True))
    _today: tuple[float, Today | None] = (0.0, None)

    def __post_init__(self) -> None:
        self._view = View(self.settings, self._quiet, self._quiet.warn, whole=False)

    def run(self, every: float, over: threading.Event) -> None:
        """Until it is over."""
        try:
            while not over.is_set():
                self._rest(self.clock() + every, over)
                self.again()
        except BaseException as error:
            self.fault = error

    def _rest(self, until: float, over: threading.Event) -> None:
        """Meanwhile look at the figures of `serve` more often, and at a log that is wanted."""
        while self.clock() < until and not over.wait(min(_TICK, until - self.clock())):
            if self.log_of != self.log.machine:
                self.read_log()
            if not self._gauge.fresh:
                self._measure()

    def again(self) -> None:
        """Look once more; of a look that fails the one before stays, with the reason."""
        try:
            self.look()
        except VmrunnerError as error:
            self._view.close()
            if self.seen:
                self.seen = replace(self.seen, problem=error.sentence)

    def look(self) -> Seen:
        """Raises VmrunnerError."""
        status = self._view.now()
        used = self._measure()
        paces = self._gauge.paces(self.clock())
        self.seen = seen = Seen(status, used, paces, self._of_today(), time.time())
        self.read_log()
        return seen

    def read_log(self) -> None:
        """The last lines of the machine whose log is wanted."""
        machine, quiet, lines = self.log_of, Quiet(), list[Entry]()
        if not machine:
            self.log = Log()
            return
        try:
            lines = logs_cmd.records(self.settings, machine, quiet.warn)[-_LINES:]
        except VmrunnerError as error:
            quiet.warn(error.sentence)
        except PermissionError as error:
            quiet.warn(f"This user may not open {error.filename}. Run it with sudo.")
        self.log = Log(machine, tuple(lines), quiet.last)

    def _measure(self) -> Mapping[str, Used]:
        """What machines have taken: where `serve` runs, as it has measured it."""
        host = self._view.host
        if self._gauge.fresh != (host is not None):
            self._gauge = Gauge(fresh=host is not None)
        try:
            if host is None:
                with closing(self._history()) as history:
                    living = history.living()
                figures = {each.machine: each.used for each in living if each.memory_peak_mib}
            else:
                figures = {str(name): used for name, used in host.machines.used().items()}
        except (ConfigError, HypervisorError):
            return {}  # the rest is shown all the same
        self._gauge.saw(figures, self.clock())
        return figures

    def _of_today(self) -> Today | None:
        until, today = self._today
        if self.clock() >= until:
            midnight = datetime.now().replace(hour=0, minute=0, second=0, microsecond=0)
            try:
                with closing(self._history()) as history:
                    today = of_day(history, midnight.timestamp())
            except ConfigError:
                today = None
            self._today = (self.clock() + _TODAY, today)
        return today

    def _history(self) -> History:
        """Each time anew: while nobody has it open, a history that is read stays as it was."""
        from vmrunner.manager.history import History

        path = self.settings.history_file
        return History(path, self._quiet.warn, read_only=True)


def of_day(history: History, since: float) -> Today:
    """Sums of what is over since then. Raises ConfigError."""
    from vmrunner.manager.usage import usage

    pools = usage(history.ended_since(since), By.POOL)
    return Today(
        sum(pool.jobs for pool in pools),
        sum(pool.failed for pool in pools),
        sum(pool.waiting_seconds for pool in pools),
        max((pool.longest_wait_seconds for pool in pools), default=0.0),
    )


class Deed:
    """One wish that is carried out, as by the command of that name."""

    def __init__(self, settings: Config, wish: Wish, machine: str) -> None:
        self._settings, self._wish, self._machine = settings, wish, machine
        self.said = ""  # what came of it, once it is done
        self.fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="deed", daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Whether it is done, or has failed."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Until it is over."""
        self._thread.join()

    def _run(self) -> None:
        from vmrunner.manager.manager import open_manager

        quiet = Quiet()
        try:
            with closing(open_manager(self._settings, quiet, quiet.warn)) as manager:
                self.said = done(manager, self._wish, self._machine)
        except VmrunnerError as error:
            self.said = f"{error.sentence} {error.hint}".strip()
        except PermissionError as error:
            self.said = f"This user may not open {error.filename}. Run top with sudo."
        except BaseException as error:
            self.fault = error


def done(manager: Manager, wish: Wish, machine: str) -> str:
    """Carry it out; what came of it. Raises VmrunnerError."""
    from vmrunner import config
    from vmrunner.manager import keep

    match wish:
        case Wish.HOLD:
            span: timedelta = config.parse_hold_time(_HOLD)
            return hold_cmd.held(keep.hold(manager, machine, span), _HOLD)
        case Wish.RELEASE:
            outcome = keep.release(manager, machine)
            return _outcome(outcome, machine) if outcome else f"{machine} goes with its job"
        case _:
            return _outcome(keep.destroy(manager, machine), machine)


def _outcome(outcome: Outcome, machine: str) -> str:
    failures = dict.fromkeys(failure.sentence for failure in outcome.failures)
    return " ".join(failures) or f"{machine} is destroyed"
