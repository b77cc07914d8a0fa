"""Man pages say what the help says, and nothing that roff takes for its own."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from vmrunner.cli import man
from vmrunner.cli.app import COMMANDS
from vmrunner.cli.meanings import ENDINGS, WAITS

MACROS = (".TH", ".SH", ".SS", ".TP", ".PP", ".B", ".BR")


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return man.pages()


def test_there_is_a_page_for_each_command(pages: dict[str, str]) -> None:
    assert set(pages) == {"vmrunner.1", *(f"vmrunner-{name}.1" for name in COMMANDS)}
    for name in COMMANDS:
        assert f".BR vmrunner\\-{name} (1)" in pages["vmrunner.1"]


@pytest.mark.parametrize(
    "command", ["up", "image build", "snapshot drop", "history", "config show", "report", "hold"]
)
def test_a_page_has_all_that_the_help_has(pages: dict[str, str], command: str) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "vmrunner.cli.main", *command.split(), "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    page = pages[f"vmrunner-{command.split()[0]}.1"].replace("\\-", "-")
    for option in set(re.findall(r"(?m)^  (?:-\w, )?(--[a-z-]+)", shown)) - {"--help"}:
        assert option in page
    assert " ".join(shown.split("\n\n")[1].split()) in page
    words = " ".join(shown.split())
    for default in re.findall(r"default: \(?([^;\])]+)", words):
        assert f"Default: {default}." in page
    for choices in re.findall(r"<(\w+(?:\|\w+)+)>", words):
        assert f" {choices}\n" in page


def test_no_line_is_one_of_roffs_by_accident(pages: dict[str, str]) -> None:
    for name, page in pages.items():
        for line in page.splitlines():
            assert line, name
            assert line.split()[0] in MACROS if line[0] in ".'" else True, (name, line)
            assert not re.search(r"\\(?![-e&])", line), (name, line)
        assert "None" not in page


def test_whatever_a_text_begins_with() -> None:
    assert man._text(".SH  is\nnot a heading") == "\\&.SH is not a heading"
    assert man._text("'tis C:\\x -v") == "\\&'tis C:\\ex \\-v"


def test_exit_codes_and_meanings_are_where_one_looks_for_them(pages: dict[str, str]) -> None:
    for code in man.exit_codes():
        assert f".B {code}\n" in pages["vmrunner.1"]
    for kind in WAITS:
        assert f".B {man._text(kind.value)}\n" in pages["vmrunner-status.1"]
    for ending in ENDINGS:
        assert f".B {man._text(ending.value)}\n" in pages["vmrunner-history.1"]
