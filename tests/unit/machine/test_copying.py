"""Files out of a machine and into it; the machine may be hostile."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.guest_double import Folder, GuestDouble
from tests.unit.machine.test_visit import talked
from vmrunner.errors import MachineError, WrongCommand
from vmrunner.machine import copying, visit
from vmrunner.machine.copying import Copy

Opened = Callable[..., "contextmanager[Copy]"]


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """What the machine has."""
    made = tmp_path / "machine"
    (made / "build/sub").mkdir(parents=True)
    (made / "build/log").write_bytes(b"x" * 100_000)
    (made / "build/sub/tool").write_text("#!/bin/sh\n")
    (made / "build/sub/tool").chmod(0o6755)
    (made / "build/link").symlink_to("/etc/passwd")
    return made


@pytest.fixture
def here(tmp_path: Path) -> Path:
    made = tmp_path / "host"
    made.mkdir()
    return made


@pytest.fixture
def warned() -> list[str]:
    return []


@contextmanager
def copy(
    there: Path, warned: list[str], *, recursive: bool = True, lies: tuple[str, ...] = ()
) -> Iterator[Copy]:
    kind = type("There", (Folder,), {"root": there, "lies": lies})
    made, machine = talked(GuestDouble(folder=kind))
    with visit.entered(made.machines, machine) as (transport, _):
        sftp = transport.open_sftp_client()
        assert sftp
        yield Copy(sftp, machine.id, warned.append, recursive=recursive)


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("vmr-ci-0a0b0c0d:/tmp/x", ("vmr-ci-0a0b0c0d", "/tmp/x")),
        ("0a0b:x:y", ("0a0b", "x:y")),
        ("0a0b:", ("0a0b", ".")),
        ("./a:b", None),
        ("/a:b", None),
        (":x", None),
        ("file", None),
    ],
)
def test_which_side_is_the_machines(word: str, found: tuple[str, str] | None) -> None:
    assert copying.split(word) == found


@pytest.mark.parametrize("into", ["", "other"])
def test_a_file_out_of_it(there: Path, here: Path, warned: list[str], into: str) -> None:
    with copy(there, warned, recursive=False) as order:
        order.out("/build/log", here / into if into else here)
    assert (here / (into or "log")).read_bytes() == b"x" * 100_000


def test_a_folder_out_of_it_without_links_and_with_its_permissions(
    there: Path, here: Path, warned: list[str]
) -> None:
    with copy(there, warned) as order:
        order.out("/build", here)
    found = sorted(str(path.relative_to(here)) for path in here.rglob("*"))
    assert found == ["build", "build/log", "build/sub", "build/sub/tool"]
    assert (here / "build/sub/tool").stat().st_mode & 0o7777 == 0o755, "no setuid of the machine's"
    assert warned == ["/build/link is left out: it is neither a file nor a folder"]


@pytest.mark.parametrize("name", ["../evil", "", "/etc/evil", "a/b", "a\0b"])
def test_what_it_names_stays_in_the_folder(
    there: Path, here: Path, warned: list[str], name: str
) -> None:
    with copy(there, warned, lies=(name,)) as order, pytest.raises(MachineError, match="names a"):
        order.out("/build", here)
    assert {path.name for path in here.parent.iterdir()} == {"host", "machine"}


def test_a_link_that_is_here_is_not_followed(there: Path, here: Path, warned: list[str]) -> None:
    (here / "build").mkdir()
    (here / "build/log").symlink_to(here.parent / "elsewhere")
    with copy(there, warned) as order, pytest.raises(WrongCommand, match="can't be written"):
        order.out("/build", here)
    assert not (here.parent / "elsewhere").exists()


def test_folders_without_end_have_one(there: Path, here: Path, warned: list[str]) -> None:
    class Endless(Folder):
        root = there / "build/sub"

        def _path(self, path: str) -> Path:
            return self.root

    Endless.lies = ("again",)
    (there / "build/sub/tool").unlink()
    made, machine = talked(GuestDouble(folder=Endless))
    with visit.entered(made.machines, machine) as (transport, _):
        sftp = transport.open_sftp_client()
        assert sftp
        with pytest.raises(MachineError, match="lies too deep"):
            Copy(sftp, machine.id, warned.append, recursive=True).out("/a", here)


def test_a_folder_into_it(there: Path, here: Path, warned: list[str]) -> None:
    (here / "tree/sub").mkdir(parents=True)
    (here / "tree/sub/data").write_bytes(os.urandom(200_000))
    (here / "tree/sub/data").chmod(0o640)
    (here / "tree/link").symlink_to("sub")
    with copy(there, warned) as order:
        order.into(here / "tree", "/build")
    made = there / "build/tree/sub/data"
    assert made.read_bytes() == (here / "tree/sub/data").read_bytes()
    assert made.stat().st_mode & 0o777 == 0o640
    assert len(warned) == 1
    assert not (there / "build/tree/link").exists()


def test_what_is_wrong_is_said(there: Path, here: Path, warned: list[str]) -> None:
    with copy(there, warned, recursive=False) as order:
        with pytest.raises(MachineError, match="There is no /nothing in vmr-m-"):
            order.out("/nothing", here)
        with pytest.raises(WrongCommand, match=r"/build in vmr-m-.* is a folder"):
            order.out("/build", here)
        with pytest.raises(WrongCommand, match="host is a folder"):
            order.into(here, "/build")
        with pytest.raises(WrongCommand, match=r"There is no .*host/no on this host"):
            order.into(here / "no", "/build")
        with pytest.raises(WrongCommand, match="can't be written: No such file"):
            order.out("/build/log", here / "no/such/folder")
        (here / "f").write_text("x")
        with pytest.raises(MachineError, match=r"There is no /no/such/f in vmr-m-"):
            order.into(here / "f", "/no/such/f")
