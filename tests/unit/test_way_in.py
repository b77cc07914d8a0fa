"""What `make way-in` takes out of the docs, without a machine: commands alone, and all of them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN = ROOT / "tests" / "way_in" / "run.sh"


def commands(page: str, *heading: str) -> list[str]:
    done = subprocess.run(
        ["bash", RUN, "_commands", ROOT / page, *heading],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("page", "heading", "programs"),
    [
        (
            "README.md",
            ["On your own Forgejo, in five steps"],
            ["apt-get", "apt-get", "git", "cd", "pipx", "init", "image build", "systemd install"],
        ),
        ("docs/howto/upgrade.md", [], ["pipx", "config check", "systemd install"]),
        (
            "docs/howto/remove.md",
            [],
            ["systemctl", "down", "rm", "systemctl", "pipx", "rm", "rm", "gpasswd", "userdel"],
        ),
    ],
)
def test_the_commands_of_a_page(page: str, heading: list[str], programs: list[str]) -> None:
    found = commands(page, *heading)
    assert len(found) == len(programs)
    for line, program in zip(found, programs, strict=True):
        assert re.search(rf"(^|[ /]){program}( |$)", line), line


def test_the_questions_are_those_of_init() -> None:
    asked = (ROOT / "vmrunner" / "cli" / "init_cmd.py").read_text()
    (answers,) = re.findall(r"printf '%s\\t%s\\n' ((?:.|\\\n)*?) \|", RUN.read_text())
    questions = re.findall(r'"([A-Z][^"]+)"', answers)
    assert len(questions) == 6
    for question in questions:
        assert question.replace("gitea-runner", "{program}") in asked
