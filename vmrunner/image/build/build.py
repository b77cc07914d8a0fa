"""Building a golden image from a recipe: a tree of files, a disk made of it, a manifest, and an
atomic rename. No loop mounts.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from vmrunner import __version__
from vmrunner.errors import ImageError
from vmrunner.files import digest
from vmrunner.image.build import apt, containers, kernel, tools
from vmrunner.image.build.bootstrap import bootstrap
from vmrunner.image.build.build_log import BuildLog
from vmrunner.image.build.containers import Archive
from vmrunner.image.build.context import BootStock, Build, Site
from vmrunner.image.build.programs import Programs
from vmrunner.image.build.tree import Furnished, furnish
from vmrunner.image.recipe import lock
from vmrunner.image.recipe.recipe import Recipe
from vmrunner.image.recipe.tools import ToolsRecipe
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
    recipe: Recipe | ToolsRecipe,
    images: Path,
    say: Say,
    *,
    promote: bool = True,
    fresh: bool = False,
    boot_stock: BootStock | None = None,
) -> Golden:
    """Build the recipe, of an image or of a disk of tools, and, with `promote`, make it the current
    version, unverified as it is. `say` is told each step as it begins.

    The packages of a build of the same day are taken again unless they have to be `fresh`.
    `boot_stock` is for a recipe with a stock image. Nothing of an image can be seen in the store
    before all of it is there. Raises ImageError, with the end of the failed program's output; all
    of it is in a file beside the images.
    """
    _check_host(recipe)
    locked = "" if isinstance(recipe, ToolsRecipe) else _read_lock(recipe)
    recipe_digest = recipe.digest()  # once: it reads every file that the recipe names
    version = f"{datetime.now(UTC):%Y%m%d%H%M%S}-{recipe_digest[:8]}"
    with _os_errors_as_sentences(recipe, images):
        log = BuildLog(workshop.log(images, f"{recipe.name}-{version}"), say)
        with workshop.opened(images) as work:
            site = Site(
                recipe_digest=recipe_digest,
                version=version,
                images=images,
                work=work,
                programs=Programs(log),
            )
            if isinstance(recipe, ToolsRecipe):
                manifest = tools.make(site, recipe)
            else:
                manifest = _make(
                    Build(
                        **vars(site),
                        recipe=recipe,
                        lock=locked,
                        fresh=fresh,
                        boot_stock=boot_stock,
                    )
                )
            return workshop.publish(site.out, images, manifest, say, promote=promote)


def _make(build: Build) -> Manifest:
    """All the steps, until everything that is published is in the folder `out`."""
    build.out.mkdir()
    packages = bootstrap(build)
    _compare_with_lock(build, packages)
    furnished = furnish(build)
    archives = containers.lay(build)
    kernel_version = kernel.take(build.tree, build.out, build.recipe.kernel)
    _write_disk(build)
    return _write_manifest(build, packages, furnished, archives, kernel_version)


def _check_host(recipe: Recipe | ToolsRecipe) -> None:
    bootstraps = isinstance(recipe, Recipe) and not recipe.stock
    for program, package in _PROGRAMS.items():
        if not shutil.which(program) and (program != "mmdebstrap" or bootstraps):
            raise ImageError(f"Building images needs {program}.", f"apt-get install {package}")
    if os.geteuid() != 0:
        raise ImageError(
            "Building images needs root: the files of the image belong to root.",
            "Run it with sudo.",
        )


def _read_lock(recipe: Recipe) -> str:
    """The text of the recipe's lock; one that is wrong is told before anything is built."""
    text = lock.read(recipe.lock) if recipe.lock else ""
    lock.parse(text, str(recipe.lock))
    return text


@contextmanager
def _os_errors_as_sentences(recipe: Recipe | ToolsRecipe, images: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = (
            "Free some space."
            if error.errno == errno.ENOSPC
            else f"May this user write in {images}?"
        )
        what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or error
        raise ImageError(f"The image {recipe.name} can't be built: {what}.", hint) from None


def _compare_with_lock(build: Build, packages: Mapping[str, Package]) -> None:
    recipe = build.recipe
    if not recipe.lock:
        return
    different = lock.differences(lock.parse(build.lock, str(recipe.lock)), packages)
    if different:
        raise ImageError(
            f"The packages are not those of the lock {recipe.lock}: {'; '.join(different)}.",
            f"A `snapshot` in the recipe gives old ones; `vmrunner image build {recipe.name} "
            "--ignore-lock`, "
            f"then `vmrunner image lock {recipe.name}` take the new ones.",
        )


def _write_disk(build: Build) -> None:
    recipe, raw, disk = build.recipe, build.work / "disk.raw", build.out / DISK
    build.step(f"writing a disk of {recipe.size} MiB")
    with raw.open("wb") as out:
        out.truncate(recipe.size << 20)
    # No journal start-up work, and no lazy initialisation that would write in the background of
    # every machine.
    options = ["-q", "-t", "ext4", "-E", "lazy_itable_init=0", "-L", "root"]
    build.programs.run("Making the file system", "mke2fs", *options, "-d", build.tree, raw)
    options = ["-f", "raw", "-O", "qcow2"]
    options += (
        ["-c", "-o", "compat=1.1,compression_type=zstd"]
        if recipe.compress
        else ["-o", "compat=1.1"]
    )
    build.programs.run("Making the disk", "qemu-img", "convert", *options, raw, disk)
    disk.chmod(0o444)


def _write_manifest(
    build: Build,
    packages: dict[str, Package],
    furnished: Furnished,
    archives: list[Archive],
    kernel_version: str,
) -> Manifest:
    """Beside the files in `out`, with the digest of each; and the lock, if there is one."""
    recipe, out = build.recipe, build.out
    files = {path.name: digest(path) for path in sorted(out.iterdir())}
    if recipe.lock:
        (out / LOCK).write_text(build.lock, encoding="utf-8")
    manifest = Manifest(
        name=recipe.name,
        version=build.version,
        recipe_digest=build.recipe_digest,
        files=files,
        packages=packages,
        distribution=apt.distribution(build.tree),
        suite=recipe.suite,
        inputs=furnished.inputs
        | {each.path: Input(mode="0644", sha256=each.sha256) for each in archives},
        lock=digest(out / LOCK) if recipe.lock else "",
        kernel=kernel_version,
        kernel_arguments=recipe.kernel_arguments,
        runner=furnished.runner,
        runners=furnished.runners,
        containers={each.path: each.name for each in archives},
        checks=recipe.checks,
        listens=recipe.listens,
        built_at=datetime.now(UTC).isoformat(timespec="seconds"),
        vmrunner_version=__version__,
    )
    (out / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return manifest
