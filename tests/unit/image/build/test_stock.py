"""A stock image in the place of a bootstrap: what is refused, and that it is whole what came out of
its machine.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests import archive
from tests.building import begin
from vmrunner.errors import ImageError
from vmrunner.hypervisor.seam import Output
from vmrunner.image.build import bootstrap, build, stock
from vmrunner.image.recipe import recipe
from vmrunner.model.image import Golden

MINE = 'extends = "debian-12"\n[stock]\n'


def lay(folder: Path, stock: str) -> recipe.Recipe:
    """The recipe with this table; the disk beside it is small and empty."""
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", folder / "disk.qcow2", "1M"], check=True
    )
    (folder / "mine.toml").write_text(MINE + stock)
    return recipe.load("mine", folder)


def no_machine(
    _golden: Golden, _command: Sequence[str], _write: Callable[[Output, bytes], None]
) -> int:
    raise AssertionError("nothing is booted")


@pytest.mark.parametrize(
    ("stock", "said"),
    [
        ("", "mine.toml: line 2: stock: name either a path or a url"),
        (
            'path = "a"\nurl = "http://forge.example/a"\nsha256 = "' + "0" * 64 + '"',
            "line 2: stock: name either a path or a url",
        ),
        (
            'url = "http://forge.example/a"',
            "line 2: stock: a url needs the sha256 or sha512 of what it must give",
        ),
        ('path = "a"\nsha1 = "0"', "line 4: stock.sha1: is not a key that vmrunner knows"),
        ('path = "a"\nsha512 = "0"', "line 4: stock.sha512: has to be a sha512"),
        (
            f'path = "a"\nsha256 = "{"0" * 64}"\nsha512 = "{"0" * 128}"',
            "line 2: stock: one digest is enough, sha256 or sha512",
        ),
    ],
)
def test_wrong_ones_name_the_line(tmp_path: Path, stock: str, said: str) -> None:
    with pytest.raises(ImageError) as caught:
        lay(tmp_path, stock)
    assert said in caught.value.sentence


def test_the_digest_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    found = []
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).mkdir()
        wanted = lay(tmp_path / name, 'path = "stock.raw"')
        (tmp_path / name / "stock.raw").write_bytes(content)
        found.append(wanted.digest())
    assert found[0] == found[1]
    assert found[0] != found[2]
    assert recipe.load("debian-12").digest() not in found


def test_an_image_that_is_not_what_the_recipe_wants_is_not_booted(tmp_path: Path) -> None:
    wanted = lay(tmp_path, f'path = "disk.qcow2"\nsha256 = "{"0" * 64}"')
    with pytest.raises(
        ImageError, match=r"The stock image has the sha256 [0-9a-f]{64}, the recipe wants 0000"
    ):
        build.build(wanted, tmp_path / "images", lambda _: None, boot_stock=no_machine)
    missing = lay(tmp_path, 'path = "gone.qcow2"')
    with pytest.raises(ImageError, match=r"gone\.qcow2 can't be read: No such file"):
        build.build(missing, tmp_path / "images", lambda _: None, boot_stock=no_machine)


def test_a_disk_that_lies_on_another_file_is_refused(tmp_path: Path) -> None:
    wanted = lay(tmp_path, 'path = "upper.qcow2"')
    subprocess.run(
        [
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            "-b",
            "disk.qcow2",
            tmp_path / "upper.qcow2",
        ],
        check=True,
    )
    with pytest.raises(ImageError, match="not a qcow2 or raw disk that stands alone"):
        build.build(wanted, tmp_path / "images", lambda _: None, boot_stock=no_machine)


def test_its_own_name_is_no_second_file(tmp_path: Path) -> None:
    (tmp_path / "data-file").mkdir()
    with pytest.raises(ImageError, match="a machine of it has to be booted"):
        build.build(
            lay(tmp_path / "data-file", 'path = "disk.qcow2"'), tmp_path / "images", lambda _: None
        )


def test_packages_that_were_kept_are_not_taken_for_another_digest(tmp_path: Path) -> None:
    keys = []
    for wanted in ("", f'sha512 = "{"0" * 128}"', f'sha256 = "{"0" * 64}"'):
        keys.append(bootstrap._key(lay(tmp_path, f'path = "disk.qcow2"\n{wanted}'), ""))
    assert len(set(keys)) == 3


def test_without_a_host_it_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="a machine of it has to be booted"):
        build.build(lay(tmp_path, 'path = "disk.qcow2"'), tmp_path / "images", lambda _: None)


@pytest.mark.parametrize(
    ("sent", "summed", "code"),
    [(b"files", b"other files", 0), (b"files", b"files", 2), (b"files", None, 0), (b"", b"", 0)],
    ids=["other", "code", "no sum", "nothing"],
)
def test_what_is_not_whole_is_not_used(
    tmp_path: Path, sent: bytes, summed: bytes | None, code: int
) -> None:
    def run(golden: Golden, _command: Sequence[str], write: Callable[[Output, bytes], None]) -> int:
        assert (golden.directory / "disk.qcow2").is_file()
        assert golden.version.endswith(f"-{os.getpid()}"), (
            "another build's machine lies on another volume"
        )
        write(Output.STDOUT, sent)
        if summed is not None:
            write(
                Output.STDERR, f"tar: a warning\n{hashlib.sha256(summed).hexdigest()}  -\n".encode()
            )
        return code

    with pytest.raises(ImageError, match=rf"did not hand its files over \(exit {code}\)"):
        build.build(
            lay(tmp_path, 'path = "disk.qcow2"'),
            tmp_path / "images",
            lambda _: None,
            boot_stock=run,
        )
    assert not list((tmp_path / "images").glob("[!.]*"))
    assert not list((tmp_path / "images").glob(".building-*"))


def test_what_is_left_of_its_first_boot_and_of_its_loader(tmp_path: Path) -> None:
    """With GRUB's files there its scripts would write into a disk: into one of the building
    host.
    """
    outside, packed, work = tmp_path / "outside", tmp_path / "packed", tmp_path / "work"
    for folder in (outside, packed, work):
        folder.mkdir()
    (outside / "log").touch()
    archive.base("find", "mkdir").lay(packed)
    for path in (
        "boot/grub/i386-pc/core.img",
        "boot/grub/grub.cfg",
        "boot/efi/EFI/debian/grub.cfg",
        "boot/vmlinuz-1",
        "etc/ssh/ssh_host_key",
    ):
        (packed / path).parent.mkdir(parents=True, exist_ok=True)
        (packed / path).touch()
    (packed / "etc/os-release").write_text("VERSION_CODENAME=noble\n")
    for path in ("var/lib", "etc/apt/sources.list.d"):
        (packed / path).mkdir(parents=True)
    (packed / "var/log").symlink_to(outside)

    def run(
        _golden: Golden, _command: Sequence[str], write: Callable[[Output, bytes], None]
    ) -> int:
        sent = subprocess.run(
            ["tar", "--create", "-C", packed, "."], stdout=subprocess.PIPE, check=True
        ).stdout
        write(Output.STDOUT, sent)
        write(Output.STDERR, f"{hashlib.sha256(sent).hexdigest()}  -\n".encode())
        return 0

    wanted = lay(tmp_path, 'path = "disk.qcow2"')
    with pytest.raises(
        ImageError, match="The stock image is 'noble', and the recipe's suite 'bookworm'"
    ):
        stock.unpack(begin(work, wanted, boot_stock=run), wanted.stock)
    tree = work / "tree"
    assert sorted(path.name for path in (tree / "boot").rglob("*")) == ["grub", "vmlinuz-1"]
    assert list((tree / "etc/ssh").iterdir()) == []
    assert [path.name for path in outside.iterdir()] == ["log"], (
        "a symlink of the image leads nowhere here"
    )
