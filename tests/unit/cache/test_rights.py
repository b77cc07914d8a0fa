"""What jobs may read and write, by what the forge says about them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vmrunner.cache.rights import rights
from vmrunner.model.job import JobFacts

MAIN, TOPIC, RELEASE, PULL = (
    "refs/heads/main",
    "refs/heads/topic",
    "refs/heads/release",
    "refs/pull/3/head",
)
PUSH = JobFacts("org/tool", MAIN, "push", None, "main", from_fork=False)
FROM_PULL = replace(PUSH, ref=PULL, event="pull_request", base_ref="release")


@pytest.mark.parametrize(
    ("facts", "writes", "reads"),
    [
        (PUSH, MAIN, (MAIN,)),
        (replace(PUSH, ref=TOPIC), TOPIC, (TOPIC, MAIN)),
        (replace(PUSH, ref="refs/tags/v1"), "refs/tags/v1", ("refs/tags/v1", MAIN)),
        (replace(PUSH, ref=TOPIC, event="schedule", default_branch=""), TOPIC, (TOPIC,)),
        (replace(PUSH, default_branch=MAIN), MAIN, (MAIN,)),
        # Pull requests: their own scope alone, wherever they come from.
        (FROM_PULL, PULL, (PULL, RELEASE, MAIN)),
        (replace(FROM_PULL, base_ref=MAIN), PULL, (PULL, MAIN)),
        (replace(FROM_PULL, base_ref=None), PULL, (PULL, MAIN)),
        (replace(FROM_PULL, from_fork=True), PULL, (PULL, RELEASE, MAIN)),
        # One that runs on its base's ref may run anybody's code there.
        (replace(PUSH, event="pull_request_target", from_fork=True), None, (MAIN,)),
        (replace(PUSH, event="pull_request_target"), None, (MAIN,)),
        (replace(FROM_PULL, event="pull_request_target"), None, (RELEASE, MAIN)),
        (replace(FROM_PULL, event="pull_request_target", base_ref=None), None, (MAIN,)),
        (replace(PUSH, event="pull_request_review", ref=TOPIC), None, (TOPIC, MAIN)),
        # What is not known, and what is no ref, is no scope to write.
        (replace(PUSH, from_fork=True), None, (MAIN,)),
        (replace(PUSH, ref="main"), None, (MAIN,)),
        (replace(PUSH, ref=""), None, (MAIN,)),
        (replace(PUSH, ref="", default_branch=""), None, ()),
    ],
)
def test_what_a_job_reads_and_writes(
    facts: JobFacts, writes: str | None, reads: tuple[str, ...]
) -> None:
    given = rights(facts, {})
    assert (given.repository, given.writes, given.reads) == ("org/tool", writes, reads)
    assert (given.group, given.shared, given.offers) == (None, (), False)


GROUPS = {"all": ("Org/Tool", "org/library"), "more": ("org/other", "org/last")}


@pytest.mark.parametrize(
    ("facts", "offers"),
    [
        (PUSH, True),
        (replace(PUSH, ref=TOPIC), False),
        (replace(PUSH, ref=TOPIC, default_branch=""), False),
        (replace(PUSH, ref="refs/tags/main"), False),
        (FROM_PULL, False),
        (replace(PUSH, event="pull_request_target"), False),
    ],
)
def test_a_group_shares_what_default_branches_write(facts: JobFacts, offers: bool) -> None:
    given = rights(facts, GROUPS)
    assert (given.group, given.shared, given.offers) == ("all", ("org/library",), offers)


def test_a_repository_in_no_group_is_alone() -> None:
    given = rights(replace(PUSH, repository="org/tool-2"), GROUPS)
    assert (given.group, given.shared, given.offers) == (None, (), False)
