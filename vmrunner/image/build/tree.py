"""What is done to a bootstrapped tree before it becomes a disk: scripts, users, files, runners, and
what every image of ours needs.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vmrunner.errors import ImageError
from vmrunner.image.build import apt
from vmrunner.image.build.context import Build
from vmrunner.image.build.paths import place, within
from vmrunner.image.recipe.recipe import RunnerSource
from vmrunner.machine.seed import further_runner
from vmrunner.model.image import Input, Runner

_RUNNER_PATH = "/usr/local/bin/{kind}"
_SCRIPT = "/.vmrunner-script"
_SEED_READER = "/etc/systemd/system/vmrunner-guest.service"
_UNIT_FOLDERS = ("usr/lib/systemd/system", "lib/systemd/system")
ENVIRONMENT = "/etc/vmrunner/environment"  # what a job's script and `exec` read
JOB_USER = "runner"
_JOB_UID = 1001  # as on hosted runners, unless the recipe has given it to somebody
_LOGINS = "/etc/environment"  # what PAM reads for everyone who logs in, by ssh or su
_LONGEST = 1000  # characters of a line of that
_ENABLED = ("vmrunner-guest.service", "systemd-networkd.service", "systemd-resolved.service")
_MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "dpkg-db-backup.timer",
    "e2scrub_reap.service",
    "systemd-timesyncd.service",
    "systemd-firstboot.service",
)
"""Nothing is fetched, upgraded or tidied up while a job waits."""


@dataclass(frozen=True)
class Furnished:
    """What the recipe has brought into a tree, for the manifest."""

    inputs: dict[str, Input]  # its files, by their paths in the image
    runner: Runner | None
    runners: dict[str, Runner]  # further ones, by their names


def furnish(build: Build) -> Furnished:
    """Put everything of the recipe beside its packages into the tree, and what every image of ours
    needs.
    """
    _make_our_seed_reader_the_only_one(build)  # first: a script may want it otherwise
    _run_scripts(build)
    _add_users(build)
    _add_job_user(build)
    runner, runners = _install_runners(build)
    inputs = _add_files(build)
    _name_the_runner(build.tree, runner)
    _set_environment(build)
    _reset_identity(build.tree)
    _enable_units(build)
    return Furnished(inputs, runner, runners)


def _make_our_seed_reader_the_only_one(build: Build) -> None:
    """A stock image brings cloud-init, which would read the seed as well. An ssh server, which is
    there for `vmrunner ssh` alone, would open a port that nobody asked for, without a host key too.
    """
    if _SEED_READER not in build.recipe.files:
        return
    if (build.tree / "etc/cloud").is_dir():
        note = b"The seed is read by vmrunner-guest.service.\n"
        place(build.tree, "/etc/cloud/cloud-init.disabled", note, 0o644)
    for unit in ("ssh.service", "ssh.socket"):
        if _has_unit(build.tree, unit, _UNIT_FOLDERS):
            build.run_in_tree(f"Disabling {unit}", "systemctl", "disable", unit)


def _has_unit(tree: Path, unit: str, folders: tuple[str, ...]) -> bool:
    return any((tree / folder / unit).exists() for folder in folders)


def _run_scripts(build: Build) -> None:
    """Run the recipe's scripts, which may fetch something; then jobs' sources are there."""
    recipe, tree = build.recipe, build.tree
    if not recipe.scripts:
        apt.lay(recipe, tree)
        return
    with apt.lent(recipe, tree):
        for script in recipe.scripts:
            build.step(f"running the script {script.name}")
            _run_script(build, script.content(), script.name)
    lists = within(tree, "/var/lib/apt/lists")
    for path in lists.iterdir() if apt.is_elsewhere(recipe) and lists.is_dir() else ():
        if path.is_file():
            path.unlink()


def _run_script(build: Build, content: bytes, name: str) -> None:
    """Run it by its interpreter, or the shell."""
    whole = content if content.startswith(b"#!") else b"#!/bin/sh -eu\n" + content
    place(build.tree, _SCRIPT, whole, 0o700)
    try:
        build.run_in_tree(f"The script {name}", _SCRIPT)
    finally:
        (build.tree / _SCRIPT[1:]).unlink(missing_ok=True)


def _add_users(build: Build) -> None:
    for name, user in build.recipe.users.items():
        for group in user.groups:
            build.run_in_tree(f"Adding the group {group}", "groupadd", "--force", "--", group)
        options = ["--create-home", "--user-group", "--shell", user.shell]
        options += ["--uid", str(user.uid)] if user.uid else []
        options += ["--groups", ",".join(user.groups)] if user.groups else []
        build.run_in_tree(f"Adding the user {name}", "useradd", *options, "--", name)
        if user.sudo:
            if not (build.tree / "etc/sudoers.d").is_dir():
                raise ImageError(
                    f"The user {name} can't have sudo: the image has none.",
                    "Add the package sudo to the recipe.",
                )
            _allow_all(name, build.tree)


def _add_job_user(build: Build) -> None:
    """In an image with a runner: whom a pool's `job_user = "runner"` means, unless the recipe has a
    user of this name. As on hosted runners, with sudo and Docker where the image has them.
    """
    recipe, tree = build.recipe, build.tree
    if not (recipe.runner or recipe.runners) or JOB_USER in recipe.users:
        return
    home = f"/home/{JOB_USER}"
    if not _has(tree, "passwd", JOB_USER):
        taken = any(line.split(":")[2:3] == [str(_JOB_UID)] for line in _lines(tree, "passwd"))
        options = ["--create-home", "--home-dir", home, "--user-group", "--shell", "/bin/bash"]
        options += [] if taken else ["--uid", str(_JOB_UID)]
        build.run_in_tree(f"Adding the user {JOB_USER}", "useradd", *options, "--", JOB_USER)
        # Debian 13's default is 0700; containers of a job's run as others.
        build.run_in_tree(f"Opening the home of {JOB_USER}", "chmod", "755", home)
    if _has(tree, "group", "docker"):
        build.run_in_tree(
            f"Adding {JOB_USER} to the group docker",
            *("usermod", "--append", "--groups", "docker", JOB_USER),
        )
    if (tree / "etc/sudoers.d").is_dir() and not (tree / "etc/sudoers.d" / JOB_USER).exists():
        _allow_all(JOB_USER, tree)


def _has(tree: Path, database: str, name: str) -> bool:
    return any(line.split(":")[0] == name for line in _lines(tree, database))


def _lines(tree: Path, database: str) -> list[str]:
    """Of /etc/passwd or /etc/group."""
    file = within(tree, f"/etc/{database}")
    return file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []


def _allow_all(user: str, tree: Path) -> None:
    place(tree, f"/etc/sudoers.d/{user}", f"{user} ALL=(ALL:ALL) NOPASSWD: ALL\n".encode(), 0o440)


def _install_runners(build: Build) -> tuple[Runner | None, dict[str, Runner]]:
    """Install the recipe's runner, and its further ones; those by their names."""
    main, further = build.recipe.runner, build.recipe.runners
    return (
        _install_runner(build, main, _RUNNER_PATH.format(kind=main.kind)) if main else None,
        {
            name: _install_runner(build, each, further_runner(name, each.kind))
            for name, each in further.items()
        },
    )


