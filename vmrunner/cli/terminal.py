"""A person's terminal, as what is told each key as it is struck needs it."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

IN, OUT = 0, 1  # of every process
_CONTROLS = 6  # the place of the control characters in what termios tells
_NONE = b"\0"


def is_there() -> bool:
    """Whether a person types, and sees what is written."""
    return os.isatty(IN) and os.isatty(OUT)


def size() -> tuple[int, int]:
    """Columns and lines."""
    found = os.get_terminal_size(OUT)
    return found.columns, found.lines


@contextmanager
def raw(resized: Callable[[], object] | None = None) -> Iterator[None]:
    """Keys come as they are struck, Ctrl-C among them; as it was, afterwards. `resized` is called
    when the window has another size.
    """

    def tell(*_: object) -> None:
        # Not here: this thread may be in the middle of a message.
        threading.Thread(target=resized, daemon=True).start()

    told = signal.signal(signal.SIGWINCH, tell) if resized else None
    try:
        with _as_it_was():
            tty.setraw(IN)
            yield
    finally:
        if resized:
            signal.signal(signal.SIGWINCH, told)


@contextmanager
def by_key() -> Iterator[None]:
    """Keys come as they are struck, and are not shown; Ctrl-C is a signal still, and Ctrl-Z
    nothing, as nobody would tidy the screen then. As it was, afterwards.
    """
    with _as_it_was():
        tty.setcbreak(IN)
        now = termios.tcgetattr(IN)
        now[_CONTROLS][termios.VSUSP] = _NONE
        termios.tcsetattr(IN, termios.TCSADRAIN, now)
        yield


@contextmanager
def _as_it_was() -> Iterator[None]:
    before = termios.tcgetattr(IN)
    try:
        yield
    finally:
        termios.tcsetattr(IN, termios.TCSADRAIN, before)


def typed(within: float) -> bytes | None:
    """What is typed within so many seconds; None where nothing is, empty at the terminal's end."""
    ready, _, _ = select.select([IN], [], [], within)
    return os.read(IN, 1024) if ready else None


def write(data: bytes) -> None:
    """All of it, as it is."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
