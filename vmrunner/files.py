"""Files that change as a whole: whoever reads one finds the old content or the new one, also after
a kill or on a full disk.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

PART = ".part-"
"""What files begin with while they are written; the process's id follows, a dot, and what tells
them from others of that process.
"""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place beside `path` for its new content, which replaces it when the block ends; where the
    block fails it is removed.
    """
    # Neither another thread's nor another process's.
    part = path.with_name(f"{PART}{os.getpid()}.{secrets.token_hex(6)}")
    try:
        yield part
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def write_whole(
    path: Path, content: str, mode: int | None = None, *, durable: bool = False
) -> None:
    """Write a file, all of it or nothing of it. Raises OSError.

    It has this `mode` before anything is in it; without one it is as the umask wants it. `durable`:
    it is on the disk before it is seen.
    """
    with replacing(path) as part:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(
            os.open(part, flags, 0o666 if mode is None else mode & 0o600), "w", encoding="utf-8"
        ) as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            hand_over(file.fileno(), path.parent)
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())


class Read(Generic[T]):
    """What a file says that another process writes as a whole; it is read when it has changed."""

    def __init__(self, path: Path, understood: Callable[[bytes], T], nothing: T) -> None:
        self._path, self._understood, self._nothing = path, understood, nothing
        self._known: tuple[tuple[int, int, int], T] | None = None

    def now(self) -> T:
        """`nothing` where there is no file, or one of another version: what is `understood` of it
        may raise ValueError, KeyError or TypeError.
        """
        try:
            state = self._path.stat()
            mark = (state.st_ino, state.st_size, state.st_mtime_ns)
            if self._known and self._known[0] == mark:
                return self._known[1]
            found = self._understood(self._path.read_bytes())
        except (OSError, ValueError, KeyError, TypeError):
            return self._nothing
        self._known = (mark, found)
        return found


def make_folder(path: Path, mode: int = 0o777) -> None:
    """A folder that whoever owns the one above may use; see `hand_over`. Raises OSError."""
    path.mkdir(mode=mode, parents=True, exist_ok=True)
    hand_over(path, path.parent)


def hand_over(made: int | Path, folder: Path) -> None:
    """Give what root has made, an open file or a folder, to whoever owns the folder that it is in:
    what root does by hand, or for GARM, must not lock out the service's own user. Raises OSError.
    """
    if os.geteuid() == 0:
        owner = folder.stat()
        os.chown(made, owner.st_uid, owner.st_gid)


def write_new(path: Path, content: str, mode: int) -> None:
    """The same for a file that must not be there yet. Raises OSError, such as FileExistsError."""
    part = path.with_name(f"{PART}{os.getpid()}.{secrets.token_hex(6)}")
    try:
        write_whole(part, content, mode, durable=True)
        os.link(part, path)  # unlike a rename, it replaces nothing
    finally:
        with suppress(OSError):
            part.unlink()


def abandoned(folder: Path, prefix: str = PART) -> list[Path]:
    """What processes that have died left in a folder: named with this prefix, their id, and maybe a
    suffix.
    """
    found = (
        (path, path.name.removeprefix(prefix).partition(".")[0])
        for path in sorted(folder.glob(f"{prefix}*"))
    )
    return [path for path, pid in found if pid.isdigit() and not Path(f"/proc/{pid}").exists()]


def sweep(folder: Path, prefix: str = PART) -> None:
    """Remove what killed processes had not written to its end."""
    for half in abandoned(folder, prefix):
        with suppress(OSError):
            half.unlink()


def digest(path: Path, algorithm: str = "sha256") -> str:
    """The digest of a file, as hex."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, algorithm).hexdigest()


def database_to_read(path: Path) -> str:
    """A database's address for sqlite, for who changes nothing. Where nobody has it open it lies
    there alone, and sqlite would make the two files of its log beside it, or fail where it may not.
    """
    is_open = path.with_name(f"{path.name}-wal").exists()
    # Not immutable alone: sqlite would make a file that is not there.
    return f"{path.absolute().as_uri()}?mode=ro{'' if is_open else '&immutable=1'}"
