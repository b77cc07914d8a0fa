"""What Gitea 1.27 does otherwise than 1.26, and what the client makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import httpx
import pytest

from tests.forge.double_gitea import DESCRIPTION, Gitea, fits
from tests.forge.gitea import Site
from tests.forge.test_behaviour import INSTANCE, NAME, Runner, running, waiting
from tests.unit.manager.test_plan import POOL, actions, decide, machine, record
from vmrunner.forge import gitea as module
from vmrunner.forge.http import Http
from vmrunner.forge.seam import Forge
from vmrunner.forge.version import ForgeVersion
from vmrunner.manager.actions import Finish, Start, WaitKind
from vmrunner.model.job import JobState, Scope, Sought
from vmrunner.model.machine import Ending
from vmrunner.model.secret import Secret

WHERE = Scope.parse("repository:org1/r1")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def forge(gitea: Gitea, clock: Clock) -> Iterator[module.Gitea]:
    with closing(module.Gitea(Http(gitea.url, Secret(gitea.token)), clock)) as forge:
        yield forge


def asked(server: Gitea) -> list[str]:
    """The paths of all that is asked from now on."""
    seen: list[str] = []

    def note(handler: Any) -> bool:
        seen.append(handler.path.partition("?")[0])
        return False

    server.fault = note
    return seen


def callers(forge: Forge) -> set[str]:
    return {job.name for job in forge.jobs(INSTANCE) if job.is_caller}


# ---- calls of reusable workflows ----


def test_a_call_is_told_from_its_jobs(gitea: Gitea, forge: module.Gitea, clock: Clock) -> None:
    gitea.add_call([["vm-a"], ["vm-b"]])
    assert [(job.name, job.labels, job.state) for job in forge.jobs(INSTANCE)] == [
        ("call", (), JobState.WAITING),
        ("inner 0", ("vm-a",), JobState.WAITING),
        ("inner 1", ("vm-b",), JobState.BLOCKED),
    ]
    for _ in range(3):  # and however long it waits
        assert callers(forge) == {"call"}
        clock.now += 1000
    runner = Runner(forge, forge.create_runner(INSTANCE, NAME, ["vm-a"]))
    task = runner.take(["vm-a"])
    assert callers(forge) == {"call"}, "it runs, and on no runner"
    assert [job.name for job in running(forge) if job.runner_name] == ["inner 0"]
    runner.finish(task)


def test_no_runner_gets_a_call(gitea: Gitea, forge: module.Gitea) -> None:
    gitea.add_call([["vm-a"]])
    runner = Runner(forge, forge.create_runner(INSTANCE, NAME, ["vm-x"]))
    runner.call("Declare", labels=["vm-x"])
    assert "task" not in runner.call("FetchTask", tasksVersion="0").json()
    assert not any(job.is_caller for job in forge.jobs(WHERE) if job.labels)


def test_the_moment_before_its_jobs_are_ready(
    gitea: Gitea, forge: module.Gitea, clock: Clock
) -> None:
    """They are made blocked, and looked at a little later."""
    call, (inner,) = gitea.add_call([["vm-a"]])
    inner.state = "blocked"
    assert callers(forge) == {"call"}
    clock.now += 5
    assert callers(forge) == {"call"}
    inner.state = "waiting"
    clock.now += 6
    assert callers(forge) == {"call"}
    inner.state, call.state = "blocked", "waiting"
    assert callers(forge) == {"call"}
    clock.now += 9
    assert callers(forge) == {"call"}, "the seconds begin anew"
    clock.now += 2
    assert callers(forge) == set(), "nothing tells it from a job that the rest of its run needs"


def test_a_call_within_a_call(gitea: Gitea, forge: module.Gitea) -> None:
    call, _ = gitea.add_call([["vm-a"]])
    gitea.add_job("inner call", labels=[], run=call.run, parent=call.id, is_caller=True)
    gitea.add_job("innermost", labels=["vm-a"], run=call.run)
    assert callers(forge) == {"call", "inner call"}


def test_a_job_without_labels_is_none_where_nothing_comes_behind_it(
    gitea: Gitea, forge: module.Gitea
) -> None:
    gitea.add_job("other", labels=["vm-a"])
    first = gitea.add_job("first", labels=["vm-a"])
    gitea.add_job("plain", labels=[], run=first.run)
    seen = asked(gitea)
    assert callers(forge) == set()
    assert seen.count(f"/api/v1/repos/org1/r1/actions/runs/{first.run}/jobs") == 1
    seen.clear()
    assert callers(forge) == set()
    assert seen == ["/api/v1/admin/actions/jobs"], "its run is looked at once"


@pytest.mark.parametrize("state", ["success", "blocked"])
def test_a_job_without_labels_is_none_once_all_behind_it_are_over_or_need_it(
    gitea: Gitea, forge: module.Gitea, clock: Clock, state: str
) -> None:
    plain = gitea.add_job("plain", labels=[])
    last = gitea.add_job("last", labels=["vm-a"], run=plain.run)
    assert callers(forge) == {"plain"}, "it may be a call of that one"
    clock.now += 1000
    assert callers(forge) == {"plain"}
    last.state = state
    assert callers(forge) == {"plain"}
    clock.now += 11
    assert callers(forge) == set()


def test_a_token_that_may_not_look_at_runs_costs_some_seconds(
    gitea: Gitea, forge: module.Gitea, clock: Clock
) -> None:
    gitea.add_job("plain", labels=[])

    def refuse(handler: Any) -> bool:
        if "/runs/" in handler.path:
            handler.answer(403, {"message": "token does not have the scope", "url": ""})
        return "/runs/" in handler.path

    gitea.fault = refuse
    assert callers(forge) == {"plain"}
    clock.now += 11
    assert callers(forge) == set()


def test_before_127_a_job_without_labels_is_a_job(gitea: Gitea, forge: module.Gitea) -> None:
    gitea.version = "1.26.4"
    gitea.add_call([["vm-a"]])
    assert (callers(forge), forge.may_throttle) == (set(), False)


@pytest.mark.parametrize("labels", [[], ["debian-12"]], ids=["no runs-on", "runs-on in both"])
def test_a_call_makes_no_machine_or_blames_nobody(
    gitea: Gitea, forge: module.Gitea, clock: Clock, labels: list[str]
) -> None:
    """The pool takes jobs without labels, too. With `runs-on` a call looks like any job."""
    gitea.add_call([["debian-12"]], labels=labels)
    pools = [replace(POOL, takes_unlabelled=True)]
    for _ in range(3):
        jobs = forge.jobs(INSTANCE)
        found = decide([], jobs, pools=pools)
        started = [action.job.name for action in found.actions if isinstance(action, Start)]
        assert started == (["call", "inner 0"] if labels else ["inner 0"])
        clock.now += 1000
    (call,) = [job for job in jobs if job.name == "call"]
    assert any(wait.reason.kind is WaitKind.CALLER for wait in found.waits) == (not labels)
    idle = machine("a", age=151, job=call.key, events="up seed runner")
    throttles = forge.may_throttle
    (finish, *_) = actions([idle], [call], [record(idle)], pools=pools, may_throttle=throttles)
    assert isinstance(finish, Finish)
    assert (finish.ending, finish.ending.blames_pool) == (Ending.HELD_BACK, False)


# ---- which version it is ----


def test_the_version_is_asked_once(gitea: Gitea, forge: module.Gitea) -> None:
    seen = asked(gitea)
    for _ in range(5):
        forge.jobs(INSTANCE)
    assert seen.count("/api/v1/version") == 1
    assert forge.may_throttle


@pytest.mark.parametrize(
    ("told", "throttles"),
    [("1.26.0", False), ("1.27.0+rc1", True), ("28.0.0", True), ("development", False)],
)
def test_versions_are_compared_as_numbers(
    gitea: Gitea, forge: module.Gitea, told: str, throttles: bool
) -> None:
    gitea.version = told
    gitea.add_call([["vm-a"]])
    forge.jobs(INSTANCE)
    assert forge.may_throttle == throttles
    assert callers(forge) == (set() if told == "1.26.0" else {"call"}), "unknown: maybe a new one"


def test_an_upgrade_is_seen_with_the_connection_that_it_costs(clock: Clock) -> None:
    with Gitea() as before:
        before.version = "1.26.4"
        port = int(before.url.rpartition(":")[2])
        token = before.token
        http = Http(before.url, Secret(token))
        version = ForgeVersion(http, clock)
        assert (version(), version(), http.connections) == ((1, 26, 4), (1, 26, 4), 1)

        def hang_up(handler: Any) -> bool:
            handler.close_connection = True
            return False

        before.fault = hang_up
        http.call("GET", "/api/v1/version", "something")
    with Gitea(port=port) as after, closing(http):
        after.tokens[token] = after.tokens[after.token]
        http.call("GET", "/api/v1/version", "something")
        seen = asked(after)
        assert (version(), version()) == ((1, 27, 3), (1, 27, 3))
        assert seen == ["/api/v1/version"]
        after.version = "1.28.0"  # behind a proxy, which keeps its connection
        clock.now = 599.0
        assert version() == (1, 27, 3)
        clock.now = 601.0
        assert version() == (1, 28, 0)


@pytest.mark.parametrize("status", [200, 401, 403, 404, 500])
def test_a_version_that_is_not_to_be_had_costs_no_list(
    gitea: Gitea, forge: module.Gitea, status: int
) -> None:
    gitea.add_call([["vm-a"]])
    seen = []

    def spoil(handler: Any) -> bool:
        if handler.path.endswith("/version"):
            seen.append(status)
            handler.answer(status, ["nothing of use"])
        return bool(handler.path.endswith("/version"))

    gitea.fault = spoil
    for _ in range(3):
        assert (callers(forge), forge.may_throttle) == ({"call"}, False)
    assert len(seen) == 3, "the double hangs up, so it is another connection each time"


# ---- cancelling, throttling, attempts ----


def test_a_cancelled_job_works_on_and_is_in_no_list(gitea: Gitea, forge: module.Gitea) -> None:
    job = gitea.add_job(labels=["vm-a"])
    credentials = forge.create_runner(INSTANCE, NAME, ["vm-a"])
    runner = Runner(forge, credentials)
    runner.call("Declare", labels=["vm-a"], capabilities=["cancelling"])
    task = str(runner.call("FetchTask", tasksVersion="0").json()["task"]["id"])
    (listed,) = running(forge)
    gitea.cancel(job)
    assert forge.jobs(INSTANCE) == []
    told = forge.job(INSTANCE, "org1/r1", listed.key)
    assert told is not None
    assert (told.state, told.runner_id) == (JobState.RUNNING, credentials.id)
    assert [record.id for record in forge.runners(INSTANCE)] == [credentials.id]
    sought = [Sought(credentials.id, ("vm-a",), (listed,))]
    still = forge.ended_jobs(INSTANCE, sought)[credentials.id]
    assert still is not None
    assert still.state is JobState.RUNNING
    answer = runner.call("UpdateTask", state={"id": task}).json()
    assert answer["state"]["result"] == "RESULT_CANCELLED"
    runner.log(task, "post steps")
    runner.finish(task)
    over = forge.ended_jobs(INSTANCE, sought)[credentials.id]
    assert over is not None
    assert (over.state, over.conclusion) == (JobState.DONE, "cancelled")
    assert forge.runners(INSTANCE) == []


def test_a_job_whose_machine_dies_in_its_clean_up_is_ended(
    gitea: Gitea, forge: module.Gitea
) -> None:
    """As cancelled, which is what somebody wanted: the forge's verdict stays."""
    job = gitea.add_job(labels=["vm-a"])
    credentials = forge.create_runner(INSTANCE, NAME, ["vm-a"])
    runner = Runner(forge, credentials)
    runner.call("Declare", labels=["vm-a"], capabilities=["cancelling"])
    assert "task" in runner.call("FetchTask", tasksVersion="0").json()
    (listed,) = running(forge)
    gitea.cancel(job)
    assert not forge.fail_job(listed, credentials, ["it died"])
    assert (job.state, job.task and job.task.log, gitea.runners) == ("cancelled", ["it died"], {})


