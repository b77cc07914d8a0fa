"""What doctor says of pools' images: labels whose jobs run in a container, on images that have
Docker and on such that have not; a snapshot that could not be made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.world import MANIFEST, POOL, World
from vmrunner.doctor import images
from vmrunner.doctor.findings import Level
from vmrunner.errors import SnapshotError
from vmrunner.machine.clones import Shelf

BOXED = POOL | {"labels": ["a", "node:docker://node:22"]}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, pools={"p": BOXED, "plain": POOL | {"labels": ["b", "c:host"]}})
    yield made
    made.history.close()


def made_of(world: World, *packages: str, **changed: Any) -> None:
    manifest = MANIFEST | {"packages": dict.fromkeys(packages, "1")} | changed
    (world.folder / "images" / "debian-12" / "1" / "manifest.json").write_text(json.dumps(manifest))


def notes(world: World) -> list[str]:
    return [pool.image_note for pool in world.manager.desired()]


def findings(world: World) -> list[tuple[Level, str, str]]:
    host: Any = SimpleNamespace()  # pools that boot ask it for nothing
    return [
        (each.level, each.said, each.fix)
        for each in images.look(world.settings, host)
        if "Docker" in each.said
    ]


def test_an_image_without_docker_is_told(world: World) -> None:
    made_of(world, "git")
    said = "jobs for node run in a container, and the image debian-12 has no Docker"
    assert notes(world) == [said, ""]
    ((level, found, fix),) = findings(world)
    assert (level, found) == (Level.WARNING, f"Pool p: {said}.")
    assert "debian-13-docker" in fix


@pytest.mark.parametrize("package", ["docker.io", "docker-ce", "podman-docker"])
def test_an_image_with_docker_is_not(world: World, package: str) -> None:
    made_of(world, "git", package)
    assert (notes(world), findings(world)) == (["", ""], [])


def test_nor_is_one_whose_docker_a_check_looks_at_or_whose_packages_nobody_knows(
    world: World,
) -> None:
    made_of(world, "git", checks={"docker": "docker version"})
    assert (notes(world), findings(world)) == (["", ""], [])
    made_of(world)
    assert (notes(world), findings(world)) == (["", ""], [])


@pytest.mark.parametrize(("has_apparmor", "denied"), [(True, True), (True, False), (False, True)])
def test_a_snapshot_that_was_denied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_apparmor: bool, denied: bool
) -> None:
    world = World(tmp_path, pools={"p": POOL | {"start": "auto"}})
    made_of(world)
    shelf = Shelf(world.settings.state_dir)
    shelf.failed("the-key", SnapshotError("libvirt does not permit it.", denied=denied))
    host: Any = SimpleNamespace(find=lambda *_: None, key=lambda *_: "the-key")
    monkeypatch.setattr(images, "_has_apparmor", lambda: has_apparmor)
    (fix,) = [each.fix for each in images.look(world.settings, host) if each.check == "snapshot"]
    world.history.close()
    assert ("snapshot apparmor" in fix) is (has_apparmor and denied)


@pytest.mark.parametrize(
    ("runner", "git", "said"),
    [
        ("1.0.8", None, ""),
        ("2.0.0", None, "it has no package git"),
        ("2.0.0", "1:2.30.2-1+deb11u4", "its git is 2.30.2"),
        ("5.3.0", "1:2.34.0-1", "its git is 2.34.0"),
        ("5.3.0", "1:2.34.1-1ubuntu1.15", ""),
        ("5.3.0", "1:2.47.3-0+deb13u1", ""),
    ],
)
def test_a_git_that_is_too_old_for_the_runner(
    world: World, runner: str, git: str | None, said: str
) -> None:
    packages = {"bash": "5"} | ({"git": git} if git else {})
    carried = {"kind": "gitea-runner", "path": "/x", "sha256": "0", "version": runner}
    made_of(world, packages=packages, runner=carried)
    host: Any = SimpleNamespace()
    found = [each for each in images.look(world.settings, host) if "fetches actions" in each.said]
    assert [each.level for each in found] == ([Level.WARNING] * 2 if said else [])
    assert all(each.said.endswith(f"{said}.") for each in found)


@pytest.mark.parametrize(
    ("image", "said", "fix"),
    [
        ("debian-13-full", "The image debian-13-full is not built yet.", "image build debian-13-f"),
        ("debain", "There is no image 'debain'. There are: debian-12.", "Is the name right?"),
    ],
)
def test_an_image_that_is_not_there(tmp_path: Path, image: str, said: str, fix: str) -> None:
    made = World(tmp_path, pools={"p": POOL | {"image": image}})
    host: Any = SimpleNamespace()
    (found,) = images.look(made.settings, host)
    made.history.close()
    assert (found.level, found.said) == (Level.ERROR, said)
    assert fix in found.fix
