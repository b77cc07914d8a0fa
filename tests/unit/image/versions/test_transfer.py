"""Images that go from one host to another as a file: the same there, or not there at all."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.containers import contents, tar
from tests.goldens import publish
from vmrunner.errors import ImageError
from vmrunner.image.versions import store, transfer
from vmrunner.image.versions.proof import RECORD
from vmrunner.image.versions.store import MANIFEST
from vmrunner.model.image import DISK

VERSION = "20260101-aa"


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    golden = publish(tmp_path / "here", VERSION)
    assert transfer.export(golden, tmp_path / "web.tar") == (tmp_path / "web.tar").stat().st_size
    return tmp_path / "web.tar"


def rewritten(exported: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
    """The archive with other members."""
    members = contents(exported.read_bytes())
    change(members)
    exported.write_bytes(tar(members))
    return exported


def test_it_is_the_same_there_and_not_current_by_itself(exported: Path, tmp_path: Path) -> None:
    there, said = tmp_path / "there", list[str]()
    golden = transfer.fetch(exported, there, said.append)
    assert (golden.version, golden.manifest) == (
        VERSION,
        store.version(tmp_path / "here", "web", VERSION).manifest,
    )
    assert ((there / "web" / VERSION / DISK).read_bytes(), store.current(there, "web")) == (
        b"disk",
        None,
    )
    assert {path.name for path in there.iterdir()} == {"web", ".lock"}
    transfer.fetch(exported, there, said.append)
    assert said == [f"web {VERSION} is here already"]


def test_what_was_forced_here_is_no_promotion_there(exported: Path, tmp_path: Path) -> None:
    here = store.version(tmp_path / "here", "web", VERSION)
    store.note_forced(here.directory, store.Forced(at="2026-01-01T00:00:00+00:00", by="alice"))
    assert transfer.export(store.version(tmp_path / "here", "web", VERSION), exported)
    there = transfer.fetch(exported, tmp_path / "there", print)
    assert there.manifest == here.manifest
    assert transfer.fetch(exported, tmp_path / "there", print).version == VERSION, (
        "it is the same one still"
    )


def test_another_image_of_that_version_stays(exported: Path, tmp_path: Path) -> None:
    publish(tmp_path / "there", VERSION, disk=b"other")
    with pytest.raises(ImageError, match="There is another image web"):
        transfer.fetch(exported, tmp_path / "there", print)
    assert (tmp_path / "there" / "web" / VERSION / DISK).read_bytes() == b"other"


def named(key: str, value: object) -> Callable[[dict[str, bytes]], object]:
    def change(members: dict[str, bytes]) -> None:
        members[MANIFEST] = json.dumps(json.loads(members[MANIFEST]) | {key: value}).encode()

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda members: members.update({DISK: b"other"}),
            r"disk\.qcow2 is not as its manifest says",
        ),
        (lambda members: members.pop(DISK), r"it lacks disk\.qcow2"),
        (lambda members: members.pop(MANIFEST), "does not begin with a manifest"),
        (lambda members: members.update({"../escaped": b""}), "has no place in it"),
        (lambda members: members.update({"more": b""}), "more is not as its manifest says"),
        (named("version", "../../escaped"), "names that no image has"),
        (named("name", "/escaped"), "names that no image has"),
        (named("version", "current"), "names that no image has"),
        (named("files", {MANIFEST: "0"}), "names that no image has"),
        (named("files", {RECORD: "0"}), "names that no image has"),
        (named("surprise", 1), "not one that this vmrunner can read"),
        (named("tools", {"go": "0"}), "not one that this vmrunner can read"),
        (named("tools", {"go/[red]/x64": "0"}), "not one that this vmrunner can read"),
    ],
)
def test_what_is_damaged_or_hostile_leaves_nothing(
    exported: Path, tmp_path: Path, change: Callable[[dict[str, bytes]], object], said: str
) -> None:
    with pytest.raises(ImageError, match=said):
        transfer.fetch(rewritten(exported, change), tmp_path / "there", print)
    assert store.list_all(tmp_path / "there") == []
    assert not list((tmp_path / "there").glob(".building-*"))
    assert not list(tmp_path.rglob("escaped"))


def test_a_link_is_not_followed(exported: Path, tmp_path: Path) -> None:
    with tarfile.open(exported, "a") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(ImageError, match="'link' has no place in it"):
        transfer.fetch(exported, tmp_path / "there", print)


@pytest.mark.parametrize("content", [b"", b"no tar", None])
def test_what_is_no_archive(exported: Path, tmp_path: Path, content: bytes | None) -> None:
    if content is None:
        exported.write_bytes(exported.read_bytes()[:700])  # cut within the manifest
    else:
        exported.write_bytes(content)
    with pytest.raises(ImageError):
        transfer.fetch(exported, tmp_path / "there", print)
    with pytest.raises(ImageError, match="No such file"):
        transfer.fetch(tmp_path / "missing", tmp_path / "there", print)


@pytest.mark.parametrize("compressed", [gzip, bz2, lzma])
def test_one_that_somebody_compressed_may_be_damaged_anywhere(
    tmp_path: Path, compressed: Any
) -> None:
    exported = tmp_path / "web.tar"
    transfer.export(
        publish(
            tmp_path / "here", VERSION, disk=b"".join(b"%d" % number for number in range(40000))
        ),
        exported,
    )
    whole = compressed.compress(exported.read_bytes())
    for at in range(100, len(whole), len(whole) // 12):
        exported.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        # It need not show: of a header's time, or behind the last file.
        with contextlib.suppress(ImageError):
            transfer.fetch(exported, tmp_path / f"there-{at}", lambda _: None)
    exported.write_bytes(whole)
    assert transfer.fetch(exported, tmp_path / "there", print).version == VERSION


def test_a_damaged_image_is_not_exported(exported: Path, tmp_path: Path) -> None:
    golden = store.version(tmp_path / "here", "web", VERSION)
    before = exported.read_bytes()
    (golden.directory / DISK).write_bytes(b"other")
    with pytest.raises(ImageError, match="is damaged"):
        transfer.export(golden, exported)
    assert exported.read_bytes() == before
    (golden.directory / DISK).write_bytes(b"disk")
    with pytest.raises(ImageError, match="can't be written"):
        transfer.export(golden, tmp_path / "nowhere" / "web.tar")


def test_a_disk_is_named_in_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "debian.qcow2").write_bytes(b"QFI\xfb" + bytes(508))
    with pytest.raises(ImageError, match="is a disk, and not what") as caught:
        transfer.fetch(tmp_path / "debian.qcow2", tmp_path / "images", print)
    assert "[stock]" in caught.value.hint
