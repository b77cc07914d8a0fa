"""Who gives way when the cache is full: whoever has the most, and nobody below an equal share."""

from __future__ import annotations

import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.cache.world import World, Worlds, job
from vmrunner.cache.refused import Refused, Why
from vmrunner.cache.shares import Shares
from vmrunner.cache.store import Limits

KiB = 1024
DAY = 86400.0


@pytest.mark.parametrize(
    ("taken", "gives"),
    [
        ({}, ""),
        ({"a/x": 1}, "a/x"),
        ({"a/x": 5, "b/x": 6}, "b/x"),
        ({"a/x": 5, "a/y": 4, "b/x": 6}, "a/x"),  # many repositories are no more than one
        ({"a/x": 5, "a/y": 4, "b/x": 9, "b/y": 1}, "b/x"),
        ({"a/x": 0, "b/x": 0}, "a/x"),  # somebody, always the same
    ],
)
def test_who_has_the_most_gives(taken: dict[str, int], gives: str) -> None:
    assert Shares(taken).giver() == gives


@given(
    st.dictionaries(st.from_regex(r"[a-c]/[a-d]", fullmatch=True), st.integers(0, 9), max_size=9),
    st.lists(st.integers(0, 4), max_size=30),
)
def test_who_has_the_most_gives_until_somebody_else_has(
    taken: dict[str, int], gives: list[int]
) -> None:
    shares, now = Shares(taken), dict(taken)
    for much in gives:
        giver = shares.giver()
        owners = Counter(dict.fromkeys("abc", 0))
        for name, has in now.items():
            owners[name[0]] += has
        assert bool(giver) == bool(now)
        if giver:
            assert owners[giver[0]] == max(owners[name[0]] for name in now)
            assert now[giver] == max(has for name, has in now.items() if name[0] == giver[0])
            shares.gave(giver, much)
            now[giver] -= much


REPOSITORIES = ["a/one", "b/one", "b/two", "c/one", "c/two", "c/three", "c/four"]
ACTS = st.tuples(
    st.sampled_from(REPOSITORIES),
    st.integers(1, 20),  # KiB
    st.sampled_from(["save", "save", "begin", "end"]),
)


@settings(max_examples=12, deadline=None)
@given(st.lists(ACTS, min_size=10, max_size=40))
def test_nobody_below_a_share_loses_anything(acts: list[tuple[str, int, str]]) -> None:
    """However fast others write, and whether they bring it to an end or not."""
    limits = Limits(most=100 * KiB, most_per_repository=60 * KiB, keep_free=0, uploads=99)
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), limits)
        with closing(world.store):
            for number, (repository, size, act) in enumerate(acts):
                before, safe = entries(world), below_a_share(world, repository, size * KiB)
                with suppress(Refused):
                    do(world, repository, f"k{number}", bytes([number]) * size * KiB, act)
                now = entries(world)
                assert [each for each in safe if now[each] < before[each]] == []
                assert sum(taken(world).values()) <= limits.most


def do(world: World, repository: str, key: str, data: bytes, act: str) -> None:
    rights = job(repository)
    if act != "end":
        id_ = world.uploads.reserve(key, rights, key, "v", len(data))
        try:
            world.uploads.write(world.uploads.claim(key, rights, id_, 0, len(data)), data)
        except Refused:
            world.uploads.drop(key, rights, id_)
            raise
        if act == "save":
            world.uploads.commit(key, rights, id_, len(data))
    else:
        world.now += world.limits.idle + 1
        world.uploads.expire()


def entries(world: World) -> Counter[str]:
    return Counter({each.repository: each.entries for each in world.store.figures()})


def taken(world: World) -> Counter[str]:
    kept = {each.repository: each.bytes for each in world.store.figures()}
    return Counter(kept) + world.uploads._coming()


def below_a_share(world: World, writer: str, more: int) -> set[str]:
    """Who has no more than an equal share of what is divided among owners, and theirs among their
    repositories; without who writes.
    """
    has = taken(world)
    has[writer] += more
    owners = Counter(name.partition("/")[0] for name in has)
    share = world.limits.most / len(owners)
    return {
        name
        for name, much in has.items()
        if name != writer and much <= share / owners[name.partition("/")[0]]
    }


