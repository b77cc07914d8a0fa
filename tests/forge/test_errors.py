"""Every way in which a forge can fail is one of our errors: a sentence, a hint, and never the
token.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from tests.forge.double import Double
from tests.forge.gitea import Site
from vmrunner.errors import (
    ConfigError,
    ForgeDenied,
    ForgeError,
    ForgeNotFound,
    ForgeTokenUnknown,
    ForgeUnreachable,
)
from vmrunner.forge.seam import Forge
from vmrunner.model.job import Credentials, Job, JobState, Scope

INSTANCE, REPOSITORY = Scope.parse("instance"), Scope.parse("repository:org1/r1")
CREDENTIALS = Credentials(1, "0123-uuid", "a-runner's-token")
RUNNING = Job(
    1, "job", ("debian-12",), JobState.RUNNING, "key", handle="key", repository="org1/r1", task_id=1
)


Client = Callable[..., Forge]


def failure(forge: Forge, token: str, scope: Scope = INSTANCE, call: str = "jobs") -> ForgeError:
    """The error of a call; its text must be presentable."""
    calls: dict[str, Callable[[], object]] = {
        "jobs": lambda: forge.jobs(scope),
        "runner": lambda: forge.create_runner(scope, "vmr-m-0123abcd", ["debian-12"]),
        "disable": lambda: forge.disable_runner(scope, 1),
        "fail": lambda: forge.fail_job(RUNNING, CREDENTIALS, ["it died"]),
    }
    with pytest.raises(ForgeError) as raised:
        calls[call]()
    error = raised.value
    assert error.sentence.endswith(".")
    assert error.hint
    assert f"{error.sentence}{error.hint}".isprintable()
    assert token not in f"{error!s}{error!r}{error.hint}"
    assert CREDENTIALS.token not in f"{error!s}{error!r}{error.hint}"
    return error


@pytest.mark.parametrize("kind", ["forgejo", "gitea"])
def test_nobody_there(client: Client, kind: str) -> None:
    for url, said in (
        ("http://127.0.0.1:9", "can't be reached"),
        ("http://nowhere.invalid", "can't be reached"),
    ):
        error = failure(client(url, "t0ken", kind=kind), "t0ken")
        assert (type(error), said in error.sentence) == (ForgeUnreachable, True)


def test_a_wrong_token(client: Client, double: Double) -> None:
    error = failure(client(double.url, "t0ken"), "t0ken")
    assert (type(error), "401" in error.sentence) == (ForgeTokenUnknown, True)


@pytest.mark.parametrize(
    ("scope", "word"),
    [
        ("instance", "admin"),
        ("organisation:org1", "organization"),
        ("user", "user"),
        ("repository:org1/r1", "repository"),
    ],
)
def test_a_missing_scope_is_named(client: Client, double: Double, scope: str, word: str) -> None:
    nothing, reader = double.grant(), double.grant(f"read:{word}")
    error = failure(client(double.url, nothing), nothing, Scope.parse(scope))
    assert (type(error), f"read:{word}" in error.hint) == (ForgeDenied, True)
    error = failure(client(double.url, reader), reader, Scope.parse(scope), "runner")
    assert (type(error), f"write:{word}" in error.hint) == (ForgeDenied, True)


def test_gitea_names_the_missing_scope_too(client: Client, site: Site) -> None:
    token = site.grant("read:user")
    error = failure(client(site.url, token, kind="gitea"), token)
    assert (type(error), "read:admin" in error.hint) == (ForgeDenied, True)
    error = failure(client(site.url, token, kind="gitea"), token, call="disable")
    assert (type(error), "write:admin" in error.hint) == (ForgeDenied, True)
    error = failure(client(site.url, token, kind="gitea"), token, call="fail")
    assert (type(error), "read:repository" in error.hint) == (ForgeDenied, True)
    error = failure(client(site.url, "t0ken", kind="gitea"), "t0ken")
    assert (type(error), "401" in error.sentence) == (ForgeTokenUnknown, True)


@pytest.mark.parametrize(("refusals", "succeeds"), [(1, True), (100, False)])
def test_a_registration_token_that_was_replaced_meanwhile(
    client: Client, site: Site, refusals: int, succeeds: bool
) -> None:
    forge = client(site.url, site.token, kind="gitea")
    refused = httpx.Response(
        500,
        json={
            "message": "runner registration token has been invalidated, please use the latest one"
        },
    )
    answers, real = iter([refused] * refusals), forge._http.send

    def send(method: str, path: str, *arguments: Any, **options: Any) -> httpx.Response:
        refusal = next(answers, None) if path.endswith("/Register") else None
        return refusal or real(method, path, *arguments, **options)

    forge._http.send = send
    scope = Scope.parse("instance")
    if succeeds:
        forge.delete_runner(
            scope, forge.create_runner(scope, "vmr-replaced-00000000", ["debian-12"]).id
        )
    else:
        with pytest.raises(ForgeDenied, match="rejected its own registration token"):
            forge.create_runner(scope, "vmr-replaced-00000000", ["debian-12"])


def test_a_job_of_a_repository_that_is_gone(client: Client, site: Site) -> None:
    assert (
        type(failure(client(site.url, site.token, kind="gitea"), site.token, call="fail"))
        is ForgeNotFound
    )


def test_actions_switched_off(client: Client, double: Double) -> None:
    double.without_actions.add("org1/r1")
    error = failure(client(double.url, double.token), double.token, REPOSITORY, "runner")
    assert (type(error), "Actions" in error.hint) == (ForgeNotFound, True)


def test_a_certificate_that_is_not_trusted(client: Client, tmp_path: Path) -> None:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    pem = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(pem))
    with Double(tls=server) as double:
        error = failure(client(double.url, double.token), double.token)
        assert (type(error), "TLS" in error.sentence, "ca_file" in error.hint) == (
            ForgeUnreachable,
            True,
            True,
        )
        assert client(double.url, double.token, pem).jobs(INSTANCE) == []


def test_a_ca_file_that_is_none(client: Client, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(ConfigError):
        client("https://forge.example", "t0ken", tmp_path / "ca.pem")


JOB = {
    "id": 1,
    "url": "http://forge/api/v1/repos/o/r/actions/jobs/1",
    "name": "build",
    "labels": ["debian-12"],
    "status": "queued",
}
CLOSE = {"Connection": "close"}  # so that no further request is sent there
FAULTS: dict[str, tuple[Callable[[Any], object], str]] = {
    "an error of the server's": (
        lambda handler: handler.answer(500, {"message": "database is locked"}),
        "500: database is locked",
    ),
    "a proxy's page": (
        lambda handler: handler.send_raw(200, b"<html>Please log in</html>"),
        "not JSON",
    ),
    "a proxy's error": (lambda handler: handler.send_raw(502, b"<html>Bad Gateway</html>"), "502"),
    "a truncated answer": (
        lambda handler: handler.send_raw(200, b'[{"id": 1, "na', length=99),
        "can't be reached",
    ),
    "truncated JSON": (lambda handler: handler.send_raw(200, b'[{"id": 1, "na'), "not JSON"),
    "another shape": (lambda handler: handler.answer(200, [{"id": "x"}]), "something unusable"),
    "a string": (lambda handler: handler.answer(200, "ok"), "something unusable"),
    "a gzip that is none": (
        lambda handler: handler.send_raw(200, b"no gzip", CLOSE | {"Content-Encoding": "gzip"}),
        "can't be unpacked",
    ),
    "more depth than Python has": (
        lambda handler: handler.send_raw(200, b"[" * 99999, CLOSE),
        "not JSON",
    ),
    "the same as an error": (lambda handler: handler.send_raw(500, b"[" * 99999, CLOSE), "500"),
    "what a terminal obeys": (
        lambda handler: handler.answer(500, {"message": "a\x1b]0;b\x07c\u202ed"}, CLOSE),
        "500: a ]0;b c d",
    ),
    "a word about a message": (lambda handler: handler.answer(404, "a message", CLOSE), "404"),
    "no answer": (lambda handler: handler.connection.close(), "can't be reached"),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("call", ["jobs", "fail"])
@pytest.mark.parametrize("kind", ["forgejo", "gitea"])
def test_answers_that_cannot_be_used(
    client: Client, double: Double, name: str, call: str, kind: str
) -> None:
    give, said = FAULTS[name]
    double.fault = lambda handler: give(handler) is None
    error = failure(client(double.url, double.token, kind=kind), double.token, call=call)
    assert (type(error), said in error.sentence) == (ForgeUnreachable, True), error.sentence


def taken(double: Double, forge: Forge) -> tuple[Job, Credentials]:
    """The double's one job, run by a runner that has said one line."""
    double.add_job("job", repository="org1/r1")
    credentials = forge.create_runner(INSTANCE, "vmr-m-0123abcd", ["debian-12"])
    who = credentials.uuid, credentials.token
    double.rpc("Declare", *who, {"labels": ["debian-12"]})
    task = double.rpc("FetchTask", *who, {})["task"]["id"]
    double.rpc("UpdateLog", *who, {"taskId": task, "rows": [{"content": "one"}]})
    (job,) = forge.jobs(INSTANCE)
    return job, credentials


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("name", [*FAULTS, "a hang", "an answer that was lost"])
def test_a_job_that_could_not_be_failed_is_failed_by_the_next_try(
    client: Client, double: Double, name: str, at: int
) -> None:
    """At each of the three calls; the lines are in the log once."""
    forge = client(double.url, double.token)
    job, credentials = taken(double, forge)
    calls: list[str] = []
    gave_up = threading.Event()

    def fault(handler: Any) -> bool:
        if "RunnerService" not in handler.path:
            return False
        calls.append(handler.path.rpartition("/")[2])
        if len(calls) != at:
            return False
        if name == "an answer that was lost":
            state = {"id": job.task_id, "result": "RESULT_FAILURE"}
            rows = [{"content": "it died"}] if at == 2 else []
            body = {"taskId": job.task_id, "index": 1, "rows": rows, "noMore": True, "state": state}
            double.rpc(calls[-1], credentials.uuid, credentials.token, body)
            handler.connection.close()
        elif name == "a hang":
            gave_up.wait(60)
        else:
            FAULTS[name][0](handler)
        return True

    double.fault = fault
    hasty = forge
    if name == "a hang":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("vmrunner.forge.http._TIMEOUT", httpx.Timeout(1.0))
            hasty = client(double.url, double.token)
    with pytest.raises(ForgeUnreachable):
        hasty.fail_job(job, credentials, ["it died"])
    gave_up.set()
    assert calls == ["UpdateLog", "UpdateLog", "UpdateTask"][:at], "nothing is retried inside"
    if at == 3:
        assert double.jobs[job.id].log_ended
    over = name == "an answer that was lost" and at == 3
    assert forge.fail_job(job, credentials, ["it died"]) == (not over)
    assert (double.jobs[job.id].log, double.jobs[job.id].result, double.runners) == (
        ["one", "it died"],
        "RESULT_FAILURE",
        {},
    )
    assert not forge.fail_job(job, credentials, ["it died"])


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ({"total_count": "\u00b2"}, ""),
        ({"total_count": "9" * 5000}, ""),
        ({"jobs": [{**JOB, "url": "http://["}]}, ""),
        ({"jobs": [{**JOB, "id": 2**63}]}, "0.id: Input should be less than"),
        ({"jobs": [{**JOB, "run_attempt": -(2**70)}]}, "0.run_attempt: Input should be greater"),
        ({"jobs": [{**JOB, "runner_id": 2**70}]}, "0.runner_id: Input should be less than"),
    ],
)
def test_numbers_and_addresses_that_are_none(
    client: Client, double: Double, page: dict[str, Any], said: str
) -> None:
    answers = iter([{"jobs": [JOB], "total_count": 1} | page])
    rest = {"jobs": [], "total_count": 0, "version": "1." + "9" * 5000}

    def answer(handler: Any) -> bool:
        told = next(answers, rest) if "/jobs" in handler.path else {"version": rest["version"]}
        handler.answer(200, told, CLOSE)
        return True

    double.fault = answer
    forge = client(double.url, double.token, kind="gitea")
    if said:
        assert said in failure(forge, double.token).sentence
    else:
        assert [job.name for job in forge.jobs(INSTANCE)] == ["build"]


def test_a_job_that_nobody_has_taken_is_not_failed(client: Client, double: Double) -> None:
    waiting = double.add_job("job")
    forge = client(double.url, double.token)
    (job,) = forge.jobs(INSTANCE)
    assert not forge.fail_job(
        job, forge.create_runner(INSTANCE, "vmr-m-0123abcd", ["debian-12"]), ["it died"]
    )
    assert (waiting.result, waiting.log) == ("", [])


def test_null_for_a_runner_that_was_made(client: Client, double: Double) -> None:
    double.fault = lambda handler: handler.answer(201, None) is None  # type: ignore[attr-defined]
    error = failure(client(double.url, double.token), double.token, call="runner")
    assert "something unusable" in error.sentence


def test_a_forge_that_hangs(
    client: Client, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmrunner.forge.http._TIMEOUT", httpx.Timeout(0.3))
    double.fault = lambda _: time.sleep(1) is None
    error = failure(client(double.url, double.token), double.token)
    assert "did not answer" in error.sentence
