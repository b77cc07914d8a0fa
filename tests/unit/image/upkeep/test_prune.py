"""What of old images goes, and what may never go: whatever a machine or a file on the host
needs.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import Killed
from tests.goldens import publish
from tests.world import POOL, World
from vmrunner.errors import Busy, ImageError
from vmrunner.hypervisor.seam import Volume
from vmrunner.image.build import bootstrap
from vmrunner.image.upkeep import prune
from vmrunner.image.upkeep.prune import Waste
from vmrunner.image.versions import promotion, store, workshop
from vmrunner.machine.ownership import owning
from vmrunner.model.machine import MachineId, Metadata

NAME = "debian-12"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """The versions 2 to 6 on the host; 6 is current."""
    made = World(tmp_path, pools={"p": POOL | {"start": "auto"}})
    for version in "23456":
        made.hypervisor.prepare(publish(made.settings.images_dir, version, name=NAME))
    yield made
    made.history.close()


def run(world: World, keep: int = 1, name: str | None = None) -> Waste:
    would = prune.find(world.hypervisor, world.settings, name, keep)
    done = prune.prune(world.hypervisor, world.settings, name, keep, world.log.info)
    assert done == would, "a dry run says what is done"
    return done


def versions(world: World) -> str:
    return "".join(store.versions(world.settings.images_dir, NAME))


def overlay(world: World, version: str, *, cloned: bool = False) -> MachineId:
    golden = store.version(world.settings.images_dir, NAME, version)
    machine, shape = MachineId.new("m", "0a0b0c0d"), world.settings.pools["p"].shape
    snapshot = (
        world.hypervisor.snapshots.make(golden, shape, machine, b"", 1, print) if cloned else None
    )
    world.hypervisor.machines.create_overlay(machine, golden, 1, snapshot)
    return machine


def test_current_and_the_newest_stay(world: World) -> None:
    promotion.promote(world.settings.images_dir, NAME, "3", print)
    done = run(world, keep=2)
    assert done.versions == ((NAME, "1"), (NAME, "2"), (NAME, "4"))
    assert versions(world) == "356"
    assert {name.split(".")[0] for name in world.hypervisor.published} == {
        "image-debian-12-3",
        "image-debian-12-5",
        "image-debian-12-6",
    }
    assert not run(world, keep=2)
    assert sorted(path.name for path in (world.settings.images_dir / NAME).iterdir()) == [
        "3",
        "5",
        "6",
        "current",
        "promotions.jsonl",
    ]


def test_what_an_overlay_lies_on_stays_until_the_overlay_goes(world: World) -> None:
    machine = overlay(world, "2")
    run(world)
    assert versions(world) == "26"
    assert "image-debian-12-2.disk.qcow2" in world.hypervisor.published
    assert "image-debian-12-2.manifest.json" in world.hypervisor.published, "all of it stays"
    world.hypervisor.machines.destroy(machine)
    run(world)
    assert versions(world) == "6"


def test_what_a_live_machine_names_stays(world: World) -> None:
    machine = MachineId.new("m", "0a0b0c0d")
    # Its files were deleted by hand.
    world.hypervisor.domains[machine] = Metadata(machine, "p", f"{NAME}/4", 0.0)
    run(world)
    assert versions(world) == "46"


def test_a_snapshot_goes_with_its_version_unless_a_machine_was_cloned_from_it(world: World) -> None:
    used, unused = overlay(world, "2", cloned=True), overlay(world, "3", cloned=True)
    world.hypervisor.machines.destroy(unused)
    done = run(world)
    assert len(done.snapshots) == 1
    assert [each.image for each in world.hypervisor.snapshots.all()] == [f"{NAME}/2"]
    assert versions(world) == "26"
    world.hypervisor.machines.destroy(used)
    run(world)
    assert (versions(world), world.hypervisor.snapshots.all()) == ("6", [])


def test_a_snapshot_of_a_version_that_stays_stays(world: World) -> None:
    world.hypervisor.machines.destroy(overlay(world, "6", cloned=True))
    assert run(world).snapshots == ()


def test_volumes_of_versions_that_the_store_has_not_any_more_go(world: World) -> None:
    world.hypervisor.published += [
        "image-lost-7.disk.qcow2",
        "image-lost-7.vmlinuz",
        "image-lost-8.disk.qcow2",
        "image-lost-8.vmlinuz",
    ]
    machine = MachineId.new("m", "0a0b0c0d")
    world.hypervisor.machines.create_overlay(
        machine, publish(world.settings.images_dir.parent / "other", "8", name="lost"), 1
    )
    done = run(world, keep=9)
    assert done.volumes == ("image-lost-7.disk.qcow2", "image-lost-7.vmlinuz"), (
        "the kernel of an image in use is in use"
    )
    world.hypervisor.machines.destroy(machine)
    assert len(run(world, keep=9).volumes) == 2


def test_one_image_alone(world: World) -> None:
    publish(world.settings.images_dir, "1", name="debian")
    world.hypervisor.published += ["image-debian-0.disk.qcow2"]
    assert run(world, name="debian") == Waste(volumes=("image-debian-0.disk.qcow2",)), (
        "debian-12 is another image"
    )
    assert versions(world) == "123456"
    with pytest.raises(ImageError, match="There is no image 'nowhere'"):
        run(world, name="nowhere")


def test_machines_that_are_being_made_are_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = MachineId.new("m", "0a0b0c0d")
    monkeypatch.setattr(prune, "_SETTLES_WITHIN", 0.0)
    with owning(world.settings.runtime_dir, machine):
        with pytest.raises(Busy, match=f"{machine} is being made"):
            run(world)
        assert versions(world) == "123456"
        world.hypervisor.machines.create_overlay(
            machine, store.version(world.settings.images_dir, NAME, "1"), 1
        )
        run(world)
    assert versions(world) == "16"


@pytest.mark.parametrize(
    ("path", "ours"),
    [
        ("/pool/image-debian-12-2.disk.qcow2", True),
        ("/second/path/by/symlink/image-debian-12-2.disk.qcow2", True),
        ("/pool/../pool/image-debian-12-2.disk.qcow2", False),
        ("{images}/debian-12/2/disk.qcow2", False),
    ],
)
def test_a_file_of_any_name_in_any_managers_pool_counts(
    world: World, monkeypatch: pytest.MonkeyPatch, path: str, ours: bool
) -> None:
    found = world.hypervisor.images.volumes()
    found.append(
        Volume(
            "someone.qcow2",
            "/elsewhere/someone.qcow2",
            path.format(images=world.settings.images_dir),
            ours,
        )
    )
    monkeypatch.setattr(world.hypervisor.images, "volumes", lambda: found)
    assert (NAME, "2") not in prune.find(world.hypervisor, world.settings, None, 1).versions
    found[-1] = Volume(
        "someone.qcow2",
        "/elsewhere/someone.qcow2",
        "/elsewhere/image-debian-12-2.disk.qcow2",
        False,
    )
    assert (NAME, "2") in prune.find(world.hypervisor, world.settings, None, 1).versions, (
        "a copy of another manager's"
    )


def test_killed_at_any_step_the_next_one_finishes(world: World) -> None:
    for step in range(20):
        overlay(world, "2", cloned=True)
        world.hypervisor.machines.destroy(overlay(world, "3", cloned=True))
        world.doom.after, world.doom.dead = step, False
        try:
            prune.prune(world.hypervisor, world.settings, None, 1, world.log.info)
        except Killed:
            world.restart()
            bases = {
                volume.backing for volume in world.hypervisor.images.volumes() if volume.backing
            }
            assert bases <= {volume.path for volume in world.hypervisor.images.volumes()}
            continue
        break
    world.restart()
    assert step == 2, "one snapshot, and the volumes"
    assert versions(world) == "26"
    assert not run(world)


def test_half_a_removal_is_finished(world: World) -> None:
    gone = world.settings.images_dir / NAME / ".gone-0"
    gone.mkdir()
    run(world, keep=9)
    assert not gone.exists()


def layer(images: Path, name: str, *, made: float, used: float = 0.0, lasts: bool = False) -> None:
    """Bootstrapped packages that a build kept: `made` and `used` so many seconds ago."""
    folder = images / workshop.CACHE
    folder.mkdir(parents=True, exist_ok=True)
    now = time.time()
    (folder / f"{name}.tar").write_text("a tar")
    (folder / f"{name}.json").write_text(bootstrap.Layer("0", now - made, {}, lasts).text())
    os.utime(folder / f"{name}.json", (now - used, now - used))


def test_what_builds_left_goes_too(world: World) -> None:
    images, day = world.settings.images_dir, 86400.0
    layer(images, "today", made=day / 2)
    layer(images, "old", made=day * 1.5)
    layer(images, "snapshot", made=day * 30, used=day, lasts=True)
    layer(images, "unused", made=day * 30, used=day * 8, lasts=True)
    (images / ".cache" / "torn.json").write_text("{")
    gone = subprocess.run(
        ["sh", "-c", "echo $$"], capture_output=True, text=True, check=True
    ).stdout.strip()
    for name in (f".part-{gone}", f".part-{gone}.json", f".part-{os.getpid()}", "someone's"):
        (images / ".cache" / name).touch()
    for pid in (gone, os.getpid()):
        (images / f".building-{pid}" / "out").mkdir(parents=True)
    logs = [Path(workshop.log(images, f"web-{number:02}")) for number in range(22)]
    for number, log in enumerate(logs):
        log.touch()
        os.utime(log, (time.time() - day * (22 - number),) * 2)
    assert run(world, keep=9, name=NAME) == Waste(), "those are of no one image"
    done = run(world, keep=9)
    wanted = {
        f".cache/{each}"
        for each in (
            "old.json",
            "old.tar",
            "unused.json",
            "unused.tar",
            "torn.json",
            f".part-{gone}",
        )
    }
    wanted |= {
        f".cache/.part-{gone}.json",
        f".building-{gone}",
        ".log/web-00.log",
        ".log/web-01.log",
    }
    assert (set(done.leftovers), done.versions) == (wanted, ())
    left = {path.name for path in (images / ".cache").iterdir()}
    assert left == {
        "today.json",
        "today.tar",
        "snapshot.json",
        "snapshot.tar",
        f".part-{os.getpid()}",
        "someone's",
    }
    assert [path.name for path in images.glob(".building-*")] == [f".building-{os.getpid()}"]
    os.utime(logs[-1], (time.time() - day * 31,) * 2)
    assert run(world, keep=9).leftovers == (".log/web-21.log",)
    assert len(list((images / ".log").iterdir())) == 19
    for number in range(5):
        layer(images, f"more{number}", made=60.0, used=10.0 - number)
    assert {each.split(".")[1] for each in run(world, keep=9).leftovers} == {
        "cache/snapshot",
        "cache/more0",
        "cache/more1",
    }


def test_a_builds_file_that_goes_meanwhile_is_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    assert list(workshop.used([tmp_path / "gone", tmp_path / "there"])) == [tmp_path / "there"]
