"""The store of golden images: `<images>/<name>/<version>/`, immutable once published, `current` naming the newest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from vmrunner import files
from vmrunner.errors import ImageError
from vmrunner.image.recipe import lock
from vmrunner.image.recipe.packages import Package

MANIFEST = "manifest.json"
CURRENT = "current"
DISK = "disk.qcow2"
LOCK = "packages.lock"
_DOCKER = {"docker.io", "docker-ce", "moby-engine", "podman-docker"}


class Runner(BaseModel):
    """The runner program that an image carries."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str  # forgejo-runner or gitea-runner
    path: str  # in the guest
    sha256: str
    version: str = ""  # as its --version tells it, where the recipe says which


class Input(BaseModel):
    """A file that the recipe added."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: str
    sha256: str


class Forced(BaseModel):
    """A promotion of a version that was not verified, or was found bad."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at: str  # ISO 8601, UTC
    by: str  # a user's name
    found: str = ""  # what was bad; empty: nobody had looked


class Manifest(BaseModel):
    """What an image is made of, written beside its disk. Only `forced` is added to after that, and no digest of it counts that.

    What has a default is unknown to manifests of an older vmrunner: an upgrade must not take the images away that machines start from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    version: str
    recipe_digest: str  # sha256 over the resolved recipe and every file it names
    files: dict[str, str]  # file name -> sha256
    packages: dict[str, Package]  # by name
    distribution: str = "debian"  # whose archive its packages are of, as the ID in its os-release
    suite: str = ""  # of that distribution
    inputs: dict[str, Input] | None = None  # path in the guest -> the recipe's file; None: not noted
    lock: str = ""  # sha256 of the lock that it was built with, which lies beside it; empty: it was built without
    kernel: str = ""  # version
    kernel_arguments: str = ""  # empty: the disk has a boot loader of its own
    runner: Runner | None = None
    runners: dict[str, Runner] = {}  # further ones, by their names in the recipe
    containers: dict[str, str] | None = None  # path of an archive in the guest, as in `inputs` -> what jobs call it; None: not noted
    checks: dict[str, str] = {}  # name -> a shell command that exits with 0 in a machine of the image
    listens: tuple[int, ...] = ()  # ports that may be open in a machine of the image
    built_at: str  # ISO 8601, UTC
    vmrunner_version: str
    forced: tuple[Forced, ...] = ()  # the last one last

    @property
    def lacks_docker(self) -> bool:
        """Whether neither a package nor a check, which could be about one that a script installed, speaks of Docker."""
        checked = any("docker" in command for command in self.checks.values())
        return bool(self.packages) and not checked and self.packages.keys().isdisjoint(_DOCKER)


@dataclass(frozen=True)
class Golden:
    """One published image."""

    name: str
    version: str
    directory: Path
    manifest: Manifest

    @property
    def id(self) -> str:
        """`name/version`, as people and machines' metadata name it."""
        return f"{self.name}/{self.version}"


