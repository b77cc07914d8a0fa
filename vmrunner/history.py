"""Finished and running machines with the times of their phases, in sqlite. History, never truth: with the file gone, only memory is lost.

What is derived from it: a pool's back-off after failures, how long its machines usually boot, and the figures for Prometheus.
"""

from __future__ import annotations

import sqlite3
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

from vmrunner.errors import ConfigError
from vmrunner.forge import Job
from vmrunner.image.trial import Trial
from vmrunner.model import Ending, EventKind, Machine, MachineId, Metadata

_SCHEMA = 2
_PHASES = (EventKind.UP, EventKind.SEED, EventKind.READY, EventKind.RUNNER, EventKind.EXIT)
_PATIENCE = 30.0  # seconds for another process to be done with the file
_LOOK_BACK = 50  # machines of a pool that are looked at for its back-off and its usual boot
# Of these a runner was at work, or had been.
_WORKED = ", ".join(f"'{each.value}'" for each in (Ending.DONE, Ending.DIED, Ending.JOB_TIMEOUT, Ending.TEARDOWN_TIMEOUT, Ending.HELD_BACK))
BUCKETS = (0.5, 1, 2, 3, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 10800)
"""Upper bounds of the histograms, in seconds."""


@dataclass(frozen=True)
class Record:
    """One machine's row. Times are unix seconds, 0 where the phase was never seen; `up` to `exit` are the guest's own clock."""

    machine: str
    pool: str = ""
    image: str = ""
    job: str = ""  # its name, as far as it is known
    job_key: str = ""
    repository: str = ""
    url: str = ""
    queued: float = 0.0
    created: float = 0.0
    overlay: float = 0.0
    started: float = 0.0
    bound: float = 0.0
    running: float = 0.0  # when the forge was first seen to have a job on it
    up: float = 0.0
    seed: float = 0.0
    ready: float = 0.0
    runner: float = 0.0
    exit: float = 0.0
    destroyed: float = 0.0
    ending: str = ""  # "" while it lives, else an Ending
    reason: str = ""

    @property
    def boot(self) -> tuple[float, float]:
        """When its guest began to come up, and when it was. A parked clone's begins when it is given its job."""
        up = self.up or self.ready
        return (self.created, up) if up else (self.bound or self.created, self.runner)


@dataclass(frozen=True)
class Failures:
    """A pool's failures since its last machine that worked."""

    count: int
    last_at: float
    last: str


@dataclass(frozen=True)
class Total:
    """One figure that only grows: a counter, or (with `seconds` and `bucket`) a part of a histogram."""

    name: str
    pool: str
    label: str
    value: float


_COLUMNS = tuple(field.name for field in fields(Record))
_TABLE = ", ".join(f"{field.name} {'REAL' if field.type == 'float' else 'TEXT'} NOT NULL" for field in fields(Record))

# Every pass asks these questions; without an index each would read the whole table, that is months of machines.
_INDEXES = (
    "ended ON machines (pool) WHERE ending != ''",
    "unended ON machines (machine) WHERE ending = ''",
    "by_ending ON machines (ending, destroyed)",
    "by_creation ON machines (created)",
    "by_image ON machines (image, created)",
)