def test_without_the_capability_a_cancelled_jobs_runner_is_gone(
    gitea: Gitea, forge: module.Gitea
) -> None:
    job = gitea.add_job(labels=["vm-a"])
    runner = Runner(forge, forge.create_runner(INSTANCE, NAME, ["vm-a"]))
    task = runner.take(["vm-a"])
    gitea.cancel(job)
    assert (forge.jobs(INSTANCE), forge.runners(INSTANCE)) == ([], [])
    assert "unregistered runner" in runner.call("UpdateTask", state={"id": task}).text


def test_a_throttled_runner_gets_none_and_asks_again(gitea: Gitea, forge: module.Gitea) -> None:
    gitea.add_job(labels=["vm-a"])
    runner = Runner(forge, forge.create_runner(INSTANCE, NAME, ["vm-a"]))
    runner.call("Declare", labels=["vm-a"])
    gitea.throttled = 2
    assert runner.call("FetchTask", tasksVersion="0").json() == {}
    assert runner.call("FetchTask", tasksVersion="1").json() == {"tasksVersion": "1"}
    assert len(waiting(forge, INSTANCE, ["vm-a"])) == 1
    assert "task" in runner.call("FetchTask", tasksVersion="1").json()


def test_a_runner_had_the_job_of_the_first_attempt(gitea: Gitea, forge: module.Gitea) -> None:
    """Jobs that are not run again have a new row, which shows the runner of the time before."""
    good = gitea.add_job("good", labels=["vm-a"])
    bad = gitea.add_job("bad", labels=["vm-b"], run=good.run)
    credentials = forge.create_runner(INSTANCE, NAME, ["vm-a"])
    runner = Runner(forge, credentials)
    task = runner.take(["vm-a"])
    (listed,) = running(forge)
    runner.finish(task)
    rows = gitea.rerun(good.run, only=[bad.id])
    again, copy = next(row for row in rows if row.name == "bad"), rows[0]
    assert (copy.name, copy.task, gitea.plain(copy)["runner_id"]) == ("good", None, credentials.id)
    listed_again = waiting(forge, INSTANCE, ["vm-b"])
    assert again.id in {job.id for job in listed_again}
    assert {job.attempt for job in listed_again if job.id == again.id} == {2}
    found = forge.ended_jobs(INSTANCE, [Sought(credentials.id, ("vm-a",), (listed,))])
    had = found[credentials.id]
    assert had is not None
    assert (had.id, had.attempt, had.conclusion) == (good.id, 1, "success")
    fresh = module.Gitea(Http(gitea.url, Secret(gitea.token)))  # which has seen nothing
    with closing(fresh):
        late = fresh.ended_jobs(INSTANCE, [Sought(credentials.id, ("vm-a",))])[credentials.id]
    assert late is not None
    assert (late.name, late.conclusion) == ("good", "success")


