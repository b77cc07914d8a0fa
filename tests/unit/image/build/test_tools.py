"""Building a disk of tools with the real tar, mke2fs and qemu-img, and reading it back."""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest

from tests import tooling
from vmrunner.errors import ImageError
from vmrunner.image.build import build
from vmrunner.image.recipe import tools
from vmrunner.image.versions import store
from vmrunner.model.image import DISK, Golden


def make(folder: Path, images: Path, said: list[str] | None = None) -> Golden:
    found = build.build(tools.load("tools", folder), images, (said or []).append)
    store.verify(found)
    return found


def read(golden: Golden, tmp_path: Path, command: str) -> str:
    """What debugfs says of the disk."""
    raw = tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", golden.directory / DISK, raw], check=True)
    asked = ["debugfs", "-R", command, raw]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout


def test_each_tool_is_where_actions_look_for_it(tmp_path: Path) -> None:
    recipe = tooling.lay(tmp_path / "mine", "tools", [("go", "1.26.0"), ("node", "22.1.0")])
    golden = make(recipe.parent, tmp_path / "images")
    content = tooling.archive("go", "1.26.0")
    assert golden.manifest.tools["go/1.26.0/x64"] == hashlib.sha256(content).hexdigest()
    assert list(golden.manifest.tools) == ["go/1.26.0/x64", "node/22.1.0/x64"]
    assert store.find(tmp_path / "images", "tools") == golden
    assert "1.26.0" in read(golden, tmp_path, "cat /tools/go/1.26.0/x64/VERSION")
    assert "Size: 0" in read(golden, tmp_path, "stat /tools/node/22.1.0/x64.complete")
    # Every user of a machine may change it there; it is nobody's but root's, and runs.
    program = read(golden, tmp_path, "stat /tools/go/1.26.0/x64/bin/go")
    assert "Mode:  0777" in program
    assert "User:     0" in program


def test_nothing_in_it_makes_a_user_another_one(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    recipe = tooling.lay(folder, "tools", [("go", "1.26.0")])
    with tarfile.open(folder / "go-1.26.0.tar.gz", "w:gz") as packed:
        for name, mode in (("go/run", 0o6755), ("go/data", 0o600)):
            member = tarfile.TarInfo(name)
            member.mode = mode
            packed.addfile(member)
        link = tarfile.TarInfo("go/away")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        packed.addfile(link)
    before = Path("/etc/passwd").stat().st_mode
    golden = make(recipe.parent, tmp_path / "images")
    assert "Mode:  0777" in read(golden, tmp_path, "stat /tools/go/1.26.0/x64/run")
    assert "Mode:  0666" in read(golden, tmp_path, "stat /tools/go/1.26.0/x64/data")
    assert "/etc/passwd" in read(golden, tmp_path, "stat /tools/go/1.26.0/x64/away")
    assert Path("/etc/passwd").stat().st_mode == before


def test_what_is_unpacked_is_nobody_elses_meanwhile(tmp_path: Path) -> None:
    """A device of an archive is one of this host for as long."""
    recipe, images = (
        tooling.lay(tmp_path / "mine", "tools", [("go", "1.26.0")]),
        tmp_path / "images",
    )
    modes: list[int] = []

    def say(_: str) -> None:
        modes.extend(each.stat().st_mode & 0o777 for each in images.glob(".building-*/tree"))

    build.build(tools.load("tools", recipe.parent), images, say)
    assert set(modes) == {0o700}


def test_no_archive_leads_out_of_its_folder(tmp_path: Path) -> None:
    """By a link that a later member goes through, by a link to a file, or by a name."""
    recipe, victim = (
        tooling.lay(tmp_path / "mine", "tools", [("go", "1.26.0")]),
        tmp_path / "victim",
    )
    victim.write_text("as it was")
    mode = victim.stat().st_mode
    for kind, link, name in (
        (tarfile.SYMTYPE, str(tmp_path), "go/link/victim"),
        (tarfile.SYMTYPE, "../" * 30 + str(tmp_path), "go/link/victim"),
        (tarfile.LNKTYPE, str(victim), "go/link"),
        (tarfile.LNKTYPE, "go/" + "../" * 30 + str(victim), "go/link"),
        (tarfile.SYMTYPE, str(victim), "go/link"),
        (tarfile.SYMTYPE, "nowhere", "go/" + "../" * 30 + str(victim)),
    ):
        with tarfile.open(recipe.parent / "go-1.26.0.tar.gz", "w:gz") as packed:
            member = tarfile.TarInfo("go/link")
            member.type, member.linkname = kind, link
            packed.addfile(member)
            packed.addfile(tarfile.TarInfo(name))
        with suppress(ImageError):
            make(recipe.parent, tmp_path / f"images-{link[:3]}-{name[-9:]}".replace("/", "_"))
        assert (victim.read_text(), victim.stat().st_mode) == ("as it was", mode)


@pytest.mark.parametrize(
    ("content", "more", "said"),
    [
        (b"no archive", "", "Unpacking go/1.26.0/x64 failed"),
        (None, "strip = 9", "has nothing below 9 folders"),
        (None, "", "has its programs in go-1.26.0-linux/bin, and actions look for them in bin"),
        (None, f'strip = 1\nsha256 = "{"0" * 64}"', "the recipe wants 000"),
    ],
)
def test_an_archive_that_is_wrong_leaves_nothing(
    tmp_path: Path, content: bytes | None, more: str, said: str
) -> None:
    recipe = tooling.lay(tmp_path / "mine", "tools", [("go", "1.26.0")])
    recipe.write_text(recipe.read_text().replace("strip = 1", more))
    if content is not None:
        (recipe.parent / "go-1.26.0.tar.gz").write_bytes(content)
    with pytest.raises(ImageError) as caught:
        make(recipe.parent, tmp_path / "images")
    assert said in caught.value.sentence
    assert store.versions(tmp_path / "images", "tools") == []
    assert list((tmp_path / "images").glob(".building-*")) == []


def test_a_tool_may_have_one_folder_and_its_programs_elsewhere(tmp_path: Path) -> None:
    """CodeQL's bundle is looked for so."""
    folder = tmp_path / "mine"
    recipe = tooling.lay(folder, "tools", [("CodeQL", "2.20.0")])
    recipe.write_text(recipe.read_text().replace("strip = 1", ""))
    with tarfile.open(folder / "CodeQL-2.20.0.tar.gz", "w:gz") as packed:
        packed.addfile(tarfile.TarInfo("codeql/codeql"))
    golden = make(folder, tmp_path / "images")
    assert "Size: 0" in read(golden, tmp_path, "stat /tools/CodeQL/2.20.0/x64/codeql/codeql")


def test_many_small_files_and_no_room_for_more(tmp_path: Path) -> None:
    """A file system of its size has fewer places for files, unless it is told how many."""
    folder = tmp_path / "mine"
    tooling.lay(folder, "tools", [("go", "1.26.0")])
    with tarfile.open(folder / "go-1.26.0.tar.gz", "w:gz") as packed:
        for number in range(2000):
            packed.addfile(tarfile.TarInfo(f"go/{number % 100}/{number}"))
    golden = make(folder, tmp_path / "images")
    assert (golden.directory / DISK).stat().st_size < 40 << 20
