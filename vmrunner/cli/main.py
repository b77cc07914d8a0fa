"""The program's entry: signals become exceptions, and our errors two lines and an exit code."""

from __future__ import annotations

import errno
import gc
import io
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from vmrunner.cli.app import COMPLETE, app, give_up, report
from vmrunner.errors import VmrunnerError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_INTERRUPTED, _TERMINATED = 130, 143
_GARBAGE = 50_000  # objects that may be garbage, before it is looked for: some MiB


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which cleans up just as Ctrl-C does."""

    came = False  # typer, which makes the exit code of it, does not tell the two apart


def _terminate(_number: int, _frame: object) -> NoReturn:
    _Terminated.came = True
    raise _Terminated


class _Output(io.FileIO):
    """stdout, which remembers why it could not be written: of a text that is longer than its
    buffer, nothing is left to be tried again.
    """

    failure: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            _Output.failure = error
            raise


def main() -> None:
    """Run one command.

    Exit codes: errors.py; 2 for a wrong command line; 130 when interrupted, 143 by SIGTERM.
    """
    _start_sooner()
    _open_standard_files()
    if COMPLETE in os.environ:
        from typer.completion import completion_init  # type: ignore[attr-defined]  # imported there

        completion_init()
    signal.signal(signal.SIGTERM, _terminate)
    if type(sys.stdout) is io.TextIOWrapper:  # and nobody's who catches what is printed
        # Where that is not UTF-8, a job's name may have letters that it does not.
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(_Output(1, "w", closefd=False)),
            encoding=sys.stdout.encoding,
            errors="replace",
            line_buffering=sys.stdout.line_buffering,
        )
    try:
        code = _run()
    except OSError as error:
        if error is not _Output.failure:
            raise
        code = VmrunnerError.exit_code
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
        # Newer ones of typer have a library check values, which has its own words before ours. The
        # exception is none of a class that we may name: it is known by its attributes.
        if isinstance(said := getattr(error, "message", None), str):
            error.message = said.removeprefix("Value error, ")  # type: ignore[attr-defined]
        error.show()
        return int(error.exit_code)
    except SystemExit as ended:  # typer's and rich's way out when nobody reads on
        return ended.code if isinstance(ended.code, int) else VmrunnerError.exit_code
    if code == _INTERRUPTED and _Terminated.came:
        return _TERMINATED
    return code if isinstance(code, int) else 0


def _start_sooner() -> None:
    """A fifth of the time of a short command: modules that are being loaded leave no garbage, so it
    is looked for seldom; nobody's plugin is searched for, or sees what pydantic reads for us; and
    httpx is loaded as it is without its own command line, which colours its output.
    """
    gc.set_threshold(_GARBAGE)
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    if "httpx" not in sys.modules:
        sys.modules["httpx._main"] = None  # type: ignore[assignment]  # an ImportError for it


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
        _Output.failure = error
    if failure := _Output.failure:
        # Python would try once more at its end, and complain in its own words.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if failure.errno != errno.EPIPE:  # who has read enough knows
            report(
                VmrunnerError(
                    f"The output can't be written: {failure.strerror}.",
                    "Look at what stdout leads to; the command itself has run.",
                )
            )
        return VmrunnerError.exit_code
    return 0


if __name__ == "__main__":
    main()
