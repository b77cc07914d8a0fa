"""The forge's silences since the host's boot, in a file of the runtime folder: a process that
begins goes on counting where the last one stopped.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from vmrunner import files
from vmrunner.model.moment import Silence, Silences


def load(path: Path) -> Silences:
    """What the last pass knew; nothing where that can't be read."""
    try:
        plain = json.loads(path.read_bytes())
        known = (Silence(str(s), float(b), float(e)) for s, b, e in plain["known"])
        return Silences(str(plain["boot"]), float(plain["looked"]), tuple(known))
    except (OSError, ValueError, KeyError, TypeError):
        return Silences()


def save(path: Path, silences: Silences) -> None:
    """For the next pass. Without it a silence between two processes counts as time."""
    plain = {
        "boot": silences.boot,
        "looked": silences.looked,
        "known": [(each.scope, each.began, each.ended) for each in silences.known],
    }
    with suppress(OSError):
        files.write_whole(path, json.dumps(plain))
