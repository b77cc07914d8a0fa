"""The connection to libvirt: opening it, and turning its errors into ours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import libvirt

from vmrunner.config import is_local
from vmrunner.errors import Denied, DiskFull, HypervisorError, NameClash

THREADS_MAY_SHARE = libvirt.getVersion() >= 10_002_000
"""Whether several threads can use one connection at once. Before libvirt 10.2 a call is now and
then not sent, and waits for ever: its thread wakes the one that has the socket a moment before that
one begins to listen (virnetclient.c).
"""
GONE = {libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID}
"""What libvirt says of a domain that is on its way out."""
_DAEMON = re.compile(r"/(virt[a-z]+d)-sock")
_SEPARATE = Path("/run/libvirt/virtqemud-sock")
"""libvirt's clients on this host go by it, too: the daemon of all of libvirt is asked only where
this one is missing.
"""
_PERMISSION = {
    libvirt.VIR_ERR_AUTH_FAILED,
    libvirt.VIR_ERR_AUTH_CANCELLED,
    libvirt.VIR_ERR_ACCESS_DENIED,
    libvirt.VIR_ERR_AUTH_UNAVAILABLE,
}


def _quiet(_context: object, _error: object) -> None:
    """libvirt prints every error to stderr by itself; ours are raised instead."""


libvirt.registerErrorHandler(_quiet, None)


def translate(error: Any, doing: str) -> HypervisorError:
    """One of our errors for a libvirtError met while `doing` something."""
    full = " ".join(str(error.get_error_message() or error).split())
    said = full if len(full) < 500 else f"{full[:200]} … {full[-250:]}"
    code = error.get_error_code()
    if "No space left on device" in full:
        return DiskFull(
            f"The storage pool is full: {doing} failed.",
            "Free some space, or lower the pool's `max`.",
        )
    if "Network is already in use" in said:
        return HypervisorError(
            f"The machines' network overlaps with one of this host: {said}",
            "Choose another libvirt.subnet.",
        )
    if "Storage source conflict" in said:
        return NameClash(
            f"The folder of our storage pool is another one's already: {said}",
            "Choose another libvirt.storage_path; vmrunner leaves alone what it did not make.",
        )
    if code in _PERMISSION or is_denied(said):
        return Denied(
            f"libvirt does not permit {doing}: {said}",
            "Run as root, or as a user in the group libvirt.",
        )
    if (
        code in {libvirt.VIR_ERR_DOM_EXIST, libvirt.VIR_ERR_STORAGE_VOL_EXIST}
        or "already exists" in said
    ):
        return NameClash(
            f"{doing} failed, the name is taken: {said}",
            "Look at it with virsh; vmrunner leaves alone what it did not make.",
        )
    if error.get_error_domain() == libvirt.VIR_FROM_RPC:
        return HypervisorError(f"libvirt did not answer, {doing} failed: {said}", _start_hint(said))
    return HypervisorError(
        f"libvirt refused {doing}: {said}",
        "`journalctl -u libvirtd -u 'virt*d'` and /var/log/libvirt/qemu/ may say more.",
    )


def _start_hint(said: str) -> str:
    """Which daemon it is that libvirt could not reach, and how to start it."""
    named = _DAEMON.search(said)
    whole = "virtqemud.socket" if _SEPARATE.exists() else "libvirtd"
    unit = f"{named[1]}.socket" if named else whole
    return f"Is it running? Try `systemctl start {unit}` or check libvirt.uri."


def is_denied(said: str) -> bool:
    """Whether somebody was refused: libvirt and QEMU have no code for it, only the words of
    strerror.
    """
    return "ermission denied" in said


@contextmanager
def asking(doing: str) -> Iterator[None]:
    """Wrap every call to libvirt, with the words that the error should use."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise translate(error, doing) from error


def connect(uri: str) -> Any:
    """Open the connection; raises HypervisorError where libvirt is not running or does not let us
    in.
    """
    try:
        return libvirt.open(uri)
    except libvirt.libvirtError as error:
        said = str(error)
        if error.get_error_code() in _PERMISSION or is_denied(said):
            raise HypervisorError(
                f"libvirt at {uri} does not let this user in.",
                "Run as root, or as a user in the group libvirt.",
            ) from None
        raise HypervisorError(
            f"libvirt does not answer at {uri}: {said}",
            _start_hint(said),
        ) from None


class Link:
    """The connection to libvirt that the parts of a host share; replaced where it was lost."""

    def __init__(self, uri: str) -> None:
        """Raises HypervisorError where nobody answers."""
        self.uri = uri
        self.open()

    def open(self) -> None:
        """Connect, in the place of the connection that there was. Raises HypervisorError."""
        self.connection = connect(self.uri)

    @property
    def is_alive(self) -> bool:
        """Whether the connection still leads to all of libvirt.

        Where libvirt's daemons are separate we talk to virtqemud, which keeps its connections to
        those of networks and storage for as long as ours stays, also when they have ended: so
        these two are asked for something that costs little, and is no error where all is well.
        """
        try:
            alive = bool(self.connection.isAlive())
            if alive and not (is_local(self.uri) and not _SEPARATE.exists()):
                self.connection.numOfNetworks()
                self.connection.numOfStoragePools()
        except libvirt.libvirtError:
            return False
        return alive

    def close(self) -> None:
        """Close the connection; one that is lost is fine."""
        with suppress(libvirt.libvirtError):
            self.connection.close()


def dotted(version: int) -> str:
    """libvirt's numbers for versions, as people write them."""
    return f"{version // 1000000}.{version // 1000 % 1000}.{version % 1000}"
