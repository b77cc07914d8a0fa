"""The seam to the forge: what the manager asks of Forgejo and Gitea alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from vmrunner.errors import ConfigError


class ScopeKind(StrEnum):
    """Who may use the runners of a pool."""

    INSTANCE = "instance"
    ORGANISATION = "organisation"
    USER = "user"
    REPOSITORY = "repository"


@dataclass(frozen=True)
class Scope:
    """Where runners are registered: `instance`, `user`, `organisation:NAME` or `repository:OWNER/NAME`."""

    kind: ScopeKind
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> Scope:
        """Read the configuration's spelling; raises ConfigError on anything else."""
        word, _, name = text.partition(":")
        hint = 'Write "instance", "user", "organisation:NAME" or "repository:OWNER/NAME".'
        try:
            kind = ScopeKind(word)
        except ValueError:
            raise ConfigError(f"There is no scope {text!r}.", hint) from None
        parts = name.split("/")
        wanted = {ScopeKind.ORGANISATION: 1, ScopeKind.REPOSITORY: 2}.get(kind, 0)
        safe = all(p and p not in {".", ".."} and all(c.isalnum() or c in "-_." for c in p) for p in parts)
        if (wanted == 0 and name) or (wanted and (len(parts) != wanted or not safe)):
            raise ConfigError(f"There is no scope {text!r}.", hint)
        return cls(kind, name)

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else str(self.kind)


class JobState(StrEnum):
    """A job as the forge sees it. Jobs blocked by `needs` or by a concurrency group are not listed at all."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"


@dataclass(frozen=True)
class Job:
    """One Actions job. `handle` is empty on Gitea; `key` tells jobs and their attempts apart on both forges."""

    id: int
    name: str
    labels: tuple[str, ...]
    state: JobState
    key: str
    handle: str = ""
    repository: str = ""  # owner/name, where the forge tells
    runner_name: str = ""  # who runs it, where the forge tells
    conclusion: str = ""  # success, failure, cancelled, skipped; only when DONE
    url: str = ""
    queued_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


@dataclass(frozen=True)
class RunnerRecord:
    """The forge's record of a runner, as its list shows it."""

    id: int
    name: str
    online: bool
    busy: bool
    labels: tuple[str, ...] = ()
    ephemeral: bool = True


@dataclass(frozen=True)
class Credentials:
    """What enters a machine: worth exactly one job. The token is never shown by repr()."""

    id: int
    uuid: str
    token: str = field(repr=False)


class Forge(Protocol):
    """Every call raises a ForgeError (ForgeUnreachable, ForgeDenied, ForgeNotFound) when it can't be answered."""

    kind: str  # "forgejo" or "gitea"
    url: str  # without a trailing slash; also what the machine uses

    def waiting_jobs(self, scope: Scope, labels: Sequence[str]) -> list[Job]:
        """Jobs that a runner with exactly these labels could take now, oldest first."""

    def running_jobs(self, scope: Scope, labels: Sequence[str]) -> list[Job]:
        """Jobs that some runner holds now; on Gitea with `runner_name`."""

    def runners(self, scope: Scope) -> list[RunnerRecord]:
        """All runner records that the scope shows (every page)."""

    def create_runner(self, scope: Scope, name: str, labels: Sequence[str]) -> Credentials:
        """Mint an ephemeral runner. Never retried: a lost answer leaves a record that the next pass sweeps by its name."""

    def delete_runner(self, scope: Scope, runner_id: int) -> None:
        """Delete a runner record; a record that is already gone is fine."""

    def fail_job(self, credentials: Credentials, task_id: int, message: str) -> None:
        """Report, with a dead machine's own credentials, that its job failed; "already final" is fine."""
