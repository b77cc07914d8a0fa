"""What is remembered of snapshots, and which of them go."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.world import POOL, World
from vmrunner.errors import SnapshotError
from vmrunner.image.versions import store
from vmrunner.machine import launch
from vmrunner.machine.clones import Shelf
from vmrunner.machine.launch import Launch
from vmrunner.model.machine import MachineId, Metadata

DAY = 86400.0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(
        tmp_path,
        pools={"p": POOL | {"start": "auto"}, "big": POOL | {"start": "auto", "memory": "8GiB"}},
    )
    yield made
    made.history.close()


def is_cloned(world: World, pool: str) -> bool:
    """Whether the next machine is a clone."""
    golden, section = store.find(world.settings.images_dir, "debian-12"), world.settings.pools[pool]
    metadata = Metadata(MachineId.new("m", "0a0b0c0d"), pool, golden.id, world.clock.now)
    wanted = Launch(metadata, golden, section.shape, shelf=world.manager.shelf, clock=world.clock)
    return bool(launch.park(world.hypervisor, wanted, "rehearsal").snapshot)


def test_one_that_nobody_uses_goes_when_another_one_is_made(world: World) -> None:
    used, unused = world.make_snapshot("p"), world.make_snapshot("big")
    world.clock.now += 6 * DAY
    assert is_cloned(world, "p")
    world.clock.now += 3 * DAY
    world.publish("2", {"kind": "gitea-runner", "path": "/r", "sha256": "0"})
    made = world.make_snapshot("p")
    assert {each.key for each in world.hypervisor.snapshots.all()} == {used.key, made.key}
    assert f"snapshot {unused.key}: dropped, nobody uses it any more" in [
        event for event, _ in world.log.lines
    ]


@pytest.mark.parametrize(
    "other", [{"qemu": "9.9.9"}, {"libvirt": "9.0.0"}, {"basis": "another kernel"}]
)
def test_one_of_another_qemu_or_host_goes_at_once(world: World, other: dict[str, str]) -> None:
    old = world.make_snapshot("big")
    world.hypervisor.kept[old.key] = replace(old, **other)
    made = world.make_snapshot("p")
    assert world.hypervisor.snapshots.all() == [made]


def test_one_that_fails_rests_longer_each_time_and_is_forgiven_when_it_works(world: World) -> None:
    world.hypervisor.clones_fail = True
    for wait in (600, 1200, 2400):
        key = world.make_snapshot("p").key
        assert not is_cloned(world, "p")
        assert world.hypervisor.snapshots.all() == [], "it is retired"
        world.clock.now += wait - 1
        assert world.manager.shelf.failure(key)
        assert "p" not in world.manager.survey().missing_snapshots()
        world.clock.now += 2
        assert "p" in world.manager.survey().missing_snapshots()
    world.clock.now -= 10000
    assert world.manager.shelf.failure(key) is None, "a clock that was set back holds nothing up"
    world.hypervisor.clones_fail = False
    world.make_snapshot("p")
    assert is_cloned(world, "p")
    assert 'failed": {}' in (world.folder / "snapshots.json").read_text()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"failed": {"k": 1}, "used": {}}', '{"failed": {}, "used": {"k": "x"}}'],
)
def test_a_damaged_memory_is_no_memory(tmp_path: Path, text: str) -> None:
    (tmp_path / "snapshots.json").write_text(text)
    shelf = Shelf(tmp_path)
    assert shelf.failure("k") is None
    shelf.failed("k", SnapshotError("why", denied=True))
    failure = shelf.failure("k")
    assert failure
    assert (failure.cause, failure.count, failure.denied) == ("why", 1, True)


def test_a_failure_that_an_older_vmrunner_wrote_down_counts(tmp_path: Path) -> None:
    old = {"failed": {"k": {"cause": "why", "count": 2, "at": 100.0}}, "used": {}}
    (tmp_path / "snapshots.json").write_text(json.dumps(old))
    failure = Shelf(tmp_path, lambda: 101.0).failure("k")
    assert failure
    assert (failure.count, failure.denied) == (2, False)


def test_a_folder_that_cant_be_written_is_borne() -> None:
    shelf = Shelf(Path("/proc/nowhere"))
    shelf.failed("k", SnapshotError("why"))
    shelf.works("k")
    assert shelf.failure("k") is None
