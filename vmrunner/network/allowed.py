"""Where allowed names lead, as the machines' own resolver says.

What the resolver hears from outside it puts into the names' sets itself, also for names below them.
What it knows without asking (this host's /etc/hosts, a cache) it puts nowhere: that is asked here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, ip_address
from pathlib import Path

from vmrunner import files
from vmrunner.network import lookup
from vmrunner.network.forge import is_for_machines

Held = Mapping[str, Iterable[str]]
"""An allowed name -> addresses that it, or a name below it, has."""
_EVERY = 60.0  # seconds between two questions
_AGAIN = 10.0  # … where not all was answered: by then the resolver may have started
_PATIENCE = 1.0
_HOSTS = Path("/etc/hosts")


@dataclass(frozen=True)
class _Noted:
    asked_at: float = 0.0  # unix seconds
    held: Mapping[str, Sequence[str]] = field(default_factory=dict)


class AllowedAddresses:
    """Those of the names that machines may reach, remembered in the runtime folder."""

    def __init__(
        self, names: Sequence[str], resolver: IPv4Address, runtime_dir: Path, *, ipv6: bool
    ) -> None:
        self._names, self._resolver, self._ipv6 = tuple(names), resolver, ipv6
        self._path = runtime_dir / "allowed-addresses.json"

    def asked(self) -> dict[str, set[str]]:
        """What the resolver says now; nothing where it was asked a moment ago, or is silent."""
        noted, now = self._noted(), time.time()
        if not self._names or 0 <= now - noted.asked_at < _EVERY:
            return {}
        wanted = below(self._names, (*self._names, *_names_of_host()))
        found = lookup.addresses(self._resolver, tuple(wanted), ipv6=self._ipv6, patience=_PATIENCE)
        said = found.keys() >= wanted.keys()
        self._note(replace(noted, asked_at=now if said else now - _EVERY + _AGAIN))
        held: dict[str, set[str]] = {name: set() for name in self._names}
        for name, addresses in found.items():
            its = {str(address) for address in addresses if is_for_machines(address)}
            for allowed in wanted[name]:
                held[allowed] |= its
        return held

    def held(self) -> Held:
        """What the names' sets held when that was noted down last."""
        return self._noted().held

    def note(self, held: Held) -> None:
        """Note down what the names' sets hold: whoever flushes the rules takes it away."""
        noted = self._noted()
        now = {name: sorted(addresses) for name, addresses in held.items() if addresses}
        if now != noted.held:
            self._note(replace(noted, held=now))

    def _noted(self) -> _Noted:
        try:
            kept = json.loads(self._path.read_text(encoding="ascii"))
            return _Noted(
                float(kept["asked_at"]),
                {
                    str(name): [str(ip_address(address)) for address in addresses]
                    for name, addresses in kept["held"].items()
                },
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return _Noted()

    def _note(self, noted: _Noted) -> None:
        with suppress(OSError):  # then it is asked for again
            files.write_whole(
                self._path, json.dumps({"asked_at": noted.asked_at, "held": dict(noted.held)})
            )


def below(allowed: Sequence[str], names: Iterable[str]) -> dict[str, list[str]]:
    """Of these names those that are allowed, each with the allowed names that it is or is below."""
    found = {
        name: [each for each in allowed if name == each or name.endswith(f".{each}")]
        for name in dict.fromkeys(name.lower().rstrip(".") for name in names)
    }
    return {name: its for name, its in found.items() if its}


def _names_of_host() -> list[str]:
    """All that /etc/hosts gives an address (hosts(5))."""
    try:
        lines = _HOSTS.read_text(encoding="ascii", errors="ignore").splitlines()
    except OSError:
        return []
    return [name for line in lines for name in line.partition("#")[0].split()[1:]]
