"""A promoted version whose first machines fail: the one before is current again, and no job is
lost. On the fakes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import FakeHypervisor
from tests.goldens import publish
from tests.world import POOL, World
from vmrunner.errors import DiskFull
from vmrunner.image.versions import diff, promotion, store
from vmrunner.image.versions.promotion import Why
from vmrunner.image.versions.store import MANIFEST
from vmrunner.manager.trial import Trial
from vmrunner.model.image import DISK
from vmrunner.model.job import JobState

NAME = "debian-12"
RUNNER = {"kind": "gitea-runner", "path": "/usr/local/bin/gitea-runner", "sha256": "0"}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """The versions 1, which has been current, and 2, which is."""
    made = World(tmp_path, pools={"p": POOL | {"max": 1}})
    made.publish("2", RUNNER | {"sha256": "2"})
    (tmp_path / "images" / NAME / "current").unlink()
    switch(made, "1")
    switch(made, "2")
    made.clock.now = 4_000_000_000.0  # promotions are written with the real time
    yield made
    made.history.close()


def switch(world: World, version: str) -> None:
    with promotion.changing(world.settings.images_dir, print):
        promotion.switch(world.settings.images_dir, NAME, version, Why.BUILT)


def current(world: World) -> str:
    return store.find(world.settings.images_dir, NAME).version


def fail(world: World, times: int) -> None:
    """So many machines go before they had a job."""
    for _ in range(times):
        world.clock.now += 1000
        world.up()
        (machine,) = world.machines()
        world.hypervisor.die(machine)
        world.up()


@pytest.mark.parametrize(
    ("trial", "after", "lost"),
    [
        (Trial("a/1", 3), 3, True),
        (Trial("a/1", 9), 3, True),
        (Trial("a/1", 2), 3, False),
        (Trial("a/1", 3, worked=True), 3, False),
        (Trial("a/1", 99), 0, False),
        (Trial("a/1"), 0, False),
        (Trial("a/1", 1), 1, True),
    ],
)
def test_when_a_version_is_lost(trial: Trial, after: int, lost: bool) -> None:
    assert trial.is_lost(after) is lost


def test_the_first_machines_fail_and_the_job_runs_on_the_version_before(world: World) -> None:
    world.forge.queue(1)
    fail(world, 2)
    assert current(world) == "2"
    fail(world, 1)
    world.up()
    assert current(world) == "1"
    (pool,) = world.manager.desired()
    assert pool.backoff is None, "the failures were another version's"
    assert pool.image_note.startswith("rolled back automatically at ")
    assert (
        "3 machines of debian-12/2 failed and none worked; last: it went before its runner took a "
        "job" in pool.image_note
    )
    assert ("image_rollbacks_total", "", NAME, 1.0) in [
        (t.name, t.pool, t.label, t.value) for t in world.history.totals()
    ]
    assert [
        fields["to"]
        for event, fields in world.log.lines
        if event == "image rolled back automatically"
    ] == ["1"]
    last = promotion.history(world.settings.images_dir, NAME)[-1]
    bad = store.version(world.settings.images_dir, NAME, "2").manifest
    assert (last.why, last.before, last.to, last.content) == (
        Why.STEPPED_BACK,
        "2",
        "1",
        diff.content(bad),
    )
    assert promotion.stepped_back_from(world.settings.images_dir, NAME) == {diff.content(bad)}
    (machine,) = world.machines()
    assert world.hypervisor.domains[machine].image == f"{NAME}/1", "in the pass that rolled it back"
    world.settle()
    assert world.forge.known[1].state is JobState.DONE
    assert world.forge.verdicts == {1: ["success"]}


def test_an_image_is_not_to_blame_for_a_disk_of_tools(world: World) -> None:
    """One that is not there, is an image, or can't be read."""
    world.configure({"p": POOL | {"tools": "tools"}})
    images = world.settings.images_dir
    world.forge.queue(1)
    for step in (lambda: None, lambda: publish(images, "1", name="tools"), lambda: spoil(images)):
        step()
        for _ in range(4):
            world.clock.now += 1000
            world.up()
    assert world.machines() == []
    assert current(world) == "2"


def spoil(images: Path) -> None:
    """What was published is a disk of tools, and half of it is gone."""
    manifest = images / "tools" / "1" / MANIFEST
    manifest.write_text(
        json.dumps(json.loads(manifest.read_text()) | {"tools": {"a/1.0.0/x64": ""}})
    )
    (manifest.parent / DISK).unlink()


