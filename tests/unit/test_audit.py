"""The audit is green only where every package was looked up, by a service that finds what is
known.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.audit import below, judge

FLAWED = {"dependencies": [{"name": "jinja2", "version": "2.4.1", "vulns": [{"id": "PYSEC-1"}]}]}
SKIPPED = {"dependencies": [{"name": "jinja2", "skip_reason": "not found"}]}
CLEAN = {"dependencies": [{"name": "httpx", "version": "1", "vulns": []}]}


@pytest.mark.parametrize(
    ("report", "control", "code", "said"),
    [
        (CLEAN, FLAWED, 0, "no known vulnerabilities in 1 packages"),
        (FLAWED, FLAWED, 1, "jinja2 2.4.1: PYSEC-1"),
        (SKIPPED, FLAWED, 2, "could not tell about jinja2"),
        ({}, FLAWED, 2, "could not tell about any package"),
        (CLEAN, CLEAN, 2, "nothing was audited"),
        (SKIPPED, SKIPPED, 2, "nothing was audited"),
        ({}, {}, 2, "nothing was audited"),
    ],
)
def test_a_verdict(report: dict[str, Any], control: dict[str, Any], code: int, said: str) -> None:
    sentence, got = judge(report, control)
    assert (got, said in sentence) == (code, True), sentence


def test_only_what_is_needed_is_looked_up() -> None:
    installed = [
        {
            "name": "Mine",
            "version": "1",
            "requires_dist": ["A_b>=1", "tool; extra == 'test'", "old; python_version < '3'"],
        },
        {"name": "a-b", "version": "2", "requires_dist": ["c[x]"]},
        {"name": "c", "version": "3"},
        {"name": "tool", "version": "4"},
    ]
    assert below("mine", installed) == ["a-b==2", "c==3"]
