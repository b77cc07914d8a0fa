"""What the cache keeps, finds and lets go."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.unit.cache.world import MAIN, PULL, TOPIC, World, Worlds, block, job
from vmrunner.cache import blobs
from vmrunner.cache.blobs import BLOCK
from vmrunner.cache.refused import Refused, Why
from vmrunner.cache.uploads import Ranges
from vmrunner.errors import ConfigError

T = TypeVar("T")
KiB = 1024
BESIDE = 4096 + 32 + 2 * len("org/tool" + MAIN + "v" + "k")  # the block, a digest, the names


def test_what_comes_in_comes_out(world: World) -> None:
    whole = os.urandom(3 * BLOCK + 7)
    world.save(job(), "k", whole)
    assert world.load(job(), "k") == whole


def test_only_the_service_reads_its_files(world: World) -> None:
    world.save(job(), "k", b"x")
    assert stat.S_IMODE(world.folder.stat().st_mode) == 0o700
    (blob,) = world.files()
    for file in (blob, world.folder / "index.sqlite"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_name_itself_then_the_newest_that_begins_with_it(world: World) -> None:
    for key in ("go-1", "go-2", "go", "gone", "g_-x"):
        world.save(job(), key, key.encode())
    assert world.find(job(), "go") == "go"
    assert world.find(job(), "go-") == "go-2"
    assert world.find(job(), "g") == "g_-x"
    assert world.find(job(), "none", "gon", "go") == "gone"
    assert world.find(job(), "g%", "g?", "G") is None
    assert world.find(job(), "go", version="other") is None


def test_a_scope_comes_before_a_better_key(world: World) -> None:
    world.save(job(), "deps-1", b"main")
    world.save(job(writes=TOPIC), "deps-0", b"topic")
    assert world.find(job(writes=TOPIC), "deps-1", "deps-") == "deps-0"
    assert world.find(job(), "deps-1", "deps-") == "deps-1"


def test_one_repository_is_not_another(world: World) -> None:
    world.save(job(), "k", b"x")
    assert world.find(job("org/tool2"), "k") is None
    assert world.find(job("ORG/Tool"), "k") == "k"  # forges know names in any case


def test_a_name_that_is_another_repositorys_now_has_nothing_of_the_one_before(
    world: World,
) -> None:
    before, now, unknown = (job(repository_id=number) for number in (5, 6, 0))
    for rights in (before, unknown, before):
        world.store.recognise(rights)
    world.save(before, "k", b"x")
    world.save(job("org/other", repository_id=9), "k", b"y")
    world.store.recognise(unknown)
    world.store.recognise(before)
    assert world.find(before, "k") == "k"
    world.store.recognise(now)
    assert world.find(now, "k") is None
    assert world.find(job("org/other", repository_id=9), "k") == "k"
    world.save(now, "k", b"z")
    world.store.recognise(now)
    assert world.load(now, "k") == b"z"
    assert [(each.repository, each.entries) for each in world.store.figures()] == [
        ("org/other", 1),
        ("org/tool", 1),
    ]


def test_a_group_reads_what_default_branches_offer(world: World) -> None:
    offers = job(group="g", shared=("org/two",), offers=True)
    world.save(offers, "k", b"x")
    world.save(job(writes=TOPIC, group="g", shared=("org/two",)), "topic", b"x")
    other = job("org/two", group="g", shared=("org/tool",))
    assert world.find(other, "k") == "k"
    assert world.load(other, "k") == b"x"
    assert world.find(other, "topic") is None
    assert world.find(job("org/two"), "k") is None
    world.save(other, "k", b"mine")
    assert world.load(other, "k") == b"mine"


def test_an_archive_by_its_id_is_only_for_who_may_read_it(world: World) -> None:
    world.save(job(writes=TOPIC), "k", b"x")
    found = world.store.find(job(writes=TOPIC), ("k",), "v")
    assert found
    for stranger in (job(), job(writes=PULL), job("org/two", TOPIC), job(writes=None)):
        with pytest.raises(Refused) as refused:
            world.store.open(stranger, found.id)
        assert refused.value.why is Why.UNKNOWN


def test_an_entry_never_changes(world: World) -> None:
    world.save(job(), "k", b"x")
    with pytest.raises(Refused) as refused:
        world.save(job(), "k", b"y")
    assert refused.value.why is Why.TAKEN
    assert world.load(job(), "k") == b"x"


def test_the_same_content_takes_its_room_once(world: World) -> None:
    world.save(job(), "a", b"same")
    world.save(job("org/two"), "b", b"same")
    assert len(world.files()) == 1
    first = world.store.clear("org/tool").bytes  # of the index alone
    assert world.load(job("org/two"), "b") == b"same"
    assert world.store.clear("org/two").bytes == first + len(b"same") - 2 * len("tool") + 2 * 3
    assert world.files() == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b"y" * (BLOCK + 1)),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        lambda path: os.truncate(path, BLOCK),
    ],
)
def test_a_corrupt_content_is_never_served(world: World, spoil: Any) -> None:
    world.save(job(), "k", b"x" * (BLOCK + 1))
    (blob,) = world.files()
    spoil(blob)
    content = None
    if found := world.store.find(job(), ("k",), "v"):
        content = world.store.open(job(), found.id)
        with pytest.raises(blobs.Corrupt) as error:
            block(content, 0)
        world.store.spoil(content.digest, str(error.value))
        content.close()
    assert world.find(job(), "k") is None
    assert world.files() == []
    assert len(world.told) == 1
    assert "org/tool" in world.told[0]
    world.save(job(), "k", b"again")
    assert world.load(job(), "k") == b"again"


def test_one_bit_in_a_later_block_is_seen(world: World) -> None:
    world.save(job(), "k", b"x" * (2 * BLOCK))
    (blob,) = world.files()
    with blob.open("r+b") as file:
        file.seek(BLOCK + 5)
        file.write(b"y")
    found = world.store.find(job(), ("k",), "v")
    assert found
    content = world.store.open(job(), found.id)
    assert block(content, 0) == b"x" * BLOCK
    with pytest.raises(blobs.Corrupt, match=str(BLOCK)):
        block(content, 1)
    content.close()


def test_what_was_used_longest_ago_goes_first(worlds: Worlds) -> None:
    world = worlds(most=30 * KiB * 8, most_per_repository=20 * KiB * 8)

    def save(repository: str, key: str, much: int) -> None:
        world.save(job(repository), key, key.encode() * much * KiB * 8)

    save("org/tool", "a", 7)
    save("org/tool", "b", 7)
    assert world.find(job(), "a") == "a"
    save("org/tool", "c", 7)  # its repository's own go
    assert world.keys() == {"a", "c"}
    save("org/two", "d", 12)
    assert world.keys() == {"a", "c", "d"}
    assert world.find(job(), "a") == "a"
    save("org/two", "e", 6)  # then those of who has the most: d
    assert world.keys() == {"a", "c", "e"}
    save("org/one", "f", 9)
    assert world.keys() == {"a", "e", "f"}
    assert len(world.files()) == 3


def test_what_an_entry_takes_beside_its_content_counts(worlds: Worlds) -> None:
    world = worlds(most_per_repository=10 * 4 * KiB)
    for number in range(20):
        world.save(job(), f"{number}-{'k' * 400}", b"x")
    assert len(world.keys()) == 8  # 4 KiB and the names twice, for each
    assert world.store.figures()[0].bytes > 8 * (4096 + 800)


def test_too_many_entries(worlds: Worlds) -> None:
    world = worlds(entries=4, entries_per_repository=3)
    for key in "abcd":
        world.save(job(), key, key.encode())
    assert world.keys() == set("bcd")
    for key in "xy":
        world.save(job("org/two"), key, key.encode())
    assert world.keys() == set("cdxy")


def test_more_than_a_repository_may_have(worlds: Worlds) -> None:
    world = worlds(most=30 * KiB, most_per_repository=20 * KiB)
    for size in (21, 20, 19):  # with what it takes beside them
        with pytest.raises(Refused) as refused:
            world.save(job(), "k", b"x" * size * KiB)
        assert refused.value.why is Why.TOO_LARGE
    # Two at once, that are too much together; nothing of them is an entry yet.
    much = 12 * KiB
    first = world.uploads.reserve("a", job(), "first", "v", much)
    second = world.uploads.reserve("a", job(), "second", "v", much)
    world.uploads.write(world.uploads.claim("a", job(), first, 0, much), b"x" * much)
    part = world.uploads.claim("a", job(), second, 0, much)
    with pytest.raises(Refused) as refused:
        world.uploads.write(part, b"x" * much)
    assert refused.value.why is Why.NO_ROOM
    world.uploads.commit("a", job(), first, much)
    assert world.keys() == {"first"}


def test_a_host_whose_disk_is_nearly_full(worlds: Worlds) -> None:
    world = worlds(keep_free=1 << 60)
    with pytest.raises(Refused) as refused:
        world.save(job(), "k", b"x")
    assert refused.value.why is Why.NO_ROOM


def test_an_index_that_can_not_be_written(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    id_ = world.uploads.reserve("a", job(), "k", "v", 1)
    world.uploads.write(world.uploads.claim("a", job(), id_, 0, 1), b"x")
    world.store._database.execute("PRAGMA query_only = 1")
    with pytest.raises(Refused) as refused:
        world.uploads.commit("a", job(), id_, 1)
    assert refused.value.why is Why.NO_ROOM
    assert world.files() == []
    assert list((world.folder / "uploads").iterdir()) == []
    assert world.find(job(), "k") is None  # nor does a figure that can't be kept do harm


def test_what_a_kill_leaves_is_swept(worlds: Worlds, world: World) -> None:
    world.save(job(), "k", b"x")
    half = world.uploads.reserve("a", job(), "half", "v", 2)
    world.uploads.write(world.uploads.claim("a", job(), half, 0, 2), b"h")
    orphan = world.folder / "blobs" / "ab" / ("ab" * 32)
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"orphan")
    after = worlds()
    after.uploads.sweep()
    after.store.sweep()
    assert not orphan.exists()
    assert list((world.folder / "uploads").iterdir()) == []
    assert after.load(job(), "k") == b"x"
    assert after.find(job(), "half") is None
    with pytest.raises(Refused):
        after.uploads.commit("a", job(), half, 2)


def test_prune_and_clear(world: World) -> None:
    world.save(job(), "old", b"o" * 10)
    world.now += 1000
    world.save(job(), "new", b"n" * 10)
    world.save(job("org/two"), "other", b"t" * 10)
    assert world.store.prune() == (removed := world.store.prune())
    assert (removed.entries, removed.bytes) == (0, 0)
    taken = sum(each.bytes for each in world.store.figures())
    first = world.store.prune(500)
    second = world.store.clear("Org/Tool")
    assert (first.entries, second.entries) == (1, 1)
    (left,) = world.store.figures()
    assert (left.repository, first.bytes + second.bytes) == ("org/two", taken - left.bytes)
    assert world.keys() == {"other"}


def test_prune_to_smaller_limits(worlds: Worlds, world: World) -> None:
    for key in "abc":
        world.save(job(), key, key.encode() * 10 * KiB)
    less = worlds(most=50 * KiB, most_per_repository=20 * KiB)
    removed = less.store.prune()
    assert (removed.entries, less.keys()) == (2, {"c"})
    assert removed.bytes == 2 * less.store.figures()[0].bytes


def test_figures(world: World) -> None:
    world.save(job(), "k", b"x" * 10)
    world.find(job(), "k")
    world.find(job(), "none")
    world.store.served("org/tool", 10)
    world.find(job("org/empty"), "k")
    assert [
        (each.repository, each.entries, each.bytes, each.hits, each.misses, each.bytes_served)
        for each in world.store.figures()
    ] == [("org/empty", 0, 0, 0, 1, 0), ("org/tool", 1, 10 + BESIDE, 1, 1, 10)]


@pytest.mark.parametrize("content", [b"no database", b"\0" * 4096])
def test_a_cache_that_is_none(worlds: Worlds, tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "index.sqlite").write_bytes(content)
    with pytest.raises(ConfigError, match="can't be used"):
        worlds()


def test_one_of_a_later_version(worlds: Worlds, world: World) -> None:
    world.store._database.execute("PRAGMA user_version = 7")
    with pytest.raises(ConfigError, match="format 7"):
        worlds()


# ---- uploads


def test_parts_in_any_order_and_twice(world: World) -> None:
    whole = os.urandom(3 * BLOCK + 11)
    id_ = world.uploads.reserve("a", job(), "k", "v", None)
    for begin, end in ((2 * BLOCK, len(whole)), (5, BLOCK), (BLOCK, 2 * BLOCK), (0, 9)) * 2:
        part = world.uploads.claim("a", job(), id_, begin, end)
        for at in range(begin, end, BLOCK - 1):
            world.uploads.write(part, whole[at : min(at + BLOCK - 1, end)])
    world.uploads.commit("a", job(), id_, len(whole))
    assert world.load(job(), "k") == whole


def test_only_who_reserved_it_goes_on_with_an_upload(world: World) -> None:
    id_ = world.uploads.reserve("a", job(), "k", "v", 2)
    for address, rights in (("b", job()), ("a", job(writes=TOPIC)), ("a", job("org/two"))):
        with pytest.raises(Refused) as refused:
            world.uploads.claim(address, rights, id_, 0, 1)
        assert refused.value.why is Why.UNKNOWN
        with pytest.raises(Refused) as refused:
            world.uploads.commit(address, rights, id_, 1)
        assert refused.value.why is Why.UNKNOWN
        world.uploads.drop(address, rights, id_)
    world.uploads.write(world.uploads.claim("a", job(), id_, 0, 2), b"ok")
    world.uploads.commit("a", job(), id_, 2)


@pytest.mark.parametrize(
    ("parts", "size"),
    [
        ([], 0),
        ([], 4),
        ([(0, b"ab")], 4),
        ([(2, b"cd")], 4),
        ([(0, b"ab"), (3, b"d")], 4),
        ([(0, b"abcd")], 3),
        ([(0, b"abcd")], 0),
    ],
)
def test_half_an_upload_is_no_entry(
    world: World, parts: list[tuple[int, bytes]], size: int
) -> None:
    id_ = world.uploads.reserve("a", job(), "k", "v", 4)
    for begin, data in parts:
        world.uploads.write(world.uploads.claim("a", job(), id_, begin, begin + len(data)), data)
    with pytest.raises(Refused) as refused:
        world.uploads.commit("a", job(), id_, size)
    assert refused.value.why is Why.WRONG
    assert world.find(job(), "k") is None
    world.save(job(), "k", b"whole")  # the key is free again


def test_an_upload_that_is_over_stays_so(world: World) -> None:
    id_ = world.save(job(), "k", b"xy")
    world.uploads.commit("a", job(), id_, 2)  # its answer was lost
    with pytest.raises(Refused) as refused:
        world.uploads.commit("a", job(), id_, 1)
    assert refused.value.why is Why.TAKEN
    with pytest.raises(Refused) as refused:
        world.uploads.claim("a", job(), id_, 0, 1)
    assert refused.value.why is Why.TAKEN
    assert world.load(job(), "k") == b"xy"


def test_a_part_that_was_claimed_before_the_end_is_not_written_after_it(world: World) -> None:
    id_ = world.uploads.reserve("a", job(), "k", "v", 2)
    late = world.uploads.claim("a", job(), id_, 0, 2)
    world.uploads.write(late, b"ok")
    world.uploads.commit("a", job(), id_, 2)
    with pytest.raises(Refused):
        world.uploads.write(late, b"no")
    assert world.load(job(), "k") == b"ok"


def test_what_is_announced_pushes_nothing_out(worlds: Worlds) -> None:
    world = worlds(most=100 << 20, most_per_repository=60 << 20)
    world.save(job(), "own", b"x")
    world.save(job("org/two"), "other", b"y")
    size = (60 << 20) - 12 * KiB
    id_ = world.uploads.reserve("a", job(), "k", "v", size)
    part = world.uploads.claim("a", job(), id_, 0, size)
    world.uploads.write(part, b"x" * 1000)
    assert world.keys() == {"own", "other"}
    while part.at < part.end:
        world.uploads.write(part, b"x" * min(1 << 20, part.end - part.at))
    assert world.keys() == {"other"}
    world.uploads.commit("a", job(), id_, size)
    assert world.keys() == {"other", "k"}


def test_an_upload_that_was_left_keeps_nobody_waiting(world: World) -> None:
    world.jobs |= {"a": job(), "b": job()}
    first = world.uploads.reserve("a", job(), "k", "v", 1)
    with pytest.raises(Refused) as refused:
        world.uploads.reserve("b", job(), "k", "v", 1)
    assert refused.value.why is Why.TAKEN
    again = world.uploads.reserve("a", job(), "k", "v", 1)  # its machine tries again
    with pytest.raises(Refused):
        world.uploads.claim("a", job(), first, 0, 1)
    world.jobs["a"] = job("org/two")  # its machine has gone, and the address is another one's
    last = world.uploads.reserve("b", job(), "k", "v", 1)
    with pytest.raises(Refused):
        world.uploads.claim("a", job(), again, 0, 1)
    world.uploads.write(world.uploads.claim("b", job(), last, 0, 1), b"x")
    world.uploads.commit("b", job(), last, 1)


def test_one_upload_of_a_key_at_a_time(world: World) -> None:
    world.jobs |= {"a": job(), "b": job()}
    first = world.uploads.reserve("a", job(), "k", "v", 1)
    with pytest.raises(Refused) as refused:
        world.uploads.reserve("b", job(), "k", "v", 1)
    assert refused.value.why is Why.TAKEN
    world.uploads.reserve("b", job(writes=TOPIC), "k", "v", 1)  # another scope
    world.uploads.reserve("b", job("org/two"), "k", "v", 1)
    world.uploads.drop("a", job(), first)
    world.uploads.reserve("b", job(), "k", "v", 1)


def test_a_machine_with_many_uploads(world: World) -> None:
    for number in range(world.limits.uploads):
        world.uploads.reserve("a", job(), str(number), "v", 1)
    with pytest.raises(Refused) as refused:
        world.uploads.reserve("a", job(), "one more", "v", 1)
    assert refused.value.why is Why.TOO_MANY
    world.uploads.reserve("b", job(), "one more", "v", 1)


def test_an_upload_in_too_many_pieces(worlds: Worlds) -> None:
    world = worlds(ranges=3)
    id_ = world.uploads.reserve("a", job(), "k", "v", 100)
    for begin in (0, 2, 4):
        world.uploads.write(world.uploads.claim("a", job(), id_, begin, begin + 1), b"x")
    part = world.uploads.claim("a", job(), id_, 6, 7)
    with pytest.raises(Refused) as refused:
        world.uploads.write(part, b"x")
    assert refused.value.why is Why.TOO_MANY


def test_a_job_that_may_only_read(world: World) -> None:
    with pytest.raises(Refused) as refused:
        world.uploads.reserve("a", job(writes=None), "k", "v", 1)
    assert refused.value.why is Why.MAY_NOT


def test_an_upload_of_which_nothing_comes_is_dropped(world: World) -> None:
    world.uploads.reserve("a", job(), "k", "v", 1)
    world.now += world.limits.idle + 1
    world.uploads.reserve("b", job(), "k", "v", 1)
    assert len(list((world.folder / "uploads").iterdir())) == 1


def test_beyond_what_was_announced(world: World) -> None:
    id_ = world.uploads.reserve("a", job(), "k", "v", 4)
    with pytest.raises(Refused) as refused:
        world.uploads.claim("a", job(), id_, 2, 5)
    assert refused.value.why is Why.TOO_LARGE


@pytest.mark.parametrize(
    ("added", "is_all", "ranges", "bytes_"),
    [
        ([(0, 4), (4, 9)], True, 1, 9),
        ([(4, 9), (0, 4)], True, 1, 9),
        ([(0, 9), (2, 3)], True, 1, 9),
        ([(2, 3), (0, 9)], True, 1, 9),
        ([(0, 3), (6, 9), (2, 7)], True, 1, 9),
        ([(0, 3), (4, 9)], False, 2, 8),
        ([(1, 9)], False, 1, 8),
        ([(0, 10)], False, 1, 10),
        ([(0, 1), (2, 3), (4, 5), (6, 7), (1, 6)], False, 1, 7),
        ([], False, 0, 0),
    ],
)
def test_ranges(added: list[tuple[int, int]], is_all: bool, ranges: int, bytes_: int) -> None:
    there = Ranges()
    for begin, end in added:
        there.add(begin, end)
    assert (there.is_all(9), len(there), there.bytes) == (is_all, ranges, bytes_)


@pytest.mark.parametrize("steps", ["aba", "aaba", "abaa", "abba"])
def test_parts_that_cross_do_not_spoil_what_others_have(world: World, steps: str) -> None:
    """Whoever knows a content may not put another one in its place."""
    known, fork = os.urandom(BLOCK), job(writes=PULL)
    world.save(job(), "k", known)
    id_ = world.uploads.reserve("f", fork, "k", "v", None)
    parts = {name: world.uploads.claim("f", fork, id_, 0, BLOCK) for name in "ab"}
    length = BLOCK // 4
    data = {"a": known, "b": bytes(BLOCK)}
    for name in steps:
        part = parts[name]
        world.uploads.write(part, data[name][part.at : part.at + length])
    for name in "ba"[: 2 if steps[-1] == "a" else 1]:
        part = parts[name]
        world.uploads.write(part, data[name][part.at :])
    world.uploads.commit("f", fork, id_, BLOCK)
    assert world.load(job(), "k") == known
    world.load(fork, "k")  # and it is what is in the file
    assert world.told == []


def test_a_job_of_the_repository_that_had_the_name_gives_the_new_one_nothing(world: World) -> None:
    before, now = (job(repository_id=number) for number in (5, 6))
    # In the middle of the new one's request.
    world.store.recognise(now)
    world.store.recognise(before)
    world.save(before, "k", b"evil")
    found = world.store.find(before, ("k",), "v")
    assert found
    assert world.find(now, "k") is None
    for do in (lambda: world.store.open(now, found.id), lambda: world.save(now, "other", b"x")):
        with pytest.raises(Refused):
            do()
    assert world.load(before, "k") == b"evil"


def _without_sums(world: World) -> None:
    """As an older vmrunner has left its index."""
    for trigger in ("entry_came", "entry_went", "blob_came", "blob_went"):
        world.store._database.execute(f"DROP TRIGGER {trigger}")
    for table in ("kept", "whole"):
        world.store._database.execute(f"DROP TABLE {table}")


def _sums(world: World) -> tuple[object, object]:
    """As they are kept, and what they should be."""
    database = world.store._database
    kept = database.execute(
        "SELECT lower(repository), entries, bytes FROM kept ORDER BY 1"
    ).fetchall()
    all_ = database.execute("SELECT entries, bytes FROM whole").fetchall()
    counted = database.execute(
        "SELECT lower(repository), count(*), sum(size + beside) FROM entries GROUP BY 1 ORDER BY 1"
    ).fetchall()
    whole = database.execute(
        "SELECT (SELECT count(*) FROM entries), (SELECT coalesce(sum(size), 0) FROM blobs) "
        "+ (SELECT coalesce(sum(beside), 0) FROM entries)"
    ).fetchall()
    return (kept, all_), (counted, whole)


def test_sums_are_kept_whatever_comes_and_goes(worlds: Worlds, world: World) -> None:
    """Nobody waits while a hundred thousand entries are summed up."""

    def right() -> bool:
        kept, counted = _sums(world)
        return kept == counted

    assert right()
    world.save(job(), "a", b"same")
    world.save(job("Org/Two"), "b", b"same")
    world.save(job("org/two"), "c", b"other")
    assert right()
    _without_sums(world)
    worlds()
    assert right()
    with pytest.raises(Refused):
        world.save(job(), "a", b"another")
    world.store.clear("org/tool")
    assert right()
    (blob, _) = sorted(world.files(), key=lambda each: each.stat().st_size)
    blob.write_bytes(b"")
    assert world.find(job("org/two"), "b") is None
    assert right()
    world.store.prune(0)
    assert right()
    assert _sums(world)[0] == ([], [(0, 0)])


def test_room_for_thousands_is_made_in_steps_between_which_others_get_on(worlds: Worlds) -> None:
    world = worlds(most=2000 * KiB, most_per_repository=2000 * KiB)
    for number in range(200):
        world.save(job(), f"k{number:03}", b"x" * (number + 1))
    kept: list[int] = []

    def others(_: float) -> None:
        found = in_another_thread(lambda: world.find(job(), "k199"))
        kept.append(len(world.keys()))
        assert found == "k199"
        assert len(list((world.folder / "blobs" / "aside").iterdir())) == 0

    world.store._rest = others
    world.now += 8 * 86400
    assert world.store.make_room("org/two", lambda: {"org/two": 1800 * KiB}) is None
    assert kept[0] == 200 - 64
    assert kept == sorted(kept, reverse=True)
    assert len(kept) >= 2


def test_thousands_of_a_repository_go_in_steps(world: World) -> None:
    for number in range(130):
        world.save(job(), f"k{number}", b"x")
    world.save(job("org/two"), "k", b"x")
    kept: list[int] = []
    world.store._rest = lambda _: kept.append(len(world.keys()))
    assert world.store.clear("org/tool").entries == 130
    assert kept == [130 - 64 + 1, 130 - 2 * 64 + 1]
    assert [each.repository for each in world.store.figures()] == ["org/two"]
    assert len(world.files()) == 1


def test_what_is_used_while_room_is_made_stays(worlds: Worlds) -> None:
    world = worlds(most=2000 * KiB, most_per_repository=2000 * KiB)
    for number in range(200):
        world.save(job(), f"k{number:03}", b"x")
    used: list[str | None] = []

    def others(_: float) -> None:
        if not used:  # one that was to go next
            used.append(world.find(job(), "k070"))

    world.store._rest = others
    world.now += 8 * 86400
    assert world.store.make_room("org/two", lambda: {"org/two": 1600 * KiB}) is None
    assert used == ["k070"]
    assert {"k070"} <= world.keys()
    assert sum(each.bytes for each in world.store.figures()) <= 400 * KiB


def in_another_thread(do: Callable[[], T]) -> T:
    """What it returns; whoever holds a lock must not keep it."""
    done: list[T] = []
    thread = threading.Thread(target=lambda: done.append(do()), daemon=True)
    thread.start()
    thread.join(20)
    assert done, "it gets on"
    return done[0]


def test_what_was_put_aside_is_removed_by_the_next_start(
    world: World, worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.save(job(), "k", b"x")
    monkeypatch.setattr(world.store._blobs, "throw_away", lambda _: None)  # a kill
    world.store.clear("org/tool")
    assert len(world.files()) == 1
    worlds().store.sweep()
    assert world.files() == []


def test_an_index_that_can_not_be_written_keeps_what_was_to_go(world: World) -> None:
    world.save(job(), "k", b"x")
    world.store._database.execute("PRAGMA query_only = 1")
    with pytest.raises(Refused):
        world.store.clear("org/tool")
    world.store._database.execute("PRAGMA query_only = 0")
    assert world.load(job(), "k") == b"x"


def test_uploads_that_are_over_are_soon_forgotten(world: World) -> None:
    for number in range(100):
        id_ = world.uploads.reserve("a", job(), f"k{number}", "v", 1)
        with pytest.raises(Refused):
            world.uploads.commit("a", job(), id_, 0)
    assert len(world.uploads._all) <= 2 * world.store.limits.uploads


def test_parts_that_had_room_each_do_not_fill_the_disk(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    id_ = world.uploads.reserve("a", job(), "k", "v", None)
    part = world.uploads.claim("a", job(), id_, 0, 10)

    def full(_: int) -> None:
        raise Refused(Why.NO_ROOM, "Full.")

    monkeypatch.setattr(world.store, "check_disk", full)
    with pytest.raises(Refused):
        world.uploads.write(part, b"x" * 10)


def test_a_cache_of_another_forge_has_nothing_for_this_one(world: World) -> None:
    world.store.belong_to("https://forge.example")
    world.save(job(repository_id=7), "k", b"x")
    world.store.belong_to("https://forge.example")
    assert world.find(job(repository_id=7), "k") == "k"
    world.store.belong_to("https://other.example")
    assert world.find(job(repository_id=7), "k") is None
    assert world.told == [
        "The cache was that of https://forge.example, and is that of https://other.example now: "
        "1 entries are removed."
    ]
    world.save(job(repository_id=7), "k", b"y")
    assert world.load(job(repository_id=7), "k") == b"y"


def test_an_index_from_before_a_column_was_there(worlds: Worlds, world: World) -> None:
    world.save(job(), "k", b"x")
    _without_sums(world)
    world.store._database.execute("ALTER TABLE entries DROP COLUMN beside")
    after = worlds()
    assert after.load(job(), "k") == b"x"
    assert after.store.figures()[0].bytes == 1 + 4096
    after.save(job(), "other", b"y")
