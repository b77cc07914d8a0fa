"""What the forges do the same behind the seam: one set of tests for real Gitea 1.26, for the double
of 1.27, and for the Forgejo double.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from tests.forge.double import Double
from tests.forge.double_gitea import Gitea
from tests.forge.gitea import ADMIN, Repository, Site, until
from vmrunner.forge.forgejo import Forgejo
from vmrunner.forge.http import Http
from vmrunner.forge.seam import Forge
from vmrunner.model.job import Claim, Credentials, Job, JobFacts, JobState, Scope, Sought
from vmrunner.model.secret import Secret

ORGANISATION, REPOSITORY = "behaviour", "behaviour/r1"
SCOPES = [
    Scope.parse(text)
    for text in ("instance", f"organisation:{ORGANISATION}", "user", f"repository:{REPOSITORY}")
]
INSTANCE = SCOPES[0]
NAME = "vmr-behaviour-0123abcd"


class Runner:
    """The runner RPC from a runner's side, as far as these tests go."""

    def __init__(self, forge: Forge, credentials: Credentials) -> None:
        self._url = f"{forge.url}/api/actions/runner.v1.RunnerService/"
        self._headers = {"x-runner-uuid": credentials.uuid, "x-runner-token": credentials.token}

    def call(self, method: str, **body: Any) -> httpx.Response:
        return httpx.post(self._url + method, json=body, headers=self._headers, timeout=20)

    def take(self, labels: Sequence[str]) -> str:
        """Declare the labels and fetch a task; its id."""
        assert self.call("Declare", version="v1", labels=list(labels)).is_success
        task: dict[str, Any] = until(
            lambda: self.call("FetchTask", tasksVersion="0").json().get("task"), 20, "a task"
        )
        return str(task["id"])

    def log(self, task: str, *lines: str, index: int = 0, more: bool = True) -> None:
        """Send lines of the job's log, and that these are the last unless `more`."""
        rows = [{"time": now(), "content": line} for line in lines]
        assert self.call(
            "UpdateLog", taskId=task, index=str(index), rows=rows, noMore=not more
        ).is_success

    def finish(self, task: str) -> None:
        assert self.call(
            "UpdateTask",
            state={"id": task, "result": "RESULT_SUCCESS", "startedAt": now(), "stoppedAt": now()},
        ).is_success


def now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


@dataclass
class Side:
    """One forge: its client, how to put jobs into it, and what it has of them."""

    forge: Forge
    queue: Callable[[Sequence[str]], None]  # one job with these labels, in REPOSITORY
    log: Callable[[Job], list[str]]  # a job's log, without times

    def started(self, *labels: str, name: str = NAME) -> tuple[Job, Credentials, Runner, str]:
        """A job that runs: as listed, with its runner and its task."""
        self.queue(labels)
        until(lambda: waiting(self.forge, INSTANCE, labels), 20, "the job")
        credentials = self.forge.create_runner(INSTANCE, name, labels)
        runner = Runner(self.forge, credentials)
        task = runner.take(labels)
        (job,) = [job for job in running(self.forge) if job.labels == labels]
        return job, credentials, runner, task


@pytest.fixture(params=["gitea", "gitea 1.27", "forgejo"])
def side(request: pytest.FixtureRequest, client: Callable[..., Forge]) -> Iterator[Side]:
    if request.param == "gitea 1.27":
        newer: Gitea = request.getfixturevalue("gitea")
        yield Side(
            client(newer.url, newer.token, kind="gitea"),
            lambda labels: newer.add_job(labels=labels, repository=REPOSITORY) and None,
            lambda job: newer.jobs[job.id].task.log,
        )
        return
    if request.param == "forgejo":
        double: Double = request.getfixturevalue("double")
        yield Side(
            client(double.url, double.token),
            lambda labels: double.add_job("job", labels=labels, repository=REPOSITORY) and None,
            lambda job: double.jobs[job.id].log,
        )
        return
    site: Site = request.getfixturevalue("site")
    site.organisation(ORGANISATION)
    repositories: list[Repository] = []

    def queue(labels: Sequence[str]) -> None:
        # A push would cancel what waits of the one before, so: a workflow for each, and none of
        # them on push.
        text = (
            f"on: workflow_dispatch\njobs:\n  job:\n    runs-on: [{', '.join(labels)}]\n    "
            f"steps: [{{run: 'true'}}]\n"
        )
        if not repositories:
            repositories.append(site.repository(*REPOSITORY.split("/"), text))
        file = f"{'-'.join(labels)}.yaml"
        repositories[0].push(text, file)
        repositories[0].dispatch(file)

    def log(job: Job) -> list[str]:
        return [line.partition(" ")[2] for line in repositories[0].log(job.id).splitlines()]

    yield Side(client(site.url, site.token, kind="gitea"), queue, log)
    for repository in repositories:
        repository.delete()
    for record in site.runners():
        if record["name"].startswith("vmr-behaviour-"):
            site.call("DELETE", f"/admin/actions/runners/{record['id']}", fine=(404,))


