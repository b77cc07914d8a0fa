"""`vmrunner cache setup`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from vmrunner import config
from vmrunner.cli import first_files, systemd_units
from vmrunner.cli.app import DEFAULT_PATH, ConfigOption, out
from vmrunner.cli.packages_files import Proxy, name_servers
from vmrunner.errors import ConfigError
from vmrunner.model.packages import Ecosystem

_RESOLV_CONF = Path("/etc/resolv.conf")
_LEAST_FREE = 1024  # MiB
_MODE = 0o644  # nothing of it is secret, and its service is nobody's account


def setup(
    of: Annotated[
        Ecosystem, typer.Argument(metavar="KIND", help="apt, npm, pypi, go, oci, crates or maven.")
    ],
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Write the files; without it they are shown.")
    ] = False,
    directory: Annotated[
        Path, typer.Option("--directory", help="Where the unit goes.")
    ] = systemd_units.UNITS,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """Have this host fetch packages for its machines, and keep them: the configuration of Debian's
    nginx or docker-registry, and a unit.

    What is there already is never overwritten.
    """
    settings = config.load(config_path)
    if not config.is_local(settings.libvirt.uri):
        raise ConfigError(
            "Machines at another host's libvirt do not reach this host.",
            "Run it where libvirt is.",
        )
    systemd_units.check_path("The configuration", config_path.absolute())
    upstream = settings.cache.packages.upstreams.get(of)
    proxy = Proxy(
        settings.mirror(of, upstream or ""),
        settings.cache.packages.max,
        max(_LEAST_FREE, settings.capacity.disk_floor),
        _resolvers(),
        config_path.absolute().parent / "packages",
    )
    files = proxy.files(directory)
    missing = {path: text for path, text in files.items() if not _is_there(path, text)}
    if not yes:
        print("\n".join(f"# {path}\n{text}" for path, text in files.items()), end="")
        out.print(f"\nNothing is written yet. As root:\n  vmrunner cache setup {of} --yes")
    else:
        first_files.lay(
            {path: (text, _MODE) for path, text in missing.items()},
            "Run it as root, or only look without --yes.",
        )
        for path in files:
            out.print(f"wrote {path}" if path in missing else f"{path} is as it should be")
        out.print("\nNext, as root:")
    for command in _steps(proxy):
        out.print(f"  {command}")
    if upstream is None:
        out.print(
            f"\nAnd machines are told of it when {config_path} has\n\n"
            f"  [cache.packages]\n  {of} = true\n"
        )
    out.print("`vmrunner doctor` says whether it answers.")


def _resolvers() -> list[str]:
    """Whom this host asks for names. Raises ConfigError where there is nobody."""
    try:
        found = name_servers(_RESOLV_CONF.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        found = []
    if not found:
        raise ConfigError(
            f"{_RESOLV_CONF} names nobody who could be asked for names.",
            "It needs a line like `nameserver 192.0.2.53`.",
        )
    return found


def _is_there(path: Path, text: str) -> bool:
    """Whether it has just this content. Raises ConfigError where there is something else."""
    if not os.path.lexists(path):
        return False
    try:
        same = path.read_text(encoding="utf-8") == text
    except (OSError, UnicodeDecodeError):
        same = False
    if not same:
        raise ConfigError(
            f"{path} is there with other content, and nothing is overwritten.",
            "Move it away and run this again; changes of the unit belong into a drop-in.",
        )
    return True


def _steps(proxy: Proxy) -> list[str]:
    """The commands that are left to the admin."""
    install = [] if Path(proxy.program).exists() else [f"apt-get install {proxy.package}"]
    return [
        *install,
        f"systemctl disable --now {proxy.packaged_unit}   # the package's own, at all addresses of "
        "this host; leave it where you use it",
        "systemctl daemon-reload",
        f"systemctl enable --now {proxy.unit}",
    ]
