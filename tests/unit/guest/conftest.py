"""job.py, here, with its folders changed and without its end."""

from __future__ import annotations

import os
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.guest.programs import Ended, load

RUNNER = """#!/bin/sh
umask >>{said}; ulimit -Sn >>{said}; ulimit -Hn >>{said}; env | sort >>{said}
cat config.yaml >>{said}; [ ! -e .runner ] || cat .runner >>{said}
read -r code <{codes}; sed -i 1d {codes}; exit "$code"
"""


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Any]:
    """The code of a machine that waits, with this folder as its root."""
    module = load("job.py")
    for name in (
        "EVENTS",
        "LOG",
        "IMAGE",
        "ENVIRONMENT",
        "BEFORE_READY",
        "BEFORE_JOB",
        "IS_READY",
        "WORK",
        "JOB_FOLDER",
        "REHEARSAL_HOOKS",
        "SCRIPT",
        "GUEST_SEED",
        "HOLD_ASKED",
        "HOLD_PROGRAM",
        "PORTS",
        "BLOCKS",
        "TOOLS_FOLDER",
        "TOOL_CACHE",
        "DOCKER",
    ):
        setattr(module, name, tmp_path / name.lower())
    module.SYSTEM_CERTIFICATES, module.FORGE_CERTIFICATE = (
        tmp_path / "system.crt",
        tmp_path / "own/forge.crt",
    )
    module.CONSOLE = tmp_path / "console"
    module.CONSOLE.touch()
    module.AGAIN = 0.0
    module.LOOK, module.LOOK_AGAIN = 0.04, 0.02
    module.SILENT = 0.1
    program = tmp_path / "gitea-runner"
    program.write_text(RUNNER.format(said=tmp_path / "said", codes=tmp_path / "codes"))
    program.chmod(0o755)
    (tmp_path / "codes").write_text("0\n")
    module.IMAGE.write_text(f"RUNNER_KIND=gitea-runner\nRUNNER_PATH={program}\n")
    module.IS_READY.touch()

    def off() -> None:
        raise Ended

    def say(kind: str, text: object = "") -> None:
        with module.EVENTS.open("a") as events:  # a port has no end to append to
            events.write(f"{kind} 0.0 {text}\n")

    module.power_off, module.say = off, say
    module.signal = types.SimpleNamespace(
        **{name: getattr(module.signal, name) for name in dir(module.signal)}
        | {"signal": lambda *_: None}
    )
    begun = []

    def begin(*arguments: Any) -> Any:
        begun.append(really(*arguments))
        return begun[-1]

    really, module.begin = module.begin, begin
    yield module
    for process in begun:  # the machine would have taken it along
        process.kill()
        process.wait()
    for opened in module.LOGS:
        os.close(opened)
