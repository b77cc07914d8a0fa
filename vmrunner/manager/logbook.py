"""What is kept of the lines about each machine: below `state_dir`, compressed, and bounded.

While a machine lives its guest's lines are files of the host's storage, and here are the manager's
about it alone. When it ends, all of them become one file; what is said later is added to that. Like
the history it is memory, never truth: what can't be written is not kept.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vmrunner import files
from vmrunner.config import Config
from vmrunner.log import Log, words
from vmrunner.model.entry import Entry, Source, in_order
from vmrunner.text import presentable

_LIVE, _KEPT = ".jsonl", ".jsonl.gz"
_MOST_SAID = 1 << 16  # bytes of the manager's lines about a machine that lives
_MOST_KEPT = 4 << 20  # bytes of a file to which nothing is added any more
_MOST_READ = 16 << 20  # bytes of one machine's lines, unpacked
_BLOCK = 4096  # bytes that the smallest file takes
_LONGEST = 2000  # characters of one line
_AT_ONCE = 500  # lines that are understood together
_SWEPT = "swept"  # the file whose time is when the folder was looked through last
_SWEEP_REST = 86400.0
_NOT_SAID = {"machine", "console"}  # of a line's fields


class Logbook:
    """The folder. `warn` is told, in one sentence, of what can't be written; without `keeps`
    nothing is, and what is there can be read.
    """

    def __init__(
        self, folder: Path, warn: Callable[[str], object] = lambda _: None, *, keeps: bool = True
    ) -> None:
        self._folder, self._warn, self._keeps = folder, warn, keeps

    def note(self, machine: str, entry: Entry) -> None:
        """A line of the manager's about a machine."""
        if not self._keeps:
            return
        kept = self._folder / f"{machine}{_KEPT}"
        line = plain([entry])
        try:
            if kept.exists():
                self._add(kept, gzip.compress(line, mtime=0), _MOST_KEPT)
            else:
                self._add(self._folder / f"{machine}{_LIVE}", line, _MOST_SAID)
        except OSError as error:
            self._warn(f"The log of {machine} was not written: {error.strerror}.")

    def _add(self, path: Path, content: bytes, most: int) -> None:
        """Append it, unless the file is too big."""
        self._ensure()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        file = os.open(path, flags, 0o600)
        try:
            if os.fstat(file).st_size < most:
                os.write(file, content)
            files.hand_over(file, self._folder)
        finally:
            os.close(file)

    def _ensure(self) -> None:
        if not self._folder.is_dir():
            files.make_folder(self._folder)
            self._folder.chmod(0o700)

    def keep(self, machine: str, said: Sequence[Entry]) -> int:
        """A machine ends, and this is what its guest has said; how many bytes of the disk that
        takes, with the manager's lines. Again is fine, also when the guest's files are gone.
        """
        if not self._keeps:
            return 0
        path = self._folder / f"{machine}{_KEPT}"
        try:
            before = self.entries(machine)
            mine = [entry for entry in before if entry.source is Source.MANAGER]
            guests = said or [entry for entry in before if entry.source is not Source.MANAGER]
            content = gzip.compress(plain(in_order(mine, guests)), mtime=0)
            self._ensure()
            with files.replacing(path) as part:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
                with os.fdopen(os.open(part, flags, 0o600), "wb") as file:
                    file.write(content)
                    files.hand_over(file.fileno(), self._folder)
            (self._folder / f"{machine}{_LIVE}").unlink(missing_ok=True)
        except OSError as error:
            self._warn(f"The log of {machine} was not kept: {error.strerror}.")
            return 0
        return -(-len(content) // _BLOCK) * _BLOCK

    def entries(self, machine: str, most: int | None = None) -> list[Entry]:
        """What is kept of this machine, in the order of time; what is broken is left out. With
        `most` its end: so many lines, or somewhat more. Raises PermissionError.
        """
        kept, live = _unpacked(self._read(f"{machine}{_KEPT}")), self._read(f"{machine}{_LIVE}")
        # A kill may have left the same line in both.
        found = _entries(list(dict.fromkeys((*_lines(kept, most), *_lines(live, most)))))
        return in_order(
            *([entry for entry in found if entry.source is source] for source in Source)
        )

    def _read(self, name: str) -> bytes:
        try:
            return (self._folder / name).read_bytes()
        except PermissionError:
            raise
        except OSError:
            return b""

    def drop(self, machines: Iterable[str]) -> None:
        """Forget these."""
        for machine in machines:
            for suffix in (_LIVE, _KEPT):
                with suppress(OSError):
                    (self._folder / f"{machine}{suffix}").unlink()

    def sweep(self, now: float, keep: float) -> None:
        """Once a day, remove what nobody added to for so many seconds: of machines that the history
        does not know any more.
        """
        stamp = self._folder / _SWEPT
        try:
            if stamp.exists() and 0 <= now - stamp.stat().st_mtime < _SWEEP_REST:
                return
            self._ensure()
            stamp.touch()
            os.utime(stamp, (now, now))
            files.sweep(self._folder)
            with os.scandir(self._folder) as listed:
                for each in listed:
                    is_log = each.name.endswith((_LIVE, _KEPT))
                    if is_log and each.stat(follow_symlinks=False).st_mtime < now - keep:
                        os.unlink(each.path)
        except OSError as error:
            self._warn(f"The folder {self._folder} was not swept: {error.strerror}.")


def open_logbook(settings: Config, warn: Callable[[str], object] = lambda _: None) -> Logbook:
    """As the configuration wants it."""
    return Logbook(settings.logs_dir, warn, keeps=settings.history.keep_logs > 0)


def plain(entries: Iterable[Entry]) -> bytes:
    """Lines as they are written down."""
    lines = (
        json.dumps([round(entry.at, 3), entry.source.value, entry.text], ensure_ascii=False)
        for entry in entries
    )
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")


def understood(raw: bytes, most: int | None = None) -> list[Entry]:
    """What was written down; with `most` so many lines of its end."""
    return _entries(_lines(raw, most))


def _lines(raw: bytes, most: int | None) -> list[str]:
    if most is not None:
        raw = b"\n".join(raw.rsplit(b"\n", most + 1)[-most - 1 :])
    return [line for line in raw.decode("utf-8", "replace").splitlines() if line]


def _entries(lines: Sequence[str]) -> list[Entry]:
    return [
        found
        for start in range(0, len(lines), _AT_ONCE)
        for found in _some(lines[start : start + _AT_ONCE])
    ]


def _some(lines: Sequence[str]) -> list[Entry]:
    """What is whole of some lines: all together, which takes a third of the time, or where one of
    them is broken each for itself.
    """
    try:
        return [
            Entry(float(at), Source(source), presentable(str(text), _LONGEST))
            for at, source, text in json.loads(f"[{','.join(lines)}]")
        ]
    except (ValueError, TypeError, OverflowError, RecursionError):  # half a line, after a kill
        return [found for line in lines for found in _some([line])] if len(lines) > 1 else []


def _unpacked(raw: bytes) -> bytes:
    """All that is whole of it, and not more than we can hold."""
    found = bytearray()
    while raw and len(found) < _MOST_READ:
        unpacker = zlib.decompressobj(wbits=31)
        try:
            found += unpacker.decompress(raw, _MOST_READ)
        except zlib.error:
            break
        raw = unpacker.unused_data
    return bytes(found)


@dataclass(frozen=True)
class Noting:
    """A logger whose lines about a machine also go into the logbook."""

    log: Log
    logbook: Logbook
    clock: Callable[[], float]

    def debug(self, event: str, **fields: object) -> object:
        return self.log.debug(event, **fields)

    def info(self, event: str, **fields: object) -> object:
        self._note(event, fields)
        return self.log.info(event, **fields)

    def warning(self, event: str, **fields: object) -> object:
        self._note(event, fields)
        return self.log.warning(event, **fields)

    def error(self, event: str, **fields: object) -> object:
        self._note(event, fields)
        return self.log.error(event, **fields)

    def _note(self, event: str, fields: Mapping[str, object]) -> None:
        if machine := fields.get("machine"):
            told = {key: value for key, value in fields.items() if key not in _NOT_SAID}
            text = presentable(words(event, told), _LONGEST)
            self.logbook.note(str(machine), Entry(self.clock(), Source.MANAGER, text))
