"""What doctor says of who is to be told."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmrunner.config import Config
from vmrunner.doctor import notices
from vmrunner.doctor.findings import Level


def told(folder: Path, url: str = "https://alerts.example/x") -> list[tuple[Level, str]]:
    settings = {
        "manager": "m",
        "state_dir": str(folder),
        "forge": {"kind": "gitea", "url": "https://forge.example"},
        "pools": {"p": {"labels": ["a"], "image": "a"}},
        "notify": {"url": url, "secret_file": str(folder / "secret")} if url else {},
    }
    return [(each.level, each.said) for each in notices.look(Config.model_validate(settings))]


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("s3cret")
    path.chmod(0o600)
    return path


def test_nobody_is_to_be_told(tmp_path: Path) -> None:
    assert told(tmp_path, "") == []


def test_a_secret_that_is_missing_and_one_that_others_read(secret: Path) -> None:
    secret.chmod(0o644)
    assert [level for level, _ in told(secret.parent)] == [Level.WARNING, Level.GOOD]
    secret.unlink()
    ((level, said),) = told(secret.parent)
    assert (level, said) == (Level.ERROR, f"The secret file {secret} does not exist.")


@pytest.mark.parametrize(
    ("url", "level"),
    [
        ("https://alerts.example/x", Level.GOOD),
        ("http://localhost:9000/x", Level.GOOD),
        ("http://127.0.0.1/x", Level.GOOD),
        ("http://alerts.example/x", Level.WARNING),
        ("http://127.0.0.1.alerts.example/x", Level.WARNING),
    ],
)
def test_what_others_could_read(secret: Path, url: str, level: Level) -> None:
    found = told(secret.parent, url)
    assert found[0][0] is level
    assert all("/x" not in said for _, said in found)  # the path may be a secret


def test_what_could_not_be_sent(secret: Path) -> None:
    folder = secret.parent / "notices"
    folder.mkdir()
    for name in ("1.json", "2.json", "known", ".part-1.x"):
        (folder / name).touch()
    ((level, said),) = told(secret.parent)
    assert (level, said) == (Level.WARNING, "2 notices were not sent to alerts.example yet.")