def _load(directory: Path) -> Golden:
    try:
        manifest = Manifest.model_validate_json((directory / MANIFEST).read_bytes())
    except (OSError, ValidationError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else "is corrupt"
        raise ImageError(f"The manifest of the image at {directory} {reason}.", "Build the image again: `vmrunner image build`.") from None
    for name in manifest.files:
        if not (directory / name).is_file():
            raise ImageError(
                f"The image {manifest.name} {manifest.version} lacks its file {name}.", "Build the image again: `vmrunner image build`."
            )
    return Golden(manifest.name, manifest.version, directory, manifest)


def find_version(images: Path, wanted: str) -> Golden:
    """The image that `name/version` names, or the current version of `name`; raises ImageError where there is none."""
    name, slash, version = wanted.partition("/")
    if not slash:
        return find(images, name)
    found = (path.parent for path in images.glob(f"[!.]*/[!.]*/{MANIFEST}"))  # by listing, so that no word leads out of the store
    known = sorted(path.name for path in found if path.parent.name == name and not path.is_symlink())
    if version not in known:
        listed = f"There are: {', '.join(known)}." if known else "There is none."
        raise ImageError(f"There is no version {version!r} of the image {name!r}. {listed}", "`vmrunner image list` shows them.")
    return _load(images / name / version)


def list_all(images: Path) -> list[Golden]:
    """Every published image, by name and version."""
    if not images.is_dir():
        return []
    return [_load(path.parent) for path in sorted(images.glob(f"[!.]*/[!.]*/{MANIFEST}")) if not path.parent.is_symlink()]


def find(images: Path, name: str) -> Golden:
    """The current version of an image; raises ImageError where there is none of this name."""
    directory = images / name / CURRENT
    if not directory.is_dir():
        if versions(images, name):
            raise ImageError(
                f"No version of the image {name!r} is the current one.", f"`vmrunner image promote {name} VERSION` makes one so."
            )
        known = sorted({path.parent.name for path in images.glob(f"[!.]*/{CURRENT}")}) if images.is_dir() else []
        listed = f"There are: {', '.join(known)}." if known else "There is none yet."
        raise ImageError(f"There is no image {name!r}. {listed}", f"`vmrunner image build {name}` makes it.")
    return _load(directory.resolve())


def versions(images: Path, name: str) -> list[str]:
    """Every published version of an image, the newest last, damaged ones included; empty where there is no such image."""
    home = images / name
    if home.parent != images or name.startswith(".") or not home.is_dir():
        return []
    return sorted(path.name for path in home.iterdir() if path.is_dir() and not path.is_symlink() and not path.name.startswith("."))


def version(images: Path, name: str, wanted: str) -> Golden:
    """One version of an image; raises ImageError where it is damaged."""
    return _load(images / name / wanted)


def current(images: Path, name: str) -> Golden | None:
    """The current version of an image, or None where there is none that can be read."""
    try:
        return find(images, name)
    except ImageError:
        return None


def digest(path: Path, algorithm: str = "sha256") -> str:
    """The digest of a file, as hex."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, algorithm).hexdigest()


def identity(directory: Path) -> str:
    """The sha256 of what the manifest of the version in this folder says of its content, as hex. Raises OSError and ValueError."""
    plain = _plain(directory)
    plain.pop("forced", None)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def note_forced(directory: Path, forced: Forced) -> None:
    """Add that to the manifest of the version in this folder. Call it with the store's lock held; raises OSError and ValueError."""
    plain = _plain(directory)
    plain["forced"] = [*plain.get("forced", []), forced.model_dump()]
    replace(directory / MANIFEST, json.dumps(plain, indent=1) + "\n")


def _plain(directory: Path) -> dict[str, Any]:
    plain = json.loads((directory / MANIFEST).read_bytes())
    if not isinstance(plain, dict):
        raise ValueError(f"{directory / MANIFEST} is not a table")
    return plain


def replace(path: Path, text: str) -> None:
    """Write a file of a version: whoever is killed at it, or without room, leaves the old one. Raises OSError."""
    files.sweep(path.parent)
    files.sweep(path.parent, f".{path.name}.")  # as an older vmrunner named them
    files.write_whole(path, text, 0o644, durable=True)


def verify(golden: Golden) -> None:
    """Read every file of an image; raises ImageError where one differs from the manifest, or the manifest from the lock."""
    for name, expected in golden.manifest.files.items():
        try:
            found = digest(golden.directory / name)
        except OSError as error:  # `image prune` may have taken it since it was found
            raise ImageError(f"The image {golden.name} {golden.version} can't be read: {name}: {error.strerror}.", "Try again.") from None
        if found != expected:
            raise ImageError(
                f"The image {golden.name} {golden.version} is damaged: {name} has another sha256 than its manifest says.",
                f"Build it again: `vmrunner image build {golden.name} --force`.",
            )
    if golden.manifest.lock:
        _verify_lock(golden)


def _verify_lock(golden: Golden) -> None:
    """The lock is what the image was built with, and the manifest lists its packages."""
    path, again = golden.directory / LOCK, f"Build it again: `vmrunner image build {golden.name} --force`."
    try:
        content = path.read_bytes()
    except OSError:
        raise ImageError(f"The image {golden.name} {golden.version} lacks its file {LOCK}.", again) from None
    if hashlib.sha256(content).hexdigest() != golden.manifest.lock:
        raise ImageError(f"The image {golden.name} {golden.version} is damaged: {LOCK} has another sha256 than its manifest says.", again)
    different = lock.differences(lock.parse(content.decode(), str(path)), golden.manifest.packages)
    if different:
        raise ImageError(f"The image {golden.name} {golden.version} is not what its lock says: {'; '.join(different)}.", again)
