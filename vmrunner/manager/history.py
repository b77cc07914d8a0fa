"""Finished and running machines with the times of their phases, in sqlite. History, never truth:
with the file gone, only memory is lost.

What is derived from it: a pool's back-off after failures, how long its machines usually boot, and
the figures for Prometheus.
"""

from __future__ import annotations

import os
import re
import sqlite3
import stat
import statistics
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import astuple, dataclass, fields, replace
from itertools import count
from pathlib import Path

from vmrunner import files
from vmrunner.errors import ConfigError
from vmrunner.manager.figures import Counted, Timed
from vmrunner.manager.record import USED, Ran, Record
from vmrunner.manager.trial import Trial
from vmrunner.model.binding import Binding
from vmrunner.model.job import VERDICTS, Job, JobState
from vmrunner.model.machine import SHORTEST, Ending, EventKind, Machine, MachineId, Metadata
from vmrunner.model.used import Used
from vmrunner.waiting import Deadline

_SCHEMA = 3
_ASKS = 6  # times that the forge is asked for a machine's job before that counts as not known
# Seconds until a job is asked for again that the forge believes to run on although its machine is
# gone.
_STILL_RUNS = 60.0
# Seconds after a machine's end for which its job may be asked for without an end, such as from a
# forge that is away; then _ASKS times more. Not at once never again: the clock may have been set.
_ASKED_FOR = 86400.0
_PHASES = (EventKind.UP, EventKind.SEED, EventKind.READY, EventKind.RUNNER, EventKind.EXIT)
_PATIENCE = 30.0  # seconds for another process to be done with the file
_LOOK_BACK = 50  # machines of a pool that are looked at for its back-off and its usual boot
# Of these a runner was at work, or had been.
_WORKED = ", ".join(
    f"'{each.value}'"
    for each in (
        Ending.DONE,
        Ending.HELD,
        Ending.DIED,
        Ending.JOB_TIMEOUT,
        Ending.TEARDOWN_TIMEOUT,
        Ending.HELD_BACK,
    )
)
READERS = "Run it with sudo, or join the group of the service's user (vmrunner)."
"""The hint of who may not read what the service writes."""
BUCKETS = (0.5, 1, 2, 3, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 10800)
"""Upper bounds of the histograms, in seconds."""


@dataclass(frozen=True)
class Failures:
    """A pool's failures since its last machine that worked. Machines that fail together are one
    failure.
    """

    count: int
    last_at: float
    last: str


@dataclass(frozen=True)
class Total:
    """One figure that only grows: a counter, or (with `seconds` and `bucket`) a part of a
    histogram.
    """

    name: str
    pool: str
    label: str
    value: float


_COLUMNS = tuple(field.name for field in fields(Record))
_TYPES = {
    "float": "REAL NOT NULL DEFAULT 0",
    "int": "INTEGER NOT NULL DEFAULT 0",
    "str": "TEXT NOT NULL DEFAULT ''",
}
_DEFINITIONS = {field.name: f"{field.name} {_TYPES[str(field.type)]}" for field in fields(Record)}

# Up to format 2 `job` was the one that a machine was made for, unless another one was seen on it.
# On Gitea (whose keys are the job's number and its attempt) the two may differ.
_FROM_2 = (
    "UPDATE machines SET made_for = job, made_for_key = job_key, made_for_repository = repository",
    "UPDATE machines SET job = '', job_key = '', repository = '', url = '' "
    "WHERE running = 0 AND job_key GLOB '[0-9]*.[0-9]*' AND job_key NOT GLOB '*[^0-9.]*'",
)

# Every pass asks these questions; without an index each would read the whole table, that is months
# of machines.
_INDEXES = (
    "ended ON machines (pool) WHERE ending != ''",
    "unended ON machines (machine) WHERE ending = ''",
    "by_ending ON machines (ending, destroyed)",
    "by_creation ON machines (created)",
    "by_image ON machines (image, created)",
    "asked ON machines (ask_at) WHERE ask_at > 0",
    "by_end ON machines (destroyed, machine)",
    "logged ON machines (destroyed, log_bytes) WHERE log_bytes > 0",
)

