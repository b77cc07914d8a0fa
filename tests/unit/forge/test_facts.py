"""Where jobs come from, by all that the forges' answers may say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vmrunner.forge.forgejo import _Run
from vmrunner.forge.gitea import _Origin, _PullRequest
from vmrunner.model.job import JobFacts


@pytest.mark.parametrize(
    ("head", "is_foreign"),
    [
        ({"label": "topic", "ref": "topic", "repo_id": 1}, False),
        ({"label": "topic", "ref": "topic", "repo_id": 2}, True),
        ({"label": "", "ref": "refs/pull/3/head", "repo_id": 1}, True),  # AGit: no branch
        ({"label": "topic", "ref": "refs/pull/3/head", "repo_id": -1}, True),  # the fork is gone
        ({}, True),
    ],
)
def test_who_made_a_pull_request(head: dict[str, Any], is_foreign: bool) -> None:
    asked = _PullRequest.model_validate({"base": {"ref": "main", "repo_id": 1}, "head": head})
    assert asked.is_foreign is is_foreign
    unknown = _PullRequest.model_validate({"base": {}, "head": {"label": "topic"}})
    assert unknown.is_foreign


@pytest.mark.parametrize(
    ("path", "ref"),
    [
        ("ci.yaml@refs/heads/main", "refs/heads/main"),
        ("ci.yaml@refs/heads/a@refs/heads/main", "refs/heads/a@refs/heads/main"),
        (".gitea/workflows/a@b.yaml@refs/tags/v1", "refs/tags/v1"),
        ("ci.yaml@main", ""),
        ("ci.yaml", ""),
    ],
)
def test_the_ref_of_a_run(path: str, ref: str) -> None:
    assert _Origin.model_validate({"path": path, "repository": {"full_name": "o/r"}}).ref == ref


PULL = {"number": 3, "pull_request": {"base": {"ref": "release"}}}
TRICK = {"number": 3, "pull_request": {"base": {"ref": "#3"}}}


@pytest.mark.parametrize(
    ("pretty", "event", "payload", "fork", "ref", "base", "from_fork"),
    [
        ("main", "push", {"ref": "refs/heads/main"}, False, "refs/heads/main", None, False),
        ("main", "push", {"ref": "refs/tags/main"}, False, "refs/tags/main", None, False),
        ("a/b", "workflow_dispatch", {"ref": "refs/heads/a/b"}, False, "refs/heads/a/b", None, 0),
        ("#3", "pull_request", PULL, False, "refs/pull/3/head", "release", False),
        ("#3", "pull_request", PULL, True, "refs/pull/3/head", "release", True),
        # On its base's branch, with its privileges: nothing that the pull request wrote is its own.
        ("release", "pull_request_target", PULL, True, "refs/heads/release", "release", True),
        ("release", "pull_request", PULL, False, "refs/heads/release", "release", False),
        ("#3", "pull_request_target", PULL, True, "", "release", True),
        ("#3", "pull_request_target", TRICK, True, "refs/heads/#3", "#3", True),
        ("other", "pull_request_target", PULL, True, "", "release", True),
        ("main", "pull_request_review", PULL, True, "", "release", True),
        ("#3", "pull_request_comment", {}, False, "refs/pull/3/head", None, False),
        ("main", "schedule", {}, False, "refs/heads/main", None, False),
        # What is not told, or does not fit together, is no ref; and then it writes nowhere.
        ("topic", "schedule", {}, False, "", None, True),
        ("main", "push", {"ref": "refs/heads/other"}, False, "", None, True),
        ("main", "push", {"ref": ["refs/heads/main"]}, False, "", None, True),
        ("main", "issues", {}, False, "", None, True),
        ("x", "pull_request", {"number": "3/../4"}, False, "", None, True),
        ("main", "push", "no JSON", False, "", None, True),
        ("main", "push", [1], False, "", None, True),
    ],
)
def test_what_forgejo_says_of_a_run(
    pretty: str,
    event: str,
    payload: Any,
    fork: bool,
    ref: str,
    base: str | None,
    from_fork: bool,
) -> None:
    answer = {
        "index_in_repo": 7,
        "prettyref": pretty,
        "trigger_event": event,
        "event_payload": payload if isinstance(payload, str) else json.dumps(payload),
        "is_fork_pull_request": fork,
        "repository": {"id": 7, "full_name": "o/r", "default_branch": "main"},
    }
    found = _Run.model_validate(answer).facts()
    assert found == JobFacts(
        "o/r", ref, event, base, "main", from_fork=bool(from_fork), repository_id=7
    )
