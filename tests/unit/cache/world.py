"""A cache in a folder, and machines that use it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vmrunner.cache import blobs
from vmrunner.cache.blobs import BLOCK, Content
from vmrunner.cache.rights import Rights
from vmrunner.cache.store import Limits, Store
from vmrunner.cache.uploads import Uploads

MAIN, TOPIC, PULL = "refs/heads/main", "refs/heads/topic", "refs/pull/3/head"


def job(repository: str = "org/tool", writes: str | None = MAIN, **more: Any) -> Rights:
    reads = tuple(dict.fromkeys([writes, MAIN] if writes else [MAIN]))
    return Rights(repository, writes, reads, **more)


@dataclass
class World:
    """A store whose clock goes on by a second at each look."""

    folder: Path
    limits: Limits
    now: float = 1000.0
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = Store(self.folder, self.limits, self.told.append, self.clock)
        self.jobs: dict[str, Rights] = {}
        self.uploads = Uploads(self.store, self.jobs.get, lambda: self.now)

    def clock(self) -> float:
        self.now += 1
        return self.now

    def save(self, rights: Rights, key: str, data: bytes, version: str = "v") -> int:
        """As a machine does it."""
        id_ = self.uploads.reserve("a", rights, key, version, len(data))
        part = self.uploads.claim("a", rights, id_, 0, len(data))
        for begin in range(0, len(data), 1000):
            self.uploads.write(part, data[begin : begin + 1000])
        self.uploads.commit("a", rights, id_, len(data))
        return id_

    def find(self, rights: Rights, *keys: str, version: str = "v") -> str | None:
        found = self.store.find(rights, keys, version)
        return found and found.key

    def load(self, rights: Rights, key: str) -> bytes:
        found = self.store.find(rights, (key,), "v")
        assert found
        content = self.store.open(rights, found.id)
        try:
            return b"".join(block(content, each) for each in range(blobs.count(content.size)))
        finally:
            content.close()

    def files(self) -> list[Path]:
        return [each for each in (self.folder / "blobs").rglob("*") if each.is_file()]

    def keys(self) -> set[str]:
        with closing(sqlite3.connect(self.folder / "index.sqlite")) as database:
            return {key for (key,) in database.execute("SELECT key FROM entries")}


def block(content: Content, index: int) -> bytes:
    """One of its blocks."""
    return bytes(content.block(index, bytearray(BLOCK)))


Worlds = Callable[..., World]
