"""Structured logs to stderr: one line an event, with the machine, pool and job that it is about."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, Protocol, cast, runtime_checkable

Say = Callable[[str], object]
"""Tells a person how something goes on, a line at a time."""


@runtime_checkable
class Moving(Protocol):
    """A Say that can also show how far the line is that it told last."""

    def part(self, done: int, of: int) -> object:
        """In bytes."""


def tell_part(say: Say, done: int, of: int) -> None:
    """How far the line is that `say` told last, in bytes, where that can be shown: a log would
    have a line for each.
    """
    if isinstance(say, Moving):
        say.part(done, of)


_LEVELS = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}  # syslog's


class Format(StrEnum):
    """How lines are written."""

    TEXT = "text"
    JSON = "json"


class Level(StrEnum):
    """From where on events are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Log(Protocol):
    """What the manager needs of a logger."""

    def debug(self, event: str, **fields: object) -> object:
        """What helps to find a fault of ours: each step of a pass."""

    def info(self, event: str, **fields: object) -> object:
        """Something that is as it should be."""

    def warning(self, event: str, **fields: object) -> object:
        """Something that an admin may want to look into."""

    def error(self, event: str, **fields: object) -> object:
        """Something that failed."""


@dataclass(frozen=True)
class _Unopened:
    """A logger that is opened by its first line: structlog takes longer to load than all of ours,
    and many commands log nothing.
    """

    form: Format
    level: Level

    @cached_property
    def _opened(self) -> Log:
        return _open(self.form, self.level)

    def debug(self, event: str, **fields: object) -> object:
        return self._opened.debug(event, **fields)

    def info(self, event: str, **fields: object) -> object:
        return self._opened.info(event, **fields)

    def warning(self, event: str, **fields: object) -> object:
        return self._opened.warning(event, **fields)

    def error(self, event: str, **fields: object) -> object:
        return self._opened.error(event, **fields)


def open_log(form: Format, level: Level = Level.INFO) -> Log:
    """A logger that writes lines of text, or JSON, from this level on."""
    return _Unopened(form, level)


def _open(form: Format, level: Level) -> Log:
    import structlog

    processors: list[Any] = [_line]
    if form is Format.JSON:
        stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
        processors = [
            structlog.processors.add_log_level,
            stamp,
            structlog.processors.JSONRenderer(default=str),
        ]
    logger = structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level.upper()),
    )
    return cast("Log", logger)


def _line(_logger: object, method: str, fields: MutableMapping[str, Any]) -> str:
    """The event, then its fields.

    journald reads `<6>` at the beginning as the priority, and adds the time by itself.
    """
    head = f"<{_LEVELS[method]}>" if "JOURNAL_STREAM" in os.environ else time.strftime("%H:%M:%S ")
    return head + words(str(fields.pop("event")), fields)


def words(event: str, fields: Mapping[str, object]) -> str:
    """An event and its fields on one line; those that are empty are left out."""
    told = (
        f"{key}={_quoted(str(value))}" for key, value in fields.items() if value not in ("", None)
    )
    return " ".join([event if event.isprintable() else json.dumps(event)[1:-1], *told])


def _quoted(text: str) -> str:
    """A field's value on one line.

    Jobs' names, and what guests and servers say, are others' words: no line or colour may come of
    them.
    """
    if text.isprintable() and " " not in text and '"' not in text:
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())
