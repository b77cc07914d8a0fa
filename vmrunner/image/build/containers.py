"""Container images that a recipe brings: fetched, checked and laid into the tree as archives. The
machine's own Docker loads them.

Nothing of theirs is unpacked or run on this host: see
docs/adr/0009-container-images-as-archives.md.
"""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

from vmrunner import files
from vmrunner.errors import ImageError
from vmrunner.image.build.downloads import Downloads
from vmrunner.image.build.paths import within
from vmrunner.image.build.programs import Programs
from vmrunner.image.recipe.recipe import ContainerSource
from vmrunner.model.image import CONTAINERS

"""In the tree: N.tar, an archive, and N.name beside it, what jobs call it.

The hook before-ready.d/docker reads them.
"""


def lay(
    sources: tuple[ContainerSource, ...], tree: Path, downloads: Downloads, programs: Programs
) -> dict[str, str]:
    """Put the archives into the tree; returns their sha256 by their paths in the image.

    Raises ImageError where one can't be had.
    """
    digests: dict[str, str] = {}
    folder = within(tree, CONTAINERS)
    if sources:
        folder.mkdir(parents=True, exist_ok=True)
    for number, source in enumerate(sources):
        target = folder / f"{number:02}.tar"
        programs.log.step(f"adding the container image {source.name}")
        _get(source, target, downloads, programs)
        digests[f"/{CONTAINERS}/{target.name}"] = _check(source, target)
        target.chmod(0o644)
        target.with_suffix(".name").write_text(f"{source.name}\n", encoding="ascii")
    return digests


def _get(source: ContainerSource, target: Path, downloads: Downloads, programs: Programs) -> None:
    if source.url:
        shutil.copyfile(
            downloads.get(f"The container image {source.name}", source.url, str(source.sha256)),
            target,
        )
    elif source.reference:
        _pull(source, target, programs)
    else:
        try:
            shutil.copyfile(str(source.archive), target)
        except OSError as error:
            raise ImageError(
                f"The archive {source.archive} can't be read: {error.strerror}.",
                "Its path is relative to the recipe.",
            ) from None


def _pull(source: ContainerSource, target: Path, programs: Programs) -> None:
    """skopeo checks the digest; it unpacks nothing and needs no daemon.

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
    programs.run(f"Fetching the container image {source.reference}", *command)


def _check(source: ContainerSource, target: Path) -> str:
    """That it is what the recipe says, and an archive that Docker loads; returns its sha256."""
    found = files.digest(target)
    if source.sha256 not in (None, found):
        raise ImageError(
            f"The container image {source.name} has the sha256 {found}, the recipe wants "
            f"{source.sha256}.",
            "Check where it comes from.",
        )
    try:
        with tarfile.open(target) as archive:
            known = any(
                member.name.removeprefix("./") in ("manifest.json", "index.json")
                for member in archive
            )
    except (OSError, EOFError, tarfile.TarError):
        known = False
    if not known:
        raise ImageError(
            f"The container image {source.name} is no docker-archive or oci-archive.",
            "`docker save` makes one, and `skopeo copy`.",
        )
    return found
