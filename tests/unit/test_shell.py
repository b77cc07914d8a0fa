"""No shell script of ours escapes shellcheck: `make lint` looks at the files, and this at what is
rendered.
"""

from __future__ import annotations

import re
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest

from tests.fetching import registry
from vmrunner.machine.seed import exec_script

ROOT = Path(__file__).parents[2]
FOLDERS = (".ci", "images", "packaging", "rig", "templates", "tests", "vmrunner")


def beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(40)


def test_make_lint_looks_at_every_shell_script() -> None:
    files = [
        path
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in (".j2", ".pyc")
    ]
    scripts = {
        str(path.relative_to(ROOT))
        for path in files
        if re.match(rb"#!\s*/(usr/)?bin/(env )?(ba|da)?sh\b", beginning(path))
    }
    listed = re.search(r"(?m)^shell_scripts = (.*)$", (ROOT / "Makefile").read_text())
    assert listed
    assert set(listed[1].split()) == scripts


def test_templates_of_shell_are_known() -> None:
    shell = {
        path.name
        for path in (ROOT / "templates").rglob("*.*")
        if ".sh." in path.name or b"#!/bin/" in path.read_bytes()
    }
    known = {"user-data-exec.sh.j2", "hooks.sh.j2"}  # the first includes the second
    assert shell == known | {"packages-registry.sh.j2"}


@pytest.mark.parametrize(("boothook", "tools"), [(False, False), (True, False), (False, True)])
def test_what_runs_one_command_is_good_shell(boothook: bool, tools: bool) -> None:
    script = exec_script(["/bin/job", "it's"], timedelta(1), "end", boothook=boothook, tools=tools)
    assert "before-ready.d" in script, "with the hooks"
    # cloud-init takes its own line away.
    assert complaints(script.removeprefix("#cloud-boothook\n")) == ""


def test_what_runs_a_mirror_of_images_is_good_shell(tmp_path: Path) -> None:
    made = registry(tmp_path / "it's a folder")
    assert complaints(made.script()) == ""


def complaints(script: str) -> str:
    """Of shellcheck, about what Debian's sh runs."""
    return subprocess.run(
        ["shellcheck", "--shell=dash", "--exclude=SC1091", "-"],  # the environment is the image's
        input=script,
        capture_output=True,
        text=True,
        check=False,
    ).stdout
