"""Gitea 1.26 or newer, behind the Forge seam."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import datetime
from functools import partial
from itertools import islice
from urllib.parse import urlsplit

from pydantic import BaseModel, TypeAdapter

from vmrunner.errors import ForgeDenied, ForgeError, ForgeNotFound
from vmrunner.forge import callers, rpc
from vmrunner.forge.http import PAGE, Http, Number, actions_path, parse
from vmrunner.forge.queue import LongQueue, Row
from vmrunner.forge.trace import Place, Trace, by_run
from vmrunner.forge.version import ForgeVersion
from vmrunner.model.job import (
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
from vmrunner.waiting import Deadline

# Seconds that looking for ended jobs may take; what is left is looked for the next time.
_LONGEST = 5.0
# Jobs that are asked for at once, beside two for each runner: where others' runners are busy many
# may be ours.
_MOST_ASKED = 100
_NEWEST_RUNS = 10  # that are looked through for jobs which no list has shown
_ATTEMPTS = 5  # at registering; each that fails says that another runner's token has come meanwhile
_PULL_REF = re.compile(r"refs/pull/([0-9]{1,18})/[a-z]+")
_OWN_EVENTS = {"push", "schedule", "workflow_dispatch", "create", "delete", "release"}
"""What happens only by who may write to the repository."""
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
    id: Number
    url: str
    html_url: str = ""
    run_id: Number = 0
    head_sha: str = ""
    name: str
    labels: list[str] | None = None
    run_attempt: Number = 0
    status: str
    conclusion: str = ""
    runner_id: Number = 0
    runner_name: str = ""
    created_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    steps: list[_Step] | None = None

    @property
    def repository(self) -> str:
        """The job itself does not name it; its address …/repos/OWNER/NAME/actions/jobs/ID does."""
        return _repository(self.url)

    def job(self) -> Job:
        return Job(
            id=self.id,
            name=presentable(self.name),
            labels=tuple(presentable(label) for label in self.labels or ()),
            state=_STATES.get(self.status, JobState.DONE),
            # Up to 1.26 a rerun keeps the id, and while queued the attempt is one behind, so the
            # key is only good to compare waiting jobs. From 1.27 on a rerun has another id.
            key=f"{self.id}.{self.run_attempt}",
            repository=presentable(self.repository),
            runner_name=presentable(self.runner_name),
            runner_id=self.runner_id,
            conclusion=presentable(self.conclusion),
            attempt=self.run_attempt,
            sha=presentable(self.head_sha),
            url=presentable(self.html_url, 2000),
            run_url=presentable(self.html_url, 2000).rpartition("/jobs/")[0],
            queued_at=_time(self.created_at),
            # As the job's page shows it: when the forge handed it out, and the end that its runner
            # gave. Its steps' times are all the guest's own.
            started_at=_time(self.started_at),
            finished_at=_time(self.completed_at),
        )

    def place(self) -> Place:
        return Place(
            self.repository, self.id, self.run_id, tuple(self.labels or ()), self.runner_id
        )

    def ending(self) -> list[rpc.Result]:
        """What its steps shall show when its machine died: the first one that is not over failed.

        Gitea doesn't tell their results.
        """
        began = [_time(step.started_at) is not None for step in self.steps or ()]
        ended = [_time(step.completed_at) is not None for step in self.steps or ()]
        results = [
            rpc.Result.SUCCESS if a and b else rpc.Result.SKIPPED
            for a, b in zip(began, ended, strict=True)
        ]
        if any(began) and not all(ended):
            results[ended.index(False)] = rpc.Result.FAILURE
        return results


class _Task(BaseModel):
    id: Number
    name: str
    status: str
    created_at: datetime | None = None


class _Run(BaseModel):
    id: Number
    url: str


class _Repository(BaseModel):
    id: Number = 0
    full_name: str
    default_branch: str = ""


class _Origin(BaseModel):
    """A run, as far as it says where it comes from."""

    path: str = ""  # of the workflow, and behind an @ the ref in full
    event: str = ""
    repository: _Repository

    @property
    def ref(self) -> str:
        """The first, as a branch may be called `a@refs/b`."""
        _, _, rest = self.path.partition("@refs/")
        return f"refs/{rest}" if rest else ""


class _Branch(BaseModel):
    """One side of a pull request."""

    label: str = ""
    ref: str = ""
    repo_id: Number = 0


class _PullRequest(BaseModel):
    base: _Branch
    head: _Branch

    @property
    def is_foreign(self) -> bool:
        """Whether anybody may have made it who can read the repository: from a fork, or without a
        branch (AGit), which has no label then.
        """
        same = self.head.repo_id == self.base.repo_id > 0
        return not (same and self.head.label)


class _Label(BaseModel):
    name: str


class _Runner(BaseModel):
    id: Number
    name: str
    status: str
    busy: bool = False  # has said something of a job in the last ten seconds
    labels: list[_Label] | None = None
    ephemeral: bool = False
    disabled: bool = False

    def runner(self) -> RunnerRecord:
        names = [label.name for label in self.labels or ()]
        claims = {name: claim for name in names if (claim := Claim.parse(name))}
        return RunnerRecord(
            id=self.id,
            name=self.name,
            online=self.status == "online",
            busy=self.busy,
            labels=tuple(name for name in names if name not in claims),
            ephemeral=self.ephemeral,
            disabled=self.disabled,
            is_silent=not self.busy,
            claim=next(iter(claims.values()), None),
        )


class _Token(BaseModel):
    token: str


class _Count(BaseModel):
    total_count: Number


class _JobPage(_Count):
    jobs: list[_Job] | None


_JOBS, _JOB, _TASKS = TypeAdapter(list[_Job]), TypeAdapter(_Job), TypeAdapter(list[_Task])
_RUNS, _ORIGIN, _PULL_REQUEST = (
    TypeAdapter(list[_Run]),
    TypeAdapter(_Origin),
    TypeAdapter(_PullRequest),
)
_RUNNERS, _RUNNER = TypeAdapter(list[_Runner]), TypeAdapter(_Runner)
_TOKEN, _COUNT, _JOB_PAGE = TypeAdapter(_Token), TypeAdapter(_Count), TypeAdapter(_JobPage)


def _time(at: datetime | None) -> datetime | None:
    """Gitea writes times that are not yet set as 1970.

    What has no zone, or lies beyond what a clock can show, is none.
    """
    return at if at and at.tzinfo and 1971 < at.year < 9000 else None


def _repository(url: str) -> str:
    try:
        parts = urlsplit(url).path.split("/")
    except ValueError:  # no address at all: "http://["
        return ""
    return (
        "/".join(parts[parts.index("repos") + 1 : parts.index("repos") + 3])
        if "repos" in parts
        else ""
    )


class Gitea:
    """See Forge.

    Gitea hands a job to any runner that covers its labels, so a machine can't be bound to one job.
    """

    kind = "gitea"
    binds_jobs = False

    def __init__(self, http: Http, clock: Callable[[], float] = time.monotonic) -> None:
        self._http, self._clock = http, clock
        self._trace = Trace()
        self._version = ForgeVersion(http, clock)
        self._callers = callers.Callers(self._is_last, clock)
        self._queues: dict[Scope, LongQueue] = {}  # of scopes with more jobs than a page
        self.url = http.url

    @property
    def may_throttle(self) -> bool:
        """See Forge. Not before the first list."""
        return self._version.last >= callers.FROM

    def close(self) -> None:
        """See Forge."""
        self._http.close()

    def jobs(self, scope: Scope) -> list[Job]:
        """See Forge."""
        return self._marked(scope, self._rows(scope, "queued", "in_progress", "waiting"))

    def look(self, scope: Scope, wants: Sequence[Want]) -> Listing:
        """See Forge. Up to a page of jobs are one request; blocked ones are left out.

        Of more than that, those that wait are read first: one that a runner takes meanwhile is then
        among those that run.
        """
        queue = self._queues.get(scope)
        if queue is None:
            rows, total = self._page(scope, ("queued", "in_progress"), 1)
            if total <= PAGE:
                return Listing(tuple(self._marked(scope, rows)))
            queue = self._queues[scope] = LongQueue(partial(self._page, scope, ("queued",)), PAGE)
        is_short = queue.look(wants)
        running = self._rows(scope, "in_progress")
        for place, _ in running:
            queue.forget(place.job)
        if queue.total + len(running) <= PAGE:
            del self._queues[scope]
        old = queue.old
        jobs = self._marked(scope, [*queue.rows, *running], old=old, is_whole=not queue.unread)
        keys = frozenset(job.key for job in jobs if job.id in old)
        return Listing(tuple(jobs), queue.unread, keys, is_short)

    def running(self, scope: Scope) -> list[Job]:
        """See Forge."""
        return [job for _, job in self._rows(scope, "in_progress")]

    def _rows(self, scope: Scope, *states: str) -> list[Row]:
        """All jobs in these states, in Gitea's words."""
        found = self._http.pages(
            f"{actions_path(scope)}/jobs",
            "listing jobs",
            _JOBS,
            scope=scope,
            inside="jobs",
            status=states,
        )
        return [(record.place(), record.job()) for record in found]

    def _page(self, scope: Scope, states: Sequence[str], page: int) -> tuple[list[Row], int]:
        """One page of them, and how many there are."""
        doing = "listing jobs"
        asked = {"status": states, "page": page, "limit": PAGE}
        answer, _ = self._http.call(
            "GET", f"{actions_path(scope)}/jobs", doing, scope=scope, params=asked
        )
        found = parse(_JOB_PAGE, answer, doing)
        return [(record.place(), record.job()) for record in found.jobs or []], found.total_count

    def _marked(
        self,
        scope: Scope,
        rows: Sequence[Row],
        *,
        old: Collection[int] = (),
        is_whole: bool = True,
    ) -> list[Job]:
        """Jobs as they were listed, by their ids; the last row of each is the newest."""
        listed = {place.job: (place, job) for place, job in rows}
        self._trace.listed(scope, ((place, job.state) for place, job in listed.values()), old)
        jobs = sorted(
            ((place.run, job) for place, job in listed.values()), key=lambda each: each[1].id
        )
        # A version that is not told may be a new one.
        if (version := self._version()) and version < callers.FROM:
            return [job for _, job in jobs]
        return self._callers.mark(jobs, is_whole=is_whole)

    def _is_last(self, job: Job, run: int) -> bool:
        """Whether nothing comes behind this job in its run; False where that is not to be had."""
        where = Scope(ScopeKind.REPOSITORY, job.repository)
        path = f"{actions_path(where)}/runs/{run}/jobs"
        try:
            found = self._http.pages(
                path, "listing a run's jobs", _JOBS, scope=where, inside="jobs"
            )
        except ForgeError:
            return False  # without read:repository; or the run was deleted
        return bool(found) and max(record.id for record in found) <= job.id

    def ended_jobs(self, scope: Scope, sought: Sequence[Sought]) -> dict[int, Job | None]:
        """See Forge. Needs `read:repository` besides what the scope needs.

        Gitea's list of jobs has no order (its query has none, seen in 1.26), so its end can't be
        read first; and a job that is begun again keeps its id and its age. So jobs are asked for by
        their ids, or by their runs: those that a runner was made for, and those that were open and
        are not any more. Last come the newest runs, for jobs that came and went between two lists.
        """
        return _Search(self, scope, sought).run()

    def waiting(self, scope: Scope) -> int | None:
        """See Forge. The list takes Gitea about 0.7 ms for each job in it."""
        doing = "counting jobs"
        path, asked = f"{actions_path(scope)}/jobs", {"status": "queued", "limit": 1}
        answer, _ = self._http.call("GET", path, doing, scope=scope, params=asked)
        return parse(_COUNT, answer, doing).total_count

    def job(self, scope: Scope, repository: str, key: str) -> Job | None:
        """See Forge. Needs `read:repository` besides what the scope needs.

        The list's `in_progress` leaves out a job that is being cancelled (from 1.27); its own page
        does not.
        """
        number = key.partition(".")[0]
        if not number.isdecimal() or "/" not in repository:
            return None
        try:
            found = self._record(Scope(ScopeKind.REPOSITORY, repository), int(number)).job()
        except ForgeNotFound:
            self._forget(int(number))
            return None
        if found.state is not JobState.WAITING:
            self._forget(found.id)
        return found

    def facts(self, scope: Scope, repository: str, key: str, runner_id: int) -> JobFacts | None:
        """See Forge. Needs `read:repository` besides what the scope needs."""
        number = key.partition(".")[0]
        if not number.isdecimal() or "/" not in repository:
            return None
        where, doing = Scope(ScopeKind.REPOSITORY, repository), "reading a run"
        try:
            record = self._record(where, int(number))
            if record.job().state is not JobState.RUNNING or record.runner_id != runner_id:
                return None
            path = f"{actions_path(where)}/runs/{record.run_id}"
            answer, _ = self._http.call("GET", path, doing, scope=where)
        except ForgeNotFound:
            return None
        run = parse(_ORIGIN, answer, doing)
        asked = self._pull_request(where, run.ref)
        return JobFacts(
            presentable(run.repository.full_name),
            run.ref,
            run.event,
            asked.base.ref if asked else None,
            run.repository.default_branch,
            # A job on a branch may be a pull request's, too: pull_request_target.
            asked.is_foreign if asked else run.event not in _OWN_EVENTS,
            run.repository.id,
        )

    def _pull_request(self, repository: Scope, ref: str) -> _PullRequest | None:
        """The one that this ref is of; None where it is of none, or where that is not told."""
        found, doing = _PULL_REF.fullmatch(ref), "reading a pull request"
        if not found:
            return None
        try:
            answer, _ = self._http.call(
                "GET", f"/api/v1/repos/{repository.name}/pulls/{found[1]}", doing, scope=repository
            )
        except (ForgeDenied, ForgeNotFound):
            return None
        return parse(_PULL_REQUEST, answer, doing)

    def _record(self, repository: Scope, job_id: int) -> _Job:
        doing = "reading a job"
        answer, _ = self._http.call(
            "GET", f"{actions_path(repository)}/jobs/{job_id}", doing, scope=repository
        )
        return parse(_JOB, answer, doing)

    def _forget(self, job_id: int) -> None:
        """This job does not wait any more."""
        for queue in self._queues.values():
            queue.forget(job_id)

    def runners(self, scope: Scope) -> list[RunnerRecord]:
        """See Forge."""
        found = self._http.pages(
            f"{actions_path(scope)}/runners",
            "listing runners",
            _RUNNERS,
            scope=scope,
            inside="runners",
        )
        return [record.runner() for record in found]

    def runner(self, scope: Scope, runner_id: int) -> RunnerRecord | None:
        """See Forge."""
        record = self._http.read_runner(scope, runner_id, _RUNNER)
        return record.runner() if record else None

    def create_runner(
        self, scope: Scope, name: str, labels: Sequence[str], claim: Claim | None = None
    ) -> Credentials:
        """See Forge. The registration token is fetched, used and forgotten here, on the host.

        A record has no place for a claim but its labels, and those only until its runner declares
        its own: just before it takes a job.
        """
        wanted = [*labels, str(claim)] if claim else labels
        doing = "making a registration token"
        attempt = 1
        while True:
            answer, _ = self._http.call(
                "POST", f"{actions_path(scope)}/runners/registration-token", doing, scope=scope
            )
            try:
                return rpc.register(self._http, parse(_TOKEN, answer, doing).token, name, wanted)
            except rpc.TokenReplaced:
                if attempt == _ATTEMPTS:
                    raise
                attempt += 1

    def delete_runner(self, scope: Scope, runner_id: int) -> None:
        """See Forge."""
        self._http.delete_runner(scope, runner_id)

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
        # Without the second half another runner's credentials would fail that one's job, where it
        # is of the same repository.
        if now.job().state is not JobState.RUNNING or now.runner_id != credentials.id:
            return False
        # The job does not name its task, and the list of tasks names neither job nor runner. But
        # the forge refuses another runner's task, and an ephemeral runner has just one: so all that
        # may be it are tried.
        tasks = self._running(repository, now)
        return any(
            rpc.fail(self._http, credentials, task.id, lines, now.ending()) for task in tasks
        )

    def _running(self, repository: Scope, job: _Job) -> Iterator[_Task]:
        """The repository's running tasks that are not older than this job; on each page those with
        its name come first.
        """
        path, doing = f"{actions_path(repository)}/tasks", "listing tasks"
        # Newest first.
        for page in self._http.each_page(
            path, doing, _TASKS, scope=repository, inside="workflow_runs"
        ):
            yield from sorted(
                (task for task in page if task.status in {"running", "cancelling"}),
                key=lambda task: task.name != job.name,
            )
            queued, oldest = _time(job.created_at), _time(page[-1].created_at) if page else None
            if queued and oldest and oldest < queued:
                return


