"""The environment that a recipe gives to everything that runs in its machines: as the shell reads
it, and as PAM does.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.building import begin
from vmrunner.errors import ImageError
from vmrunner.image.build import containers, paths, tree
from vmrunner.image.build.programs import Programs
from vmrunner.image.recipe import recipe

HARD = {
    "PLAIN": "C.UTF-8",
    "SPACES": "  a  b  ",
    "QUOTES": """it's "quoted" """,
    "ENDS": '"',
    "BACKSLASH": "a\\b\\",
    "SHELL_LIKE": "$HOME `id` $(id) ; & |",
    "EMPTY": "",
    "EQUALS": "=a=b",
    "ALL": "".join(map(chr, range(32, 127))).replace("#", ""),
}
UNFIT = {"COMMENT": "nixpkgs#hello", "LONG": "a" * 1000}


@pytest.fixture
def furnished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that adds the files of a recipe with this environment to a tree; what was said."""
    monkeypatch.setattr(Programs, "run_in_tree", lambda *_, **__: "")

    def add(environment: dict[str, str], **more: Any) -> list[str]:
        said: list[str] = []
        (tmp_path / "tree" / "etc").mkdir(parents=True, exist_ok=True)
        wanted = recipe.load("debian-12").model_copy(
            update={"environment": environment, "files": {}} | more
        )
        build = begin(tmp_path, wanted, said.append)
        tree._add_files(build)
        tree._set_environment(build)
        tree._reset_identity(build.tree)
        return said

    return add


def read(tmp_path: Path, *command: str, over: str) -> dict[str, str]:
    """What `env -0` finds, with the tree's file of this path in the place of ours."""
    script = 'mount --bind "$0" "$1" && shift && exec "$@"'
    return variables(
        "unshare", "--mount", "sh", "-c", script, tmp_path / "tree" / over[1:], over, *command
    )


def variables(*command: str | Path) -> dict[str, str]:
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(each.partition("=")[::2] for each in said.split("\0") if each)


def test_logins_read_what_the_recipe_says(tmp_path: Path, furnished: Any) -> None:
    (tmp_path / "tree" / "etc").mkdir(parents=True)
    # Without a last newline.
    (tmp_path / "tree/etc/environment").write_text('PLAIN="before"\nOTHER="stays"')
    (said,) = furnished(HARD | UNFIT)
    assert said.startswith("leaving COMMENT, LONG out of /etc/environment")
    found = read(tmp_path, "su", "root", "-c", "env -0", over="/etc/environment")
    assert {name: found[name] for name in HARD} == HARD
    assert (found["OTHER"], UNFIT.keys() & found.keys()) == ("stays", set())
    assert (tmp_path / "tree/etc/environment").stat().st_mode & 0o777 == 0o644


def test_jobs_read_all_of_it(tmp_path: Path, furnished: Any) -> None:
    furnished(HARD | UNFIT)
    found = variables(
        "env", "-i", "sh", "-c", '. "$0" && exec env -0', tmp_path / "tree" / tree.ENVIRONMENT[1:]
    )
    assert {name: found[name] for name in HARD | UNFIT} == HARD | UNFIT


def test_a_file_of_the_recipes_own_stays_and_a_link_is_not_followed(
    tmp_path: Path, furnished: Any
) -> None:
    furnished({"A": "1"}, files={"/etc/environment": recipe.FileSource(text="B=2\n")})
    path = tmp_path / "tree/etc/environment"
    assert path.read_text() == "B=2\n"
    path.unlink()
    (tmp_path / "outside").write_text("C=3\n")
    path.symlink_to(tmp_path / "outside")
    furnished({"A": "1"})
    assert (path.is_symlink(), path.read_text(), (tmp_path / "outside").read_text()) == (
        False,
        'A="1"\n',
        "C=3\n",
    )


@pytest.mark.parametrize(
    "line",
    [
        'A = "a\\nB=2"',
        'A = "a\\n"',
        'A = "a\\u0000"',
        'A = "a\\u00e9"',
        '"A B" = "1"',
        '"A=1\\nB" = "1"',
        '"" = "1"',
    ],
)
def test_what_would_be_another_line_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "mine.toml").write_text(f'extends = "debian-12"\n[environment]\n{line}\n')
    with pytest.raises(ImageError, match="environment"):
        recipe.load("mine", tmp_path)


