"""Whether the page for browsers can be served."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from vmrunner.config import Config, page_token
from vmrunner.doctor.findings import Finding, good, secret, warning

_NEEDED = ("starlette", "uvicorn")
INSTALL = "`apt-get install python3-starlette python3-uvicorn`, or `pip install 'vmrunner[page]'`."
"""How those are installed that are missing."""


def missing() -> list[str]:
    """The modules that the page needs, and nothing else does, and that are not installed."""
    return [name for name in _NEEDED if find_spec(name) is None]


def look(settings: Config) -> Iterator[Finding]:
    """Nothing is asked of it. Without `page.listen` there is nothing to say."""
    page = settings.page
    if page.listen is None:
        return
    if page.token_file and not (yield from secret("page", page_token, page.token_file)):
        return
    if absent := missing():
        yield warning("page", f"No page is served: {', '.join(absent)} is not installed.", INSTALL)
    else:
        logs = ", with machines' logs" if page.logs else ""
        yield good("page", f"for browsers, at {page.listen}{logs}")
