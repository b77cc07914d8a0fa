"""Gitea 1.26 or newer, behind the Forge seam."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from urllib.parse import urlsplit

from pydantic import BaseModel, TypeAdapter

from vmrunner.errors import ForgeNotFound
from vmrunner.forge import Credentials, Job, JobState, RunnerRecord, Scope, ScopeKind, presentable, rpc
from vmrunner.forge.http import Http, actions_path, parse

_ATTEMPTS = 5  # at registering; each that fails says that another runner's token has come meanwhile
# Gitea's "waiting" is not ready for a runner: `needs` or a concurrency group holds it back.
_STATES = {
    "waiting": JobState.BLOCKED,
    "queued": JobState.WAITING,
    "in_progress": JobState.RUNNING,
    "completed": JobState.DONE,
}


class _Step(BaseModel):
    started_at: datetime | None = None
    completed_at: datetime | None = None


class _Job(BaseModel):
    id: int
    url: str
    html_url: str = ""
    name: str
    labels: list[str] | None = None
    run_attempt: int = 0
    status: str
    conclusion: str = ""
    runner_id: int = 0
    runner_name: str = ""
    created_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    steps: list[_Step] | None = None

    def job(self) -> Job:
        # The job itself does not name its repository; its address …/repos/OWNER/NAME/actions/jobs/ID does.
        parts = urlsplit(self.url).path.split("/")
        owner_name = parts[parts.index("repos") + 1 : parts.index("repos") + 3] if "repos" in parts else []
        steps = self.steps or []
        starts = [at for step in steps if (at := _time(step.started_at))]
        ends = [at for step in steps if (at := _time(step.completed_at))]
        return Job(
            id=self.id,
            name=presentable(self.name),
            labels=tuple(presentable(label) for label in self.labels or ()),
            state=_STATES.get(self.status, JobState.DONE),
            # A rerun keeps the id. While queued the attempt is one behind, so the key is only good to compare waiting jobs.
            key=f"{self.id}.{self.run_attempt}",
            repository=presentable("/".join(owner_name)),
            runner_name=presentable(self.runner_name),
            conclusion=presentable(self.conclusion),
            url=presentable(self.html_url, 2000),
            queued_at=_time(self.created_at),
            started_at=min(starts, default=_time(self.started_at)),
            finished_at=max(ends, default=_time(self.completed_at)),
        )

    def ending(self) -> list[rpc.Result]:
        """What its steps shall show when its machine died: the first one that is not over failed. Gitea doesn't tell their results."""
        began = [_time(step.started_at) is not None for step in self.steps or ()]
        ended = [_time(step.completed_at) is not None for step in self.steps or ()]
        results = [rpc.Result.SUCCESS if a and b else rpc.Result.SKIPPED for a, b in zip(began, ended, strict=True)]
        if any(began) and not all(ended):
            results[ended.index(False)] = rpc.Result.FAILURE
        return results


class _Task(BaseModel):
    id: int
    name: str
    status: str
    created_at: datetime | None = None


class _Label(BaseModel):
    name: str


class _Runner(BaseModel):
    id: int
    name: str
    status: str
    busy: bool = False  # has said something of a job in the last ten seconds
    labels: list[_Label] | None = None
    ephemeral: bool = False
    disabled: bool = False


class _Token(BaseModel):
    token: str


_JOBS, _JOB, _TASKS = TypeAdapter(list[_Job]), TypeAdapter(_Job), TypeAdapter(list[_Task])
_RUNNERS, _TOKEN = TypeAdapter(list[_Runner]), TypeAdapter(_Token)


def _time(at: datetime | None) -> datetime | None:
    """Gitea writes times that are not yet set as 1970. What has no zone, or lies beyond what a clock can show, is none."""
    return at if at and at.tzinfo and 1971 < at.year < 9000 else None


