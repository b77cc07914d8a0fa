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

from vmrunner.cache import blobs
from vmrunner.cache.blobs import Blobs, Content, Corrupt
from vmrunner.cache.index import BESIDE, INDEX, open_index
from vmrunner.cache.refused import Refused, Why
from vmrunner.cache.rights import Rights
from vmrunner.cache.room import Choice, Going, InTheWay
from vmrunner.errors import ConfigError
from vmrunner.files import make_folder
from vmrunner.text import size as in_words

if TYPE_CHECKING:
    from vmrunner.config import CacheConfig

UNREADABLE = (
    "Is the disk full, or was it? What is in the cache may be removed at any time while the "
    "service is stopped."
)
"""What an admin can do about an index that can't be used."""
MiB, GiB = 1024**2, 1024**3
_IDS = 2**53  # those of JavaScript's numbers
_REMEMBERED = 90 * 86400.0  # seconds for which it is known who asked; the history has as many
# Entries that go in one change, in which others wait, and the seconds until the next one.
_STEP, _REST = 64, 0.002


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
class Much:
    """Entries, and their bytes of the disk: those of the same content take its room once."""

    entries: int = 0
    bytes: int = 0

    def __add__(self, other: Much) -> Much:
        return Much(self.entries + other.entries, self.bytes + other.bytes)

    def __sub__(self, other: Much) -> Much:
        return Much(self.entries - other.entries, self.bytes - other.bytes)


