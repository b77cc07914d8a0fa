"""`vmrunner doctor`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from vmrunner.cli import names
from vmrunner.cli.app import DEFAULT_PATH, ConfigOption, JsonOption, app, out, say, show, warn
from vmrunner.doctor.findings import Finding, Level
from vmrunner.errors import ConfigError, WrongCommand

if TYPE_CHECKING:
    from vmrunner.config import Config, HostConfig
    from vmrunner.doctor.isolation.lab import Cell

_LAST = 20  # machines that a pool's pace is measured by
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
            autocompletion=names.policies,
        ),
    ] = "",
    boots: Annotated[
        bool,
        typer.Option("--boot", help="With --isolation: boot them even if there is a snapshot."),
    ] = False,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """Look at everything that machines and jobs need, and say how to mend what is wrong. Changes
    nothing.

    Exit code: 0 all is well, 10 there are warnings, 11 there are errors.
    """
    from vmrunner import config

    settings = config.load_host(config_path)
    if isolation:
        cells = list(_isolation(config.load(config_path), only, boots=boots))
        if as_json:
            show(cells)
        else:
            out.print(_matrix(cells))
        raise typer.Exit(Level.GOOD if all(cell.is_right for cell in cells) else Level.ERROR)
    findings = []
    for finding in _findings(settings):
        findings.append(finding)
        if not as_json:
            _print(finding)
    if as_json:
        show([asdict(each) | {"level": each.level.name.lower()} for each in findings])
    raise typer.Exit(max(each.level for each in findings))


def tell(settings: HostConfig) -> Level:
    """Print every finding; how bad the worst is."""
    worst = Level.GOOD
    for finding in _findings(settings):
        worst = max(worst, finding.level)
        _print(finding)
    return worst


def _findings(settings: HostConfig) -> Iterator[Finding]:
    from vmrunner.doctor.examine import examine
    from vmrunner.hypervisor.host import open_host

    return examine(settings, lambda: open_host(settings, lambda _: None, warn), _starts(settings))


def _print(finding: Finding) -> None:
    word, colour = _MARKS[finding.level]
    out.print(f"{word:8}", style=colour, end="")
    out.print(f"{finding.check}: {finding.said}", markup=False)
    if finding.fix:
        out.print(f"{'':8}  {finding.fix}", markup=False)


def _starts(settings: HostConfig) -> dict[str, list[float]]:
    """How long the last jobs of each pool waited for their runner; none without pools."""
    from vmrunner.config import Config
    from vmrunner.manager.history import History

    path = settings.history_file
    if not isinstance(settings, Config) or not os.access(path, os.R_OK):
        return {}
    with closing(History(path, lambda _: None, read_only=True)) as history:
        return {name: history.starts(name, _LAST) for name in settings.pools}


def _isolation(settings: Config, only: str, *, boots: bool) -> Iterator[Cell]:
    """Everything, or the network under the named policy, on machines of the first pool's image and
    size.
    """
    from vmrunner import config
    from vmrunner.doctor import cache
    from vmrunner.doctor.isolation import credentials, load, residue
    from vmrunner.doctor.isolation.lab import Lab
    from vmrunner.doctor.isolation.network import Matrix
    from vmrunner.forge.connect import connect
    from vmrunner.hypervisor.host import open_host
    from vmrunner.image.versions import store

    policies = {
        (policy.reach, policy.allow, policy.host_ports): policy
        for policy in reversed(settings.policies)
    }.values()
    wanted = (
        [policy for policy in settings.policies if policy.name == only] if only else list(policies)
    )
    if not wanted:
        raise WrongCommand(
            f"There is no policy {only!r}.",
            f"There are: {', '.join(policy.name for policy in settings.policies)}.",
        )
    pool = next(iter(settings.pools.values()), None)
    if pool is None:
        raise ConfigError(
            "The isolation is tried with the image of a pool, and there is none.",
            "Add one to the configuration.",
        )
    golden = store.for_machines(settings.images_dir, pool.image, pool.tools)
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
    if cache.answers(settings):
        from vmrunner.cache.lab import Lab as Jobs
        from vmrunner.doctor.isolation import cache as shared

        say("cache: one machine that has an entry, and three that have not")
        yield from shared.cells(lab, Jobs(settings))
    elif settings.cache.listen_port:
        say("cache: not tried, as it does not answer; `vmrunner serve` offers it while it runs")
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
