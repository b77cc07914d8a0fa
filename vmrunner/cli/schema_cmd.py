"""`vmrunner schema`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from vmrunner.cli import shown
from vmrunner.cli.app import app, out
from vmrunner.errors import WrongCommand


@app.command("schema", context_settings={"ignore_unknown_options": True})
def schema(
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="COMMAND", help="Such as `image list`; the list of them without it."
        ),
    ] = None,
) -> None:
    """Print the JSON Schema of what a command prints with --json.

    Fields may be added; none is renamed. `error` is what any of them prints when it fails.
    """
    name = " ".join(command or ())
    if not name:
        for each in shown.SCHEMAS:
            out.print(each)
        return
    if name not in shown.SCHEMAS:
        raise WrongCommand(
            f"There is no schema for {name!r}.", f"There are: {', '.join(shown.SCHEMAS)}."
        )
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    print(json.dumps(head | shown.SCHEMAS[name](), indent=1))
