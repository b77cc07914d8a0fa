"""The cases of `make conformance`, and what compares them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.conformance import cases, compare, normalize
from tests.conformance.cases import Topic, Wanted
from tests.conformance.compare import Ended, Known
from tests.conformance.sides import PLAIN, SIDES

ALL = cases.load_all()
DOCS = (Path(__file__).parents[2] / "docs" / "jobs.md").read_text()
AT_LEAST = 60


def test_there_are_cases_of_every_topic() -> None:
    assert len(ALL) >= AT_LEAST
    assert {case.topic for case in ALL} == set(Topic)


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_a_case_is_whole(case: cases.Case) -> None:
    assert set(case.sides) <= {side.name for side in SIDES}
    assert PLAIN.name in (case.sides or [PLAIN.name]) or case.topic is Topic.SERVICES, (
        "nothing to compare with"
    )
    assert case.wanted
    for path, text in case.contents("a-label", "an/image:1", "http://forge.example").items():
        if path.startswith(".gitea/workflows/"):
            assert yaml.safe_load(text)["jobs"], path
            assert not re.search(r"\b(LABEL|FORGE|CRON)\b", text), path
    assert {each.job for each in case.contained} <= {each.job for each in case.wanted}
    for each in (*case.wanted, *case.contained):
        for pattern in (*each.log, *each.never):
            re.compile(pattern)


@pytest.mark.parametrize(
    "case", [case for case in ALL if case.unlike or case.whose], ids=lambda case: case.name
)
def test_what_is_unlike_what_people_know_is_in_the_docs(case: cases.Case) -> None:
    (row,) = [line for line in DOCS.splitlines() if f"| `{case.name}` |" in line]
    assert case.unlike in row
    assert case.whose in row


def test_docs_name_no_case_that_is_not_there() -> None:
    assert set(re.findall(r"\| `([a-z0-9-]+)` \|$", DOCS, re.MULTILINE)) == {
        case.name for case in ALL if case.unlike
    }


def test_what_is_known_has_its_reason_in_the_docs() -> None:
    for known in compare.known():
        assert set(known.sides) <= {side.name for side in SIDES if side != PLAIN}
        assert set(known.cases) <= {case.name for case in ALL}
        (row,) = [line for line in DOCS.splitlines() if line.startswith(f"| `{known.id}` |")]
        assert known.reason in row
        assert known.whose in row


def test_docs_list_no_difference_that_is_not_known() -> None:
    assert set(re.findall(r"^\| `([a-z0-9-]+)` \|", DOCS, re.MULTILINE)) == {
        known.id for known in compare.known()
    }


def test_a_log_is_normalized() -> None:
    log = (
        "2026-11-28T19:03:00.1234567Z vmr-conf-0a1b2c3d(version:v1.0.8) received task 17 of job a, "
        "be triggered by event: push\n"
        "2026-11-28T19:03:01.1234567Z env GITHUB_WORKSPACE=/job/0123456789abcdef/hostexecutor\n"
        "2026-11-28T19:03:01.1234567Z 'runs-on' key not defined in /a\n"
        "2026-11-28T19:03:01.1234567Z ::set-output:: b=2\n"
        "2026-11-28T19:03:01.1234567Z ::set-output:: a=1\n"
        "2026-11-28T19:03:01.1234567Z conf-cloned/case at 0123456789012345678901234567890123456789 "
        "on vmr-conf-0a1b2c3d\n"
    )
    assert normalize.lines(log) == [
        "RUNNER received task N of job a, be triggered by event: push",
        "env GITHUB_WORKSPACE=ACT/hostexecutor",
        "::set-output:: a=1",
        "::set-output:: b=2",
        "OWNER/case at SHA on MACHINE",
    ]


def test_what_is_wanted_of_a_log_has_an_order() -> None:
    wanted = Wanted("a", "success", ("one", "t.o"), ("three",))
    assert wanted.faults("success", ["x", "one", "two"]) == []
    assert wanted.faults("failure", ["two", "one", "three"]) == [
        "is failure, not success",
        "has no line 't.o' where it should be",
        "has a line like 'three'",
    ]


def test_every_line_that_differs_is_told() -> None:
    here = [Ended("a", "success", ["x", "y"]), Ended("gone", "success", [])]
    there = [Ended("a", "failure", ["x", "z"])]
    found = compare.differences("case", "cloned", here, there)
    assert [(each.job, each.line) for each in found] == [
        ("a", "-verdict success"),
        ("a", "+verdict failure"),
        ("a", "-y"),
        ("a", "+z"),
        ("gone", "-the job"),
    ]


def test_of_long_logs_the_first_difference_is_told() -> None:
    log = [str(number) for number in range(30_000)]
    found = compare.differences(
        "case",
        "cloned",
        [Ended("a", "success", log)],
        [Ended("a", "success", [*log[:9], "x", *log[10:]])],
    )
    assert len(found) == 2
    assert all("the first that differs is 10" in each.line for each in found)


def test_a_known_difference_is_one_of_its_side_and_case() -> None:
    (difference,) = compare.differences(
        "case", "cloned", [Ended("a", "success", ["x"])], [Ended("a", "success", ["x", "y 1"])]
    )
    known = Known("id", "whose", "reason", ("cloned",), (r"\+y \d",), ("case",))
    assert known.covers(difference)
    assert not Known("id", "whose", "reason", ("booted",), (r"\+y \d",)).covers(difference)
    assert not Known("id", "whose", "reason", ("cloned",), (r"\+y \d",), ("other",)).covers(
        difference
    )
    assert not Known("id", "whose", "reason", ("cloned",), (r"\+y",)).covers(difference)
