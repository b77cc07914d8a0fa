"""The cache's own process, which `vmrunner serve` starts: `python -m vmrunner.cache.main`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from socket import socket

from vmrunner import web
from vmrunner.cache.rights import Rights
from vmrunner.cache.server import Bounded, Service, allow_connections
from vmrunner.cache.store import Limits, Store
from vmrunner.cache.uploads import Uploads
from vmrunner.errors import ConfigError
from vmrunner.log import Log


def serve(
    listening: socket, folder: Path, limits: Limits, who: Callable[[str], Rights | None], log: Log
) -> None:
    """Answer at this socket until the standard input ends; raises ConfigError.

    Nobody else does: who listens there is the only one that takes uploads, and sweeps them.
    """

    def warn(sentence: str) -> None:
        log.warning(sentence)

    allow_connections()
    with closing(Store(folder, limits, warn)) as store:
        try:
            uploads = Uploads(store)
            uploads.sweep()
            store.sweep()
        except OSError as error:
            raise ConfigError(
                f"The cache {folder} can't be used: {error.strerror}.",
                "It has to be a folder of the service's user.",
            ) from None
        web.serve(Service(store, uploads, who, log).application(), listening, Bounded)
