"""Whether the cache of jobs answers, as far as this host can tell: it is no machine."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException

from vmrunner.config import Config
from vmrunner.doctor.findings import Finding, good, warning
from vmrunner.network.addresses import gateway

_PATIENCE = 5.0  # seconds
_ASKED = "/_apis/artifactcache/cache?keys=doctor&version=doctor"
_REFUSED = 403  # what it says to who is no machine


def look(settings: Config) -> Iterator[Finding]:
    """Without `cache.listen_port` there is nothing to say."""
    port = settings.cache.listen_port
    if port is None:
        return
    address = str(gateway(settings.libvirt.subnet))
    at = f"{address}:{port}"
    if not _is_here(address):
        yield good("cache", f"for jobs, at {at}; that address is there from the first machine on")
        return
    match _is_ours(address, port):
        case None:
            yield warning(
                "cache",
                f"The cache does not answer at {at}: jobs go on without it.",
                "`vmrunner serve` offers it while it runs; its log says why it does not.",
            )
        case False:
            yield warning(
                "cache",
                f"Something else than the cache answers at {at}.",
                "Choose another cache.listen_port, or end what listens there.",
            )
        case True:
            yield good("cache", f"for jobs, at {at}")


def answers(settings: Config) -> bool:
    """Whether there is a cache of this host, and it answers."""
    port, address = settings.cache.listen_port, str(gateway(settings.libvirt.subnet))
    return port is not None and _is_ours(address, port) is True


def _is_here(address: str) -> bool:
    """Whether this host has this address: it comes with the machines' network."""
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _is_ours(address: str, port: int) -> bool | None:
    """Whether the cache answers, and not somebody else; None where nobody does."""
    connection = HTTPConnection(address, port, timeout=_PATIENCE)
    try:
        connection.request("GET", _ASKED)
        answer = connection.getresponse()
        said = json.loads(answer.read(4096))
    except (HTTPException, ValueError):
        return False
    except OSError:
        return None
    finally:
        connection.close()
    return answer.status == _REFUSED and isinstance(said, dict) and "message" in said