class Gitea:
    """See Forge. Gitea hands a job to any runner that covers its labels, so a machine can't be bound to one job."""

    kind = "gitea"
    binds_jobs = False

    def __init__(self, http: Http) -> None:
        self._http = http
        self.url = http.url

    def close(self) -> None:
        """See Forge."""
        self._http.close()

    def jobs(self, scope: Scope) -> list[Job]:
        """See Forge."""
        wanted = ["queued", "in_progress", "waiting"]
        found = self._http.pages(f"{actions_path(scope)}/jobs", "listing jobs", _JOBS, scope=scope, inside="jobs", status=wanted)
        return sorted({record.id: record.job() for record in found}.values(), key=lambda job: job.id)

    def job(self, repository: str, job_id: int) -> Job:
        """One job as it is now, also when it is done. Raises ForgeNotFound."""
        return self._record(Scope(ScopeKind.REPOSITORY, repository), job_id).job()

    def _record(self, repository: Scope, job_id: int) -> _Job:
        doing = "reading a job"
        answer, _ = self._http.call("GET", f"{actions_path(repository)}/jobs/{job_id}", doing, scope=repository)
        return parse(_JOB, answer, doing)

    def runners(self, scope: Scope) -> list[RunnerRecord]:
        """See Forge."""
        found = self._http.pages(f"{actions_path(scope)}/runners", "listing runners", _RUNNERS, scope=scope, inside="runners")
        return [
            RunnerRecord(
                id=record.id,
                name=record.name,
                online=record.status == "online",
                labels=tuple(label.name for label in record.labels or ()),
                ephemeral=record.ephemeral,
                disabled=record.disabled,
                is_silent=not record.busy,
            )
            for record in found
        ]

    def create_runner(self, scope: Scope, name: str, labels: Sequence[str]) -> Credentials:
        """See Forge. The registration token is fetched, used and forgotten here, on the host."""
        doing = "making a registration token"
        attempt = 1
        while True:
            answer, _ = self._http.call("POST", f"{actions_path(scope)}/runners/registration-token", doing, scope=scope)
            try:
                return rpc.register(self._http, parse(_TOKEN, answer, doing).token, name, labels)
            except rpc.TokenReplaced:
                if attempt == _ATTEMPTS:
                    raise
                attempt += 1

    def delete_runner(self, scope: Scope, runner_id: int) -> None:
        """See Forge."""
        try:
            self._http.call("DELETE", f"{actions_path(scope)}/runners/{runner_id}", "deleting a runner", scope=scope)
        except ForgeNotFound:
            return

    def disable_runner(self, scope: Scope, runner_id: int) -> None:
        """See Forge."""
        path, doing = f"{actions_path(scope)}/runners/{runner_id}", "disabling a runner"
        try:
            self._http.call("PATCH", path, doing, scope=scope, body={"disabled": True})
        except ForgeNotFound:
            return

    def fail_job(self, job: Job, credentials: Credentials, lines: Sequence[str]) -> bool:
        """See Forge. Needs `read:repository` besides what the scope needs."""
        repository = Scope(ScopeKind.REPOSITORY, job.repository)
        now = self._record(repository, job.id)
        # Without the second half another runner's credentials would fail that one's job, where it is of the same repository.
        if now.job().state is not JobState.RUNNING or now.runner_id != credentials.id:
            return False
        # The job does not name its task, and the list of tasks names neither job nor runner. But the forge refuses another runner's
        # task, and an ephemeral runner has just one: so all that may be it are tried.
        tasks = self._running(repository, now)
        return any(rpc.fail(self._http, credentials, task.id, lines, now.ending()) for task in tasks)

    def _running(self, repository: Scope, job: _Job) -> Iterator[_Task]:
        """The repository's running tasks that are not older than this job; on each page those with its name come first."""
        path, doing = f"{actions_path(repository)}/tasks", "listing tasks"
        for page in self._http.each_page(path, doing, _TASKS, scope=repository, inside="workflow_runs"):  # newest first
            yield from sorted((task for task in page if task.status == "running"), key=lambda task: task.name != job.name)
            queued, oldest = _time(job.created_at), _time(page[-1].created_at) if page else None
            if queued and oldest and oldest < queued:
                return
