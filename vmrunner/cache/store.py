"""What the cache has: entries that never change, in sqlite, and their contents as files (`blobs`).

Each change is one transaction, with the change of the files inside: so the service and commands
beside it do not get in each other's way, and whatever a kill leaves is a file without an entry,
which `sweep` removes, or an entry without a file, which is a miss.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmrunner.cache import blobs, shares
from vmrunner.cache.blobs import Blobs, Content, Corrupt
from vmrunner.cache.refused import Refused, Why
from vmrunner.cache.rights import Rights
from vmrunner.errors import ConfigError
from vmrunner.files import hand_over, make_folder
from vmrunner.text import size as in_words

if TYPE_CHECKING:
    from vmrunner.config import CacheConfig

INDEX = "index.sqlite"
"""The file in a cache's folder that says what is in there."""
UNREADABLE = (
    "Is the disk full, or was it? What is in the cache may be removed at any time while the "
    "service is stopped."
)
"""What an admin can do about an index that can't be used."""
MiB, GiB = 1024**2, 1024**3
_SCHEMA = 1
_PATIENCE = 30.0  # seconds for another process to be done with the file
_IDS = 2**53  # those of JavaScript's numbers
_REMEMBERED = 90 * 86400.0  # seconds for which it is known who asked; the history has as many
_UNUSED = 7 * 86400.0  # seconds after which an entry goes before all that was used since
# Bytes: what an entry takes of the disk beside its content and its names, which are in the index
# twice. The last block of a file is half empty on the average.
_BESIDE = 4096
_TAKEN = "entries.size + beside"
# Of the whole cache: entries of the same content take its room once.
ENTRIES = "(SELECT count(*) FROM entries)"
BYTES = (
    "(SELECT coalesce(sum(size), 0) FROM blobs) + (SELECT coalesce(sum(beside), 0) FROM entries)"
)
# Repositories' names are the same in any case, as forges have it; refs and keys are not.
_TABLES = """
CREATE TABLE IF NOT EXISTS blobs (digest TEXT PRIMARY KEY, size INTEGER, blocks BLOB);
CREATE TABLE IF NOT EXISTS entries (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id INTEGER UNIQUE,
    repository TEXT COLLATE NOCASE,
    ref TEXT,
    version TEXT,
    key TEXT,
    digest TEXT,
    size INTEGER,
    offered INTEGER,
    created REAL,
    used REAL,
    UNIQUE (repository, ref, version, key)
);
CREATE INDEX IF NOT EXISTS by_use ON entries (used);
CREATE INDEX IF NOT EXISTS by_repository ON entries (repository, used);
CREATE INDEX IF NOT EXISTS by_digest ON entries (digest);
CREATE TABLE IF NOT EXISTS forge (url TEXT);
CREATE TABLE IF NOT EXISTS repositories (
    repository TEXT PRIMARY KEY COLLATE NOCASE,
    hits INTEGER DEFAULT 0,
    misses INTEGER DEFAULT 0,
    saved INTEGER DEFAULT 0,
    served INTEGER DEFAULT 0,
    forge_id INTEGER DEFAULT 0
);
CREATE TABLE IF NOT EXISTS runs (
    machine TEXT PRIMARY KEY,
    repository TEXT COLLATE NOCASE,
    hits INTEGER,
    asked REAL
);
CREATE INDEX IF NOT EXISTS by_time ON runs (asked);
"""
# What came later needs no new format, which an older vmrunner would refuse.
_LATER = (("entries", "beside", f"INTEGER NOT NULL DEFAULT {_BESIDE}"),)


@dataclass(frozen=True)
class Limits:
    """How much the cache may take, in bytes and numbers."""

    most: int = 20 * GiB
    most_per_repository: int = 5 * GiB
    keep_free: int = GiB  # of the disk, which is not the cache's alone
    entries: int = 100_000
    entries_per_repository: int = 10_000
    uploads: int = 16  # of one machine at the same time
    ranges: int = 1000  # with gaps between them, of one upload
    idle: float = 600.0  # seconds until an upload is dropped of which nothing comes

    @classmethod
    def of(cls, settings: CacheConfig) -> Limits:
        """An admin's."""
        return cls(settings.max * MiB, settings.max_per_repository * MiB)


