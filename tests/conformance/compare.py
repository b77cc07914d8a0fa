"""What differs between two sides, and which of that is known and has a reason."""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

_LONG = 20_000  # lines; to align more takes minutes
KNOWN = Path(__file__).parent / "known.toml"


@dataclass(frozen=True)
class Ended:
    """A job of a case on a side: its verdict, and its normalized log."""

    job: str
    verdict: str
    log: list[str]


@dataclass(frozen=True)
class Difference:
    """A line that only one of two sides has, or a verdict that they don't share."""

    case: str
    job: str
    side: str  # the one that is compared with the plain tree
    # Begins with "-" where only the plain tree has it, with "+" where only the side has it.
    line: str

    def __str__(self) -> str:
        return f"{self.case}, {self.job}, {self.side}: {self.line}"


@dataclass(frozen=True)
class Known:
    """A difference that there is to be, as docs/jobs.md tells it."""

    id: str
    whose: str  # behaviour it is
    reason: str
    sides: tuple[str, ...]
    lines: tuple[str, ...]  # regular expressions for whole lines of Difference
    cases: tuple[str, ...] = ()  # all unless some are named

    def covers(self, difference: Difference) -> bool:
        """Whether this is one of its lines."""
        return (
            difference.side in self.sides
            and (not self.cases or difference.case in self.cases)
            and any(re.fullmatch(pattern, difference.line) for pattern in self.lines)
        )


def known(path: Path = KNOWN) -> list[Known]:
    """All of the file."""
    tables = tomllib.loads(path.read_text()).get("known", [])
    return [
        Known(
            **{
                key: tuple(value) if isinstance(value, list) else value
                for key, value in table.items()
            }
        )
        for table in tables
    ]


def differences(case: str, side: str, plain: list[Ended], other: list[Ended]) -> list[Difference]:
    """Between the jobs of a case in the plain tree and those on another side."""
    found = []
    here, there = ({each.job: each for each in ended} for ended in (plain, other))
    for job in dict.fromkeys([*here, *there]):
        if job not in here or job not in there:
            found.append(Difference(case, job, side, ("-" if job in here else "+") + "the job"))
            continue
        found += [
            Difference(case, job, side, line)
            for line in _changed(_lines(here[job]), _lines(there[job]))
        ]
    return found


def _lines(ended: Ended) -> list[str]:
    """What is compared.

    Of a cancelled job the forge has what came in time: it takes no line after the cancel.
    """
    return [f"verdict {ended.verdict}", *(ended.log if ended.verdict != "cancelled" else ())]


def _changed(before: list[str], after: list[str]) -> list[str]:
    """Lines that were taken or added; of very long logs only whether they are equal."""
    if before == after:
        return []
    if max(len(before), len(after)) > _LONG:
        shorter = min(len(before), len(after))
        first = next(
            (
                number
                for number, (one, two) in enumerate(zip(before, after, strict=False))
                if one != two
            ),
            shorter,
        )
        told = (
            (sign, len(lines), lines[first : first + 1])
            for sign, lines in (("-", before), ("+", after))
        )
        return [
            f"{sign}{count} lines, the first that differs is {first}: {line}"
            for sign, count, line in told
        ]
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    changed = []
    for tag, one, two, three, four in matcher.get_opcodes():
        if tag != "equal":
            changed += [f"-{line}" for line in before[one:two]] + [
                f"+{line}" for line in after[three:four]
            ]
    return changed