def test_host_keys_and_archives_of_this_host_stay(tmp_path: Path, furnished: Any) -> None:
    """A stock image may have symlinks anywhere."""
    outside, inside = tmp_path / "outside", tmp_path / "tree"
    outside.mkdir()
    (outside / "ssh_host_key").touch()
    (inside / "etc").mkdir(parents=True)
    (inside / "etc/ssh").symlink_to(outside)
    with pytest.raises(ImageError, match="The path /etc/ssh leads out of the image"):
        furnished({})
    (inside / "usr").mkdir()
    (inside / "usr/lib").symlink_to(outside)
    wanted = recipe.load("debian-12").model_copy(
        update={"containers": (recipe.ContainerSource(name="a", archive=tmp_path / "a.tar"),)}
    )
    with pytest.raises(ImageError, match="usr/lib/vmrunner/containers leads out of the image"):
        containers.lay(begin(tmp_path, wanted))
    assert [path.name for path in outside.iterdir()] == ["ssh_host_key"]


def test_a_script_may_turn_on_what_a_stock_image_brings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(
        Programs, "run_in_tree", lambda _programs, what, *_, **__: ran.append(what) or ""
    )
    (tmp_path / "tree/etc/cloud").mkdir(parents=True)
    (tmp_path / "tree/usr/lib/systemd/system").mkdir(parents=True)
    (tmp_path / "tree/usr/lib/systemd/system/ssh.service").touch()
    wanted = recipe.load("debian-12").model_copy(
        update={"scripts": (recipe.Script(name="ssh", text="systemctl enable ssh"),)}
    )
    tree.furnish(begin(tmp_path, wanted))
    assert ran[:2] == ["Disabling ssh.service", "The script ssh"]
    assert ran.count("Disabling ssh.service") == 1
    assert (tmp_path / "tree/etc/cloud/cloud-init.disabled").is_file()


ACCOUNTS = {"etc/passwd": "root:x:0:0:root:/root:/bin/bash\n", "etc/group": "root:x:0:\n"}


@pytest.mark.parametrize(
    ("more", "commands", "has_sudo"),
    [
        ({}, ["useradd --uid 1001", "chmod"], False),
        (
            {"etc/sudoers.d/README": "", "etc/group": "docker:x:999:\n"},
            ["useradd --uid 1001", "chmod", "usermod docker"],
            True,
        ),
        ({"etc/passwd": "ci:x:1001:1001::/home/ci:/bin/sh\n"}, ["useradd", "chmod"], False),
        (
            {
                "etc/passwd": "runner:x:1000:1000::/home/runner:/bin/sh\n",
                "etc/group": "docker:x:999:\n",
            },
            ["usermod docker"],
            False,
        ),
    ],
)
def test_an_image_with_a_runner_has_the_user_of_its_jobs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: dict[str, str],
    commands: list[str],
    has_sudo: bool,
) -> None:
    ran: list[str] = []

    def inside(_programs: Programs, _what: str, _tree: Path, *command: str, **_: object) -> str:
        if command[0] in ("useradd", "usermod", "chmod"):
            ran.append(
                " ".join(
                    [command[0], *(each for each in ("--uid", "1001", "docker") if each in command)]
                )
            )
        return ""

    monkeypatch.setattr(Programs, "run_in_tree", inside)
    (tmp_path / "runner").write_text("#!/bin/sh\n")
    for path, text in (ACCOUNTS | more).items():
        (tmp_path / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / path).write_text(text)
    source = recipe.RunnerSource(kind="gitea-runner", path=tmp_path / "runner")
    wanted = recipe.load("debian-12").model_copy(update={"runner": source})
    tree.furnish(begin(tmp_path, wanted))
    sudoers = tmp_path / "tree/etc/sudoers.d/runner"
    assert (ran, sudoers.exists()) == (commands, has_sudo)
    if has_sudo:
        assert (sudoers.read_text(), sudoers.stat().st_mode & 0o777) == (
            "runner ALL=(ALL:ALL) NOPASSWD: ALL\n",
            0o440,
        )


def test_the_recipes_own_user_of_that_name_is_the_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(
        Programs,
        "run_in_tree",
        lambda _programs, _what, _tree, *command, **_: ran.append(command) or "",
    )
    (tmp_path / "runner").write_text("#!/bin/sh\n")
    (tmp_path / "tree/etc/sudoers.d").mkdir(parents=True)
    source = recipe.RunnerSource(kind="gitea-runner", path=tmp_path / "runner")
    wanted = recipe.load("debian-12").model_copy(
        update={"runner": source, "users": {"runner": recipe.User(uid=2000)}}
    )
    tree.furnish(begin(tmp_path, wanted))
    assert [command[0] for command in ran].count("useradd") == 1
    assert list((tmp_path / "tree/etc/sudoers.d").iterdir()) == []


def test_folders_are_open_whatever_umask_a_build_has(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        paths.place(tmp_path, "/usr/lib/a/b", b"", 0o644)
        said = begin(tmp_path).programs.run("Looking", "sh", "-c", "umask")
    finally:
        os.umask(before)
    assert [
        (tmp_path / each).stat().st_mode & 0o777 for each in ("usr", "usr/lib", "usr/lib/a")
    ] == [0o755] * 3
    assert said.strip() == "0022"
