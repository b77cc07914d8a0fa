"""Container images that a recipe brings: fetched, checked and laid into the tree as archives. The
machine's own Docker loads them.

Nothing of theirs is unpacked or run on this host: see
docs/adr/0009-container-images-as-archives.md.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from vmrunner import files
from vmrunner.errors import ImageError
from vmrunner.image.build import oci
from vmrunner.image.build.context import Build
from vmrunner.image.build.paths import within
from vmrunner.image.recipe.recipe import ContainerSource
from vmrunner.model.image import CONTAINERS


@dataclass(frozen=True)
class Archive:
    """A container image in the tree."""

    path: str  # in the image
    name: str  # what jobs call it
    sha256: str


def lay(build: Build) -> list[Archive]:
    """Put the recipe's container images into the tree: N.tar, an archive, and N.name beside it,
    what jobs call it. The hook before-ready.d/docker reads them.

    Raises ImageError where one can't be had.
    """
    sources, found = build.recipe.containers, list[Archive]()
    folder = within(build.tree, CONTAINERS)
    if sources:
        folder.mkdir(parents=True, exist_ok=True)
    for number, source in enumerate(sources):
        target = folder / f"{number:02}.tar"
        build.step(f"adding the container image {source.name}")
        _get(build, source, target)
        found.append(Archive(f"/{CONTAINERS}/{target.name}", source.name, _check(source, target)))
        target.chmod(0o644)
        target.with_suffix(".name").write_text(f"{source.name}\n", encoding="ascii")
    return found


def _get(build: Build, source: ContainerSource, target: Path) -> None:
    if source.url:
        what = f"The container image {source.name}"
        shutil.copyfile(build.downloads.get(what, source.url, str(source.sha256)), target)
    elif source.reference:
        _pull(build, source, target)
    else:
        try:
            shutil.copyfile(str(source.archive), target)
        except OSError as error:
            raise ImageError(
                f"The archive {source.archive} can't be read: {error.strerror}.",
                "Its path is relative to the recipe.",
            ) from None


def _pull(build: Build, source: ContainerSource, target: Path) -> None:
    """skopeo checks the digest; it unpacks nothing and needs no daemon. Its docker-archive of one
    image is the same each time; what is in its oci-archive has the time of the day.

    Registries of this host's own are /etc/containers' to describe.
    """
    if not shutil.which("skopeo"):
        raise ImageError(
            "A container image by its reference needs skopeo.",
            "apt-get install skopeo, or name an archive.",
        )
    command = (
        "skopeo",
        "copy",
        "--quiet",
        f"docker://{source.reference}",
        f"docker-archive:{target}:{source.name}",
    )
    build.programs.run(f"Fetching the container image {source.reference}", *command)


def _check(source: ContainerSource, target: Path) -> str:
    """That it is what the recipe says, and an archive that Docker loads; returns the sha256 of what
    is laid.
    """
    if source.sha256 and (found := files.digest(target)) != source.sha256:
        raise ImageError(
            f"The container image {source.name} has the sha256 {found}, the recipe wants "
            f"{source.sha256}.",
            "Check where it comes from.",
        )
    try:
        oci.complete(target, source.name)
    except oci.NoImage:
        raise ImageError(
            f"The container image {source.name} is no docker-archive, and no oci-archive of one "
            "image for linux/amd64.",
            "`docker save` makes one, and `skopeo copy`; the latter's must not be packed by gzip.",
        ) from None
    return files.digest(target)
