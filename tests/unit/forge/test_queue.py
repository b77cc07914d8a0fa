"""A long queue that is read a few pages at a time, and that changes while it is read."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmrunner.forge import queue as module
from vmrunner.forge.queue import LongQueue, Row
from vmrunner.forge.trace import Place
from vmrunner.model.job import Job, JobState, Want

PAGE = 10


def row(number: int, label: str = "x") -> Row:
    job = Job(number, f"job {number}", (label,), JobState.WAITING, f"{number}.0", repository="o/r")
    return Place("o/r", number), job


class Forge:
    """The list, and which pages of it were read."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)
        self.read: list[int] = []
        self.queue = LongQueue(self.page, PAGE)

    def page(self, number: int) -> tuple[list[Row], int]:
        self.read.append(number)
        return self.rows[(number - 1) * PAGE : number * PAGE], len(self.rows)

    def look(self, *wants: Want) -> bool:
        self.read.clear()
        return self.queue.look(wants)

    def known(self) -> set[int]:
        return {place.job for place, _ in self.queue.rows}

    def there(self) -> set[int]:
        return {place.job for place, _ in self.rows}


def want(count: int, label: str = "x") -> Want:
    return Want(count, lambda job: label in job.labels)


def test_what_is_wanted_ends_the_reading() -> None:
    forge = Forge([row(number) for number in range(1000)])
    assert not forge.look(want(8))
    assert forge.read == [1, 100], "the oldest, and the newest"
    assert forge.queue.unread == 980
    assert not forge.look(want(30))
    assert forge.read == [100, 2], "it reads on where it was"
    assert forge.look(want(70))
    assert forge.read == [100, 3, 4, 5], "four pages, as some are known"


def test_where_nothing_fits_it_reads_on_for_longer() -> None:
    forge = Forge([*(row(number, "y") for number in range(150)), *map(row, range(150, 500))])
    forge.rows[490:] = [row(number, "y") for number in range(490, 500)]
    assert not forge.look(want(1))
    assert forge.read == [1, 50, *range(2, 17)]
    forge = Forge([row(number, "y") for number in range(1000)])
    assert forge.look(want(1))
    assert len(forge.read) == 20, "one look takes no longer than that"


def test_with_nothing_wanted_a_look_is_two_pages_however_long_the_queue() -> None:
    forge = Forge([row(number) for number in range(1000)])
    for _ in range(100):
        assert not forge.look()
        assert len(forge.read) <= 2
    assert forge.known() == forge.there()
    assert forge.queue.unread == 0


def test_new_jobs_are_seen_at_once_where_they_are_last() -> None:
    forge = Forge([row(number) for number in range(1000)])
    for number in range(1000, 1200):
        forge.look()
        forge.rows.append(row(number))
        forge.look()
        assert number in forge.known()


def test_what_was_read_in_one_look_is_believed_as_a_whole() -> None:
    forge = Forge([row(number) for number in range(15)])
    forge.look()
    del forge.rows[3]
    forge.look()
    assert forge.known() == forge.there()
    assert forge.queue.old == set()


def test_what_an_earlier_look_has_shown_is_old_and_still_known() -> None:
    forge = Forge([row(number) for number in range(100)])
    forge.look()
    gone = forge.rows.pop(0)[0].job
    forge.look()
    assert gone in forge.known()
    assert gone in forge.queue.old
    forge.queue.forget(gone)
    assert gone not in forge.known()


def test_memory_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 200)
    forge = Forge([row(number) for number in range(1000)])
    for _ in range(300):
        forge.look()
    assert len(forge.known()) == 200
    assert len(forge.queue._seen) == 200
    assert forge.queue.unread == 800


@settings(max_examples=150)
@given(st.randoms(use_true_random=False), st.integers(1, 400), st.integers(0, 3))
def test_whatever_changes_between_pages(chance: Random, jobs: int, churn: int) -> None:
    """Jobs that stay are known at the latest when the list was still for a round, and what is gone
    is forgotten after two.
    """
    forge = Forge([row(number) for number in range(jobs)])
    last, stayed = jobs, set(range(jobs))
    plain = forge.page

    def changing(number: int) -> tuple[list[Row], int]:
        nonlocal last
        for _ in range(chance.randint(0, churn)):
            if chance.random() < 0.5:
                forge.rows.insert(chance.randint(0, len(forge.rows)), row(last))
                last += 1
            elif forge.rows:
                stayed.discard(forge.rows.pop(chance.randrange(len(forge.rows)))[0].job)
        if chance.random() < 0.1:
            chance.shuffle(forge.rows)
        return plain(number)

    forge.queue._read = changing
    for _ in range(chance.randint(1, 60)):
        forge.look(want(chance.randint(0, 50)))
        assert len(forge.read) <= 20
    forge.queue._read = plain
    for _ in range(3 * (len(forge.rows) // PAGE + 2)):
        forge.look()
    assert stayed <= forge.known()
    assert forge.known() == forge.there()
    assert forge.queue.unread == 0
