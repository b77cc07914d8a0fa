"""The workflows, each with what has to come of it: one file of `workflows/` for each."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent / "workflows"
LABEL = "LABEL"
"""Stands for a side's label in a workflow, as `FORGE` does for the URL of the forge, and `CRON` for
a time that comes soon.
"""


class Topic(StrEnum):
    """What a case is about."""

    ACTIONS = "actions"
    ARTIFACTS = "artifacts"
    BACKGROUND_CHILDREN = "background children"
    CACHE = "cache"
    CANCEL = "cancel"
    CHECKOUT = "checkout"
    COMMAND_FILES = "command files"
    CONCURRENCY = "concurrency"
    CONDITIONS = "conditions"
    ENVIRONMENT = "environment"
    EXIT_CODES = "exit codes"
    FILES = "files"
    MASKS = "masks"
    MATRIX = "matrix"
    NEEDS = "needs"
    NETWORK = "network"
    OUTPUT = "output"
    PERMISSIONS = "permissions"
    PIPES = "pipes"
    REUSABLE_WORKFLOWS = "reusable workflows"
    RUNS = "runs"
    SCHEDULES = "schedules"
    SERVICES = "services"
    SHELLS = "shells"
    SIGNALS = "signals"
    TIMEOUTS = "timeouts"


@dataclass(frozen=True)
class Wanted:
    """What has to come of one job."""

    job: str
    verdict: str
    # Regular expressions, each of which a whole line of the normalized log has to match, in this
    # order.
    log: tuple[str, ...] = ()
    never: tuple[str, ...] = ()  # that no line of it may match, even in part

    def faults(self, verdict: str, log: list[str]) -> list[str]:
        """What is not as it should be."""
        found = [] if verdict == self.verdict else [f"is {verdict}, not {self.verdict}"]
        lines = iter(log)
        for pattern in self.log:
            if not any(re.fullmatch(pattern, line) for line in lines):
                found.append(f"has no line {pattern!r} where it should be")
                break
        return found + [
            f"has a line like {pattern!r}"
            for pattern in self.never
            if any(re.search(pattern, line) for line in log)
        ]


@dataclass(frozen=True)
class Case:
    """One workflow."""

    name: str
    about: str
    topic: Topic
    workflow: str
    wanted: tuple[Wanted, ...]
    contained: tuple[Wanted, ...] = ()  # in place of those where jobs run in containers
    sample: bool = False  # part of the suite
    sides: tuple[str, ...] = ()  # all unless some are named
    event: str = "workflow_dispatch"
    acts: tuple[str, ...] = ("until done",)  # what users do: see play.py
    files: dict[str, str] = field(default_factory=dict)  # beside the workflow
    submodules: dict[str, str] = field(default_factory=dict)  # path and address of each
    private: bool = False  # the repository
    secrets: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    unlike: str = ""  # what people know, in the words of docs/jobs.md
    whose: str = ""  # behaviour that is: a program and its version

    @classmethod
    def load(cls, path: Path) -> Case:
        """Of a file; raises TypeError, ValueError or KeyError where that is not a case."""
        raw: dict[str, Any] = yaml.safe_load(path.read_text())
        return cls(
            name=path.stem,
            topic=Topic(raw.pop("topic")),
            wanted=_wanted(raw.pop("expect")),
            contained=_wanted(raw.pop("expect-in-containers", {})),
            sides=tuple(raw.pop("sides", ())),
            acts=tuple(raw.pop("acts", ("until done",))),
            **raw,
        )

    def wanted_where(self, *, contained: bool) -> dict[str, Wanted]:
        """By job, where jobs run in containers or where they don't."""
        jobs = {each.job: each for each in self.wanted}
        return jobs | {each.job: each for each in self.contained} if contained else jobs

    def contents(self, runs_on: str, container: str, forge: str) -> dict[str, str]:
        """The repository's files for a side: jobs under this label and, where one is named, in this
        container image.
        """
        more = rf"\n\g<indent>container: {container}" if container else ""
        # There it would be sh, which is a case of its own.
        if container and "defaults:" not in self.workflow:
            more += r"\n\g<indent>defaults: {run: {shell: bash}}"
        label, to = (
            re.compile(rf"^(?P<indent> +)runs-on: {LABEL}$", re.MULTILINE),
            rf"\g<indent>runs-on: {runs_on}{more}",
        )
        files = {".gitea/workflows/ci.yaml": self.workflow, **self.files}
        soon = (datetime.now(UTC) + timedelta(minutes=2)).strftime("%-M %-H * * *")
        return {
            path: label.sub(to, text)
            .replace(LABEL, runs_on)
            .replace("FORGE", forge)
            .replace("CRON", soon)
            for path, text in files.items()
        }


def _wanted(jobs: dict[str, dict[str, Any]]) -> tuple[Wanted, ...]:
    return tuple(
        Wanted(job, each["verdict"], tuple(each.get("log", ())), tuple(each.get("never", ())))
        for job, each in jobs.items()
    )


def load_all(*only: str) -> list[Case]:
    """Every case, or those whose name or topic has one of these in it, by name."""
    found = [Case.load(path) for path in sorted(FOLDER.glob("*.yaml"))]
    return [
        case
        for case in found
        if not only or any(part in case.name or part in case.topic for part in only)
    ]
