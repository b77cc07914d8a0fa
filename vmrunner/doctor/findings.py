"""A finding of doctor: one look at one thing, how bad it is, and what mends it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum

from vmrunner.errors import VmrunnerError


class Level(IntEnum):
    """How bad a finding is; its value is the exit code."""

    GOOD = 0
    WARNING = 10
    ERROR = 11


@dataclass(frozen=True)
class Finding:
    """One look at one thing."""

    check: str
    level: Level
    said: str
    fix: str = ""


def good(check: str, said: str) -> Finding:
    """Nothing to do."""
    return Finding(check, Level.GOOD, said)


def warning(check: str, said: str, fix: str) -> Finding:
    """It works, but not as well or as safely as it could."""
    return Finding(check, Level.WARNING, said, fix)


def error(check: str, said: str, fix: str) -> Finding:
    """Jobs can't run because of it."""
    return Finding(check, Level.ERROR, said, fix)


def failed(check: str, why: VmrunnerError) -> Finding:
    """What would stop a pass, too."""
    return error(check, why.sentence, why.hint)


def numbers(version: str) -> tuple[int, ...]:
    """Major and minor of a version; (0, 0) where it has none."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)
