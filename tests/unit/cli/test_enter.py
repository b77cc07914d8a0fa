"""`vmrunner ssh`, `cp` and `console`: what is refused before any machine is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.cli.test_cli import run
from tests.unit.cli.test_completion import completed


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("cp a b", "One of FROM and TO"),
        ("cp one:a two:b", "One of FROM and TO"),
        ("cp ./a:b /c:d", "One of FROM and TO"),
        ("console x", "A console needs a terminal"),
        ("ssh", "Missing argument"),
    ],
)
def test_what_can_not_be_meant_is_said(command: str, said: str) -> None:
    done = run(*command.split())
    assert (done.returncode, said in done.stderr) == (2, True), done


def test_the_machines_that_there_are_complete(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    for name in ("vmr-ci-00000001.events", "vmr-ci-00000002.events", "vmr-ci-00000002.qcow2"):
        (tmp_path / "pool" / name).touch()
    (tmp_path / "c.toml").write_text(f'libvirt.storage_path = "{tmp_path}"\n')
    for command in ("ssh", "console", "cp"):
        assert completed(f"vmrunner {command} vmr-", tmp_path / "c.toml") == [
            "vmr-ci-00000001",
            "vmr-ci-00000002",
        ]
