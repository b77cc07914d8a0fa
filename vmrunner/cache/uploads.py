"""What is on its way into the cache: files in a folder of their own, and in memory whose they are.
Nothing of it survives the process.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from vmrunner.cache import blobs
from vmrunner.cache.blobs import BLOCK
from vmrunner.cache.refused import Refused, Why
from vmrunner.cache.rights import Rights
from vmrunner.cache.store import MiB, Store, beside, new_id
from vmrunner.files import hand_over, make_folder
from vmrunner.text import size as in_words

_STEP = 16 * MiB  # for which an upload gets room at once


class Ranges:
    """Which bytes of a whole are there: disjoint ranges, in order."""

    def __init__(self) -> None:
        self._begins: list[int] = []
        self._ends: list[int] = []

    def __len__(self) -> int:
        return len(self._begins)

    @property
    def bytes(self) -> int:
        """How many."""
        return sum(self._ends) - sum(self._begins)

    def add(self, begin: int, end: int) -> None:
        """The bytes from `begin` up to `end`, without that one."""
        first, last = bisect_left(self._ends, begin), bisect_right(self._begins, end)
        if first < last:
            begin, end = min(begin, self._begins[first]), max(end, self._ends[last - 1])
        self._begins[first:last], self._ends[first:last] = [begin], [end]

    def is_all(self, size: int) -> bool:
        """Whether it is the whole of so many bytes, and nothing beyond."""
        return self._begins == [0] and self._ends == [size]


@dataclass
class Upload:
    """One upload. `lock` is held by who changes it or its file."""

    id: int
    address: str
    rights: Rights
    key: str
    version: str
    most: int  # bytes
    path: Path
    fd: int
    touched: float
    granted: int = 0  # bytes for which there is room
    there: Ranges = field(default_factory=Ranges)
    known: dict[int, bytes] = field(default_factory=dict)  # digests of whole blocks
    # Of a block that is there in part: who has written all of it so far. Two that write into one
    # block each know a digest of what is not in the file.
    writers: dict[int, Part] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    size: int = -1  # of the entry that it has become
    is_over: bool = False


class Part:
    """Bytes of an upload as they come, one after the other: `at` is where the next one goes, and
    `end` is behind the last one.
    """

    def __init__(self, upload: Upload, begin: int, end: int) -> None:
        self.upload, self.at, self.end = upload, begin, end
        # Of the block that is coming; None where it is not seen from its beginning.
        self._block = hashlib.sha256() if begin % BLOCK == 0 else None

    def digests(self, data: bytes | memoryview) -> dict[int, bytes]:
        """Those of the blocks that are whole with these bytes."""
        found, at, rest = {}, self.at, memoryview(data)
        while rest:
            index, piece = at // BLOCK, rest[: BLOCK - at % BLOCK]
            rest, at = rest[len(piece) :], at + len(piece)
            if self._block:
                self._block.update(piece)
            if at % BLOCK == 0:
                if self._block:
                    found[index] = self._block.digest()
                self._block = hashlib.sha256()
        return found


class Uploads:
    """All of them. Its calls may come from many threads."""

    def __init__(
        self,
        store: Store,
        who: Callable[[str], Rights | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`who` is behind an address now. Raises OSError."""
        self._store, self._limits, self._who, self._clock = store, store.limits, who, clock
        self._folder = store.folder / "uploads"
        self._lock = threading.Lock()
        self._all: dict[int, Upload] = {}
        make_folder(self._folder, 0o700)

    def sweep(self) -> None:
        """What another process had not brought to its end is removed. Raises OSError."""
        for path in self._folder.iterdir():
            path.unlink()

    def reserve(
        self, address: str, rights: Rights, key: str, version: str, size: int | None
    ) -> int:
        """The id of a new upload; `size` where it is known. Raises Refused; OSError."""
        if rights.writes is None:
            raise Refused(Why.MAY_NOT, "This job may read the cache, and not write it.")
        most = self._limits.most_per_repository
        if size is not None and size + beside(rights, key, version, size) > most:
            raise Refused(
                Why.TOO_LARGE,
                f"{in_words(size)} are more than the cache keeps for a repository, which is "
                f"{in_words(most)}.",
            )
        if self._store.has(rights, key, version):
            raise Refused(Why.TAKEN, "There is an entry of this key already.")
        self._store.check_disk(size or 0)
        self.expire()
        self._end_abandoned(address, rights, key, version)
        with self._lock:
            living = self._living()
            if any(_is_same(each, rights, key, version) for each in living):
                raise Refused(Why.TAKEN, "Another job is just saving an entry of this key.")
            if sum(each.address == address for each in living) >= self._limits.uploads:
                raise Refused(
                    Why.TOO_MANY,
                    f"This machine has {self._limits.uploads} uploads that are not finished.",
                )
            self._forget_old(address)
            id_ = new_id()
            path = self._folder / str(id_)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            hand_over(fd, self._folder)
            self._all[id_] = Upload(
                *(id_, address, rights, key, version, min(most, size or most), path, fd),
                touched=self._clock(),
            )
            return id_

    def _forget_old(self, address: str) -> None:
        """Of a machine's uploads that are over only the last are remembered, for who has lost the
        answer.
        """
        over = [each for each in self._all.values() if each.address == address and each.is_over]
        for each in over[: -self._limits.uploads]:
            del self._all[each.id]

    def _living(self) -> list[Upload]:
        return [each for each in self._all.values() if not each.is_over]

    def _end_abandoned(self, address: str, rights: Rights, key: str, version: str) -> None:
        """An upload of this key whose machine tries again, or has gone, keeps nobody waiting."""
        with self._lock:
            same = [each for each in self._living() if _is_same(each, rights, key, version)]
        for each in same:
            if each.address == address or self._who(each.address) != each.rights:
                self._drop(each)

    def _of(self, address: str, rights: Rights, id_: int) -> Upload:
        upload = self._all.get(id_)
        if upload is None or (upload.address, upload.rights) != (address, rights):
            raise Refused(Why.UNKNOWN, "There is no such upload of this machine.")
        return upload

    def claim(self, address: str, rights: Rights, id_: int, begin: int, end: int) -> Part:
        """Somebody is about to send these bytes (without the one at `end`). Raises Refused."""
        upload = self._of(address, rights, id_)
        if upload.is_over:
            raise Refused(Why.TAKEN, "This upload is over; an entry never changes.")
        if end > upload.most:
            raise Refused(Why.TOO_LARGE, f"This upload may have {upload.most} bytes at most.")
        self._store.check_disk(end - begin)
        upload.touched = self._clock()
        return Part(upload, begin, end)

    def _grant(self, upload: Upload, more: int) -> None:
        """Have room for so many bytes more. Not for all that is announced: others' entries go for
        what comes, not for words. Raises Refused.
        """
        with self._lock:
            if (wanted := upload.there.bytes + more) <= upload.granted:
                return
            before, upload.granted = upload.granted, min(upload.most, wanted + _STEP)
        try:
            # Several parts that were announced at the same time had room each, and not together.
            self._store.check_disk(more)
            self._make_room(upload.rights.repository)
        except Refused:
            upload.granted = before
            raise

    def _make_room(self, repository: str) -> None:
        while giver := self._store.make_room(repository, self._coming):
            if giver == repository.lower() or not self._end_one_of(giver):
                raise Refused(
                    Why.NO_ROOM,
                    f"The cache has no room for more of {repository}: see `max` and "
                    "`max_per_repository`.",
                )

    def _coming(self) -> Counter[str]:
        """The bytes that have room and are no entry yet, by repository."""
        coming: Counter[str] = Counter()
        with self._lock:
            for each in self._living():
                if each.granted:
                    more = beside(each.rights, each.key, each.version, each.granted)
                    coming[each.rights.repository.lower()] += each.granted + more
        return coming

    def _end_one_of(self, repository: str) -> bool:
        """Who has the most gives way, also where nothing of it is an entry yet; whether there was
        an upload to end.
        """
        with self._lock:
            same = [each for each in self._living() if each.rights.repository.lower() == repository]
        if same:
            self._drop(min(same, key=lambda each: each.touched))
        return bool(same)

    def write(self, part: Part, data: bytes | memoryview) -> None:
        """The next bytes of a part. Raises Refused; OSError."""
        upload, end = part.upload, part.at + len(data)
        if end > part.end:
            raise Refused(Why.WRONG, "More bytes came than Content-Range says.")
        whole = part.digests(data)
        self._grant(upload, len(data))
        with upload.lock:
            if upload.is_over:
                raise Refused(Why.TAKEN, "This upload is over; an entry never changes.")
            upload.touched = self._clock()
            # Until it is written nothing is known of it.
            for index in range(part.at // BLOCK, blobs.count(end)):
                upload.known.pop(index, None)
                is_alone = part.at <= index * BLOCK or upload.writers.get(index) is part
                upload.writers.pop(index, None)
                if not is_alone:
                    whole.pop(index, None)
                elif end < (index + 1) * BLOCK:
                    upload.writers[index] = part
            _write_all(upload.fd, data, part.at)
            upload.there.add(part.at, end)
            if len(upload.there) > self._limits.ranges:
                raise Refused(Why.TOO_MANY, "This upload comes in too many pieces.")
            upload.known |= whole
            part.at = end

    def commit(self, address: str, rights: Rights, id_: int, size: int) -> None:
        """It becomes an entry, unless that is not what came. Raises Refused; OSError.

        Who has lost the answer may ask again.
        """
        upload = self._of(address, rights, id_)
        with upload.lock:
            if upload.is_over:
                if upload.size == size:
                    return
                raise Refused(Why.TAKEN, "This upload is over; an entry never changes.")
            try:
                if size <= 0 or not upload.there.is_all(size):
                    raise Refused(
                        Why.WRONG, f"Of {size} bytes {upload.there.bytes} have come; none is kept."
                    )
                known = blobs.digests(upload.path, size, upload.known)
                with self._store.alone():
                    self._store.add(rights, upload.key, upload.version, upload.path, size, known)
                    upload.granted = 0  # an entry now: nobody counts it twice
                upload.size = size
            finally:
                self._end(upload)

    def drop(self, address: str, rights: Rights, id_: int) -> None:
        """Nothing will come of it. Its id stays known for a while, as one that is over."""
        with suppress(Refused):
            self._drop(self._of(address, rights, id_))

    def _drop(self, upload: Upload) -> None:
        with upload.lock:
            if not upload.is_over:
                self._end(upload)

    def _end(self, upload: Upload) -> None:
        upload.is_over = True
        upload.known.clear()
        upload.writers.clear()
        os.close(upload.fd)
        with suppress(FileNotFoundError):
            upload.path.unlink()

    def expire(self) -> None:
        """Those of which nothing has come for long are no more."""
        before = self._clock() - self._limits.idle
        with self._lock:
            old = [each for each in self._all.values() if each.touched < before]
            for each in old:
                del self._all[each.id]
        for each in old:
            self._drop(each)


def _is_same(upload: Upload, rights: Rights, key: str, version: str) -> bool:
    its = upload.rights
    return (its.repository.lower(), its.writes, upload.key, upload.version) == (
        rights.repository.lower(),
        rights.writes,
        key,
        version,
    )


def _write_all(fd: int, data: bytes | memoryview, begin: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest, begin)
        rest, begin = rest[written:], begin + written
