"""What an admin may want to be told when it happens. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

FAILURES = 3
"""Failures in a row from which on a pool's back-off is told: one alone is seconds."""
AWAY = 60.0
"""Seconds that the forge is silent before that is told: it may only be restarted."""
_RELIEF = 1.1  # times the floor, from which on the storage is not low any more


class Kind(StrEnum):
    """Programs rely on these words: none is renamed."""

    POOL_BACKED_OFF = "pool-backed-off"
    POOL_WORKS = "pool-works"
    IMAGE_ROLLED_BACK = "image-rolled-back"
    FORGE_AWAY = "forge-away"
    FORGE_BACK = "forge-back"
    STORAGE_LOW = "storage-low"
    STORAGE_ENOUGH = "storage-enough"
    MACHINE_HELD = "machine-held"


@dataclass(frozen=True)
class Notice:
    """Something that happened, to this pool, image, forge, storage or machine; `text` is for
    people.
    """

    kind: Kind
    subject: str
    text: str


@dataclass(frozen=True)
class Trouble:
    """A pool whose machines failed in a row."""

    failures: int
    last: str


@dataclass(frozen=True)
class Sight:
    """What a pass saw. Storage in MiB; `rolled_back` has when each image was last rolled back
    automatically, and why; `held` why each machine is kept.
    """

    forge: str  # its URL
    silence: str = ""  # why it does not answer; empty where it does
    pools: Mapping[str, Trouble | None] = field(default_factory=dict)
    rolled_back: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    free: int | None = None  # None where that is not known
    floor: int = 0
    held: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Known:
    """What was told until now, so that it is told once."""

    away_since: float = 0.0  # unix seconds; 0: it answers
    away_told: bool = False
    backed_off: frozenset[str] = frozenset()
    rolled_back: Mapping[str, str] = field(default_factory=dict)  # image -> when
    storage_low: bool = False
    held: frozenset[str] = frozenset()


def news(known: Known | None, sight: Sight, now: float) -> tuple[Known, list[Notice]]:
    """What is to be told now, and what is known then.

    Without `known` nobody was told anything yet: what was over before that is no news.
    """
    before = known or Known(rolled_back={name: at for name, (at, _) in sight.rolled_back.items()})
    after, told = _forge(before, sight, now)
    for step in (_pools, _images, _storage, _held):
        after, more = step(after, sight)
        told += more
    return after, told


def _forge(known: Known, sight: Sight, now: float) -> tuple[Known, list[Notice]]:
    if not sight.silence:
        back = Notice(Kind.FORGE_BACK, sight.forge, f"The forge {sight.forge} answers again.")
        return replace(known, away_since=0.0, away_told=False), [back] * known.away_told
    # In the future it began where the clock was set back.
    since = known.away_since if 0 < known.away_since <= now else now
    is_due = now - since >= AWAY and not known.away_told
    away = Notice(
        Kind.FORGE_AWAY,
        sight.forge,
        f"The forge {sight.forge} has not answered for {now - since:.0f} s: {sight.silence}",
    )
    told = known.away_told or is_due
    return replace(known, away_since=since, away_told=told), [away] * is_due


def _pools(known: Known, sight: Sight) -> tuple[Known, list[Notice]]:
    off = {
        name: trouble
        for name, trouble in sight.pools.items()
        # With fewer failures it goes on being backed off only where that was told.
        if trouble and (trouble.failures >= FAILURES or name in known.backed_off)
    }
    told = [
        Notice(
            Kind.POOL_BACKED_OFF,
            name,
            f"Pool {name} is backed off after {trouble.failures} failures in a row; last: "
            f"{trouble.last}",
        )
        for name, trouble in off.items()
        if name not in known.backed_off
    ]
    told += [
        Notice(Kind.POOL_WORKS, name, f"Pool {name} is not backed off any more.")
        for name in sorted(known.backed_off & sight.pools.keys() - off.keys())
    ]
    return replace(known, backed_off=frozenset(off)), told


def _images(known: Known, sight: Sight) -> tuple[Known, list[Notice]]:
    told = [
        Notice(
            Kind.IMAGE_ROLLED_BACK, name, f"The image {name} was rolled back automatically: {cause}"
        )
        for name, (at, cause) in sight.rolled_back.items()
        if known.rolled_back.get(name) != at
    ]
    times = {name: at for name, (at, _) in sight.rolled_back.items()}
    return replace(known, rolled_back={**known.rolled_back, **times}), told


def _storage(known: Known, sight: Sight) -> tuple[Known, list[Notice]]:
    if sight.free is None:
        return known, []
    is_low = sight.free < sight.floor * (_RELIEF if known.storage_low else 1.0)
    after = replace(known, storage_low=is_low)
    if is_low == known.storage_low:
        return after, []
    space = f"{sight.free} MiB free, and capacity.disk_floor is {sight.floor} MiB"
    if is_low:
        text = f"The storage is low: {space}. No machine is started."
        return after, [Notice(Kind.STORAGE_LOW, "storage", text)]
    return after, [Notice(Kind.STORAGE_ENOUGH, "storage", f"The storage has room again: {space}.")]


def _held(known: Known, sight: Sight) -> tuple[Known, list[Notice]]:
    told = [
        Notice(Kind.MACHINE_HELD, name, f"The machine {name} is held: {why}.")
        for name, why in sight.held.items()
        if name not in known.held
    ]
    return replace(known, held=frozenset(sight.held)), told