def test_one_machine_that_worked_is_enough(world: World) -> None:
    world.forge.queue(1)
    world.settle()
    world.forge.queue(2)
    fail(world, 6)
    world.up()
    assert current(world) == "2"
    world.restart()
    world.up()
    assert current(world) == "2", "what is known of it is read again"


def test_the_version_before_stays_when_it_fails_too(world: World) -> None:
    world.forge.queue(1)
    fail(world, 6)
    world.up()
    assert current(world) == "1"
    assert [each.why for each in promotion.history(world.settings.images_dir, NAME)][2:] == [
        Why.STEPPED_BACK
    ]


def test_without_a_version_before_it_stays_and_status_says_so(tmp_path: Path) -> None:
    world = World(tmp_path)
    (tmp_path / "images" / NAME / "current").unlink()
    switch(world, "1")
    world.clock.now = 4_000_000_000.0
    world.forge.queue(1)
    fail(world, 3)
    world.up()
    (pool,) = world.manager.desired()
    assert current(world) == "1"
    assert pool.image_note.endswith("; there is no version to go back to")
    assert pool.backoff
    assert pool.backoff.failures == 3
    world.history.close()


def test_never_where_it_is_told_so(world: World) -> None:
    world.configure({"p": POOL | {"max": 1}}, images={"rollback_after": 0})
    world.forge.queue(1)
    fail(world, 5)
    world.up()
    assert current(world) == "2"


@pytest.mark.parametrize("how", ["another sha256", "no manifest"])
def test_a_version_that_can_not_be_brought_to_the_host(
    world: World, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    folder = world.settings.images_dir / NAME / "2"
    if how == "no manifest":
        (folder / MANIFEST).write_text("{")
    else:
        (folder / "disk.qcow2").write_bytes(b"half of it")
        text = (
            (folder / MANIFEST).read_text().replace('"files": {}', '"files": {"disk.qcow2": "00"}')
        )
        (folder / MANIFEST).write_text(text)
        prepare = world.hypervisor.prepare
        monkeypatch.setattr(
            world.hypervisor, "prepare", lambda golden: (store.verify(golden), prepare(golden))
        )
    world.forge.queue(1)
    for _ in range(3):
        assert current_link(world) == "2"
        world.up()
        world.clock.now += 1000
    world.settle()
    assert current(world) == "1"
    assert world.forge.verdicts == {1: ["success"]}


def current_link(world: World) -> str:
    return promotion.current(world.settings.images_dir, NAME)


def test_a_full_disk_is_the_hosts_fault(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise DiskFull("The storage pool has no room.", "")

    monkeypatch.setattr(FakeHypervisor, "prepare", full)
    world.forge.queue(1)
    for _ in range(5):
        world.up()
        world.clock.now += 1000
    assert current(world) == "2"


def test_a_version_before_that_is_damaged_is_passed_over(world: World) -> None:
    world.publish("3", RUNNER | {"sha256": "3"})
    (world.settings.images_dir / NAME / "current").unlink()
    (world.settings.images_dir / NAME / "current").symlink_to("2")
    switch(world, "3")
    (world.settings.images_dir / NAME / "2" / MANIFEST).write_text("{")
    world.forge.queue(1)
    fail(world, 3)
    world.up()
    assert current(world) == "1"
    shutil.rmtree(world.settings.images_dir / NAME / "3")
    world.settle()


def test_a_promotion_by_hand_is_a_new_trial(world: World) -> None:
    world.forge.queue(1)
    fail(world, 3)
    world.up()
    assert current(world) == "1"
    promotion.promote(world.settings.images_dir, NAME, "2", print, force=True)
    assert promotion.history(world.settings.images_dir, NAME)[-1].forced
    assert world.history.trial(f"{NAME}/2", 0).failed == 3
    assert world.history.trial(f"{NAME}/2", world.clock.now + 1).failed == 0, (
        "machines of before do not count"
    )


def test_a_newer_version_that_was_found_bad_is_said(world: World) -> None:
    world.forge.queue(1)
    world.settle()
    publish(world.settings.images_dir, "3", name=NAME, promote=False, verified=False)
    (pool,) = world.manager.desired()
    assert (
        pool.image_note
        == "the newer version 3 was found bad and is not used; `vmrunner image verify debian-12/3` "
        "says why"
    )
