"""Forgejo 15 as vmrunner and a runner meet it: an HTTP server with jobs, runners and the runner
RPC, for what can't be had here.

Behaviour: what Forgejo's source and own tests say (REST under `/api/v1`, RPC under
`/api/actions/runner.v1.RunnerService`). Every REST answer is checked against
`tests/forge/schema.py`; what does not fit is kept in `faults_of_its_own` and raised at the end.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.forge import schema

SHA = "0" * 40
OWNER = "rig"
"""Whose tokens these are; `/user` means them."""
ALL_SCOPES = frozenset({"write:admin", "write:organization", "write:user", "write:repository"})
_SERVICE = "/api/actions/runner.v1.RunnerService/"
_KINDS = {
    "admin": "admin",
    "orgs": "organization",
    "user": "user",
    "repos": "repository",
    "repositories": "repository",
}


class Refused(Exception):
    """An answer that is an error: status and body."""

    def __init__(self, status: int, **body: Any) -> None:
        super().__init__(f"{status} {body}")
        self.status, self.body = status, body


@dataclass
class Runner:
    """One runner record; `scope` is `admin`, `user`, `orgs/NAME` or `repos/OWNER/NAME`."""

    id: int
    name: str
    description: str
    ephemeral: bool
    scope: str
    uuid: str = field(
        default_factory=lambda: "-".join(secrets.token_hex(size) for size in (4, 2, 2, 2, 6))
    )
    token: str = field(default_factory=lambda: secrets.token_hex(20))
    labels: list[str] = field(default_factory=list)
    version: str = ""
    seen: float = 0.0  # by time.monotonic(); any call
    reported: float = 0.0  # a call about a task

    def plain(self) -> dict[str, Any]:
        keys = ("id", "uuid", "name", "description", "ephemeral", "labels", "version")
        at = time.monotonic()
        status = "idle" if at - self.seen < 60 and self.seen else "offline"
        # So a runner that has a job and says nothing is not active.
        status = "active" if at - self.reported < 10 and self.reported else status
        return {key: getattr(self, key) for key in keys} | {
            "owner_id": 0,
            "repo_id": 0,
            "status": status,
        }


@dataclass
class Job:
    """One job, in its only attempt; `result` is empty until it is over."""

    id: int
    name: str
    labels: list[str]
    steps: list[str]
    repository: str
    repo_id: int
    handle: str = field(default_factory=lambda: secrets.token_hex(16))
    task_id: int = 0
    runner: Runner | None = None
    result: str = ""
    created: str = field(default_factory=lambda: now())
    began: str = ""
    log: list[str] = field(default_factory=list)
    log_ended: bool = False
    states: list[dict[str, Any]] = field(default_factory=list)
    # Of its run: what it is about, in short, by what event, and that event's webhook.
    ref: str = "main"
    event: str = "push"
    payload_of_event: str = '{"ref": "refs/heads/main"}'
    from_fork: bool = False

    def plain(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "attempt": 1,
            "handle": self.handle,
            "repo_id": self.repo_id,
            "owner_id": 1,
            "name": self.name,
            "needs": [],
            "runs_on": self.labels,
            "task_id": self.task_id,
            "status": "running" if self.task_id else "waiting",
        }

    def task(self, url: str) -> dict[str, Any]:
        """As the list of tasks shows it: neither its job's id nor its handle, nor who ran it."""
        return {
            "id": self.task_id,
            "name": self.name,
            "head_branch": self.ref,
            "head_sha": SHA,
            "run_number": self.id,
            "event": self.event,
            "display_title": "a commit",
            "status": self.result.removeprefix("RESULT_").lower() or "running",
            "workflow_id": "ci.yaml",
            "url": f"{url}/{self.repository}/actions/runs/{self.id}",
            "created_at": self.created,
            "updated_at": now(),
            "run_started_at": self.began,
        }

    def run(self) -> dict[str, Any]:
        return {
            "id": 5000 + self.id,
            "index_in_repo": self.id,
            "prettyref": self.ref,
            "trigger_event": self.event,
            "event_payload": self.payload_of_event,
            "is_fork_pull_request": self.from_fork,
            "repository": _repository(self.repo_id, self.repository),
        }

    def payload(self) -> str:
        workflow = {
            "jobs": {
                self.name: {"runs-on": self.labels, "steps": [{"run": step} for step in self.steps]}
            }
        }
        return base64.b64encode(yaml.safe_dump(workflow).encode()).decode()


def _repository(number: int, name: str) -> dict[str, Any]:
    owner, _, short = name.partition("/")
    assert owner
    return {"id": number, "name": short, "full_name": name, "default_branch": "main"}


