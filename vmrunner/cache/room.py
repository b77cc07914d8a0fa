"""Which entries go when there is no room for what comes: a choice by what the index says, which
changes nothing.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vmrunner.cache.shares import Shares

_UNUSED = 7 * 86400.0  # seconds after which an entry goes before all that was used since


class InTheWay(Exception):
    """This repository would have to give, and has no entry."""

    def __init__(self, repository: str) -> None:
        super().__init__(repository)
        self.repository = repository


@dataclass(frozen=True)
class Going:
    """An entry that has to go, unless somebody has used it meanwhile."""

    number: int
    used: float
    repository: str  # in small letters
    taken: int  # bytes of its repository's
    freed: int  # bytes of the disk: contents may be shared


class Choice:
    """Entries that go, in this order."""

    def __init__(self, database: sqlite3.Connection, now: float) -> None:
        self._database, self._now = database, now
        self._chosen: dict[int, Going] = {}  # by number
        self._left: dict[str, int] = {}  # entries that keep a content, by its digest
        self._oldest: dict[str, Iterator[Going]] = {}  # of a repository

    @property
    def entries(self) -> list[Going]:
        """All of them."""
        return list(self._chosen.values())

    def own(self, repository: str, over: int, count: Callable[[Going], int]) -> None:
        """Of one repository, until nothing is over. Raises InTheWay."""
        while over > 0:
            over -= count(self._next_of(repository))

    def share(
        self,
        over: int,
        taken: Callable[[], Counter[str]],
        count: Callable[[Going], tuple[int, int]],
    ) -> None:
        """Until nothing is over: what nobody uses any more, then of those who have the most, by
        what each has after the ones that are chosen already. `count` says what an entry is of its
        repository's, and of all. Raises InTheWay.
        """
        if over <= 0:
            return
        has = taken()
        unused = self._all("used < ?", self._now - _UNUSED)
        for each in self._chosen.values():
            has[each.repository] -= count(each)[0]
        shares = Shares(has)
        while over > 0:
            gone = next(unused, None) or self._next_of(shares.giver())
            own, all_ = count(gone)
            shares.gave(gone.repository, own)
            over -= all_

    def _next_of(self, repository: str) -> Going:
        name = repository.lower()
        if name not in self._oldest:
            self._oldest[name] = self._all("repository = ?", name)
        gone = next(self._oldest[name], None)
        if gone is None:
            raise InTheWay(name)
        return gone

    def _all(self, where: str, value: object) -> Iterator[Going]:
        """Those that are not chosen yet, the one first that was used longest ago."""
        for number, used, repository, digest, size, beside in self._database.execute(
            "SELECT number, used, repository, digest, size, beside FROM entries "  # noqa: S608 — our own words
            f"WHERE {where} ORDER BY used, number",
            (value,),
        ):
            if number not in self._chosen:
                freed = beside + (size if self._is_last(digest) else 0)
                gone = Going(number, used, repository.lower(), size + beside, freed)
                self._chosen[number] = gone
                yield gone

    def _is_last(self, digest: str) -> bool:
        """Whether nothing keeps this content after one more entry of it."""
        if digest not in self._left:
            (self._left[digest],) = self._database.execute(
                "SELECT count(*) FROM entries WHERE digest = ?", (digest,)
            ).fetchone()
        self._left[digest] -= 1
        return not self._left[digest]