class History:
    """The file `history.sqlite`. A corrupt one is set aside, and `warn` is told so in one sentence."""

    def __init__(self, path: Path, warn: Callable[[str], None], *, keep_days: int = 90) -> None:
        self._path, self._warn, self._keep = path, warn, keep_days * 86400.0
        self._lock = threading.Lock()  # the manager's workers share one connection
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._database = self._open_patiently()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):  # locked, read-only, full: not a corrupt file
                    raise
                aside = path.with_suffix(".corrupt")
                path.replace(aside)
                warn(f"The history {path} can't be used ({error}); it is now {aside}, and a new one was begun.")
                self._database = self._open_patiently()
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"The history {path} can't be written: {error}.", "Check state_dir: its owner, and its free space.") from None

    def _open_patiently(self) -> sqlite3.Connection:
        """sqlite does not wait for its turn where two switch a new file to WAL at once: one of them is told at once that it is locked."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                return self._open()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
        try:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version not in (0, _SCHEMA):
                raise sqlite3.DatabaseError(f"it has the format {version}, not {_SCHEMA}")
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute(f"CREATE TABLE IF NOT EXISTS machines ({_TABLE}, PRIMARY KEY (machine))")
            for index in _INDEXES:
                database.execute(f"CREATE INDEX IF NOT EXISTS {index}")
            database.execute(
                "CREATE TABLE IF NOT EXISTS totals (name TEXT, pool TEXT, label TEXT, value REAL, PRIMARY KEY (name, pool, label))"
            )
            database.execute(f"PRAGMA user_version = {_SCHEMA}")
        except BaseException:
            database.close()
            raise
        return database

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def started(self, metadata: Metadata, at: float, job: Job | None = None) -> None:
        """A machine was started at `at`, for this job if for one."""
        self._write(
            Record(
                machine=str(metadata.machine),
                pool=metadata.pool,
                image=metadata.image,
                created=metadata.created_at,
                overlay=metadata.overlay_at,
                started=at,
                bound=metadata.bound_at,
            ),
            job,
        )

    def bound(self, metadata: Metadata, job: Job) -> None:
        """A warm machine was given a job."""
        if found := self.find(metadata.machine):
            self._write(replace(found, bound=metadata.bound_at), job)

    def running(self, metadata: Metadata, job: Job | None) -> None:
        """The forge was seen to have a job on it: this one, if it tells which."""
        if found := self.find(metadata.machine):
            self._write(replace(found, running=metadata.running_at), job)
            if found.queued and not found.running:
                self._observe("queue_to_start_seconds", found.pool, metadata.running_at - found.queued)

    def had(self, machine: MachineId, job: Job) -> None:
        """The job that a machine turned out to have had; it may have been started for another one."""
        if found := self.find(machine):
            self._write(found, job)

    def ended(self, machine: MachineId, seen: Machine | None, ending: Ending, reason: str, at: float) -> Record | None:
        """A machine was destroyed at `at`; its last reports complete its row, which is returned. One without a row never started."""
        found = self.find(machine)
        if found is None or found.ending:
            return found
        up, seed, ready, runner, last = (event.at if seen and (event := seen.event(kind)) else 0.0 for kind in _PHASES)
        record = replace(found, up=up, seed=seed, ready=ready, runner=runner, exit=last, destroyed=at, ending=ending.value, reason=reason)
        self._write(record)
        self.count("machines_total", record.pool, ending.value)
        for name, began, ended in (
            ("boot_seconds", *record.boot),
            ("job_seconds", record.running, record.exit),
            ("teardown_seconds", record.exit, record.destroyed),
        ):
            if began and ended:
                self._observe(name, record.pool, ended - began)
        return record

    def start_failed(self, machine: MachineId, pool: str, reason: str, at: float, image: str = "") -> None:
        """A machine could not even be started; `image` is what is to blame, if it may be that."""
        self._write(Record(str(machine), pool, image, created=at, destroyed=at, ending=Ending.START_FAILED.value, reason=reason))
        self.count("machines_total", pool, Ending.START_FAILED.value)

    def count(self, name: str, pool: str = "", label: str = "", by: float = 1.0) -> None:
        """Add to a total."""
        try:
            with self._lock:
                self._database.execute(
                    "INSERT INTO totals VALUES (?, ?, ?, ?) ON CONFLICT (name, pool, label) DO UPDATE SET value = value + excluded.value",
                    (name, pool, label, by),
                )
        except sqlite3.Error as error:
            self._warn(f"The figure {name} was not written: {error}.")

    def _observe(self, name: str, pool: str, seconds: float) -> None:
        seconds = max(0.0, seconds)
        bucket = next((str(bound) for bound in BUCKETS if seconds <= bound), "+Inf")
        self.count(name, pool, bucket)
        self.count(name, pool, "sum", seconds)

    def totals(self) -> list[Total]:
        """Every total. Histograms have one for each bucket that is not empty (not cumulative), and the label `sum`."""
        with self._lock:
            rows = self._database.execute("SELECT name, pool, label, value FROM totals ORDER BY name, pool, label").fetchall()
        return [Total(*row) for row in rows]

    def prune(self, now: float) -> None:
        """Forget machines that ended too long ago, and after twice that time those of which no end is known."""
        bound = now - self._keep
        try:
            with self._lock:
                self._database.execute(
                    "DELETE FROM machines WHERE created < ? AND (ending != '' OR created < ?)", (bound, bound - self._keep)
                )
        except sqlite3.Error as error:
            self._warn(f"The history {self._path} was not pruned: {error}.")

    def _write(self, record: Record, job: Job | None = None) -> None:
        if job:
            queued = job.queued_at.timestamp() if job.queued_at else record.queued
            record = replace(record, job=job.name, job_key=job.key, repository=job.repository, url=job.url, queued=queued)
        marks = ", ".join("?" * len(_COLUMNS))
        try:
            with self._lock:
                self._database.execute(f"REPLACE INTO machines VALUES ({marks})", astuple(record))  # noqa: S608 — only question marks
        except sqlite3.Error as error:  # a full disk must not stop a pass
            self._warn(f"The history of {record.machine} was not written: {error}.")

    def find(self, machine: MachineId) -> Record | None:
        """One machine's row."""
        return next(iter(self._select("WHERE machine = ?", str(machine))), None)

    def unended(self) -> set[str]:
        """The names of the machines that were started and have not ended yet."""
        return {record.machine for record in self._select("WHERE ending = ''")}

    def all(self) -> list[Record]:
        """Every row, oldest machine first."""
        return self._select("ORDER BY created, machine")

    def failures(self, pool: str, image: str = "") -> Failures | None:
        """The failures that blame the pool, since its last machine that worked; None where there are none.

        Those of another version than `image` are not its any more.
        """
        found: list[Record] = []
        for record in self._ended(pool):
            if image and record.image not in ("", image):
                continue
            if Ending(record.ending).blames_pool:
                found.append(record)
            elif Ending(record.ending) in {Ending.DONE, Ending.CANCELLED, Ending.DIED, Ending.JOB_TIMEOUT}:
                break
        return Failures(len(found), found[0].destroyed, found[0].reason) if found else None

    def trial(self, image: str, since: float) -> Trial:
        """How the machines of a version did that were made since then (unix seconds)."""
        if self._select(f"WHERE image = ? AND created >= ? AND (running > 0 OR ending IN ({_WORKED})) LIMIT 1", image, since):
            return Trial(image, worked=True)
        ended = self._select("WHERE image = ? AND created >= ? AND ending != '' ORDER BY rowid DESC LIMIT ?", image, since, _LOOK_BACK)
        failed = [record for record in ended if Ending(record.ending).blames_pool]
        return Trial(image, len(failed), failed[0].reason if failed else "")

    def usual_boot(self, pool: str) -> float:
        """Seconds until the guest is up, as the median of the pool's last machines; 0 where there were none."""
        times = [up - began for record in self._ended(pool) for began, up in [record.boot] if up]
        return statistics.median(times) if times else 0.0

    def held_back(self, since: float) -> dict[str, tuple[int, float]]:
        """Jobs that the forge held back from their runners since then: job key -> how often, and when last."""
        found: dict[str, tuple[int, float]] = {}
        for record in self._select("WHERE ending = ? AND destroyed >= ? ORDER BY rowid", Ending.HELD_BACK.value, since):
            found[record.job_key] = found.get(record.job_key, (0, 0.0))[0] + 1, record.destroyed
        return found

    def _ended(self, pool: str) -> list[Record]:
        # By the order of writing: the host's clock may have been set back in between.
        return self._select("WHERE pool = ? AND ending != '' ORDER BY rowid DESC LIMIT ?", pool, _LOOK_BACK)

    def _select(self, rest: str, *values: str | float) -> list[Record]:
        query = f"SELECT {', '.join(_COLUMNS)} FROM machines {rest}"  # noqa: S608 — column names only
        try:
            with self._lock:
                rows: Sequence[tuple[object, ...]] = self._database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            self._warn(f"The history {self._path} was not read: {error}.")
            return []
        return [Record(*row) for row in rows]  # type: ignore[arg-type]  # the table has the record's types