class Server:
    """An HTTP server in a forge's place; a context manager. `url` is where it listens."""

    def __init__(
        self,
        address: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        host: str = "",
    ) -> None:
        self.tokens = {secrets.token_hex(20): ALL_SCOPES}
        # Answers instead of us where it returns true.
        self.fault: Callable[[BaseHTTPRequestHandler], bool] | None = None
        self.faults_of_its_own: list[str] = []
        self.lock = threading.RLock()
        self._last = 0
        self.begin()
        double = self

        class Handler(_Handler):
            forge = double

        self._server = ThreadingHTTPServer((address, port), Handler)
        self._server.daemon_threads = True
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = (
            f"{'https' if tls else 'http'}://{host or address}:{self._server.server_address[1]}"
        )
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        assert not self.faults_of_its_own, self.faults_of_its_own

    @property
    def token(self) -> str:
        """A token with every scope."""
        return next(token for token, scopes in self.tokens.items() if scopes == ALL_SCOPES)

    def grant(self, *scopes: str) -> str:
        """A new token with just these scopes."""
        token = secrets.token_hex(20)
        self.tokens[token] = frozenset(scopes)
        return token

    def number(self) -> int:
        with self.lock:
            self._last += 1
            return self._last

    def begin(self) -> None:
        """What it has at first, set before anybody can ask."""
        raise NotImplementedError

    def rest(
        self, method: str, path: str, query: dict[str, str], token: str, body: dict[str, Any]
    ) -> tuple[int, Any, str, dict[str, str]]:
        """Status, body, the path as the API description writes it, and headers."""
        raise NotImplementedError

    def rpc(self, method: str, uuid: str, token: str, body: dict[str, Any]) -> dict[str, Any]:
        """One call of a runner; zero values are left out of the answer, and int64 are strings."""
        raise NotImplementedError

    def check(self, method: str, path: str, status: int, body: Any) -> None:
        """Raise where the forge gives no such answer."""
        raise NotImplementedError