_INDEX_NAMES = tuple(index.partition(" ")[0] for index in _INDEXES)


class History:
    """The file `history.sqlite`.

    A corrupt one is set aside, and `warn` is told so in one sentence. Who only reads it makes
    nothing and changes nothing, and may be another user; without the file there are no machines.
    """

    def __init__(
        self,
        path: Path,
        warn: Callable[[str], None],
        *,
        keep_days: int = 90,
        read_only: bool = False,
    ) -> None:
        self._path, self._warn, self._keep = path, warn, keep_days * 86400.0
        self._lock = threading.Lock()  # the manager's workers share one connection
        if read_only:
            self._database = self._open_to_read()
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._database = self._open_patiently()
            except sqlite3.DatabaseError as error:
                # Locked, read-only, full: not a corrupt file.
                if isinstance(error, sqlite3.OperationalError):
                    raise
                aside = _free(path.with_suffix(".corrupt"))
                path.replace(aside)
                warn(
                    f"The history {path} can't be used ({error}); it is now {aside}, and a new one "
                    "was begun."
                )
                self._database = self._open_patiently()
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"The history {path} can't be written: {error}.",
                "Check state_dir: its owner, and its free space.",
            ) from None

    def _open_patiently(self) -> sqlite3.Connection:
        """sqlite does not wait for its turn where two switch a new file to WAL at once: one of them
        is told at once that it is locked.
        """
        deadline = Deadline(_PATIENCE)
        while True:
            try:
                return self._open()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or deadline.is_over:
                    raise
                deadline.pause(0.02)

    def _open_to_read(self) -> sqlite3.Connection:
        """Raises ConfigError."""
        try:
            self._path.stat()
            database = _connect(files.database_to_read(self._path))
            try:
                (version,) = database.execute("PRAGMA user_version").fetchone()
                if version != _SCHEMA or not _columns(database) >= set(_COLUMNS):
                    database = self._as_ours(database, version)
            except BaseException:
                database.close()
                raise
        except FileNotFoundError:
            database = _connect(":memory:")
            self._make(database)
        except (OSError, sqlite3.Error) as error:
            denied = isinstance(error, PermissionError) or not os.access(self._path, os.R_OK)
            raise ConfigError(
                f"The history {self._path} can't be read: "
                f"{'Permission denied' if denied else error}.",
                READERS if denied else "`vmrunner up` sets aside a file that can't be used.",
            ) from None
        return database

    def _as_ours(self, old: sqlite3.Connection, version: int) -> sqlite3.Connection:
        """What an older vmrunner has written, as ours, without a change of the file."""
        with closing(old):
            if version not in (0, 2, _SCHEMA):
                raise sqlite3.DatabaseError(f"it has the format {version}, not {_SCHEMA}")
            database = _connect(":memory:")
            try:
                old.backup(database)
                self._make(database)
            except BaseException:
                database.close()
                raise
        return database

    def _open(self) -> sqlite3.Connection:
        with suppress(OSError):  # another user's
            # Before the first look: what sqlite puts beside the file takes its mode, and its owner.
            if not self._path.exists():
                self._path.touch()
                files.hand_over(self._path, self._path.parent)
            self._path.chmod(self._path.stat().st_mode | stat.S_IRGRP)
        database = _connect(self._path)
        try:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version not in (0, 2, _SCHEMA):
                raise sqlite3.DatabaseError(f"it has the format {version}, not {_SCHEMA}")
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute("PRAGMA journal_mode = WAL")
            # What came later, a column or an index, needs no new format, which an older vmrunner
            # would refuse.
            there = _columns(database) | _indexes(database)
            if version != _SCHEMA or not there >= {*_COLUMNS, *_INDEX_NAMES}:
                self._make(database)
        except BaseException:
            database.close()
            raise
        return database

    def _make(self, database: sqlite3.Connection) -> None:
        """Make the tables, or those of an older format into ours: all of it, or nothing of it."""
        database.execute("BEGIN IMMEDIATE")
        try:
            database.execute(
                f"CREATE TABLE IF NOT EXISTS machines ({', '.join(_DEFINITIONS.values())}, PRIMARY "
                "KEY (machine))"
            )
            there = _columns(database)
            for name, definition in _DEFINITIONS.items():
                if name not in there:
                    database.execute(f"ALTER TABLE machines ADD COLUMN {definition}")
            if "made_for" not in there:  # another process may have been quicker
                for statement in _FROM_2:
                    database.execute(statement)
            for index in _INDEXES:
                database.execute(f"CREATE INDEX IF NOT EXISTS {index}")
            database.execute(
                "CREATE TABLE IF NOT EXISTS totals (name TEXT, pool TEXT, label TEXT, value REAL, "
                "PRIMARY KEY (name, pool, label))"
            )
            database.execute(f"PRAGMA user_version = {_SCHEMA}")
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def started(
        self, metadata: Metadata, at: float, job: Job | None = None, made_for: str = ""
    ) -> None:
        """A machine was started at `at`, for this job if for one, or for what is called so."""
        self._write(replace(Record.of(metadata), started=at, made_for=made_for).made_for_job(job))

    def seen(self, there: Iterable[Metadata]) -> None:
        """These machines are there. What is missing of them is written: a row, or the job that it
        was given, where the manager was killed before it wrote that down.
        """
        rows = {record.machine: record for record in self._select("WHERE ending = ''")}
        for metadata in there:
            found = rows.get(str(metadata.machine)) or self.find(metadata.machine)
            if found is None or (metadata.bound_at and not found.bound and not found.ending):
                self._write(found.updated(metadata) if found else Record.of(metadata))

    def bound(self, metadata: Metadata, job: Job) -> None:
        """A warm machine was given a job."""
        if found := self.find(metadata.machine):
            self._write(replace(found, bound=metadata.bound_at).made_for_job(job))

    def running(self, metadata: Metadata, job: Job | None) -> None:
        """The forge was seen to have a job on it: this one, if it tells which."""
        if found := self.find(metadata.machine):
            record = replace(found.with_job(job) if job else found, running=metadata.running_at)
            self._write(record)
            if record.queued and not found.running:
                self._observe(Timed.QUEUE_TO_START, found.pool, metadata.running_at - record.queued)

    def used(self, figures: Mapping[MachineId, Used]) -> None:
        """What machines that live have taken of the host until now."""
        # All of it only grows, so that it does not matter who writes last.
        changes = ", ".join(f"{name} = max({name}, ?)" for name in USED)
        statement = f"UPDATE machines SET {changes} WHERE machine = ? AND ending = ''"  # noqa: S608 — column names and question marks
        rows = [(*astuple(used), str(machine)) for machine, used in figures.items()]
        try:
            with self._lock:
                self._database.execute("BEGIN IMMEDIATE")
                try:
                    self._database.executemany(statement, rows)
                finally:
                    self._database.execute("COMMIT")
        except sqlite3.Error as error:
            self._warn(f"What machines have used was not written: {error}.")

    def held(self, metadata: Metadata, binding: Binding | None, at: float) -> None:
        """A machine is kept for a person since `at`. Its job is over: the forge is to be asked for
        it.
        """
        found = self.find(metadata.machine)
        if found and not found.held:
            record = replace(found, held=at)
            self._write(record.asked(binding, at) if binding else record)

    def were_held(self) -> set[str]:
        """The names of the machines that are held, as far as is known."""
        return {record.machine for record in self._select("WHERE ending = '' AND held > 0")}

    def had(self, binding: Binding, job: Job, at: float) -> None:
        """A machine had this job, which was failed at the forge; what else there is to know is
        asked for.
        """
        if found := self.find(binding.machine):
            self._write(found.with_job(job).asked(binding, at))

    def ended(
        self,
        machine: MachineId,
        seen: Machine | None,
        ending: Ending,
        reason: str,
        at: float,
        binding: Binding | None = None,
        ran: Ran = Ran.NO,
        *,
        log_bytes: int = 0,
    ) -> Record | None:
        """A machine was destroyed at `at`; its last reports complete its row, which is returned.
        One without a row never started.

        Where `ran` is ASKED, or a job was seen on it, the forge is to be asked which job its
        binding's runner had, see `to_ask`.
        """
        found = self.find(machine)
        if found is None and binding and seen and seen.events:
            # The manager was killed before it wrote down the start, and the machine is gone.
            found = Record(str(machine), binding.pool, created=at)
        if found and binding and not found.made_for_key:
            found = replace(
                found, made_for_key=binding.job_key, made_for_repository=binding.repository
            )
        if found is None or found.ending:
            return found
        up, seed, ready, runner, last = (
            event.at if seen and (event := seen.event(kind)) else 0.0 for kind in _PHASES
        )
        record = replace(
            found,
            up=up,
            seed=seed,
            ready=ready,
            runner=runner,
            exit=last,
            destroyed=at,
            ending=ending.value,
            reason=reason,
            guest_peak_mib=_guest_peak(seen, found.memory_mib),
            log_bytes=log_bytes,
        )
        if not (record.held and record.ran):  # else that was asked when its job was over
            # Of a job that was seen on it only the end is not known.
            record = (
                record.asked(binding, at)
                if binding and (ran is Ran.ASKED or record.job)
                else replace(record, ran=Ran.YES.value if record.job else ran.value)
            )
        self._write(record, newest=True)
        self.count(Counted.MACHINES, record.pool, ending.value)
        for figure, began, ended in (
            (Timed.BOOT, *record.boot),
            (Timed.TEARDOWN, record.exit, record.held or record.destroyed),
        ):
            if began and ended:
                self._observe(figure, record.pool, ended - began)
        for counted, label, by in (
            (Counted.CPU_SECONDS, "", record.cpu_seconds),
            (Counted.WAITED_SECONDS, "", record.waited_seconds),
            (Counted.WRITTEN_BYTES, "", record.written_bytes),
            (Counted.NETWORK_BYTES, "received", record.received_bytes),
            (Counted.NETWORK_BYTES, "sent", record.sent_bytes),
        ):
            if by:
                self.count(counted, record.pool, label, by)
        return record

    def to_ask(self, now: float, most: int) -> list[Record]:
        """Machines that are gone, or held, and of which it is time to ask the forge for their job;
        those that have waited longest first.
        """
        # One whose time seems to be far away stems from before the host's clock was set back.
        return self._select(
            "WHERE ask_at > 0 AND (ask_at <= ? OR ask_at > ?) ORDER BY ask_at LIMIT ?",
            now,
            now + 2 * _STILL_RUNS,
            most,
        )

    def answered(self, machine: str, job: Job | None, now: float) -> Record | None:
        """What the forge said of a machine's job; None: nothing.

        Returns the row once nothing more is to be asked.
        """
        found = next(iter(self._select("WHERE machine = ?", machine)), None)
        if found is None:
            return None
        if job is None:
            asks = found.asks + 1
            # It tells a moment later, or never: a job that was begun again is another runner's now,
            # a repository may be deleted.
            record = replace(found, asks=asks, ask_at=now + 2.0 ** (asks - 1))
        elif job.state is JobState.DONE:
            record = replace(found.with_job(job), ran=Ran.YES.value, ask_at=0.0)
            verdict = record.verdict if record.verdict in VERDICTS else "unknown"
            self.count(Counted.JOBS, record.pool, verdict)
            if record.job_seconds is not None:
                self._observe(Timed.JOB, record.pool, record.job_seconds)
            # One that is begun again was queued long ago. Of one that was seen running this was
            # counted then.
            if record.job_started and record.queued and record.attempt < 2 and not record.running:
                self._observe(Timed.QUEUE_TO_START, record.pool, record.job_started - record.queued)
        else:
            asks = found.asks + is_late(found, now)
            record = replace(found.with_job(job), asks=asks, ask_at=now + _STILL_RUNS)
        if record.ask_at and record.asks >= _ASKS:
            record = replace(
                record, ask_at=0.0, ran=Ran.YES.value if record.job else Ran.UNKNOWN.value
            )
        self._write(record)
        return None if record.ask_at else record

    def start_failed(
        self,
        machine: MachineId,
        pool: str,
        reason: str,
        at: float,
        image: str = "",
        began: float = 0.0,
    ) -> None:
        """A machine could not even be started; `image` is what is to blame, if it may be that.
        Those of one pass began together.
        """
        self._write(
            Record(
                str(machine),
                pool,
                image,
                created=min(began or at, at),
                destroyed=at,
                ending=Ending.START_FAILED.value,
                reason=reason,
            )
        )
        self.count(Counted.MACHINES, pool, Ending.START_FAILED.value)

    def count(self, figure: Counted, pool: str = "", label: str = "", by: float = 1.0) -> None:
        """Add to a total."""
        self._add(figure.value, pool, label, by)

    def _add(self, name: str, pool: str, label: str, by: float) -> None:
        try:
            with self._lock:
                self._database.execute(
                    "INSERT INTO totals VALUES (?, ?, ?, ?) ON CONFLICT (name, pool, label) DO "
                    "UPDATE SET value = value + excluded.value",
                    (name, pool, label, by),
                )
        except sqlite3.Error as error:
            self._warn(f"The figure {name} was not written: {error}.")

    def _observe(self, figure: Timed, pool: str, seconds: float) -> None:
        seconds = max(0.0, seconds)
        bucket = next((str(bound) for bound in BUCKETS if seconds <= bound), "+Inf")
        self._add(figure.value, pool, bucket, 1.0)
        self._add(figure.value, pool, "sum", seconds)

    def totals(self) -> list[Total]:
        """Every total.

        Histograms have one for each bucket that is not empty (not cumulative), and the label `sum`.
        """
        try:
            with self._lock:
                rows = self._database.execute(
                    "SELECT name, pool, label, value FROM totals ORDER BY name, pool, label"
                ).fetchall()
        except sqlite3.Error as error:  # figures that are not to be had must not stop a pass
            self._warn(f"The figures in {self._path} were not read: {error}.")
            return []
        return [Total(*row) for row in rows]

    def prune(self, now: float) -> list[str]:
        """Forget machines that ended too long ago, and after twice that time those of which no end
        is known; their names.
        """
        bound = now - self._keep
        try:
            with self._lock:
                rows = self._database.execute(
                    "DELETE FROM machines WHERE created < ? AND (ending != '' OR created < ?) "
                    "RETURNING machine",
                    (bound, bound - self._keep),
                ).fetchall()
        except sqlite3.Error as error:
            self._warn(f"The history {self._path} was not pruned: {error}.")
            return []
        return [name for (name,) in rows]

    def drop_logs(self, most: int) -> list[str]:
        """The machines whose logs have to go so that the others take `most` bytes at most, oldest
        first; from now on they have none.
        """
        try:
            with self._lock:
                (total,) = self._database.execute(
                    "SELECT SUM(log_bytes) FROM machines WHERE log_bytes > 0"
                ).fetchone()
                going: list[str] = []
                if (total or 0) <= most:
                    return going
                for name, taken in self._database.execute(
                    "SELECT machine, log_bytes FROM machines WHERE log_bytes > 0 ORDER BY destroyed"
                ).fetchall():
                    if total <= most:
                        break
                    going.append(name)
                    total -= taken
                self._database.executemany(
                    "UPDATE machines SET log_bytes = 0 WHERE machine = ?",
                    [(name,) for name in going],
                )
        except sqlite3.Error as error:
            self._warn(f"The history {self._path} was not read: {error}.")
            return []
        return going

    def named(self, text: str) -> list[Record]:
        """The machines that somebody may mean by this, oldest first: by a machine's name, or how it
        begins or ends; or by the id or the address of a job, or of its run, at the forge. Raises
        ConfigError.
        """
        address = text.rstrip("/")
        if not address:
            return []
        return self._known(
            "WHERE (? >= ? AND ? IN (substr(machine, 1, ?), substr(machine, -?))) "
            "OR rtrim(url, '/') = ? OR rtrim(run_url, '/') = ? "
            "OR ? IN (job_key, made_for_key) OR substr(job_key, 1, ?) = ? "
            "OR (job_key = '' AND substr(made_for_key, 1, ?) = ?) ORDER BY created, machine",
            *(len(text), SHORTEST, text, len(text), len(text), address, address, text),
            *(len(text) + 1, f"{text}.", len(text) + 1, f"{text}."),
        )

    def _write(self, record: Record, *, newest: bool = False) -> None:
        """Write a row; `newest` makes it the latest one by the order of writing, where it was there
        before.
        """
        marks = ", ".join("?" * len(_COLUMNS))
        statement = f"INSERT INTO machines ({', '.join(_COLUMNS)}) VALUES ({marks})"  # noqa: S608 — column names and question marks
        changes = ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS)
        statement = (
            statement.replace("INSERT", "REPLACE", 1)
            if newest
            else f"{statement} ON CONFLICT (machine) DO UPDATE SET {changes}"
        )
        try:
            with self._lock:
                self._database.execute(statement, astuple(record))
        except sqlite3.Error as error:  # a full disk must not stop a pass
            self._warn(f"The history of {record.machine} was not written: {error}.")

    def find(self, machine: MachineId) -> Record | None:
        """One machine's row."""
        return next(iter(self._select("WHERE machine = ?", str(machine))), None)

    def unended(self) -> set[str]:
        """The names of the machines that were started and have not ended yet."""
        return {record.machine for record in self._select("WHERE ending = ''")}

    def living(self) -> list[Record]:
        """The rows of machines that have not ended yet."""
        return self._select("WHERE ending = '' ORDER BY created, machine")

    def all(self) -> list[Record]:
        """Every row, oldest machine first.

        Raises ConfigError: who asks for all wants to know which job ran where, and none is no
        answer to that.
        """
        return self._known("ORDER BY created, machine")

    def ended_since(self, at: float) -> list[Record]:
        """The rows of machines that ended since then (unix seconds). Raises ConfigError."""
        return self._known("WHERE ending != '' AND destroyed >= ? ORDER BY created, machine", at)

    def _known(self, rest: str, *values: str | float) -> list[Record]:
        try:
            return self._read(rest, *values)
        except sqlite3.Error as error:
            raise ConfigError(
                f"The history {self._path} can't be read: {error}.",
                "sqlite3's .recover may get rows out of it; without the file a new one is begun.",
            ) from None

    def failures(self, pool: str, image: str = "") -> Failures | None:
        """The failures that blame the pool, since its last machine that worked; None where there
        are none.

        Those of another version than `image` are not its any more.
        """
        found: list[Record] = []
        for record in self._ended(pool):
            if image and record.image not in ("", image):
                continue
            if _blames_pool(record):
                found.append(record)
            elif record.known_ending in {
                Ending.DONE,
                Ending.HELD,
                Ending.CANCELLED,
                Ending.DIED,
                Ending.JOB_TIMEOUT,
            }:
                break
        return Failures(_rounds(found), found[0].destroyed, found[0].reason) if found else None

    def trial(self, image: str, since: float) -> Trial:
        """How the machines of a version did that were made since then (unix seconds)."""
        if self._select(
            f"WHERE image = ? AND created >= ? AND (running > 0 OR ending IN ({_WORKED})) LIMIT 1",
            image,
            since,
        ):
            return Trial(image, worked=True)
        ended = self._select(
            "WHERE image = ? AND created >= ? AND ending != '' ORDER BY rowid DESC LIMIT ?",
            image,
            since,
            _LOOK_BACK,
        )
        failed = [record for record in ended if _blames_pool(record)]
        together = len(failed) - _rounds(failed)
        return Trial(image, len(failed), failed[0].reason if failed else "", together=together)

    def usual_boot(self, pool: str) -> float:
        """Seconds until the guest is up, as the median of the pool's last machines; 0 where there
        were none.
        """
        times = [up - began for record in self._ended(pool) for began, up in [record.boot] if up]
        return statistics.median(times) if times else 0.0

    def starts(self, pool: str, most: int) -> list[float]:
        """How long the last jobs of a pool waited for their runner, in seconds; at most so many."""
        found = (record.start_seconds for record in reversed(self.all()) if record.pool == pool)
        return [seconds for seconds in found if seconds is not None][:most]

    def held_back(self, since: float) -> dict[str, tuple[int, float]]:
        """Jobs that the forge held back from their runners since then: job key -> how often, and
        when last.
        """
        found: dict[str, tuple[int, float]] = {}
        for record in self._select(
            "WHERE ending = ? AND destroyed >= ? ORDER BY rowid", Ending.HELD_BACK.value, since
        ):
            found[record.made_for_key] = (
                found.get(record.made_for_key, (0, 0.0))[0] + 1,
                record.destroyed,
            )
        return found

    def _ended(self, pool: str) -> list[Record]:
        # By the order of writing: the host's clock may have been set back in between.
        return self._select(
            "WHERE pool = ? AND ending != '' ORDER BY rowid DESC LIMIT ?", pool, _LOOK_BACK
        )

    def _select(self, rest: str, *values: str | float) -> list[Record]:
        try:
            return self._read(rest, *values)
        except sqlite3.Error as error:
            self._warn(f"The history {self._path} was not read: {error}.")
            return []

    def _read(self, rest: str, *values: str | float) -> list[Record]:
        query = f"SELECT {', '.join(_COLUMNS)} FROM machines {rest}"  # noqa: S608 — column names only
        with self._lock:
            rows: Sequence[tuple[object, ...]] = self._database.execute(query, values).fetchall()
        return [Record(*row) for row in rows]  # type: ignore[arg-type]  # the table has the record's types


