"""Logs without what differs from run to run: times, names of machines, numbers that the forge gives
out.
"""

from __future__ import annotations

import re
from itertools import groupby

_STAMP = re.compile(r"^\d{4}-\d\d-\d\dT\S+Z ?", re.MULTILINE)
_SAME = [
    (re.compile(pattern), to)
    for pattern, to in (
        (r"^\S+\(version:v?[^)]+\) received task \d+ of job", "RUNNER received task N of job"),
        (r"[^\s=:'\"]*/[0-9a-f]{16}(?=/(hostexecutor|tmp|act)\b)", "ACT"),
        (r"\bvmr-[a-z0-9-]+-[0-9a-f]{8,16}\b", "MACHINE"),
        (r"\bconf-[a-z]+\b", "OWNER"),
        (r"^env ImageOS=\S+$", "env ImageOS=LABEL"),
        (r"^env GITHUB_RUN_ID=\d+$", "env GITHUB_RUN_ID=N"),
        (r"\b[0-9a-f]{40}\b", "SHA"),
        (r"\bGITEA-ACTIONS-TASK-\d+[A-Za-z0-9_.-]+", "CONTAINER"),
    )
]


_NOISE = re.compile(r"'runs-on' key not defined in /\S*")
"""The runner says it of each job that is needed, in any order."""

_OUTPUT = "::set-output:: "  # a step's outputs, also those of its file, are told in any order


def lines(log: str) -> list[str]:
    """Of a log as the forge has it."""
    listed = [line(each) for each in _STAMP.sub("", log).rstrip("\n").split("\n")]
    kept = (each for each in listed if not _NOISE.fullmatch(each))
    together = groupby(kept, key=lambda each: each.startswith(_OUTPUT))
    return [each for is_output, some in together for each in (sorted(some) if is_output else some)]


def line(text: str) -> str:
    """One line of it."""
    for pattern, to in _SAME:
        text = pattern.sub(to, text)
    return text.rstrip("\r")
