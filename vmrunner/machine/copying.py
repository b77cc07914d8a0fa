"""Files out of a machine, and into it, over a session of SSH.

The machine may be hostile: what it says to be in a folder becomes a name in the folder that was
asked for, or is refused; links and devices of it are left out, and nothing of it is more than a
file or a folder of whoever copies, with the permissions that it has there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmrunner.errors import MachineError, WrongCommand
from vmrunner.log import Say
from vmrunner.model.machine import MachineId
from vmrunner.text import presentable

if TYPE_CHECKING:
    from paramiko import SFTPClient

_CHUNK = 1 << 15  # bytes that every server takes at once
_AHEAD = 1 << 32  # bytes that are asked for at once: the size is the machine's word
_DEEPEST = 100  # folders in folders: a machine can make them up
_MODES = 0o777


def split(word: str) -> tuple[str, str] | None:
    """The machine and the path of MACHINE:PATH; None for a path of this host, such as ./a:b."""
    machine, colon, path = word.partition(":")
    return (machine, path or ".") if colon and machine and "/" not in machine else None


class Copy:
    """One order: with `recursive`, of folders, too. `warn` hears of what is left out."""

    def __init__(self, sftp: SFTPClient, machine: MachineId, warn: Say, *, recursive: bool) -> None:
        self._sftp, self._machine, self._warn = sftp, machine, warn
        self._recursive = recursive

    def out(self, there: str, here: Path) -> None:
        """From the machine. A folder that is here gets it in itself."""
        with self._asking(there):
            status = self._sftp.stat(there)
        if here.is_dir():
            here = here / _last(there)
        self._out(there, here, status, 0)

    def into(self, here: Path, there: str) -> None:
        """To the machine. A folder that is there gets it in itself."""
        if not here.exists():
            raise WrongCommand(f"There is no {here} on this host.")
        if stat.S_ISDIR(self._mode(there)):
            there = f"{there.rstrip('/')}/{here.resolve().name}"
        self._into(here, there)

    # ---- from it ----

    def _out(self, there: str, here: Path, status: Any, depth: int) -> None:
        mode = status.st_mode or 0
        if stat.S_ISDIR(mode):
            self._folder_out(there, here, mode, depth)
        elif stat.S_ISREG(mode):
            self._file_out(there, here, status)
        elif depth:
            self._warn(f"{_shown(there)} is left out: it is neither a file nor a folder")
        else:
            raise MachineError(
                f"{_shown(there)} in {self._machine} is neither a file nor a folder."
            )

    def _folder_out(self, there: str, here: Path, mode: int, depth: int) -> None:
        if not self._recursive:
            raise WrongCommand(
                f"{_shown(there)} in {self._machine} is a folder.", "With -r it is copied."
            )
        if depth > _DEEPEST:
            raise MachineError(f"{_shown(there)} in {self._machine} lies too deep.")
        with _local(here):
            here.mkdir(mode=0o700, exist_ok=True)
        with self._asking(there):
            found = self._sftp.listdir_attr(there)
        for each in found:
            if each.filename in {"", ".", ".."} or not {"/", "\0"}.isdisjoint(each.filename):
                raise MachineError(
                    f"{self._machine} names a file {_shown(each.filename)!r} in a folder.",
                    "That is no file's name: its server is not what it should be.",
                )
            self._out(f"{there.rstrip('/')}/{each.filename}", here / each.filename, each, depth + 1)
        with _local(here):
            here.chmod(mode & _MODES | 0o700)

    def _file_out(self, there: str, here: Path, status: Any) -> None:
        with self._asking(there):
            source = self._sftp.open(there, "rb")
        with source:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
            with _local(here):
                target = os.open(here, flags, 0o600)
            with os.fdopen(target, "wb") as written:
                if size := min(status.st_size or 0, _AHEAD):
                    source.prefetch(size)
                while chunk := self._read(source, there):
                    with _local(here):
                        written.write(chunk)
                with _local(here):
                    os.fchmod(written.fileno(), (status.st_mode or 0o600) & _MODES)
                    written.flush()

    def _read(self, source: Any, there: str) -> bytes:
        with self._asking(there):
            return bytes(source.read(_CHUNK))

    # ---- to it ----

    def _mode(self, there: str) -> int:
        """0 where nothing is there."""
        try:
            with self._asking(there):
                return self._sftp.stat(there).st_mode or 0
        except _Missing:
            return 0

    def _into(self, here: Path, there: str) -> None:
        mode = here.stat().st_mode
        if stat.S_ISDIR(mode):
            if not self._recursive:
                raise WrongCommand(f"{here} is a folder.", "With -r it is copied.")
            if not stat.S_ISDIR(self._mode(there)):
                with self._asking(there):
                    self._sftp.mkdir(there, mode & _MODES | 0o700)
            for each in sorted(here.iterdir()):
                if each.is_symlink() or not (each.is_dir() or each.is_file()):
                    self._warn(f"{each} is left out: it is neither a file nor a folder")
                    continue
                self._into(each, f"{there.rstrip('/')}/{each.name}")
            return
        with _local(here):
            source = here.open("rb")
        with source, self._asking(there), self._sftp.open(there, "wb") as target:
            target.set_pipelined(True)
            while chunk := source.read(_CHUNK):
                target.write(chunk)
            target.chmod(mode & _MODES)

    @contextmanager
    def _asking(self, there: str) -> Iterator[None]:
        """What the machine's server refuses, as one of our errors."""
        try:
            yield
        except FileNotFoundError:
            raise _Missing(f"There is no {_shown(there)} in {self._machine}.") from None
        except (OSError, EOFError, ValueError) as error:  # all that it may answer
            said = presentable(str(error)) or type(error).__name__
            raise MachineError(f"{_shown(there)} in {self._machine}: {said}") from None


class _Missing(MachineError):
    """No such file in the machine."""


@contextmanager
def _local(here: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WrongCommand(f"{here} can't be written: {error.strerror}.") from None


def _last(path: str) -> str:
    """What a path of a machine ends with, as a name here."""
    name = path.rstrip("/").rpartition("/")[2]
    return name if name not in {"", ".", ".."} else "files"


def _shown(path: str) -> str:
    return presentable(path)