class _Search:
    """Jobs of runners that are no more, for some seconds at most."""

    def __init__(self, gitea: Gitea, scope: Scope, sought: Sequence[Sought]) -> None:
        self._gitea, self._scope, self._sought = (
            gitea,
            scope,
            {each.runner_id: each for each in sought},
        )
        self._http, self._trace = gitea._http, gitea._trace
        self._until = Deadline(_LONGEST, gitea._clock)
        self._listed: set[int] = set()  # runs
        self._found = {each: job for each in self._sought if (job := self._trace.of(each))}

    def run(self) -> dict[int, Job | None]:
        """See Forge.ended_jobs."""
        for group in by_run(islice(self._places(), _MOST_ASKED + 2 * len(self._sought))):
            if self._is_over():
                break
            self._look_at(group)
        if not self._is_over():
            self._look_at_newest_runs()
        none: dict[int, Job | None] = {} if self._is_late() else dict.fromkeys(self._sought)
        return none | self._found

    def _is_late(self) -> bool:
        return self._until.is_over

    def _is_over(self) -> bool:
        return len(self._found) == len(self._sought) or self._is_late()

    def _places(self) -> Iterator[Place]:
        left = {number: each for number, each in self._sought.items() if number not in self._found}
        for each in left.values():
            for hint in each.hints:
                number = hint.key.partition(".")[0]
                if (
                    hint.repository
                    and number.isdecimal()
                    and (place := self._trace.hinted(hint.repository, int(number)))
                ):
                    yield place
        yield from self._trace.vanished(
            self._scope, left.keys(), {each.labels for each in left.values()}
        )

    def _look_at(self, group: Sequence[Place]) -> None:
        """At jobs of one run: each by itself, or the run's list where that is less work for the
        forge.
        """
        first = group[0]
        if first.run in self._listed:
            return
        # A full page takes Gitea as long as two jobs by their ids: 40 ms (measured with 1.26 beside
        # other work).
        pages = 1 + self._trace.size(first.run) // PAGE
        if first.run and len(group) > 2 * pages:
            self._look_at_run(first.repository, first.run)
            return
        for place in group:
            if self._is_over():
                return
            try:
                self._saw(
                    self._gitea._record(Scope(ScopeKind.REPOSITORY, place.repository), place.job)
                )
            except ForgeNotFound:
                self._trace.forget(place.job)  # its repository, or its run, was deleted

    def _look_at_run(self, repository: str, run: int) -> None:
        self._listed.add(run)
        where = Scope(ScopeKind.REPOSITORY, repository)
        path = f"{actions_path(where)}/runs/{run}/jobs"
        try:
            for page in self._http.each_page(
                path, "listing a run's jobs", _JOBS, scope=where, inside="jobs"
            ):
                for record in page:
                    self._saw(record)
                if self._is_over():
                    return
        except ForgeNotFound:
            return

    def _look_at_newest_runs(self) -> None:
        path = f"{actions_path(self._scope)}/runs"
        try:
            newest = next(
                self._http.each_page(
                    path, "listing runs", _RUNS, scope=self._scope, inside="workflow_runs"
                )
            )
        except ForgeNotFound:
            if self._scope.kind is not ScopeKind.REPOSITORY:
                raise
            return  # the repository was deleted, and its runs with it
        for run in newest[:_NEWEST_RUNS]:
            if self._is_over():
                return
            if run.id not in self._listed:
                self._look_at_run(_repository(run.url), run.id)

    def _saw(self, record: _Job) -> None:
        job = record.job()
        if job.state is JobState.DONE:
            self._trace.ended(job)
            self._gitea._forget(job.id)
        # From 1.27 on a job that is not run again, when others of its run are, has a new row, which
        # shows its runner, too: what that one had is the first.
        known = self._found.get(record.runner_id)
        if known and known.state is JobState.DONE and known.id < job.id:
            return
        if record.runner_id in self._sought and job.state in {JobState.DONE, JobState.RUNNING}:
            self._found[record.runner_id] = job
