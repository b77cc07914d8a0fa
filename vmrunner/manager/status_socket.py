"""Whom `serve` tells what it saw last: who may open its socket, which is root, the service's user,
and the members of that user's group. So `vmrunner status` needs no token, and asks no forge.

Who connects gets one document, and says nothing.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from vmrunner.config import HostConfig
from vmrunner.log import Log

_MODE = 0o660
_PATIENCE = 5.0  # seconds for one side to take or to give a piece of the document
_REST = 0.2  # seconds, where no connection can be taken
_PIECE = 1 << 16


def path(settings: HostConfig) -> Path:
    """Where it is."""
    return settings.runtime_dir / f"{settings.manager}.status"


def ask(place: Path) -> bytes:
    """What is told there; empty where nobody is, and where nothing was seen yet.

    Raises PermissionError.
    """
    pieces = []
    try:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(_PATIENCE)
            asking.connect(str(place))
            while piece := asking.recv(_PIECE):
                pieces.append(piece)
    except PermissionError:
        raise
    except OSError:  # also where its path is too long for a socket
        return b""
    return b"".join(pieces)


class StatusSocket:
    """Answers in a thread of its own, one after the other, with what `tell` gives at that moment.

    One that can't be made is said in the log: all else works without it.
    """

    def __init__(self, place: Path, tell: Callable[[], bytes], log: Log) -> None:
        self._place, self._tell, self._log = place, tell, log
        self._listening = socket.socket(socket.AF_UNIX)
        self._over = False

    def __enter__(self) -> StatusSocket:
        """Call it under the lock of `serve`: what lies there is of one that was killed."""
        try:
            self._place.unlink(missing_ok=True)
            self._listening.bind(str(self._place))
            self._place.chmod(_MODE)  # nobody can connect before `listen`
            self._listening.listen()
        except OSError as error:
            reason = error.strerror or str(error)
            self._log.warning("status is not told", socket=str(self._place), reason=reason)
            return self
        threading.Thread(target=self._run, name="status", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._listening.close()
        with suppress(OSError):
            self._place.unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._over:
            try:
                asking, _ = self._listening.accept()
            except OSError:  # no file descriptor is left, or it is closed
                time.sleep(0.0 if self._over else _REST)
                continue
            with asking:
                try:
                    asking.settimeout(_PATIENCE)
                    asking.sendall(self._tell())
                except OSError:
                    continue  # it went away, or takes nothing
