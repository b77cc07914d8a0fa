"""Gitea 1.27 as vmrunner and a runner meet it: the same calls as 1.26, answered in 1.27's way.

Behaviour: the source of 1.27.3, which can be read here and not built. Its REST answers are checked
against its published API description (`gitea-1.27.3.json` has what is used of it). What it does
otherwise than 1.26 is here: calls of reusable workflows are rows of the list that no runner gets;
a job that is cancelled works on for runners that know how; a pick of tasks may be throttled;
running a job again makes a new row, and the rows of jobs that are not run again show the old task.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.forge.double import SHA, Refused, Server, covers, now

DESCRIPTION: dict[str, Any] = json.loads(
    (Path(__file__).parent / "gitea-1.27.3.json").read_text(encoding="utf-8")
)
_NEVER = "1970-01-01T00:00:00Z"
_DONE = ("success", "failure", "skipped", "cancelled")
# What each word of the list's filter finds. `cancelling` is in none of them.
_FILTER = {
    "waiting": ("blocked",),
    "queued": ("waiting",),
    "in_progress": ("running",),
    "completed": _DONE,
}
_SHOWN = {
    "blocked": "waiting",
    "waiting": "queued",
    "running": "in_progress",
    "cancelling": "in_progress",
}
_RESULTS = {"cancelling": "cancelled"} | {each: each for each in _DONE}


@dataclass
class Runner:
    """One runner record; `scope` is `admin`, `user`, `orgs/NAME` or `repos/OWNER/NAME`."""

    id: int
    name: str
    scope: str
    labels: list[str]
    ephemeral: bool
    uuid: str = field(default_factory=lambda: secrets.token_hex(16))
    token: str = field(default_factory=lambda: secrets.token_hex(20))
    disabled: bool = False
    knows_cancelling: bool = False
    seen: float = 0.0  # by time.monotonic(); any call but its registration
    reported: float = 0.0  # a call about a task

    def plain(self) -> dict[str, Any]:
        at = time.monotonic()
        return {
            "id": self.id,
            "name": self.name,
            "status": "online" if self.seen and at - self.seen < 60 else "offline",
            "busy": bool(self.reported) and at - self.reported < 10,
            "disabled": self.disabled,
            "ephemeral": self.ephemeral,
            "labels": [{"id": 0, "name": label, "type": "custom"} for label in self.labels],
        }


@dataclass
class Task:
    """What a runner has of a job."""

    id: int
    runner: int
    name: str
    job: int
    began: str
    log: list[str] = field(default_factory=list)
    log_ended: bool = False


@dataclass
class Job:
    """One row; `state` is Gitea's own word, as in its database."""

    id: int
    name: str
    labels: list[str]
    repository: str
    run: int
    state: str = "waiting"
    attempt: int = 1
    is_caller: bool = False
    parent: int = 0  # the call's row
    task: Task | None = None
    source: Task | None = None  # of an attempt before
    created: str = field(default_factory=now)
    began: str = _NEVER
    ended: str = _NEVER
    is_old: bool = False  # its run has a newer attempt
    drops: bool = False  # what is reported of it


