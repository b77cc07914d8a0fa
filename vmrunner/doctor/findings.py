"""A finding of doctor: one look at one thing, how bad it is, and what mends it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from vmrunner.errors import NotReadable, VmrunnerError
from vmrunner.support import Fit, fit, least, line
from vmrunner.text import dotted


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
    """What would stop a pass, too; but for a secret that is the service's and not this user's."""
    if isinstance(why, NotReadable):
        return warning(check, why.sentence, "`sudo vmrunner doctor` looks at that, too.")
    return error(check, why.sentence, why.hint)


def secret(
    check: str, read: Callable[[Path, Callable[[str], None]], Any], path: Path
) -> Generator[Finding, None, bool]:
    """Whether `read` has a secret from this file, after what is wrong with the file."""
    readable: list[str] = []
    try:
        read(path, readable.append)
    except VmrunnerError as why:
        yield failed(check, why)
        return False
    yield from (warning(check, sentence, "") for sentence in readable)
    return True


def supported(check: str, program: str, version: str, more: str) -> Finding:
    """What is known of this version of a forge or its runner; `more` follows its name where there
    is nothing to complain of.
    """
    shown = f"{program} {version}".strip()
    match fit(program, version):
        case Fit.OLD:
            return error(
                check,
                f"{shown} is too old.",
                f"vmrunner needs {dotted(least(program))} or newer (docs/support.md).",
            )
        case Fit.UNTRIED:
            return warning(
                check,
                f"{shown}: nobody has tried it with vmrunner.",
                "docs/support.md names the versions that are known; try one job of each pool.",
            )
        case Fit.UNKNOWN:
            return warning(
                check,
                f"{program} does not tell its version ({version or 'nothing'}).",
                f"Is it {dotted(least(program))} or newer? See docs/support.md.",
            )
    known = line(program, version)
    how = f" (vmrunner knows it from {known.known})" if known else ""
    return good(check, f"{shown} {more}{how}")
