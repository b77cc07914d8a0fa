"""What an image is built from: a runner with another sha256, or packages that nobody signed, don't
get in.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.archive import Site, served
from tests.building import begin
from vmrunner.errors import ImageError
from vmrunner.image.build import apt, apt_source, bootstrap, build, downloads, tree
from vmrunner.image.build.build_log import BuildLog
from vmrunner.image.build.downloads import Downloads
from vmrunner.image.recipe import recipe
from vmrunner.image.recipe.recipe import RunnerSource
from vmrunner.image.versions import store, workshop

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
def test_a_runner_with_another_sha256_is_left_out(
    site: tuple[Path, str], tmp_path: Path, how: str
) -> None:
    folder, url = site
    (folder / "runner").write_bytes(PROGRAM)
    (root := tmp_path / "tree").mkdir()

    def install(sha256: str) -> None:
        where = {"path": folder / "runner"} if how == "path" else {"url": f"{url}/runner"}
        source = RunnerSource(kind=KIND, sha256=sha256, **where)
        installed = tree._install_runner(begin(tmp_path), source, f"/usr/local/bin/{KIND}")
        assert installed.sha256 == RIGHT, "as the manifest will say"

    with pytest.raises(
        ImageError, match=f"The runner has the sha256 {RIGHT}, the recipe wants {WRONG}"
    ):
        install(WRONG)
    assert list(root.iterdir()) == []
    install(RIGHT)
    assert (root / "usr/local/bin" / KIND).read_bytes() == PROGRAM


def test_a_download_happens_once(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    with served(folder) as site:
        _once(site, folder, tmp_path)


def _once(site: Site, folder: Path, tmp_path: Path) -> None:
    url = site.url
    (folder / "runner").write_bytes(PROGRAM)
    images, said = tmp_path / "images", list[str]()
    get = Downloads(images, BuildLog(tmp_path / "log", said.append)).get
    kept = get("It", f"{url}/runner", RIGHT)
    assert (kept.read_bytes(), get("It", f"{url}/elsewhere", RIGHT)) == (PROGRAM, kept)
    assert (site.asked, said) == (
        ["/runner"],
        [f"fetching {url}/runner", f"taking {url}/elsewhere, fetched before"],
    )
    kept.write_bytes(PROGRAM[:5])  # damaged
    assert (get("It", f"{url}/runner", RIGHT).read_bytes(), len(site.asked)) == (PROGRAM, 2)
    (folder / "runner").write_bytes(b"another")
    assert (get("It", f"{url}/runner", RIGHT).read_bytes(), len(site.asked)) == (PROGRAM, 2)
    with pytest.raises(ImageError, match=f"It has the sha256 .*, the recipe wants {WRONG}"):
        get("It", f"{url}/runner", WRONG)
    with pytest.raises(ImageError, match=r"It can't be fetched from .*/nowhere: .*404"):
        get("It", f"{url}/nowhere", WRONG)
    for wrong in ("http://[::1", "http://127.0.0.1:99999/", "http://a..example/"):
        with pytest.raises(ImageError, match=f"It can't be fetched from {re.escape(wrong)}: "):
            get("It", wrong, WRONG)
    assert list((images / downloads.FOLDER).iterdir()) == [kept], "nothing half, nothing wrong"
    (images / downloads.FOLDER / f".part-{2**22 + 1}").touch()  # no process has that id
    (images / downloads.FOLDER / "old").touch()
    os.utime(images / downloads.FOLDER / "old", (0, 0))
    assert [path.name for path in downloads.stale(images)] == [f".part-{2**22 + 1}", "old"]
    kept.unlink()
    (folder / "runner").write_bytes(PROGRAM)
    longer = hashlib.sha512(PROGRAM).hexdigest()
    assert get("It", f"{url}/runner", longer).name == longer
    get("It", f"{url}/runner", RIGHT)
    assert (downloads.stale(images), bootstrap.stale(images)) == ([], [])


def test_packages_that_nobody_signed_are_refused(site: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = site
    release = folder / "dists" / "bookworm" / "Release"
    release.parent.mkdir(parents=True)
    release.write_text(
        "Suite: bookworm\nCodename: bookworm\nComponents: main\nArchitectures: amd64 arm64\nDate: "
        "Wed, 01 Jan 2025 00:00:00 UTC\n"
    )
    unsigned = recipe.load("debian-12").model_copy(update={"mirror": url})
    with pytest.raises(ImageError, match="The bootstrap failed") as caught:
        build.build(unsigned, tmp_path / "images", lambda _: None)
    assert "is not signed" in caught.value.hint
    assert not list((tmp_path / "images").glob("[!.]*"))


def test_no_source_is_trusted_without_a_signature() -> None:
    for mirror in (None, "http://mirror.example/debian"):
        wanted = recipe.load("debian-12").model_copy(update={"mirror": mirror})
        lines = apt_source.lines(apt.build_sources(wanted)).splitlines()
        assert [line.split()[0] for line in lines] == ["deb"] * len(lines)
        assert all(line.split()[1].startswith("http") for line in lines), "no options in brackets"
    wanted = recipe.load("debian-12").model_copy(update={"snapshot": "20261101T000000Z"})
    old = apt_source.lines(apt.build_sources(wanted)).splitlines()
    assert {line.split()[1] for line in old} == {"[check-valid-until=no]"}, (
        "the signature is checked"
    )


def test_what_the_file_system_refuses_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        ImageError,
        match=r"The image debian-12 can't be built: .*/file/images/\.log: Not a directory",
    ) as caught:
        build.build(recipe.load("debian-12"), tmp_path / "file" / "images", lambda _: None)
    assert caught.value.hint


def test_a_folder_of_a_killed_build_that_had_our_id_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / f".building-{os.getpid()}" / "tree").mkdir(parents=True)
    with workshop.opened(tmp_path) as work:
        assert list(work.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_kept_packages_that_another_build_replaces_meanwhile_stay_what_they_were(
    tmp_path: Path,
) -> None:
    tar, work = tmp_path / "key.tar", tmp_path / "work"
    work.mkdir()
    tar.write_bytes(PROGRAM)
    held = bootstrap._hold(tar, RIGHT, work)
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / "other").replace(tar)
    assert held
    assert held.read_bytes() == PROGRAM
    held.unlink()
    assert bootstrap._hold(tar, RIGHT, work) is None
    tar.unlink()
    assert bootstrap._hold(tar, RIGHT, tmp_path) is None


def test_who_writes_a_file_of_a_version_at_the_same_time_is_not_disturbed(tmp_path: Path) -> None:
    for pid in (1, 2**22 + 1):  # which no process has
        (tmp_path / f".verified.json.{pid}").touch()
    store.replace(tmp_path / "verified.json", "{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".verified.json.1", "verified.json"]
