"""Numbers and times as the page says them. Pure but for the host's time zone."""

from __future__ import annotations

import math
import time
from functools import lru_cache
from urllib.parse import urlsplit


def duration(seconds: float) -> str:
    """`0.8 s`, `12 s`, `3 min`, `2.5 h`, `4 d`: what one can take in at a glance."""
    seconds = max(0.0, seconds)
    if seconds < 10:
        return f"{seconds:.1f} s".replace("0.0 s", "0 s")
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.3g} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.3g} h"
    return f"{seconds / 86400:.3g} d"


def number(value: float) -> str:
    """Without digits that say nothing."""
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.2g}"


def percent(share: float) -> str:
    """Of a whole."""
    return f"{share * 100:.0f} %"


def moment(at: float) -> str:
    """A time of this host's zone; `–` where it is not known."""  # noqa: RUF002 — meant
    return _local(at, "%Y-%m-%d %H:%M:%S")


def machine_time(at: float) -> str:
    """For programs that read the page."""
    return _local(at, "%Y-%m-%dT%H:%M:%S%z")


def instant(at: float) -> str:
    """The same, to the thousandth of a second."""
    if not math.isfinite(at):
        return moment(0)
    second, rest = divmod(round(at * 1e6), 10**6)
    said = _second(second)
    return f"{said}.{rest // 1000:03}" if said[:1].isdigit() else said


@lru_cache(64)
def _second(at: int) -> str:
    """A log has many lines of the same one."""
    return moment(at)


def time_of_day(at: float) -> str:
    """Of this host's zone; `–` where it is not known."""  # noqa: RUF002 — meant
    return _local(at, "%H:%M:%S")


def tick(at: float, hours: int) -> str:
    """Beneath a plot that goes over so many hours."""
    return _local(at, "%H:%M" if hours <= 24 else "%a %H:%M" if hours <= 168 else "%d %b")


def _local(at: float, form: str) -> str:
    try:
        return time.strftime(form, time.localtime(at)) if at > 0 else "–"  # noqa: RUF001 — meant
    except (OverflowError, OSError, ValueError):
        return "–"  # noqa: RUF001 — meant


def link(url: str) -> str:
    """A forge's address, where it is one that a browser only opens; else empty."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return url if parts.scheme in {"http", "https"} and parts.netloc and url.isprintable() else ""
