"""Which of an image's kernels its machines boot: that of the package which the recipe names, else
the newest.
"""

from __future__ import annotations

import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from vmrunner.errors import ImageError
from vmrunner.image.build.paths import within

_BOOT = "/boot/vmlinuz-"
_STATUS, _INFO = "/var/lib/dpkg/status", "/var/lib/dpkg/info"


def take(tree: Path, out: Path, package: str | None) -> str:
    """Copy kernel and initrd into the folder `out`, for a direct boot; returns the kernel's
    version. Raises ImageError.
    """
    versions = (
        list(_of(package, tree))
        if package
        else [path.name for path in within(tree, "/boot").glob("vmlinuz-*")]
    )
    if not versions:
        what = (
            f"The package {package}, which is the recipe's `kernel`, brings none."
            if package
            else "The image has no kernel."
        )
        raise ImageError(what, "Name a linux-image package as the recipe's `kernel`.")
    version = max(versions, key=_by_number).removeprefix("vmlinuz-")
    for name, taken in (
        (f"{_BOOT}{version}", "vmlinuz"),
        (f"/boot/initrd.img-{version}", "initrd"),
    ):
        if not (path := within(tree, name)).is_file():
            raise ImageError(
                f"The image has the kernel {version}, and no {name}.",
                "Add the package initramfs-tools to the recipe.",
            )
        shutil.copyfile(path, out / taken)
    for path in out.iterdir():
        path.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
    return version


def _by_number(name: str) -> list[tuple[int, str]]:
    """So that 6.1.0-10 comes after 6.1.0-9: an image may have both."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _of(package: str, tree: Path) -> Iterator[str]:
    """The names in /boot that come with a package, or with what it depends on: `linux-image-amd64`
    itself is empty.
    """
    depends, seen = _depends(within(tree, _STATUS)), set[str]()
    waiting = [package]
    while waiting:
        name = waiting.pop()
        if name in seen or name not in depends:
            continue
        seen.add(name)
        waiting += [each for each in depends[name] if each.startswith("linux-")]
        files = within(tree, f"{_INFO}/{name}.list")
        if files.is_file():
            yield from (
                line.removeprefix("/boot/")
                for line in files.read_text().splitlines()
                if line.startswith(_BOOT)
            )


def _depends(status: Path) -> dict[str, list[str]]:
    """What each installed package depends on."""
    found: dict[str, list[str]] = {}
    for stanza in (
        status.read_text(encoding="utf-8", errors="replace").split("\n\n")
        if status.is_file()
        else ()
    ):
        fields = dict(re.findall(r"(?m)^(Package|Status|Depends|Pre-Depends): (.*)$", stanza))
        if fields.get("Status", "").endswith(" installed"):
            listed = f"{fields.get('Pre-Depends', '')},{fields.get('Depends', '')}"
            found[fields["Package"]] = re.findall(r"(?:^|[,|])\s*([a-z0-9][a-z0-9.+-]+)", listed)
    return found