def waiting(forge: Forge, scope: Scope, labels: Sequence[str]) -> list[Job]:
    return [job for job in forge.jobs(scope) if job.state is JobState.WAITING and job.fits(labels)]


def running(forge: Forge) -> list[Job]:
    return [job for job in forge.jobs(INSTANCE) if job.state is JobState.RUNNING]


def labels_of(forge: Forge, *labels: str) -> list[tuple[str, ...]]:
    return [job.labels for job in waiting(forge, INSTANCE, labels)]


def test_where_a_running_job_comes_from(side: Side) -> None:
    side.queue(["vm-a"])
    (waits,) = until(lambda: waiting(side.forge, INSTANCE, ["vm-a"]), 20, "the job")
    assert side.forge.facts(INSTANCE, waits.repository, waits.key, 1) is None, "nobody has it yet"
    credentials = side.forge.create_runner(INSTANCE, NAME, ["vm-a"])
    runner = Runner(side.forge, credentials)
    task = runner.take(["vm-a"])
    (job,) = running(side.forge)
    facts = side.forge.facts(INSTANCE, job.repository, job.key, credentials.id)
    assert facts
    event = facts.event
    assert event in {"push", "workflow_dispatch"}
    assert facts.repository_id > 0
    assert replace(facts, repository_id=0) == JobFacts(
        REPOSITORY, "refs/heads/main", event, None, "main", from_fork=False
    )
    if not side.forge.binds_jobs:
        assert side.forge.facts(INSTANCE, job.repository, job.key, credentials.id + 1) is None
    for repository, key in (("", job.key), (REPOSITORY, "999999.1"), ("no/body", job.key)):
        known = side.forge.facts(INSTANCE, repository, key, credentials.id)
        assert known is None or side.forge.binds_jobs, (repository, key)
    runner.finish(task)
    assert side.forge.facts(INSTANCE, job.repository, job.key, credentials.id) is None, "it is over"


def test_waiting_jobs_are_those_that_all_labels_cover_oldest_first(side: Side) -> None:
    assert waiting(side.forge, INSTANCE, ["vm-a", "vm-b"]) == []
    for labels in (["vm-a"], ["vm-a", "vm-b"], ["vm-c"]):
        side.queue(labels)
    until(lambda: labels_of(side.forge, "vm-c"), 20, "the last job")
    assert labels_of(side.forge, "vm-a", "vm-b", "vm-x") == [("vm-a",), ("vm-a", "vm-b")]
    assert labels_of(side.forge, "vm-a") == [("vm-a",)]
    assert labels_of(side.forge, "vm-x") == []
    (job,) = waiting(side.forge, INSTANCE, ["vm-c"])
    assert (job.state, job.name, bool(job.key), bool(job.handle)) == (
        JobState.WAITING,
        "job",
        True,
        side.forge.binds_jobs,
    )
    counted = [side.forge.waiting(scope) for scope in SCOPES]
    assert counted == ([None] * 4 if side.forge.binds_jobs else [3, 3, 0, 3])
    for scope in (SCOPES[1], SCOPES[3]):
        assert [found.key for found in waiting(side.forge, scope, ["vm-c"])] == [job.key]
    assert waiting(side.forge, SCOPES[2], ["vm-c"]) == [], (
        "the user has no part in the organisation's repository"
    )


