"""The one place that renders templates: XML and HTML with escaping, shell and YAML from values that
were checked or quoted.
"""

from __future__ import annotations

import shlex
from functools import cache
from typing import TYPE_CHECKING

from vmrunner.resources import folder
from vmrunner.text import presentable

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_LONGEST = 1000  # characters of a value on a page


@cache
def _environment(escape: bool) -> Environment:
    # here: commands that only look render nothing
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Escaping is for XML; shell and YAML templates quote with the `sh` filter or use values of a
    # checked form.
    environment = Environment(
        loader=FileSystemLoader(folder("templates")),
        autoescape=escape,  # noqa: S701 — see above
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    environment.filters["sh"] = shlex.quote
    return environment


@cache
def _pages() -> Environment:
    return _environment(True).overlay(finalize=_shown, lstrip_blocks=True)


def _shown(value: object) -> object:
    """Others' words on one line, and nothing in them that turns the line around."""
    return presentable(value, _LONGEST) if type(value) is str else value


def html(template: str, **values: object) -> Markup:
    """Render a page, or a part of one; every value is escaped."""
    from markupsafe import Markup

    return Markup(_pages().get_template(template).render(values))  # noqa: S704 — just escaped


def xml(template: str, **values: object) -> str:
    """Render an XML template; every value is escaped."""
    return _environment(True).get_template(template).render(values)


@cache  # every pass asks for the key of every pool's snapshot
def source(template: str) -> str:
    """A template as it is."""
    return (folder("templates") / template).read_text(encoding="utf-8")


@cache
def guest(program: str) -> str:
    """The source of a program that runs inside machines, which travels in their seed."""
    return (folder("images") / "guest" / program).read_text(encoding="utf-8")


def waiting_code() -> str:
    """The source of what runs in every machine that waits for a job, or has one."""
    return f"DOOR = {guest('door.py')!r}\n{guest('job.py')}"


def text(template: str, **values: object) -> str:
    """Render a shell or YAML template."""
    return _environment(False).get_template(template).render(values)
