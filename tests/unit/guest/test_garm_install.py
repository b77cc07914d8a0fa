"""GARM's install script, inside a machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.garm.double import INSTANCE, Double
from tests.unit.guest.programs import load


class Over(Exception):
    """It waits for the machine's end."""


class Place:
    """A machine, with the program in it."""

    def __init__(self, folder: Path, garm: Double) -> None:
        self.ran: list[list[str]] = []
        self.garm, self.folder = garm, folder
        self.paused = 0
        self.program: Any = load("garm_install.py")
        self.program.SCRIPT, self.program.CERTIFICATE = folder / "script", folder / "garm.crt"
        self.program.lacks = list
        self.program.shutil = Quiet()
        self.program.time = Clock(self)
        self.program.subprocess = Programs(self)

    def install(self, token: str = INSTANCE, certificates: str = "") -> None:
        self.program.install(f"{self.garm.url}/api/v1/metadata/", token, certificates)


class Quiet:
    @staticmethod
    def chown(path: Path, user: str) -> None:
        assert (path.exists(), user) == (True, "runner")


class NoUser:
    @staticmethod
    def chown(_path: Path, user: str) -> None:
        raise LookupError(f"no such user: {user!r}")


class Clock:
    def __init__(self, place: Place) -> None:
        self.place = place

    def sleep(self, seconds: float) -> None:
        if seconds > 3600:
            raise Over
        self.place.paused += 1


class Later(Clock):
    """GARM has time again after the third pause."""

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        if self.place.paused == 3:
            self.place.garm.refuses.clear()


class Programs:
    DEVNULL = subprocess.DEVNULL

    def __init__(self, place: Place) -> None:
        self.place = place
        self.code = 0

    def run(self, words: list[str], **_more: Any) -> subprocess.CompletedProcess[str]:
        script = self.place.folder / "script"
        said = [script.read_text()] if script.exists() else []
        self.place.ran.append([*words, *said])
        return subprocess.CompletedProcess(words, self.code)


def test_what_it_says_is_on_the_console(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console, moved = tmp_path / "console", list[int]()
    console.touch()
    place.program.CONSOLE = console
    monkeypatch.setattr(place.program.os, "dup2", lambda _old, new: moved.append(new))
    monkeypatch.setattr(sys, "argv", ["-c", f"{place.garm.url}/api/v1/metadata", INSTANCE, ""])
    with pytest.raises(Over):
        place.program.main()
    assert moved == [1, 2]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with Double() as garm:
        yield Place(tmp_path, garm)


def test_it_is_fetched_and_run_as_the_user_that_it_expects(place: Place) -> None:
    place.garm.install = "echo rendered by GARM\n"
    with pytest.raises(Over):
        place.install(certificates="-----BEGIN CERTIFICATE-----\n")
    update, ran = place.ran
    assert update == ["update-ca-certificates"]
    # A login forgets all of the environment but what says where tools are.
    kept = "--whitelist-environment=RUNNER_TOOL_CACHE,AGENT_TOOLSDIRECTORY"
    assert ran[:5] == ["runuser", "--login", kept, "runner", "-c"]
    assert ran[-1] == "echo rendered by GARM\n"
    assert (place.folder / "garm.crt").read_text() == "-----BEGIN CERTIFICATE-----\n"
    assert not (place.folder / "script").exists(), "a token may be in it"


def test_one_that_fails_ends_the_machine(place: Place) -> None:
    place.program.subprocess.code = 3
    with pytest.raises(SystemExit, match="ended with exit code 3"):
        place.install()


def test_a_token_that_garm_does_not_take_is_not_tried_again(place: Place) -> None:
    with pytest.raises(SystemExit, match="GARM answers 401") as ended:
        place.install(token="another")
    assert (place.paused, "another" in str(ended.value)) == (0, False)


def test_garm_that_is_busy_is_asked_again(place: Place) -> None:
    place.garm.refuses = {"install-script": 503}
    place.program.time = Later(place)
    with pytest.raises(Over):
        place.install()
    assert place.paused == 3


def test_garm_out_of_reach_is_said(place: Place) -> None:
    with pytest.raises(SystemExit, match="does the flavor's network reach GARM"):
        place.program.install("http://127.0.0.1:9/metadata", INSTANCE, "")
    assert place.paused == place.program.TRIES - 1


def test_an_image_that_has_no_such_user_is_told(place: Place) -> None:
    place.program.shutil = NoUser
    with pytest.raises(SystemExit, match="needs a user runner in the image"):
        place.install()
    assert place.ran == []
