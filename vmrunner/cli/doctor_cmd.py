"""`vmrunner doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from vmrunner import config
from vmrunner.cli.app import ConfigOption, JsonOption, app, out
from vmrunner.doctor import Level, examine
from vmrunner.hypervisor.host import open_host

_MARKS = {Level.GOOD: ("ok", "green"), Level.WARNING: ("warning", "yellow"), Level.ERROR: ("ERROR", "red")}


@app.command("doctor")
def doctor(as_json: JsonOption = False, config_path: ConfigOption = config.DEFAULT_PATH) -> None:
    """Look at everything that machines and jobs need, and say how to mend what is wrong. Changes nothing.

    Exit code: 0 all is well, 10 there are warnings, 11 there are errors.
    """
    settings = config.load(config_path)
    findings = []
    for finding in examine(settings, lambda: open_host(settings, lambda _: None)):
        findings.append(finding)
        if not as_json:
            word, colour = _MARKS[finding.level]
            out.print(f"{word:8}", style=colour, end="")
            out.print(f"{finding.check}: {finding.said}", markup=False)
            if finding.fix:
                out.print(f"{'':8}  {finding.fix}", markup=False)
    if as_json:
        print(json.dumps([asdict(each) | {"level": each.level.name.lower()} for each in findings], indent=1))
    raise typer.Exit(max(each.level for each in findings))
