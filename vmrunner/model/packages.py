"""Where packages come from that machines fetch through this host."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit


class Ecosystem(StrEnum):
    """What is fetched; in the order of their ports."""

    APT = "apt"
    NPM = "npm"
    PYPI = "pypi"
    GO = "go"
    OCI = "oci"
    CRATES = "crates"
    MAVEN = "maven"

    @property
    def public(self) -> str:
        """Where everybody fetches it from. apt's packages come from APT_HOSTS, each by its name."""
        return _PUBLIC[self]

    @property
    def files(self) -> str:
        """Where the public index says that its files are; empty where they are beside it."""
        return _FILES.get(self, "")


_PUBLIC = {
    Ecosystem.APT: "http://deb.debian.org/debian",
    Ecosystem.NPM: "https://registry.npmjs.org",
    Ecosystem.PYPI: "https://pypi.org/simple",
    Ecosystem.GO: "https://proxy.golang.org",
    Ecosystem.OCI: "https://registry-1.docker.io",
    Ecosystem.CRATES: "https://index.crates.io",
    Ecosystem.MAVEN: "https://repo.maven.apache.org/maven2",
}
APT_HOSTS = (
    "deb.debian.org",
    "security.debian.org",
    "archive.ubuntu.com",
    "security.ubuntu.com",
    "ports.ubuntu.com",
)
"""Whose packages are signed, and fetched without TLS."""
_FILES = {
    Ecosystem.PYPI: "https://files.pythonhosted.org",
    Ecosystem.CRATES: "https://static.crates.io",
}


@dataclass(frozen=True)
class Mirror:
    """What fetches packages of one kind for all machines, at a port of the host's own address in
    their network. `upstream` is a URL without a slash at its end: where it fetches them from.
    `manager` is one that has its own beside another manager's of this host, or empty.
    """

    of: Ecosystem
    upstream: str
    address: str
    port: int
    manager: str = ""

    @property
    def name(self) -> str:
        """What its files are called, without an ending."""
        return f"{self.manager}-{self.of}" if self.manager else str(self.of)

    @property
    def unit_name(self) -> str:
        """Its unit, without an ending; its folders are called so, too."""
        return f"vmrunner-packages-{self.name}"

    @property
    def origin(self) -> str:
        """The upstream's scheme and host, and its port where it has one."""
        return origin(self.upstream)

    @property
    def place(self) -> str:
        """Where machines fetch, as address and port."""
        return f"{self.address}:{self.port}"

    @property
    def url(self) -> str:
        """What stands for the upstream in machines: the same path, at this host."""
        return f"http://{self.place}{urlsplit(self.upstream).path}"

    @property
    def host(self) -> str:
        """The upstream's name or address alone."""
        return str(urlsplit(self.upstream).hostname)

    @property
    def apt_hosts(self) -> tuple[str, ...]:
        """Whose packages apt fetches through it; each with its port where it has one."""
        return tuple(dict.fromkeys((*APT_HOSTS, urlsplit(self.upstream).netloc)))


def origin(url: str) -> str:
    """Scheme, host and port of a URL."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
