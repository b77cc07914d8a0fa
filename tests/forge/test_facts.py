"""Where jobs come from, beyond pushes: pull requests of a branch and of a fork at real Gitea."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from tests.forge.gitea import ADMIN, Repository, Site, until
from tests.forge.test_behaviour import Runner
from vmrunner.forge.seam import Forge
from vmrunner.model.job import JobFacts, Scope

INSTANCE = Scope.parse("instance")
OWNER, NAME = "facts", "r1"
WORKFLOW = "on: pull_request\njobs:\n  job:\n    runs-on: vm-facts\n    steps: [{run: 'true'}]\n"


@pytest.fixture
def repository(site: Site) -> Iterator[Repository]:
    site.organisation(OWNER)
    made = site.repository(OWNER, NAME, WORKFLOW)
    yield made
    site.call("DELETE", f"/repos/{ADMIN}/{NAME}", fine=(404,))
    made.delete()
    for record in site.runners():
        if record["name"].startswith("vmr-facts-"):
            site.call("DELETE", f"/admin/actions/runners/{record['id']}", fine=(404,))


@pytest.fixture
def facts(client: Callable[..., Forge], site: Site) -> Callable[[], JobFacts | None]:
    """Of the one job that waits, once a runner has it."""
    token = site.grant("write:admin", "read:repository", admin=True)  # which is all that it needs
    forge = client(site.url, token, kind="gitea")

    def find() -> JobFacts | None:
        (job,) = until(
            lambda: [job for job in forge.jobs(INSTANCE) if job.labels == ("vm-facts",)], 20, "it"
        )
        credentials = forge.create_runner(INSTANCE, f"vmr-facts-{job.id}", ["vm-facts"])
        runner = Runner(forge, credentials)
        task = runner.take(["vm-facts"])
        (job,) = [job for job in forge.running(INSTANCE) if job.labels == ("vm-facts",)]
        found = forge.facts(INSTANCE, job.repository, job.key, credentials.id)
        runner.finish(task)
        return replace(found, repository_id=0) if found else None

    return find


def ask_for(repository: Repository, of: str, branch: str, head: str) -> int:
    """A change in a new branch of this repository, and a pull request for it; its number."""
    site = repository.site
    change = {"content": "Yg==", "message": "b", "new_branch": branch, "branch": "main"}
    site.call("POST", f"/repos/{of}/contents/{branch}.txt", change)
    body = {"title": branch, "head": head, "base": "main"}
    return int(site.call("POST", f"/repos/{repository.name}/pulls", body)["number"])


@pytest.mark.long
def test_pull_requests_of_a_branch_and_of_a_fork(
    site: Site, repository: Repository, facts: Callable[[], JobFacts | None]
) -> None:
    number = ask_for(repository, repository.name, "topic", "topic")
    found = facts()
    assert found
    assert found.event.startswith("pull_request")
    ref = f"refs/pull/{number}/head"
    assert found == JobFacts(repository.name, ref, found.event, "main", "main", from_fork=False)
    site.call("POST", f"/repos/{repository.name}/forks", {"name": NAME})
    number = ask_for(repository, f"{ADMIN}/{NAME}", "theirs", f"{ADMIN}:theirs")
    ref = f"refs/pull/{number}/head"
    assert facts() == JobFacts(repository.name, ref, found.event, "main", "main", from_fork=True)
