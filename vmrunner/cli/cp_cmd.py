"""`vmrunner cp`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vmrunner.cli import names
from vmrunner.cli.app import DEFAULT_PATH, ConfigOption, app, warn
from vmrunner.errors import MachineError, WrongCommand

_MACHINES = names.live_machines


@app.command("cp")
def cp(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FROM", help="MACHINE:PATH, or a path of this host.", autocompletion=_MACHINES
        ),
    ],
    target: Annotated[
        str, typer.Argument(metavar="TO", help="The other one.", autocompletion=_MACHINES)
    ],
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Folders, too.")] = False,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """Copy a file, or with -r a folder, out of a machine that runs, or into it, as root.

    It goes over a port of the machine, not over its network. Links and devices are left out.
    """
    from vmrunner import config
    from vmrunner.hypervisor.host import open_host
    from vmrunner.machine import copying, named, visit

    outwards, inwards = copying.split(source), copying.split(target)
    name = (outwards or inwards or ("", ""))[0]
    if (outwards is None) is (inwards is None):
        raise WrongCommand(
            "One of FROM and TO has to be MACHINE:PATH, and the other one a path of this host.",
            "Begin a path of this host that has a colon with ./",
        )
    host = open_host(config.load_host(config_path), warn)
    machine = named.find(host.machines.all(), name)
    with visit.entered(host.machines, machine) as (transport, line):
        sftp = transport.open_sftp_client()
        if sftp is None:
            raise MachineError(f"{machine.id} {line.fault or 'copies no files'}.", visit.GONE_HINT)
        copy = copying.Copy(sftp, machine.id, warn, recursive=recursive)
        if outwards:
            copy.out(outwards[1], Path(target))
        elif inwards:
            copy.into(Path(source), inwards[1])
