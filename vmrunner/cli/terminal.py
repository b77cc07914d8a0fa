"""A person's terminal, as what speaks with a machine needs it: each key as it is struck."""

from __future__ import annotations

import os
import signal
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

IN, OUT = 0, 1  # of every process


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
    before = termios.tcgetattr(IN)

    def tell(*_: object) -> None:
        # Not here: this thread may be in the middle of a message.
        threading.Thread(target=resized, daemon=True).start()

    told = signal.signal(signal.SIGWINCH, tell) if resized else None
    try:
        tty.setraw(IN)
        yield
    finally:
        termios.tcsetattr(IN, termios.TCSADRAIN, before)
        if resized:
            signal.signal(signal.SIGWINCH, told)


def write(data: bytes) -> None:
    """All of it, as it is."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
