"""One `vmrunner up` that is killed (-9) right after a given step of a machine's creation: `python
-m tests.vm.killed CONFIG STEP`.

The product has no hook for this: the real manager runs here with its two seams wrapped.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from vmrunner import config
from vmrunner.forge.connect import connect
from vmrunner.hypervisor.host import open_host
from vmrunner.hypervisor.seam import File
from vmrunner.log import Format, open_log
from vmrunner.manager.history import History
from vmrunner.manager.manager import Manager

STEPS = ("overlay", "runner", "seed", "logs", "domain")


class Killed:
    """A seam's object that dies after the step; a real object does the work. Its parts are such
    objects, too.
    """

    _PARTS = ("machines",)

    def __init__(self, real: Any, step: str) -> None:
        self._real, self._step = real, step

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._real, name)
        if name in self._PARTS:
            return Killed(method, self._step)
        if not callable(method):
            return method

        def call(*arguments: Any, **options: Any) -> Any:
            answer = method(*arguments, **options)
            step = {"create_overlay": "overlay", "create_runner": "runner", "start": "domain"}.get(
                name, ""
            )
            if name == "put" and arguments[1] is File.SEED:
                step = "seed"
            if name == "write":  # of the storage pool
                step = "logs" if arguments[0].endswith(f".{File.EVENTS}") else ""
            if step == self._step:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        return call


def main() -> None:
    """Run the pass; it never returns when the step is reached."""
    settings, step = config.load(Path(sys.argv[1])), sys.argv[2]
    host = open_host(settings, print)
    if step == "logs":
        # They are made within start().
        host._storage.write = Killed(host._storage, step).write  # type: ignore[method-assign]
    hypervisor = host if step == "logs" else Killed(host, step)
    forge = Killed(connect(settings.forge, config.forge_token(settings.forge, print)), step)
    history = History(settings.state_dir / "history.sqlite", print)
    manager = Manager(settings, hypervisor, forge, history, open_log(Format.TEXT))  # type: ignore[arg-type]
    with manager.lock():
        manager.reconcile()


if __name__ == "__main__":
    main()
