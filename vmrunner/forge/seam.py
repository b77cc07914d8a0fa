"""The seam to the forge: what the manager asks of Forgejo and Gitea alike."""

from __future__ import annotations

from collections.abc import Collection, Sequence
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


def presentable(text: str, longest: int = 200) -> str:
    """Others' words, such as a job's name: on one line, not too long, and nothing in them that a terminal would obey."""
    return "".join(char if char.isprintable() else " " for char in text[:longest])


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
    """A job as the forge sees it."""

    BLOCKED = "blocked"  # by `needs` or a concurrency group; where the forge lists such jobs at all
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
    task_id: int = 0  # of the attempt that runs, where the forge tells
    runner_name: str = ""  # who runs it, or ran it, where the forge tells
    runner_id: int = 0  # the same one's record
    conclusion: str = ""  # success, failure, cancelled, skipped; only when DONE
    attempt: int = 0  # how often it has been begun, this time included; 0 where the forge doesn't tell
    sha: str = ""  # the commit that it is about
    url: str = ""
    run_url: str = ""
    queued_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def title(self) -> str:
        """Its repository and name, for people."""
        return f"{self.repository}: {self.name}" if self.repository else self.name

    def fits(self, labels: Collection[str]) -> bool:
        """Whether a runner with exactly these labels could take it."""
        return set(self.labels) <= set(labels)


@dataclass(frozen=True)
class RunnerRecord:
    """The forge's record of a runner, as its list shows it."""

    id: int
    name: str
    online: bool
    busy: bool = False  # has a job; Gitea doesn't tell here, see Job.runner_name
    labels: tuple[str, ...] = ()
    ephemeral: bool = True
    disabled: bool = False  # gets no job; Gitea only
    is_silent: bool = False  # has told nothing of a job for ten seconds; one at work does every five


@dataclass(frozen=True)
class Sought:
    """A runner that is no more, and whose job is asked for.

    `hints` are jobs that it may have had, by their repository and key: the one that it was made for, or one that was seen on it.
    """

    runner_id: int
    labels: tuple[str, ...] = ()  # that it had; empty where that is not known any more
    hints: tuple[Job, ...] = ()


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
    binds_jobs: bool  # whether a runner takes exactly the job that it was made for (by its handle), or any that fits

    def close(self) -> None:
        """Close the connections."""

    def jobs(self, scope: Scope) -> list[Job]:
        """Every job of the scope that is blocked, waits for a runner or is held by one, oldest first, whatever its labels.

        One look, so that a job which a runner takes meanwhile is in it once. Running ones have `runner_name` on Gitea; on Forgejo
        they are known by their `key`.
        """

    def ended_jobs(self, scope: Scope, sought: Sequence[Sought]) -> dict[int, Job | None]:
        """The jobs that ephemeral runners of this scope had, by the runner's id; None for one of which the forge shows none (yet).

        Those that are missing in the answer were not looked for to the end, as the forge is slow: ask again. A job that is not DONE
        belongs to the runner, too, and has no verdict yet. All are looked for together: what is asked depends on the jobs that may be
        theirs, not on how many jobs there are.
        """

    def waiting(self, scope: Scope) -> int | None:
        """How many jobs wait for a runner, where that is told for much less than `jobs`; None where it isn't."""

    def runners(self, scope: Scope) -> list[RunnerRecord]:
        """All runner records that the scope shows (every page)."""

    def create_runner(self, scope: Scope, name: str, labels: Sequence[str]) -> Credentials:
        """Mint an ephemeral runner. Never retried: a lost answer leaves a record that the next pass sweeps by its name."""

    def delete_runner(self, scope: Scope, runner_id: int) -> None:
        """Delete a runner record; a record that is already gone is fine."""

    def disable_runner(self, scope: Scope, runner_id: int) -> None:
        """From now on the runner gets no job; one that it has goes on. Does nothing on a forge that can't, or where the record is gone."""

    def fail_job(self, job: Job, credentials: Credentials, lines: Sequence[str]) -> bool:
        """End a running job as failed, in the name of its runner (whose machine is gone), with these lines at the end of its log.

        False where the forge had ended it already, or does not know it as this runner's. Its ephemeral record goes with it.
        """