def is_late(record: Record, now: float) -> bool:
    """Whether its job was over so long ago that it is not asked for without an end."""
    return now - (record.held or record.destroyed) > _ASKED_FOR


def _connect(place: Path | str) -> sqlite3.Connection:
    return sqlite3.connect(
        place,
        timeout=_PATIENCE,
        isolation_level=None,
        check_same_thread=False,
        uri=str(place).startswith("file:"),
    )


def _guest_peak(seen: Machine | None, most: int) -> int:
    """MiB, by the guest's own word, and not more than it has where that is known; 0 where it told
    nothing that can be.
    """
    told = seen and seen.event(EventKind.USED)
    if not told or not re.fullmatch(r"[0-9]{1,8}", told.text):
        return 0
    return min(int(told.text), most or int(told.text))


def _columns(database: sqlite3.Connection) -> set[str]:
    """Those that the table of machines has."""
    return {row[1] for row in database.execute("PRAGMA table_info(machines)")}


def _indexes(database: sqlite3.Connection) -> set[str]:
    """Those that the table of machines has."""
    return {row[1] for row in database.execute("PRAGMA index_list(machines)")}


def _free(path: Path) -> Path:
    """This path, or the first one like it where there is nothing: what was set aside before may be
    somebody's only history.
    """
    if not path.exists():
        return path
    names = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(each for each in names if not each.exists())


def _blames_pool(record: Record) -> bool:
    return record.known_ending is not None and record.known_ending.blames_pool


def _rounds(failed: Sequence[Record]) -> int:
    """How often it was tried anew and failed again, of failures with the newest first: a machine
    that was already there when another one's failure was seen says nothing new. Eight that a forge
    or a host refuses at the same moment are one failure.
    """
    rounds, seen_at = 0, 0.0
    for record in reversed(failed):
        is_along = rounds > 0 and record.created <= seen_at <= record.destroyed
        if not is_along:
            rounds, seen_at = rounds + 1, record.destroyed
    return rounds