@pytest.mark.parametrize("scope", SCOPES, ids=str)
def test_a_runner_is_made_listed_and_deleted_in_its_scope(side: Side, scope: Scope) -> None:
    side.queue(["vm-idle"])  # so that the repository exists
    credentials = side.forge.create_runner(scope, NAME, ["vm-a"])
    mine = [record for record in side.forge.runners(scope) if record.name == NAME]
    assert [(record.id, record.ephemeral, record.online) for record in mine] == [
        (credentials.id, True, False)
    ]
    assert credentials.id in {record.id for record in side.forge.runners(INSTANCE)}, (
        "the instance shows every scope's"
    )
    assert credentials.token not in repr(credentials)
    side.forge.delete_runner(scope, credentials.id)
    side.forge.delete_runner(scope, credentials.id)  # again is fine
    assert NAME not in {record.name for record in side.forge.runners(scope)}
    assert not Runner(side.forge, credentials).call("FetchTask", tasksVersion="0").is_success


@pytest.mark.parametrize("is_last", [False, True])
def test_a_record_tells_which_job_its_runner_is_for(side: Side, is_last: bool) -> None:
    side.queue(["vm-a"])
    until(lambda: labels_of(side.forge, "vm-a"), 20, "the job")
    (job,) = waiting(side.forge, INSTANCE, ["vm-a"])
    claim = Claim.of(job, is_last=is_last)
    credentials = side.forge.create_runner(INSTANCE, NAME, ["vm-b"], claim)
    (listed,) = [each for each in side.forge.runners(INSTANCE) if each.id == credentials.id]
    assert listed.claim == claim
    assert job.key not in str(claim), "a handle is worth a job"
    if not side.forge.binds_jobs:
        assert listed.labels == ("vm-b",)
    answer = Runner(side.forge, credentials).call("Declare", version="v1", labels=["vm-b"])
    assert answer.is_success
    declared = side.forge.runner(INSTANCE, credentials.id)
    assert declared
    assert declared.labels == ("vm-b",)
    assert declared.claim == (claim if side.forge.binds_jobs else None)


@pytest.mark.parametrize("scope", SCOPES, ids=str)
def test_a_record_is_told_by_its_id_in_its_scope(side: Side, scope: Scope) -> None:
    side.queue(["vm-idle"])  # so that the repository exists
    credentials = side.forge.create_runner(scope, NAME, ["vm-a"])
    listed = [record for record in side.forge.runners(scope) if record.id == credentials.id]
    assert [side.forge.runner(scope, credentials.id)] == listed
    assert side.forge.runner(INSTANCE, credentials.id) is not None
    assert side.forge.runner(scope, credentials.id + 1000) is None
    side.forge.delete_runner(scope, credentials.id)
    assert side.forge.runner(scope, credentials.id) is None


def test_a_job_and_its_record_are_told_by_their_ids_until_they_are_over(side: Side) -> None:
    side.queue(["vm-asked"])
    until(lambda: labels_of(side.forge, "vm-asked"), 20, "the job")
    (before,) = waiting(side.forge, INSTANCE, ["vm-asked"])
    assert side.forge.job(INSTANCE, REPOSITORY, before.key) == before
    credentials = side.forge.create_runner(INSTANCE, NAME, ["vm-asked"])
    runner = Runner(side.forge, credentials)
    task = runner.take(["vm-asked"])
    # By the key of before it was taken, too: on Gitea that is another one than afterwards.
    now = side.forge.job(INSTANCE, REPOSITORY, before.key)
    assert now
    assert now.state is JobState.RUNNING
    assert now.runner_id == (0 if side.forge.binds_jobs else credentials.id)
    runner.log(task, "hello")
    record = side.forge.runner(INSTANCE, credentials.id)
    assert record
    assert (record.busy, record.is_silent) == (True, False), "it has just told of its job"
    runner.finish(task)
    until(lambda: side.forge.runner(INSTANCE, credentials.id) is None, 20, "the record goes")
    after = side.forge.job(INSTANCE, REPOSITORY, before.key)
    if side.forge.binds_jobs:
        assert after is None, "Forgejo tells only of open jobs"
    else:
        assert after
        assert (after.state, after.runner_id) == (JobState.DONE, credentials.id)
    assert side.forge.job(INSTANCE, REPOSITORY, "999999.0") is None
    assert side.forge.job(INSTANCE, "", before.key) is None or side.forge.binds_jobs


