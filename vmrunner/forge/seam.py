"""The seam to the forge: what the manager asks of Forgejo and Gitea alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from vmrunner.model.job import (
    Claim,
    Credentials,
    Job,
    JobFacts,
    Listing,
    RunnerRecord,
    Scope,
    Sought,
    Want,
)


class Forge(Protocol):
    """Every call raises a ForgeError (ForgeUnreachable, ForgeDenied, ForgeNotFound) when it can't
    be answered.
    """

    kind: str  # "forgejo" or "gitea"
    url: str  # without a trailing slash; also what the machine uses
    # Whether a runner takes exactly the job that it was made for (by its handle), or any that fits.
    binds_jobs: bool

    @property
    def may_throttle(self) -> bool:
        """Whether a fitting runner may be left without a job for a while, with nothing wrong."""

    def close(self) -> None:
        """Close the connections."""

    def jobs(self, scope: Scope) -> list[Job]:
        """Every job of the scope that is blocked, waits for a runner or is held by one, oldest
        first, whatever its labels.

        One look, so that a job which a runner takes meanwhile is in it once. Running ones have
        `runner_name` on Gitea; on Forgejo they are known by their `key`.
        """

    def look(self, scope: Scope, wants: Sequence[Want]) -> Listing:
        """The scope's jobs that are held by a runner, and of those that wait as many as are of use:
        what is wanted, and what earlier looks have shown. Blocked ones may be left out.

        Where the forge pages its list, a long queue is not read as a whole: each look reads on. One
        that it has not come to yet is not missing.
        """

    def running(self, scope: Scope) -> list[Job]:
        """The scope's jobs that are held by a runner."""

    def ended_jobs(self, scope: Scope, sought: Sequence[Sought]) -> dict[int, Job | None]:
        """The jobs that ephemeral runners of this scope had, by the runner's id; None for one of
        which the forge shows none (yet).

        Those that are missing in the answer were not looked for to the end, as the forge is slow:
        ask again. A job that is not DONE belongs to the runner, too, and has no verdict yet. All
        are looked for together: what is asked depends on the jobs that may be theirs, not on how
        many jobs there are.
        """

    def waiting(self, scope: Scope) -> int | None:
        """How many jobs wait for a runner, where that is told for much less than `jobs`; None where
        it isn't.
        """

    def runners(self, scope: Scope) -> list[RunnerRecord]:
        """All runner records that the scope shows (every page).

        The list may change between its pages: one that is missing may be there all the same, see
        `runner`.
        """

    def runner(self, scope: Scope, runner_id: int) -> RunnerRecord | None:
        """One record, by its id; None where the scope has it not (any more)."""

    def job(self, scope: Scope, repository: str, key: str) -> Job | None:
        """One job as it is now, by the key that it was listed with; None where the forge does not
        know it (any more), or not where it is. Up to Gitea 1.26 all attempts are one job.

        `repository` is its owner/name, `scope` one that it belongs to. Forgejo tells only of jobs
        that wait or run.
        """

    def facts(self, scope: Scope, repository: str, key: str, runner_id: int) -> JobFacts | None:
        """Where the job with this key comes from, which this runner works on now; None where the
        forge does not say that it does.

        Some requests, of things that do not change while the job runs.
        """

    def create_runner(
        self, scope: Scope, name: str, labels: Sequence[str], claim: Claim | None = None
    ) -> Credentials:
        """Mint an ephemeral runner, whose record shows this claim.

        Never retried: a lost answer leaves a record that the next pass sweeps by its name.
        """

    def delete_runner(self, scope: Scope, runner_id: int) -> None:
        """Delete a runner record; a record that is already gone is fine."""

    def disable_runner(self, scope: Scope, runner_id: int) -> None:
        """From now on the runner gets no job; one that it has goes on.

        Does nothing on a forge that can't, or where the record is gone.
        """

    def fail_job(self, job: Job, credentials: Credentials, lines: Sequence[str]) -> bool:
        """End a running job as failed, in the name of its runner (whose machine is gone), with
        these lines at the end of its log.

        False where the forge had ended it already, or does not know it as this runner's. Its
        ephemeral record goes with it.
        """
