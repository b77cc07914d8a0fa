"""A queue that is longer than a page, through Gitea's client: what is asked, and what is known of
jobs that only an earlier look has shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.forge.double_gitea import Gitea
from tests.forge.test_behaviour import INSTANCE, NAME, Runner
from tests.forge.test_gitea_127 import Clock
from vmrunner.forge import gitea as module
from vmrunner.forge.http import Http
from vmrunner.model.job import Job, JobState, Listing, Sought, Want
from vmrunner.model.secret import Secret

EIGHT = [Want(8, lambda job: "debian-12" in job.labels)]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def forge(gitea: Gitea, clock: Clock) -> Iterator[module.Gitea]:
    with closing(module.Gitea(Http(gitea.url, Secret(gitea.token)), clock)) as forge:
        yield forge


def lists(gitea: Gitea) -> list[tuple[str, str]]:
    """The lists of jobs that are asked for from now on: which states, and which page."""
    seen: list[tuple[str, str]] = []

    def note(handler: object) -> bool:
        address = urlsplit(handler.path)  # type: ignore[attr-defined]
        if address.path.endswith("/actions/jobs"):
            query = parse_qs(address.query)
            seen.append((",".join(query["status"]), query["page"][0]))
        return False

    gitea.fault = note
    return seen


def states(listing: Listing) -> dict[str, JobState]:
    return {job.name: job.state for job in listing.jobs}


def crowd(gitea: Gitea, jobs: int) -> None:
    for number in range(jobs):
        gitea.add_job(f"j{number}")


def test_a_page_of_jobs_is_one_request(gitea: Gitea, forge: module.Gitea) -> None:
    crowd(gitea, 49)
    gitea.add_job("held", state="blocked")
    gitea.add_job("runs", state="running")
    seen = lists(gitea)
    listing = forge.look(INSTANCE, EIGHT)
    assert seen == [("queued,in_progress", "1")]
    assert (len(listing.jobs), listing.unread, listing.old) == (50, 0, frozenset())
    assert states(listing)["runs"] is JobState.RUNNING


def test_of_a_long_queue_what_is_of_use_is_asked(gitea: Gitea, forge: module.Gitea) -> None:
    crowd(gitea, 500)
    gitea.add_job("runs", state="running")
    forge.look(INSTANCE, EIGHT)
    seen = lists(gitea)
    listing = forge.look(INSTANCE, EIGHT)
    assert seen == [("queued", "10"), ("queued", "2"), ("in_progress", "1")]
    assert listing.unread == 350
    assert len(listing.jobs) == 151
    assert not listing.is_short
    assert {f"{number}" for number in range(50)} == {
        job.name[1:] for job in listing.jobs if job.key in listing.old
    }


def test_all_are_known_in_the_end_and_when_they_are_few_it_is_one_request_again(
    gitea: Gitea, forge: module.Gitea
) -> None:
    crowd(gitea, 300)
    for _ in range(6):
        listing = forge.look(INSTANCE, [])
    assert (len(listing.jobs), listing.unread) == (300, 0)
    for number in list(gitea.jobs)[:260]:
        gitea.jobs[number].state = "cancelled"
    listing = forge.look(INSTANCE, [])
    assert len(listing.jobs) == 40
    seen = lists(gitea)
    assert forge.look(INSTANCE, []) == listing
    assert seen == [("queued,in_progress", "1")]


def test_a_job_that_runs_is_not_waiting_whatever_was_read_before(
    gitea: Gitea, forge: module.Gitea
) -> None:
    crowd(gitea, 200)
    for _ in range(4):
        forge.look(INSTANCE, [])
    runner = Runner(forge, forge.create_runner(INSTANCE, NAME, ["debian-12"]))
    runner.take(["debian-12"])
    listing = forge.look(INSTANCE, [])
    assert states(listing)["j0"] is JobState.RUNNING
    assert len({job.id for job in listing.jobs}) == len(listing.jobs) == 200


def test_what_is_asked_by_its_id_is_not_waiting_any_more(gitea: Gitea, forge: module.Gitea) -> None:
    crowd(gitea, 200)
    first, second = list(gitea.jobs)[:2]
    for _ in range(4):
        listing = forge.look(INSTANCE, [])
    assert {first, second} <= {job.id for job in listing.jobs}
    gitea.jobs[first].state = "cancelled"
    del gitea.jobs[second]
    assert forge.job(INSTANCE, "org1/r1", f"{first}.1") is not None
    assert forge.job(INSTANCE, "org1/r1", f"{second}.1") is None
    forge._queues[INSTANCE]._next = 3  # the first page's turn is later
    listing = forge.look(INSTANCE, [])
    assert not {first, second} & {job.id for job in listing.jobs}


@pytest.mark.parametrize("is_hinted", [True, False])
def test_which_job_a_runner_had_is_found_though_a_list_still_has_it_as_waiting(
    gitea: Gitea, forge: module.Gitea, is_hinted: bool
) -> None:
    crowd(gitea, 300)
    for _ in range(6):
        listing = forge.look(INSTANCE, [])
    hints: list[Job] = [job for job in listing.jobs if job.name == "j0"] if is_hinted else []
    credentials = forge.create_runner(INSTANCE, NAME, ["debian-12"])
    runner = Runner(forge, credentials)
    runner.finish(runner.take(["debian-12"]))
    forge._queues[INSTANCE]._next = 3
    listing = forge.look(INSTANCE, [])
    assert states(listing)["j0"] is JobState.WAITING, "as an earlier look has shown it"
    sought = [Sought(credentials.id, ("debian-12",), tuple(hints))]
    found = forge.ended_jobs(INSTANCE, sought)[credentials.id]
    assert found
    assert (found.name, found.state) == ("j0", JobState.DONE)


def test_a_call_whose_jobs_are_not_read_yet_is_no_job(
    gitea: Gitea, forge: module.Gitea, clock: Clock
) -> None:
    crowd(gitea, 49)
    gitea.add_call([["debian-12"]])
    crowd(gitea, 500)
    for _ in range(3):
        listing = forge.look(INSTANCE, EIGHT)
        assert listing.unread
        assert "inner 0" not in states(listing) or clock.now
        assert [job.name for job in listing.jobs if job.is_caller] == ["call"]
        clock.now += 1000
