"""What machines are told of packages that come through this host: files that programs read by
themselves, so that no workflow changes, and that hold for every user and with sudo.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable

from vmrunner.model.packages import Ecosystem, Mirror

_PATIENCE = 0.2  # seconds that one of this very host has to take a connection
_HEAD = "Written by vmrunner: what this machine's host fetches for it."


def answering(mirrors: Iterable[Mirror]) -> tuple[Mirror, ...]:
    """Those that take connections now. A machine is told of no other one: its job goes on without,
    and fetches from where everybody does.
    """
    return tuple(each for each in mirrors if answers(each.address, each.port))


def answers(address: str, port: int) -> bool:
    """Whether something at this host takes connections there."""
    try:
        socket.create_connection((address, port), _PATIENCE).close()
    except OSError:
        return False
    return True


def files(mirrors: Iterable[Mirror]) -> dict[str, str]:
    """The content of each file, by its path; those that begin with "~/" are in the homes of root
    and of the job's user.

    What has a setting of its own, as an image's or a project's file or a variable of the
    environment, keeps it.
    """
    return {path: text for each in mirrors for path, text in _files(each).items()}


def _files(mirror: Mirror) -> dict[str, str]:
    match mirror.of:
        case Ecosystem.APT:
            # By hosts, not for all: whatever else the sources name is fetched directly.
            lines = [
                f'Acquire::http::Proxy::{host} "http://{mirror.place}";\n'
                for host in dict.fromkeys(each.partition(":")[0] for each in mirror.apt_hosts)
            ]
            return {"/etc/apt/apt.conf.d/95vmrunner-packages": f"// {_HEAD}\n{''.join(lines)}"}
        case Ecosystem.NPM:
            return {"~/.npmrc": f"# {_HEAD}\nregistry={mirror.url}/\n{_npm_host(mirror)}"}
        case Ecosystem.PYPI:
            return {
                "/etc/pip.conf": f"# {_HEAD}\n[global]\nindex-url = {mirror.url}/\n"
                f"trusted-host = {mirror.place}\n"
            }
        case Ecosystem.GO:
            # The checksum database is asked through it, and its answers are signed. When this host
            # does not answer any more, or not well, it is the upstream's turn.
            return {
                "~/.config/go/env": f"# {_HEAD}\nGOPROXY={mirror.url}|{mirror.upstream},direct\n"
            }
        case Ecosystem.OCI:
            return {}  # Docker's is the pool's registry mirror
        case Ecosystem.CRATES:
            # Another source of the same packages: lock files go on to name the public one, and
            # their checksums hold.
            return {
                "~/.cargo/config.toml": f'# {_HEAD}\n[source.crates-io]\nreplace-with = "vmrunner"'
                f'\n[source.vmrunner]\nregistry = "sparse+{mirror.url}/"\n'
            }
        case Ecosystem.MAVEN:
            return {
                "~/.m2/settings.xml": f"<settings>\n<!-- {_HEAD} -->\n<mirrors><mirror>"
                f"<id>vmrunner</id><mirrorOf>central</mirrorOf><url>{mirror.url}</url>"
                "</mirror></mirrors>\n</settings>\n"
            }


def _npm_host(mirror: Mirror) -> str:
    """Whose addresses of packages npm takes for this host's; those of the public registry by
    itself.
    """
    if mirror.upstream == mirror.of.public:
        return ""
    return f"replace-registry-host={mirror.host}\n"


def registry(mirrors: Iterable[Mirror]) -> str:
    """The registry mirror for Docker; empty where there is none."""
    return next((each.url for each in mirrors if each.of is Ecosystem.OCI), "")
