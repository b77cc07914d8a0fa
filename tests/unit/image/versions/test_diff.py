"""What differs between two images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.golden import PACKAGES, package, publish
from vmrunner.cli import image_cmd
from vmrunner.config import HostConfig
from vmrunner.errors import ImageError
from vmrunner.image.versions import diff, store
from vmrunner.image.versions.diff import Change

RUNNER = {"kind": "forgejo-runner", "path": "/usr/local/bin/forgejo-runner", "sha256": "f" * 64}


def test_an_image_does_not_differ_from_itself(tmp_path: Path) -> None:
    golden = publish(tmp_path)
    assert diff.between(golden, golden).is_empty


def test_everything_that_can_differ(tmp_path: Path) -> None:
    one = publish(
        tmp_path,
        version="1",
        inputs={"/a": {"mode": "0644", "sha256": "a"}, "/b": {"mode": "0644", "sha256": "b"}},
    )
    changed = {
        "curl": package("8.2"),
        "git": package("1:2.39.5-0+deb12u2", "rebuilt"),
        "jq": package("1"),
    }
    inputs = {
        "/a": {"mode": "0755", "sha256": "a"},
        "/b": {"mode": "0644", "sha256": "b"},
        "/c": {"mode": "0644", "sha256": "c"},
    }
    two = publish(
        tmp_path,
        version="2",
        packages=changed,
        inputs=inputs,
        runner=RUNNER,
        kernel="6.2",
        kernel_arguments="quiet",
        recipe_digest="1" * 64,
    )
    found = diff.between(one, two)
    assert not found.is_empty
    assert found.recipe_digest == Change("0" * 64, "1" * 64)
    assert found.kernel == Change("6.1", "6.2")
    assert found.kernel_arguments == Change("", "quiet")
    assert found.runner == Change("", f"forgejo-runner {'f' * 64}")
    assert found.files == {"/a": Change("0644 a", "0755 a"), "/c": Change("", "0644 c")}
    git = PACKAGES["git"]
    assert found.packages == {
        "curl": Change("8.1", "8.2"),
        "git": Change(
            f"{git.version} ({git.sha256[:12]})", f"{git.version} ({changed['git'].sha256[:12]})"
        ),
        "jq": Change("", "1"),
        "libc6": Change("2.36~1", ""),
    }


def test_further_runners_and_container_images_differ(tmp_path: Path) -> None:
    path = "/usr/lib/vmrunner/containers/00.tar"
    inputs = {path: {"mode": "0644", "sha256": "a"}}
    one = publish(
        tmp_path,
        version="1",
        inputs=inputs,
        runners={"a": RUNNER, "b": RUNNER},
        containers={path: "debian:12"},
    )
    other = {"b": RUNNER | {"sha256": "e" * 64}, "c": RUNNER}
    two = publish(
        tmp_path, version="2", inputs=inputs, runners=other, containers={path: "debian:13"}
    )
    found, runner = diff.between(one, two), f"forgejo-runner {'f' * 64}"
    assert found.runners == {
        "a": Change(runner, ""),
        "b": Change(runner, f"forgejo-runner {'e' * 64}"),
        "c": Change("", runner),
    }
    assert found.files == {path: Change("debian:12 a", "debian:13 a")}
    assert not found.is_empty
    assert diff.content(one.manifest) != diff.content(
        one.manifest.model_copy(update={"runners": {}})
    )
    old = publish(tmp_path, version="3", inputs=inputs, runners=other)
    assert diff.between(two, old).is_empty, "it noted no names"


def test_an_image_of_an_older_vmrunner(tmp_path: Path) -> None:
    old = publish(tmp_path, version="1", packages={"curl": "8.1"}, inputs=None)
    new = publish(
        tmp_path,
        version="2",
        packages={"curl": PACKAGES["curl"]},
        inputs={"/a": {"mode": "0644", "sha256": "a"}},
    )
    found = diff.between(old, new)
    assert (found.packages, found.files) == ({}, None), (
        "what is not known is not told as a difference"
    )


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vmrunner.config.load_host", lambda _: HostConfig(state_dir=tmp_path))
    images = tmp_path / "images"
    publish(images, version="1")
    publish(
        images, version="2", packages=PACKAGES | {"curl": package("8.2")}, recipe_digest="1" * 64
    )
    image_cmd.diff("mine/1", "mine", as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["first"], told["second"], told["packages"]) == (
        "mine/1",
        "mine/2",
        {"curl": {"first": "8.1", "second": "8.2"}},
    )
    image_cmd.diff("mine/1", "mine/2")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        ["mine/1", "mine/2"],
        ["recipe", "digest", "0" * 12, "1" * 12],
        ["curl", "8.1", "8.2"],
    ]
    image_cmd.diff("mine/2", "mine")
    assert capsys.readouterr().out == "mine/2 and mine/2 do not differ\n"


@pytest.mark.parametrize(
    "wanted", ["mine/3", "mine/..", "mine/../mine/1", "other/1", "other", "mine/current"]
)
def test_a_version_that_is_not_there(tmp_path: Path, wanted: str) -> None:
    publish(tmp_path)
    with pytest.raises(ImageError, match="There is no") as caught:
        store.find_version(tmp_path, wanted)
    assert caught.value.hint
