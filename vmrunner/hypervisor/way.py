"""The way to a file on this host: which folder on it QEMU's user can't enter."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from pathlib import Path

from vmrunner.hypervisor.qemu_user import User

_SAID = re.compile(r"Cannot access .*?'(/.+?)' \(as uid:(\d+), gid:(\d+)\)")
_MOST_LINKS = 40  # as the kernel follows
_PROBED_WITHIN = 10.0  # seconds
_ACL = "system.posix_acl_access"
# Exits with the number of the first argument that can't be entered; 0: there is none.
_PROBE = 'n=0; for folder; do n=$((n + 1)); test -x "$folder" || exit $n; done'


def refused(said: str) -> tuple[Path, User] | None:
    """The file, and who may not open it, in what libvirt says of that."""
    found = _SAID.search(said)
    return (Path(found[1]), User(int(found[2]), int(found[3]))) if found else None


def closed(folder: Path, user: User, pool: Path) -> tuple[str, str]:
    """The sentence and the hint for a folder on the way to the storage pool that is closed."""
    return (
        f"QEMU's user {user} can't enter {folder}, which is on the way to the storage pool at "
        f"{pool}.",
        "Set libvirt.storage_path to a folder that every user can reach, such as "
        f"/var/lib/libvirt/vmrunner, or let this one in: `setfacl -m u:{user}:x {folder}`.",
    )


def barrier(path: Path, user: User) -> Path | None:
    """The first folder on the way to this path that the user can't enter; None where there is none,
    or where this process can't tell.
    """
    folders = list(dict.fromkeys(_folders(path)))
    if os.geteuid() == 0:
        return _tried(folders, user)
    return next((folder for folder in folders if _is_closed(folder, user)), None)


def _folders(path: Path) -> list[Path]:
    """The folders that the kernel goes through, links followed, as far as they exist."""
    found, place, links = [], Path("/"), 0
    ahead = list(reversed(path.parts[1:]))
    while ahead:
        found.append(place)
        part = ahead.pop()
        if part == "..":
            place = place.parent
            continue
        try:
            target = Path(os.readlink(place / part))
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: it is no link
                return found
            place /= part
            continue
        links += 1
        if links > _MOST_LINKS:
            return found
        if target.is_absolute():
            place = Path("/")
        ahead += reversed(target.relative_to("/").parts if target.is_absolute() else target.parts)
    return [*found, place] if os.path.isdir(place) else found


def _tried(folders: list[Path], user: User) -> Path | None:
    """By having the user try: that counts modes, ACLs, and file systems with a mind of their own,
    such as an encrypted home.
    """
    try:
        done = subprocess.run(
            ["sh", "-c", _PROBE, "sh", *map(str, folders)],
            user=user.uid,
            group=user.gid,
            extra_groups=(),
            timeout=_PROBED_WITHIN,
            capture_output=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return folders[done.returncode - 1] if 0 < done.returncode <= len(folders) else None


def _is_closed(folder: Path, user: User) -> bool:
    """By its mode; an ACL may say otherwise, and is not read."""
    try:
        seen = folder.stat()
        if _ACL in os.listxattr(folder):
            return False
    except OSError:
        return False  # closed to this process, which says nothing of QEMU
    shift = 6 if seen.st_uid == user.uid else 3 if seen.st_gid == user.gid else 0
    return not seen.st_mode >> shift & 1