def _install_runner(build: Build, source: RunnerSource, path: str) -> Runner:
    """Put a runner into the tree, if it is the one that the recipe wants."""
    program = source.path or build.downloads.get("The runner", str(source.url), str(source.sha256))
    try:
        content = program.read_bytes()  # once: what is checked is what gets in
    except OSError as error:
        raise ImageError(
            f"The runner {program} can't be read: {error.strerror}.",
            "Its path is relative to the recipe.",
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if source.sha256 not in (None, found):
        raise ImageError(
            f"The runner has the sha256 {found}, the recipe wants {source.sha256}.",
            "Check where it comes from.",
        )
    place(build.tree, path, content, 0o755)
    return Runner(kind=source.kind, path=path, sha256=found, version=source.version or "")


def _add_files(build: Build) -> dict[str, Input]:
    """Put the recipe's files into the tree."""
    inputs: dict[str, Input] = {}
    for path, file in sorted(build.recipe.files.items()):
        content = file.content()
        place(build.tree, path, content, int(file.mode, 8))
        inputs[path] = Input(mode=file.mode, sha256=hashlib.sha256(content).hexdigest())
    return inputs


def _name_the_runner(tree: Path, runner: Runner | None) -> None:
    """Tell the programs in the machine which runner there is."""
    kind, path = (runner.kind, runner.path) if runner else ("none", "/bin/false")
    place(tree, "/etc/vmrunner/image", f"RUNNER_KIND={kind}\nRUNNER_PATH={path}\n".encode(), 0o644)


def _set_environment(build: Build) -> None:
    """Write the recipe's environment down, for jobs and for logins."""
    environment = build.recipe.environment
    if not environment:
        return
    exports = "".join(
        f"export {name}={shlex.quote(value)}\n" for name, value in environment.items()
    )
    place(build.tree, ENVIRONMENT, exports.encode(), 0o644)
    if _LOGINS not in build.recipe.files:  # a file of the recipe's own stays as it is
        _add_to_logins(build)


def _add_to_logins(build: Build) -> None:
    """The recipe's environment comes after what the image has there."""
    lines, unfit = login_lines(build.recipe.environment)
    if unfit:
        build.step(
            f"leaving {', '.join(unfit)} out of {_LOGINS}: a value there has no # and fewer than "
            f"{_LONGEST} characters"
        )
    known = build.tree / _LOGINS[1:]
    before = known.read_bytes() if known.is_file() and not known.is_symlink() else b""
    newline = b"" if before.endswith(b"\n") or not before else b"\n"
    place(build.tree, _LOGINS, before + newline + lines.encode(), 0o644)


def _reset_identity(tree: Path) -> None:
    """Remove what each machine makes for itself when it boots, and mount its disk."""
    place(tree, "/etc/fstab", b"/dev/vda / ext4 defaults,noatime 0 1\n", 0o644)
    # Empty, so that systemd makes a new one at each boot: two machines must not share it.
    place(tree, "/etc/machine-id", b"", 0o444)
    for host_key in within(tree, "/etc/ssh").glob("ssh_host_*"):
        host_key.unlink()
    resolver = within(tree, "/etc") / "resolv.conf"
    resolver.unlink(missing_ok=True)
    resolver.symlink_to("../run/systemd/resolve/resolv.conf")


def _enable_units(build: Build) -> None:
    """Enable the units that a machine needs, and mask those that would slow it down."""
    for unit in _ENABLED:
        if _has_unit(build.tree, unit, ("etc/systemd/system", *_UNIT_FOLDERS)):
            build.run_in_tree(f"Enabling {unit}", "systemctl", "enable", unit)
    masked = [*_MASKED]
    if (build.tree / _SEED_READER[1:]).exists():
        # Our reader sets the network up itself; cloud-init's scripts rely on it to be up before
        # them.
        masked.append("systemd-networkd-wait-online.service")
    build.run_in_tree("Masking units", "systemctl", "mask", *masked)


def login_lines(environment: Mapping[str, str]) -> tuple[str, list[str]]:
    """As PAM reads it, and the names of variables that it can't read.

    It takes the first and the last quote away and all else as it is, but a # begins a comment in
    quotes, too.
    """
    lines = {name: f'{name}="{value}"\n' for name, value in environment.items()}
    unfit = [name for name, line in lines.items() if "#" in line or len(line) > _LONGEST]
    return "".join(line for name, line in lines.items() if name not in unfit), unfit
