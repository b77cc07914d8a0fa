"""Waiting: when to try again, and until when."""

from __future__ import annotations


def retry_at(last: float, count: int, first: float, longest: float, now: float) -> float:
    """When to try again what has failed `count` times in a row: after `first` seconds, then each
    time twice as long.

    A failure from the future says that the clock was set back: at once.
    """
    return last + min(first * 2.0 ** min(count - 1, 20), longest) if last <= now else now
