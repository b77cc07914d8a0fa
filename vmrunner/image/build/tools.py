"""Building a disk of tools: each archive in a folder of its own, as hosted runners have them, and a
file system of all of it.
"""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime
from pathlib import Path

from vmrunner import __version__
from vmrunner.errors import ImageError
from vmrunner.files import digest
from vmrunner.image.build.context import Site
from vmrunner.image.recipe.tools import ToolSource, ToolsRecipe
from vmrunner.image.versions.store import MANIFEST
from vmrunner.model.image import DISK, Manifest

_BLOCK, _INODE = 4096, 256  # bytes of the file system
_SPARE = 16 << 20  # bytes


def make(build: Site, recipe: ToolsRecipe) -> Manifest:
    """All the steps, until everything that is published is in the folder `out`."""
    build.out.mkdir()
    build.tree.mkdir(mode=0o700)  # until it is a disk no other user gets at what came, devices say
    (build.tree / "tools").mkdir()
    found = {each.place: _lay(build, each) for each in recipe.tools}
    for path in (build.tree / "tools").rglob("*"):
        _open(path)
    _write_disk(build)
    manifest = Manifest(
        name=recipe.name,
        version=build.version,
        recipe_digest=build.recipe_digest,
        files={DISK: digest(build.out / DISK)},
        packages={},
        inputs={},
        containers={},
        tools=found,
        built_at=datetime.now(UTC).isoformat(timespec="seconds"),
        vmrunner_version=__version__,
    )
    (build.out / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return manifest


def _lay(build: Site, source: ToolSource) -> str:
    """Unpack a tool into its place, and mark that it is whole; returns its archive's sha256."""
    what = f"The tool {source.name} {source.version}"
    archive = source.path or build.downloads.get(what, str(source.url), str(source.sha256))
    found = source.digest()
    if source.sha256 not in (None, found):
        raise ImageError(
            f"{what} has the sha256 {found}, the recipe wants {source.sha256}.",
            "Check where it comes from.",
        )
    build.step(f"unpacking {source.place}")
    folder = build.tree / "tools" / source.place
    folder.mkdir(parents=True)
    options = ["--no-same-owner", "--no-same-permissions", f"--strip-components={source.strip}"]
    build.programs.run(
        f"Unpacking {source.place}",
        "tar",
        *("--extract", *options, "--directory", str(folder), "--file", str(archive)),
        in_namespaces=True,  # it starts a program that unpacks
    )
    if not any(folder.iterdir()):
        raise ImageError(
            f"{what} is empty: its archive has nothing below {source.strip} folders.",
            "Lower its `strip` in the recipe; `tar tf` shows what is in the archive.",
        )
    if front := _folder_in_front(folder):
        raise ImageError(
            f"{what} has its programs in {front}/bin, and actions look for them in bin: they would "
            "take what the image has.",
            f"Set its `strip` in the recipe to {source.strip + 1}.",
        )
    folder.with_name(f"{source.arch}.complete").touch()
    return found


def _folder_in_front(folder: Path) -> str:
    """The folder that a tool's own one has nothing but, where programs are in there; else empty."""
    there = list(folder.iterdir())
    alone = len(there) == 1 and not (folder / "bin").exists()
    return there[0].name if alone and (there[0] / "bin").is_dir() else ""


def _open(path: Path) -> None:
    """Let every user of a machine change it, as on hosted runners: its job is the only one there.
    Nothing in it makes a user another one.
    """
    mode = path.lstat().st_mode
    if stat.S_ISDIR(mode) or (mode & stat.S_IXUSR and stat.S_ISREG(mode)):
        path.chmod(0o777)
    elif stat.S_ISREG(mode):
        path.chmod(0o666)


def _write_disk(build: Site) -> None:
    """As big as it has to be: nobody writes on it."""
    raw, disk = build.work / "disk.raw", build.out / DISK
    size, count = _room(build.tree)
    build.step(f"writing a disk of {size >> 20} MiB")
    with raw.open("wb") as out:
        out.truncate(size)
    options = ["-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-b", str(_BLOCK)]
    options += ["-I", str(_INODE), "-N", str(count), "-E", "lazy_itable_init=0", "-L", "tools"]
    build.programs.run("Making the file system", "mke2fs", *options, "-d", build.tree, raw)
    build.programs.run(
        "Making the disk",
        *("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "compat=1.1", raw, disk),
    )
    disk.chmod(0o444)


def _room(tree: Path) -> tuple[int, int]:
    """Bytes and inodes of a file system for this tree."""
    blocks = count = 0
    for folder, folders, names in os.walk(tree):
        for name in (*folders, *names):
            size = os.lstat(os.path.join(folder, name)).st_size
            blocks += max(1, -(-size // _BLOCK))
            count += 1
    count += count // 10 + 100
    size = blocks * _BLOCK + count * _INODE
    return -(-(size + size // 20 + _SPARE) // (1 << 20)) << 20, count
