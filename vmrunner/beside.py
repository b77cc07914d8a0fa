"""Processes of their own beside `serve`, which keeps them running, needs nothing of them and waits
for nothing of them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from vmrunner import config
from vmrunner.config import Config
from vmrunner.errors import VmrunnerError
from vmrunner.log import Format, Level, Log, open_log
from vmrunner.waiting import retry_at

_FIRST_REST, _LONGEST_REST = 1.0, 60.0  # seconds between an end and the next start
_WORKED = 60.0  # seconds after which an end is the first one again
_PATIENCE = 5.0  # seconds that it has to end


def command(module: str, config_path: Path, log_format: Format, log_level: Level) -> list[str]:
    """The process of this module, which calls `main`."""
    return [
        *(sys.executable, "-m", module, "--config", str(config_path)),
        *("--log-format", log_format.value, "--log-level", log_level.value),
    ]


def main(run: Callable[[Config, Log], None]) -> int:
    """Run in a process that `command` started; its exit code. `run` may raise a VmrunnerError."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--log-format", type=Format, default=Format.TEXT)
    parser.add_argument("--log-level", type=Level, default=Level.INFO)
    options = parser.parse_args()
    log = open_log(options.log_format, options.log_level)
    try:
        run(config.load(options.config), log)
    except VmrunnerError as error:
        log.error(error.sentence, hint=error.hint)
        return error.exit_code
    return 0


class Keeper:
    """While it is entered, the process runs: one that ends is started again, later each time.
    `what` people call it.
    """

    def __init__(
        self, what: str, command: Sequence[str], log: Log, *, first_rest: float = _FIRST_REST
    ) -> None:
        self._what, self._command, self._log, self._first_rest = what, command, log, first_rest
        self._stop = threading.Event()
        self._starting = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name=what, daemon=True)

    def __enter__(self) -> Keeper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        with self._starting:  # none is started after this
            process = self._process
        if process:
            _end(process)

    def _run(self) -> None:
        failed = 0
        while not self._stop.is_set():
            began = time.monotonic()
            if process := self._start():
                code = process.wait()
                if not self._stop.is_set():
                    self._log.warning(
                        f"the {self._what} has ended; it is started again", exit_code=code
                    )
            failed = 1 if time.monotonic() - began >= _WORKED else failed + 1
            self._stop.wait(retry_at(0.0, failed, self._first_rest, _LONGEST_REST, 0.0))

    def _start(self) -> subprocess.Popen[bytes] | None:
        """The process; None where there is to be none, or can't be one."""
        with self._starting:
            if self._stop.is_set():
                return None
            if self._process and self._process.stdin:
                self._process.stdin.close()
            try:
                # A Ctrl-C is for us. It ends when its standard input does: also when we are killed.
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                )
            except OSError as error:
                self._log.warning(f"the {self._what} was not started", reason=error.strerror)
                return None
            return self._process


def _end(process: subprocess.Popen[bytes]) -> None:
    """Have it end, whatever it does."""
    if process.stdin:
        process.stdin.close()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