class Gitea(Server):
    """The server."""

    def begin(self) -> None:
        """See Server."""
        self.version = "1.27.3"
        self.runners: dict[int, Runner] = {}
        self.gone: dict[int, str] = {}  # names of runners that are no more
        self.jobs: dict[int, Job] = {}
        self.throttled = 0  # so many picks are refused
        self.tasks_version = 1
        self.registration: dict[str, str] = {}  # token by scope

    # ---- users ----

    def add_job(
        self,
        name: str = "job",
        *,
        labels: Sequence[str] = ("debian-12",),
        repository: str = "org1/r1",
        run: int = 0,
        state: str = "waiting",
        parent: int = 0,
        is_caller: bool = False,
    ) -> Job:
        """A job begins to wait, in a run of its own or in this one."""
        with self.lock:
            job = Job(self.number(), name, list(labels), repository, run or self.number(), state)
            job.parent, job.is_caller = parent, is_caller
            self.jobs[job.id] = job
            self.tasks_version += 1
            self._refresh(job)
        return job

    def add_call(
        self, inner: Sequence[Sequence[str]], *, labels: Sequence[str] = (), run: int = 0
    ) -> tuple[Job, list[Job]]:
        """A call of a reusable workflow, and the jobs in there by their labels, the first of which
        is ready and the others need it. The call's row comes first.
        """
        with self.lock:
            call = self.add_job("call", labels=labels, run=run, is_caller=True)
            children = [
                self.add_job(
                    f"inner {number}",
                    labels=each,
                    run=call.run,
                    parent=call.id,
                    state="blocked" if number else "waiting",
                )
                for number, each in enumerate(inner)
            ]
        return call, children

    def cancel(self, job: Job) -> None:
        """As a user does it on the run's page."""
        with self.lock:
            runner = self.runners.get(job.task.runner) if job.task else None
            if job.state == "running" and runner and runner.knows_cancelling:
                job.state = "cancelling"
            else:
                self._end(job, "cancelled")

    def mark_over(self, job: Job, state: str = "cancelled") -> None:
        """As `/cancel`, `/force-cancel` and `/approve` of Gitea 28 do it: the job is over at once,
        in whatever state it was. What its runner still reports is dropped, and the record stays,
        which is the worst that it can do (read, not run).
        """
        with self.lock:
            job.state, job.ended, job.drops = state, now(), True
            self._refresh(job)

    def rerun(self, run: int, *, only: Sequence[int] = ()) -> list[Job]:
        """The run once more, or only these jobs of it: new rows for all of them."""
        with self.lock:
            before = [job for job in self.jobs.values() if job.run == run and not job.is_old]
            made = []
            for old in before:
                old.is_old = True
                again = not only or old.id in only
                made.append(
                    replace(
                        old,
                        id=self.number(),
                        attempt=old.attempt + 1,
                        is_old=False,
                        state="waiting" if again else old.state,
                        task=None,
                        source=None if again else old.task or old.source,
                        began=_NEVER if again else old.began,
                        ended=_NEVER if again else old.ended,
                    )
                )
            self.jobs |= {job.id: job for job in made}
            self.tasks_version += 1
        return made

    def _end(self, job: Job, state: str) -> None:
        job.state, job.ended = state, now()
        self._refresh(job)
        if job.task and (runner := self.runners.get(job.task.runner)) and runner.ephemeral:
            self._remove(runner)

    def _remove(self, runner: Runner) -> None:
        self.gone[runner.id] = self.runners.pop(runner.id).name

    def _refresh(self, job: Job) -> None:
        """A call's row shows the sum of its jobs."""
        call = self.jobs.get(job.parent)
        if call is None:
            return
        states = {each.state for each in self.jobs.values() if each.parent == call.id}
        if states <= {"success", "skipped"}:
            call.state = "success"
        else:
            order = ("cancelling", "running", "waiting", "blocked", "cancelled", "failure")
            call.state = next(state for state in order if state in states)

    # ---- REST ----

    def check(self, method: str, path: str, status: int, body: Any) -> None:
        """See Server: the answer is one of the description, by its names and types."""
        if path == "/version":
            fits(body, "ServerVersion", path)
        elif status not in (401, 403):  # those come before the path is looked at
            what = DESCRIPTION["paths"][path][method.lower()][str(status)]
            if what is not None:
                fits(body, what, path)

    def rest(
        self, method: str, path: str, query: dict[str, str], token: str, body: dict[str, Any]
    ) -> tuple[int, Any, str, dict[str, str]]:
        """See Server."""
        if path == "/version":
            return 200, {"version": self.version}, path, {}
        found = re.fullmatch(r"/(admin|user|orgs/([^/]+)|repos/([^/]+/[^/]+))/actions/(.+)", path)
        if not found:
            raise Refused(404, message="404 page not found")
        if token not in self.tokens:
            raise Refused(401, message="invalid username, password or token", url=self.url)
        scope, rest = found[1], found[4].split("/")
        head = {"orgs": "/orgs/{org}", "repos": "/repos/{owner}/{repo}"}.get(
            scope.partition("/")[0], f"/{scope}"
        )
        with self.lock:
            match method, rest:
                case "GET", ["jobs"]:
                    return 200, self._list(scope, query), f"{head}/actions/jobs", {}
                case "GET", ["jobs", number] if found[3]:
                    answer = self._one(scope, int(number))
                    return *answer, f"{head}/actions/jobs/{{job_id}}", {}
                case "GET", ["runs"]:
                    return 200, self._runs(scope, query), f"{head}/actions/runs", {}
                case "GET", ["runs", run] if found[3]:
                    where = f"{head}/actions/runs/{{run}}"
                    if not (jobs := self._of(scope, int(run))):
                        return 404, _missing(), where, {}
                    return 200, self._run(jobs[-1]), where, {}
                case "GET", ["runs", run, "jobs"] if found[3]:
                    jobs = [job for job in self._of(scope, int(run)) if not job.is_old]
                    return self._run_jobs(jobs, query, f"{head}/actions/runs/{{run}}/jobs")
                case "GET", ["runs", run, "attempts", attempt, "jobs"] if found[3]:
                    jobs = [job for job in self._of(scope, int(run)) if job.attempt == int(attempt)]
                    where = f"{head}/actions/runs/{{run}}/attempts/{{attempt}}/jobs"
                    return self._run_jobs(jobs, query, where)
                case "GET", ["tasks"] if found[3]:
                    return 200, self._tasks(scope, query), f"{head}/actions/tasks", {}
                case _, ["runners", *more]:
                    status, answer = self._runners(method, scope, more, query, body)
                    tail = {
                        "": "",
                        "registration-token": "/registration-token",
                    }.get("".join(more), "/{runner_id}")
                    return status, answer, f"{head}/actions/runners{tail}", {}
        raise Refused(404, message="404 page not found")

    def _of(self, scope: str, run: int = 0) -> list[Job]:
        return [
            job
            for job in self.jobs.values()
            if covers(scope, job.repository) and run in (0, job.run)
        ]

    def _list(self, scope: str, query: dict[str, str]) -> dict[str, Any]:
        jobs = self._of(scope)
        if "status" in query:
            words = query["status"].split(",")
            if any(word not in _FILTER for word in words):
                raise Refused(400, message=f"invalid status {query['status']}")
            states = {state for word in words for state in _FILTER[word]}
            jobs = [job for job in jobs if job.state in states]
        return {"jobs": [self.plain(job) for job in _page(jobs, query)], "total_count": len(jobs)}

    def _one(self, scope: str, number: int) -> tuple[int, Any]:
        job = next((job for job in self._of(scope) if job.id == number), None)
        return (200, self.plain(job)) if job else (404, _missing())

    def _run_jobs(
        self, jobs: list[Job], query: dict[str, str], where: str
    ) -> tuple[int, Any, str, dict[str, str]]:
        if not jobs:
            return 404, _missing(), where, {}
        listed = [self.plain(job) for job in _page(jobs, query)]
        return 200, {"jobs": listed, "total_count": len(jobs)}, where, {}

    def _run(self, job: Job) -> dict[str, Any]:
        return {
            "id": job.run,
            "url": f"{self.url}/api/v1/repos/{job.repository}/actions/runs/{job.run}",
            "html_url": f"{self.url}/{job.repository}/actions/runs/{job.run}",
            "run_attempt": job.attempt,
            "head_sha": SHA,
            "path": "ci.yaml@refs/heads/main",
            "event": "push",
            "repository": {"id": 7, "full_name": job.repository, "default_branch": "main"},
        }

    def _runs(self, scope: str, query: dict[str, str]) -> dict[str, Any]:
        newest = {job.run: job for job in self._of(scope)}
        runs = [self._run(job) for job in reversed(newest.values())]
        return {"workflow_runs": _page(runs, query), "total_count": len(runs)}

    def _tasks(self, scope: str, query: dict[str, str]) -> dict[str, Any]:
        tasks = [
            {
                "id": job.task.id,
                "name": job.name,
                "head_branch": "main",
                "head_sha": SHA,
                "run_number": job.run,
                "event": "push",
                "display_title": "a commit",
                "status": job.state,
                "workflow_id": "ci.yaml",
                "url": f"{self.url}/{job.repository}/actions/runs/{job.run}",
                "created_at": job.task.began,
                "updated_at": now(),
                "run_started_at": job.task.began,
            }
            for job in self._of(scope)
            if job.task
        ]
        newest = sorted(tasks, key=lambda task: -int(str(task["id"])))
        return {"workflow_runs": _page(newest, query), "total_count": len(tasks)}

    def plain(self, job: Job) -> dict[str, Any]:
        """As a list shows it, and as a webhook has it. That it is a call is not told."""
        page = f"{self.url}/{job.repository}/actions/runs/{job.run}"
        api = f"{self.url}/api/v1/repos/{job.repository}/actions"
        shown: dict[str, Any] = {
            "id": job.id,
            "url": f"{api}/jobs/{job.id}",
            "html_url": f"{page}/jobs/{job.id}",
            "run_id": job.run,
            "run_url": f"{api}/runs/{job.run}",
            "name": job.name,
            "labels": job.labels,
            "run_attempt": job.attempt,
            "head_sha": SHA,
            "head_branch": "main",
            "status": _SHOWN.get(job.state, "completed"),
            "steps": [],
            "created_at": job.created,
            "started_at": job.began,
            "completed_at": job.ended,
        }
        if job.state in _DONE:
            shown["conclusion"] = job.state
        if task := job.task or job.source:
            shown["runner_id"] = task.runner
            runner = self.runners.get(task.runner)
            shown["runner_name"] = runner.name if runner else self.gone.get(task.runner, "")
        return shown

    def _runners(
        self,
        method: str,
        scope: str,
        more: Sequence[str],
        query: dict[str, str],
        body: dict[str, Any],
    ) -> tuple[int, Any]:
        mine = [runner for runner in self.runners.values() if scope in ("admin", runner.scope)]
        if more == ["registration-token"] and method == "POST":
            token = self.registration.setdefault(scope, secrets.token_hex(20))
            return 200, {"token": token}
        if not more and method == "GET":
            return 200, {
                "runners": [runner.plain() for runner in _page(mine, query)],
                "total_count": len(mine),
            }
        runner = next((each for each in mine if more == [str(each.id)]), None)
        if runner is None:
            return 404, _missing()
        if method == "DELETE":
            self._remove(runner)
            return 204, None
        if method == "PATCH":
            runner.disabled = body["disabled"]
        return 200, runner.plain()

    # ---- the runner RPC ----

    def rpc(self, method: str, uuid: str, token: str, body: dict[str, Any]) -> dict[str, Any]:
        """See Server."""
        with self.lock:
            if method == "Register":
                return self._register(body)
            known = {(each.uuid, each.token): each for each in self.runners.values()}
            if (runner := known.get((uuid, token))) is None:
                raise _unknown("Unauthenticated", "unregistered runner")
            runner.seen = time.monotonic()
            if method == "Declare":
                runner.labels = list(body.get("labels", []))
                runner.knows_cancelling = "cancelling" in body.get("capabilities", [])
                return {"runner": {"id": str(runner.id), "uuid": uuid, "labels": runner.labels}}
            if method == "FetchTask":
                return self._fetch(runner, int(body.get("tasksVersion", 0)))
            runner.reported = runner.seen
            if method == "UpdateLog":
                return self._update_log(self._task(runner, body.get("taskId")), body)
            if method == "UpdateTask":
                return self._update_task(runner, body["state"])
        raise Refused(404, code="unimplemented", message=method)

    def _register(self, body: dict[str, Any]) -> dict[str, Any]:
        scope = next(
            (scope for scope, token in self.registration.items() if token == body["token"]), None
        )
        if scope is None:
            raise Refused(500, code="unknown", message="runner registration token not found")
        labels, ephemeral = list(body.get("labels", [])), bool(body.get("ephemeral"))
        runner = Runner(self.number(), body["name"], scope, labels, ephemeral)
        self.runners[runner.id] = runner
        return {"runner": {"id": str(runner.id), "uuid": runner.uuid, "token": runner.token}}

    def _fetch(self, runner: Runner, version: int) -> dict[str, Any]:
        nothing = {"tasksVersion": str(self.tasks_version)}
        if version == self.tasks_version or runner.disabled:
            return nothing
        if runner.ephemeral and any(
            job.task and job.task.runner == runner.id for job in self.jobs.values()
        ):
            return nothing
        if self.throttled > 0:
            # Its version is given back to it, so that it asks again; zero is left out.
            self.throttled -= 1
            return {"tasksVersion": str(version)} if version else {}
        for job in self.jobs.values():
            free = job.state == "waiting" and not job.task and not job.is_caller
            if (
                free
                and set(job.labels) <= set(runner.labels)
                and covers(runner.scope, job.repository)
            ):
                job.began = now()
                job.task = Task(self.number(), runner.id, job.name, job.id, job.began)
                job.state = "running"
                self._refresh(job)
                return nothing | {"task": {"id": str(job.task.id), "workflowPayload": ""}}
        return nothing

    def _task(self, runner: Runner, number: Any) -> Job:
        for job in self.jobs.values():
            if job.task and str(job.task.id) == str(number) and job.task.runner == runner.id:
                return job
        raise _unknown("Internal", "update task: invalid runner for task")

    def _update_log(self, job: Job, body: dict[str, Any]) -> dict[str, Any]:
        assert job.task
        task, rows, index = job.task, body.get("rows", []), int(body.get("index", 0))
        if job.drops:
            return {"ackIndex": str(index + len(rows))}
        length = len(task.log)
        new = rows[length - index :] if index <= length < index + len(rows) else []
        if task.log_ended and new:
            raise _unknown("AlreadyExists", "log file has been archived")
        task.log += [row.get("content", "") for row in new]
        # An empty log can be closed, too, and closing it again is fine.
        task.log_ended = task.log_ended or (bool(body.get("noMore")) and index <= length)
        return {"ackIndex": str(len(task.log))} if task.log else {}

    def _update_task(self, runner: Runner, state: dict[str, Any]) -> dict[str, Any]:
        job = self._task(runner, state.get("id"))
        result = state.get("result", "RESULT_UNSPECIFIED").removeprefix("RESULT_").lower()
        if job.state not in _DONE and result != "unspecified":
            # What a user wanted stays, whatever the clean-up comes to.
            self._end(job, "cancelled" if job.state == "cancelling" else result)
        answer = {"id": str(state.get("id"))}
        if word := _RESULTS.get(job.state):
            answer["result"] = f"RESULT_{word.upper()}"
        return {"state": answer}


def fits(body: Any, what: Any, where: str) -> None:
    """Every name and type of an answer is one that the description has."""
    if isinstance(what, list):
        assert isinstance(body, list), where
        for each in body:
            fits(each, what[0], f"{where}[]")
    elif what in DESCRIPTION["definitions"]:
        known = DESCRIPTION["definitions"][what]
        assert set(body) <= set(known), f"{where}: {set(body) - set(known)}"
        for name, value in body.items():
            fits(value, known[name], f"{where}.{name}")
    else:
        plain = {"string": str, "integer": int, "boolean": bool}[what]
        assert type(body) is plain, f"{where}: {body!r}"


def _page(items: list[Any], query: dict[str, str]) -> list[Any]:
    page, limit = int(query.get("page", 1)), min(50, int(query.get("limit", 30)))
    return items[(page - 1) * limit : page * limit]


def _missing() -> dict[str, Any]:
    return {"message": "The target couldn't be found.", "errors": None}


def _unknown(code: str, said: str) -> Refused:
    return Refused(500, code="unknown", message=f"rpc error: code = {code} desc = {said}")
