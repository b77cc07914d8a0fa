"""What is remembered of the other hosts, in a file of the state folder: the forge shows none that
is idle.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from vmrunner import files
from vmrunner.model.fleet import Fleet, Peer, Promise, Sighting
from vmrunner.model.job import Claim


def load(path: Path) -> Fleet:
    """What the last pass knew; nothing where that can't be read."""
    try:
        plain = json.loads(path.read_bytes())
        return Fleet(
            str(plain["boot"]),
            {host: _peer(each) for host, each in plain["peers"].items()},
            {int(number): _sighting(each) for number, each in plain["records"].items()},
            {str(key): float(at) for key, at in plain["waiting"].items()},
            {
                str(key): Promise(float(spent), float(at), bool(is_open))
                for key, (spent, at, is_open) in plain["promises"].items()
            },
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Fleet()


def _peer(plain: list[object]) -> Peer:
    seen, changed, takes, closed = plain
    return Peer(float(str(seen)), float(str(changed)), _labels(takes), _labels(closed))


def _labels(plain: object) -> frozenset[tuple[str, ...]]:
    if not isinstance(plain, list):
        raise TypeError
    return frozenset(tuple(map(str, each)) for each in plain)


def _sighting(plain: list[object]) -> Sighting:
    host, first, alive, claim = plain
    return Sighting(str(host), float(str(first)), float(str(alive)), Claim.parse(str(claim)))


def save(path: Path, fleet: Fleet) -> None:
    """For the next pass. Without it every job's turn begins anew."""
    plain = {
        "boot": fleet.boot,
        "peers": {
            host: (each.seen, each.changed, sorted(each.takes), sorted(each.closed))
            for host, each in fleet.peers.items()
        },
        "records": {
            number: (each.host, each.first, each.alive, str(each.claim or ""))
            for number, each in fleet.records.items()
        },
        "waiting": dict(fleet.waiting),
        "promises": {
            key: (each.spent, each.at, each.is_open) for key, each in fleet.promises.items()
        },
    }
    with suppress(OSError):
        files.write_whole(path, json.dumps(plain))
