"""What builds an image neither outlives the build nor leaves a mount, and says what went wrong."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import archive
from vmrunner.errors import ImageError
from vmrunner.image.build import cause
from vmrunner.image.build.build_log import BuildLog
from vmrunner.image.build.programs import Programs

MOUNTING = """
import sys
from pathlib import Path
from vmrunner.image.build.build_log import BuildLog
from vmrunner.image.build.programs import Programs
programs = Programs(BuildLog(Path(sys.argv[1]), print))
inner = 'mount -t tmpfs tmpfs "$0" && touch "$0/mounted" && echo mounted && (sleep 654321 & sleep 654322)'
programs.run(
    "It", "sh", "-c", inner, sys.argv[2], in_namespaces=True, on_line=lambda line: print(line, flush=True)
)
"""  # noqa: E501 — a script keeps its lines


def new(folder: Path) -> Programs:
    """Programs with a log in this folder."""
    return Programs(BuildLog(folder / "log", lambda _: None))


def sleeping() -> list[str]:
    """The programs that MOUNTING began and that are still there."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue  # it has just gone
        found += (
            [words[1].decode()] if words[0] == b"sleep" and words[1].startswith(b"65432") else []
        )
    return sorted(found)


def test_killed_it_leaves_no_process_and_no_mount(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", MOUNTING, tmp_path / "log", place], stdout=subprocess.PIPE, text=True
    ) as build:
        assert build.stdout is not None
        assert build.stdout.readline() == "mounted\n"
        deadline = time.monotonic() + 60
        while len(sleeping()) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert sleeping() == ["654321", "654322"]
        assert (list(place.iterdir()), str(place) in Path("/proc/mounts").read_text()) == (
            [],
            False,
        ), "nobody else sees its mounts"
        os.kill(build.pid, signal.SIGKILL)
    while sleeping() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert sleeping() == []


STANDING_IN = """#!/bin/sh
{how}
"""
RUNNING = """
import sys
from pathlib import Path
from vmrunner.image.build.build_log import BuildLog
from vmrunner.image.build.programs import Programs
programs = Programs(BuildLog(Path(sys.argv[1]), print))
programs.run("It", "touch", sys.argv[3], in_namespaces=sys.argv[2] == "True")
"""