class Double(Server):
    """Forgejo."""

    def begin(self) -> None:
        """See Server."""
        self.version = "15.0.9+gitea-1.22.0"
        self.runners: dict[int, Runner] = {}
        self.jobs: dict[int, Job] = {}
        self.repositories: dict[int, str] = {}  # owner/name
        self.without_actions: set[str] = set()  # repositories, owner/name

    def check(self, method: str, path: str, status: int, body: Any) -> None:
        """See Server."""
        schema.check(method, path, status, body)

    def add_job(
        self,
        name: str,
        *,
        labels: Sequence[str] = ("debian-12",),
        steps: Sequence[str] = ("true",),
        repository: str = "org1/r1",
    ) -> Job:
        """A job begins to wait."""
        with self.lock:
            repo_id = (
                next(
                    (number for number, known in self.repositories.items() if known == repository),
                    0,
                )
                or self.number()
            )
            self.repositories[repo_id] = repository
            job = Job(self.number(), name, list(labels), list(steps), repository, repo_id)
            self.jobs[job.id] = job
        return job

    def cancel(self, job: Job) -> None:
        """As a user does it on the forge's page: the job is over, its runner's record gone, and the
        guest hears nothing.
        """
        with self.lock:
            job.result = "RESULT_CANCELLED"
            if job.runner and job.runner.ephemeral:
                self.runners.pop(job.runner.id, None)

    # ---- REST ----

    def rest(
        self, method: str, path: str, query: dict[str, str], token: str, body: dict[str, Any]
    ) -> tuple[int, Any, str, dict[str, str]]:
        """Status, body, the path as the API description writes it, and headers."""
        if path == "/version":
            return 200, {"version": self.version}, path, {}
        found = re.fullmatch(
            r"/(repositories)/(\d+)|/(admin|user|orgs/([^/]+)|repos/([^/]+/[^/]+))/actions/(?:runners(?:/(jobs|\d+))?|(tasks|runs))",
            path,
        )
        if not found or (found[7] and not found[5]):
            raise Refused(404, message="404 page not found", url=self.url)
        scope, rest = found[3] or found[1], found[6] or found[7]
        kind = scope.partition("/")[0]
        if token not in self.tokens:
            raise Refused(401, message="invalid username, password or token", url=self.url)
        wanted = {f"write:{_KINDS[kind]}"} | (
            {f"read:{_KINDS[kind]}"} if method == "GET" else set()
        )
        if not wanted & self.tokens[token]:
            level = "read" if method == "GET" else "write"
            said = (
                f"token does not have at least one of required scope(s): [{level}:{_KINDS[kind]}]"
            )
            raise Refused(403, message=said, url=self.url)
        if kind == "repositories":
            return *self._repository(int(found[2])), "/repositories/{id}", {}
        template = {
            "admin": "/admin",
            "user": "/user",
            "orgs": "/orgs/{org}",
            "repos": "/repos/{owner}/{repo}",
        }[kind] + "/actions/runners"
        template += {None: "", "jobs": "/jobs"}.get(rest, "/{runner_id}")
        if rest in {"tasks", "runs"}:
            template = f"/repos/{{owner}}/{{repo}}/actions/{rest}"
        if kind == "repos" and found[5] in self.without_actions:
            return (
                404,
                {"message": "The target couldn't be found.", "url": self.url, "errors": []},
                template,
                {},
            )
        with self.lock:
            status, answer, headers = self._answer(method, scope, rest, query, body)
        return status, answer, template, headers

    def _repository(self, number: int) -> tuple[int, Any]:
        with self.lock:
            if (name := self.repositories.get(number)) is None:
                return 404, {
                    "message": "The target couldn't be found.",
                    "url": self.url,
                    "errors": [],
                }
            return 200, _repository(number, name)

    def _answer(
        self, method: str, scope: str, rest: str | None, query: dict[str, str], body: dict[str, Any]
    ) -> tuple[int, Any, dict[str, str]]:
        missing = {"message": "The target couldn't be found.", "url": self.url, "errors": []}
        mine = [runner for runner in self.runners.values() if scope in ("admin", runner.scope)]
        if rest == "tasks":
            tasks = [
                job.task(self.url)
                for job in self.jobs.values()
                if job.task_id and scope == f"repos/{job.repository}"
            ]
            page, limit = int(query.get("page", 1)), min(50, int(query.get("limit", 50)))
            newest = sorted(tasks, key=lambda task: -task["id"])[(page - 1) * limit : page * limit]
            return (
                200,
                {"total_count": len(tasks), "workflow_runs": newest},
                {"X-Total-Count": str(len(tasks))},
            )
        if rest == "runs":
            number = int(query.get("run_number", 0))
            runs = [
                job.run()
                for job in self.jobs.values()
                if scope == f"repos/{job.repository}" and number in (0, job.id)
            ]
            return 200, {"total_count": len(runs), "workflow_runs": runs}, {}
        if rest == "jobs":
            labels = [label for label in query.get("labels", "").split(",") if label]
            jobs = [
                job
                for job in self.jobs.values()
                if not job.result and covers(scope, job.repository)
            ]
            fitting = [
                job.plain()
                for job in sorted(jobs, key=lambda job: -job.id)
                if "labels" not in query or set(job.labels) <= set(labels)
            ]
            return 200, fitting or None, {}
        if rest is not None:
            runner = next((runner for runner in mine if runner.id == int(rest)), None)
            if runner is None:
                return 404, missing, {}
            if method == "DELETE":
                del self.runners[runner.id]
                return 204, None, {}
            return 200, runner.plain(), {}
        if method == "POST":
            made = Runner(
                self.number(),
                body["name"],
                body.get("description", ""),
                body.get("ephemeral", False),
                scope,
            )
            self.runners[made.id] = made
            return 201, {"id": made.id, "uuid": made.uuid, "token": made.token}, {}
        page, limit = int(query.get("page", 1)), min(50, int(query.get("limit", 30)))
        return (
            200,
            [runner.plain() for runner in mine[(page - 1) * limit : page * limit]],
            {"X-Total-Count": str(len(mine))},
        )

    # ---- the runner RPC ----

    def rpc(self, method: str, uuid: str, token: str, body: dict[str, Any]) -> dict[str, Any]:
        """One call; zero values are left out of the answer, and int64 are strings."""
        with self.lock:
            runner = next(
                (
                    each
                    for each in self.runners.values()
                    if (each.uuid, each.token) == (uuid, token)
                ),
                None,
            )
            if runner is None:
                raise Refused(401, code="unauthenticated", message="unregistered runner")
            runner.seen = time.monotonic()
            if method in ("UpdateTask", "UpdateLog"):
                runner.reported = runner.seen
            match method:
                case "Declare":
                    runner.labels, runner.version = (
                        list(body.get("labels", [])),
                        body.get("version", ""),
                    )
                    known = {"id": str(runner.id), "uuid": runner.uuid, "name": runner.name}
                    return {"runner": known | {"version": runner.version, "labels": runner.labels}}
                case "FetchTask":
                    return self._fetch(runner, "")
                case "FetchSingleTask":
                    return self._fetch(runner, body.get("handle", ""))
                case "UpdateLog":
                    return self._update_log(self._task(runner, body.get("taskId")), body)
                case "UpdateTask":
                    return self._update_task(runner, body["state"])
        raise Refused(404, code="unimplemented", message=method)

    def _fetch(self, runner: Runner, handle: str) -> dict[str, Any]:
        if runner.ephemeral and any(job.runner is runner for job in self.jobs.values()):
            return {"tasksVersion": "1"}
        for job in self.jobs.values():
            free = (
                not job.result
                and not job.task_id
                and set(job.labels) <= set(runner.labels)
                and covers(runner.scope, job.repository)
            )
            # Without a handle any job will do: that is what an empty one means, too.
            if free and handle in ("", job.handle):
                job.task_id, job.runner, job.began = self.number(), runner, now()
                context = {"repository": job.repository, "sha": SHA}
                return {
                    "task": {
                        "id": str(job.task_id),
                        "workflowPayload": job.payload(),
                        "context": context,
                    },
                    "tasksVersion": "1",
                }
        return {"tasksVersion": "1"}

    def _task(self, runner: Runner, task_id: Any) -> Job:
        job = next(
            (job for job in self.jobs.values() if job.task_id and str(job.task_id) == str(task_id)),
            None,
        )
        if job is None or job.runner is not runner:
            raise Refused(500, code="internal", message="invalid runner for task")
        return job

    def _update_log(self, job: Job, body: dict[str, Any]) -> dict[str, Any]:
        rows, index, length = body.get("rows", []), int(body.get("index", 0)), len(job.log)
        if rows and index <= length < index + len(rows):
            if job.log_ended:
                raise Refused(409, code="already_exists", message="log file has been archived")
            job.log += [row.get("content", "") for row in rows[length - index :]]
            job.log_ended = bool(body.get("noMore"))
        return {"ackIndex": str(len(job.log))} if job.log else {}

    def _update_task(self, runner: Runner, state: dict[str, Any]) -> dict[str, Any]:
        job = self._task(runner, state.get("id"))
        if job.result:  # what is over stays as it is
            return {"state": {"id": str(job.task_id), "result": job.result}}
        job.states.append(state)
        if state.get("result", "RESULT_UNSPECIFIED") == "RESULT_UNSPECIFIED":
            return {"state": {"id": str(job.task_id)}}
        job.result = state["result"]
        if runner.ephemeral:
            self.runners.pop(runner.id, None)
        return {"state": {"id": str(job.task_id), "result": job.result}}


