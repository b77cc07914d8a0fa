"""Where the forge answers: its name resolved now and then, so that exactly its addresses can be let
through.
"""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from urllib.parse import urlsplit

from vmrunner import files
from vmrunner.network.forge_url import port_of

_EVERY = 60.0  # seconds between two questions
# Seconds that an address stays after the last answer with it: large forges answer with others each
# time.
_KEPT = 3600.0


@dataclass(frozen=True)
class ForgeAddress:
    """Where the forge answers, as seen from the host."""

    address: IPv4Address | IPv6Address
    port: int


def is_for_machines(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address means the same to a machine as to its host."""
    return not (
        address.is_loopback
        or address.is_unspecified
        or address.is_link_local
        or address.is_multicast
    )


def forge_host(url: str) -> str:
    """The host's name or address in the forge's URL."""
    return urlsplit(url).hostname or ""


class ForgeAddresses:
    """The addresses of one forge, remembered in the runtime folder; of IPv6 only where machines
    have it. A resolver that does not answer changes nothing.
    """

    def __init__(self, url: str, runtime_dir: Path, *, ipv6: bool = False) -> None:
        self.host, self._path = forge_host(url), runtime_dir / "forge-addresses.json"
        self._port = port_of(url) if url else 0
        self._family = socket.AF_UNSPEC if ipv6 else socket.AF_INET

    def __call__(self) -> tuple[ForgeAddress, ...]:
        """All that it had lately, the latest answer's first, and of that IPv4; none where there is
        no forge.
        """
        if not self.host:
            return ()
        seen, asked_at = self._remembered()
        now = time.time()
        if not 0 <= now - asked_at < _EVERY:
            answer = self._resolve()
            seen = dict.fromkeys(answer, now) | {
                address: at
                for address, at in seen.items()
                if address not in answer and 0 <= now - at < _KEPT
            }
            self._remember(seen, now)
        found = (ForgeAddress(ip_address(address), self._port) for address in seen)
        return tuple(
            at
            for at in found
            if is_for_machines(at.address)
            and (at.address.version == 4 or self._family is socket.AF_UNSPEC)
        )

    def _resolve(self) -> list[str]:
        try:
            found = socket.getaddrinfo(self.host, self._port, self._family, socket.SOCK_STREAM)
        except OSError:
            return []
        return sorted(
            {str(name) for *_, (name, *_) in found if is_for_machines(ip_address(name))},
            key=lambda address: (":" in address, address),
        )

    def _remembered(self) -> tuple[dict[str, float], float]:
        try:
            kept = json.loads(self._path.read_text(encoding="ascii"))
            if kept["host"] == self.host:
                return {
                    str(ip_address(address)): float(at) for address, at in kept["seen"].items()
                }, float(kept["asked_at"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        return {}, 0.0

    def _remember(self, seen: dict[str, float], now: float) -> None:
        with suppress(OSError):  # then it is asked for again
            files.write_whole(
                self._path, json.dumps({"host": self.host, "seen": seen, "asked_at": now})
            )
