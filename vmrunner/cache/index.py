"""The index's file, in sqlite: its tables, and sums of them that are kept as they change."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from vmrunner.files import hand_over

INDEX = "index.sqlite"
"""The file in a cache's folder that says what is in there."""
# Bytes: what an entry takes of the disk beside its content and its names, which are in the index
# twice. The last block of a file is half empty on the average.
BESIDE = 4096
_SCHEMA = 1
_PATIENCE = 30.0  # seconds for another process to be done with the file
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
_LATER = (("entries", "beside", f"INTEGER NOT NULL DEFAULT {BESIDE}"),)
# What there is of each repository, and of all, in entries and bytes: summed up anew for each upload
# it would take tenths of a second, in which everybody waits. Entries of the same content take its
# room once. Triggers keep it right also where an older vmrunner changes something.
_SUMS = (
    """
    CREATE TABLE kept (repository TEXT PRIMARY KEY COLLATE NOCASE, entries INTEGER, bytes INTEGER)
    """,
    "CREATE TABLE whole (entries INTEGER, bytes INTEGER)",
    """
    INSERT INTO kept SELECT repository, count(*), sum(size + beside) FROM entries
    GROUP BY repository
    """,
    """
    INSERT INTO whole VALUES (
        (SELECT count(*) FROM entries),
        (SELECT coalesce(sum(size), 0) FROM blobs)
        + (SELECT coalesce(sum(beside), 0) FROM entries)
    )
    """,
    """
    CREATE TRIGGER entry_came AFTER INSERT ON entries BEGIN
        INSERT OR IGNORE INTO kept VALUES (new.repository, 0, 0);
        UPDATE kept SET entries = entries + 1, bytes = bytes + new.size + new.beside
        WHERE repository = new.repository;
        UPDATE whole SET entries = entries + 1, bytes = bytes + new.beside;
    END
    """,
    """
    CREATE TRIGGER entry_went AFTER DELETE ON entries BEGIN
        UPDATE kept SET entries = entries - 1, bytes = bytes - old.size - old.beside
        WHERE repository = old.repository;
        DELETE FROM kept WHERE repository = old.repository AND entries = 0;
        UPDATE whole SET entries = entries - 1, bytes = bytes - old.beside;
    END
    """,
    """
    CREATE TRIGGER blob_came AFTER INSERT ON blobs BEGIN
        UPDATE whole SET bytes = bytes + new.size;
    END
    """,
    """
    CREATE TRIGGER blob_went AFTER DELETE ON blobs BEGIN
        UPDATE whole SET bytes = bytes - old.size;
    END
    """,
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


def _sum_up(database: sqlite3.Connection) -> None:
    def lacks() -> bool:
        return not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'whole'").fetchone()

    if lacks():
        database.execute("BEGIN IMMEDIATE")  # another process may be about to do the same
        if lacks():
            for statement in _SUMS:
                database.execute(statement)
        database.execute("COMMIT")


def open_index(path: Path) -> sqlite3.Connection:
    """Raises OSError; sqlite3.Error."""
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
        _sum_up(database)
        database.execute(f"PRAGMA user_version = {_SCHEMA}")
    except BaseException:
        database.close()
        raise
    return database