def test_one_job_makes_the_credentials_worthless(side: Side) -> None:
    side.queue(["vm-once"])
    until(lambda: labels_of(side.forge, "vm-once"), 20, "the job")
    credentials = side.forge.create_runner(INSTANCE, NAME, ["vm-once"])
    runner = Runner(side.forge, credentials)
    assert running(side.forge) == []
    task = runner.take(["vm-once"])
    (job,) = running(side.forge)
    assert (job.state, waiting(side.forge, INSTANCE, ["vm-once"])) == (JobState.RUNNING, [])
    assert [
        record.online for record in side.forge.runners(INSTANCE) if record.id == credentials.id
    ] == [True]
    assert "task" not in runner.call("FetchTask", tasksVersion="0").json(), "ephemeral: one job"
    runner.finish(task)
    until(lambda: not running(side.forge), 20, "the job is over")
    assert credentials.id not in {record.id for record in side.forge.runners(INSTANCE)}
    refused = runner.call("FetchTask", tasksVersion="0")
    assert (refused.is_success, "unregistered runner" in refused.text) == (False, True)


def test_runners_of_more_than_one_page_are_all_seen(side: Side) -> None:
    made = {
        side.forge.create_runner(INSTANCE, f"vmr-behaviour-{number:08x}", ["vm-a"]).id
        for number in range(53)
    }
    assert made <= {record.id for record in side.forge.runners(INSTANCE)}


def ids(forge: Forge) -> set[int]:
    return {record.id for record in forge.runners(INSTANCE)}


def test_a_job_whose_machine_died_is_failed(side: Side) -> None:
    job, credentials, runner, task = side.started("vm-dies")
    runner.log(task, "one", "two")
    lines = [
        "vmrunner: the machine m-1 on the host h-1 died \u2014 \x1b[31mred\u202e\r\n",
        "x" * 5000,
    ]
    assert side.forge.fail_job(job, credentials, lines)
    assert running(side.forge) == waiting(side.forge, INSTANCE, job.labels) == []
    assert credentials.id not in ids(side.forge)
    assert "unregistered runner" in runner.call("FetchTask", tasksVersion="0").text
    assert side.log(job) == [
        "one",
        "two",
        "vmrunner: the machine m-1 on the host h-1 died \u2014  [31mred   ",
        "x" * 1000,
    ]
    assert not side.forge.fail_job(job, credentials, ["again"])
    assert len(side.log(job)) == 4


def test_a_job_that_ends_meanwhile_is_not_failed(side: Side) -> None:
    job, credentials, runner, task = side.started("vm-ends")
    runner.log(task, "one")
    runner.finish(task)
    assert not side.forge.fail_job(job, credentials, ["it died"])
    assert side.log(job) == ["one"]


def test_what_is_told_of_a_job_after_its_end(side: Side) -> None:
    job, credentials, runner, task = side.started("vm-told")
    idle = side.forge.create_runner(INSTANCE, "vmr-behaviour-1234abcd", ["vm-other"])
    sought = [
        Sought(credentials.id, ("vm-told",), (replace(job, task_id=0),)),
        Sought(idle.id, ("vm-other",)),
    ]
    running_still = side.forge.ended_jobs(INSTANCE, sought[:1])[credentials.id]
    assert running_still is not None
    assert (running_still.key, running_still.state, running_still.conclusion) == (
        job.key,
        JobState.RUNNING,
        "",
    )
    runner.finish(task)
    side.forge.jobs(INSTANCE)
    found = side.forge.ended_jobs(INSTANCE, sought)
    had = found[credentials.id]
    assert had is not None
    assert found[idle.id] is None, "it never had one"
    assert (had.key, had.name, had.repository, had.state, had.conclusion) == (
        job.key,
        "job",
        REPOSITORY,
        JobState.DONE,
        "success",
    )
    assert (len(had.sha), had.attempt) == (40, 1)
    assert had.run_url.startswith(f"{side.forge.url}/{REPOSITORY}/actions/runs/")
    assert had.started_at is not None
    assert abs(had.started_at.timestamp() - datetime.now(UTC).timestamp()) < 60
    if side.forge.binds_jobs:
        assert had.finished_at is None, "Forgejo does not tell it"
    else:
        assert had.finished_at is not None
        assert had.finished_at >= had.started_at
        assert had.url.startswith(had.run_url)


def test_a_job_that_nobody_began_is_nobodys(side: Side) -> None:
    side.queue(["vm-left"])
    (job,) = until(lambda: waiting(side.forge, INSTANCE, ["vm-left"]), 20, "the job")
    credentials = side.forge.create_runner(INSTANCE, NAME, ["vm-left"])
    assert side.forge.ended_jobs(INSTANCE, [Sought(credentials.id, ("vm-left",), (job,))]) == {
        credentials.id: None
    }


