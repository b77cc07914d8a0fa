"""The program's entry: signals become exceptions, and our errors two lines and an exit code."""

from __future__ import annotations

import io
import signal
import sys
from importlib import import_module
from typing import NoReturn

from vmrunner.cli.app import app, report
from vmrunner.errors import VmrunnerError

_COMMANDS = (
    "config",
    "doctor",
    "down",
    "exec",
    "history",
    "image",
    "serve",
    "snapshot",
    "status",
    "systemd",
    "up",
)


def _load(arguments: list[str]) -> None:
    """Import the module of the command that is called, which adds it to the application; all of
    them for `--help` and for a wrong one.

    Loading the whole manager takes as long as a clone takes to start.
    """
    called = arguments[0] if arguments else ""
    for command in [called] if called in _COMMANDS else _COMMANDS:
        import_module(f"vmrunner.cli.{command}_cmd")


def _terminate(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt  # so that a SIGTERM cleans up just as Ctrl-C does


def main() -> None:
    """Run one command.

    Exit codes: errors.py; 2 for a wrong command line; 130 when interrupted (typer's own).
    """
    signal.signal(signal.SIGTERM, _terminate)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Where that is not UTF-8, a job's name may have letters that it does not.
        sys.stdout.reconfigure(errors="replace")
    _load(sys.argv[1:])
    try:
        code = app(standalone_mode=False)
    except VmrunnerError as error:
        report(error)
        sys.exit(error.exit_code)
    except PermissionError as error:  # the service's folders are not everybody's
        report(
            VmrunnerError(
                f"This user may not open {error.filename}.",
                "Run it with sudo, or as the service's user.",
            )
        )
        sys.exit(VmrunnerError.exit_code)
    except Exception as error:  # typer's own: a wrong command line
        if not hasattr(error, "exit_code") or not hasattr(error, "show"):
            raise
        error.show()
        sys.exit(error.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
