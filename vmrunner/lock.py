"""One writer per manager id: a file lock that the kernel drops when its holder dies."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vmrunner.errors import Busy, ConfigError

_POLL = 0.2  # seconds


@contextmanager
def exclusive(runtime_dir: Path, manager: str, *, wait: float, say: Callable[[str], object]) -> Iterator[None]:
    """Hold the lock; where another vmrunner has it, `say` so once and wait up to `wait` seconds. Raises Busy."""
    path = runtime_dir / f"{manager}.lock"
    try:
        runtime_dir.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise ConfigError(f"The lock {path} can't be opened: {error.strerror}.", "Run as root, or set runtime_dir.") from None
    with file:
        deadline, told = time.monotonic() + wait, False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Busy(
                        f"Another vmrunner is at work as the manager {manager!r}.", "Wait for it, or give this one another `manager` name."
                    ) from None
                if not told:
                    say(f"Another vmrunner is at work as the manager {manager!r}; waiting for it.")
                    told = True
                time.sleep(_POLL)
        yield
