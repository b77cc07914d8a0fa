"""Disks of tools on the fakes: who is made with one, who is told of it, which versions stay."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.goldens import publish
from tests.unit.machine.test_seed import config, told
from tests.world import POOL, World
from vmrunner.doctor import configuration, images
from vmrunner.doctor.findings import Level
from vmrunner.errors import ImageError
from vmrunner.hypervisor.seam import File
from vmrunner.image.upkeep import prune
from vmrunner.image.upkeep.rotation import Stage, used
from vmrunner.image.versions import diff, promotion, store
from vmrunner.model.image import Golden
from vmrunner.model.machine import MachineId

GO = {"go/1.26.0/x64": "0" * 64}
CLONED = POOL | {"tools": "tools", "start": "snapshot"}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, pools={"p": POOL | {"tools": "tools"}})
    yield made
    made.history.close()


def tools(world: World, version: str, **more: Any) -> Golden:
    return publish(
        world.settings.images_dir, version, name="tools", inputs={}, **{"tools": GO} | more
    )


def test_a_machine_has_the_disk_and_its_job_is_told(world: World) -> None:
    tools(world, "1")
    world.forge.queue(1)
    assert world.up() == (1, 0, 0, 0)
    (machine,) = world.machines()
    assert world.manager.desired()[0].image_note == ""
    assert world.hypervisor.domains[machine].tools == "tools/1"
    assert "image-tools-1.disk.qcow2" in world.hypervisor.published
    script = world.hypervisor.files[machine, File.SEED].decode("utf-8", "replace")
    script = script[script.index("#!/usr/bin/python3") :]
    assert told(script)["tools"] is True
    envs = config(script)["runner"]["envs"]
    place = "/opt/hostedtoolcache"
    assert envs == {"RUNNER_TOOL_CACHE": place, "AGENT_TOOLSDIRECTORY": place}


def test_another_pools_machine_has_none(tmp_path: Path) -> None:
    world = World(tmp_path)
    tools(world, "1")
    world.forge.queue(1)
    world.up()
    (machine,) = world.machines()
    assert world.hypervisor.domains[machine].tools == ""
    assert not any("tools" in name for name in world.hypervisor.published)


def test_a_warm_machine_is_told_of_the_disk_that_it_has(tmp_path: Path) -> None:
    world = World(tmp_path, pools={"p": POOL | {"tools": "tools", "warm": 1}})
    tools(world, "1")
    world.up()
    (machine,) = world.machines()
    world.step(machine)
    shutil.rmtree(world.settings.images_dir / "tools")  # no machine can be made now; this one is
    world.forge.queue(1)
    world.pass_time(10, 5)
    metadata = world.hypervisor.domains[machine]
    assert (metadata.is_bound, metadata.tools) == (True, "tools/1")
    script = world.hypervisor.files[machine, File.SEED].decode("utf-8", "replace")
    assert "AGENT_TOOLSDIRECTORY" in script


@pytest.mark.parametrize("kind", ["warm", "register_idle"])
def test_machines_that_wait_stay_while_their_disk_is_the_current_one(
    tmp_path: Path, kind: str
) -> None:
    """Or is gone: what there is still has it."""
    world = World(tmp_path, pools={"p": POOL | {"tools": "tools", kind: 1}})
    tools(world, "1")
    world.up()
    first = world.machines()
    for _ in range(3):
        world.step(first[0])
        world.pass_time(300, 50)
    shutil.rmtree(world.settings.images_dir / "tools")
    world.pass_time(100, 50)
    assert world.machines() == first
    assert len(first) == 1


def test_a_warm_machine_goes_when_its_pool_has_no_tools_any_more(tmp_path: Path) -> None:
    world = World(tmp_path, pools={"p": POOL | {"tools": "tools", "warm": 1}})
    tools(world, "1")
    world.up()
    (machine,) = world.machines()
    world.step(machine)
    world.configure({"p": POOL | {"warm": 1}})
    world.up()
    world.up()
    (other,) = world.machines()
    assert (other != machine, world.hypervisor.domains[other].tools) == (True, "")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (None, "There is no image 'tools'"),
        ({"tools": {}}, "tools is an image, and no disk of tools."),
    ],
)
def test_a_disk_that_is_none_starts_nothing(
    world: World, more: dict[str, Any] | None, said: str
) -> None:
    if more is not None:
        tools(world, "1", **more)
    world.forge.queue(1)
    assert world.up() == (0, 0, 0, 1)
    assert world.machines() == []
    (row,) = world.history.all()
    assert said in row.reason
    (pool,) = world.manager.desired()
    assert (pool.image, "no disk of tools tools" in pool.image_note) == ("debian-12/1", True)


def test_no_machine_starts_from_a_disk_of_tools(world: World) -> None:
    tools(world, "1")
    with pytest.raises(ImageError, match="tools is a disk of tools: no machine starts from it"):
        store.for_machines(world.settings.images_dir, "tools")


def test_a_new_version_has_its_snapshot_before_it_is_current(tmp_path: Path) -> None:
    world = World(tmp_path, pools={"p": CLONED})
    tools(world, "1")
    stage = Stage(world.hypervisor, world.settings, say=print)
    stage.go_live(tools(world, "2", promote=False, verified=None))
    images_dir, shape = world.settings.images_dir, world.settings.pools["p"].shape
    assert promotion.current(images_dir, "tools") == "2"
    kept = world.hypervisor.snapshots.all()
    assert [(each.image, each.tools) for each in kept] == [("debian-12/1", "tools/2")]
    golden = store.for_machines(images_dir, "debian-12", "tools")
    assert world.hypervisor.snapshots.find(golden, shape) == kept[0]
    # It is not the one of machines without tools.
    assert world.hypervisor.snapshots.find(store.find(images_dir, "debian-12"), shape) is None
    assert used(world.settings, ()) == ["debian-12", "tools"]


def test_an_images_new_version_has_one_with_the_tools_that_are_current(tmp_path: Path) -> None:
    world = World(tmp_path, pools={"p": CLONED, "plain": POOL | {"start": "snapshot"}})
    tools(world, "1")
    world.hypervisor.now = time.time  # by which a snapshot that was made long ago goes
    stage = Stage(world.hypervisor, world.settings, say=print)
    stage.make_snapshots(store.find(world.settings.images_dir, "debian-12"))
    kept = world.hypervisor.snapshots.all()
    assert sorted(each.tools for each in kept) == ["", "tools/1"]


def made(world: World, image: Golden, number: int) -> None:
    """A snapshot of such machines, as `snapshot create` makes it."""
    world.hypervisor.prepare(image)
    shape, machine = world.settings.pools["p"].shape, MachineId("m", f"0a0b0c0{number}")
    world.hypervisor.snapshots.make(image, shape, machine, b"", 1, print)


def test_what_no_pool_has_keeps_its_snapshot_with_a_new_version_of_either(tmp_path: Path) -> None:
    """Flavors for GARM name no image, and `exec` is no pool: what there is says what is wanted."""
    world = World(tmp_path)
    images_dir = world.settings.images_dir
    tools(world, "1")
    made(world, store.for_machines(images_dir, "debian-12", "tools"), 1)
    world.hypervisor.now = time.time
    stage = Stage(world.hypervisor, world.settings, say=print)
    stage.go_live(tools(world, "2", promote=False, verified=None))
    image = publish(images_dir, "9", name="debian-12", promote=False)
    stage.make_snapshots(image)
    kept = {(each.image, each.tools) for each in world.hypervisor.snapshots.all()}
    assert {("debian-12/1", "tools/2"), ("debian-12/9", "tools/2")} <= kept
    # What is not current any more is not made anew; nor is one for another image.
    assert ("debian-12/9", "tools/1") not in kept
    other = publish(images_dir, "1", name="other")
    before = world.hypervisor.snapshots.all()
    stage.make_snapshots(other)
    assert world.hypervisor.snapshots.all() == before


FLAVORS = {"small": {"memory": "1GiB", "tools": "tools"}}


def test_a_flavors_disk_is_looked_at_and_renewed(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.configure({"p": POOL}, garm={"flavors": FLAVORS})
    host: Any = None
    faults = [each.said for each in configuration.look(world.settings, host)]
    assert "garm.flavors.small.tools: there is no image tools on this host yet." in faults

    def said() -> list[tuple[Level, str]]:
        found = images.look(world.settings, world.hypervisor.snapshots)
        return [(each.level, each.said) for each in found if "tools" in each.said]

    assert [level for level, _ in said()] == [Level.ERROR]
    golden = tools(world, "1")
    assert said() == [(Level.GOOD, "tools/1 is as its manifest says, and has go/1.26.0")]
    (golden.directory / "disk.qcow2").write_bytes(b"another")
    assert [level for level, _ in said()] == [Level.ERROR]
    assert used(world.settings, ()) == ["debian-12", "tools"]
    assert used(world.settings, ["one"]) == ["one"]


def test_a_version_that_a_machine_has_stays_and_others_go_with_their_snapshots(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, pools={"p": CLONED})
    for version in "123":
        golden = tools(world, version)
        image = store.for_machines(world.settings.images_dir, "debian-12", "tools")
        world.hypervisor.prepare(image)
        machine = MachineId("m", f"0a0b0c0{version}")
        shape = world.settings.pools["p"].shape
        world.hypervisor.snapshots.make(image, shape, machine, b"", 1, print)
        assert image.tools == golden
        if version == "2":
            world.forge.queue(1)
            world.up()
    keys = {each.tools: each.key for each in world.hypervisor.snapshots.all()}
    would = prune.find(world.hypervisor, world.settings, None, 1)
    done = prune.prune(world.hypervisor, world.settings, None, 1, print)
    assert done == would
    assert done.versions == (("tools", "1"),)
    assert done.snapshots == (keys["tools/1"],)
    assert "image-tools-1.disk.qcow2" in done.volumes
    assert store.versions(world.settings.images_dir, "tools") == ["2", "3"]


def test_what_differs_is_told(world: World) -> None:
    one, two = tools(world, "1"), tools(world, "2", tools={"go/1.26.0/x64": "1" * 64, "a/1/x": "2"})
    assert diff.between(one, one).is_empty
    found = diff.between(one, two)
    assert set(found.tools) == {"go/1.26.0/x64", "a/1/x"}
    assert not found.is_empty
    assert diff.content(one.manifest) != diff.content(two.manifest)


def test_doctor_looks_at_it(world: World) -> None:
    def said() -> list[tuple[Level, str]]:
        return [
            (each.level, each.said)
            for each in images.look(world.settings, world.hypervisor.snapshots)
            if "tools" in each.said
        ]

    assert said() == [(Level.ERROR, "There is no image 'tools'. There are: debian-12.")]
    host: Any = None
    faults = [each.said for each in configuration.look(world.settings, host)]
    assert "pools.p.tools: there is no image tools on this host yet." in faults
    golden = tools(world, "1")
    assert said() == [(Level.GOOD, "tools/1 is as its manifest says, and has go/1.26.0")]
    (golden.directory / "disk.qcow2").write_bytes(b"another")
    ((level, fault),) = said()
    assert (level, "is damaged" in fault) == (Level.ERROR, True)
