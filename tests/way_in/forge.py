"""What somebody does at the forge's pages, by its API: a repository, and how its job ends.

usage: forge.py make OWNER/NAME PATH=FILE…   (a repository with these files, of an organisation)
       forge.py tag OWNER/NAME TAG
       forge.py wait OWNER/NAME SECONDS      (until its jobs are over; prints how each ended)
environment: FORGE, its address; TOKEN
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

_EVERY = 0.5  # seconds


def call(method: str, path: str, body: object = None, *fine: int) -> Any:
    """One request; an answer that is no success and not in `fine` is an error."""
    request = urllib.request.Request(
        f"{os.environ['FORGE']}/api/v1{path}",
        json.dumps(body).encode() if body is not None else None,
        {"Authorization": f"token {os.environ['TOKEN']}", "Content-Type": "application/json"},
        method=method,
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        if error.code in fine:
            return None
        sys.exit(f"{method} {path}: {error.code} {error.read().decode(errors='replace')}")


def make(name: str, *files: str) -> None:
    """One commit, so one run of its workflow; and before it that of the forge's own README.md."""
    owner, _, repository = name.partition("/")
    call("POST", "/orgs", {"username": owner}, 422)
    made = {"name": repository, "default_branch": "main", "auto_init": True, "readme": "Default"}
    call("POST", f"/orgs/{owner}/repos", made)
    changes = []
    for file in files:
        path, _, local = file.partition("=")
        content = base64.b64encode(Path(local).read_bytes()).decode()
        changes.append({"operation": "create", "path": path, "content": content})
    call("POST", f"/repos/{name}/contents", {"files": changes, "message": "All files"})


def tag(name: str, word: str) -> None:
    """Of what is there now."""
    call("POST", f"/repos/{name}/tags", {"tag_name": word, "target": "main"})


def wait(name: str, seconds: str) -> None:
    """The exit code is 1 where a job did not succeed."""
    until = time.monotonic() + float(seconds)
    while time.monotonic() < until:
        jobs = call("GET", f"/repos/{name}/actions/jobs")["jobs"]
        if jobs and all(job["status"] == "completed" for job in jobs):
            print(*(f"{job['name']}: {job['conclusion']}" for job in jobs), sep="\n")
            sys.exit(any(job["conclusion"] != "success" for job in jobs))
        time.sleep(_EVERY)
    sys.exit(f"not over after {seconds} s: {[(job['name'], job['status']) for job in jobs]}")


{"make": make, "tag": tag, "wait": wait}[sys.argv[1]](*sys.argv[2:])
