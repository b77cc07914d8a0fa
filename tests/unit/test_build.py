"""What an image is built from: a runner with another sha256, or packages that nobody signed, don't get in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.archive import served
from vmrunner.errors import ImageError
from vmrunner.image import bootstrap, build, recipe, tree
from vmrunner.image.programs import Log
from vmrunner.image.recipe import RunnerSource

PROGRAM, KIND = b"\x7fELF of a runner", "forgejo-runner"
RIGHT, WRONG = hashlib.sha256(PROGRAM).hexdigest(), "0" * 64


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the URL under which it is served."""
    folder = tmp_path / "site"
    folder.mkdir()
    with served(folder) as server:
        yield folder, server.url


@pytest.mark.parametrize("how", ["path", "url"])
def test_a_runner_with_another_sha256_is_left_out(site: tuple[Path, str], tmp_path: Path, how: str) -> None:
    folder, url = site
    (folder / "runner").write_bytes(PROGRAM)
    root, log = tmp_path / "tree", Log(tmp_path / "log", lambda _: None)
    root.mkdir()

    def install(sha256: str) -> None:
        where = {"path": folder / "runner"} if how == "path" else {"url": f"{url}/runner"}
        installed = tree._install_runner(RunnerSource(kind=KIND, sha256=sha256, **where), f"/usr/local/bin/{KIND}", root, tmp_path, log)
        assert installed.sha256 == RIGHT, "as the manifest will say"

    with pytest.raises(ImageError, match=f"The runner has the sha256 {RIGHT}, the recipe wants {WRONG}"):
        install(WRONG)
    assert list(root.iterdir()) == []
    install(RIGHT)
    assert (root / "usr/local/bin" / KIND).read_bytes() == PROGRAM


def test_packages_that_nobody_signed_are_refused(site: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = site
    release = folder / "dists" / "bookworm" / "Release"
    release.parent.mkdir(parents=True)
    release.write_text(
        "Suite: bookworm\nCodename: bookworm\nComponents: main\nArchitectures: amd64 arm64\nDate: Wed, 01 Jan 2025 00:00:00 UTC\n"
    )
    unsigned = recipe.load("debian-12").model_copy(update={"mirror": url})
    with pytest.raises(ImageError, match="The bootstrap failed") as caught:
        build.build(unsigned, tmp_path / "images", lambda _: None)
    assert "is not signed" in caught.value.hint
    assert not list((tmp_path / "images").glob("[!.]*"))


def test_no_source_is_trusted_without_a_signature() -> None:
    for mirror in (None, "http://mirror.example/debian"):
        lines = bootstrap.sources(recipe.load("debian-12").model_copy(update={"mirror": mirror})).splitlines()
        assert [line.split()[0] for line in lines] == ["deb"] * len(lines)
        assert all(line.split()[1].startswith("http") for line in lines), "no options in brackets"
    old = bootstrap.sources(recipe.load("debian-12").model_copy(update={"snapshot": "20261101T000000Z"}))
    assert {line.split()[1] for line in old.splitlines()} == {"[check-valid-until=no]"}, "the signature is checked"


def test_what_the_file_system_refuses_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ImageError, match="The image debian-12 can't be built: Not a directory") as caught:
        build.build(recipe.load("debian-12"), tmp_path / "file" / "images", lambda _: None)
    assert caught.value.hint