def now() -> str:
    """A time of the server, in whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def covers(scope: str, repository: str) -> bool:
    """Whether runners of this scope may take jobs of this repository (owner/name)."""
    owner = repository.partition("/")[0]
    return scope in ("admin", f"orgs/{owner}", f"repos/{repository}") or (
        scope == "user" and owner == OWNER
    )


class _Handler(BaseHTTPRequestHandler):
    forge: Server
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.forge.fault
        if fault and fault(self):
            self.close_connection = True
            return
        address = urlsplit(self.path)
        try:
            body = json.loads(raw) if raw else {}
            if address.path.startswith(_SERVICE):
                if self.headers.get("Content-Type") != "application/json":
                    raise Refused(415)
                who = self.headers.get("x-runner-uuid", ""), self.headers.get("x-runner-token", "")
                self.answer(200, self.forge.rpc(address.path.removeprefix(_SERVICE), *who, body))
                return
            token = self.headers.get("Authorization", "").removeprefix("token ")
            query = {
                key: ",".join(values)
                for key, values in parse_qs(address.query, keep_blank_values=True).items()
            }
            status, answer, template, headers = self.forge.rest(
                self.command, address.path.removeprefix("/api/v1"), query, token, body
            )
            try:
                self.forge.check(self.command, template, status, answer)
            except Exception as error:
                self.forge.faults_of_its_own.append(f"{self.command} {template} {status}: {error}")
            self.answer(status, answer, headers, empty=status == 204)
        except Refused as refused:
            self.answer(refused.status, refused.body)

    do_GET = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815 — http.server's names

    def answer(
        self, status: int, body: Any, headers: dict[str, str] | None = None, *, empty: bool = False
    ) -> None:
        """Send JSON, `null` for None, or no body at all."""
        raw = b"" if empty else json.dumps(body).encode()
        self.send_raw(status, raw, headers)

    def send_raw(
        self,
        status: int,
        raw: bytes,
        headers: dict[str, str] | None = None,
        *,
        length: int | None = None,
    ) -> None:
        """Send these bytes; a `length` that is not theirs makes a broken answer."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(raw) if length is None else length))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        """Nothing: pytest's output is for the tests."""