class Store:
    """The folder of a cache. Its calls may come from many threads."""

    def __init__(
        self,
        folder: Path,
        limits: Limits,
        warn: Callable[[str], None],
        clock: Callable[[], float] = time.time,
        rest: Callable[[float], object] = time.sleep,
    ) -> None:
        """Raises ConfigError."""
        self.folder, self.limits = folder, limits
        self._warn, self._clock, self._rest = warn, clock, rest
        self._lock = threading.RLock()
        self._blobs = Blobs(folder / "blobs")
        self._going: set[str] = set()  # contents that this change removes
        try:
            make_folder(folder, 0o700)
            self._database = open_index(folder / INDEX)
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
        aside: set[str] = set()
        try:
            with self._changing(aside) as database:
                yield database
        finally:
            # A large file takes its time, and nobody waits for that.
            self._blobs.throw_away(aside)

    @contextmanager
    def _changing(self, aside: set[str]) -> Iterator[sqlite3.Connection]:
        """The same; contents that go are put aside, and named."""
        with self._lock:
            try:
                self._database.execute("BEGIN IMMEDIATE")
                try:
                    yield self._database
                except BaseException:
                    self._database.execute("ROLLBACK")
                    raise
                aside |= self._going
                for digest in aside:
                    self._blobs.put_aside(digest)
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
            gone = sum((self._forget(database, name) for (name,) in names if name), Much())
        self._warn(
            f"The cache was that of {row[0]}, and is that of {forge} now: {gone.entries} entries "
            "are removed."
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
            found = self._sound(rights, keys, version) if self._is_its_name(rights) else None
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

    def _sound(self, rights: Rights, keys: Sequence[str], version: str) -> Found | None:
        while row := self._best(rights, keys, version):
            id_, key, size, digest, blocks = row
            try:
                self._blobs.open(digest, size, blocks).close()
            except Corrupt as error:
                if self.spoil(digest, str(error)):
                    continue
                return None
            return Found(id_, key)
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
            choice = Choice(database, now)
            own = self._kept(rights.repository).entries - self.limits.entries_per_repository
            choice.own(rights.repository, own, lambda _: 1)
            all_ = self._whole().entries - len(choice.entries) - self.limits.entries
            choice.share(all_, lambda: self._by_repository("entries"), lambda _: (1, 1))
            self._let_go(database, choice.entries)

    def make_room(self, repository: str, look: Callable[[], Mapping[str, int]]) -> str | None:
        """Let entries go until what comes, in bytes by repository, has room beside them: first the
        repository's own, for its bound, then whoever's have to give way. None where it has room;
        else it is the repository whose coming bytes are in the way, and nothing goes for it. `look`
        says what comes, and is asked when nothing of it can become an entry meanwhile. Raises
        Refused.

        Others get on between the steps, and may use what was to go: it stays, and others go.
        """
        while True:
            try:
                going = self._choose(repository, look)
            except InTheWay as error:
                return error.repository
            if not going:
                return None
            for begin in range(0, len(going), _STEP):
                with self._change() as database:
                    self._let_go(database, going[begin : begin + _STEP])
                self._rest(_REST)

    def _choose(self, repository: str, look: Callable[[], Mapping[str, int]]) -> list[Going]:
        with self._lock, _readable():
            coming, choice = Counter(look()), Choice(self._database, self._clock())
            own = self._kept(repository).bytes + coming[repository.lower()]
            choice.own(repository, own - self.limits.most_per_repository, lambda gone: gone.taken)
            freed = sum(each.freed for each in choice.entries)
            choice.share(
                self._whole().bytes - freed + sum(coming.values()) - self.limits.most,
                lambda: self._by_repository("bytes") + coming,
                lambda gone: (gone.taken, gone.freed),
            )
            return choice.entries

    def _let_go(self, database: sqlite3.Connection, going: Sequence[Going]) -> None:
        for each in going:
            self._drop(database, "number = ? AND used = ?", (each.number, each.used))

    def _drop(self, database: sqlite3.Connection, where: str, values: tuple[object, ...]) -> Much:
        gone = database.execute(
            f"DELETE FROM entries WHERE {where} RETURNING digest, beside",  # noqa: S608 — our own words
            values,
        ).fetchall()
        freed = sum(beside for _, beside in gone)
        for digest in {digest for digest, _ in gone}:
            if not database.execute("SELECT 1 FROM entries WHERE digest = ?", (digest,)).fetchone():
                freed += self._drop_blob(database, digest)
        return Much(len(gone), freed)

    def _drop_blob(self, database: sqlite3.Connection, digest: str) -> int:
        row = database.execute(
            "DELETE FROM blobs WHERE digest = ? RETURNING size", (digest,)
        ).fetchone()
        self._going.add(digest)
        return int(row[0]) if row else 0

    def clear(self, repository: str) -> Much:
        """All entries of a repository, and its figures, go. Raises Refused."""
        removed = self._drop_in_steps("repository = ?", repository)
        with self._change() as database:
            return removed + self._forget(database, repository)

    def _forget(self, database: sqlite3.Connection, repository: str) -> Much:
        row = database.execute(
            "DELETE FROM repositories WHERE repository = ? RETURNING hits, misses, saved, served",
            (repository,),
        ).fetchone()
        # What was counted in all never becomes less: a row without a name has it.
        for column, number in zip(("hits", "misses", "saved", "served"), row or (), strict=False):
            _count(database, "", column, number)
        database.execute("DELETE FROM runs WHERE repository = ?", (repository,))
        return self._drop(database, "repository = ?", (repository,))

    def prune(self, unused: float | None = None) -> Much:
        """Entries that nobody used for so many seconds, and what is beyond the limits. Raises
        Refused.
        """
        with self._lock:
            before = self._whole()
            repositories = list(self._by_repository("bytes"))
        if unused is not None:
            self._drop_in_steps("used < ?", self._clock() - unused)
        for repository in repositories:
            self.make_room(repository, dict)
        with self._lock:
            after = self._whole()
        return before - after

    def _drop_in_steps(self, where: str, value: object) -> Much:
        """All of these entries go, but for what comes meanwhile; others get on between the steps.
        Raises Refused.
        """
        some = f"number IN (SELECT number FROM entries WHERE {where} LIMIT {_STEP})"  # noqa: S608 — our own words
        all_ = Much(0, 0)
        while True:
            with self._change() as database:
                removed = self._drop(database, some, (value,))
            all_ += removed
            if removed.entries < _STEP:
                return all_
            self._rest(_REST)

    def _whole(self) -> Much:
        """All that there is."""
        return Much(*self._database.execute("SELECT entries, bytes FROM whole").fetchone())

    def _kept(self, repository: str) -> Much:
        """What there is of a repository; bytes of contents that others have, too, count."""
        row = self._database.execute(
            "SELECT entries, bytes FROM kept WHERE repository = ?", (repository,)
        ).fetchone()
        return Much(*(row or (0, 0)))

    def _by_repository(self, what: str) -> Counter[str]:
        """Its entries or bytes, of each, by the name in small letters."""
        rows = self._database.execute(f"SELECT repository, {what} FROM kept")  # noqa: S608 — our own words
        return Counter({name.lower(): much for name, much in rows})

    def sweep(self) -> None:
        """What a kill has left, files without an entry, is removed: for who starts the service,
        before it takes anything. Raises Refused.
        """
        with self._change() as database:
            known = {digest for (digest,) in database.execute("SELECT digest FROM blobs")}
            for digest in self._blobs.all():
                if digest not in known:
                    self._blobs.remove(digest)
            self._blobs.sweep()

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
                    "SELECT repository, coalesce(entries, 0), coalesce(bytes, 0), hits, misses, "
                    "saved, served FROM repositories LEFT JOIN kept USING (repository) "
                    "WHERE repository != '' ORDER BY repository"
                )
            ]


@contextmanager
def _readable() -> Iterator[None]:
    """Raises Refused where the index is not."""
    try:
        yield
    except sqlite3.Error as error:
        raise Refused(Why.NO_ROOM, f"The cache can't read its index: {error}.") from None


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
    return BESIDE + blobs.DIGEST * blobs.count(size) + 2 * len(names.encode())


def _count(database: sqlite3.Connection, repository: str, column: str, more: int) -> None:
    database.execute(
        f"INSERT INTO repositories (repository, {column}) VALUES (?, ?) "  # noqa: S608 — our own words
        f"ON CONFLICT (repository) DO UPDATE SET {column} = {column} + excluded.{column}",
        (repository, more),
    )
