"""Which forges and which of their runners vmrunner is for: what was run, and what was only read.
Pure.

`docs/support.md` shows the same; a test sees to it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, StrEnum

Version = tuple[int, ...]


class Tried(StrEnum):
    """What a line of versions is known from."""

    RUN = "run"
    DOUBLE = "a double"  # of it, by its published API description and its source
    READ = "read"


@dataclass(frozen=True)
class Line:
    """Versions that are alike: from `first` on, and below `end`."""

    program: str
    name: str
    first: Version
    end: Version
    tried: Tried
    known: str  # what it is known from, in words

    def has(self, version: Version) -> bool:
        """Whether this version is of the line; a longer one is newer than its beginning."""
        return self.first <= version < self.end


LINES = (
    Line(
        "forgejo",
        "Forgejo 15 LTS",
        (15, 0, 9),
        (16,),
        Tried.DOUBLE,
        "a double, by the API description of 15.0.3",
    ),
    Line("forgejo", "Forgejo 16", (16,), (17,), Tried.READ, "what is published of it"),
    Line("forgejo", "Forgejo 17", (17,), (18,), Tried.READ, "what is published of it"),
    Line("gitea", "Gitea 1.26", (1, 26), (1, 27), Tried.RUN, "1.26.0: the whole suite"),
    Line(
        "gitea",
        "Gitea 1.27",
        (1, 27),
        (1, 28),
        Tried.DOUBLE,
        "a double, by the API description and the source of 1.27.3",
    ),
    Line("gitea", "Gitea 28", (28,), (29,), Tried.READ, "what is published of 28.0.0"),
    Line("gitea-runner", "gitea-runner 1", (1, 0, 8), (2,), Tried.RUN, "1.0.8: the whole suite"),
    Line(
        "gitea-runner",
        "gitea-runner 2 to 5",
        (2,),
        (6,),
        Tried.READ,
        "what is published of them",
    ),
    Line(
        "forgejo-runner",
        "forgejo-runner 12",
        (12, 8),
        (13,),
        Tried.READ,
        "its source; a small program stands for it in tests",
    ),
)


FIRST = {"forgejo-runner": "12.8.2", "gitea-runner": "1.0.8"}
"""The runner that a new installation begins with."""

GIT = (2, 34, 1)
"""The oldest git with which gitea-runner 2 and newer fetches actions."""


# So many digits at most: a forge may say anything, and Python refuses to read thousands of them.
_NUMBERS = re.compile(r"\s*v?([0-9]{1,18}(?:\.[0-9]{1,18})*)(?![0-9])")


class Fit(Enum):
    """What is to be said of a version."""

    KNOWN, UNTRIED, UNKNOWN, OLD = range(4)


def numbers(version: str) -> Version:
    """What a version begins with: `v1.27.3+dev` -> (1, 27, 3); () where it has no number."""
    found = _NUMBERS.match(version)
    return tuple(int(number) for number in found[1].split(".")) if found else ()


def least(program: str) -> Version:
    """The oldest version that will do."""
    return min(line.first for line in LINES if line.program == program)


def line(program: str, version: str) -> Line | None:
    """The line that a version belongs to; None for one that nobody has looked at."""
    seen = numbers(version)
    return next((each for each in LINES if each.program == program and each.has(seen)), None)


def fit(program: str, version: str) -> Fit:
    """Whether this version will do, as far as it is known."""
    if not numbers(version):
        return Fit.UNKNOWN
    if line(program, version):
        return Fit.KNOWN
    return Fit.OLD if numbers(version) < least(program) else Fit.UNTRIED


def least_git(program: str, version: str) -> Version:
    """The oldest git that a runner of this version needs in its PATH; () where any will do, or
    none.
    """
    return GIT if program == "gitea-runner" and numbers(version) >= (2,) else ()