def test_an_owner_with_many_repositories_has_no_more_than_one_with_one(worlds: Worlds) -> None:
    world = worlds(most=1000 * KiB, most_per_repository=900 * KiB, entries=50)
    world.save(job("small/tool"), "mine", b"m" * 400 * KiB)
    for number in range(60):
        with suppress(Refused):
            do(world, f"evil/r{number % 20}", f"k{number}", bytes([number]) * 90 * KiB, "save")
    assert {"mine"} <= world.keys()
    for number in range(100):  # the number of entries, too
        with suppress(Refused):
            do(world, f"evil/r{number % 20}", f"n{number}", bytes([number]), "save")
    assert {"mine"} <= world.keys()
    assert len(world.keys()) == 50


def test_uploads_that_come_to_no_end_push_nobody_out(worlds: Worlds) -> None:
    world = worlds(most=1000 * KiB, most_per_repository=900 * KiB)
    world.save(job("org/tool"), "mine", b"m" * 300 * KiB)
    for number in range(10):
        with suppress(Refused):
            do(world, f"evil/r{number}", "half", b"e" * 150 * KiB, "begin")
    assert world.keys() == {"mine"}
    # And who has less than they have gets room: one of theirs ends.
    world.save(job("third/tool"), "third", b"t" * 300 * KiB)
    assert world.keys() == {"mine", "third"}


def test_what_nobody_used_for_a_week_goes_before_all_else(worlds: Worlds) -> None:
    world = worlds(most=1000 * KiB, most_per_repository=900 * KiB)
    for name in ("small/one", "small/two"):
        world.save(job(name), name, name.encode() * 10 * KiB)
    world.now += 8 * DAY
    assert world.find(job("small/two"), "small/two")
    for number in range(3):
        world.save(job("large/tool"), f"large-{number}", bytes([number]) * 290 * KiB)
    assert world.keys() == {"small/two", "large-0", "large-1", "large-2"}
    world.save(job("large/tool"), "large-3", b"3" * 290 * KiB)
    assert world.keys() == {"small/two", "large-1", "large-2", "large-3"}


def test_who_asks_for_more_than_a_share_keeps_what_it_has(worlds: Worlds) -> None:
    world = worlds(most=1000 * KiB, most_per_repository=900 * KiB)
    for name in ("one/tool", "two/tool", "three/tool"):
        world.save(job(name), name, name.encode() * 25 * KiB)
    before = world.files()
    with pytest.raises(Refused, match="no room for more of three/tool"):
        do(world, "three/tool", "large", bytes(700 * KiB), "save")
    assert world.keys() == {"one/tool", "two/tool", "three/tool"}
    assert world.files() == before


def test_what_becomes_an_entry_counts_once(worlds: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for who waits to save something meanwhile."""
    world = worlds(most=1000 * KiB, most_per_repository=900 * KiB)
    keep = world.store.add

    def add(*arguments: Any) -> None:
        keep(*arguments)
        monkeypatch.undo()
        wait(world, lambda: world.save(job("second/tool"), "second", b"s" * 300 * KiB))

    monkeypatch.setattr(world.store, "add", add)
    world.save(job("first/tool"), "first", b"f" * 400 * KiB)
    for thread in threading.enumerate():
        if thread.name == "waits":
            thread.join(30)
    assert world.keys() == {"first", "second"}


def wait(world: World, save: Callable[[], object]) -> None:
    """Begin to save from another thread, until it can go no further."""
    looked = threading.Event()
    look = world.uploads._coming

    def coming() -> Counter[str]:
        looked.set()
        return look()

    world.uploads._coming = coming  # type: ignore[method-assign]
    threading.Thread(target=save, name="waits").start()
    looked.wait(0.5)


def test_room_that_was_refused_is_not_had(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    id_ = world.uploads.reserve("a", job(), "k", "v", None)
    part = world.uploads.claim("a", job(), id_, 0, 10)
    with monkeypatch.context() as full:
        full.setattr(world.store, "check_disk", refuse)
        with pytest.raises(Refused):
            world.uploads.write(part, b"x")
    assert world.uploads._coming() == {}


def refuse(size: int) -> None:
    raise Refused(Why.NO_ROOM, f"{size} are too many")
