"""What is done to a bootstrapped tree before it becomes a disk: scripts, users, files, runners, and
what every image of ours needs.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from pathlib import Path

from vmrunner.errors import ImageError
from vmrunner.image.build import apt
from vmrunner.image.build.downloads import Downloads
from vmrunner.image.build.paths import place, within
from vmrunner.image.build.programs import Programs
from vmrunner.image.recipe.recipe import Recipe, RunnerSource
from vmrunner.machine.seed import further_runner
from vmrunner.model.image import Input, Runner

_RUNNER_PATH = "/usr/local/bin/{kind}"
_SCRIPT = "/.vmrunner-script"
_READER = "/etc/systemd/system/vmrunner-guest.service"
ENVIRONMENT = "/etc/vmrunner/environment"  # what a job's script and `exec` read
JOB_USER = "runner"
_JOB_UID = 1001  # as on hosted runners, unless the recipe has given it to somebody
_LOGINS = "/etc/environment"  # what PAM reads for everyone who logs in, by ssh or su
_LONGEST = 1000  # characters of a line of that


def furnish(
    recipe: Recipe, tree: Path, downloads: Downloads, programs: Programs
) -> tuple[dict[str, Input], Runner | None, dict[str, Runner]]:
    """Everything of the recipe beside its packages; returns the files and runners that it put
    in.
    """
    if _READER in recipe.files:  # first: a script may want it otherwise
        _lone_reader(tree, programs)
    _run_scripts(recipe, tree, programs)
    _add_users(recipe, tree, programs)
    if (recipe.runner or recipe.runners) and JOB_USER not in recipe.users:
        _add_job_user(tree, programs)
    runner = (
        _install_runner(
            recipe.runner, _RUNNER_PATH.format(kind=recipe.runner.kind), tree, downloads
        )
        if recipe.runner
        else None
    )
    further = {
        name: _install_runner(each, further_runner(name, each.kind), tree, downloads)
        for name, each in recipe.runners.items()
    }
    return _add_files(recipe, tree, runner, programs), runner, further


def _lone_reader(tree: Path, programs: Programs) -> None:
    """What a stock image brings must neither read the seed as well, nor open a port that nobody
    asked for, without a host key too.
    """
    if (tree / "etc/cloud").is_dir():
        place(
            tree,
            "/etc/cloud/cloud-init.disabled",
            b"The seed is read by vmrunner-guest.service.\n",
            0o644,
        )
        for unit in ("ssh.service", "ssh.socket"):
            if any(
                (tree / folder / unit).exists()
                for folder in ("usr/lib/systemd/system", "lib/systemd/system")
            ):
                programs.run_in_tree(f"Disabling {unit}", tree, "systemctl", "disable", unit)


def _run_scripts(recipe: Recipe, tree: Path, programs: Programs) -> None:
    """They may fetch something."""
    if not recipe.scripts:
        apt.lay(recipe, tree)
        return
    with apt.lent(recipe, tree):
        for script in recipe.scripts:
            programs.log.step(f"running the script {script.name}")
            _run_script(script.content(), script.name, tree, programs)
    lists = within(tree, "/var/lib/apt/lists")
    for path in lists.iterdir() if apt.is_elsewhere(recipe) and lists.is_dir() else ():
        if path.is_file():
            path.unlink()


def _run_script(content: bytes, name: str, tree: Path, programs: Programs) -> None:
    """By its interpreter, or the shell. The tree has the resolver of this host while it runs."""
    place(
        tree, _SCRIPT, content if content.startswith(b"#!") else b"#!/bin/sh -eu\n" + content, 0o700
    )
    try:
        programs.run_in_tree(f"The script {name}", tree, _SCRIPT)
    finally:
        (tree / _SCRIPT[1:]).unlink(missing_ok=True)


def _add_users(recipe: Recipe, tree: Path, programs: Programs) -> None:
    for name, user in recipe.users.items():
        for group in user.groups:
            programs.run_in_tree(
                f"Adding the group {group}", tree, "groupadd", "--force", "--", group
            )
        options = ["--create-home", "--user-group", "--shell", user.shell]
        options += ["--uid", str(user.uid)] if user.uid else []
        options += ["--groups", ",".join(user.groups)] if user.groups else []
        programs.run_in_tree(f"Adding the user {name}", tree, "useradd", *options, "--", name)
        if user.sudo:
            if not (tree / "etc/sudoers.d").is_dir():
                raise ImageError(
                    f"The user {name} can't have sudo: the image has none.",
                    "Add the package sudo to the recipe.",
                )
            _allow_all(name, tree)


def _add_job_user(tree: Path, programs: Programs) -> None:
    """Whom a pool's `job_user = "runner"` means: as on hosted runners, with sudo and Docker where
    the image has them.
    """
    if not _has(tree, "passwd", JOB_USER):
        taken = any(line.split(":")[2:3] == [str(_JOB_UID)] for line in _lines(tree, "passwd"))
        options = [
            "--create-home",
            "--home-dir",
            f"/home/{JOB_USER}",
            "--user-group",
            "--shell",
            "/bin/bash",
        ]
        options += [] if taken else ["--uid", str(_JOB_UID)]
        programs.run_in_tree(
            f"Adding the user {JOB_USER}", tree, "useradd", *options, "--", JOB_USER
        )
        # Debian 13's default is 0700; containers of a job's run as others.
        programs.run_in_tree(
            f"Opening the home of {JOB_USER}", tree, "chmod", "755", f"/home/{JOB_USER}"
        )
    if _has(tree, "group", "docker"):
        programs.run_in_tree(
            f"Adding {JOB_USER} to the group docker",
            tree,
            "usermod",
            "--append",
            "--groups",
            "docker",
            JOB_USER,
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


def _install_runner(source: RunnerSource, path: str, tree: Path, downloads: Downloads) -> Runner:
    program = source.path or downloads.get("The runner", str(source.url), str(source.sha256))
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
    place(tree, path, content, 0o755)
    return Runner(kind=source.kind, path=path, sha256=found, version=source.version or "")


def _add_files(
    recipe: Recipe, tree: Path, runner: Runner | None, programs: Programs
) -> dict[str, Input]:
    """The recipe's files, whose digests it returns, and what makes every machine boot quickly and
    be its own.
    """
    inputs: dict[str, Input] = {}
    for path, file in sorted(recipe.files.items()):
        content = file.content()
        place(tree, path, content, int(file.mode, 8))
        inputs[path] = Input(mode=file.mode, sha256=hashlib.sha256(content).hexdigest())
    kind, where = (runner.kind, runner.path) if runner else ("none", "/bin/false")
    place(tree, "/etc/vmrunner/image", f"RUNNER_KIND={kind}\nRUNNER_PATH={where}\n".encode(), 0o644)
    if recipe.environment:
        exports = "".join(
            f"export {name}={shlex.quote(value)}\n" for name, value in recipe.environment.items()
        )
        place(tree, ENVIRONMENT, exports.encode(), 0o644)
        _add_to_logins(recipe, tree, programs)
    place(tree, "/etc/fstab", b"/dev/vda / ext4 defaults,noatime 0 1\n", 0o644)
    # Empty, so that systemd makes a new one at each boot: two machines must not share it.
    place(tree, "/etc/machine-id", b"", 0o444)
    for unit in ("vmrunner-guest.service", "systemd-networkd.service", "systemd-resolved.service"):
        if any(
            (tree / folder / unit).exists()
            for folder in ("etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")
        ):
            programs.run_in_tree(f"Enabling {unit}", tree, "systemctl", "enable", unit)
    # Nothing is fetched, upgraded or tidied up while a job waits.
    slow = (
        "apt-daily.timer",
        "apt-daily-upgrade.timer",
        "e2scrub_all.timer",
        "fstrim.timer",
        "dpkg-db-backup.timer",
        "e2scrub_reap.service",
    )
    late = ["systemd-timesyncd.service", "systemd-firstboot.service"]
    if (tree / _READER[1:]).exists():
        # Our reader sets the network up itself; cloud-init's scripts rely on it to be up before
        # them.
        late.append("systemd-networkd-wait-online.service")
    programs.run_in_tree("Masking units", tree, "systemctl", "mask", *slow, *late)
    for host_key in within(tree, "/etc/ssh").glob("ssh_host_*"):
        host_key.unlink()
    resolver = within(tree, "/etc") / "resolv.conf"
    resolver.unlink(missing_ok=True)
    resolver.symlink_to("../run/systemd/resolve/resolv.conf")
    return inputs


def _add_to_logins(recipe: Recipe, tree: Path, programs: Programs) -> None:
    """The recipe's environment comes after what the image has there.

    A file of the recipe's own stays as it is.
    """
    if _LOGINS in recipe.files:
        return
    lines, unfit = login_lines(recipe.environment)
    if unfit:
        programs.log.step(
            f"leaving {', '.join(unfit)} out of {_LOGINS}: a value there has no # and fewer than "
            f"{_LONGEST} characters"
        )
    known = tree / _LOGINS[1:]
    before = known.read_bytes() if known.is_file() and not known.is_symlink() else b""
    place(
        tree,
        _LOGINS,
        before + (b"" if before.endswith(b"\n") or not before else b"\n") + lines.encode(),
        0o644,
    )


def login_lines(environment: Mapping[str, str]) -> tuple[str, list[str]]:
    """As PAM reads it, and the names of variables that it can't read.

    It takes the first and the last quote away and all else as it is, but a # begins a comment in
    quotes, too.
    """
    lines = {name: f'{name}="{value}"\n' for name, value in environment.items()}
    unfit = [name for name, line in lines.items() if "#" in line or len(line) > _LONGEST]
    return "".join(line for name, line in lines.items() if name not in unfit), unfit
