"""Building a golden image from a recipe: bootstrap, a disk from the tree, a manifest, and an atomic
rename. No loop mounts.
"""

from __future__ import annotations

import errno
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

from vmrunner import __version__
from vmrunner.errors import ImageError
from vmrunner.files import digest
from vmrunner.image.build import apt, containers, kernel
from vmrunner.image.build.bootstrap import bootstrap
from vmrunner.image.build.build_log import BuildLog
from vmrunner.image.build.downloads import Downloads
from vmrunner.image.build.programs import Programs
from vmrunner.image.build.stock import Run
from vmrunner.image.build.tree import furnish
from vmrunner.image.recipe import lock
from vmrunner.image.recipe.recipe import Recipe
from vmrunner.image.versions import workshop
from vmrunner.image.versions.store import LOCK, MANIFEST
from vmrunner.log import Say
from vmrunner.model.image import DISK, Golden, Input, Manifest, Package

_PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "qemu-img": "qemu-utils",
    "unshare": "util-linux",
}


def build(
    recipe: Recipe,
    images: Path,
    say: Say,
    *,
    promote: bool = True,
    fresh: bool = False,
    run: Run | None = None,
) -> Golden:
    """Build the recipe and, with `promote`, make it its image's current version, unverified as it
    is. `say` is told each step as it begins.

    The packages of a build of the same day are taken again unless they have to be `fresh`. `run` is
    for a recipe with a stock image. Nothing of an image can be seen in the store before all of it
    is there. Raises ImageError, with the end of the failed program's output; all of it is in a file
    beside the images.
    """
    for program, package in _PROGRAMS.items():
        if not shutil.which(program) and not (program == "mmdebstrap" and recipe.stock):
            raise ImageError(f"Building images needs {program}.", f"apt-get install {package}")
    if os.geteuid() != 0:
        raise ImageError(
            "Building images needs root: the files of the image belong to root.",
            "Run it with sudo.",
        )
    locked = lock.read(recipe.lock) if recipe.lock else ""
    wanted = lock.parse(locked, str(recipe.lock))
    recipe_digest = recipe.digest()  # once: it reads every file that the recipe names
    version = f"{datetime.now(UTC):%Y%m%d%H%M%S}-{recipe_digest[:8]}"
    try:
        log = BuildLog(workshop.log(images, f"{recipe.name}-{version}"), say)
        programs, downloads = Programs(log), Downloads(images, log)
        with workshop.opened(images) as work:
            out = work / "out"
            out.mkdir()
            tree, found = bootstrap(recipe, images, work, downloads, programs, fresh=fresh, run=run)
            if recipe.lock:
                _compare(recipe, wanted, found)
            inputs, runner, further = furnish(recipe, tree, downloads, programs)
            archives = containers.lay(recipe.containers, tree, downloads, programs)
            inputs |= {path: Input(mode="0644", sha256=sha256) for path, sha256 in archives.items()}
            booted = kernel.take(tree, out, recipe.kernel)
            programs.log.step(f"writing a disk of {recipe.size} MiB")
            _write_disk(tree, out / DISK, work, recipe, programs)
            files = {path.name: digest(path) for path in sorted(out.iterdir())}
            if recipe.lock:
                (out / LOCK).write_text(locked, encoding="utf-8")
            manifest = Manifest(
                name=recipe.name,
                version=version,
                recipe_digest=recipe_digest,
                files=files,
                packages=found,
                distribution=apt.distribution(tree),
                suite=recipe.suite,
                inputs=inputs,
                lock=digest(out / LOCK) if recipe.lock else "",
                kernel=booted,
                kernel_arguments=recipe.kernel_arguments,
                runner=runner,
                runners=further,
                containers={
                    path: source.name
                    for path, source in zip(archives, recipe.containers, strict=True)
                },
                checks=recipe.checks,
                listens=recipe.listens,
                built_at=datetime.now(UTC).isoformat(timespec="seconds"),
                vmrunner_version=__version__,
            )
            (out / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
            return workshop.publish(out, images, manifest, say, promote=promote)
    except OSError as error:
        hint = (
            "Free some space."
            if error.errno == errno.ENOSPC
            else f"May this user write in {images}?"
        )
        what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or error
        raise ImageError(f"The image {recipe.name} can't be built: {what}.", hint) from None


def _compare(recipe: Recipe, wanted: dict[str, Package], found: dict[str, Package]) -> None:
    different = lock.differences(wanted, found)
    if different:
        raise ImageError(
            f"The packages are not those of the lock {recipe.lock}: {'; '.join(different)}.",
            f"A `snapshot` in the recipe gives old ones; `vmrunner image build {recipe.name} "
            "--ignore-lock`, "
            f"then `vmrunner image lock {recipe.name}` take the new ones.",
        )


def _write_disk(tree: Path, disk: Path, work: Path, recipe: Recipe, programs: Programs) -> None:
    raw = work / "disk.raw"
    with raw.open("wb") as out:
        out.truncate(recipe.size << 20)
    # No journal start-up work, and no lazy initialisation that would write in the background of
    # every machine.
    programs.run(
        "Making the file system",
        "mke2fs",
        "-q",
        "-t",
        "ext4",
        "-E",
        "lazy_itable_init=0",
        "-L",
        "root",
        "-d",
        tree,
        raw,
    )
    options = (
        ["-c", "-o", "compat=1.1,compression_type=zstd"]
        if recipe.compress
        else ["-o", "compat=1.1"]
    )
    programs.run(
        "Making the disk", "qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options, raw, disk
    )
    disk.chmod(0o444)
