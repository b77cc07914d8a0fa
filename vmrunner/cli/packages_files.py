"""What fetches packages for all machines: the configuration of Debian's own programs, and units, as
text.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from vmrunner.cli.systemd_units import word
from vmrunner.model.packages import Ecosystem, Mirror
from vmrunner.render import text

MARK = "# Written by `vmrunner cache setup`, which never overwrites it."
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
_FOREVER = {
    Ecosystem.APT: (r"/by-hash/[A-Za-z0-9]+/[0-9a-f]+$", r"/pool/.+\.[a-z0-9]+$"),
    Ecosystem.NPM: (r"/-/[^/]+\.tgz$",),
    Ecosystem.PYPI: (),
    # A version, not a branch that is called v1; what the checksum database says is signed.
    Ecosystem.GO: (
        r"/@v/v\d+\.\d+\.\d+[^/]*\.(info|mod|zip)$",
        r"^/sumdb/[^/]+/(tile|lookup)/",
    ),
    # Where they are beside the index.
    Ecosystem.CRATES: (r"/\d+\.\d+\.\d+[^/]*/download$", r"-\d+\.\d+\.\d+[^/]*\.crate$"),
    # name/version/name-version, which no list of versions is called, but for what is a snapshot.
    Ecosystem.MAVEN: (r"/([^/]+)/((?![^/]*SNAPSHOT)[^/]+)/\1-\2[-.][^/]+$",),
}
"""Which paths, as regular expressions of nginx, lead to what is never another thing."""

_FRESH = {Ecosystem.NPM: "5m", Ecosystem.PYPI: "10m"}
_SOON = "1m"
"""For how long the rest is believed; of npm and PyPI as they say themselves."""


@dataclass(frozen=True)
class Proxy:
    """The program for one kind of packages, and where it has its files.

    `max_mib` bounds what it keeps, of which more goes when the disk has less than `free_mib` left;
    of a registry's mirror, which has no bound itself, that is looked at each `rest` seconds.
    `resolvers` are addresses that it asks for names.
    """

    mirror: Mirror
    max_mib: int
    free_mib: int
    resolvers: Sequence[str]
    configs: Path
    cache: Path = Path("/var/cache")
    runtime: Path = Path("/run")
    certificates: str = _CERTIFICATES
    rest: float = 60

    @property
    def unit_name(self) -> str:
        """Its unit, without an ending; its folders are called so, too."""
        return self.mirror.unit_name

    @property
    def unit(self) -> str:
        """Its unit."""
        return f"{self.unit_name}.service"

    @property
    def package(self) -> str:
        """Debian's package."""
        return "docker-registry" if self.mirror.of is Ecosystem.OCI else "nginx-light"

    @property
    def packaged_unit(self) -> str:
        """What that package starts by itself, at every address of the host."""
        return "docker-registry" if self.mirror.of is Ecosystem.OCI else "nginx"

    @property
    def folder(self) -> Path:
        """What it keeps."""
        return self.cache / self.unit_name

    @property
    def config_path(self) -> Path:
        """Its configuration."""
        ending = "yml" if self.mirror.of is Ecosystem.OCI else "conf"
        return self.configs / f"{self.mirror.name}.{ending}"

    @property
    def program(self) -> str:
        """What it is."""
        return "/usr/bin/docker-registry" if self.mirror.of is Ecosystem.OCI else "/usr/sbin/nginx"

    @property
    def script_path(self) -> Path:
        """The shell's that keeps a registry's mirror within its bound."""
        return self.configs / f"{self.mirror.name}.sh"

    @property
    def command(self) -> list[str]:
        """What runs it, in the foreground."""
        if self.mirror.of is Ecosystem.OCI:
            return ["/bin/sh", str(self.script_path)]
        return [self.program, "-e", "stderr", "-c", str(self.config_path)]

    def script(self) -> str:
        """The content of that."""
        return text(
            "packages-registry.sh.j2",
            **self._shared,
            max_mib=self.max_mib,
            free_mib=self.free_mib,
            rest=self.rest,
            command=shlex.join([self.program, "serve", str(self.config_path)]),
        )

    def config(self) -> str:
        """Its configuration's content."""
        if self.mirror.of is Ecosystem.OCI:
            return text("packages-registry.yml.j2", **self._shared, upstream=self.mirror.upstream)
        return text(
            "packages-nginx.conf.j2",
            **self._shared,
            kind=self.mirror.of,
            runtime=self.runtime / self.unit_name,
            max_mib=self.max_mib,
            free_mib=self.free_mib,
            resolvers=self.resolvers,
            certificates=self.certificates,
            hosts=self.mirror.apt_hosts,
            origin=self.mirror.origin,
            host=urlsplit(self.mirror.upstream).netloc,
            path=urlsplit(self.mirror.upstream).path,
            files=self.mirror.of.files,
            files_host=urlsplit(self.mirror.of.files).netloc,
            forever=_FOREVER[self.mirror.of],
            fresh=_FRESH.get(self.mirror.of, _SOON),
        )

    @property
    def _shared(self) -> dict[str, object]:
        return {
            "mark": MARK,
            "folder": self.folder,
            "address": self.mirror.address,
            "port": self.mirror.port,
        }

    def files(self, units: Path) -> Mapping[Path, str]:
        """All that is written, by its place."""
        unit = text(
            "vmrunner-packages.service.j2",
            mark=MARK,
            unit=self.unit,
            unit_name=self.unit_name,
            name=self.mirror.of,
            config=word(self.config_path),
            command=" ".join(word(Path(each)) for each in self.command),
        )
        script = {self.script_path: self.script()} if self.mirror.of is Ecosystem.OCI else {}
        return {self.config_path: self.config(), **script, units / self.unit: unit}


def name_servers(resolv_conf: str) -> list[str]:
    """Those of a resolv.conf, as nginx writes them."""
    found = re.findall(r"(?m)^nameserver\s+([0-9A-Fa-f:.]+)\s*$", resolv_conf)
    return [f"[{each}]" if ":" in each else each for each in found]