@dataclass(frozen=True)
class Found:
    """An entry that fits what was asked for."""

    id: int
    key: str
    size: int  # bytes


@dataclass(frozen=True)
class Figures:
    """What a repository has in the cache, and had of it."""

    repository: str
    entries: int
    bytes: int
    hits: int
    misses: int
    bytes_stored: int  # uploaded, in all
    bytes_served: int
    seconds_saved: float | None = (
        None  # by jobs that found something; None where nothing is measured
    )


@dataclass(frozen=True)
class Removed:
    """What went, and the bytes that are free again: entries of the same content take its room
    once.
    """

    entries: int
    bytes: int


@dataclass(frozen=True)
class _Gone:
    """An entry that had to go."""

    repository: str  # in small letters
    taken: int  # bytes of its repository's
    freed: int  # bytes of the disk


class _InTheWay(Exception):
    """This repository would have to give, and has no entry."""

    def __init__(self, repository: str) -> None:
        super().__init__(repository)
        self.repository = repository


class Store:
    """The folder of a cache. Its calls may come from many threads."""

    def __init__(
        self,
        folder: Path,
        limits: Limits,
        warn: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises ConfigError."""
        self.folder, self.limits = folder, limits
        self._warn, self._clock = warn, clock
        self._lock = threading.RLock()
        self._blobs = Blobs(folder / "blobs")
        self._going: set[str] = set()  # contents that this change removes
        try:
            make_folder(folder, 0o700)
            self._database = _open(folder / INDEX)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"The cache {folder} can't be used: {error}.",
                "It is the service's own; run it with sudo, or as the service's user. What is in "
                "there may be removed at any time while the service is stopped.",
            ) from None

    def close(self) -> None:
        """Done with it."""
        self._database.close()

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """One change, all of it or nothing. Raises Refused where the disk is full."""
        with self._lock:
            try:
                self._database.execute("BEGIN IMMEDIATE")
                try:
                    yield self._database
                except BaseException:
                    self._database.execute("ROLLBACK")
                    raise
                for digest in self._going:
                    self._blobs.remove(digest)
                self._database.execute("COMMIT")
            except sqlite3.Error as error:
                if self._database.in_transaction:
                    with suppress(sqlite3.Error):
                        self._database.execute("ROLLBACK")
                raise Refused(Why.NO_ROOM, f"The cache can't write its index: {error}.") from None
            finally:
                self._going.clear()

    def alone(self) -> AbstractContextManager[object]:
        """Nobody else looks at what is kept, or changes it, in this block."""
        return self._lock

    def belong_to(self, forge: str) -> None:
        """What was kept for jobs of another forge goes: a repository of the same name and id is
        another one there. Raises Refused.
        """
        with self._change() as database:
            row = database.execute("SELECT url FROM forge").fetchone()
            if row and row[0] == forge:
                return
            database.execute("DELETE FROM forge")
            database.execute("INSERT INTO forge VALUES (?)", (forge,))
            if not row:
                return
            names = database.execute("SELECT repository FROM repositories").fetchall()
            gone = [self._forget(database, name) for (name,) in names if name]
        self._warn(
            f"The cache was that of {row[0]}, and is that of {forge} now: "
            f"{sum(each.entries for each in gone)} entries are removed."
        )

    def recognise(self, rights: Rights) -> None:
        """What was kept for another repository of this name, which is no more or has another name
        now, goes: it may be somebody else's. Raises Refused.
        """
        name, id_ = rights.repository, rights.repository_id
        if not id_ or self._forge_id(name) == id_:
            return
        with self._change() as database:
            if self._forge_id(name) not in (0, id_):
                self._forget(database, name)
            _count(database, name, "misses", 0)  # that there is one
            database.execute(
                "UPDATE repositories SET forge_id = ? WHERE repository = ?", (id_, name)
            )

    def _is_its_name(self, rights: Rights) -> bool:
        """Whether the entries of this name are this repository's. Between two steps of a request
        a job of another one, that had the name before, may have been recognised.
        """
        id_ = rights.repository_id
        return not id_ or self._forge_id(rights.repository) in (0, id_)

    def _forge_id(self, repository: str) -> int:
        with self._lock:
            row = self._database.execute(
                "SELECT forge_id FROM repositories WHERE repository = ?", (repository,)
            ).fetchone()
        return int(row[0]) if row else 0

    # ---- what is looked for

    def find(self, rights: Rights, keys: Sequence[str], version: str) -> Found | None:
        """The entry that fits best: scope by scope; in each of them key by key, the one of this
        name, then the newest one whose name begins with it.
        """
        with self._lock:
            found = self._whole(rights, keys, version) if self._is_its_name(rights) else None
        with suppress(Refused), self._change() as database:  # figures alone
            _count(database, rights.repository, "misses" if found is None else "hits", 1)
            self._remember(database, rights, found)
            if found:
                database.execute(
                    "UPDATE entries SET used = ? WHERE id = ?", (self._clock(), found.id)
                )
        return found

    def _remember(self, database: sqlite3.Connection, rights: Rights, found: Found | None) -> None:
        """Whether a job found anything, for what that was worth (`worth`)."""
        now = self._clock()
        database.execute("DELETE FROM runs WHERE asked < ?", (now - _REMEMBERED,))
        database.execute(
            "INSERT INTO runs VALUES (?, ?, ?, ?) "
            "ON CONFLICT (machine) DO UPDATE SET hits = hits + excluded.hits",
            (rights.machine, rights.repository, int(found is not None), now),
        )

    def _whole(self, rights: Rights, keys: Sequence[str], version: str) -> Found | None:
        while row := self._best(rights, keys, version):
            id_, key, size, digest, blocks = row
            try:
                self._blobs.open(digest, size, blocks).close()
            except Corrupt as error:
                if self.spoil(digest, str(error)):
                    continue
                return None
            return Found(id_, key, size)
        return None

    def _best(
        self, rights: Rights, keys: Sequence[str], version: str
    ) -> tuple[int, str, int, str, bytes] | None:
        scopes: list[tuple[str, tuple[str, ...]]] = [
            ("repository = ? AND ref = ?", (rights.repository, ref)) for ref in rights.reads
        ]
        if rights.shared:
            places = ", ".join("?" * len(rights.shared))
            scopes.append((f"repository IN ({places}) AND offered", rights.shared))
        for scope, of in scopes:
            for key in keys:
                for fits, with_ in (
                    ("key = ?", (key,)),
                    ("key >= ? AND substr(key, 1, ?) = ?", (key, len(key), key)),
                ):
                    row: tuple[int, str, int, str, bytes] | None = self._database.execute(
                        "SELECT id, key, entries.size, digest, blocks FROM entries "  # noqa: S608 — our own words
                        f"JOIN blobs USING (digest) WHERE {scope} AND version = ? AND {fits} "
                        "ORDER BY number DESC LIMIT 1",
                        (*of, version, *with_),
                    ).fetchone()
                    if row:
                        return row
        return None

    def has(self, rights: Rights, key: str, version: str) -> bool:
        """Whether there is an entry already where the job would write."""
        with self._lock:
            return bool(
                self._database.execute(
                    "SELECT 1 FROM entries WHERE repository = ? AND ref = ? AND version = ? "
                    "AND key = ?",
                    (rights.repository, rights.writes, version, key),
                ).fetchone()
            )

    def open(self, rights: Rights, id_: int) -> Content:
        """The content of an entry that the job may read, to be closed. Raises Refused."""
        with self._lock:
            is_its_name = self._is_its_name(rights)
            row = self._database.execute(
                "SELECT repository, ref, offered, digest, entries.size, blocks FROM entries "
                "JOIN blobs USING (digest) WHERE id = ?",
                (id_,),
            ).fetchone()
        if not is_its_name or not row or not _may_read(rights, *row[:3]):
            raise Refused(Why.UNKNOWN, "There is no such archive for this job.")
        digest, size, blocks = row[3:]
        try:
            return self._blobs.open(digest, size, blocks)
        except Corrupt as error:
            self.spoil(digest, str(error))
            raise Refused(Why.UNKNOWN, "This archive is no more.") from None

    def served(self, repository: str, size: int) -> None:
        """So many bytes went to a job of this repository."""
        with suppress(Refused), self._change() as database:
            _count(database, repository, "served", size)

    def spoil(self, digest: str, reason: str) -> bool:
        """A content is not what was stored: its entries go, and it is told; whether they could."""
        try:
            with self._change() as database:
                rows = database.execute(
                    "DELETE FROM entries WHERE digest = ? RETURNING repository, key", (digest,)
                ).fetchall()
                self._drop_blob(database, digest)
        except Refused:
            return False
        for repository, key in rows:
            self._warn(
                f"A cache entry of {repository} is removed, {key!r}: {reason}. Look at the disk of "
                f"{self.folder}."
            )
        return True

    # ---- what comes and goes

    def add(
        self, rights: Rights, key: str, version: str, part: Path, size: int, digests: bytes
    ) -> None:
        """A file becomes an entry. Raises Refused; OSError."""
        digest = blobs.of_all(digests)
        try:
            self._add(rights, key, version, part, size, digests, digest)
        except BaseException:
            with self._lock:
                if not self._database.execute(
                    "SELECT 1 FROM blobs WHERE digest = ?", (digest,)
                ).fetchone():
                    self._blobs.remove(digest)
            raise

    def _add(
        self,
        rights: Rights,
        key: str,
        version: str,
        part: Path,
        size: int,
        digests: bytes,
        digest: str,
    ) -> None:
        now = self._clock()
        with self._change() as database:
            if not self._is_its_name(rights):
                raise Refused(Why.MAY_NOT, "This repository's name is another one's now.")
            if self.has(rights, key, version):
                raise Refused(Why.TAKEN, "There is an entry of this key already.")
            self._blobs.put(part, digest)
            database.execute(
                "INSERT OR IGNORE INTO blobs VALUES (?, ?, ?)", (digest, size, digests)
            )
            database.execute(
                "INSERT INTO entries (id, repository, ref, version, key, digest, size, offered, "
                "created, used, beside) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(new_id(), rights.repository, rights.writes, version, key, digest, size),
                    *(rights.offers, now, now, beside(rights, key, version, size)),
                ),
            )
            _count(database, rights.repository, "saved", size)
            (own,) = database.execute(
                "SELECT count(*) FROM entries WHERE repository = ?", (rights.repository,)
            ).fetchone()
            for _ in range(own - self.limits.entries_per_repository):
                self._drop_oldest(database, "repository = ?", rights.repository)
            (all_,) = database.execute("SELECT count(*) FROM entries").fetchone()
            self._share(
                database,
                all_ - self.limits.entries,
                lambda: _by_repository(database, "count(*)"),
                lambda _: (1, 1),
            )

    def make_room(self, repository: str, look: Callable[[], Mapping[str, int]]) -> str | None:
        """Let entries go until what comes, in bytes by repository, has room beside them: first the
        repository's own, for its bound, then whoever's have to give way. None where it has room;
        else nothing goes, and it is the repository whose coming bytes are in the way. `look` says
        what comes, and is asked when nothing of it can become an entry meanwhile. Raises Refused.
        """
        try:
            with self._change() as database:
                coming = look()
                own = coming.get(repository.lower(), 0)
                taken = _by_repository(database, f"sum({_TAKEN})", repository)
                over = taken[repository.lower()] + own - self.limits.most_per_repository
                while over > 0:
                    over -= self._drop_oldest_of(database, repository).taken
                self._share(
                    database,
                    self._taken(database).bytes + sum(coming.values()) - self.limits.most,
                    lambda: _by_repository(database, f"sum({_TAKEN})") + Counter(coming),
                    lambda gone: (gone.taken, gone.freed),
                )
        except _InTheWay as error:
            return error.repository
        return None

    def _share(
        self,
        database: sqlite3.Connection,
        over: int,
        taken: Callable[[], Counter[str]],
        count: Callable[[_Gone], tuple[int, int]],
    ) -> None:
        """Let entries go until nothing is over: what nobody uses any more, then of those who have
        the most. `count` says what an entry took of its repository, and of all: contents may be
        shared. Raises _InTheWay.
        """
        if over <= 0:
            return
        # Summed up once, not after each of what may be thousands that go: others wait for it.
        has, unused = taken(), self._clock() - _UNUSED
        while over > 0:
            gone = self._drop_oldest(database, "used < ?", unused)
            gone = gone or self._drop_oldest_of(database, shares.giver(has))
            own, all_ = count(gone)
            has[gone.repository] -= own
            over -= all_

    def _drop_oldest_of(self, database: sqlite3.Connection, repository: str) -> _Gone:
        gone = self._drop_oldest(database, "repository = ?", repository)
        if gone is None:
            raise _InTheWay(repository.lower())
        return gone

    def _drop_oldest(self, database: sqlite3.Connection, where: str, value: object) -> _Gone | None:
        """The one that was used longest ago; None where there is none."""
        row = database.execute(
            f"SELECT id, repository, {_TAKEN} FROM entries WHERE {where} "  # noqa: S608 — our own words
            "ORDER BY used, number LIMIT 1",
            (value,),
        ).fetchone()
        if row is None:
            return None
        id_, repository, taken = row
        return _Gone(repository.lower(), taken, self._drop(database, "id = ?", (id_,)).bytes)

    def _drop(
        self, database: sqlite3.Connection, where: str, values: tuple[object, ...]
    ) -> Removed:
        gone = database.execute(
            f"DELETE FROM entries WHERE {where} RETURNING digest, beside",  # noqa: S608 — our own words
            values,
        ).fetchall()
        freed = sum(beside for _, beside in gone)
        for digest in {digest for digest, _ in gone}:
            if not database.execute("SELECT 1 FROM entries WHERE digest = ?", (digest,)).fetchone():
                freed += self._drop_blob(database, digest)
        return Removed(len(gone), freed)

    def _drop_blob(self, database: sqlite3.Connection, digest: str) -> int:
        row = database.execute(
            "DELETE FROM blobs WHERE digest = ? RETURNING size", (digest,)
        ).fetchone()
        self._going.add(digest)
        return int(row[0]) if row else 0

    def clear(self, repository: str) -> Removed:
        """All entries of a repository, and its figures, go. Raises Refused."""
        with self._change() as database:
            return self._forget(database, repository)

    def _forget(self, database: sqlite3.Connection, repository: str) -> Removed:
        row = database.execute(
            "DELETE FROM repositories WHERE repository = ? RETURNING hits, misses, saved, served",
            (repository,),
        ).fetchone()
        # What was counted in all never becomes less: a row without a name has it.
        for column, number in zip(("hits", "misses", "saved", "served"), row or (), strict=False):
            _count(database, "", column, number)
        database.execute("DELETE FROM runs WHERE repository = ?", (repository,))
        return self._drop(database, "repository = ?", (repository,))

    def prune(self, unused: float | None = None) -> Removed:
        """Entries that nobody used for so many seconds, and what is beyond the limits. Raises
        Refused.
        """
        with self._change() as database:
            before = self._taken(database)
            if unused is not None:
                self._drop(database, "used < ?", (self._clock() - unused,))
            repositories = database.execute("SELECT DISTINCT repository FROM entries").fetchall()
        for (repository,) in repositories:
            self.make_room(repository, dict)
        with self._lock:
            after = self._taken(self._database)
        return Removed(before.entries - after.entries, before.bytes - after.bytes)

    def _taken(self, database: sqlite3.Connection) -> Removed:
        """All that there is."""
        return Removed(*database.execute(f"SELECT {ENTRIES}, {BYTES}").fetchone())

    def sweep(self) -> None:
        """What a kill has left, files without an entry, is removed: for who starts the service,
        before it takes anything. Raises Refused.
        """
        with self._change() as database:
            known = {digest for (digest,) in database.execute("SELECT digest FROM blobs")}
            for digest in self._blobs.all():
                if digest not in known:
                    self._blobs.remove(digest)

    def check_disk(self, size: int) -> None:
        """Raises Refused where the disk has no room for so many bytes more."""
        disk = os.statvfs(self.folder)
        if disk.f_bavail * disk.f_frsize - size < self.limits.keep_free:
            raise Refused(
                Why.NO_ROOM,
                f"The host's disk has no room: {in_words(self.limits.keep_free)} of it stay free.",
            )

    def figures(self, saved: Mapping[str, float] | None = None) -> list[Figures]:
        """Of each repository, by name; `saved`: its seconds, see `worth`."""
        saved = saved or {}
        with self._lock:
            return [
                replace(Figures(*row), seconds_saved=saved.get(row[0].lower()))
                for row in self._database.execute(
                    f"SELECT repository, count(id), coalesce(sum({_TAKEN}), 0), hits, misses, "  # noqa: S608 — our own words
                    "saved, served FROM repositories LEFT JOIN entries USING (repository) "
                    "WHERE repository != '' "
                    "GROUP BY repository ORDER BY repository"
                )
            ]


def new_id() -> int:
    """One that nobody guesses, and that says nothing about how many there are."""
    return secrets.randbelow(_IDS - 1) + 1


def _may_read(rights: Rights, repository: str, ref: str, offered: int) -> bool:
    if repository.lower() == rights.repository.lower():
        return ref in rights.reads
    return bool(offered) and repository.lower() in {each.lower() for each in rights.shared}


def beside(rights: Rights, key: str, version: str, size: int) -> int:
    """The bytes of the disk that an entry takes beside its content."""
    names = "".join((rights.repository, rights.writes or "", version, key))
    return _BESIDE + blobs.DIGEST * blobs.count(size) + 2 * len(names.encode())


def _by_repository(
    database: sqlite3.Connection, what: str, repository: str | None = None
) -> Counter[str]:
    """What entries add up to, of each repository or of one."""
    where, values = ("WHERE repository = ?", (repository,)) if repository else ("", ())
    rows = database.execute(
        f"SELECT repository, {what} FROM entries {where} GROUP BY repository",  # noqa: S608 — our own words
        values,
    )
    return Counter({name.lower(): much for name, much in rows})


def _count(database: sqlite3.Connection, repository: str, column: str, more: int) -> None:
    database.execute(
        f"INSERT INTO repositories (repository, {column}) VALUES (?, ?) "  # noqa: S608 — our own words
        f"ON CONFLICT (repository) DO UPDATE SET {column} = {column} + excluded.{column}",
        (repository, more),
    )


def _add_later(database: sqlite3.Connection) -> None:
    def lacks() -> list[tuple[str, str, str]]:
        return [
            (table, column, kind)
            for table, column, kind in _LATER
            if column not in {row[1] for row in database.execute(f"PRAGMA table_info({table})")}
        ]

    if lacks():
        database.execute("BEGIN IMMEDIATE")  # another process may be about to do the same
        for table, column, kind in lacks():
            database.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")
        database.execute("COMMIT")


def _open(path: Path) -> sqlite3.Connection:
    if not path.exists():
        # Before the first look: what sqlite puts beside the file takes its mode, and its owner.
        path.touch(0o600)
        hand_over(path, path.parent)
    database = sqlite3.connect(
        path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
    )
    try:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version not in (0, _SCHEMA):
            raise sqlite3.DatabaseError(f"it has the format {version}, not {_SCHEMA}")
        # Without a sync at each change: what a power cut spoils is found by its digest.
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA journal_mode = WAL")
        database.executescript(_TABLES)
        _add_later(database)
        database.execute(f"PRAGMA user_version = {_SCHEMA}")
    except BaseException:
        database.close()
        raise
    return database
