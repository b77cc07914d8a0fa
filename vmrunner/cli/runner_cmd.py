"""`vmrunner runner`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmrunner.cli import names
from vmrunner.cli.app import (
    DEFAULT_PATH,
    ConfigOption,
    JsonOption,
    host_settings,
    out,
    runner_app,
    say,
    show,
    warn,
)
from vmrunner.cli.shown import RunnerProgram
from vmrunner.errors import WrongCommand

if TYPE_CHECKING:
    from vmrunner.image.build.release import Release


@runner_app.command("fetch")
def fetch(
    forge: Annotated[
        str,
        typer.Argument(metavar="FORGE", help="forgejo or gitea.", autocompletion=names.forges),
    ],
    version: Annotated[str, typer.Argument(metavar="VERSION", help="Such as 12.8.2.")],
    arch: Annotated[
        str, typer.Option("--arch", help="amd64 or arm64.", show_default="this host's")
    ] = "",
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="DIR", show_default="runners/ in state_dir", help="Where to."),
    ] = None,
    mirror: Annotated[
        str,
        typer.Option(
            "--mirror",
            metavar="URL",
            help="Another server with the same folders below this address.",
        ),
    ] = "",
    sha256: Annotated[
        str,
        typer.Option("--sha256", help="What it must be, in place of what is published beside it."),
    ] = "",
    only_print: Annotated[
        bool,
        typer.Option("--print", help="Fetch nothing: print commands that do, for another host."),
    ] = False,
    as_json: JsonOption = False,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """Fetch a runner program from its project's own site, check it against its published checksum,
    and print the lines that a recipe needs.
    """
    from vmrunner.image.build import release

    if arch and arch not in list(release.Arch):
        raise WrongCommand(f"There is no runner for {arch!r}.", "There are: amd64, arm64.")
    if sha256 and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise WrongCommand("That is not a sha256.", "It has 64 digits from 0 to 9 and a to f.")
    wanted = release.release(
        forge, version, release.Arch(arch) if arch else release.this_arch(), mirror
    )
    if wanted.untried:
        warn(wanted.untried)
    folder = (to or host_settings(config_path).state_dir / "runners").absolute()
    if only_print:
        lines = release.recipe(wanted.program, folder / wanted.file, "", wanted.version)
        if as_json:
            show(_record(wanted, folder / wanted.file, ""))
        else:
            print(f"{wanted.script(folder)}\n# In the recipe:\n{lines}", end="")
        return
    say(f"fetching {wanted.url}")
    found = wanted.fetch(folder, sha256.lower())
    if as_json:
        show(_record(wanted, found.path, found.sha256, new=found.new))
        return
    said = "is there, with the right sha256" if found.new else "was there already, and is right"
    out.print(f"{found.path} {said}. In the recipe:\n")
    print(found.recipe, end="")


def _record(wanted: Release, path: Path, sha256: str, *, new: bool = False) -> RunnerProgram:
    return RunnerProgram(
        wanted.program, wanted.version, wanted.arch.value, wanted.url, str(path), sha256, new
    )
