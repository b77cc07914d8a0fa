"""`vmrunner exec`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from vmrunner.cli import names
from vmrunner.cli.app import DEFAULT_PATH, ConfigOption, app, duration, say, warn
from vmrunner.errors import WrongCommand
from vmrunner.model.machine import DEFAULT_SHAPE, Shape
from vmrunner.network.policy import Reach, pool_policy
from vmrunner.text import sentence

if TYPE_CHECKING:
    from vmrunner.config import HostConfig

MEMORY, DISK = f"{DEFAULT_SHAPE.memory_mib // 1024}GiB", f"{DEFAULT_SHAPE.disk_gib}GiB"
"""Of a machine that is made without a pool."""

ImageOption = Annotated[
    str, typer.Option("--image", "-i", help="The golden image.", autocompletion=names.images)
]
CpusOption = Annotated[int, typer.Option("--cpus", min=1, max=1024, help="Virtual processors.")]
MemoryOption = Annotated[str, typer.Option("--memory", help='Like "512MiB" or "2GiB".')]
ToolsOption = Annotated[
    str | None,
    typer.Option("--tools", help="A disk of tools beside the image.", autocompletion=names.images),
]


def shape_of(cpus: int, memory: str, disk: str) -> Shape:
    """The size of a machine, from the command line. Raises WrongCommand."""
    from vmrunner import config

    try:
        return Shape(cpus, config.parse_size(memory), max(1, config.parse_size(disk) // 1024))
    except ValueError as error:
        raise WrongCommand(sentence(str(error)), "See --help.") from None


def refuse_beside(ctx: typer.Context, chosen: str, *others: str) -> None:
    """Raises WrongCommand where one of the other options is given beside the chosen one, which says
    the same.
    """
    for other in others:
        source = ctx.get_parameter_source(other)
        if source and source.name == "COMMANDLINE":
            raise WrongCommand(
                f"--{other} and --{chosen} don't go together.",
                f"--{chosen} says that already; leave one of them out.",
            )


@app.command("exec", context_settings={"allow_interspersed_args": False})
def exec_(
    ctx: typer.Context,
    command: Annotated[
        list[str], typer.Argument(metavar="COMMAND", help="The command and its arguments.")
    ],
    image: ImageOption = "debian-12",
    cpus: CpusOption = DEFAULT_SHAPE.vcpus,
    memory: MemoryOption = MEMORY,
    tools: ToolsOption = None,
    pool: Annotated[
        str | None,
        typer.Option(
            "--pool",
            help="The image, tools, size and network of this pool, instead of the options above.",
            autocompletion=names.pools,
        ),
    ] = None,
    boots: Annotated[
        bool, typer.Option("--boot", help="Boot the machine even if there is a snapshot.")
    ] = False,
    network: Annotated[
        Reach | None,
        typer.Option(
            "--network",
            metavar="internet|none",
            help="What it reaches: public addresses, or none, which leaves the forge alone, if one "
            "is configured. Default: what the pool's machines reach, else internet.",
        ),
    ] = None,
    timeout: Annotated[
        str, typer.Option("--timeout", help='For the command, like "90s" or "15m".')
    ] = "1h",
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """Run one command in a throwaway machine, without a forge.

    Output streams live; the exit code is the command's.
    """
    from vmrunner import config
    from vmrunner.hypervisor.host import open_host
    from vmrunner.hypervisor.seam import Output
    from vmrunner.image.versions import store
    from vmrunner.machine import oneshot
    from vmrunner.machine.maker import pinned
    from vmrunner.network.forge import forge_host

    limit = duration(timeout, "exec")
    if network is Reach.ALLOWLIST:
        raise WrongCommand(
            "An allowlist belongs to a pool.",
            "For exec there are --network internet and --network none.",
        )
    settings: HostConfig
    reach = Reach.INTERNET
    if pool:
        refuse_beside(ctx, "pool", "image", "cpus", "memory", "tools")
        full = config.load(config_path)
        section, settings = full.pool(pool), full
        image, shape, tools = section.image, section.shape, section.tools
        reach = section.network
    else:
        shape, settings = shape_of(cpus, memory, DISK), config.load_host(config_path)
    policy = pool_policy(pool) if pool and network is None else network or reach
    address = pinned(settings, network or reach)
    golden = store.for_machines(settings.images_dir, image, tools)
    host = open_host(settings, warn)
    streams = {Output.STDOUT: sys.stdout.buffer, Output.STDERR: sys.stderr.buffer}

    def write(output: Output, chunk: bytes) -> None:
        streams[output].write(chunk)
        streams[output].flush()

    code = oneshot.run(
        host,
        settings,
        oneshot.Command(
            golden,
            command,
            shape,
            limit,
            snapshot=not boots,
            network=policy,
            hosts=f"{address} {forge_host(settings.forge_url)}" if address else "",
        ),
        write=write,
        say=say,
    )
    raise typer.Exit(code)
