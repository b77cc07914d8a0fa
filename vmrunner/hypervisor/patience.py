"""Calls to libvirt that are not answered. None of them can be ended from here, but whoever waits
shall know for what.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Answer = TypeVar("Answer")
SOON = 10.0
"""Seconds without an answer until it is said."""


class Patience:
    """The calls under way in this process, and a thread that looks at them."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, every: float = SOON / 10
    ) -> None:
        self.tell: Callable[[str], object] = lambda _: None
        self._clock, self._every = clock, every
        self._calls: dict[object, tuple[float, str]] = {}
        self._started = threading.Lock()

    @contextmanager
    def during(self, doing: str) -> Iterator[None]:
        """In the block libvirt is asked for something that it answers soon."""
        call = object()
        self._calls[call] = self._clock(), doing
        if self._started.acquire(blocking=False):
            # It ends with the process: nothing of it has to be put away.
            threading.Thread(target=self._watch, name="libvirt-patience", daemon=True).start()
        try:
            yield
        finally:
            self._calls.pop(call, None)

    def look(self) -> None:
        """Say of each call that is late what it is for, once."""
        now = self._clock()
        for call, (began, doing) in list(self._calls.items()):
            if now - began >= SOON and self._calls.pop(call, None) is not None:
                self.tell(
                    f"libvirt has not answered for {SOON:.0f} s: {doing}. Is it stopped "
                    "(`systemctl status libvirtd`), or is its storage slow?"
                )

    def _watch(self) -> None:
        while True:
            time.sleep(self._every)
            self.look()


def within(seconds: float, ask: Callable[[], Answer]) -> tuple[Answer] | None:
    """What `ask` returns, or None where that takes longer; it goes on then, in a thread that ends
    with the process. What it raises is raised.
    """
    answers: list[Answer] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(ask())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    return (answers[0],) if answers else None
