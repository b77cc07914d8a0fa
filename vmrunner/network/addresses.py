"""The machines' addresses: each machine has one of the subnet for its life, and no DHCP server is
asked for it.

Where they have IPv6, too, that address follows from this one, so that only one is to be kept.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from pathlib import Path

from vmrunner import files
from vmrunner.errors import ConfigError, HypervisorError
from vmrunner.model.machine import MachineId

Vacate = Callable[[Sequence[IPv4Address]], object]
"""Makes the host forget whoever had these addresses."""
_FOLDER = "addresses"


def gateway(subnet: IPv4Network | IPv6Network) -> IPv4Address | IPv6Address:
    """The host's own address in the machines' network: gateway and, by IPv4, name server."""
    return subnet.network_address + 1


def paired(address: IPv4Interface, prefix: IPv6Network | None) -> IPv6Interface | None:
    """The IPv6 address of the machine with this IPv4 one: the same host number within the prefix,
    or none where there is none.
    """
    if prefix is None:
        return None
    number = int(address.ip) - int(address.network.network_address)
    return IPv6Interface(f"{prefix[number]}/{prefix.prefixlen}")


class Addresses:
    """Who has which address: one file for each, named after it, in the runtime folder.

    Every process of a manager shares it.
    """

    def __init__(
        self, runtime_dir: Path, subnet: IPv4Network, ipv6: IPv6Network | None = None
    ) -> None:
        self._folder, self._subnet, self._ipv6 = runtime_dir / _FOLDER, subnet, ipv6

    def take(self, machine: MachineId) -> IPv4Interface:
        """A free address, with the subnet's prefix length.

        Raises HypervisorError where none is left.
        """
        room = self._subnet.num_addresses - 3  # without network, gateway and broadcast
        # Spread out, so that an address is not used again at once.
        first = zlib.crc32(str(machine).encode())
        try:
            files.make_folder(self._folder)
            for number in range(room):
                address = self._subnet.network_address + 2 + (first + number) % room
                with suppress(FileExistsError):
                    with os.fdopen(
                        os.open(
                            self._folder / str(address), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600
                        ),
                        "w",
                    ) as file:
                        files.hand_over(file.fileno(), self._folder)
                        file.write(str(machine))
                    return IPv4Interface(f"{address}/{self._subnet.prefixlen}")
        except OSError as error:
            raise ConfigError(
                f"The address of {machine} can't be noted: {error.strerror}.", "Check runtime_dir."
            ) from None
        raise HypervisorError(
            f"All {room} addresses of {self._subnet} are taken.",
            "Set libvirt.subnet to a wider network.",
        )

    def beside(self, address: IPv4Interface) -> IPv6Interface | None:
        """The IPv6 address of the machine that has this one; none where machines have no IPv6."""
        return paired(address, self._ipv6)

    def owner(self, address: IPv4Address) -> str:
        """The name of the machine that has it; empty where none has."""
        try:
            return (self._folder / str(address)).read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            return ""

    def release(self, machine: MachineId, vacate: Vacate) -> None:
        """Give back the address of a machine that is gone, if it has one."""
        self._give_back(lambda owner: owner == str(machine), vacate)

    def sweep(self, living: Container[str], vacate: Vacate) -> None:
        """Give back the addresses of all machines but these. Call it under the manager's lock."""
        self._give_back(lambda owner: owner not in living, vacate)

    def _give_back(self, is_gone: Callable[[str], bool], vacate: Vacate) -> None:
        """An address is free when nothing on the host knows its last machine any more, and not
        before: who is killed in between leaves it taken, and the next pass goes on here.
        """
        gone = []
        for path in sorted(self._folder.glob("*")):
            with suppress(OSError):
                if is_gone(path.read_text()):
                    gone.append(path)
        if gone:
            vacate([IPv4Address(path.name) for path in gone])
        for path in gone:
            path.unlink(missing_ok=True)
