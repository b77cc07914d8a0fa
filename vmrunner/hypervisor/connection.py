"""The connection to libvirt: opening it, and turning its errors into ours."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import libvirt

from vmrunner.config import is_local
from vmrunner.errors import Denied, DiskFull, HypervisorError, NameClash
from vmrunner.hypervisor.patience import SOON, Patience, within

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
_FAR = 60.0  # seconds that a connection to another host may take: ssh, maybe a passphrase
patience = Patience()
"""With libvirt, of this whole process; `open_host` says whom it tells."""
_STORAGE = {
    "Read-only file system": (
        "The storage is read-only: {doing} failed.",
        "`dmesg` may say why, often a failing disk. Mount it to be written, or set "
        "libvirt.storage_path to another one.",
    ),
    "Disk quota exceeded": (
        "The storage's quota is used up: {doing} failed.",
        "Raise the quota of libvirt's user, or set libvirt.storage_path to a disk of its own.",
    ),
    "Stale file handle": (
        "The storage's server does not know the folder any more: {doing} failed.",
        "Mount it again; a disk of this host is better for machines.",
    ),
    "Transport endpoint is not connected": (
        "The program behind the storage's mount has ended: {doing} failed.",
        "Mount it again; a disk of this host is better for machines.",
    ),
    "Required key not available": (
        "The storage is encrypted, and locked: {doing} failed.",
        "Unlock it before vmrunner starts, or set libvirt.storage_path to another folder.",
    ),
}
"""What the C library calls a storage that does not work, with a sentence and a hint. Not its words
for a failing disk, which a lost connection has, too.
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
            "Free some space, or lower the pool's `max`. Where `df` shows space, `df -i` may show "
            "that no inodes are left: delete small files.",
        )
    for words, (sentence, hint) in _STORAGE.items():
        if words in full:
            return HypervisorError(sentence.format(doing=doing), hint)
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
        "`journalctl -u libvirtd -u 'virt*d'` may say more.",
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
def asking(doing: str, *, is_long: bool = False) -> Iterator[None]:
    """Wrap every call to libvirt, with the words that the error should use. `is_long`: it may well
    take longer than `SOON`.
    """
    with nullcontext() if is_long else patience.during(doing):
        try:
            yield
        except libvirt.libvirtError as error:
            raise translate(error, doing) from error


def connect(uri: str) -> Any:
    """Open the connection; raises HypervisorError where libvirt is not running, does not let us in,
    or does not answer.
    """
    limit = SOON if is_local(uri) else _FAR

    late = threading.Event()

    def opened() -> Any:
        connection = libvirt.open(uri)
        if late.is_set():  # nobody waits for it any more
            connection.close()
        return connection

    try:
        if found := within(limit, opened):
            return found[0]
        late.set()
        raise HypervisorError(
            f"libvirt at {uri} takes the connection, and has not answered for {limit:.0f} s.",
            "`systemctl status libvirtd` (or virtqemud) may say why; a restart of it leaves "
            "machines alone.",
        )
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
