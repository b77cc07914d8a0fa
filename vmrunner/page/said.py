"""The log of one machine for the page, as `vmrunner logs` has it."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from vmrunner.manager.logbook import Logbook, understood
from vmrunner.manager.record import Record
from vmrunner.manager.told import joined
from vmrunner.model.entry import Entry
from vmrunner.page import words
from vmrunner.page.guests import Answer, Guests

SHOWN = 200  # the last lines, on a machine's page
_SOON, _LATER = 0.05, 5.0  # seconds that a page waits for libvirt, and a whole log
_AT_ONCE = 2  # whole logs of machines that live, and of ended ones, at the same time
_WIDEST = 8  # characters of a source


@dataclass(frozen=True)
class Said:
    """The end of a log, or all of it."""

    lines: tuple[Entry, ...]
    lacks: str = ""  # what is not there, and why

    @property
    def text(self) -> str:
        """As `vmrunner logs` prints it."""
        said = "".join(
            f"{words.instant(each.at)}  {each.source:{_WIDEST}} {each.text}\n"
            for each in self.lines
        )
        return f"{said}{self.lacks}\n" if self.lacks else said


class Logs:
    """Of an ended machine a file has it all; of one that lives `guests` ask for what its guest
    says.
    """

    def __init__(self, logbook: Logbook, guests: Guests) -> None:
        self._logbook, self._guests = logbook, guests
        # Apart: libvirt may keep readers of those that live waiting.
        self._of_living = threading.BoundedSemaphore(_AT_ONCE)
        self._of_ended = threading.BoundedSemaphore(_AT_ONCE)

    def last(self, record: Record) -> Said:
        """The last lines; soon."""
        said = self._said(record, SHOWN, _SOON)
        return Said(said.lines[-SHOWN:], said.lacks)

    def whole(self, record: Record) -> str | None:
        """All lines that there are, as text; None while others read theirs: a log takes some time,
        and a thread, which the other views want as well.
        """
        reading = self._of_ended if record.ending else self._of_living
        if not reading.acquire(blocking=False):
            return None
        try:
            return self._said(record, None, _LATER).text
        finally:
            reading.release()

    def _said(self, record: Record, most: int | None, patience: float) -> Said:
        try:
            kept = self._logbook.entries(record.machine, most)
        except PermissionError:
            return Said((), "This user may not read what is kept of it.")
        if record.ending:
            return Said(tuple(joined(record, kept, ())))
        answer = self._guests.said(record.machine, record.created, patience)
        lines = understood(answer.lines, most) if answer else []
        return Said(tuple(joined(record, kept, lines)), _lack(answer))


def _lack(answer: Answer | None) -> str:
    if answer is None:
        return "What its guest says is being asked for: look again in a moment."
    return f"{answer.problem} What its guest says is not shown." if answer.problem else ""
