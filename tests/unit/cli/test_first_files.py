"""What `vmrunner init` writes is what was answered, all of it or nothing."""

from __future__ import annotations

import hashlib
import os
import tomllib
from pathlib import Path

import pytest

from tests.archive import served
from vmrunner.cli.first_files import (
    Answers,
    Places,
    config_text,
    own_image,
    refuse_closed,
    write,
)
from vmrunner.cli.init_cmd import _Asker, _runner
from vmrunner.config import DEFAULT_PATH, Config, HostConfig, example
from vmrunner.errors import ConfigError
from vmrunner.image.build.release import this_arch
from vmrunner.model.label import Label

ANSWERS = Answers(
    "ci",
    "gitea",
    "https://forge.example/git",
    None,
    ("user",),
    (Label.parse("a"), Label.parse("node:docker://node:22")),
    "Ubuntu-24.04-docker-with-a-long-name-runner",
)


EMPTY = ({}, {"webhook": {}}, {"packages": {}})  # tables whose keys are comments


def test_the_example_says_what_was_answered_and_nothing_else_changes() -> None:
    text = config_text(example(), Places(DEFAULT_PATH), ANSWERS)
    assert {name: value for name, value in tomllib.loads(text).items() if value not in EMPTY} == {
        "manager": "ci",
        "forge": {"kind": "gitea", "url": "https://forge.example/git"},
        "pools": {
            "ubuntu-24-04-docker-with": {
                "labels": ["a", "node:docker://node:22"],
                "image": ANSWERS.image,
                "scope": "user",
            }
        },
    }
    Config.model_validate(tomllib.loads(text))
    theirs = example().splitlines()
    changed = [line for line in text.splitlines() if line not in theirs]
    assert len(text.splitlines()) == len(theirs)
    assert len(changed) == 7, changed


def test_what_is_not_in_its_usual_place_is_named(tmp_path: Path) -> None:
    found = tomllib.loads(config_text(example(), Places(tmp_path / 'a "b".toml'), ANSWERS))
    assert found["forge"]["token_file"] == str(tmp_path / "forge-token")
    assert found["recipes_dir"] == str(tmp_path / "recipes")


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ("debian-13-full", "debian-13-runner"),
        ("debian-13-docker-full", "debian-13-docker-runner"),
        ("ci", "ci-runner"),
    ],
)
def test_names(base: str, name: str) -> None:
    assert own_image(base) == name


def test_all_or_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="can't be written: File exists"):
        write({tmp_path / "a" / "first": ("1", 0o600), tmp_path / "file" / "b": ("2", 0o644)})
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "file"]


def test_a_place_that_is_closed_is_told_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refuse_closed(Places(tmp_path / "new" / "folder" / "vmrunner.toml"))
    with pytest.raises(ConfigError, match=f"{tmp_path / 'file'} is closed"):
        refuse_closed(Places(tmp_path / "file" / "vmrunner.toml"))


def test_the_service_can_read_what_a_careful_root_writes(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write({tmp_path / "etc" / "a": ("1", 0o644), tmp_path / "etc" / "b": ("2", 0o600)})
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"etc": 0o755, "a": 0o644, "b": 0o600}


def test_a_version_is_fetched(tmp_path: Path) -> None:
    name = f"gitea-runner-1.0.8-linux-{this_arch()}"
    (tmp_path / "site" / "1.0.8").mkdir(parents=True)
    (tmp_path / "site" / "1.0.8" / name).write_bytes(b"runner")
    digest = hashlib.sha256(b"runner").hexdigest()
    (tmp_path / "site" / "1.0.8" / f"{name}.sha256").write_text(digest)
    host = HostConfig(state_dir=tmp_path / "state")
    with served(tmp_path / "site") as site:
        lines = tomllib.loads(_runner(_Asker(asks=False, yes=True), host, "gitea", None, site.url))[
            "runner"
        ]
    assert (lines["version"], lines["sha256"]) == ("1.0.8", digest)
    assert os.access(lines["path"], os.X_OK)
