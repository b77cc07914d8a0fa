"""Progress: lines in a pipe, a line that moves on a terminal, and the time as it was last."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from vmrunner.cli import progress
from vmrunner.log import tell_part


def test_in_a_pipe_each_step_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.steps("a task", tmp_path) as told:
        told("installing packages")
        told("a step with [red]brackets[/red] that is longer than the eighty columns of a terminal")
    assert capsys.readouterr().err == (
        "installing packages\n"
        "a step with [red]brackets[/red] that is longer than the eighty columns of a terminal\n"
    )
    assert set(progress._remembered(tmp_path)) == {"a task"}


def test_what_fails_is_not_remembered(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), progress.steps("a task", tmp_path):
        raise ValueError("no")
    assert progress._remembered(tmp_path) == {}


@pytest.mark.parametrize("text", ["{", "[]", '{"a task": "x"}', "\x00"])
def test_a_memory_that_can_not_be_read_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "durations.json").write_text(text)
    assert progress._remembered(tmp_path) == {}
    progress._remember(tmp_path, "a task", 3.0)
    assert progress._remembered(tmp_path) == {"a task": 3.0}
    progress._remember(tmp_path / "nowhere", "a task", 3.0)


def test_on_a_terminal_the_step_moves_and_says_what_is_left() -> None:
    now = [0.0]
    console = Console(
        file=io.StringIO(), force_terminal=True, width=80, highlight=False, markup=False
    )
    with progress.live(console, 100.0, clock=lambda: now[0]) as told:
        told("bootstrapping [b]debian[/b]")
        now[0] = 62.0
        told("writing a disk")
        now[0] = 70.0
    seen = console.file.getvalue()  # type: ignore[attr-defined]
    assert "bootstrapping [b]debian[/b]  0 s (about 1m40s left)" in seen
    assert "bootstrapping [b]debian[/b]  62 s\n" in seen
    assert "writing a disk  0 s (about 38s left)" in seen
    assert "writing a disk  8 s\n" in seen


def test_how_far_an_upload_is_shows_in_its_line_and_nowhere_else() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, highlight=False)
    with progress.live(console, 0.0, clock=lambda: 0.0) as told:
        told("copying disk to libvirt")
        tell_part(told, 120 << 20, 550 << 20)
        told.refresh()  # type: ignore[attr-defined]
        told("and now the kernel")
        tell_part(told, 10, 20)  # so little that it says nothing
        told.refresh()  # type: ignore[attr-defined]
    seen = console.file.getvalue()  # type: ignore[attr-defined]
    assert "copying disk to libvirt (120 of 550 MiB)  0 s" in seen
    assert "copying disk to libvirt  0 s\n" in seen
    assert "kernel (" not in seen
    lines: list[str] = []
    tell_part(lines.append, 1 << 20, 2 << 20)
    assert lines == [], "a log is told nothing"


@pytest.mark.parametrize(
    ("elapsed", "expected", "said"),
    [(0, 0, ""), (5, 3, ""), (0, 59.6, " (about 1m00s left)"), (1, 60, " (about 59s left)")],
)
def test_what_is_left(elapsed: float, expected: float, said: str) -> None:
    assert progress.left(elapsed, expected) == said
