"""Jobs, the runners that take them, and where both belong, as a forge has them. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from vmrunner.errors import ConfigError


class ScopeKind(StrEnum):
    """Who may use the runners of a pool."""

    INSTANCE = "instance"
    ORGANISATION = "organisation"
    USER = "user"
    REPOSITORY = "repository"


@dataclass(frozen=True)
class Scope:
    """Where runners are registered: `instance`, `user`, `organisation:NAME` or
    `repository:OWNER/NAME`.
    """

    kind: ScopeKind
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> Scope:
        """Read the configuration's spelling; raises ConfigError on anything else."""
        word, _, name = text.partition(":")
        hint = 'Write "instance", "user", "organisation:NAME" or "repository:OWNER/NAME".'
        try:
            kind = ScopeKind(word.replace("organization", "organisation"))  # the forges' spelling
        except ValueError:
            raise ConfigError(f"There is no scope {text!r}.", hint) from None
        parts = name.split("/")
        wanted = {ScopeKind.ORGANISATION: 1, ScopeKind.REPOSITORY: 2}.get(kind, 0)
        safe = all(
            p and p not in {".", ".."} and all(c.isalnum() or c in "-_." for c in p) for p in parts
        )
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


VERDICTS = frozenset({"success", "failure", "cancelled", "skipped"})
"""How a job ended, in both forges' words; there may be others in time."""


@dataclass(frozen=True)
class Job:
    """One Actions job.

    `handle` is empty on Gitea; `key` tells jobs and their attempts apart on both forges.
    """

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
    # How often it has been begun, this time included; 0 where the forge doesn't tell.
    attempt: int = 0
    sha: str = ""  # the commit that it is about
    url: str = ""
    run_url: str = ""
    queued_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    # It only calls a reusable workflow, or may; the forge hands it to no runner.
    is_caller: bool = False

    @property
    def title(self) -> str:
        """Its repository and name, for people."""
        return f"{self.repository}: {self.name}" if self.repository else self.name

    def fits(self, labels: Collection[str]) -> bool:
        """Whether a runner with exactly these labels could take it."""
        return set(self.labels) <= set(labels)


@dataclass(frozen=True)
class JobFacts:
    """Where a job comes from, as the forge says, or what is the stricter reading where it
    doesn't.
    """

    repository: str  # "owner/name"
    # In full: "refs/heads/x", "refs/tags/v1", "refs/pull/3/head"; "" where it is not known.
    ref: str
    event: str  # such as "push"; of a pull request it begins with "pull_request"
    base_ref: str | None  # the branch that a pull request wants to go into: in full, or its name
    default_branch: str  # of the repository: in full, or its name; "" where it is not known
    from_fork: bool  # a pull request of another repository's branch; not known counts as True
    repository_id: int = 0  # the forge's, which no other one gets; 0 where it is not told


@dataclass(frozen=True)
class Want:
    """So many waiting jobs of a kind could be used."""

    count: int
    serves: Callable[[Job], bool]  # by its labels alone


@dataclass(frozen=True)
class Listing:
    """What one look at a scope's jobs gave, which need not be all of them."""

    jobs: tuple[Job, ...] = ()
    unread: int = 0  # how many more wait, at least
    # Keys of waiting jobs that an earlier look has shown and this one has not: they may be gone.
    old: frozenset[str] = frozenset()
    is_short: bool = False  # more was wanted than is known, and the next look will have more


@dataclass(frozen=True)
class Claim:
    """Which job a runner was made for, as its record tells every host that may list it. Digests: a
    handle is worth a job.
    """

    job: str  # of its key
    repository: str
    is_last: bool = False  # its host has no room for another one like it

    @classmethod
    def of(cls, job: Job, *, is_last: bool = False) -> Claim:
        """On this job."""
        return cls(_digest(job.key), _digest(job.repository), is_last)

    @classmethod
    def parse(cls, text: str) -> Claim | None:
        """The first claim in a text, which may say other things, too."""
        found = _CLAIM.search(text)
        return cls(found["job"], found["repository"], bool(found["last"])) if found else None

    def __str__(self) -> str:
        return f"vmrunner-claim-{self.job}-{self.repository}{'-last' if self.is_last else ''}"


_CLAIM = re.compile(
    r"\bvmrunner-claim-(?P<job>[0-9a-f]{12})-(?P<repository>[0-9a-f]{12})(?P<last>-last)?\b"
)


def _digest(text: str) -> str:
    return hashlib.sha256(f"vmrunner {text}".encode()).hexdigest()[:12]


@dataclass(frozen=True)
class RunnerRecord:
    """The forge's record of a runner, as its list shows it."""

    id: int
    name: str
    online: bool
    # Has told of a job within the last ten seconds; without it, it may have one all the same.
    busy: bool = False
    labels: tuple[str, ...] = ()
    ephemeral: bool = True
    disabled: bool = False  # gets no job; Gitea only
    # Has told nothing of a job for ten seconds; one at work does every five.
    is_silent: bool = False
    # Where the forge tells; Gitea does until the runner has declared its own labels.
    claim: Claim | None = None


@dataclass(frozen=True)
class Sought:
    """A runner that is no more, and whose job is asked for.

    `hints` are jobs that it may have had, by their repository and key: the one that it was made
    for, or one that was seen on it.
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