@pytest.mark.parametrize("lines", [["it died"], []], ids=["lines", "no lines"])
@pytest.mark.parametrize("sent", [[], ["last"]], ids=["no log", "a log that was closed"])
def test_a_job_is_failed_whatever_its_log_is(side: Side, sent: list[str], lines: list[str]) -> None:
    job, credentials, runner, task = side.started("vm-log")
    if sent:
        runner.log(task, *sent, more=False)
    assert side.forge.fail_job(job, credentials, lines)
    assert running(side.forge) == []
    assert side.log(job) == (sent or lines or [""])


def test_only_the_runner_that_has_a_job_can_fail_it(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmrunner.forge.http.PAGE", 2)  # the oldest task is on the second page
    first, mine, _, _ = side.started("vm-twin-1", name=NAME)
    second, other, runner, task = side.started("vm-twin-2", name="vmr-behaviour-1234abcd")
    third, _, _, _ = side.started("vm-twin-3", name="vmr-behaviour-2345abcd")
    assert first.name == second.name == third.name
    assert first.repository == second.repository == third.repository == REPOSITORY
    idle = side.forge.create_runner(INSTANCE, "vmr-behaviour-3456abcd", ["vm-idle"])

    for job, wrong in ((first, other), (first, idle), (second, mine)):
        assert not side.forge.fail_job(job, wrong, ["not mine"])
    assert [job.id for job in running(side.forge)] == [first.id, second.id, third.id]
    assert {mine.id, other.id, idle.id} <= ids(side.forge)

    assert side.forge.fail_job(first, mine, ["mine"])
    assert [job.id for job in running(side.forge)] == [second.id, third.id]
    assert side.log(first) == ["mine"]
    runner.log(task, "still here")
    runner.finish(task)
    assert side.log(second) == ["still here"]


def test_only_gitea_needs_a_runner_to_be_disabled(side: Side) -> None:
    side.queue(["vm-off"])
    until(lambda: waiting(side.forge, INSTANCE, ["vm-off"]), 20, "the job")
    credentials = side.forge.create_runner(INSTANCE, NAME, ["vm-off"])
    runner = Runner(side.forge, credentials)
    assert runner.call("Declare", version="v1", labels=["vm-off"]).is_success
    side.forge.disable_runner(INSTANCE, credentials.id)
    side.forge.disable_runner(INSTANCE, credentials.id)  # again is fine
    took = "task" in runner.call("FetchTask", tasksVersion="0").json()
    assert took == side.forge.binds_jobs
    assert len(waiting(side.forge, INSTANCE, ["vm-off"])) == (not took)
    side.forge.delete_runner(INSTANCE, credentials.id)
    side.forge.disable_runner(INSTANCE, credentials.id)  # gone is fine


def test_a_runner_that_is_disabled_in_a_job_can_end_it(side: Side) -> None:
    _, credentials, runner, task = side.started("vm-late")
    side.forge.disable_runner(INSTANCE, credentials.id)
    runner.log(task, "one")
    runner.finish(task)
    until(lambda: not running(side.forge), 20, "the job is over")


def test_gitea_lists_jobs_that_others_hold_back(site: Site, client: Callable[..., Forge]) -> None:
    forge = client(site.url, site.token, kind="gitea")
    job = "{{runs-on: vm-needs, {}steps: [{{run: 'true'}}]}}"
    text = f"on: [push]\njobs:\n  early: {job.format('')}\n  late: {job.format('needs: early, ')}\n"
    repository = site.repository(ADMIN, "needs", text)
    early, late = until(
        lambda: len(forge.jobs(INSTANCE)) == 2 and forge.jobs(INSTANCE), 20, "both jobs"
    )
    assert [(job.name, job.state) for job in (early, late)] == [
        ("early", JobState.WAITING),
        ("late", JobState.BLOCKED),
    ]
    runner = Runner(forge, forge.create_runner(SCOPES[2], NAME, ["vm-needs"]))
    task = runner.take(["vm-needs"])
    assert [job.state for job in forge.jobs(INSTANCE)] == [JobState.RUNNING, JobState.BLOCKED]
    runner.finish(task)
    (freed,) = until(lambda: waiting(forge, INSTANCE, ["vm-needs"]), 20, "the second job")
    assert (freed.id, freed.key) == (late.id, late.key)
    repository.delete()


@pytest.mark.parametrize(
    ("reported", "shown"),
    [
        (
            [],
            [
                ("failure", ["line 0", "line 1", "it died"]),
                ("skipped", []),
                ("skipped", []),
                ("failure", []),
            ],
        ),
        (
            ["runs"],
            [
                ("success", []),
                ("failure", ["line 0", "line 1", "it died"]),
                ("skipped", []),
                ("failure", []),
            ],
        ),
        (
            ["over", "runs"],
            [
                ("success", []),
                ("success", ["line 0"]),
                ("failure", ["line 1", "it died"]),
                ("failure", []),
            ],
        ),
        (
            ["over", "over"],
            [
                ("success", []),
                ("success", ["line 0"]),
                ("success", ["line 1"]),
                ("failure", ["it died"]),
            ],
        ),
    ],
    ids=["none has begun", "the first", "the second", "all are over"],
)
def test_gitea_shows_the_reason_where_the_job_was(
    site: Site,
    client: Callable[..., Forge],
    reported: list[str],
    shown: list[tuple[str, list[str]]],
) -> None:
    """The page of the job, from "Set up job" to "Complete job": no step looks as if it still
    ran.
    """
    forge = client(site.url, site.token, kind="gitea")
    text = (
        "on: [push]\njobs:\n  job:\n    runs-on: vm-steps\n    steps: [{run: first}, {run: "
        "second}]\n"
    )
    repository = site.repository(ADMIN, "steps", text)
    until(lambda: waiting(forge, INSTANCE, ["vm-steps"]), 20, "the job")
    credentials = forge.create_runner(SCOPES[2], NAME, ["vm-steps"])
    runner = Runner(forge, credentials)
    task = runner.take(["vm-steps"])
    runner.log(task, "line 0", "line 1")
    steps = [
        {"id": str(number), "logIndex": str(number), "logLength": "1", "startedAt": now()}
        | ({"result": "RESULT_SUCCESS", "stoppedAt": now()} if word == "over" else {})
        for number, word in enumerate(reported)
    ]
    assert runner.call(
        "UpdateTask", state={"id": task, "startedAt": now(), "steps": steps}
    ).is_success
    (job,) = running(forge)
    assert forge.fail_job(job, credentials, ["it died"])
    cursors = [{"step": number, "cursor": None, "expanded": True} for number in range(4)]
    page = httpx.post(job.url, json={"logCursors": cursors}, timeout=20).json()
    logs = {
        part["step"]: [line["message"] for line in part["lines"]]
        for part in page["logs"]["stepsLog"]
    }
    found = [
        (step["status"], logs.get(number, []))
        for number, step in enumerate(page["state"]["currentJob"]["steps"])
    ]
    assert found == shown
    repository.delete()


def test_forgejo_names_repositories_where_the_token_may(
    double: Double, client: Callable[..., Forge]
) -> None:
    asked: list[str] = []

    def count(handler: Any) -> bool:
        asked.extend([handler.path] if "/repositories/" in handler.path else [])
        return False

    double.fault = count
    for repository in ("org1/r1", "org1/r1", "org2/r1"):
        double.add_job("job", repository=repository)
    forge = client(double.url, double.token)
    for _ in range(3):
        assert [job.repository for job in forge.jobs(INSTANCE)] == ["org1/r1", "org1/r1", "org2/r1"]
    assert len(asked) == 2, "each is asked for once"

    asked.clear()
    forge = client(double.url, double.grant("read:admin"))
    one, two = double.repositories
    for _ in range(3):
        assert [job.repository for job in forge.jobs(INSTANCE)] == [f"repository {one}"] * 2 + [
            f"repository {two}"
        ]
    assert len(asked) == 1, "a token without the scope costs one request"


def test_forgejo_asks_again_for_a_name_after_a_while(double: Double) -> None:
    clock = iter([0.0, 0.0, 59.0, 59.0, 61.0, 61.0])
    double.add_job("job", repository="org1/gone")
    double.add_job("job", repository="org1/here")
    (gone, _), double.repositories = (
        double.repositories,
        {two: name for two, name in double.repositories.items() if name == "org1/here"},
    )
    with closing(Http(double.url, Secret(double.token))) as http:
        forge = Forgejo(http, lambda: next(clock))
        assert [job.repository for job in forge.jobs(INSTANCE)] == [
            f"repository {gone}",
            "org1/here",
        ]
        double.repositories[gone] = "org1/back"
        assert [job.repository for job in forge.jobs(INSTANCE)] == [
            f"repository {gone}",
            "org1/here",
        ]
        assert [job.repository for job in forge.jobs(INSTANCE)] == ["org1/back", "org1/here"]


def test_forgejo_never_gives_two_repositories_one_name(
    double: Double, client: Callable[..., Forge]
) -> None:
    double.add_job("job", repository="org1/r1")
    forge = client(double.url, double.token)
    assert [job.repository for job in forge.jobs(INSTANCE)] == ["org1/r1"]
    (first,) = double.repositories
    double.repositories[first] = "org1/old"  # renamed, and another one has the name now
    double.add_job("job", repository="org1/r1")
    assert [job.repository for job in forge.jobs(INSTANCE)] == ["org1/old", "org1/r1"]


def test_forgejo_tells_who_reports_and_which_task(
    double: Double, client: Callable[..., Forge]
) -> None:
    forge = client(double.url, double.token)
    double.add_job("job")
    assert [job.task_id for job in forge.jobs(INSTANCE)] == [0]
    runner = Runner(forge, forge.create_runner(INSTANCE, NAME, ["debian-12"]))
    task = runner.take(["debian-12"])
    assert [str(job.task_id) for job in forge.jobs(INSTANCE)] == [task]
    assert [record.busy for record in forge.runners(INSTANCE)] == [False], (
        "it has not said anything about the job yet"
    )
    runner.log(task, "one")
    assert [record.busy for record in forge.runners(INSTANCE)] == [True]


def test_forgejo_tells_jobs_apart_by_their_handles(
    double: Double, client: Callable[..., Forge]
) -> None:
    forge = client(double.url, double.token)
    first, second = double.add_job("first"), double.add_job("second")
    assert [(job.name, job.handle) for job in waiting(forge, INSTANCE, ["debian-12"])] == [
        ("first", first.handle),
        ("second", second.handle),
    ]
    runner = Runner(forge, forge.create_runner(INSTANCE, NAME, ["debian-12"]))
    runner.call("Declare", version="v1", labels=["debian-12"])
    assert "task" in runner.call("FetchSingleTask", handle=second.handle).json()
    (taken,) = running(forge)
    assert (taken.name, taken.key) == ("second", second.handle)


def test_gitea_tells_who_runs_a_job_and_where_it_is_from(
    site: Site, client: Callable[..., Forge]
) -> None:
    forge = client(site.url, site.token, kind="gitea")
    repository = site.repository(
        ADMIN,
        "whose",
        "on: [push]\njobs:\n  job:\n    runs-on: vm-whose\n    steps: [{run: 'true'}]\n",
    )
    (job,) = until(lambda: waiting(forge, INSTANCE, ["vm-whose"]), 20, "the job")
    assert (job.repository, job.runner_name) == (f"{ADMIN}/whose", "")
    assert job.queued_at is not None
    assert abs(job.queued_at.timestamp() - datetime.now(UTC).timestamp()) < 60
    credentials = forge.create_runner(SCOPES[2], NAME, ["vm-whose"])
    task = Runner(forge, credentials).take(["vm-whose"])
    (taken,) = running(forge)
    assert taken.runner_name == NAME
    Runner(forge, credentials).finish(task)
    repository.delete()


def test_forgejo_tells_no_verdict_of_a_job_that_was_never_seen_running(
    double: Double, client: Callable[..., Forge]
) -> None:
    """Its list of tasks knows neither jobs nor handles: which task is the job's shows only while it
    runs.
    """
    forge = client(double.url, double.token)
    double.add_job("job")
    (job,) = forge.jobs(INSTANCE)
    credentials = forge.create_runner(INSTANCE, NAME, ["debian-12"])
    runner = Runner(forge, credentials)
    runner.finish(runner.take(["debian-12"]))
    forge.jobs(INSTANCE)
    had = forge.ended_jobs(INSTANCE, [Sought(credentials.id, ("debian-12",), (job,))])[
        credentials.id
    ]
    assert had is not None
    assert (had.name, had.state, had.conclusion, had.sha, had.started_at) == (
        "job",
        JobState.DONE,
        "",
        "",
        None,
    )
    forge = client(double.url, double.grant("read:admin"))  # it may not read the repository
    had = forge.ended_jobs(
        INSTANCE, [Sought(credentials.id, (), (replace(job, task_id=double.jobs[job.id].task_id),))]
    )[credentials.id]
    assert had is not None
    assert (had.name, had.conclusion) == ("job", "")
