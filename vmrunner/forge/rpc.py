"""The runner RPC (Connect protocol, in JSON), as far as the host speaks it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, TypeAdapter

from vmrunner.errors import ForgeDenied, ForgeUnreachable
from vmrunner.forge.http import Http, Number, Word, decode, message, parse
from vmrunner.model.job import Credentials
from vmrunner.text import presentable

_SERVICE = "/api/actions/runner.v1.RunnerService"
_LONGEST = 1000  # characters of one line of ours in a job's log
# Gitea answers all of these with 500, Forgejo with 401, 500 and 409: only the texts are the same.
_NOT_OURS = ("unregistered runner", "invalid runner for task")
_LOG_CLOSED = "log file has been archived"


class Result(StrEnum):
    """How a job or one of its steps ended."""

    SUCCESS = "RESULT_SUCCESS"
    FAILURE = "RESULT_FAILURE"
    CANCELLED = "RESULT_CANCELLED"
    SKIPPED = "RESULT_SKIPPED"


class _Registered(BaseModel):
    id: Number  # int64 travels as a string
    uuid: Word
    token: Word


class _RegisterAnswer(BaseModel):
    runner: _Registered


class _LogAnswer(BaseModel):
    ackIndex: Number = 0  # noqa: N815 — the RPC's name; int64 travels as a string, and zero not at all


class _State(BaseModel):
    result: Result


class _TaskAnswer(BaseModel):
    state: _State


_REGISTER, _LOG, _TASK = (
    TypeAdapter(_RegisterAnswer),
    TypeAdapter(_LogAnswer),
    TypeAdapter(_TaskAnswer),
)


class _Refused(Exception):
    """The forge does not know these credentials any more, or the task is another runner's."""


class TokenReplaced(ForgeDenied):
    """The registration token was good a moment ago: somebody else has asked for a repository's
    first one at the same time.
    """


def register(http: Http, registration_token: str, name: str, labels: Sequence[str]) -> Credentials:
    """Register an ephemeral runner from the host, so that the registration token never enters a
    machine.

    Source: Gitea 1.26 `runner.v1.RunnerService/Register`; its errors are all HTTP 500 and differ
    only in their text.
    """
    body = {"name": name, "token": registration_token, "labels": list(labels), "ephemeral": True}
    answer = http.send(
        "POST", f"{_SERVICE}/Register", "the registration of a runner", headers={}, body=body
    )
    if not answer.is_success:
        said = message(answer)
        if (
            "registration token not found" in said
            or "registration token has been invalidated" in said
        ):
            raise TokenReplaced(
                "The forge rejected its own registration token.",
                "It was replaced a moment ago; run the command again.",
            )
        raise ForgeUnreachable(
            f"The forge did not register a runner ({answer.status_code}: {said}).",
            "Its own log says more.",
        )
    runner = parse(
        _REGISTER, decode(answer, "the registration of a runner"), "the registration of a runner"
    ).runner
    return Credentials(id=runner.id, uuid=runner.uuid, token=runner.token)


def fail(
    http: Http,
    credentials: Credentials,
    task_id: Number,
    lines: Sequence[str],
    steps: Sequence[Result] = (),
) -> bool:
    """End a task as failed in its runner's name; `lines` become the end of its log, and the log is
    closed.

    `steps` is what the job's page shall show for its steps, in their order; the lines appear with
    the one that is FAILURE. Without them the forge shows every step that has begun as running for
    ever, and our lines only in the downloaded log.

    False where the forge refuses: it has ended the task already, or the task is another runner's;
    nothing is changed then, so trying tasks of which one must be ours is safe. Everything else is a
    ForgeUnreachable; calling again is safe, the lines are not doubled.

    Source: `UpdateLog` and `UpdateTask` of Gitea 1.26 (seen live) and Forgejo 15 (read).
    """
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    # A log can be closed only together with a line.
    rows = [{"time": now, "content": presentable(line, _LONGEST)} for line in lines or [""]]
    try:
        # Without rows it only tells.
        length = _log_length(http, credentials, {"taskId": str(task_id)})
        update = {"taskId": str(task_id), "index": str(length), "rows": rows, "noMore": True}
        length = _log_length(http, credentials, update) or length
        # What is left out here stays as the runner reported it: where a step's log begins, and when
        # it ran.
        states: list[dict[str, Any]] = [
            {"id": str(number), "result": result} for number, result in enumerate(steps)
        ]
        for state in states:
            if state["result"] is Result.FAILURE:
                state |= {"stoppedAt": now, "logLength": str(length)}
        body = {
            "state": {
                "id": str(task_id),
                "result": Result.FAILURE,
                "stoppedAt": now,
                "steps": states,
            }
        }
        doing = "the end of a job"
        return (
            parse(_TASK, _call(http, credentials, "UpdateTask", doing, body), doing).state.result
            is Result.FAILURE
        )
    except _Refused:
        return False


def _log_length(http: Http, credentials: Credentials, update: dict[str, Any]) -> int:
    """Send rows, or none; how many the log has now, 0 where it is closed already."""
    doing = "the end of a job's log"
    return parse(
        _LOG, _call(http, credentials, "UpdateLog", doing, update, fine=_LOG_CLOSED), doing
    ).ackIndex


def _call(
    http: Http,
    credentials: Credentials,
    method: str,
    doing: str,
    body: dict[str, Any],
    *,
    fine: str = "",
) -> Any:
    """One call in a runner's name. An error that says `fine` is an empty answer."""
    headers = {"x-runner-uuid": credentials.uuid, "x-runner-token": credentials.token}
    answer = http.send("POST", f"{_SERVICE}/{method}", doing, headers=headers, body=body)
    if answer.is_success:
        return decode(answer, doing)
    said = message(answer)
    if any(text in said for text in _NOT_OURS):
        raise _Refused
    if fine and fine in said:
        return {}
    raise ForgeUnreachable(
        f"The forge did not take {doing} ({answer.status_code}: {said}).", "Its own log says more."
    )
