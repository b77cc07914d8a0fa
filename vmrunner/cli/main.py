"""The program's entry: signals become exceptions, and our errors two lines and an exit code."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from typing import NoReturn

from vmrunner.cli.app import COMPLETE, app, give_up, report
from vmrunner.errors import VmrunnerError

_INTERRUPTED, _TERMINATED = 130, 143


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which cleans up just as Ctrl-C does."""

    came = False  # typer, which makes the exit code of it, does not tell the two apart


def _terminate(_number: int, _frame: object) -> NoReturn:
    _Terminated.came = True
    raise _Terminated


def main() -> None:
    """Run one command.

    Exit codes: errors.py; 2 for a wrong command line; 130 when interrupted, 143 by SIGTERM.
    """
    _open_standard_files()
    if COMPLETE in os.environ:
        from typer.completion import completion_init  # type: ignore[attr-defined]  # imported there

        completion_init()
    signal.signal(signal.SIGTERM, _terminate)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Where that is not UTF-8, a job's name may have letters that it does not.
        sys.stdout.reconfigure(errors="replace")
    try:
        code = _run()
    except OSError:
        if not (failed := _unwritten()):
            raise
        code = failed
    sys.exit(_unwritten() or code)


def _run() -> int:
    """The command's exit code, when its errors are told."""
    try:
        code = app(standalone_mode=False)
    except VmrunnerError as error:
        return give_up(error)
    except PermissionError as error:  # the service's folders are not everybody's
        return give_up(
            VmrunnerError(
                f"This user may not open {error.filename}.",
                "Run it with sudo, or as the service's user.",
            )
        )
    except Exception as error:  # typer's own: a wrong command line
        if not hasattr(error, "exit_code") or not hasattr(error, "show"):
            raise
        error.show()
        return int(error.exit_code)
    except SystemExit as ended:  # typer's and rich's way out when nobody reads on
        return ended.code if isinstance(ended.code, int) else VmrunnerError.exit_code
    if code == _INTERRUPTED and _Terminated.came:
        return _TERMINATED
    return code if isinstance(code, int) else 0


def _open_standard_files() -> None:
    """A file that we open must never become the number of one that was closed: what libvirt and
    Python write to stderr would go into it.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # takes the lowest number that is free, which is this one


def _unwritten() -> int:
    """What stdout has not yet written is written now; the exit code where it can't be."""
    if sys.stdout is None or sys.stdout.closed:
        return 0
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python would try once more at its end, and complain in its own words.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if error.errno != errno.EPIPE:  # who has read enough knows
            report(
                VmrunnerError(
                    f"The output can't be written: {error.strerror}.",
                    "Look at what stdout leads to; the command itself has run.",
                )
            )
        return VmrunnerError.exit_code
    return 0


if __name__ == "__main__":
    main()
