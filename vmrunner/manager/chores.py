"""What is done beside the passes, which wait for none of it: machines are measured, and logs are
brought to their bounds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

_EVERY = 2.0  # seconds; what a machine takes between the last look and its end is not seen
_SHARE = 20  # times as long as they took they rest, at least


class Chores:
    """Calls `do` again and again, in a thread of its own, while the block runs."""

    def __init__(self, do: Callable[[], None], *, every: float = _EVERY) -> None:
        self._do, self._every = do, every
        self._over = threading.Event()

    def _run(self) -> None:
        rest = self._every
        while not self._over.wait(rest):
            began = time.monotonic()
            self._do()
            rest = max(self._every, _SHARE * (time.monotonic() - began))

    def __enter__(self) -> Chores:
        # A QEMU that never answers must not keep the process from its end.
        threading.Thread(target=self._run, name="chores", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()


def once(do: Callable[[], None], within: float) -> None:
    """Do them, and wait for that so many seconds at most."""
    thread = threading.Thread(target=do, name="chores", daemon=True)
    thread.start()
    thread.join(within)
