"""Forgejo 15 or newer, behind the Forge seam."""

from __future__ import annotations

import json
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter

from vmrunner.errors import ForgeDenied, ForgeError, ForgeNotFound, ForgeTokenUnknown
from vmrunner.forge import rpc
from vmrunner.forge.http import Http, Number, Word, actions_path, parse
from vmrunner.model.job import (
    VERDICTS,
    Claim,
    Credentials,
    Job,
    JobFacts,
    JobState,
    Listing,
    RunnerRecord,
    Scope,
    ScopeKind,
    Sought,
    Want,
)
from vmrunner.text import presentable

_MOST_SEEN = 5_000  # jobs that were listed, to be found once they are over
_SHORT = re.compile(r"^refs/(heads|tags)/")
_ASK_AGAIN = 60.0  # seconds until a repository that the forge did not name is asked for again


class _Job(BaseModel):
    id: Number
    attempt: Number = 0
    name: str = ""
    handle: Annotated[str, Field(pattern=r"^[!-~]{0,500}$")]
    repo_id: Number
    task_id: Number = 0
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
            attempt=self.attempt,
        )


class _Task(BaseModel):
    id: Number
    head_sha: str = ""
    url: str = ""
    status: str
    run_number: Number = 0
    run_started_at: datetime | None = None


class _Repository(BaseModel):
    id: Number = 0
    full_name: str
    default_branch: str = ""


class _Run(BaseModel):
    """A run, as far as it says where it comes from."""

    index_in_repo: Number
    prettyref: str = ""  # a branch's or a tag's name, or `#3` of a pull request
    trigger_event: str = ""
    event_payload: str = ""  # of its webhook, as JSON
    is_fork_pull_request: bool = True
    repository: _Repository

    def facts(self) -> JobFacts:
        try:
            payload = json.loads(self.event_payload)
        except (ValueError, RecursionError):
            payload = None
        told = payload if isinstance(payload, dict) else {}
        asked = told.get("pull_request")
        base = asked.get("base") if isinstance(asked, dict) else None
        base_ref = base.get("ref") if isinstance(base, dict) else None
        ref = self._ref(told, base_ref)
        return JobFacts(
            presentable(self.repository.full_name),
            ref,
            self.trigger_event,
            base_ref if isinstance(base_ref, str) else None,
            self.repository.default_branch,
            self.is_fork_pull_request or not ref,
            self.repository.id,
        )

    def _ref(self, payload: Mapping[str, Any], base: object) -> str:
        """In full. The pretty one is a branch's as well as a tag's: it is never enough."""
        ref = payload.get("ref")
        if self.trigger_event.startswith("pull_request"):
            # With its base's privileges (pull_request_target) it runs on the base, and must read
            # nothing that the pull request has written.
            if self.trigger_event == "pull_request_target" or self.prettyref == base:
                is_base = isinstance(base, str) and self.prettyref == base != ""
                return f"refs/heads/{base}" if is_base else ""
            pretty = re.fullmatch(r"#([0-9]{1,18})", self.prettyref)
            return f"refs/pull/{pretty[1]}/head" if pretty else ""
        if isinstance(ref, str) and _SHORT.sub("", ref) == self.prettyref != ref:
            return ref
        # A schedule runs on the default branch, and on nothing else.
        is_default = self.trigger_event == "schedule" and self.prettyref
        if is_default and self.prettyref == self.repository.default_branch:
            return f"refs/heads/{self.prettyref}"
        return ""


class _Runner(BaseModel):
    id: Number
    name: str
    status: Literal["offline", "idle", "active"]
    labels: list[str] | None = None
    ephemeral: bool = False
    description: str = ""

    def runner(self) -> RunnerRecord:
        return RunnerRecord(
            id=self.id,
            name=self.name,
            online=self.status != "offline",
            # Has reported about a job within 10 s; a runner that just took one may not have yet.
            busy=self.status == "active",
            labels=tuple(self.labels or ()),
            ephemeral=self.ephemeral,
            is_silent=self.status != "active",
            claim=Claim.parse(self.description),
        )


class _Registered(BaseModel):
    id: Number
    uuid: Word
    token: Word


_JOBS, _REPOSITORY = TypeAdapter(list[_Job] | None), TypeAdapter(_Repository)
_TASKS, _RUNS = TypeAdapter(list[_Task]), TypeAdapter(list[_Run])
_RUNNERS, _RUNNER = TypeAdapter(list[_Runner]), TypeAdapter(_Runner)
_REGISTERED = TypeAdapter(_Registered)


