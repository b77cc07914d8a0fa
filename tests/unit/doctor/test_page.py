"""What doctor says of the page for browsers."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmrunner.config import Config
from vmrunner.doctor import page
from vmrunner.doctor.findings import Level


def told(**section: object) -> list[tuple[Level, str]]:
    settings = {
        "manager": "m",
        "forge": {"kind": "gitea", "url": "https://forge.example"},
        "pools": {"p": {"labels": ["a"], "image": "a"}},
        "page": section,
    }
    return [(each.level, each.said) for each in page.look(Config.model_validate(settings))]


def test_there_is_none() -> None:
    assert told() == []


def test_all_is_there() -> None:
    assert told(listen="127.0.0.1:8480") == [(Level.GOOD, "for browsers, at 127.0.0.1:8480")]


def test_that_logs_are_shown_is_said(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("0123456789abcdef0123456789abcdef")
    path.chmod(0o600)
    ((level, said),) = told(listen="127.0.0.1:8480", token_file=path, logs=True)
    assert (level, said) == (Level.GOOD, "for browsers, at 127.0.0.1:8480, with machines' logs")


@pytest.mark.parametrize(("token", "words"), [("", "does not hold"), ("short", "too short")])
def test_a_token_that_is_none(tmp_path: Path, token: str, words: str) -> None:
    path = tmp_path / "token"
    path.write_text(token)
    path.chmod(0o600)
    ((level, said),) = told(listen="192.0.2.5:8480", token_file=path)
    assert (level, words in said) == (Level.ERROR, True)


def test_modules_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "_NEEDED", ("sys", "no_such_module"))
    ((level, said),) = told(listen="127.0.0.1:8480")
    assert (level, said) == (Level.WARNING, "No page is served: no_such_module is not installed.")
