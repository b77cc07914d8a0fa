"""Waiting: when to try again, and until when."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot() -> str:
    """Names the time since the host was started, in which the steady clock holds."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


class Deadline:
    """A moment that is `seconds` away by a clock which nobody sets; what waits for something asks
    it, and gives up when `is_over`.
    """

    def __init__(
        self,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self._at = clock() + seconds

    @property
    def left(self) -> float:
        """Seconds until then; 0 when it is over."""
        return max(0.0, self._at - self._clock())

    @property
    def is_over(self) -> bool:
        """Whether it has passed."""
        return self._clock() >= self._at

    def pause(self, seconds: float) -> None:
        """Sleep between two looks, and not beyond the deadline."""
        self._sleep(min(seconds, self.left))


def retry_at(last: float, count: int, first: float, longest: float, now: float) -> float:
    """When to try again what has failed `count` times in a row: after `first` seconds, then each
    time twice as long.

    A failure from the future says that the clock was set back: at once.
    """
    return last + min(first * 2.0 ** min(count - 1, 20), longest) if last <= now else now
