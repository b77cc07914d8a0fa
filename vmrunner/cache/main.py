"""The cache's own process, which `vmrunner serve` starts: `python -m vmrunner.cache.main`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from socket import socket

from vmrunner import beside, lock
from vmrunner.cache.connections import Connections
from vmrunner.cache.refused import Refused
from vmrunner.cache.rights import Rights
from vmrunner.cache.server import Service, allow_connections, bind
from vmrunner.cache.store import UNREADABLE, Limits, Store
from vmrunner.cache.uploads import Uploads
from vmrunner.cache.who import Who
from vmrunner.config import Config
from vmrunner.errors import ConfigError
from vmrunner.log import Log
from vmrunner.network.addresses import gateway

_PATIENCE = 10.0  # seconds for the one before to end


def serve(
    listening: socket,
    folder: Path,
    forge: str,
    limits: Limits,
    who: Callable[[str], Rights | None],
    log: Log,
) -> None:
    """Answer at this socket until the standard input ends, for jobs of the forge with this address;
    raises ConfigError, and Busy where another process does so from the same folder: one alone takes
    uploads, and sweeps them.
    """

    def warn(sentence: str) -> None:
        log.warning(sentence)

    allow_connections()
    other = f"Another vmrunner serves the cache {folder}"
    hint = "Give this manager another `state_dir`."
    with (
        closing(Store(folder, limits, warn)) as store,
        lock.held(folder / "lock", other, hint, wait=_PATIENCE, say=warn),
    ):
        try:
            store.belong_to(forge)
            uploads = Uploads(store, who)
            uploads.sweep()
            store.sweep()
        except OSError as error:
            raise ConfigError(
                f"The cache {folder} can't be used: {error.strerror}.",
                "It has to be a folder of the service's user.",
            ) from None
        except Refused as error:
            raise ConfigError(error.sentence, UNREADABLE) from None
        Connections(listening, Service(store, uploads, who, log).answer, log).serve()


def run(settings: Config, log: Log) -> None:
    """Serve the machines. Raises ConfigError."""
    cache = settings.cache
    assert cache.listen_port is not None, "it is not started without"  # noqa: S101
    address = str(gateway(settings.libvirt.subnet))
    who = Who(
        (settings.cache_jobs_file, settings.cache_lab_file), settings.addresses(), cache.groups
    )
    with bind(address, cache.listen_port) as listening:
        log.info("the cache is served", listen=f"{address}:{cache.listen_port}")
        forge = settings.forge.url
        serve(listening, settings.cache_dir, forge, Limits.of(cache), who.of, log)


if __name__ == "__main__":
    sys.exit(beside.main(run))
