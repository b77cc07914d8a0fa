"""The program that GARM starts for each call: `garm-provider-vmrunner`, or `vmrunner garm`.

GARM hands over no PATH and shows an admin all that is printed by a call which fails: that is one
sentence with a hint. What succeeds prints its answer alone.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

from vmrunner import __version__, config
from vmrunner.errors import CallError, VmrunnerError
from vmrunner.garm.contract import (
    VERSIONS,
    Bootstrap,
    Call,
    Command,
    answer,
    config_schema,
    specs_schema,
)
from vmrunner.garm.provider import Provider
from vmrunner.hypervisor.host import open_host
from vmrunner.machine.background import make_snapshot
from vmrunner.manager.history import History
from vmrunner.model.moment import Moment
from vmrunner.waiting import boot

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LONGEST = 1 << 22  # bytes of what GARM writes


def main() -> NoReturn:
    """One call of GARM's, from its environment. Exit codes: errors.py, 30 for an unknown instance,
    2 where this was not called by GARM.
    """
    signal.signal(signal.SIGTERM, _terminate)
    os.environ.setdefault("PATH", _PATH)
    for number in range(3):  # what is closed would be the next file that is opened
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    try:
        carry_out(Call.of(os.environ), _answer)
    except VmrunnerError as error:
        _fail(f"{error.sentence} {error.hint}".splitlines()[0], error.exit_code)
    except PermissionError as error:
        _fail(f"This user may not open {error.filename}. GARM has to run as root here.", 1)
    except KeyboardInterrupt:
        _fail("The call was interrupted.", 130)
    except Exception as error:
        # Its text may have a value in it, and one of those that came is a token.
        at = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(at.filename).name}:{at.lineno}"
        _fail(f"A fault in vmrunner {__version__}: {type(error).__name__} at {place}.", 1)
    sys.exit(0)


def _answer(what: Any) -> NoReturn:
    """The end of a call that did what GARM wants. At once: the job of a new machine may be over
    before an interpreter has put its things away, and GARM takes no end of a job before this one.
    """
    if sys.stdout and (said := answer(what)):
        sys.stdout.write(said + "\n")
        sys.stdout.flush()
    os._exit(0)


def _terminate(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt  # so that a SIGTERM cleans up


def _fail(said: str, code: int) -> NoReturn:
    print(f"vmrunner: {said.strip()}", file=sys.stderr)
    sys.exit(code)


def carry_out(call: Call, say: Callable[[Any], object]) -> None:
    """Do it, and `say` what GARM is answered."""
    match call.command:
        case Command.VERSION:
            say(f"v{__version__}")
        case Command.VERSIONS:
            say(list(VERSIONS))
        case Command.CONFIG_SCHEMA:
            say(config_schema())
        case Command.SPECS_SCHEMA:
            say(specs_schema())
        case _:
            _with_host(call, say)


def _with_host(call: Call, say: Callable[[Any], object]) -> None:
    wanted = Bootstrap.read(_stdin()) if call.command is Command.CREATE else None
    path = Path(call.config)
    settings = config.load(path)
    if not settings.garm.flavors:
        raise CallError(f"{path} has no flavor for GARM.", "Add a table [garm.flavors.NAME] to it.")
    if call.command is Command.VALIDATE:
        say(None)
        return
    began = boot()
    history = settings.history_file
    with (
        closing(open_host(settings, _quiet)) as host,
        closing(History(history, _quiet, keep_days=settings.history.keep_days)) as kept,
    ):
        provider = Provider(
            settings,
            host,
            kept,
            call.controller,
            lambda: Moment(time.time(), time.monotonic(), began),
            lambda flavor, image: make_snapshot(
                ["--flavor", flavor, "--image", image], path, quiet=True
            ),
        )
        say(_of_machines(provider, call, wanted))


def _of_machines(provider: Provider, call: Call, wanted: Bootstrap | None) -> Any:
    match call.command:
        case Command.CREATE if wanted:
            return provider.create(wanted)
        case Command.DELETE:
            return provider.delete(call.instance)
        case Command.GET:
            return provider.get(call.instance)
        case Command.LIST:
            return provider.listed(call.pool)
        case Command.START:
            return provider.start(call.instance)
        case Command.STOP:
            return provider.stop(call.instance)
    return provider.remove_all()


def _stdin() -> bytes:
    """What GARM wrote; nothing where it has closed that."""
    return sys.stdin.buffer.read(_LONGEST) if sys.stdin else b""


def _quiet(_sentence: str) -> None:
    """A warning would be a part of the answer that an admin sees when a call fails."""


if __name__ == "__main__":
    main()
