"""`vmrunner image`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from vmrunner.cli import names
from vmrunner.cli.app import (
    DEFAULT_PATH,
    ConfigOption,
    JsonOption,
    YesOption,
    confirm,
    failure,
    host_settings,
    image,
    open_libvirt,
    out,
    report,
    say,
    show,
    warn,
)
from vmrunner.cli.progress import steps
from vmrunner.cli.shown import Published, Refreshed, Version
from vmrunner.errors import ConfigError, HypervisorError, ImageError, VmrunnerError

if TYPE_CHECKING:
    from vmrunner.config import HostConfig
    from vmrunner.hypervisor.seam import Output
    from vmrunner.image.build.context import BootStock
    from vmrunner.image.upkeep.rotation import Stage
    from vmrunner.model.image import Golden

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="The image's name.", autocompletion=names.images)
]
RecipeArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="The recipe's name.", autocompletion=names.recipes)
]
VersionArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME[/VERSION]",
        help="An image; its current version if none is named.",
        autocompletion=names.versions,
    ),
]
RecipesOption = Annotated[
    Path | None,
    typer.Option("--recipes", help="A folder with your recipes, in place of the configuration's."),
]
_DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")  # of which people need the beginning


@image.command("build")
def build(
    name: RecipeArgument,
    recipes: RecipesOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Build even if the current version has this recipe.")
    ] = False,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="The same, and bootstrap anew: no packages that a build has kept."
        ),
    ] = False,
    compress: Annotated[
        bool | None,
        typer.Option(
            "--compress/--no-compress",
            help="In place of the recipe's `compress`.",
            show_default=False,
        ),
    ] = None,
    ignore_lock: Annotated[
        bool,
        typer.Option(
            "--ignore-lock", help="Ignore the lock: take the versions that the mirror has now."
        ),
    ] = False,
    promote: Annotated[
        bool,
        typer.Option("--promote/--no-promote", help="Whether new machines use it from now on."),
    ] = True,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify", help="Whether a machine of it is looked at before that."
        ),
    ] = True,
    as_json: JsonOption = False,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """Build a golden image from the recipe NAME, boot a machine of it to verify it, and make it the
    current version.
    """
    from vmrunner.image.build import build as builder
    from vmrunner.image.recipe import tools
    from vmrunner.image.recipe.recipe import Recipe
    from vmrunner.image.versions import store

    settings, began = host_settings(config_path), time.monotonic()
    wanted, images = tools.load(name, _own(recipes, settings)), settings.images_dir
    if ignore_lock and isinstance(wanted, Recipe):
        wanted = wanted.model_copy(update={"lock": None})
    if compress is not None and isinstance(wanted, Recipe):
        wanted = wanted.model_copy(update={"compress": compress})
    if (
        not (force or fresh)
        and (known := store.current(images, name))
        and known.manifest.recipe_digest == wanted.digest()
    ):
        _tell(known, f"{name} {known.version} is up to date with its recipe", as_json=as_json)
        return
    with steps(f"image build {name}", settings.state_dir) as told:
        golden = builder.build(
            wanted,
            images,
            told,
            promote=promote and not verify,
            fresh=fresh,
            boot_stock=_boot(settings),
        )
    if not as_json:
        out.print(
            f"{name} {golden.version}: {_content(golden)}, {_mib(golden)} MiB, "
            f"{time.monotonic() - began:.0f} s"
        )
    if not promote:
        say(f"New machines use it after {_by_hand(golden)}.")
    elif verify:
        try:
            stage = _stage(settings)
        except HypervisorError as error:
            raise HypervisorError(
                f"The image {name} {golden.version} is built, but not verified and so not "
                f"promoted: {error.sentence}",
                f"When that is mended: {_by_hand(golden)}; or build it with --no-verify.",
            ) from None
        with steps(f"image verify {name}", settings.state_dir) as told:
            replace(stage, say=told).go_live(golden)
        if not as_json:
            out.print(f"{name} {golden.version}: verified, new machines use it")
    if as_json:
        show(_version(golden, current=promote, built=True, verified=promote and verify))


def _version(
    golden: Golden,
    *,
    current: bool,
    built: bool = False,
    verified: bool = False,
    file: Path | None = None,
) -> Version:
    return Version(
        golden.name,
        golden.version,
        current,
        built,
        verified,
        len(golden.manifest.packages),
        _mib(golden),
        str(file or ""),
    )


def _tell(golden: Golden, said: str, *, as_json: bool) -> None:
    """Of the version that is current now."""
    if as_json:
        show(_version(golden, current=True))
    else:
        out.print(said)


def _mib(golden: Golden) -> int:
    return sum((golden.directory / part).stat().st_size for part in golden.manifest.files) >> 20


def _content(golden: Golden) -> str:
    found = golden.manifest
    return f"{len(found.tools)} tools" if found.tools else f"{len(found.packages)} packages"


def _by_hand(golden: Golden) -> str:
    return (
        f"`vmrunner image verify {golden.id}` and `vmrunner image promote {golden.name} "
        f"{golden.version}`"
    )


def _stage(settings: HostConfig) -> Stage:
    from vmrunner.image.upkeep.rotation import Stage

    return Stage(open_libvirt(settings), settings, say)


def _boot(settings: HostConfig) -> BootStock:
    """For builds that need it, which open a connection of their own then."""

    def run(golden: Golden, command: Sequence[str], write: Callable[[Output, bytes], None]) -> int:
        from vmrunner.image.build import stock

        host = open_libvirt(settings)
        try:
            return stock.boot(host, settings, golden, command, write)
        finally:
            host.close()

    return run


def _own(recipes: Path | None, settings: HostConfig) -> Path:
    if recipes is not None and not recipes.is_dir():
        raise ConfigError(
            f"There is no folder {recipes}.",
            "--recipes names a folder with files like my-image.toml.",
        )
    return recipes or settings.recipes_dir


@image.command("list")
def list_images(as_json: JsonOption = False, config_path: ConfigOption = DEFAULT_PATH) -> None:
    """List the published versions of every image."""
    from vmrunner.image.versions import promotion, proof, store

    images = host_settings(config_path).images_dir
    published = store.list_all(images)
    last = {
        (name, each.to): each
        for name in {golden.name for golden in published}
        for each in promotion.history(images, name)
    }
    found = [
        Published(
            name=golden.name,
            version=golden.version,
            current=golden.version == current_version(images, golden.name),
            kernel=golden.manifest.kernel,
            runner=golden.manifest.runner.kind if golden.manifest.runner else "",
            packages=len(golden.manifest.packages),
            tools=tuple(golden.manifest.tools),
            built_at=golden.manifest.built_at,
            promoted_at=promoted.at
            if (promoted := last.get((golden.name, golden.version)))
            else "",
            promoted_why=promoted.why.value if promoted else "",
            promoted_by=promoted.by if promoted else "",
            forced=tuple(each.model_dump() for each in golden.manifest.forced),
            verified=None if (found_ := proof.read(golden)) is None else found_.is_good,
        )
        for golden in published
    ]
    if as_json:
        show(found)
        return
    # Are typed again.
    columns = [
        Column(header, no_wrap=True)
        for header in ("image", "version", "current", "built", "verified")
    ]
    table = Table(*columns, Column("runner or tools", overflow="fold"), box=None, pad_edge=False)
    for row in found:
        verified = {None: "no", True: "good", False: "BAD"}[row.verified]
        table.add_row(
            row.name,
            row.version,
            "*" if row.current else "",
            row.built_at[:10],  # the day
            f"{verified}, forced" if row.forced else verified,
            ", ".join(row.tools) or row.runner,
        )
    out.print(table)


def current_version(images: Path, name: str) -> str:
    """The version that new machines use, or nothing."""
    from vmrunner.image.versions import store

    known = store.current(images, name)
    return known.version if known else ""


@image.command("promote")
def promote_version(
    name: NameArgument,
    version: Annotated[
        str,
        typer.Argument(
            metavar="VERSION",
            help="A version of the list, or a beginning that no other one has.",
            autocompletion=names.versions_of,
        ),
    ],
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Even if it was not verified, or was found bad; its manifest notes that.",
        ),
    ] = False,
    as_json: JsonOption = False,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """Make a version current that was verified, once its files are found to be as its manifest
    says. Machines that run keep theirs.

    The snapshots that machines of it will be cloned from are made first.
    """
    from vmrunner.image.versions import promotion, proof

    settings = host_settings(config_path)
    golden = promotion.chosen(settings.images_dir, name, version)
    if not force:  # one that does not come up can't be saved either
        proof.demand(golden)
        try:
            stage = _stage(settings)
            with steps(f"image promote {name}", settings.state_dir) as told:
                replace(stage, say=told).make_snapshots(golden)
        except HypervisorError as error:
            warn(f"No snapshot of it is made before: {error.sentence}")
    promotion.promote(settings.images_dir, name, golden.version, say, force=force)
    _tell(golden, f"{name} {golden.version}: new machines use it", as_json=as_json)


@image.command("rollback")
def rollback(
    name: NameArgument, as_json: JsonOption = False, config_path: ConfigOption = DEFAULT_PATH
) -> None:
    """Make the version current that was so before. Once more, and it goes one further back."""
    from vmrunner.image.versions import promotion

    golden = promotion.rollback(host_settings(config_path).images_dir, name, say)
    _tell(golden, f"{name} {golden.version}: new machines use it again", as_json=as_json)


@image.command("prune")
def prune(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="One image; all of them without it.", autocompletion=names.images
        ),
    ] = None,
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep",
            metavar="K",
            min=1,
            help="How many of an image's newest versions stay; else as `[images] keep` says.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """Remove old versions that no machine uses, with their snapshots and volumes.

    Without NAME also what builds have left: kept packages that are too old, logs, folders of builds
    that were killed.
    """
    from vmrunner.image.upkeep import prune as pruning

    settings = host_settings(config_path)
    host, most = open_libvirt(settings), keep or settings.images.keep
    if dry_run:
        waste = pruning.find(host, settings, name, most)
    else:
        confirm(f"Remove what is older than each image's {most} newest versions?", yes=yes)
        waste = pruning.prune(host, settings, name, most, say)
    if as_json:
        show(asdict(waste) | {"removed": not dry_run})
        return
    what = "would be removed" if dry_run else "removed"
    snapshots = (f"snapshot {key}" for key in waste.snapshots)
    for gone in (
        *(" ".join(each) for each in waste.versions),
        *snapshots,
        *waste.volumes,
        *waste.leftovers,
    ):
        out.print(f"{gone}: {what}", markup=False)
    if not waste:
        out.print("Nothing to remove.", markup=False)


@image.command("verify")
def verify_(
    name: VersionArgument,
    files_only: Annotated[
        bool,
        typer.Option("--files-only", help="Compare the files with the manifest, and boot nothing."),
    ] = False,
    as_json: JsonOption = False,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """Compare every file with the manifest and the packages with the lock; then boot a machine of
    it, and look at it from inside.
    """
    from vmrunner.image.versions import store

    settings = host_settings(config_path)
    golden = store.find_version(settings.images_dir, name)
    if files_only:
        store.verify(golden)
        if as_json:
            current = golden.version == current_version(settings.images_dir, golden.name)
            show(_version(golden, current=current, verified=True))
            return
        locked = (
            f", its {len(golden.manifest.packages)} packages as the lock says"
            if golden.manifest.lock
            else ""
        )
        out.print(
            f"{golden.name} {golden.version}: {len(golden.manifest.files)} files are as the "
            f"manifest says{locked}",
            markup=False,
        )
        return
    stage = _stage(settings)
    with steps(f"image verify {golden.name}", settings.state_dir) as told:
        found = replace(stage, say=told).verify(golden)
    if as_json:
        head = {"image": golden.name, "version": golden.version, "good": found.is_good}
        show(head | found.model_dump())
    else:
        table = Table(
            "check", "result", Column("measured", overflow="fold"), box=None, pad_edge=False
        )
        for check in found.checks:
            result, style = (
                ("BAD", "red")
                if not check.passed
                else ("note", "yellow")
                if check.noted
                else ("good", "")
            )
            table.add_row(check.name, result, Text(check.measured), style=style)
        out.print(table)
    if not found.is_good:
        raise ImageError(
            f"The image {golden.name} {golden.version} is not good: {found.said}.",
            "It can't be promoted without --force.",
        )


@image.command("refresh")
def refresh(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="Images; those that the pools use without it.",
            autocompletion=names.recipes,
        ),
    ] = None,
    recipes: RecipesOption = None,
    as_json: JsonOption = False,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """Build images anew; what differs from the current version and is good becomes current, and old
    versions go.

    An image whose recipe is not there is left as it is. `vmrunner systemd install` has a timer for
    this.
    """
    from vmrunner.image.build import build as builder
    from vmrunner.image.recipe import recipe, tools
    from vmrunner.image.upkeep import rotation

    settings = host_settings(config_path)
    own, stage, failures = _own(recipes, settings), _stage(settings), list[VmrunnerError]()
    done = list[Refreshed]()
    with rotation.only_one(settings.images_dir, say):
        for name in rotation.used(settings, names or ()):
            if not names and not recipe.exists(name, own):
                lacks = "there is no recipe of it, so it is left as it is"
                say(f"{name}: {lacks}")
                done.append(Refreshed(name, lacks, None))
                continue
            try:
                with steps(f"image refresh {name}", settings.state_dir) as told:
                    candidate = builder.build(
                        tools.load(name, own),
                        settings.images_dir,
                        told,
                        promote=False,
                        fresh=True,
                        boot_stock=_boot(settings),
                    )
                    settled = replace(stage, say=told).settle(candidate)
                done.append(Refreshed(name, settled, None))
                if not as_json:
                    out.print(f"{name}: {done[-1].said}")
            except VmrunnerError as error:
                report(error)
                failures.append(error)
                done.append(Refreshed(name, "", failure(error)))
    if as_json:
        show(done)
    if failures:
        raise typer.Exit(failures[0].exit_code)


@image.command("lock")
def lock(
    name: RecipeArgument,
    recipes: RecipesOption = None,
    as_json: JsonOption = False,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """Write the packages of the image's current version, with their digests, into the lock that the
    recipe NAME names.
    """
    from vmrunner.image.recipe import lock as locks
    from vmrunner.image.recipe import recipe
    from vmrunner.image.versions import store

    settings = host_settings(config_path)
    path = recipe.locked_by(name, _own(recipes, settings))
    golden = store.find(settings.images_dir, name)
    locks.write(path, name, golden.manifest.packages)
    if as_json:
        show(_version(golden, current=True, file=path))
        return
    out.print(f"{path}: {len(golden.manifest.packages)} packages of {name} {golden.version}")


@image.command("diff")
def diff(
    first: VersionArgument,
    second: VersionArgument,
    as_json: JsonOption = False,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """Show what differs between two images: packages, files of the recipe, runner, kernel."""
    from vmrunner.image.versions import diff as differ
    from vmrunner.image.versions import store

    images = host_settings(config_path).images_dir
    found = differ.between(store.find_version(images, first), store.find_version(images, second))
    if as_json:
        show(found)
        return
    if found.is_empty:
        out.print(f"{found.first} and {found.second} do not differ", markup=False)
    # A version is of use as a whole only.
    columns = [Column(header, overflow="fold") for header in ("", found.first, found.second)]
    table = Table(*columns, box=None, pad_edge=False)
    single = ("recipe_digest", "kernel", "kernel_arguments", "runner")
    named = {word.replace("_", " "): change for word in single if (change := getattr(found, word))}
    further = {f"runner {name}": change for name, change in found.runners.items()}
    changed = named | further | found.packages | found.tools | (found.files or {})
    for what, change in changed.items():
        table.add_row(
            what, *(_DIGEST.sub(r"\1", text) or "-" for text in (change.first, change.second))
        )
    if table.rows:
        out.print(table)
    if found.files is None:
        out.print(
            "The recipes' files were not compared: an older vmrunner did not note them.",
            markup=False,
        )


@image.command("sbom")
def sbom(name: VersionArgument, config_path: ConfigOption = DEFAULT_PATH) -> None:
    """Print the image's bill of materials: CycloneDX, as JSON."""
    from vmrunner.image.versions import sbom as bill  # it needs the extra `sbom`, and says so
    from vmrunner.image.versions import store

    print(bill.text(store.find_version(host_settings(config_path).images_dir, name)))


@image.command("export")
def export(
    name: VersionArgument,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Where to write it.", show_default=False)
    ],
    as_json: JsonOption = False,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """Write a version of an image into a file that `vmrunner image import` takes on another
    host.
    """
    from vmrunner.image.versions import store, transfer

    images = host_settings(config_path).images_dir
    golden = store.find_version(images, name)
    size = transfer.export(golden, file) >> 20
    if as_json:
        current = golden.version == current_version(images, golden.name)
        show(_version(golden, current=current, file=file))
        return
    out.print(f"{file}: {golden.name} {golden.version}, {size} MiB")


@image.command("import")
def import_file(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="What `vmrunner image export` wrote.", show_default=False
        ),
    ],
    as_json: JsonOption = False,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """Take a version of an image from a file; new machines use it when it is promoted."""
    from vmrunner.image.versions import transfer

    golden = transfer.fetch(file, host_settings(config_path).images_dir, say)
    if as_json:
        show(_version(golden, current=False, file=file))
    else:
        out.print(f"{golden.name} {golden.version}: imported")
    say(f"New machines use it after {_by_hand(golden)}.")
