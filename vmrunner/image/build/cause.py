"""The usual causes for which a program of a build fails, told from its output. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """Why a program failed, and what to do about it."""

    reason: str  # without a capital and a full stop: it follows "… failed: "
    hint: str


_DISK_FULL = Cause("there is no room left", "Free some space.")
# What apt prints, the reason, the hint. The first that matches is the cause, those after it may be
# its consequences: a package of a list that was not fetched can't be located either.
_APT_ERRORS = (
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


def recognise(lines: Sequence[str]) -> Cause | None:
    """The cause that these lines of output name; None where it is not one of the usual ones."""
    if any("No space left" in line for line in lines):
        return _DISK_FULL
    for pattern, reason, hint in _APT_ERRORS:
        for line in lines:
            if found := pattern.match(line):
                return Cause(
                    reason.format(found[1]),
                    f"{hint}\napt says: {line.removeprefix('E: ').strip()}",
                )
    return None