class _Repositories:
    """What repositories are called.

    A job has only the id of its one; a name is asked for once, and may be withheld.
    """

    def __init__(self, http: Http, clock: Callable[[], float]) -> None:
        self._http, self._clock = http, clock
        self._names: dict[int, str] = {}
        self._silent: dict[int, float] = {}  # when to ask again
        self._all_silent = 0.0

    def names(self, ids: Collection[int]) -> dict[int, str]:
        """owner/name of each, or `repository ID` where the forge does not tell; never the same for
        two of them.
        """
        found = {each: self._name(each) for each in ids}
        if len(set(found.values())) < len(found):
            # One was renamed since we asked, and another has its name now.
            self._names.clear()
            found = {each: self._name(each) for each in ids}
        return found

    def _name(self, repository: int) -> str:
        now = self._clock()
        if repository not in self._names and now >= max(
            self._all_silent, self._silent.get(repository, 0.0)
        ):
            try:
                answer, _ = self._http.call(
                    "GET", f"/api/v1/repositories/{repository}", "naming a repository"
                )
                self._names[repository] = parse(
                    _REPOSITORY, answer, "naming a repository"
                ).full_name
            except ForgeNotFound:
                self._silent[repository] = now + _ASK_AGAIN
            except ForgeError:
                # A token without read:repository, or a forge in trouble: it would be the same with
                # every other one.
                self._all_silent = now + _ASK_AGAIN
        return self._names.get(repository, f"repository {repository}")


def _with_task(job: Job, task: _Task) -> Job:
    began, is_over = task.run_started_at, task.status in VERDICTS
    return replace(
        job,
        state=JobState.DONE if is_over else JobState.RUNNING,
        conclusion=task.status if is_over else "",
        sha=presentable(task.head_sha),
        run_url=presentable(task.url, 2000),
        started_at=began if began and began.tzinfo and 1971 < began.year < 9000 else None,
    )


