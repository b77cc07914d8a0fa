"""`vmrunner completion`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from vmrunner.cli.app import COMPLETE, app


class Shell(StrEnum):
    """Those that can be taught."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


@app.command("completion")
def completion(
    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")],
) -> None:
    """Print what teaches a shell to complete commands, options and names.

    For bash: `vmrunner completion bash >/etc/bash_completion.d/vmrunner`.
    """
    from typer.completion import (  # type: ignore[attr-defined]  # it is imported there
        get_completion_script,
    )

    print(get_completion_script(prog_name="vmrunner", complete_var=COMPLETE, shell=shell.value))
