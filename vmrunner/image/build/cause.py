"""Why a program of a build failed, from what it printed. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """The end of a sentence that begins with what failed, and what to do about it."""

    is_that: str
    hint: str


_FULL = Cause("there is no room left", "Free some space.")
# apt's words, in the order in which they count: what could not be fetched could not be found
# either.
_OF_APT = (
    (
        re.compile(r"^E: The repository '(.+?)(?: (?:In)?Release)?' is not signed\.$"),
        "{0} is signed by nobody whom this host trusts",
        "Its key belongs into the file that the recipe's `keyring` names, or among apt's own.",
    ),
    (
        re.compile(r"^E: Release file for (\S+) is expired"),
        "what {0} says has expired",
        "An archive of old packages needs a `snapshot` in the recipe; else this host's clock or "
        "its mirror is wrong.",
    ),
    (
        re.compile(r"^E: Failed to fetch (\S+)"),
        "{0} can't be fetched",
        "Is that server up, and this host's way to it? Nothing is left of this build; the next one "
        "begins anew.",
    ),
    (
        re.compile(r"^E: Unable to locate package (\S+)"),
        "its suites have no package {0}",
        "It may be in another one of the mirror's `components`.",
    ),
)


def of(lines: Sequence[str]) -> Cause | None:
    """The cause that these lines of output tell, if it is one of the usual ones."""
    if any("No space left" in line for line in lines):
        return _FULL
    for pattern, is_that, hint in _OF_APT:
        for line in lines:
            if found := pattern.match(line):
                return Cause(
                    is_that.format(found[1]),
                    f"{hint}\napt says: {line.removeprefix('E: ').strip()}",
                )
    return None
