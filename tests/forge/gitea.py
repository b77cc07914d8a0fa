"""The rig's Gitea, as its users see it: repositories with workflows, jobs, logs, runner records."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

URL = os.environ.get("VMRUNNER_TEST_GITEA_URL", "http://forge.example:3000")
VERSION = f"{URL}/api/v1/version"
ADMIN = "rig"


class Site:
    """The server, with the administrator's token; the rig's, or another one."""

    def __init__(self, url: str = URL, token: str = "") -> None:
        self.url = url
        self.token = token or os.environ["VMRUNNER_TEST_GITEA_TOKEN"]
        self._client = httpx.Client(
            base_url=f"{url}/api/v1",
            headers={"Authorization": f"token {self.token}"},
            timeout=30,
            transport=httpx.HTTPTransport(retries=2),
        )

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def call(
        self, method: str, path: str, body: Any = None, *, fine: tuple[int, ...] = (), **params: Any
    ) -> Any:
        """One request; an answer that is neither a success nor in `fine` is an error."""
        answer = self._client.request(method, path, json=body, params=params)
        assert answer.is_success or answer.status_code in fine, (
            f"{method} {path}: {answer.status_code} {answer.text}"
        )
        return (
            answer.json()
            if answer.content and "json" in answer.headers.get("content-type", "")
            else answer.text
        )

    def organisation(self, name: str) -> None:
        """Make an organisation unless it exists."""
        self.call("POST", "/orgs", {"username": name}, fine=(422,))

    def repository(self, owner: str, name: str, workflow: str) -> Repository:
        """A fresh repository with this workflow; one of an earlier run is deleted first."""
        self.call("DELETE", f"/repos/{owner}/{name}", fine=(404,))
        path = "/user/repos" if owner == ADMIN else f"/orgs/{owner}/repos"
        self.call("POST", path, {"name": name, "auto_init": False})
        repository = Repository(self, f"{owner}/{name}")
        repository.push(workflow)
        return repository

    def clear(self) -> None:
        """Delete every repository, so that no job of an earlier test waits."""
        for repository in self.call("GET", "/repos/search", limit=50)["data"]:
            self.call("DELETE", f"/repos/{repository['full_name']}", fine=(404,))

    def cancel(self, job: dict[str, Any]) -> None:
        """Cancel the run of a job, as a user does it on its page: 1.26 has no REST call for
        that.
        """
        user, password = self.user("canceller")
        self.call(
            "PATCH", f"/admin/users/{user}", {"login_name": user, "source_id": 0, "admin": True}
        )
        with httpx.Client(base_url=URL, timeout=30) as browser:
            assert (
                browser.post(
                    "/user/login", data={"user_name": user, "password": password}
                ).status_code
                == 303
            )
            run = job["html_url"].partition("/jobs/")[0].partition("/actions/")
            page = "/".join(run[0].split("/")[-2:]) + f"/actions/{run[2]}/cancel"
            assert browser.post(f"/{page}").is_success

    def user(self, name: str) -> tuple[str, str]:
        """Make a user unless there is one; name and password."""
        password = "a-Passw0rd-of-the-tests"
        body = {
            "username": name,
            "password": password,
            "email": f"{name}@forge.example",
            "must_change_password": False,
        }
        self.call("POST", "/admin/users", body, fine=(422,))
        return name, password

    def grant(self, *scopes: str, admin: bool = False) -> str:
        """A new token with just these scopes, of a user of its own."""
        user, password = self.user("granted-admin" if admin else "granted")
        self.call(
            "PATCH", f"/admin/users/{user}", {"login_name": user, "source_id": 0, "admin": admin}
        )
        body = {"name": str(time.time_ns()), "scopes": list(scopes)}
        answer = httpx.post(
            f"{URL}/api/v1/users/{user}/tokens", json=body, auth=(user, password), timeout=30
        )
        token: str = answer.json()["sha1"]
        return token

    def runners(self) -> list[dict[str, Any]]:
        """Every runner record of the instance."""
        found: list[dict[str, Any]] = self.call("GET", "/admin/actions/runners", limit=50)[
            "runners"
        ]
        return found

    def queued(self) -> int:
        """How many jobs wait."""
        return int(self.call("GET", "/admin/actions/jobs", status="queued")["total_count"])


@dataclass(frozen=True)
class Repository:
    """One repository of the site."""

    site: Site
    name: str  # owner/name

    def push(self, workflow: str, file: str = "ci.yaml") -> None:
        """Commit a workflow; a push event starts every workflow of the repository that wants
        one.
        """
        content = base64.b64encode(workflow.encode()).decode()
        self.site.call(
            "POST",
            f"/repos/{self.name}/contents/.gitea/workflows/{file}",
            {"content": content, "message": file},
        )

    def commit(self, files: dict[str, str | bytes]) -> None:
        """Add these files in one commit, which is one push event."""
        operations = [
            {
                "operation": "create",
                "path": path,
                "content": base64.b64encode(
                    content if isinstance(content, bytes) else content.encode()
                ).decode(),
            }
            for path, content in files.items()
        ]
        self.site.call(
            "POST",
            f"/repos/{self.name}/contents",
            {"files": operations, "message": "files", "new_branch": "main"},
        )

    def rerun(self, job: dict[str, Any], *, failed: bool = False) -> None:
        """The run of a job once more, or its failed jobs."""
        what = "rerun-failed-jobs" if failed else "rerun"
        self.site.call("POST", f"/repos/{self.name}/actions/runs/{job['run_id']}/{what}")

    def dispatch(self, file: str = "ci.yaml") -> None:
        """Start a workflow that has `workflow_dispatch`."""
        self.site.call(
            "POST", f"/repos/{self.name}/actions/workflows/{file}/dispatches", {"ref": "main"}
        )

    def jobs(self) -> list[dict[str, Any]]:
        """Every job, oldest first."""
        found, page = [], 1
        while listed := self.site.call(
            "GET", f"/repos/{self.name}/actions/jobs", limit=50, page=page
        )["jobs"]:
            found += listed
            page += 1
        return sorted(found, key=lambda job: job["id"])

    def log(self, job: int) -> str:
        """A finished job's log as the forge has it; empty where it has none.

        Gitea 1.26 answers 500 for a job that was cancelled before its runner had sent a line.
        """
        text = self.site.call("GET", f"/repos/{self.name}/actions/jobs/{job}/logs", fine=(404, 500))
        if isinstance(text, str):
            return text
        said = text["message"]
        assert "OpenLogs" not in said or "file does not exist" in said, said
        return ""

    def said(self, job: int) -> str:
        """What the steps of a finished job printed: its log without times, and without what the
        runner says of each step's script.
        """
        lines, inside = [], False
        for line in self.log(job).splitlines():
            text = line.partition(" ")[2]
            inside = (inside or text.startswith("::group::")) and not text.startswith("vmrunner: ")
            if not inside and not text.startswith("Run Main "):
                lines.append(text)
            inside = inside and not text.startswith("::endgroup::")
        return "\n".join(lines)

    def delete(self) -> None:
        """Delete the repository, and with it what waits in it."""
        self.site.call("DELETE", f"/repos/{self.name}", fine=(404,))


def until(check: Callable[[], Any], seconds: float, what: str, every: float = 0.3) -> Any:
    """Poll until `check` gives something true."""
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(every)
    return found
