"""The service of `tests.caching`:
`python -m tests.cache_service FOLDER ADDRESS PORT RIGHTS LIMITS`.

It loads little else, so that its memory can be measured.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vmrunner.cache import connections, main, server
from vmrunner.cache.rights import Rights
from vmrunner.cache.store import Limits
from vmrunner.log import Format, Level, open_log


def _who(path: Path) -> Callable[[str], Rights | None]:
    def of(address: str) -> Rights | None:
        found = json.loads(path.read_text()).get(address)
        return found and replace(
            Rights(**found), reads=tuple(found["reads"]), shared=tuple(found["shared"])
        )

    return of


if __name__ == "__main__":
    _folder, _address, _port, _rights, _limits = sys.argv[1:]
    connections._PATIENCE = float(os.environ.get("VMRUNNER_TEST_PATIENCE", connections._PATIENCE))
    with server.bind(_address, int(_port)) as _listening:
        main.serve(
            _listening,
            Path(_folder),
            "https://forge.example",
            replace(Limits(keep_free=0), **json.loads(_limits)),
            _who(Path(_rights)),
            open_log(Format.TEXT, Level.INFO),
        )
    os._exit(0)
