"""What the last pass saw, from `serve` to the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes import Clock, FakeLog
from tests.page import made
from tests.unit.page.site import Page
from tests.unit.test_hostile import NASTY
from vmrunner.cli.shown import Status, Waiting
from vmrunner.manager.serve import Server
from vmrunner.page import seen
from vmrunner.page.seen import Reader, Writer

EMPTY: Status = made(Status)


def waiting(name: str) -> Waiting:
    found: Waiting = made(
        Waiting, name=name, repository=name, labels=(name,), url=name, reason=name
    )
    return found


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "seen.json"
    Writer(path, FakeLog()).write(lambda: replace(EMPTY, waiting=(waiting("a"),)), 7.0)
    found = Reader(path).seen()
    assert (found.at, found.waiting, found.status["waiting"][0]["name"]) == (7.0, 1, "a")
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", NASTY)
def test_every_name_can_be_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / "seen.json"
    Writer(path, FakeLog()).write(lambda: replace(EMPTY, waiting=(waiting(name),)), 7.0)
    assert Reader(path).seen().status["waiting"][0]["repository"] == name


def test_of_a_long_queue_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "MOST_WAITING", 3)
    path = tmp_path / "seen.json"
    Writer(path, FakeLog()).write(lambda: replace(EMPTY, waiting=(waiting("a"),) * 9), 7.0)
    found = Reader(path).seen()
    assert (found.waiting, len(found.status["waiting"])) == (9, 3)


def test_a_new_one_is_read_and_an_old_one_is_not_read_again(tmp_path: Path) -> None:
    path = tmp_path / "seen.json"
    reader = Reader(path)
    assert reader.seen().at == 0.0
    Writer(path, FakeLog()).write(lambda: EMPTY, 7.0)
    first = reader.seen()
    assert reader.seen() is first
    Writer(path, FakeLog()).write(lambda: EMPTY, 8.0)
    assert reader.seen().at == 8.0


def test_it_takes_a_hundredth_of_the_time(tmp_path: Path) -> None:
    clock = Clock()
    writer = Writer(tmp_path / "seen.json", FakeLog(), clock.steady)
    began = clock.steady()

    def slow() -> Status:
        clock.now += 0.5
        return EMPTY

    writer.write(slow, 7.0)
    while not writer.is_due:
        clock.now += 0.1
    assert 50.0 <= clock.steady() - began - 0.5 <= 50.2
    writer.write(lambda: EMPTY, 7.0)
    clock.now += 1.0
    assert writer.is_due


def test_a_place_that_can_not_be_written_is_told_once(tmp_path: Path) -> None:
    log = FakeLog()
    writer = Writer(tmp_path / "none" / "seen.json", log)
    for _ in range(3):
        writer.write(lambda: EMPTY, 7.0)
    (tmp_path / "none").mkdir()
    writer.write(lambda: EMPTY, 8.0)
    assert [event for event, _ in log.lines] == ["what the page shows was not written"]
    assert json.loads((tmp_path / "none" / "seen.json").read_text())["at"] == 8.0


def test_serve_tells_what_each_pass_saw(page: Page) -> None:
    world, told = page.world, []
    server = Server(
        lambda: world.manager,
        world.log,
        make_snapshot=lambda _: pytest.fail("nothing is to be cloned"),
        saw=lambda seen: (told.append(seen), server.stop()),
        clock=world.clock.steady,
        wait=lambda *_: False,
        notify=lambda _: None,
    )
    server.serve()
    assert [seen.manager for seen in told] == [world.manager]
