"""Time that counts: a moment by two clocks, and when the forge was silent. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

RECOVERY = 30.0
"""Seconds after a silence that still belong to it: the runners have to call again first."""
UNSEEN = 60.0
"""Seconds between two passes after which nobody knows whether the forge was there."""
_MOST = 1000  # silences that are remembered


@dataclass(frozen=True)
class Moment:
    """Now, by the host's clock (unix seconds), which may be set, and by one that only runs while
    the host is awake (seconds since `boot`, which names that time).
    """

    now: float
    steady: float
    boot: str = ""

    @property
    def offset(self) -> float:
        """Of the first clock against the second; it changes when the first is set."""
        return self.now - self.steady


@dataclass(frozen=True)
class Silence:
    """The forge did not answer for this scope, from `began` to `ended` by the steady clock; 0.0:
    it goes on. Without a scope: nobody asked.
    """

    scope: str
    began: float
    ended: float = 0.0


@dataclass(frozen=True)
class Silences:
    """All that are known of since the host's boot."""

    boot: str = ""
    looked: float = 0.0  # by the steady clock; 0 where nobody has looked yet
    known: tuple[Silence, ...] = ()

    def looked_at(self, moment: Moment, silent: Collection[str]) -> Silences:
        """After a look at the forge, which did not answer for these scopes."""
        steady = moment.steady
        before = self
        if self.boot != moment.boot or self.looked > steady:
            before = Silences(moment.boot)
        looked = before.looked or steady
        known = [
            each if each.ended or each.scope in silent else replace(each, ended=steady + RECOVERY)
            for each in before.known
        ]
        if steady - looked > UNSEEN:
            known.append(Silence("", looked + UNSEEN, steady))
        going_on = {each.scope for each in known if not each.ended}
        # It may have begun right after the last answer.
        known += [Silence(scope, looked) for scope in sorted(set(silent) - going_on)]
        return Silences(moment.boot, steady, tuple(known[-_MOST:]))

    def between(
        self, began: float, ended: float, scopes: Collection[str], *, unseen: bool = True
    ) -> float:
        """Seconds of this time, by the steady clock, in which one of these scopes was silent; with
        `unseen` also those in which nobody asked.
        """
        wanted = {*scopes, ""} if unseen else set(scopes) - {""}
        parts = sorted(
            (max(each.began, began), min(each.ended or ended, ended))
            for each in self.known
            if each.scope in wanted
        )
        return _union(parts)


def _union(parts: Iterable[tuple[float, float]]) -> float:
    total, last = 0.0, float("-inf")
    for start, stop in parts:
        total += max(0.0, stop - max(start, last))
        last = max(last, stop)
    return total
