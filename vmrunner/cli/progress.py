"""How far long work is: its steps, and how long it will take as it took the last time.

On a terminal the step that runs is a line that moves; in a pipe or a journal each step is a line.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.text import Text

from vmrunner import files
from vmrunner.cli.app import err, say
from vmrunner.log import Say

_MEMORY = "durations.json"  # in the state folder: task -> seconds, of the last time that it worked
_EVERY = 4  # times a second


@contextmanager
def steps(task: str, state: Path) -> Iterator[Say]:
    """What is given is told each step as it begins. `task` is what the time is remembered for."""
    began, expected = time.monotonic(), _remembered(state).get(task, 0.0)
    if err.is_terminal:
        with live(err, expected) as told:
            yield told
    else:
        yield say
    _remember(state, task, time.monotonic() - began)


@contextmanager
def live(
    console: Console, expected: float, clock: Callable[[], float] = time.monotonic
) -> Iterator[Say]:
    """A line at the bottom of the terminal; steps that are over stay above it with their time."""
    from rich.live import Live

    moving = _Moving(console, expected, clock)
    with Live(
        console=console, get_renderable=moving.line, refresh_per_second=_EVERY, transient=True
    ) as shown:
        moving.refresh = shown.refresh
        try:
            yield moving
        finally:
            moving.finish()


class _Moving:
    """The line, and what it is told."""

    def __init__(self, console: Console, expected: float, clock: Callable[[], float]) -> None:
        self._console, self._expected, self._clock = console, expected, clock
        self._began = self._since = clock()
        self._step = self._part = ""
        self.refresh: Callable[[], object] = lambda: None

    def __call__(self, text: str) -> None:
        self.finish()
        self._step, self._since = text, self._clock()
        self.refresh()

    def part(self, done: int, of: int) -> None:
        """Of the step that runs, in bytes."""
        self._part = f" ({done >> 20} of {of >> 20} MiB)" if of >> 20 else ""

    def line(self) -> Text:
        """As it is now."""
        now = self._clock()
        more = left(now - self._began, self._expected)
        return Text(f"{self._step}{self._part}  {now - self._since:.0f} s{more}")

    def finish(self) -> None:
        """The step is over: it stays above."""
        if self._step:
            self._console.print(f"{self._step}  {self._clock() - self._since:.0f} s")
        self._step = self._part = ""


def left(elapsed: float, expected: float) -> str:
    """` (2m05s left)`; nothing where nobody knows, or where it takes longer than the last time."""
    seconds = expected - elapsed
    if seconds < 1:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f" (about {minutes}m{rest:02}s left)" if minutes else f" (about {rest}s left)"


def _remembered(state: Path) -> dict[str, float]:
    try:
        found = json.loads((state / _MEMORY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {str(task): took for task, took in found.items() if isinstance(took, int | float)}


def _remember(state: Path, task: str, took: float) -> None:
    """What can't be remembered is not worth an error."""
    try:
        kept = _remembered(state) | {task: round(took, 1)}
        files.write_whole(state / _MEMORY, json.dumps(kept, indent=1) + "\n")
    except OSError:
        pass