@pytest.mark.parametrize("dies", [True, False])
@pytest.mark.parametrize(
    ("program", "how"),
    # Both wait while there is a file `wait`: the first before it asks to die with its parent, the
    # second's child before it does so.
    [
        (
            "setpriv",
            'touch {here}/begun; while [ -e {here}/wait ]; do sleep 0.02; done; exec {real} "$@"',
        ),
        (
            "unshare",
            'touch {here}/begun; (while [ -e {here}/wait ]; do sleep 0.02; done; exec {real} "$@") '
            "& wait $!",
        ),
    ],
    ids=["itself", "its child"],
)
def test_a_build_that_is_killed_before_its_program_knows_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, how: str, dies: bool
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "wait").touch()
    ours = tmp_path / "bin" / program
    ours.write_text(STANDING_IN.format(how=how.format(here=tmp_path, real=shutil.which(program))))
    ours.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    for in_namespaces in (True, False) if program == "setpriv" else (True,):
        (tmp_path / "begun").unlink(missing_ok=True)
        (tmp_path / "wait").touch()
        done, deadline = tmp_path / f"ran-{in_namespaces}", time.monotonic() + 60
        with subprocess.Popen(
            [sys.executable, "-c", RUNNING, tmp_path / "log", str(in_namespaces), done]
        ) as build:
            while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            if dies:
                os.kill(build.pid, signal.SIGKILL)
                build.wait()
            (tmp_path / "wait").unlink()
        while (processes(tmp_path) or vanishing(tmp_path)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (processes(tmp_path), done.exists()) == ([], not dies)


def processes(folder: Path) -> list[bytes]:
    """Those whose command line names something in the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes()
        except OSError:
            continue  # it has just gone
        found += [words] if os.fsencode(folder) in words else []
    return found


def vanishing(folder: Path) -> list[bytes]:
    """Those that are there a moment later: a process that becomes another program has no command
    line meanwhile.
    """
    time.sleep(0.2)
    return processes(folder)


def test_the_log_has_it_all_and_the_error_the_end(tmp_path: Path) -> None:
    said: list[str] = []
    log = BuildLog(tmp_path / "one.log", said.append)
    programs = Programs(log)
    log.step("counting")
    assert programs.run("It", "sh", "-c", "echo 1; echo 2 >&2") == "1\n2\n"
    with pytest.raises(ImageError, match=r"It failed \(exit 3\)") as caught:
        programs.run("It", "sh", "-c", "seq 100; exit 3")
    assert (caught.value.hint.splitlines()[0], "one.log" in caught.value.hint) == ("93", True)
    with pytest.raises(ImageError, match="It failed: there is no room left") as caught:
        programs.run("It", "sh", "-c", "echo 'write: No space left on device'; exit 1")
    assert (caught.value.hint.splitlines()[0], "one.log" in caught.value.hint) == (
        "Free some space.",
        True,
    )
    lines = [line for line in log.path.read_text().splitlines() if not line.startswith("$ ")]
    assert (said, lines[:4]) == (["counting"], ["== counting", "1", "2", "1"])


def test_each_command_stands_before_its_output_and_can_be_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    programs = new(tmp_path)
    tell = """pwd; umask; echo "$LC_ALL $DEBIAN_FRONTEND $SYSTEMD_OFFLINE"
        printf '%s|' "$0" "$@"; echo 'a\\b'; exit 3"""
    words = ("sh", "-c", tell, "it's", "$HOME `id`", "two\nlines \\n", "ü", "")
    for in_namespaces in (False, True):
        with pytest.raises(ImageError, match="exit 3"):
            programs.run("It", *words, in_namespaces=in_namespaces)
    monkeypatch.chdir(tmp_path)
    _, first, second = programs.log.path.read_text().split("$ (")
    for part in (first, second):
        line, _, output = f"({part}".partition("\n")
        again = subprocess.run(
            ["bash", "-c", line],
            capture_output=True,
            text=True,
            timeout=60,
            env={"PATH": os.environ["PATH"]},
        )
        assert (again.stdout, again.returncode) == (output, 3)
        assert output.startswith(f"{folder}\n0022\nC.UTF-8 noninteractive 1\n")
    assert "unshare" in second


def test_a_command_in_a_tree_can_be_run_again(tmp_path: Path) -> None:
    tree, programs = tmp_path / "tree", new(tmp_path)
    archive.base("cat").lay(tree)
    programs.run_in_tree("It", tree, "sh", "-ec", "cd / && echo *", logged=False)
    (line,) = programs.log.path.read_text().splitlines()
    again = subprocess.run(
        ["bash", "-c", line.removeprefix("$ ")], capture_output=True, text=True, timeout=60
    )
    assert (again.returncode, "proc" in again.stdout.split()) == (0, True)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            "E: The repository 'http://forge.example/debian sid InRelease' is not signed.",
            "http://forge.example/debian sid is signed by nobody",
        ),
        (
            "E: The repository 'http://forge.example/debian sid Release' is not signed.",
            "http://forge.example/debian sid is signed by nobody",
        ),
        (
            "E: Release file for http://forge.example/sid/InRelease is expired (invalid since 3d).",
            "forge.example/sid/InRelease says has expired",
        ),
        (
            "E: Failed to fetch http://forge.example/jq_1.deb  Unable to connect to forge.example",
            "http://forge.example/jq_1.deb can't be",
        ),
        ("E: Unable to locate package ninja", "no package ninja"),
        ("cp: error writing 'a': No space left on device", "no room left"),
    ],
)
def test_the_cause_of_a_failure(line: str, reason: str) -> None:
    found = cause.recognise(
        [
            "I: running apt-get update...",
            line,
            "E: Unable to locate package another",
            "E: mmdebstrap failed to run",
        ]
    )
    assert found
    assert reason in found.reason
    assert found.hint


def test_a_cause_that_is_not_known() -> None:
    assert (
        cause.recognise(
            ["W: Failed to fetch http://forge.example/a", "E: mmdebstrap failed to run"]
        )
        is None
    )


def test_in_a_tree_there_are_devices_and_no_disks(tmp_path: Path) -> None:
    """What a package's script thinks is its machine's disk would be this host's."""
    tree = tmp_path / "tree"
    archive.base("cat", "head", "readlink", "wc").lay(tree)
    look = """cd /dev && echo * pts/* && echo lost >null && head -c 5 urandom | wc -c && echo a | cat /dev/stdin && : >shm/a
    exec 3<>ptmx && echo pts/*"""  # noqa: E501 — a script keeps its lines
    said = new(tmp_path).run_in_tree("It", tree, "sh", "-ec", look).splitlines()
    assert (
        said[0] == "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero pts/ptmx"
    )
    assert said[1:] == ["5", "a", "pts/0 pts/ptmx"]
    assert list((tree / "dev").iterdir()) == []
