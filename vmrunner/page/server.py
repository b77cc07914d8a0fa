"""The web server of the page, with bounds on what whoever reaches its port may want of it."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from vmrunner import web
from vmrunner.errors import ConfigError

_CONNECTIONS = 100  # at the same time; of more the oldest goes
_LONGEST = 30.0  # seconds that a connection lasts, whatever it does
_BACKLOG = 128


class Bounded(H11Protocol):
    """A connection that neither stays for ever nor keeps others out: it may be one that says its
    request byte by byte, or never reads the answer.
    """

    def connection_made(self, transport: Any) -> None:
        """See asyncio."""
        loop = asyncio.get_running_loop()
        self._since, self._life = loop.time(), loop.call_later(_LONGEST, transport.abort)
        others = [each for each in self.connections if isinstance(each, Bounded)]
        if len(others) >= _CONNECTIONS:
            min(others, key=lambda each: each._since).transport.abort()
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._life.cancel()
        super().connection_lost(exc)


def bind(listen: str) -> socket.socket:
    """Listen at an address or a socket's path; raises ConfigError."""
    try:
        return _bind_unix(Path(listen)) if listen.startswith("/") else _bind_inet(listen)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"The page can't be served at {listen}: {error}.", "Choose another page.listen."
        ) from None


def _bind_inet(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, int(port)), family=family, backlog=_BACKLOG)


def _bind_unix(path: Path) -> socket.socket:
    """What another process has left there is replaced, if it is a socket that nobody listens at."""
    found = socket.socket(socket.AF_UNIX)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode) and not _is_heard(path):
            path.unlink()
        found.bind(str(path))
        os.chmod(path, 0o660)
        found.listen(_BACKLOG)
    except BaseException:
        found.close()
        raise
    return found


def _is_heard(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as tried:
        tried.settimeout(1)
        try:
            tried.connect(str(path))
        except OSError:
            return False
        return True


def serve(app: Any, listening: socket.socket) -> None:
    """See `web.serve`."""
    web.serve(app, listening, Bounded)
