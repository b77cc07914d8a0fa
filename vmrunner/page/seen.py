"""What the last pass saw, as a file: `serve` writes it, and the page's process reads it, so that
neither waits for the other.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from pydantic_core import to_json

from vmrunner import files
from vmrunner.log import Log

MOST_WAITING = 2000  # jobs; of a longer queue the page has the first ones, and their number
STALE = 15.0  # seconds; `serve` has a pass each 5 s
_REST = 1.0  # seconds between two writes, at least
_SHARE = 100  # times as long as a write took, the next one waits: a hundredth of our time


class Status(Protocol):
    """That of `vmrunner status --json`: a record."""

    @property
    def waiting(self) -> tuple[Any, ...]:
        """Jobs."""


class Writer:
    """Writes what a pass saw, unless it has just done so."""

    def __init__(self, path: Path, log: Log, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._log, self._clock = path, log, clock
        self._next = 0.0
        self._failed = False

    @property
    def is_due(self) -> bool:
        """Whether it is time."""
        return self._clock() >= self._next

    def write(self, status: Callable[[], Status], at: float) -> None:
        """What `vmrunner status --json` would print now. A full disk stops no pass."""
        began = self._clock()
        whole = status()
        # `replace` wants a dataclass: whoever calls has one, of a room that is not imported here.
        shown = replace(whole, waiting=whole.waiting[:MOST_WAITING])  # type: ignore[type-var]
        seen = {"at": at, "waiting": len(whole.waiting), "status": shown}
        try:
            files.write_whole(self._path, _json(seen), 0o600)
        except OSError as error:
            if not self._failed:
                self._log.warning("what the page shows was not written", reason=error.strerror)
            self._failed = True
        else:
            self._failed = False
        now = self._clock()
        self._next = now + max(_REST, (now - began) * _SHARE)


def _json(seen: dict[str, Any]) -> str:
    """Records as JSON, in a tenth of the time that `asdict` and `json` take."""
    try:
        return to_json(seen).decode()
    except ValueError:  # a name that is no Unicode, which JSON can say all the same
        return json.dumps(seen, default=asdict)


@dataclass(frozen=True)
class Seen:
    """The last pass; `status` is that of `vmrunner status --json`."""

    at: float = 0.0  # unix seconds; 0: there was none
    waiting: int = 0  # all of them
    status: Any = None

    def is_stale(self, now: float) -> bool:
        """Whether `serve` has been silent for longer than it should."""
        return now - self.at > STALE


class Reader:
    """Reads that file when it has changed."""

    def __init__(self, path: Path) -> None:
        self._file = files.Read(path, _understood, Seen())

    def seen(self) -> Seen:
        """What it says; nothing where there is none, or one of another version."""
        return self._file.now()


def _understood(raw: bytes) -> Seen:
    plain = json.loads(raw)
    return Seen(float(plain["at"]), int(plain["waiting"]), dict(plain["status"]))
