"""What `--json` prints, as records: `vmrunner schema` describes them, and programs rely on them.

A field may be added; none is renamed or taken away.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Schema = dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """An error: what is wrong, what to do about it, and the exit code that it gives."""

    sentence: str
    hint: str
    exit_code: int


@dataclass(frozen=True)
class Failed:
    """In place of anything else, where a command could not do what it was asked for."""

    error: Failure


@dataclass(frozen=True)
class Planned:
    """What a pass would do; what does not apply is empty."""

    action: Literal[
        "start", "bind", "finish", "delete runner", "pause", "drop seed", "note", "stay", "hold"
    ]
    pool: str
    machine: str
    job: str
    reason: str


@dataclass(frozen=True)
class Pass:
    """`up`, `down`, `release` and `destroy`: what was done. With --dry-run nothing was, and
    `planned` says what would.
    """

    dry_run: bool
    started: int
    bound: int
    destroyed: int
    swept: int
    planned: tuple[Planned, ...]
    removed: tuple[str, ...]  # by --purge
    kept: tuple[str, ...]  # by --purge, as other guests of the host use it
    failures: tuple[Failure, ...]


@dataclass(frozen=True)
class Keeping:
    """`hold`: a machine that is held now, or will be when its job is over; or (without a machine) a
    pool whose next one with a failed job is.
    """

    machine: str
    pool: str
    held: bool  # now
    seconds: float


@dataclass(frozen=True)
class Checked:
    """`config check` of a file that is valid."""

    path: str
    manager: str
    pools: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """A finding of `doctor`."""

    check: str
    level: Literal["good", "warning", "error"]
    said: str
    fix: str


@dataclass(frozen=True)
class Queue:
    """What a forge's scope has; `problem` is empty where it answers."""

    scope: str
    problem: str
    hint: str
    jobs: int
    unread: int  # more that wait and were not looked at yet, as the queue is long


@dataclass(frozen=True)
class BackedOff:
    """Why a pool starts nothing for a while."""

    failures: int
    seconds: float
    last: str


@dataclass(frozen=True)
class HeldShown:
    """Why a machine is held, for how long it has been, and for how long it is still."""

    why: str
    seconds: float
    left_seconds: float


@dataclass(frozen=True)
class MachineShown:
    """A machine of a pool; `held` is null for one that is not."""

    name: str
    phase: str
    paused: bool
    age_seconds: float | None
    image: str  # name/version
    job: str
    job_url: str
    trouble: str
    dropped_packets: int
    held: HeldShown | None


@dataclass(frozen=True)
class Pool:
    """A pool of `status`."""

    name: str
    max: int
    warm: int
    ready: int  # warm machines that are there
    image: str  # name/version; empty where there is none
    image_wanted: str  # by the configuration; empty where the pool is not in there any more
    image_age_seconds: int | None
    image_is_old: bool  # older than images.max_age
    image_note: str
    drained: bool
    snapshot: str
    running: int
    register_idle: int
    idle: int  # registered, and waiting for any job
    held: int  # kept for a person
    catching_seconds: float  # for how long the next one whose job fails is held; 0: it is not
    failed: int
    backoff: BackedOff | None
    machines: tuple[MachineShown, ...]


@dataclass(frozen=True)
class Waiting:
    """A waiting job, and why it waits; `kind` stays the same when sentences change."""

    name: str
    id: int
    repository: str
    labels: tuple[str, ...]
    url: str
    pool: str
    kind: str
    reason: str
    age_seconds: float | None


@dataclass(frozen=True)
class LentShown:
    """A machine that GARM made, which knows it as `instance`."""

    name: str
    instance: str
    flavor: str
    image: str  # name/version
    phase: str
    age_seconds: float
    trouble: str
    dropped_packets: int


@dataclass(frozen=True)
class LentPool:
    """A pool of GARM's with machines here."""

    controller: str
    pool: str
    machines: tuple[LentShown, ...]


@dataclass(frozen=True)
class Status:
    """`status`."""

    manager: str
    host: str
    seen_seconds_ago: float  # by `serve`, which was asked; 0 where the command looked for itself
    forge_down_since: float | None  # unix seconds; null where it answers
    forge: tuple[Queue, ...]
    pools: tuple[Pool, ...]
    garm: tuple[LentPool, ...]
    waiting: tuple[Waiting, ...]


@dataclass(frozen=True)
class Published:
    """A version of an image in `image list`; `verified` is null where it was not looked at."""

    name: str
    version: str
    current: bool
    kernel: str
    runner: str
    packages: int
    tools: tuple[str, ...]  # name/version/arch, of a disk of tools
    built_at: str  # ISO 8601
    promoted_at: str
    promoted_why: str
    promoted_by: str
    forced: tuple[dict[str, Any], ...]
    verified: bool | None


