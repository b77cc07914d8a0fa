"""`vmrunner snapshot`."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from vmrunner.cli import names
from vmrunner.cli.app import (
    DEFAULT_PATH,
    ConfigOption,
    JsonOption,
    YesOption,
    age,
    confirm,
    host_settings,
    open_libvirt,
    out,
    show,
    snapshot,
)
from vmrunner.cli.exec_cmd import (
    DISK,
    MEMORY,
    CpusOption,
    ImageOption,
    MemoryOption,
    ToolsOption,
    refuse_beside,
    shape_of,
)
from vmrunner.cli.progress import steps
from vmrunner.cli.shown import Keys
from vmrunner.errors import ConfigError
from vmrunner.model.machine import DEFAULT_SHAPE, Shape

if TYPE_CHECKING:
    from vmrunner.config import HostConfig
    from vmrunner.hypervisor.seam import Snapshot

_TIMEOUT = 600.0  # seconds

KeyArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="KEY",
        help="One snapshot of the list; all of them without it.",
        autocompletion=names.snapshots,
    ),
]


@snapshot.command("create")
def create(
    ctx: typer.Context,
    image: ImageOption = "debian-12",
    cpus: CpusOption = DEFAULT_SHAPE.vcpus,
    memory: MemoryOption = MEMORY,
    disk: Annotated[str, typer.Option("--disk", help='Like "20GiB".')] = DISK,
    tools: ToolsOption = None,
    pool: Annotated[
        str | None,
        typer.Option(
            "--pool",
            help="The image, tools and size of this pool, instead of the options above.",
            autocompletion=names.pools,
        ),
    ] = None,
    flavor: Annotated[
        str | None,
        typer.Option(
            "--flavor", help="The size and tools of this flavor for GARM; the image is --image."
        ),
    ] = None,
    as_json: JsonOption = False,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """Boot a machine once and keep its memory, so that machines of this image and size start in a
    second or two.
    """
    from vmrunner import config
    from vmrunner.image.versions import store
    from vmrunner.machine import clones

    settings: HostConfig
    if pool:
        refuse_beside(ctx, "pool", "image", "cpus", "memory", "disk", "tools", "flavor")
        full = config.load(config_path)
        section = full.pool(pool)
        settings, image, shape, tools = full, section.image, section.shape, section.tools
    elif flavor:
        refuse_beside(ctx, "flavor", "cpus", "memory", "disk", "tools")
        full = config.load(config_path)
        if flavor not in full.garm.flavors:
            raise ConfigError(
                f"There is no flavor {flavor!r}.",
                f"The configuration has: {', '.join(full.garm.flavors) or 'none'}.",
            )
        settings, made_as = full, full.garm.flavors[flavor]
        shape, tools = made_as.shape, made_as.tools
    else:
        settings, shape = config.load_host(config_path), shape_of(cpus, memory, disk)
    began, golden = time.monotonic(), store.for_machines(settings.images_dir, image, tools)
    host = open_libvirt(settings)
    with steps(f"snapshot create {golden.name}", settings.state_dir) as told:
        made = clones.make(host, settings, golden, shape, timeout=_TIMEOUT, say=told)
    took = time.monotonic() - began
    if as_json:
        show(made)
    else:
        out.print(f"snapshot {made.key} of {made.image}: {_size(made.shape)}, {took:.0f} s")


@snapshot.command("list")
def list_snapshots(as_json: JsonOption = False, config_path: ConfigOption = DEFAULT_PATH) -> None:
    """List the snapshots on this host."""
    from vmrunner.machine.clones import Shelf

    settings = host_settings(config_path)
    found, shelf = open_libvirt(settings).snapshots.all(), Shelf(settings.state_dir)
    if as_json:
        show([asdict(each) | {"used_at": shelf.last_use(each)} for each in found])
        return
    columns = [Column(name, no_wrap=True) for name in ("disk", "QEMU", "libvirt", "made", "used")]
    table = Table(
        Column("snapshot", no_wrap=True),
        Column("image", overflow="fold"),
        "machine",
        *columns,
        box=None,
        pad_edge=False,
    )
    for each in found:
        made, used = (age(at, time.time()) for at in (each.made_at, shelf.last_use(each)))
        table.add_row(
            each.key,
            f"{each.image} + {each.tools}" if each.tools else each.image,
            _size(each.shape),
            f"{each.disk_mib} MiB",
            each.qemu,
            each.libvirt,
            made,
            used,
        )
    out.print(table)


@snapshot.command("verify")
def verify(
    key: KeyArgument = None,
    as_json: JsonOption = False,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """Read every file of the snapshots and compare it with its digest."""
    host = open_libvirt(host_settings(config_path))
    chosen = _chosen(host.snapshots.all(), key)
    for each in chosen:
        host.snapshots.verify(each)
        if not as_json:
            out.print(f"snapshot {each.key}: {len(each.files)} files are as they were made")
    if as_json:
        show(Keys(tuple(each.key for each in chosen), ()))


@snapshot.command("drop")
def drop(
    key: KeyArgument = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """Delete one snapshot, or all of them, which has to be confirmed.

    Machines that were cloned from them run on; new ones are booted until there is a snapshot again.
    """
    host = open_libvirt(host_settings(config_path))
    chosen, stays = _chosen(host.snapshots.all(), key), list[str]()
    if not key and chosen:
        confirm(f"Delete all {len(chosen)} snapshots?", yes=yes, always=True)
    for each in chosen:
        kept = host.snapshots.drop(each.key)
        stays += kept
        but = f", but for {', '.join(kept)}, which other guests of this host use" if kept else ""
        if not as_json:
            out.print(f"snapshot {each.key}: deleted{but}")
    if as_json:
        show(Keys(tuple(each.key for each in chosen), tuple(stays)))


@snapshot.command("apparmor")
def apparmor(config_path: ConfigOption = DEFAULT_PATH) -> None:
    """Print the rules that a host with AppArmor needs, or its machines are booted: for
    /etc/apparmor.d/local/abstractions/libvirt-qemu.
    """
    from vmrunner.render import text

    print(text("apparmor.j2", folder=host_settings(config_path).libvirt.storage_path), end="")


def _chosen(found: list[Snapshot], key: str | None) -> list[Snapshot]:
    chosen = [each for each in found if key in (None, each.key)]
    if key and not chosen:
        raise ConfigError(f"There is no snapshot {key!r}.", "See `vmrunner snapshot list`.")
    return chosen


def _size(shape: Shape) -> str:
    also = ", nested" if shape.nested else ""
    return f"{shape.vcpus} vCPU, {shape.memory_mib} MiB, {shape.disk_gib} GiB{also}"
