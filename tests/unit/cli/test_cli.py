"""The command line as a whole: every command is there, and each loads what it needs."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from vmrunner.cli.main import _COMMANDS
from vmrunner.manager.history import History, Record


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vmrunner.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_help_lists_every_command_and_a_wrong_one_is_refused() -> None:
    listed = run("--help")
    assert listed.returncode == 0
    assert set(_COMMANDS) <= set(listed.stdout.split())
    wrong = run("nonsense")
    assert (wrong.returncode, "No such command 'nonsense'" in wrong.stderr) == (2, True), (
        wrong.stderr
    )


@pytest.mark.parametrize("command", _COMMANDS)
def test_a_command_works_with_its_module_alone(command: str) -> None:
    shown = run(command, "--help")
    assert (shown.returncode, f"vmrunner.cli.main {command}" in shown.stdout) == (0, True), shown


def test_exec_does_not_load_the_manager() -> None:
    loaded = (
        "import sys; from vmrunner.cli import main; main._load(['exec']); "
        "print('vmrunner.manager.manager' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", loaded], text=True) == "False\n"


def test_execs_own_options_end_where_the_command_begins() -> None:
    mistyped = run("exec", "--vcpus", "1", "--", "true")
    assert (mistyped.returncode, "No such option: --vcpus" in mistyped.stderr) == (2, True), (
        mistyped.stderr
    )
    for command in (["--", "ls", "--vcpus"], ["ls", "--vcpus"]):
        elsewhere = run("exec", "--config", "/nowhere.toml", *command)
        assert "There is no configuration at /nowhere.toml" in elsewhere.stderr, (
            "the command's own options are not looked at"
        )


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_a_table_in_a_pipe_is_whole(tmp_path: Path, encoding: str) -> None:
    """Whoever looks for a job in it looks for its whole name, by whatever terminal."""
    job = "a job's name that is longer than a line of 80 characters, [debian-12] [/b] \u2013 :x: "
    with closing(History(tmp_path / "history.sqlite", print)) as history:
        history._write(Record("vmr-m-0123456789abcdef", "p", job=job * 3, ending="done"))
    (tmp_path / "c.toml").write_text(
        f'state_dir = "{tmp_path}"\n[forge]\nkind = "gitea"\nurl = "https://forge.example"\n'
        '[pools.p]\nlabels = ["a"]\nimage = "a"\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "vmrunner.cli.main", "history", "-c", str(tmp_path / "c.toml")],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "80"},
        check=True,
    )
    line = done.stdout.splitlines()[1]
    assert line.startswith(b"vmr-m-0123456789abcdef ")
    assert (job * 3).strip().encode(encoding, "replace") in line
