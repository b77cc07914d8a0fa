"""`vmrunner doctor`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from vmrunner import config
from vmrunner.cli.app import ConfigOption, JsonOption, app, out, say, warn
from vmrunner.doctor.examine import examine
from vmrunner.doctor.findings import Level
from vmrunner.doctor.isolation import credentials, load, residue
from vmrunner.doctor.isolation.lab import Cell, Lab
from vmrunner.doctor.isolation.network import Matrix
from vmrunner.errors import ConfigError
from vmrunner.forge.connect import connect
from vmrunner.hypervisor.host import open_host
from vmrunner.image.versions import store

_MARKS = {
    Level.GOOD: ("ok", "green"),
    Level.WARNING: ("warning", "yellow"),
    Level.ERROR: ("ERROR", "red"),
}


@app.command("doctor")
def doctor(
    as_json: JsonOption = False,
    isolation: Annotated[
        bool,
        typer.Option(
            "--isolation",
            help="Start machines, and try from inside what they can reach. Needs root.",
        ),
    ] = False,
    only: Annotated[
        str,
        typer.Option(
            "--policy",
            help="With --isolation: only the network, and of it internet, none, or pool-NAME.",
        ),
    ] = "",
    boots: Annotated[
        bool,
        typer.Option("--boot", help="With --isolation: boot them, also if there is a snapshot."),
    ] = False,
    config_path: ConfigOption = config.DEFAULT_PATH,
) -> None:
    """Look at everything that machines and jobs need, and say how to mend what is wrong. Changes
    nothing.

    Exit code: 0 all is well, 10 there are warnings, 11 there are errors.
    """
    settings = config.load(config_path)
    if isolation:
        cells = list(_isolation(settings, only, boots=boots))
        if as_json:
            print(json.dumps([asdict(cell) for cell in cells], indent=1))
        else:
            out.print(_matrix(cells))
        raise typer.Exit(Level.GOOD if all(cell.is_right for cell in cells) else Level.ERROR)
    findings = []
    for finding in examine(settings, lambda: open_host(settings, lambda _: None, warn)):
        findings.append(finding)
        if not as_json:
            word, colour = _MARKS[finding.level]
            out.print(f"{word:8}", style=colour, end="")
            out.print(f"{finding.check}: {finding.said}", markup=False)
            if finding.fix:
                out.print(f"{'':8}  {finding.fix}", markup=False)
    if as_json:
        print(
            json.dumps(
                [asdict(each) | {"level": each.level.name.lower()} for each in findings], indent=1
            )
        )
    raise typer.Exit(max(each.level for each in findings))


def _isolation(settings: config.Config, only: str, *, boots: bool) -> Iterator[Cell]:
    """Everything, or the network under the named policy, on machines of the first pool's image and
    size.
    """
    policies = {
        (policy.reach, policy.allow): policy for policy in reversed(settings.policies)
    }.values()
    wanted = (
        [policy for policy in settings.policies if policy.name == only] if only else list(policies)
    )
    if not wanted:
        raise ConfigError(
            f"There is no policy {only!r}.",
            f"There are: {', '.join(policy.name for policy in settings.policies)}.",
        )
    pool = next(iter(settings.pools.values()))
    golden = store.find(settings.images_dir, pool.image)
    lab = Lab(
        settings, lambda: open_host(settings, warn), golden, pool.shape, snapshot=not boots, say=say
    )
    for policy in wanted:
        say(f"policy {policy.name}: two machines")
        yield from Matrix(lab, policy).cells()
    if only:
        return
    say("residue: two machines, one after the other")
    yield from residue.cells(lab)
    say("credentials: two machines, and a runner at the forge")
    with closing(connect(settings.forge, config.forge_token(settings.forge, warn))) as forge:
        yield from credentials.cells(lab, forge, pool.scope[0])
    say("resources: a neighbour, and one machine for each attack")
    yield from load.cells(lab)


def _matrix(cells: list[Cell]) -> Table:
    table = Table(
        "policy", "what", "tried from inside", "is", "should be", "", box=None, pad_edge=False
    )
    for cell in cells:
        found, wanted = (
            "open" if each else "closed" for each in (cell.is_open, cell.should_be_open)
        )
        found = f"{found} ({cell.measured})" if cell.measured else found
        table.add_row(
            cell.policy or "any",
            cell.group,
            cell.what,
            found,
            wanted,
            "ok" if cell.is_right else "WRONG",
            style="" if cell.is_right else "red",
        )
    return table
