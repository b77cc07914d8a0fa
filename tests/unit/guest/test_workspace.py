"""A job's workspace stays where its machine may be kept: asked of a real kernel."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.forge.gitea import until

Guest = Any
# As the runners have it: it makes the folder, works in it, and deletes it when it is told to.
RUNNER = """
import os, shutil, sys
folder = sys.argv[1]
os.makedirs(f"{folder}/hostexecutor/deep")
os.mkdir(f"{folder}/tmp")
open(f"{folder}/hostexecutor/deep/left", "w").write("41 is not 42")
print("works", flush=True)
sys.stdin.readline()
shutil.rmtree(folder)
print("done", flush=True)
"""


@pytest.fixture
def runner(guest: Guest) -> Iterator[subprocess.Popen[str]]:
    guest.make_work()
    with subprocess.Popen(
        [sys.executable, "-c", RUNNER, str(guest.WORK / "0a1b")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        with suppress(ProcessLookupError):
            process.kill()


def ends(runner: subprocess.Popen[str]) -> None:
    assert runner.stdin
    assert runner.stdout
    print(file=runner.stdin, flush=True)
    assert runner.stdout.readline() == "done\n"


def works(runner: subprocess.Popen[str]) -> None:
    assert runner.stdout
    assert runner.stdout.readline() == "works\n"


@pytest.mark.parametrize("is_late", [False, True])
def test_what_the_runner_deletes_is_kept(
    guest: Guest, runner: subprocess.Popen[str], tmp_path: Path, is_late: bool
) -> None:
    kept = tmp_path / "kept"
    workspace = guest.Workspace(runner.pid, kept)
    if is_late:
        works(runner)
    workspace.begin()
    workspace.begin()
    if not is_late:
        works(runner)
    folder = guest.WORK / "0a1b"
    until(lambda: is_asked(folder), 10, "it is asked before that is opened")
    assert {path.name for path in folder.iterdir()} == {"hostexecutor", "tmp"}, "others may open it"
    assert not kept.exists()
    ends(runner)
    assert (kept / "deep" / "left").read_text() == "41 is not 42"
    assert not folder.exists()


def is_asked(folder: Path) -> bool:
    """Whether somebody is asked before this is opened: the kernel lists it, by its inode."""
    inode = f"ino:{folder.stat().st_ino:x} "
    files = Path("/proc/self/fdinfo").iterdir()
    return any(inode in line for file in files for line in _lines(file) if "fanotify" in line)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


def test_what_a_step_had_kept_is_replaced_by_what_was_there_at_the_end(
    guest: Guest, runner: subprocess.Popen[str], tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "older").touch()
    works(runner)
    guest.Workspace(runner.pid, kept).begin()
    until(lambda: is_asked(guest.WORK / "0a1b"), 10, "it is asked before that is opened")
    ends(runner)
    assert [path.name for path in kept.iterdir()] == ["deep"]


def test_without_it_nothing_is_kept(
    guest: Guest, runner: subprocess.Popen[str], tmp_path: Path
) -> None:
    works(runner)
    guest.Workspace(runner.pid + 1, tmp_path / "kept").begin()  # of another process
    ends(runner)
    assert not (guest.WORK / "0a1b").exists()
    assert not (tmp_path / "kept").exists()


def test_a_kernel_that_can_not_says_so(
    guest: Guest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(guest.libc, "fanotify_init", lambda *_: -1, raising=False)
    said = tmp_path / "log"
    with said.open("wb") as log:
        monkeypatch.setattr(guest, "LOGS", [log.fileno()])
        guest.Workspace(1, tmp_path / "kept").begin()
    assert said.read_text().startswith("vmrunner: no workspace is kept here: ")
