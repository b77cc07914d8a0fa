"""A case on a side: its repository, what its users do there, and what comes of it."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.conformance import normalize
from tests.conformance.cases import Case, Wanted
from tests.conformance.compare import Ended
from tests.forge.gitea import Repository, Site


@dataclass
class Play:
    """The acts of a case, one after another; whoever looks at the forge's jobs calls `go_on` with
    them.
    """

    site: Site
    case: Case
    repository: Repository
    left: list[str] = field(default_factory=list)
    jobs: list[dict[str, Any]] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)  # the act before this one was over
    asked: float = 0.0  # for a log, last

    @classmethod
    def begin(cls, site: Site, owner: str, case: Case, files: dict[str, str]) -> Play:
        """A fresh repository, with everything in it by one push."""
        site.call("DELETE", f"/repos/{owner}/{case.name}", fine=(404,))
        site.call(
            "POST",
            f"/orgs/{owner}/repos",
            {"name": case.name, "private": case.private, "default_branch": "main"},
        )
        repository = Repository(site, f"{owner}/{case.name}")
        for name, secret in case.secrets.items():
            site.call("PUT", f"/repos/{repository.name}/actions/secrets/{name}", {"data": secret})
        for name, value in case.variables.items():
            site.call(
                "POST", f"/repos/{repository.name}/actions/variables/{name}", {"value": value}
            )
        repository.commit(dict(files))
        if case.submodules:
            _add_submodules(site, repository, case.submodules)
        if case.event == "workflow_dispatch":
            repository.dispatch()
        return cls(site, case, repository, list(case.acts))

    @property
    def over(self) -> bool:
        return not self.left

    def go_on(self, jobs: Iterable[dict[str, Any]]) -> None:
        """As far as these jobs, which are all of its repository, let it."""
        self.jobs = sorted(jobs, key=lambda job: job["id"])
        while self.left and self._act(self.left[0]):
            self.left.pop(0)
            self.since = time.monotonic()
            if self.left and not self.left[0].startswith("wait"):
                return  # what was done shows in the next list

    def _act(self, act: str) -> bool:
        """Whether it is over."""
        match act.split():
            case ["wait", seconds]:
                return time.monotonic() - self.since >= float(seconds)
            case ["dispatch"]:
                self.repository.dispatch()
            case ["cancel"]:
                self.site.cancel(self.jobs[-1])
            case ["rerun"]:
                self.repository.rerun(self.jobs[-1])
            case ["rerun", "failed"]:
                self.repository.rerun(self.jobs[-1], failed=True)
            case ["until", "done"]:
                return bool(self.jobs) and all(job["status"] == "completed" for job in self.jobs)
            case ["until", runs, "runs", "done"]:
                return len({job["run_id"] for job in self.jobs}) >= int(runs) and all(
                    job["status"] == "completed" for job in self.jobs
                )
            case ["until", job, "says", text]:
                return self._says(job, text)
            case ["until", job, status]:
                return any(each["name"] == job and each["status"] == status for each in self.jobs)
            case _:
                raise ValueError(f"no such act: {act}")
        return True

    def _says(self, job: str, text: str) -> bool:
        if time.monotonic() - self.asked < 1:
            return False
        self.asked = time.monotonic()
        return any(
            text in self.repository.log(each["id"]) for each in self.jobs if each["name"] == job
        )

    def ended(self) -> list[Ended]:
        """Its jobs by name; those of a second run of the workflow have its number behind it."""
        runs = {
            run: number
            for number, run in enumerate(sorted({job["run_id"] for job in self.jobs}), 1)
        }
        found = []
        for job in self.jobs:
            number = runs[job["run_id"]]
            log = normalize.lines(self.repository.log(job["id"]))
            found.append(
                Ended(
                    job["name"] + (f" (run {number})" if number > 1 else ""),
                    job.get("conclusion", job["status"]),
                    log,
                )
            )
        return found


def faults(wanted: Mapping[str, Wanted], ended: list[Ended]) -> list[str]:
    """What is not as it is wanted, by job."""
    by_name = {each.job: each for each in ended}
    found = [f"{job}: there is no such job" for job in wanted if job not in by_name]
    found += [
        f"{job}: nobody expected this job, which is {each.verdict}"
        for job, each in by_name.items()
        if job not in wanted
    ]
    for job, want in wanted.items():
        if job in by_name:
            found += [
                f"{job}: {fault}" for fault in want.faults(by_name[job].verdict, by_name[job].log)
            ]
    return found


def _add_submodules(site: Site, repository: Repository, submodules: dict[str, str]) -> None:
    """By git: the forge's calls know none."""
    with tempfile.TemporaryDirectory() as folder:
        name, mail = ("AUTHOR_NAME", "COMMITTER_NAME"), ("AUTHOR_EMAIL", "COMMITTER_EMAIL")
        who = {f"GIT_{key}": "x" for key in name} | {
            f"GIT_{key}": "x@forge.example" for key in mail
        }

        def git(*arguments: str) -> None:
            header = f"http.extraHeader=Authorization: token {site.token}"
            subprocess.run(
                ["git", "-C", folder, "-c", header, *arguments],
                check=True,
                capture_output=True,
                env=os.environ | who,
            )

        git("clone", "--quiet", f"{site.url}/{repository.name}", ".")
        for path, address in submodules.items():
            git("submodule", "add", address.replace("FORGE", site.url), path)
        git("commit", "--quiet", "--message", "files")
        git("push", "--quiet", "origin", "HEAD:main")


def in_repository(job: dict[str, Any]) -> str:
    """owner/name of the repository that a job of the forge's list is in."""
    found = re.search(r"/repos/([^/]+/[^/]+)/actions/", job["url"])
    assert found, job["url"]
    return found[1]