class Forgejo:
    """See Forge. A machine is bound to one attempt of one job by the job's handle."""

    kind = "forgejo"
    binds_jobs = True
    may_throttle = False

    def __init__(self, http: Http, clock: Callable[[], float] = time.monotonic) -> None:
        self._http = http
        self._seen: OrderedDict[str, Job] = OrderedDict()  # by handle, as it was listed last
        # By handle, as each scope's latest list has them.
        self._open: dict[Scope, dict[str, JobState]] = {}
        self._repositories = _Repositories(http, clock)
        self.url = http.url

    def close(self) -> None:
        """See Forge."""
        self._http.close()

    def jobs(self, scope: Scope) -> list[Job]:
        """See Forge. Jobs that a concurrency group holds back are listed as waiting, those that
        `needs` blocks not at all.

        Without `read:repository` a repository's name is `repository ID`.
        """
        jobs = self._listed(scope)
        self._open[scope] = {job.handle: job.state for job in jobs}
        for job in jobs:
            self._seen[job.handle] = job
            self._seen.move_to_end(job.handle)
        while len(self._seen) > _MOST_SEEN:
            self._seen.popitem(last=False)
        return jobs

    def _listed(self, scope: Scope) -> list[Job]:
        doing = "listing jobs"
        # Not a paged list, and the literal null where there are none. Without the parameter
        # `labels`: jobs of any labels.
        answer, _ = self._http.call(
            "GET", f"{actions_path(scope)}/runners/jobs", doing, scope=scope
        )
        # A job without a handle can't be bound; an empty one would let a runner take any job.
        records = [record for record in parse(_JOBS, answer, doing) or [] if record.handle]
        names = self._repositories.names({record.repo_id for record in records})
        return sorted(
            (record.job(names[record.repo_id]) for record in records), key=lambda job: job.id
        )

    def look(self, scope: Scope, wants: Sequence[Want]) -> Listing:
        """See Forge. The list is not paged, so it is read as a whole."""
        return Listing(tuple(self.jobs(scope)))

    def running(self, scope: Scope) -> list[Job]:
        """See Forge."""
        return [job for job in self.jobs(scope) if job.state is JobState.RUNNING]

    def job(self, scope: Scope, repository: str, key: str) -> Job | None:
        """See Forge. There is no other way to a job than the list, which is not paged: it is asked
        once more.
        """
        try:
            return next((job for job in self.jobs(scope) if job.key == key), None)
        except ForgeNotFound:
            return None

    def facts(self, scope: Scope, repository: str, key: str, runner_id: int) -> JobFacts | None:
        """See Forge. Needs `read:repository` besides what the scope needs.

        A job leads to its task, and that to its run. Which runner has it is not told, but none gets
        it that was not made for it.
        """
        job = next((job for job in self._listed(scope) if job.key == key), None)
        if job is None or job.state is not JobState.RUNNING or "/" not in job.repository:
            return None
        task = next(iter(self._tasks(job.repository, {job.task_id})), None) if job.task_id else None
        if task is None:
            return None
        where = Scope(ScopeKind.REPOSITORY, job.repository)
        found = self._http.each_page(
            f"{actions_path(where)}/runs",
            "reading a run",
            _RUNS,
            scope=where,
            inside="workflow_runs",
            run_number=task.run_number,
        )
        first = next(found)
        return next((run.facts() for run in first if run.index_in_repo == task.run_number), None)

    def ended_jobs(self, scope: Scope, sought: Sequence[Sought]) -> dict[int, Job | None]:
        """See Forge. A runner's job is the one whose handle it was made for.

        Forgejo shows no job that is over, but its task, in a list that knows neither job nor
        handle: a verdict, commit and start are found only where the job was once seen running,
        which tells the task's id. Of an end nothing is told.
        """
        found: dict[int, Job | None] = {each.runner_id: self._had(each) for each in sought}
        wanted: dict[str, set[int]] = {}
        for job in found.values():
            if job and job.task_id and "/" in job.repository:
                wanted.setdefault(job.repository, set()).add(job.task_id)
        tasks = {
            (repository, task.id): task
            for repository, ids in wanted.items()
            for task in self._tasks(repository, ids)
        }
        return {
            runner: _with_task(job, tasks[job.repository, job.task_id])
            if job and (job.repository, job.task_id) in tasks
            else job
            for runner, job in found.items()
        }

    def _had(self, sought: Sought) -> Job | None:
        hint = next(iter(sought.hints), None)
        states = (
            {states[hint.key] for states in self._open.values() if hint.key in states}
            if hint
            else set()
        )
        if hint is None or JobState.WAITING in states:
            return None
        seen = self._seen.get(hint.key, hint)
        return replace(
            seen,
            state=JobState.RUNNING if states else JobState.DONE,
            task_id=seen.task_id or hint.task_id,
        )

    def _tasks(self, repository: str, ids: Collection[int]) -> list[_Task]:
        """A repository's tasks with these ids; the newest come first."""
        found: list[_Task] = []
        where = Scope(ScopeKind.REPOSITORY, repository)
        try:
            for page in self._http.each_page(
                f"{actions_path(where)}/tasks",
                "listing tasks",
                _TASKS,
                scope=where,
                inside="workflow_runs",
            ):
                found += [task for task in page if task.id in ids]
                if len(found) == len(ids) or (page and page[-1].id < min(ids)):
                    break
        except ForgeTokenUnknown:
            raise  # a new token mends it
        except (ForgeDenied, ForgeNotFound):
            # Without `read:repository`, or its repository is gone: there is no verdict to be had.
            pass
        return found

    def waiting(self, scope: Scope) -> int | None:
        """See Forge. There is only the list."""
        return None

    def runners(self, scope: Scope) -> list[RunnerRecord]:
        """See Forge."""
        found = self._http.pages(
            f"{actions_path(scope)}/runners", "listing runners", _RUNNERS, scope=scope
        )
        return [record.runner() for record in found]

    def runner(self, scope: Scope, runner_id: int) -> RunnerRecord | None:
        """See Forge."""
        record = self._http.read_runner(scope, runner_id, _RUNNER)
        return record.runner() if record else None

    def create_runner(
        self, scope: Scope, name: str, labels: Sequence[str], claim: Claim | None = None
    ) -> Credentials:
        """See Forge. The labels are not part of it: the runner declares them itself."""
        doing = "making a runner"
        body = {
            "name": name,
            "description": f"one job's machine, made by vmrunner; {claim or 'for any job'}",
            "ephemeral": True,
        }
        answer, _ = self._http.call(
            "POST", f"{actions_path(scope)}/runners", doing, scope=scope, body=body
        )
        made = parse(_REGISTERED, answer, doing)
        return Credentials(id=made.id, uuid=made.uuid, token=made.token)

    def delete_runner(self, scope: Scope, runner_id: int) -> None:
        """See Forge."""
        self._http.delete_runner(scope, runner_id)

    def disable_runner(self, scope: Scope, runner_id: int) -> None:
        """See Forge.

        Forgejo can't, and need not: a machine's runner takes no job but the one that it was made
        for.
        """

    def fail_job(self, job: Job, credentials: Credentials, lines: Sequence[str]) -> bool:
        """See Forge.

        Forgejo does not tell a job's steps: those that had begun look as if they still ran.
        """
        return job.task_id > 0 and rpc.fail(self._http, credentials, job.task_id, lines)
