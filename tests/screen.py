"""A terminal with a program that draws on it, and takes keys."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Screen:
    """A pty with a program in it."""

    def __init__(self, *command: str, columns: int = 80, lines: int = 24) -> None:
        self.ours, theirs = pty.openpty()
        self.resize(columns, lines)
        self.before = termios.tcgetattr(theirs)
        self.theirs = theirs
        self.written = b""
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=os.environ | {"TERM": "xterm-256color"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.ours, keys)

    def until(self, wanted: bytes | re.Pattern[bytes], since: int = 0) -> int:
        """Read until this is written after that; where reading got to."""
        pattern = re.compile(re.escape(wanted)) if isinstance(wanted, bytes) else wanted
        return self._until(lambda: pattern.search(self.written, since) is not None, wanted)

    def _until(self, there: Callable[[], bool], wanted: object) -> int:
        deadline = time.monotonic() + 60
        while not there():
            assert time.monotonic() < deadline, (wanted, self.written[-3000:])
            if select.select([self.ours], [], [], 0.2)[0]:
                self.written += os.read(self.ours, 1 << 16)
        return len(self.written)

    def ended(self) -> int:
        """Its exit code; the terminal is as it was."""
        self._until(lambda: self.process.poll() is not None, "its end")
        while select.select([self.ours], [], [], 0.1)[0]:
            self.written += os.read(self.ours, 1 << 16)
        assert termios.tcgetattr(self.theirs) == self.before
        assert self.written.rfind(b"\x1b[?1049l") > self.written.rfind(b"\x1b[?1049h")
        assert self.written.rfind(b"\x1b[?25h") > self.written.rfind(b"\x1b[?25l")
        return int(self.process.returncode)


@contextmanager
def screen(*command: str) -> Iterator[Screen]:
    found = Screen(*command)
    try:
        yield found
    finally:
        found.process.kill()
        found.process.wait()
        os.close(found.ours)
        os.close(found.theirs)
