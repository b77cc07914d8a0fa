"""`vmrunner systemd`."""

from __future__ import annotations

import os
import pwd
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

import vmrunner
from vmrunner import config
from vmrunner.cli import systemd_units
from vmrunner.cli.app import DEFAULT_PATH, ConfigOption, out, systemd_app, warn
from vmrunner.cli.systemd_units import Installation, Way
from vmrunner.errors import ConfigError
from vmrunner.files import replacing

_READ, _ENTER_AND_WRITE = 4, 3  # bits of a mode


@systemd_app.command("install")
def install(
    user: Annotated[
        str, typer.Option("--user", help="The account that it runs as; made by systemd-sysusers.")
    ] = "vmrunner",
    timer: Annotated[
        bool,
        typer.Option(
            "--timer", help="`vmrunner up` every ten seconds, instead of `vmrunner serve`."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the files, write nothing.")
    ] = False,
    directory: Annotated[
        Path, typer.Option("--directory", help="Where the units go, for packagers.")
    ] = systemd_units.UNITS,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """Write units for this host, and say how to start them.

    The service and the timer exclude each other.
    """
    wanted = Installation(
        config.load(config_path), _program(), Path(os.path.abspath(config_path)), user
    )
    way = Way.TIMER if timer else Way.SERVE
    files = {directory / name: content for name, content in wanted.units(way).items()}
    files[systemd_units.sysusers_path(directory)] = wanted.sysusers()
    if tmpfiles := wanted.tmpfiles():
        files[systemd_units.tmpfiles_path(directory)] = tmpfiles
    for path in files:
        if os.path.lexists(path) and not _is_ours(path):
            raise ConfigError(
                f"{path} exists, and vmrunner did not write it.",
                "Move it away; changes of yours belong into a drop-in.",
            )
    _warn_of_what_is_closed(wanted)
    if dry_run:
        print("\n".join(f"# {path}\n{content}" for path, content in files.items()), end="")
        return
    is_update = (directory / way.enabled).exists()
    _write(files)
    for path in files:
        out.print(f"wrote {path}", markup=False)
    out.print("\nNext, as root:", markup=False)
    for command in _steps(wanted, way, directory, is_update=is_update):
        out.print(f"  {command}", markup=False)


def _program() -> Path:
    """This very program, by the path that it will keep when it is upgraded. Raises ConfigError."""
    called = Path(os.path.abspath(sys.argv[0]))
    found = called if called.name == "vmrunner" else Path(shutil.which("vmrunner") or "")
    if not found.is_absolute() or not os.access(found, os.X_OK) or not found.is_file():
        raise ConfigError(
            "The program vmrunner can't be found.",
            "Run this command as the installed `vmrunner`, by its full path.",
        )
    # A link in /usr/local/bin may lead to a folder that the service can't see, and so may the
    # interpreter and the package.
    for part in (
        found.resolve(),
        Path(sys.prefix),
        Path(sys.base_prefix),
        Path(vmrunner.__file__).resolve(),
    ):
        systemd_units.check_path("The program", part)
    return found


def _is_ours(path: Path) -> bool:
    try:
        return path.read_text(encoding="utf-8", errors="replace").startswith(systemd_units.MARK)
    except OSError:
        return False  # a folder, a link to nowhere, closed to us: whatever it is, not ours


def _write(files: dict[Path, str]) -> None:
    """All of them or none: written beside their places first. Raises ConfigError."""
    path = Path()
    try:
        with ExitStack() as stack:
            for path, content in files.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                part = stack.enter_context(replacing(path))
                part.write_text(content, encoding="utf-8")
                # Whatever root's umask: systemd complains of units that not everyone can read.
                part.chmod(0o644)
    except OSError as error:
        raise ConfigError(
            f"{error.filename2 or path} can't be written: {error.strerror}.",
            "Run it as root, or only look with --dry-run.",
        ) from None


def _steps(wanted: Installation, way: Way, directory: Path, *, is_update: bool) -> list[str]:
    """The commands that are left to the admin.

    In the order in which a service that runs keeps its settings until it has stopped.
    """
    others = [directory / name for name in way.other.units if os.path.lexists(directory / name)]
    unneeded = [path for path in others if _is_ours(path)]
    return [
        *(
            [f"systemctl disable --now {way.other.enabled}   # the other way of running it"]
            if others
            else []
        ),
        f"systemd-sysusers {systemd_units.sysusers_path(directory)}",
        *(
            [f"systemd-tmpfiles --create {systemd_units.tmpfiles_path(directory)}"]
            if wanted.tmpfiles()
            else []
        ),
        *(
            f"install -d -m 0700 -o {wanted.user} {path}   # {key}"
            for key, path in wanted.elsewhere
            if not path.exists()
        ),
        *(
            [f"install -m 0600 /dev/stdin {systemd_units.TOKEN}   # the forge's token"]
            if _lacks_token(wanted)
            else []
        ),
        "systemctl daemon-reload",
        f"systemctl enable --now {way.enabled}",
        f"systemctl enable --now {systemd_units.REFRESH[-1]}   # images are built anew every week",
        *([f"systemctl restart {way.enabled}   # where it ran already"] if is_update else []),
        *([f"rm {' '.join(map(str, unneeded))}"] if unneeded else []),
    ]


def _lacks_token(wanted: Installation) -> bool:
    return wanted.takes_credential and not systemd_units.TOKEN.exists()


def _warn_of_what_is_closed(wanted: Installation) -> None:
    """A service that starts and can't read its files is the commonest fault; here it can be seen
    beforehand.
    """
    for what, path in (
        ("the program", wanted.program),
        ("the configuration", wanted.config_path),
        *wanted.read,
    ):
        if _may(wanted.user, path, _READ):
            continue
        help_ = f"`chown {wanted.user} {path}`"
        if what == "forge.token_file":
            help_ += f", or take the key out and put the token into {systemd_units.TOKEN}: "
            help_ += "then it stays root's, and systemd hands it over"
        warn(f"The user {wanted.user} can't read {what}, {path}: {help_}.")
    for key, path in wanted.elsewhere:
        if path.exists() and not _may(wanted.user, path, _ENTER_AND_WRITE):
            warn(f"The user {wanted.user} can't write into {path} ({key}).")


def _may(user: str, path: Path, bits: int) -> bool:
    """Whether modes let the user do this, and reach the path at all.

    A user that isn't there yet is one of the others.
    """
    try:
        account = pwd.getpwnam(user)
        uid, groups = account.pw_uid, os.getgrouplist(user, account.pw_gid)
    except KeyError:
        uid, groups = -1, []

    def allows(place: Path, wanted: int) -> bool:
        seen = place.stat()
        mode = seen.st_mode >> (6 if seen.st_uid == uid else 3 if seen.st_gid in groups else 0)
        return mode & wanted == wanted

    try:
        return allows(path, bits) and all(allows(parent, 1) for parent in path.parents)
    except OSError:
        return False
