"""The store of golden images: `<images>/<name>/<version>/`, immutable once published, `current`
naming the newest.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vmrunner import files
from vmrunner.errors import ImageError, ToolsError
from vmrunner.files import digest
from vmrunner.image.recipe import lock
from vmrunner.model.image import Forced, Golden, Manifest

MANIFEST = "manifest.json"
CURRENT = "current"
LOCK = "packages.lock"


def _load(directory: Path) -> Golden:
    try:
        manifest = Manifest.model_validate_json((directory / MANIFEST).read_bytes())
    except (OSError, ValidationError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else "is corrupt"
        raise ImageError(
            f"The manifest of the image at {directory} {reason}.",
            "Build the image again: `vmrunner image build`.",
        ) from None
    for name in manifest.files:
        if not (directory / name).is_file():
            raise ImageError(
                f"The image {manifest.name} {manifest.version} lacks its file {name}.",
                "Build the image again: `vmrunner image build`.",
            )
    return Golden(manifest.name, manifest.version, directory, manifest)


def find_version(images: Path, wanted: str) -> Golden:
    """The image that `name/version` names, or the current version of `name`; raises ImageError
    where there is none.
    """
    name, slash, version = wanted.partition("/")
    if not slash:
        return find(images, name)
    # By listing, so that no word leads out of the store.
    found = (path.parent for path in images.glob(f"[!.]*/[!.]*/{MANIFEST}"))
    known = sorted(
        path.name for path in found if path.parent.name == name and not path.is_symlink()
    )
    if version not in known:
        listed = f"There are: {', '.join(known)}." if known else "There is none."
        raise ImageError(
            f"There is no version {version!r} of the image {name!r}. {listed}",
            "`vmrunner image list` shows them.",
        )
    return _load(images / name / version)


def for_machines(images: Path, wanted: str, tools: str | None = None) -> Golden:
    """What machines are made of: the image that `name/version` or `name` means, with the current
    version of a disk of tools. Raises ImageError where either is not there, or is no such thing;
    ToolsError where that is the disk.
    """
    golden = find_version(images, wanted)
    if golden.manifest.tools:
        raise ImageError(
            f"{wanted} is a disk of tools: no machine starts from it.",
            "A pool names it as its `tools`, beside its `image`.",
        )
    return _with_tools(images, golden, tools)


def _with_tools(images: Path, golden: Golden, tools: str | None) -> Golden:
    """Raises ToolsError."""
    return changed(golden, tools=find_tools(images, tools)) if tools else golden


def find_tools(images: Path, name: str) -> Golden:
    """The current version of this disk of tools. Raises ToolsError where there is none."""
    try:
        disk = find(images, name)
    except ImageError as error:
        raise ToolsError(error.sentence, error.hint) from None
    if not disk.manifest.tools:
        raise ToolsError(
            f"{name} is an image, and no disk of tools.",
            "The recipe of a disk of tools has [[tools]]: see docs/howto/tools.md.",
        )
    return disk


def list_all(images: Path) -> list[Golden]:
    """Every published image, by name and version."""
    if not images.is_dir():
        return []
    return [
        _load(path.parent)
        for path in sorted(images.glob(f"[!.]*/[!.]*/{MANIFEST}"))
        if not path.parent.is_symlink()
    ]


def find(images: Path, name: str) -> Golden:
    """The current version of an image; raises ImageError where there is none of this name."""
    directory = images / name / CURRENT
    if not directory.is_dir():
        if versions(images, name):
            raise ImageError(
                f"No version of the image {name!r} is the current one.",
                f"`vmrunner image promote {name} VERSION` makes one so.",
            )
        known = (
            sorted({path.parent.name for path in images.glob(f"[!.]*/{CURRENT}")})
            if images.is_dir()
            else []
        )
        listed = f"There are: {', '.join(known)}." if known else "There is none yet."
        raise ImageError(f"There is no image {name!r}. {listed}", _maker(name))
    return _load(directory.resolve())


def _maker(name: str) -> str:
    from vmrunner.image.recipe import recipe  # here, as it is needed for this alone

    if recipe.exists(name):
        return f"`vmrunner image build {name}` makes it."
    return "Is the name right? Otherwise write its recipe, and build it: see docs/images.md."


def versions(images: Path, name: str) -> list[str]:
    """Every published version of an image, the newest last, damaged ones included; empty where
    there is no such image.
    """
    home = images / name
    if home.parent != images or name.startswith(".") or not home.is_dir():
        return []
    return sorted(
        path.name
        for path in home.iterdir()
        if path.is_dir() and not path.is_symlink() and not path.name.startswith(".")
    )


def version(images: Path, name: str, wanted: str) -> Golden:
    """One version of an image; raises ImageError where it is damaged."""
    return _load(images / name / wanted)


def current(images: Path, name: str) -> Golden | None:
    """The current version of an image, or None where there is none that can be read."""
    try:
        return find(images, name)
    except ImageError:
        return None


def completed(images: Path, golden: Golden | None, tools: str | None) -> Golden | None:
    """This image as `for_machines` has it, or None where that can't be had."""
    if golden is None or golden.manifest.tools:
        return None
    try:
        return _with_tools(images, golden, tools)
    except ToolsError:
        return None


def identity(directory: Path) -> str:
    """The sha256 of what the manifest of the version in this folder says of its content, as hex.

    Raises OSError and ValueError.
    """
    plain = _plain(directory)
    plain.pop("forced", None)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def note_forced(directory: Path, forced: Forced) -> None:
    """Add that to the manifest of the version in this folder.

    Call it with the store's lock held; raises OSError and ValueError.
    """
    plain = _plain(directory)
    plain["forced"] = [*plain.get("forced", []), forced.model_dump()]
    replace(directory / MANIFEST, json.dumps(plain, indent=1) + "\n")


def _plain(directory: Path) -> dict[str, Any]:
    plain = json.loads((directory / MANIFEST).read_bytes())
    if not isinstance(plain, dict):
        raise ValueError(f"{directory / MANIFEST} is not a table")
    return plain


def replace(path: Path, text: str) -> None:
    """Write a file of a version: whoever is killed at it, or without room, leaves the old one.

    Raises OSError.
    """
    files.sweep(path.parent)
    files.sweep(path.parent, f".{path.name}.")  # as an older vmrunner named them
    files.write_whole(path, text, 0o644, durable=True)


def verify(golden: Golden) -> None:
    """Read every file of an image; raises ImageError where one differs from the manifest, or the
    manifest from the lock.
    """
    for name, expected in golden.manifest.files.items():
        try:
            found = digest(golden.directory / name)
        except OSError as error:
            raise golden.unreadable(name, error) from None
        if found != expected:
            raise golden.damaged(name)
    if golden.manifest.lock:
        _verify_lock(golden)


def _verify_lock(golden: Golden) -> None:
    """The lock is what the image was built with, and the manifest lists its packages."""
    path, again = (
        golden.directory / LOCK,
        f"Build it again: `vmrunner image build {golden.name} --force`.",
    )
    try:
        content = path.read_bytes()
    except OSError:
        raise ImageError(
            f"The image {golden.name} {golden.version} lacks its file {LOCK}.", again
        ) from None
    if hashlib.sha256(content).hexdigest() != golden.manifest.lock:
        raise golden.damaged(LOCK)
    different = lock.differences(lock.parse(content.decode(), str(path)), golden.manifest.packages)
    if different:
        raise ImageError(
            f"The image {golden.name} {golden.version} is not what its lock says: "
            f"{'; '.join(different)}.",
            again,
        )