@dataclass(frozen=True)
class Version:
    """A version of an image that was made, changed or taken, and whether it is current now."""

    name: str
    version: str
    current: bool
    built: bool  # by this call
    verified: bool  # by this call
    packages: int
    mib: int
    file: str  # that was written or read


@dataclass(frozen=True)
class Refreshed:
    """What became of an image in `image refresh`."""

    name: str
    said: str
    failure: Failure | None


@dataclass(frozen=True)
class Keys:
    """The snapshots that were looked at or deleted."""

    keys: tuple[str, ...]
    kept: tuple[str, ...]  # files of deleted ones that other guests of the host use


@dataclass(frozen=True)
class RunnerProgram:
    """`runner fetch`; with --print nothing was fetched, and `sha256` is empty."""

    program: str  # forgejo-runner or gitea-runner
    version: str
    arch: str  # amd64 or arm64
    url: str
    path: str
    sha256: str
    fetched: bool  # by this call; else it was there, or --print


def _of(shape: Any, *, each: bool = False, **more: Schema) -> Schema:
    """The JSON Schema of a type, or of a list of them, with more fields than it has."""
    from pydantic import TypeAdapter

    found = TypeAdapter(shape).json_schema(mode="serialization")
    found["properties"] = found.get("properties", {}) | more
    found["required"] = sorted(found["properties"])  # all are always there
    if not each:
        return found
    tables = found.pop("$defs", {})
    return {"type": "array", "items": found} | ({"$defs": tables} if tables else {})


_TEXT: Schema = {"type": "string"}
_YES: Schema = {"type": "boolean"}
_LINES: Schema = {"type": "array", "items": _TEXT}
_NUMBER: Schema = {"anyOf": [{"type": "number"}, {"type": "null"}]}


def _config() -> Schema:
    from vmrunner import config
    from vmrunner.cli import config_text

    return config_text.schema(config.example())


def _history() -> Schema:
    from vmrunner.manager.record import Record

    return _of(Record, each=True, job_seconds=_NUMBER, hints=_LINES)


def _logs() -> Schema:
    from vmrunner.model.entry import Entry

    return _of(Entry, each=True)


def _report() -> Schema:
    from vmrunner.manager.usage import Usage

    return _of(Usage, each=True)


def _isolation() -> Schema:
    from vmrunner.doctor.isolation.lab import Cell

    return _of(Cell, each=True)


def _verify() -> Schema:
    from vmrunner.image.versions.proof import Proof

    return _of(Proof, image=_TEXT, version=_TEXT, good=_YES)


def _prune() -> Schema:
    from vmrunner.image.upkeep.prune import Waste

    return _of(Waste, removed=_YES)


def _diff() -> Schema:
    from vmrunner.image.versions.diff import Difference

    return _of(Difference)


def _snapshots(*, each: bool) -> Schema:
    from vmrunner.hypervisor.seam import Snapshot

    return _of(Snapshot, each=each, **({"used_at": _NUMBER} if each else {}))


def _cached() -> Schema:
    from vmrunner.cache.store import Figures

    return _of(Figures, each=True)


def _uncached() -> Schema:
    from vmrunner.cache.store import Much

    return _of(Much)


SCHEMAS: dict[str, Callable[[], Schema]] = {
    "up": lambda: _of(Pass),
    "down": lambda: _of(Pass),
    "hold": lambda: _of(Keeping),
    "release": lambda: _of(Pass),
    "destroy": lambda: _of(Pass),
    "status": lambda: _of(Status),
    "history": _history,
    "logs": _logs,
    "report": _report,
    "doctor": lambda: _of(Found, each=True),
    "doctor --isolation": _isolation,
    "config check": lambda: _of(Checked),
    "config show": _config,
    "runner fetch": lambda: _of(RunnerProgram),
    "image list": lambda: _of(Published, each=True),
    "image build": lambda: _of(Version),
    "image promote": lambda: _of(Version),
    "image rollback": lambda: _of(Version),
    "image lock": lambda: _of(Version),
    "image export": lambda: _of(Version),
    "image import": lambda: _of(Version),
    "image refresh": lambda: _of(Refreshed, each=True),
    "image verify": _verify,
    "image verify --files-only": lambda: _of(Version),
    "image prune": _prune,
    "image diff": _diff,
    "snapshot list": lambda: _snapshots(each=True),
    "snapshot create": lambda: _snapshots(each=False),
    "snapshot verify": lambda: _of(Keys),
    "snapshot drop": lambda: _of(Keys),
    "cache stats": _cached,
    "cache prune": _uncached,
    "cache clear": _uncached,
    "error": lambda: _of(Failed),
}
"""By the command; any of them may print the one of "error" instead, and exit with its code."""


def plain(value: object) -> Any:
    """A record, or a list of them, as JSON's own kinds."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return [plain(each) for each in value] if isinstance(value, list) else value
