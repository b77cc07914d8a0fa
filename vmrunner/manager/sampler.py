"""What machines use is measured beside the passes, which wait for no machine's QEMU."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

_EVERY = 2.0  # seconds; what a machine does between the last look and its end is not seen
_SHARE = 20  # times as long as a look takes it rests, at least


class Sampler:
    """Calls `measure` again and again, in a thread of its own, while the block runs."""

    def __init__(self, measure: Callable[[], None], *, every: float = _EVERY) -> None:
        self._measure, self._every = measure, every
        self._over = threading.Event()

    def _run(self) -> None:
        rest = self._every
        while not self._over.wait(rest):
            began = time.monotonic()
            self._measure()
            rest = max(self._every, _SHARE * (time.monotonic() - began))

    def __enter__(self) -> Sampler:
        # A QEMU that never answers must not keep the process from its end.
        threading.Thread(target=self._run, name="sampler", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()


def once(measure: Callable[[], None], within: float) -> None:
    """Measure, and wait for that so many seconds at most."""
    thread = threading.Thread(target=measure, name="sampler", daemon=True)
    thread.start()
    thread.join(within)
