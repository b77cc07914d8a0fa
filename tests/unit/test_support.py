"""The statement of support: code, page and doctor say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vmrunner.doctor.findings import Level, supported
from vmrunner.support import FIRST, LINES, Fit, fit, least, least_git, numbers
from vmrunner.text import dotted

PAGE = Path(__file__).parents[2] / "docs" / "support.md"


def test_the_page_has_the_lines_that_doctor_goes_by() -> None:
    rows = re.findall(r"(?m)^\| (.+) \| (\S+) ≤ v < (\S+) \| (.+) \| (.+) \|$", PAGE.read_text())
    assert rows == [
        (line.name, dotted(line.first), dotted(line.end), line.tried.value, line.known)
        for line in LINES
    ]


def test_lines_are_in_order_and_do_not_overlap() -> None:
    for program in {line.program for line in LINES}:
        lines = [line for line in LINES if line.program == program]
        ends = [version for line in lines for version in (line.first, line.end)]
        assert ends == sorted(ends)


@pytest.mark.parametrize(
    ("program", "version", "expected"),
    [
        ("forgejo", "15.0.9+gitea-1.22.0", Fit.KNOWN),
        ("forgejo", "15.0.8+gitea-1.22.0", Fit.OLD),
        ("forgejo", "14.0.1", Fit.OLD),
        ("forgejo", "15.1.0", Fit.KNOWN),
        ("forgejo", "16.0.0-dev-1-abc+gitea-1.22.0", Fit.KNOWN),
        ("forgejo", "17.0.2", Fit.KNOWN),
        ("forgejo", "18.0.0", Fit.UNTRIED),
        ("gitea", "1.25.9", Fit.OLD),
        ("gitea", "1.26.0", Fit.KNOWN),
        ("gitea", "1.27.3", Fit.KNOWN),
        ("gitea", "v1.27.0+rc1", Fit.KNOWN),
        ("gitea", "1.28.0+dev-3-gabc", Fit.UNTRIED),
        ("gitea", "28.0.0", Fit.KNOWN),
        ("gitea", "29.0.0", Fit.UNTRIED),
        ("gitea", "development", Fit.UNKNOWN),
        ("gitea", "", Fit.UNKNOWN),
        ("gitea", "9" * 5000, Fit.UNKNOWN),
        ("gitea", "1." + "9" * 5000, Fit.OLD),
        ("gitea-runner", "v1.0.7", Fit.OLD),
        ("gitea-runner", "1.0.8-3-gabc", Fit.KNOWN),
        ("gitea-runner", "5.3.0", Fit.KNOWN),
        ("gitea-runner", "6.0.0", Fit.UNTRIED),
        ("forgejo-runner", "12.7.3", Fit.OLD),
        ("forgejo-runner", "12.8.2", Fit.KNOWN),
        ("forgejo-runner", "13.0.0", Fit.UNTRIED),
    ],
)
def test_a_version_is_known_old_or_untried(program: str, version: str, expected: Fit) -> None:
    assert fit(program, version) is expected
    found = supported("x", program, version, "is there")
    said = {
        Fit.KNOWN: (Level.GOOD, "is there (vmrunner knows it from "),
        Fit.UNTRIED: (Level.WARNING, "nobody has tried it"),
        Fit.UNKNOWN: (Level.WARNING, "does not tell its version"),
        Fit.OLD: (Level.ERROR, "is too old."),
    }[expected]
    assert (found.level, said[1] in found.said) == (said[0], True), found
    assert bool(found.fix) == (expected is not Fit.KNOWN)


def test_versions_are_read_as_numbers() -> None:
    assert numbers("28.0.0") > numbers("1.27.3") > numbers("1.27") > numbers("1.9")
    assert (least("gitea"), least("forgejo")) == ((1, 26), (15, 0, 9))


@pytest.mark.parametrize(
    ("program", "version", "git"),
    [
        ("gitea-runner", "1.0.8", ()),
        ("gitea-runner", "v2.0.0", (2, 34, 1)),
        ("gitea-runner", "5.3.0", (2, 34, 1)),
        ("gitea-runner", "", ()),
        ("forgejo-runner", "12.8.2", ()),
    ],
)
def test_which_runner_needs_which_git(program: str, version: str, git: tuple[int, ...]) -> None:
    assert least_git(program, version) == git
    assert ".".join(map(str, git)) in PAGE.read_text()


@pytest.mark.parametrize(("program", "version"), FIRST.items())
def test_a_new_installation_begins_with_a_runner_that_is_known(program: str, version: str) -> None:
    assert fit(program, version) is Fit.KNOWN
