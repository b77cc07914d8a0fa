"""The time that the cache saved: jobs that found something beside those of their name that did
not.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cache.world import World, job
from vmrunner.cache.figures import Kept, Place
from vmrunner.cache.worth import Took, saved, seconds
from vmrunner.manager.history import History
from vmrunner.manager.record import Record


def took(text: str) -> list[Took]:
    """ "a build 30 +": the repository, the job, its seconds, and whether it found something."""
    return [
        Took(repository, name, float(much), found == "+")
        for repository, name, much, found in (line.split() for line in text.split(", ") if line)
    ]


@pytest.mark.parametrize(
    ("jobs", "gained"),
    [
        ("", {}),
        ("a build 30 +", {}),  # nothing to compare with
        ("a build 90 -", {}),
        ("a build 90 -, a build 30 +", {"a": 60.0}),
        ("a build 90 -, a build 30 +, a build 40 +", {"a": 110.0}),
        ("a build 90 -, a build 80 -, a build 9000 -, a build 30 +", {"a": 60.0}),  # one hung
        ("a build 90 -, a lint 5 +", {}),  # other jobs take other times
        ("a build 90 -, a build 30 +, a lint 5 -, a lint 7 +", {"a": 58.0}),  # it may cost time
        ("a build 90 -, b build 30 +", {}),
        ("a build 90 -, a build 30 +, b build 9 -, b build 8 +", {"a": 60.0, "b": 1.0}),
    ],
)
def test_seconds(jobs: str, gained: dict[str, float]) -> None:
    assert seconds(took(jobs)) == gained


def test_only_successes_of_the_history_count(world: World, tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    history = History(path, print)
    world.save(job(), "k", b"x")
    for number, (key, verdict, began, ended) in enumerate(
        (
            ("none", "success", 100.0, 190.0),
            ("none", "failure", 100.0, 101.0),
            ("none", "success", 0.0, 190.0),
            ("k", "success", 100.0, 130.0),
            ("k", "success", 100.0, 0.0),
            ("k", "cancelled", 100.0, 105.0),
        )
    ):
        world.find(replace(job(), machine=f"m{number}"), key)
        record = Record(
            f"m{number}", job="build", verdict=verdict, job_started=began, job_ended=ended
        )
        history._write(record)
    world.find(replace(job(), machine="without a row"), "k")
    history._write(Record("that asked nothing", job="build", verdict="success"))
    index = world.folder / "index.sqlite"
    assert saved(index, path) == {"org/tool": 60.0}
    here, without = Place(world.folder, path, 1), Place(world.folder, tmp_path / "none", 1)
    assert [each.value for each in samples(Kept(lambda: here))] == [60.0]
    assert [each.value for each in samples(Kept(lambda: without))] == [0.0]
    history.close()


def samples(kept: Kept) -> list[Any]:
    return [
        each
        for family in kept.collect()
        for each in family.samples
        if family.name == "vmrunner_cache_saved_seconds"
    ]


def test_a_job_that_asks_often_is_one(world: World) -> None:
    world.save(job(), "k", b"x")
    for key in ("none", "k", "none", "k"):
        world.find(replace(job(), machine="m1"), key)
    rows = world.store._database.execute("SELECT machine, hits FROM runs WHERE machine != ''")
    assert rows.fetchall() == [("m1", 2)]
    world.now += 91 * 86400
    world.find(replace(job(), machine="m2"), "k")
    rows = world.store._database.execute("SELECT machine FROM runs")
    assert rows.fetchall() == [("m2",)]
