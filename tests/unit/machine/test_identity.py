"""A host's identity: made once, whoever comes first, and not taken over with a copied folder."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path

import pytest

from vmrunner.config import HostConfig
from vmrunner.errors import ConfigError
from vmrunner.machine import identity
from vmrunner.model.machine import MachineId, is_serial


def computer(folder: Path, machine_id: str, product: str = "") -> dict[str, Path]:
    """What a computer is known by; without `product` that is only for root to read."""
    folder.mkdir(exist_ok=True)
    sources = {"machine_id": folder / "machine-id", "product_uuid": folder / "uuid"}
    sources["machine_id"].write_text(f"{machine_id}\n")
    if product:
        sources["product_uuid"].write_text(f"{product}\n")
    return sources


def test_made_once(tmp_path: Path) -> None:
    word = identity.host(tmp_path / "state")
    assert is_serial(word)
    assert identity.host(tmp_path / "state") == word
    assert identity.host(tmp_path / "other") != word


def ask(state: Path, answers: multiprocessing.Queue[str]) -> None:
    answers.put(identity.host(state))


def test_two_processes_at_once_get_the_same(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for number in range(5):
        answers: multiprocessing.Queue[str] = context.Queue()
        state = tmp_path / str(number)
        asking = [context.Process(target=ask, args=(state, answers)) for _ in range(4)]
        for process in asking:
            process.start()
        found = {answers.get(timeout=60) for _ in asking}
        for process in asking:
            process.join()
        assert found == {identity.host(state)}


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"host": 7}', '{"host": "../../x"}', '{"host": "abc"}', "\0"],
)
def test_a_file_that_says_nothing_is_made_anew(tmp_path: Path, content: str) -> None:
    (tmp_path / "host.json").write_text(content)
    word = identity.host(tmp_path)
    assert is_serial(word)
    assert identity.host(tmp_path) == word


def test_a_half_written_file_is_none(tmp_path: Path) -> None:
    word = identity.host(tmp_path)
    whole = (tmp_path / "host.json").read_text()
    (tmp_path / "host.json").write_text(whole[: len(whole) // 2])
    assert identity.host(tmp_path) != word


def test_a_copied_folder_is_another_host(tmp_path: Path) -> None:
    first, second = computer(tmp_path / "1", "aaa"), computer(tmp_path / "2", "bbb")
    word = identity.host(tmp_path / "state", first)
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    other = identity.host(tmp_path / "copy", second)
    assert other != word
    assert identity.host(tmp_path / "copy", second) == other
    assert identity.host(tmp_path / "state", first) == word


def test_a_copied_disk_is_told_by_its_board(tmp_path: Path) -> None:
    first = computer(tmp_path / "1", "aaa", "board 1")
    second = computer(tmp_path / "2", "aaa", "board 2")
    word = identity.host(tmp_path / "state", first)
    assert identity.host(tmp_path / "state", second) != word


def test_who_may_not_read_the_board_has_the_same_identity(tmp_path: Path) -> None:
    root, service = computer(tmp_path / "1", "aaa", "board"), computer(tmp_path / "2", "aaa")
    word = identity.host(tmp_path / "state", service)
    assert identity.host(tmp_path / "state", root) == word
    assert identity.host(tmp_path / "state", service) == word
    marks = json.loads((tmp_path / "state" / "host.json").read_text())
    assert marks.keys() == {"host", "machine_id", "product_uuid"}
    assert "aaa" not in str(marks), "the computer's own words are not for everybody"


def test_a_folder_that_keeps_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="identity can't be kept"):
        identity.host(tmp_path / "file" / "state")


def test_a_machine_is_named_after_its_host(tmp_path: Path) -> None:
    settings = HostConfig(manager="ci-1", state_dir=tmp_path)
    machine = identity.fresh(settings)
    assert str(machine).startswith(f"vmr-ci-1-{identity.host(tmp_path)}")
    assert MachineId.of("ci-1", f"{machine}.qcow2") == machine
