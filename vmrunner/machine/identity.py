"""Who this host is among those that share a forge: a random word, made once and kept in state_dir.

Host names repeat, and are changed; what a host deletes at the forge is decided by this.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vmrunner import files, lock
from vmrunner.config import HostConfig
from vmrunner.errors import ConfigError
from vmrunner.model.machine import MachineId, is_serial

_FILE = "host.json"
_LOCK_WAIT = 30.0  # seconds; the other one writes a hundred bytes
# What tells a computer from one that its disk was copied to. The second only root may read.
_SOURCES = {
    "machine_id": Path("/etc/machine-id"),
    "product_uuid": Path("/sys/class/dmi/id/product_uuid"),
}


@dataclass(frozen=True)
class Identity:
    """A host's word, and digests of what the computer was known by when it was made."""

    host: str  # 8 hex digits
    marks: Mapping[str, str] = field(default_factory=dict)

    def is_of(self, marks: Mapping[str, str]) -> bool:
        """Whether it is this computer's, as far as both are known."""
        return all(marks[name] == self.marks[name] for name in marks.keys() & self.marks.keys())


def host(state_dir: Path, sources: Mapping[str, Path] = _SOURCES) -> str:
    """This host's word. It is made where there is none, where the file can't be read as one, and
    where the folder was copied from another computer, whose word stays that one's.

    Raises ConfigError where it can't be kept.
    """
    marks = _marks(sources)
    known = _read(state_dir)
    if known and known.is_of(marks) and marks.keys() <= known.marks.keys():
        return known.host
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        with lock.held(
            state_dir / "host.lock",
            "Another vmrunner makes this host's identity",
            "Try again.",
            wait=_LOCK_WAIT,
            say=lambda _: None,
        ):
            return _keep(state_dir, marks).host
    except (OSError, ConfigError) as error:
        if known and known.is_of(marks):
            return known.host  # all that is missing is a mark, which only root adds
        said = error.strerror if isinstance(error, OSError) else error.sentence
        raise ConfigError(
            f"This host's identity can't be kept in {state_dir}: {said}.",
            "Check state_dir: its owner, its space.",
        ) from None


def seen(state_dir: Path, sources: Mapping[str, Path] = _SOURCES) -> str:
    """This host's word for who changes nothing: where none is kept, one that nobody else has."""
    known = _read(state_dir)
    return known.host if known and known.is_of(_marks(sources)) else secrets.token_hex(4)


def fresh(settings: HostConfig) -> MachineId:
    """A name for a new machine of this host. Raises ConfigError as `host` does."""
    return MachineId.new(settings.manager, host(settings.state_dir))


def _keep(state_dir: Path, marks: Mapping[str, str]) -> Identity:
    known = _read(state_dir)  # by another process, while we waited
    if known is None or not known.is_of(marks):
        known = Identity(secrets.token_hex(4))
    kept = Identity(known.host, {**known.marks, **marks})
    if kept != _read(state_dir):
        plain = {"host": kept.host, **kept.marks}
        files.write_whole(state_dir / _FILE, json.dumps(plain), durable=True)
    return kept


def _read(state_dir: Path) -> Identity | None:
    try:
        plain = json.loads((state_dir / _FILE).read_bytes())
        word = plain.pop("host")
        marks = {str(name): str(mark) for name, mark in plain.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Identity(word, marks) if isinstance(word, str) and is_serial(word) else None


def _marks(sources: Mapping[str, Path]) -> dict[str, str]:
    """Digests: the words themselves are not for everybody."""
    found: dict[str, str] = {}
    for name, path in sources.items():
        try:
            word = path.read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
        if word:
            found[name] = hashlib.sha256(f"vmrunner {word}".encode()).hexdigest()[:16]
    return found
