"""Asks the teller (page/teller.py) what guests of living machines say: one question at a time,
however many look, so that libvirt has little to do with it; and nobody waits for longer than they
like.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_FRESH = 2.0  # seconds for which nobody asks again
_STALE = 60.0  # seconds after which an answer is none any more
_KEPT = 32  # answers, each of a megabyte or two at most
_MOST_WANTED = 100  # machines that are asked for at the same time
_LATE = 10.0  # seconds that an answer may take
_START = 30.0  # seconds more, where the teller has to start first: the host may be busy
_IDLE = 60.0  # seconds without a question, after which the teller is not needed
_LONGEST_HEAD = 10_000  # bytes
_PIECE = 1 << 16


@dataclass(frozen=True)
class Answer:
    """What a guest has said, as the logbook would write it, or why that is not known."""

    at: float  # by the clock, when it came
    lines: bytes = b""
    problem: str = ""


class Guests:
    """The answers, and a thread that gets them while somebody asks. `command` starts the teller."""

    def __init__(self, command: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._command, self._clock = command, clock
        self._changed = threading.Condition()
        self._wanted: dict[str, float] = {}
        self._known: dict[str, Answer] = {}
        self._works = False

    def said(self, machine: str, began: float, patience: float) -> Answer | None:
        """What the guest of a machine that was made at `began` has said; of a moment ago where
        nothing newer comes within `patience` seconds, and None where there is none.
        """
        with self._changed:
            if not self._newer(machine, _FRESH):
                if machine in self._wanted or len(self._wanted) < _MOST_WANTED:
                    self._wanted[machine] = began
                if not self._works:
                    self._works = True
                    threading.Thread(target=self._work, name="guests", daemon=True).start()
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._newer(machine, _FRESH), patience)
            return self._known[machine] if self._newer(machine, _STALE) else None

    def _newer(self, machine: str, seconds: float) -> bool:
        known = self._known.get(machine)
        return known is not None and self._clock() - known.at < seconds

    def _work(self) -> None:
        """Answer all that is wanted; ends, and the teller with it, when nothing is."""
        with _Line(self._command) as line:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._wanted, _IDLE)
                    if not self._wanted:
                        self._works = False
                        return
                    machine, began = next(iter(self._wanted.items()))
                asked = self._clock()
                lines, problem = line.ask(machine, began)
                now = self._clock()
                with self._changed:
                    del self._wanted[machine]
                    self._known.pop(machine, None)
                    self._known[machine] = Answer(now, lines, problem)
                    while len(self._known) > _KEPT:
                        del self._known[next(iter(self._known))]
                    self._changed.notify_all()
                # However many look, libvirt is asked for half of the time at most.
                time.sleep(min(now - asked, _FRESH))


class _Line:
    """To the teller, which is started when it is needed, and again after a failure."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def ask(self, machine: str, began: float) -> tuple[bytes, str]:
        """The lines, and what is wrong."""
        try:
            return self._ask(machine, began)
        except TimeoutError:
            self._end()
            return b"", "libvirt does not answer."
        except (OSError, ValueError, TypeError):
            self._end()
            return b"", "What asks libvirt has ended; the log of `vmrunner serve` says why."

    def _ask(self, machine: str, began: float) -> tuple[bytes, str]:
        deadline = time.monotonic() + _LATE
        if self._process is None:
            deadline += _START
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
            )
        asking, answering = self._process.stdin, self._process.stdout
        assert asking, "it is a pipe"  # noqa: S101 — for mypy
        assert answering, "so is this"  # noqa: S101 — for mypy
        asking.write(json.dumps([machine, began]).encode() + b"\n")
        found = bytearray()
        while (end := found.find(b"\n")) < 0 and len(found) < _LONGEST_HEAD:
            found += _piece(answering.fileno(), deadline)
        size, problem = json.loads(found[: max(end, 0)])
        del found[: end + 1]
        while len(found) < int(size):
            found += _piece(answering.fileno(), deadline)
        return bytes(found), str(problem)

    def _end(self) -> None:
        """Also one that hangs."""
        if self._process:
            self._process.kill()
            self._process.communicate()
        self._process = None


def _piece(file: int, deadline: float) -> bytes:
    """The next bytes; raises TimeoutError, and BrokenPipeError at its end."""
    waiting = select.poll()
    waiting.register(file, select.POLLIN)
    if not waiting.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError
    found = os.read(file, _PIECE)
    if not found:
        raise BrokenPipeError
    return found
