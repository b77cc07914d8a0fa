"""The contents of the cache as files, each named by its digest, and read in blocks whose digests
are known: nothing leaves that is not what came in.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from vmrunner.files import make_folder

BLOCK = 256 * 1024  # bytes; the last block of a content may be shorter
DIGEST = hashlib.sha256().digest_size  # bytes
_HEX = frozenset("0123456789abcdef")


class Corrupt(Exception):
    """A content on the disk is not the one that was stored."""


def count(size: int) -> int:
    """How many blocks a content of so many bytes has."""
    return -(-size // BLOCK)


def of_block(block: bytes | bytearray | memoryview) -> bytes:
    """A block's digest."""
    return hashlib.sha256(block).digest()


def of_all(blocks: bytes) -> str:
    """A content's digest, as hex, by those of its blocks, one after the other: so a content that
    came in parallel parts need not be read again.
    """
    return hashlib.sha256(blocks).hexdigest()


def digests(part: Path, size: int, known: Mapping[int, bytes]) -> bytes:
    """Those of a file's blocks, one after the other; what is not known is read. Raises OSError."""
    found = []
    with part.open("rb") as file:
        for index in range(count(size)):
            if index in known:
                found.append(known[index])
            else:
                file.seek(index * BLOCK)
                found.append(of_block(file.read(min(BLOCK, size - index * BLOCK))))
    return b"".join(found)


class Content:
    """An open content, of one thread: `blocks` are its blocks' digests, one after the other."""

    def __init__(self, digest: str, size: int, blocks: bytes, fd: int) -> None:
        self.digest, self.size = digest, size  # bytes
        self._blocks, self._fd = blocks, fd

    def block(self, index: int, buffer: bytearray) -> memoryview:
        """One block, in a buffer that has room for any; raises Corrupt where it is not what was
        stored.
        """
        begin = index * BLOCK
        read = memoryview(buffer)[: min(BLOCK, self.size - begin)]
        try:
            much = os.preadv(self._fd, [read], begin)
        except OSError as error:
            raise Corrupt(f"it can't be read: {error.strerror}") from None
        if of_block(read[:much]) != self._blocks[index * DIGEST : (index + 1) * DIGEST]:
            raise Corrupt(f"its bytes from {begin} on are not what was stored")
        return read

    def close(self) -> None:
        """Done with it."""
        os.close(self._fd)


class Blobs:
    """A folder of contents. Only digests become names."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._aside = folder, folder / "aside"

    def path(self, digest: str) -> Path:
        """Where a content is, or would be."""
        return self._folder / digest[:2] / digest

    def put(self, part: Path, digest: str) -> None:
        """A file becomes the content of this digest. Raises OSError."""
        path = self.path(digest)
        make_folder(self._folder, 0o700)
        make_folder(path.parent, 0o700)
        # One that is there already may have gone bad since.
        part.replace(path)

    def remove(self, digest: str) -> None:
        """It is gone; who reads it reads on."""
        with suppress(FileNotFoundError):
            self.path(digest).unlink()

    def put_aside(self, digest: str) -> None:
        """It is gone, at once however large; `throw_away` gives its room back."""
        aside = self._aside / digest
        try:
            make_folder(self._aside, 0o700)
            self.path(digest).replace(aside)
        except OSError:  # there is none; or no room for another name
            self.remove(digest)

    def throw_away(self, digests: Iterable[str]) -> None:
        """What was put aside."""
        for digest in digests:
            with suppress(OSError):  # then the next start removes it
                (self._aside / digest).unlink()

    def sweep(self) -> None:
        """What a kill has left of what was put aside is removed. Raises OSError."""
        if self._aside.exists():
            self.throw_away(path.name for path in self._aside.iterdir())

    def open(self, digest: str, size: int, blocks: bytes) -> Content:
        """A content, to be closed. Raises Corrupt where there is none of this size."""
        try:
            fd = os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise Corrupt(f"it can't be read: {error.strerror}") from None
        there = os.fstat(fd).st_size
        if there != size or len(blocks) != count(size) * DIGEST:
            os.close(fd)
            raise Corrupt(f"it has {there} bytes, not {size}")
        return Content(digest, size, blocks, fd)

    def all(self) -> Iterator[str]:
        """The digests of all that is there."""
        for path in self._folder.glob("??/*"):
            if _HEX.issuperset(path.name):
                yield path.name