def test_a_rerun_is_another_job(gitea: Gitea, forge: module.Gitea) -> None:
    job = gitea.add_job(labels=["vm-a"])
    runner = Runner(forge, forge.create_runner(INSTANCE, NAME, ["vm-a"]))
    (first,) = waiting(forge, INSTANCE, ["vm-a"])
    task = runner.take(["vm-a"])
    assert [each.key for each in running(forge)] == [first.key], (
        "1.27 does not count when it hands out"
    )
    runner.finish(task)
    gitea.rerun(job.run)
    (second,) = waiting(forge, INSTANCE, ["vm-a"])
    assert (second.key != first.key, second.attempt) == (True, 2)


# ---- the double itself ----


def test_the_double_keeps_to_the_description(gitea: Gitea, client: Callable[..., Forge]) -> None:
    """A name or a type that is not in it fails the test that got it."""
    with pytest.raises(AssertionError, match="is_reusable_caller"):
        fits({"is_reusable_caller": True}, "ActionWorkflowJob", "x")
    with pytest.raises(AssertionError, match="id"):
        fits({"id": "1"}, "ActionWorkflowJob", "x")
    with pytest.raises(KeyError):
        gitea.check("POST", "/repos/{owner}/{repo}/actions/runners", 201, {})
    for scope in ("instance", "user", "organisation:org1", "repository:org1/r1"):
        forge = client(gitea.url, gitea.token, kind="gitea")
        assert (forge.jobs(Scope.parse(scope)), forge.runners(Scope.parse(scope))) == ([], [])


def test_jobs_and_runners_are_complete(gitea: Gitea, forge: module.Gitea) -> None:
    """Nothing that the description has is left out, but what is left out where it is empty."""
    job = gitea.add_job(labels=["vm-a"])
    runner = Runner(forge, forge.create_runner(INSTANCE, NAME, ["vm-a"]))
    record = next(iter(gitea.runners.values())).plain()
    runner.finish(runner.take(["vm-a"]))
    for shown, what in ((gitea.plain(job), "ActionWorkflowJob"), (record, "ActionRunner")):
        assert set(shown) == set(DESCRIPTION["definitions"][what])


def test_what_126_serves_is_described_alike(site: Site) -> None:
    """Real 1.26 tells its own description: of jobs, runners and tasks it is the same."""
    served = httpx.get(f"{site.url}/swagger.v1.json", timeout=30).json()["definitions"]
    for name in ("ActionWorkflowJob", "ActionRunner", "ActionTask", "ActionWorkflowStep"):
        assert set(served[name]["properties"]) == set(DESCRIPTION["definitions"][name]), name
