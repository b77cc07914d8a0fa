"""The command line as a whole: every command is there, and each loads what it needs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from vmrunner import __version__
from vmrunner.cli.app import COMMANDS
from vmrunner.errors import ConfigError
from vmrunner.manager.history import History
from vmrunner.manager.record import Record


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
    assert set(COMMANDS) <= set(listed.stdout.split())
    wrong = run("nonsense")
    assert (wrong.returncode, "No such command 'nonsense'" in wrong.stderr) == (2, True), (
        wrong.stderr
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_works_with_its_module_alone(command: str) -> None:
    shown = run(command, "--help")
    assert (shown.returncode, f"vmrunner.cli.main {command}" in shown.stdout) == (0, True), shown


SLOW = {"httpx", "libvirt", "jinja2", "structlog", "vmrunner.config", "vmrunner.manager.manager"}


def loaded(*arguments: str) -> set[str]:
    """What of the slow modules a call has loaded when it ends."""
    program = (
        "import atexit, sys\nfrom vmrunner.cli.main import main\n"
        f"atexit.register(lambda: print(*({SLOW!r} & set(sys.modules)), file=sys.stderr))\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60
    )
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", ["--help", "--version", "exec -h", "image -h"])
def test_help_loads_nothing_that_takes_long(arguments: str) -> None:
    assert loaded(*arguments.split()) == set()


def test_each_command_loads_what_it_needs(tmp_path: Path) -> None:
    nowhere = f"-c{tmp_path / 'none'}"
    assert "vmrunner.manager.manager" not in loaded("exec", nowhere, "true")
    assert "vmrunner.manager.manager" in loaded("up", nowhere), "what is asked can be answered"


def test_every_command_has_its_group_and_says_who_it_is() -> None:
    shown = run("-h").stdout
    assert shown == run("--help").stdout
    for group, line in COMMANDS.values():
        assert f"\n{group}:\n" in shown
        assert line.split()[0] in shown
    assert run("--version").stdout == f"vmrunner {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("down --timeout abc", 'A duration is written like "90s", "15m" or "3h".'),
        ("exec --memory 2 true", 'A size is written like "2GiB" or "512MiB".'),
        ("exec --timeout 9 true", 'A duration is written like "90s", "15m" or "3h".'),
        ("snapshot create --disk big", 'A size is written like "2GiB" or "512MiB".'),
        ("exec --network allowlist true", "An allowlist belongs to a pool."),
        ("exec --pool p --tools t true", "--tools and --pool don't go together."),
        ("snapshot create --pool p --disk 9GiB", "--disk and --pool don't go together."),
        ("snapshot create --flavor f --tools t", "--tools and --flavor don't go together."),
        ("down --all x", "Either one pool or --all."),
        ("status --watch --json", "--json prints once."),
        ("down --purge", "--purge removes all pools' things."),
    ],
)
def test_a_wrong_value_of_an_option_is_a_wrong_command(arguments: str, said: str) -> None:
    done = run(*arguments.split())
    assert done.returncode == 2
    assert done.stdout == "" or "--json" in arguments
    assert done.stderr.splitlines()[0] == f"vmrunner: {said}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            "report --by x",
            "'--by': 'x' is not one of 'repository', 'organisation', 'pool', 'label'.",
        ),
        ("completion x", "'SHELL': 'x' is not one of 'bash', 'zsh', 'fish'."),
        (
            "cache setup x",
            "'KIND': 'x' is not one of 'apt', 'npm', 'pypi', 'go', 'oci', 'crates', 'maven'.",
        ),
    ],
)
def test_a_word_that_is_none_of_several(arguments: str, said: str) -> None:
    """Without the words of a library that checks it."""
    done = run(*arguments.split())
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(f"Invalid value for {said}")


WRITERS = ("config example", "--help", "snapshot apparmor")


def shell(line: str) -> subprocess.CompletedProcess[str]:
    program = f'vmrunner() {{ {sys.executable} -m vmrunner.cli.main "$@"; }}; {line}'
    return subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("command", WRITERS)
def test_a_full_disk_under_the_output_is_one_sentence(command: str) -> None:
    done = shell(f"vmrunner {command} >/dev/full")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 2), done.stderr
    assert "The output can't be written: No space left on device." in done.stderr


@pytest.mark.parametrize("command", WRITERS)
def test_a_reader_that_has_enough_is_no_error(command: str) -> None:
    done = shell(f"(sleep 1; vmrunner {command}; echo $? >&2) | exec 0<&-")
    assert done.stderr == "1\n"


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_closed_files_stay_closed(command: str, closed: str) -> None:
    """And no file of ours takes their numbers."""
    done = shell(f"vmrunner {command} {closed}")
    assert (done.returncode, done.stderr) == (0, "")


def test_sigterm_and_ctrl_c_have_the_exit_codes_that_shells_expect(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "c.toml")  # which is read until somebody writes
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        with (
            subprocess.Popen(
                [sys.executable, "-m", "vmrunner.cli.main", "config", "check", "-c", "c.toml"],
                cwd=tmp_path,
                stderr=subprocess.PIPE,
            ) as process,
            (tmp_path / "c.toml").open("w"),
        ):  # opens when it reads
            process.send_signal(number)
            assert (process.wait(30), process.stderr and process.stderr.read()) == (code, b"")


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


@pytest.mark.parametrize("command", ["exec --pool q true", "snapshot create --pool q"])
def test_a_pool_that_is_not_there_is_a_fault_of_the_words(tmp_path: Path, command: str) -> None:
    (tmp_path / "c.toml").write_text(
        f'state_dir = "{tmp_path}"\n[forge]\nkind = "gitea"\nurl = "https://forge.example"\n'
        '[pools.p]\nlabels = ["a"]\nimage = "a"\ntools = "t"\n'
    )
    done = run("-c", str(tmp_path / "c.toml"), *command.split())
    assert done.returncode == ConfigError.exit_code
    assert done.stderr == "vmrunner: There is no pool 'q'.\n  The configuration has: p.\n"
    known = run("-c", str(tmp_path / "c.toml"), *command.replace(" q", " p").split())
    assert "There is no image 'a'" in known.stderr


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
