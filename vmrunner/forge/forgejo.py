"""Forgejo 15 or newer, behind the Forge seam."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter

from vmrunner.errors import ForgeError, ForgeNotFound
from vmrunner.forge import Credentials, Job, JobState, RunnerRecord, Scope, presentable, rpc
from vmrunner.forge.http import Http, Word, actions_path, parse

_ASK_AGAIN = 60.0  # seconds until a repository that the forge did not name is asked for again


class _Job(BaseModel):
    id: int
    name: str = ""
    handle: Annotated[str, Field(pattern=r"^[!-~]{0,500}$")]
    repo_id: int
    task_id: int = 0
    runs_on: list[str] | None = None
    status: Literal["waiting", "running"]

    def job(self, repository: str) -> Job:
        return Job(
            id=self.id,
            name=presentable(self.name),
            labels=tuple(presentable(label) for label in self.runs_on or ()),
            state=JobState.WAITING if self.status == "waiting" else JobState.RUNNING,
            key=self.handle,
            handle=self.handle,
            repository=presentable(repository),
            task_id=self.task_id,
        )


class _Repository(BaseModel):
    full_name: str


class _Runner(BaseModel):
    id: int
    name: str
    status: Literal["offline", "idle", "active"]
    labels: list[str] | None = None
    ephemeral: bool = False


class _Registered(BaseModel):
    id: int
    uuid: Word
    token: Word


_JOBS, _REPOSITORY = TypeAdapter(list[_Job] | None), TypeAdapter(_Repository)
_RUNNERS, _REGISTERED = TypeAdapter(list[_Runner]), TypeAdapter(_Registered)


class _Repositories:
    """What repositories are called. A job has only the id of its one; a name is asked for once, and may be withheld."""

    def __init__(self, http: Http, clock: Callable[[], float]) -> None:
        self._http, self._clock = http, clock
        self._names: dict[int, str] = {}
        self._silent: dict[int, float] = {}  # when to ask again
        self._all_silent = 0.0

    def names(self, ids: Collection[int]) -> dict[int, str]:
        """owner/name of each, or `repository ID` where the forge does not tell; never the same for two of them."""
        found = {each: self._name(each) for each in ids}
        if len(set(found.values())) < len(found):
            # One was renamed since we asked, and another has its name now.
            self._names.clear()
            found = {each: self._name(each) for each in ids}
        return found

    def _name(self, repository: int) -> str:
        now = self._clock()
        if repository not in self._names and now >= max(self._all_silent, self._silent.get(repository, 0.0)):
            try:
                answer, _ = self._http.call("GET", f"/api/v1/repositories/{repository}", "naming a repository")
                self._names[repository] = parse(_REPOSITORY, answer, "naming a repository").full_name
            except ForgeNotFound:
                self._silent[repository] = now + _ASK_AGAIN
            except ForgeError:
                # A token without read:repository, or a forge in trouble: it would be the same with every other one.
                self._all_silent = now + _ASK_AGAIN
        return self._names.get(repository, f"repository {repository}")


class Forgejo:
    """See Forge. A machine is bound to one attempt of one job by the job's handle."""

    kind = "forgejo"
    binds_jobs = True

    def __init__(self, http: Http, clock: Callable[[], float] = time.monotonic) -> None:
        self._http = http
        self._repositories = _Repositories(http, clock)
        self.url = http.url

    def close(self) -> None:
        """See Forge."""
        self._http.close()

    def jobs(self, scope: Scope) -> list[Job]:
        """See Forge. Jobs that a concurrency group holds back are listed as waiting, those that `needs` blocks not at all.

        Without `read:repository` a repository's name is `repository ID`.
        """
        doing = "listing jobs"
        # Not a paged list, and the literal null where there are none. Without the parameter `labels`: jobs of any labels.
        answer, _ = self._http.call("GET", f"{actions_path(scope)}/runners/jobs", doing, scope=scope)
        # A job without a handle can't be bound; an empty one would let a runner take any job.
        records = [record for record in parse(_JOBS, answer, doing) or [] if record.handle]
        names = self._repositories.names({record.repo_id for record in records})
        return sorted((record.job(names[record.repo_id]) for record in records), key=lambda job: job.id)

    def runners(self, scope: Scope) -> list[RunnerRecord]:
        """See Forge."""
        found = self._http.pages(f"{actions_path(scope)}/runners", "listing runners", _RUNNERS, scope=scope)
        return [
            RunnerRecord(
                id=record.id,
                name=record.name,
                online=record.status != "offline",
                busy=record.status == "active",  # has reported about a job within 10 s; a runner that just took one may not have yet
                labels=tuple(record.labels or ()),
                ephemeral=record.ephemeral,
                is_silent=record.status != "active",
            )
            for record in found
        ]

    def create_runner(self, scope: Scope, name: str, labels: Sequence[str]) -> Credentials:
        """See Forge. The labels are not part of it: the runner declares them itself."""
        doing = "making a runner"
        body = {"name": name, "description": "one job's machine, made by vmrunner", "ephemeral": True}
        answer, _ = self._http.call("POST", f"{actions_path(scope)}/runners", doing, scope=scope, body=body)
        made = parse(_REGISTERED, answer, doing)
        return Credentials(id=made.id, uuid=made.uuid, token=made.token)

    def delete_runner(self, scope: Scope, runner_id: int) -> None:
        """See Forge."""
        try:
            self._http.call("DELETE", f"{actions_path(scope)}/runners/{runner_id}", "deleting a runner", scope=scope)
        except ForgeNotFound:
            return

    def disable_runner(self, scope: Scope, runner_id: int) -> None:
        """See Forge. Forgejo can't, and need not: a machine's runner takes no job but the one that it was made for."""

    def fail_job(self, job: Job, credentials: Credentials, lines: Sequence[str]) -> bool:
        """See Forge. Forgejo does not tell a job's steps: those that had begun look as if they still ran."""
        return job.task_id > 0 and rpc.fail(self._http, credentials, job.task_id, lines)
