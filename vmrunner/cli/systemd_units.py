"""systemd units that run vmrunner, as text.

Pure: what is where on this host is for `vmrunner systemd` to ask.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vmrunner.config import DEFAULT_PATH, Config, is_local
from vmrunner.errors import ConfigError
from vmrunner.hypervisor.logs import SYSTEM, folder
from vmrunner.render import text

# How every file begins, so that an admin's own are told from ours.
MARK = "# Written by `vmrunner systemd install`"
UNITS = Path("/etc/systemd/system")
TOKEN = Path("/etc/vmrunner/forge-token")
# What ProtectHome= and PrivateTmp= keep from the service.
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 — named to be refused

REFRESH = ("vmrunner-image-refresh.service", "vmrunner-image-refresh.timer")
"""The units that renew the images, whichever way passes are made."""
HALT = "vmrunner-halt.service"
"""The unit that ends the machines when the host shuts down; those that make passes bring it."""

_STATE, _RUNTIME = Path("/var/lib"), Path("/run")
_PIPX = "PIPX_HOME=/opt/pipx PIPX_BIN_DIR=/usr/local/bin pipx install --system-site-packages …"


class Way(StrEnum):
    """How vmrunner runs: continuously, or pass by pass. A host has one of the two."""

    SERVE = "serve"
    TIMER = "timer"

    @property
    def units(self) -> tuple[str, ...]:
        """The unit files."""
        return (
            ("vmrunner.service",)
            if self is Way.SERVE
            else ("vmrunner-up.service", "vmrunner-up.timer")
        )

    @property
    def enabled(self) -> str:
        """The unit that is enabled; it brings the rest."""
        return self.units[-1]

    @property
    def other(self) -> Way:
        """The way that this one excludes."""
        return Way.TIMER if self is Way.SERVE else Way.SERVE


@dataclass(frozen=True)
class Installation:
    """What the files depend on.

    Raises ConfigError for a name or a path that can't stand in a unit, or is closed to the service.
    """

    settings: Config
    program: Path  # as ExecStart= names it
    config_path: Path = DEFAULT_PATH
    user: str = "vmrunner"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,30}", self.user) or self.user in {
            "root",
            "nobody",
        }:
            raise ConfigError(
                f"{self.user!r} can't be the service's user.",
                "It is a name of small letters, digits, - and _, like vmrunner; neither root nor "
                "nobody.",
            )
        check_path("The program", self.program)
        check_path("The configuration", self.config_path)
        for key, path in (*self.read, *self.written):
            check_path(key, path)

    @property
    def read(self) -> tuple[tuple[str, Path], ...]:
        """The files that the user has to read, each with its key in the configuration."""
        forge, webhook = self.settings.forge, self.settings.serve.webhook
        named = (
            ("forge.token_file", forge.token_file),
            ("forge.ca_file", forge.ca_file),
            ("serve.webhook.secret_file", webhook.secret_file),
            ("notify.secret_file", self.settings.notify.secret_file),
            ("page.token_file", self.settings.page.token_file),
        )
        return tuple((key, path) for key, path in named if path)

    @property
    def written(self) -> tuple[tuple[str, Path], ...]:
        """The folders that the user has to write into.

        libvirt.storage_path is none of them: there all work is libvirtd's.
        """
        folders: tuple[tuple[str, Path], ...] = (
            ("state_dir", self.settings.state_dir),
            ("runtime_dir", self.settings.runtime_dir),
        )
        textfile, listen = self.settings.metrics.textfile, self.settings.page.listen or ""
        if textfile:
            folders = (*folders, ("metrics.textfile", textfile.parent))
        return (*folders, ("page.listen", Path(listen).parent)) if listen[:1] == "/" else folders

    @property
    def elsewhere(self) -> tuple[tuple[str, Path], ...]:
        """Those of `written` that systemd doesn't make: they are not below /var/lib or /run."""
        pairs = (_STATE, self.settings.state_dir), (_RUNTIME, self.settings.runtime_dir)
        made = [path for base, path in pairs if _below(base, path)]
        return tuple(
            (key, path)
            for key, path in self.written
            if not any(path.is_relative_to(folder) for folder in made)
        )

    @property
    def takes_credential(self) -> bool:
        """Whether systemd hands over the token; else the configuration names a file, and the user
        has to read it.
        """
        return self.settings.forge.token_file is None

    @property
    def _shared(self) -> dict[str, object]:
        return {
            "mark": f"{MARK}, which overwrites it.",
            "user": self.user,
            "home": word(self.settings.state_dir),
            "filters": self.settings.network.filter,
            # Else libvirt is reached over ssh, and no group here matters.
            "local": is_local(self.settings.libvirt.uri),
            "logs": SYSTEM if self._keeps_logs else "",
        }

    @property
    def _keeps_logs(self) -> bool:
        return folder(self.settings.libvirt.uri) == SYSTEM

    def units(self, way: Way) -> dict[str, str]:
        """The unit files, those that renew the images included: name -> content."""
        values = self._shared | {
            "program": word(self.program),
            "arguments": ""
            if self.config_path == DEFAULT_PATH
            else f" --config {word(self.config_path)}",
            "state_directory": _below(_STATE, self.settings.state_dir),
            "runtime_directory": _below(_RUNTIME, self.settings.runtime_dir),
            "credential": TOKEN if self.takes_credential else "",
            "writable": [word(path) for _, path in self.elsewhere],
        }
        halt = (HALT,) if is_local(self.settings.libvirt.uri) else ()
        names = (*way.units, *REFRESH, *halt)
        return {name: text(f"{name}.j2", unit=name, **values) for name in names}

    def sysusers(self) -> str:
        """The content of the file in sysusers.d that makes the user."""
        return text("vmrunner.sysusers.j2", **self._shared)

    def tmpfiles(self) -> str:
        """The content of the file in tmpfiles.d that lets the user delete libvirt's logs of the
        machines; empty where there are none on this host.
        """
        return text("vmrunner.tmpfiles.j2", **self._shared) if self._keeps_logs else ""


