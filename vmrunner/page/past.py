"""The history, read only, as the page asks for it: each question reads a bounded number of rows,
however long the history is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path

from vmrunner import files
from vmrunner.manager.record import Record
from vmrunner.model.machine import Ending

SHOWN = 50  # machines of the history on one page
_LOOKED_THROUGH = 1000  # rows that one question with a filter reads
_FIRST = 1e-3  # unix seconds: before all ends, and after those that are none
_AT_ONCE = 1000  # rows that are fetched at a time
_PATIENCE = 2.0  # seconds for a writer to be done with the file
_ALL = "1"  # the condition that every machine fits
_COLUMNS = ", ".join(field.name for field in fields(Record))
_GOOD = ", ".join(f"'{each.value}'" for each in Ending if not each.is_failure)


@dataclass(frozen=True)
class Wanted:
    """Which machines of the history are asked for; what is empty or false asks for nothing."""

    text: str = ""  # within the machine's name, its job or its repository
    pool: str = ""
    ending: str = ""
    verdict: str = ""
    failed: bool = False  # only endings that somebody should look into
    before: tuple[float, str] | None = None  # the end, and the name, of the last one seen

    def condition(self) -> tuple[str, list[str]]:
        """As SQL and its values."""
        asked, values = [_ALL], []
        for column, value in (
            ("pool", self.pool),
            ("ending", self.ending),
            ("verdict", self.verdict),
        ):
            if value:
                asked.append(f"{column} = ?")
                values.append(value)
        if self.failed:
            asked.append(f"ending NOT IN ({_GOOD})")
        if self.text:
            places = "machine", "job", "repository", "made_for", "made_for_repository"
            asked.append("(" + " OR ".join(f"instr(lower({each}), ?)" for each in places) + ")")
            # sqlite's lower() knows the letters of ASCII alone.
            values += ["".join(c.lower() if c.isascii() else c for c in self.text)] * len(places)
        return " AND ".join(asked), values


@dataclass(frozen=True)
class Found:
    """Some machines, the one that ended last first, and where to go on: None at the end of the
    history.
    """

    records: tuple[Record, ...]
    more: tuple[float, str] | None
    looked_back_to: float  # unix seconds; 0: to the beginning


@dataclass(frozen=True)
class Life:
    """What of a machine's row the sums are made of; times are unix seconds, 0 where unknown."""

    pool: str
    repository: str  # of its job, or of the one that it was made for
    had_job: bool
    verdict: str
    ending: str
    queued: float
    began: float  # when its job did
    attempt: int
    runner: float
    created: float
    bound: float
    destroyed: float


class Past:
    """The file `history.sqlite`; without it there is no past.

    It is opened for each question, as it may be set aside and begun anew.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def _open(self) -> sqlite3.Connection:
        address = files.database_to_read(self._path)
        return sqlite3.connect(address, uri=True, timeout=_PATIENCE, isolation_level=None)

    def ended(self, wanted: Wanted) -> Found:
        """Machines that have ended; raises sqlite3.Error where the file can't be read."""
        condition, values = wanted.condition()
        before = wanted.before or (1e18, "")
        # The index by name: another one would have sqlite sort all that fits. And the end by itself
        # as the lower bound: of a pair sqlite makes none, and reads on to the beginning.
        behind = "FROM machines INDEXED BY by_end WHERE (destroyed, machine) < (?, ?)"
        order = "ORDER BY destroyed DESC, machine DESC"
        with closing(self._open()) as database:
            last = None
            if condition != _ALL:
                nth = f"{order} LIMIT 1 OFFSET {_LOOKED_THROUGH - 1}"
                last = database.execute(
                    f"SELECT destroyed, machine {behind} AND destroyed >= ? {nth}",
                    (*before, _FIRST),
                ).fetchone()
            first = last or (_FIRST, "")
            rows = database.execute(
                f"SELECT {_COLUMNS} {behind} AND destroyed >= ? AND (destroyed, machine) >= "
                f"(?, ?) AND {condition} {order} LIMIT ?",
                (*before, *first[:1], *first, *values, SHOWN + 1),
            ).fetchall()
        records = tuple(Record(*row) for row in rows[:SHOWN])
        if len(rows) > SHOWN:
            return Found(records, (records[-1].destroyed, records[-1].machine), 0.0)
        return Found(records, last, last[0] if last else 0.0)

    def machine(self, name: str) -> Record | None:
        """One machine's row; raises sqlite3.Error."""
        with closing(self._open()) as database:
            row = database.execute(
                f"SELECT {_COLUMNS} FROM machines WHERE machine = ?",  # noqa: S608 — column names
                (name,),
            ).fetchone()
        return Record(*row) if row else None

    def lives(self, since: float, until: float) -> Iterator[Life]:
        """Those that ended within a time, the first one first; raises sqlite3.Error."""
        yield from self._lives("destroyed >= ? AND destroyed < ?", max(since, _FIRST), until)

    def going_on(self) -> Iterator[Life]:
        """Those that have not ended; raises sqlite3.Error."""
        yield from self._lives("ending = ''")

    def _lives(self, where: str, *values: float) -> Iterator[Life]:
        with closing(self._open()) as database:
            rows = database.execute(
                "SELECT pool, CASE WHEN repository = '' THEN made_for_repository ELSE repository "  # noqa: S608 — our own words
                "END, job != '' OR ran = 'yes', verdict, ending, queued, CASE WHEN job_started > 0 "
                "THEN job_started ELSE running END, attempt, runner, created, bound, destroyed "
                f"FROM machines WHERE {where} ORDER BY destroyed",
                values,
            )
            while some := rows.fetchmany(_AT_ONCE):
                yield from (Life(*row) for row in some)
