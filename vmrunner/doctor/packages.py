"""Whether what fetches packages for machines does so."""

from __future__ import annotations

from collections.abc import Iterator

import httpx

from vmrunner.config import Config
from vmrunner.doctor.findings import Finding, good, warning
from vmrunner.model.packages import APT_HOSTS, Ecosystem, Mirror

_TIMEOUT = httpx.Timeout(15.0, connect=2.0)  # seconds
_ASKED = {
    Ecosystem.APT: "/debian/dists/stable/InRelease",
    Ecosystem.NPM: "/-/ping",
    Ecosystem.PYPI: "/pip/",
    Ecosystem.GO: "/sumdb/sum.golang.org/supported",
    Ecosystem.OCI: "/v2/",
    Ecosystem.CRATES: "/config.json",
    Ecosystem.MAVEN: "/junit/junit/maven-metadata.xml",
}
"""What each is asked for, below its upstream's path."""
_OURS, _REGISTRY = "X-Vmrunner-Cache", "Docker-Distribution-Api-Version"


def look(settings: Config) -> Iterator[Finding]:
    """Each is asked for something small, which it may have to fetch. Nothing of it is needed: a
    machine is told of those that answer.
    """
    for mirror in settings.all_mirrors:
        yield _look(mirror)


def _look(mirror: Mirror) -> Finding:
    check = f"{mirror.of} packages"
    at, unit = mirror.place, mirror.unit_name
    try:
        answer = _ask(mirror)
    except httpx.HTTPError:
        return warning(
            check,
            f"Nothing answers at {at}: jobs fetch these packages themselves.",
            f"`vmrunner cache setup {mirror.of}` writes what does; "
            f"`systemctl status {unit}` says how it is. Before the first "
            "machine there is no such address.",
        )
    if (_REGISTRY if mirror.of is Ecosystem.OCI else _OURS) not in answer.headers:
        return warning(
            check,
            f"What answers at {at} is something else.",
            "Choose another cache.packages.first_port, or move that away.",
        )
    if answer.status_code >= 500:
        return warning(
            check,
            f"What answers at {at} can't fetch from {mirror.upstream} ({answer.status_code}).",
            f"`journalctl -u {unit}` says why. After a change of "
            "/etc/resolv.conf its configuration has to be written anew.",
        )
    return good(check, f"from {mirror.upstream}, for machines at {at}")


def _ask(mirror: Mirror) -> httpx.Response:
    # Whatever this host's own way out is: this is at the host itself.
    with httpx.Client(trust_env=False, timeout=_TIMEOUT) as client:
        if mirror.of is Ecosystem.APT:
            headers = {"Host": APT_HOSTS[0]}
            return client.head(f"http://{mirror.place}{_ASKED[mirror.of]}", headers=headers)
        return client.head(f"{mirror.url}{_ASKED[mirror.of]}")
