"""What libvirt writes down of each domain's QEMU: files named after the domain, which it never
deletes. Only of a libvirt on this host: they are no part of its API.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from vmrunner.config import is_local
from vmrunner.model.machine import MachineId

SYSTEM = Path("/var/log/libvirt/qemu")
"""Where the libvirt of the whole host has them."""
_TAIL = 16384  # bytes
_WORDS = re.compile(r"^\S+Z qemu-\S+: (?!warning:)(?:info: )?(.+)$", re.MULTILINE)
_MOST_WORDS = 200


def folder(uri: str) -> Path | None:
    """Where the libvirt at this URI has its logs of QEMU; None where that is on another host, or
    there is no QEMU.
    """
    if not is_local(uri) or not uri.startswith("qemu"):
        return None
    if urlsplit(uri).path == "/system":
        return SYSTEM
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "libvirt" / "qemu" / "log"


@dataclass(frozen=True)
class Logs:
    """The logs of one manager's machines: `<machine>.log`, and what was rotated from it."""

    manager: str
    folder: Path | None

    def machines(self) -> frozenset[MachineId]:
        """The machines that a file is left of, whosever host made them."""
        return frozenset(
            machine
            for path in self._files()
            if ".log" in path.name and (machine := MachineId.of(self.manager, path.name))
        )

    def last_words(self, machine: MachineId) -> str:
        """What QEMU said last of itself, other than a warning, in one line; empty where it said
        nothing, or the file can't be read.
        """
        if self.folder is None:
            return ""
        try:
            with (self.folder / f"{machine}.log").open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
                text = file.read(_TAIL).decode("utf-8", "replace")
        except OSError:
            return ""
        said = _WORDS.findall(text)
        return "".join(c for c in said[-1] if c.isprintable())[:_MOST_WORDS] if said else ""

    def drop(self, machine: MachineId) -> None:
        """Delete what is left of this machine, as far as this user may."""
        for path in self._files():
            if path.name.startswith(f"{machine}.log"):
                with suppress(OSError):
                    path.unlink()

    def _files(self) -> list[Path]:
        if self.folder is None:
            return []
        try:
            return list(self.folder.iterdir())
        except OSError:
            return []  # not there yet, or not for this user
