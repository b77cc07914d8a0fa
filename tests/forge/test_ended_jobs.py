"""Which job a runner had, asked of real Gitea after the end: its lists have no order, and hand a
job to any runner that fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import httpx
import pytest

from tests.forge.gitea import ADMIN, Repository, Site, until
from tests.forge.test_behaviour import INSTANCE, Runner, waiting
from vmrunner.forge.gitea import Gitea
from vmrunner.forge.http import Http
from vmrunner.forge.seam import Forge
from vmrunner.model.job import Credentials, Job, JobState, Scope, Sought
from vmrunner.model.secret import Secret

LABEL = "vm-ended"
KINDS = ("success", "failure", "skipped")
OWN = Scope.parse("user")


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of all that is asked from now on."""
    asked: list[str] = []
    send = Http.send

    def counted(self: Http, method: str, path: str, doing: str, **more: object) -> httpx.Response:
        asked.append(path)
        return send(self, method, path, doing, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Http, "send", counted)
    return asked


@pytest.fixture
def forge(site: Site, client: Callable[..., Forge]) -> Forge:
    return client(site.url, site.token, kind="gitea")


class Jobs:
    """Jobs of one run, of different kinds."""

    def __init__(self, site: Site, forge: Forge, count: int) -> None:
        parts = [
            f"  job{number}: {{runs-on: {LABEL}, steps: [{{run: 'true'}}]}}\n"
            for number in range(count)
        ]
        self.forge = forge
        self.repository = site.repository(ADMIN, "ended", "on: [push]\njobs:\n" + "".join(parts))
        self.waiting = until(
            lambda: len(found := waiting(forge, INSTANCE, [LABEL])) == count and found,
            30,
            "every job",
        )
        self.ran: dict[int, int] = {}  # by the runner's id: which job it had, as the forge says

    def run(self, count: int) -> list[Credentials]:
        """So many runners take a job each and end it, in less than a second."""
        made = [
            self.forge.create_runner(OWN, f"vmr-behaviour-{number:08x}", [LABEL])
            for number in range(count)
        ]
        for number, credentials in enumerate(made):
            runner = Runner(self.forge, credentials)
            task, at = runner.take([LABEL]), "2026-01-01T00:00:00Z"
            result = f"RESULT_{KINDS[number % len(KINDS)].upper()}"
            assert runner.call(
                "UpdateTask", state={"id": task, "result": result, "startedAt": at, "stoppedAt": at}
            ).is_success
        return made

    def truth(self) -> dict[int, tuple[int, str, str]]:
        """Job, verdict and commit of each runner, as the repository's own list has it."""
        listed = self.repository.jobs()
        return {
            job["runner_id"]: (job["id"], job["conclusion"], job["head_sha"])
            for job in listed
            if job.get("runner_id")
        }


def told(found: dict[int, Job | None]) -> dict[int, tuple[int, str, str]]:
    return {runner: (job.id, job.conclusion, job.sha) for runner, job in found.items() if job}


@pytest.fixture
def jobs(site: Site, forge: Forge) -> Iterator[Callable[[int], Jobs]]:
    made: list[Repository] = []

    def make(count: int) -> Jobs:
        jobs = Jobs(site, forge, count)
        made.append(jobs.repository)
        return jobs

    yield make
    for repository in made:
        repository.delete()


@pytest.mark.parametrize(
    "scope", [INSTANCE, OWN, Scope.parse(f"repository:{ADMIN}/ended")], ids=str
)
def test_the_job_that_ran_is_told_not_the_one_that_the_runner_was_made_for(
    jobs: Callable[[int], Jobs], forge: Forge, scope: Scope
) -> None:
    some = jobs(6)
    runners = some.run(6)
    forge.jobs(INSTANCE)
    wrong = [
        Sought(each.id, (LABEL,), (job,))
        for each, job in zip(runners, reversed(some.waiting), strict=True)
    ]
    found = forge.ended_jobs(scope, wrong)
    assert told(found) == some.truth()
    assert sorted(verdict for _, verdict, _ in told(found).values()) == sorted(KINDS * 2)
    assert all(job and job.state is JobState.DONE and len(job.sha) == 40 for job in found.values())


@pytest.mark.long
def test_fifty_runners_are_not_fifty_requests(
    jobs: Callable[[int], Jobs], forge: Forge, requests: list[str]
) -> None:
    some = jobs(60)
    runners = some.run(50)
    forge.jobs(INSTANCE)
    requests.clear()
    assert (
        told(forge.ended_jobs(INSTANCE, [Sought(each.id, (LABEL,)) for each in runners]))
        == some.truth()
    )
    assert len(requests) <= 2, requests
    requests.clear()
    assert told(forge.ended_jobs(INSTANCE, [Sought(runners[0].id, (LABEL,))])).keys() == {
        runners[0].id
    }
    assert requests == [], "it is known"


def test_a_job_that_no_list_has_shown_is_found_in_its_run(
    jobs: Callable[[int], Jobs], site: Site
) -> None:
    some = jobs(3)
    runners = some.run(2)
    with closing(Http(site.url, Secret(site.token))) as http:  # a manager that has just begun
        assert (
            told(Gitea(http).ended_jobs(INSTANCE, [Sought(each.id) for each in runners]))
            == some.truth()
        )


def test_one_look_takes_no_longer_than_some_seconds(
    jobs: Callable[[int], Jobs], site: Site, requests: list[str]
) -> None:
    some = jobs(3)
    runners = some.run(3)
    with closing(Http(site.url, Secret(site.token))) as http:
        gitea = Gitea(http, lambda: 4.0 * len(requests))  # a slow forge
        hints = {job.id: job for job in some.waiting}
        by_runner = {runner: hints[job] for runner, (job, _, _) in some.truth().items()}
        sought = [Sought(each.id, (LABEL,), (by_runner[each.id],)) for each in runners]
        first = gitea.ended_jobs(INSTANCE, sought)
        assert len(told(first)) == len(first) == 2, (
            "the third was not looked for, so nothing is said of it"
        )
        first |= gitea.ended_jobs(
            INSTANCE, [each for each in sought if each.runner_id not in first]
        )
        assert told(first) == some.truth()


def test_a_job_that_was_begun_again_is_its_new_runners(
    jobs: Callable[[int], Jobs], site: Site, forge: Forge
) -> None:
    some = jobs(1)
    (old,) = some.run(1)
    (job,) = some.repository.jobs()
    site.call("POST", f"/repos/{some.repository.name}/actions/runs/{job['run_id']}/rerun")
    until(lambda: waiting(forge, INSTANCE, [LABEL]), 20, "the job waits again")
    (new,) = some.run(1)
    forge.jobs(INSTANCE)
    found = forge.ended_jobs(
        INSTANCE, [Sought(each.id, (LABEL,), (some.waiting[0],)) for each in (old, new)]
    )
    again = found[new.id]
    assert again is not None
    assert (found[old.id], again.attempt, again.key) == (None, 2, f"{job['id']}.2")


@pytest.mark.parametrize("scope", [INSTANCE, Scope.parse(f"repository:{ADMIN}/ended")], ids=str)
def test_a_repository_that_was_deleted_takes_its_jobs_along(
    jobs: Callable[[int], Jobs], forge: Forge, scope: Scope
) -> None:
    some = jobs(2)
    runners = some.run(2)
    some.repository.delete()
    forge.jobs(INSTANCE)
    found = forge.ended_jobs(
        scope, [Sought(each.id, (LABEL,), (some.waiting[0],)) for each in runners]
    )
    assert found == dict.fromkeys(each.id for each in runners)
