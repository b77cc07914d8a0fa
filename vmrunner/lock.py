"""One writer per manager id, or per store of images: a file lock that the kernel drops when its
holder dies.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from vmrunner import files
from vmrunner.errors import Busy, ConfigError
from vmrunner.log import Say
from vmrunner.waiting import Deadline

_POLL = 0.2  # seconds


def exclusive(
    runtime_dir: Path, manager: str, *, wait: float, say: Say
) -> AbstractContextManager[None]:
    """The lock of a manager; see `held`."""
    other = f"Another vmrunner is at work as the manager {manager!r}"
    return held(
        runtime_dir / f"{manager}.lock",
        other,
        "Wait for it, or give this one another `manager` name.",
        wait=wait,
        say=say,
    )


@contextmanager
def held(path: Path, other: str, hint: str, *, wait: float, say: Say) -> Iterator[None]:
    """Hold the lock; where another vmrunner has it, `say` so once and wait up to `wait` seconds.

    Raises Busy, with these words.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
        files.hand_over(file.fileno(), path.parent)
    except OSError as error:
        raise ConfigError(
            f"The lock {path} can't be opened: {error.strerror}.",
            "Run as root, or name another folder in the configuration.",
        ) from None
    with file:
        deadline, told = Deadline(wait), False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if deadline.is_over:
                    raise Busy(f"{other}.", hint) from None
                if not told:
                    say(f"{other}; waiting for it.")
                    told = True
                deadline.pause(_POLL)
        yield