def sysusers_path(units: Path) -> Path:
    """Where the sysusers.d file goes: /etc/sysusers.d for /etc/systemd/system, likewise below
    /usr/lib; else to the units themselves.
    """
    return _beside(units, "sysusers.d") or units / "vmrunner.conf"


def tmpfiles_path(units: Path) -> Path:
    """Where the tmpfiles.d file goes, likewise."""
    return _beside(units, "tmpfiles.d") or units / "vmrunner-tmpfiles.conf"


def _beside(units: Path, kind: str) -> Path | None:
    is_system = units.parts[-2:] == ("systemd", "system")
    return units.parents[1] / kind / "vmrunner.conf" if is_system else None


def check_path(what: str, path: Path) -> None:
    """Raises ConfigError for a path that can't stand in a unit, or that the service can't reach."""
    if not path.is_absolute() or ".." in path.parts:
        raise ConfigError(
            f"{what}: {str(path)!r} is not an absolute path.",
            "A service has no folder of its own to start from.",
        )
    if not str(path).isprintable() or set(str(path)) & set("\"'\\$:"):
        raise ConfigError(
            f"{what}: the path {str(path)!r} can't be written into a unit.",
            "Avoid quotes, backslashes, $, : and line breaks.",
        )
    for hidden in HIDDEN:
        if path.is_relative_to(hidden):
            raise ConfigError(
                f"{what}: {path} is below {hidden}, which the service can't see.",
                f"Install it for everyone: `{_PIPX}`"
                if what == "The program"
                else "Services belong to /etc, /opt, /srv, /usr and /var/lib.",
            )


def _below(base: Path, path: Path) -> str:
    """The path as StateDirectory= and RuntimeDirectory= want it; empty where it is not below that
    base.
    """
    return word(path.relative_to(base)) if base in path.parents else ""


def word(path: Path) -> str:
    """One word of a unit's line. % begins a specifier there, and a blank ends the word."""
    word = str(path).replace("%", "%%")
    return f'"{word}"' if " " in word else word
