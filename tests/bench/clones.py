"""Many clones of one snapshot, one after the other: all different, none fails, and the snapshot
stays as it was.
"""

from __future__ import annotations

import json
from typing import Any

from tests.bench.common import ground, say
from tests.bench.life import MEMORY
from tests.forge.gitea import Site
from tests.prepare import GITEA
from tests.vm.test_snapshot import IDENTITY

_FIELDS = ("hostname", "machine_id", "boot_id", "uuid", "mac", "random", "address", "time")
_MAY_COME_AGAIN = {"address", "time"}  # an address is free again when its machine is gone


def in_a_row(site: Site, number: int) -> dict[str, Any]:
    """How many failed, and how many different values each part of their identity had."""
    place = ground(site, "boot")
    place.run("snapshot", "create", "--image", GITEA, "--memory", MEMORY)
    seen: list[list[str]] = []
    failures: list[str] = []
    for done in range(1, number + 1):
        ended = place.run(
            "exec", "--image", GITEA, "--memory", MEMORY, "--", "sh", "-c", IDENTITY, check=False
        )
        lines = ended.stdout.splitlines()
        if ended.returncode or len(lines) != len(_FIELDS) or ": cloned" not in ended.stderr:
            failures.append(f"{ended.returncode}: {ended.stdout}{ended.stderr}")
        else:
            seen.append(lines)
        if done % 20 == 0:
            say(f"clones {done}/{number}: {len(failures)} failed")
    different = {
        field: len({lines[at] for lines in seen})
        for at, field in enumerate(_FIELDS)
        if field not in _MAY_COME_AGAIN
    }
    intact, left = place.run("snapshot", "verify", check=False).returncode == 0, place.leftovers()
    figures = {
        "clones": number,
        "failures": failures,
        "different": different,
        "snapshot_intact": intact,
        "leftovers": left,
    }
    say(json.dumps(figures))
    return figures
