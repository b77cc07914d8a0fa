"""A stock cloud image as what an image begins with: a machine of it is booted once, and hands its
files over; then apt brings in the rest.

The machine is booted by its own loader, reaches the forge at most, and is stopped by cloud-init's
first hook (a boothook), before cloud-init makes users, keys or a bigger root. No loop device, no
libguestfs: whatever partitions and file systems the image has, its own kernel reads them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from vmrunner.config import HostConfig
from vmrunner.errors import HypervisorError, ImageError, MachineError
from vmrunner.files import digest
from vmrunner.hypervisor.seam import Hypervisor, Output, image_stem
from vmrunner.image.build import apt
from vmrunner.image.build.context import Build
from vmrunner.image.build.paths import place
from vmrunner.image.recipe.recipe import StockSource
from vmrunner.image.versions.store import MANIFEST
from vmrunner.machine import oneshot
from vmrunner.model.image import DISK, Golden, Manifest
from vmrunner.model.machine import DEFAULT_SHAPE
from vmrunner.network.policy import Reach

TAR = ("--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls")
"""How trees are packed and unpacked, so that nothing of their files is lost."""
_SHAPE = replace(DEFAULT_SHAPE, disk_gib=1)  # the disk is as big as the image
_BOOT, _READ = timedelta(minutes=15), timedelta(minutes=30)  # at most

# tar's own exit code, for 1 (a file has changed meanwhile) is as good as 0; the sum, for a port has
# no checksum of its own.
_HAND_OVER = r"""
set -eu
umask 077
root=/run/vmrunner-root
mkdir -p $root
mount --bind / $root # without what is mounted on top: /proc, /dev, /boot/efi …
set -- .
if mountpoint -q /boot; then set -- . -C / ./boot; fi # a partition of its own, as in Ubuntu's
mkfifo /run/vmrunner-sum
sha256sum </run/vmrunner-sum >&2 &
{
  code=0
  tar --create --file=- --sparse --numeric-owner --xattrs --xattrs-include='*' --acls --warning=no-file-changed -C $root \
    --exclude=./lost+found --exclude='./tmp/*' --exclude='./var/tmp/*' --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' \
    --exclude='./var/log/journal/*' --exclude='./var/lib/cloud/*' "$@" || code=$?
  echo $code >/run/vmrunner-code
} | tee /run/vmrunner-sum
wait
[ "$(cat /run/vmrunner-code)" -le 1 ]
"""  # noqa: E501 — a script keeps its lines
# What its first boot left of itself, and its loader, which no machine of ours needs: with its files
# there GRUB's scripts would look for a disk to write to when it is upgraded, or a kernel. By the
# tree's own tools: a symlink of the image must not lead out of it.
_CLEAN = r"""
set -eu
rm -rf /boot/grub /boot/efi
mkdir -p /boot/grub
rm -rf /var/lib/cloud /var/lib/apt/lists /var/cache/apt/archives /var/lib/dhcp/* /tmp/* /var/tmp/*
mkdir -p /var/lib/apt/lists/partial /var/cache/apt/archives/partial
find /var/log -type f -delete
rm -f /etc/ssh/ssh_host_* /var/lib/systemd/random-seed /var/lib/systemd/credential.secret /etc/netplan/50-cloud-init.yaml \
  /etc/network/interfaces.d/50-cloud-init* /etc/systemd/network/10-cloud-init-* /etc/udev/rules.d/70-persistent-net.rules
if [ ! -L /var/lib/dbus/machine-id ]; then rm -f /var/lib/dbus/machine-id; fi
: >/etc/machine-id
rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*
# What a small image leaves out of its packages jobs would miss in what they install: a package's own settings stay.
for file in /etc/dpkg/dpkg.cfg.d/*; do
  if [ -f "$file" ] && ! dpkg-query -S "$file" >/dev/null 2>&1; then rm -f "$file"; fi
done
"""  # noqa: E501 — a script keeps its lines
_SUITE = '. /etc/os-release; echo "${VERSION_CODENAME:-unknown}"'
# As a bootstrap does it: nothing starts, a configuration file that the image has changed stays.
_DPKG = ("--force-unsafe-io", "--force-confdef", "--force-confold")
_APT = (
    "apt-get",
    "-qy",
    "-o",
    "APT::Update::Error-Mode=any",
    "-o",
    "Dpkg::Use-Pty=0",
    *(f"-oDpkg::Options::={each}" for each in _DPKG),
)
_NO_DAEMONS = "/usr/sbin/policy-rc.d"


def boot(
    hypervisor: Hypervisor,
    settings: HostConfig,
    golden: Golden,
    command: Sequence[str],
    write: Callable[[Output, bytes], None],
) -> int:
    """The `boot_stock` of a build, on this host.

    The machine reaches the forge at most; neither it nor its image is on the host afterwards.
    """
    try:
        return oneshot.run(
            hypervisor,
            settings,
            oneshot.Command(
                golden,
                command,
                _SHAPE,
                _READ,
                boot_timeout=max(settings.images.boot_timeout, _BOOT),
                snapshot=False,
                network=Reach.NONE,
                boothook=True,
            ),
            write=write,
            say=lambda _: None,
        )
    except MachineError as error:
        raise ImageError(
            f"The stock image did not hand its files over: {error.sentence}",
            "It needs a boot loader for a BIOS, a console on ttyS0 to say more, and cloud-init. "
            f"{error.hint}",
        ) from None
    finally:
        stem = image_stem(golden.name, golden.version)
        with suppress(HypervisorError):  # `image prune` removes what stays
            names = [
                volume.name
                for volume in hypervisor.images.volumes()
                if volume.is_ours and volume.name.startswith(stem)
            ]
            # With it, it would count as whole.
            hypervisor.images.drop(sorted(names, key=lambda name: not name.endswith(MANIFEST)))


def unpack(build: Build, source: StockSource) -> None:
    """Fill the tree with a stock image and the recipe's packages; apt's lists are still in it."""
    tar = build.work / "stock.tar"
    _hand_over(build, _golden(build, _original(build, source)), tar)
    build.tree.mkdir(mode=0o755)
    build.programs.run(
        "Unpacking the stock image",
        *("tar", "--extract", *TAR, "--directory", build.tree, "--file", tar),
    )
    tar.unlink()
    build.run_in_tree(
        "Cleaning the stock image", "sh", "-c", f"{_CLEAN}cd /\n{apt.MAKE_MAN_FOLDERS}"
    )
    suite = build.run_in_tree(
        "Looking at the stock image", "sh", "-c", _SUITE, logged=False
    ).strip()
    if suite != build.recipe.suite:
        raise ImageError(
            f"The stock image is {suite!r}, and the recipe's suite {build.recipe.suite!r}.",
            "Name the image's own suite.",
        )
    _install(build)


def _original(build: Build, source: StockSource) -> Path:
    """The image's file, with the digest that the recipe wants."""
    wanted = str(source.sha512 or source.sha256 or "")
    if source.url:
        return build.downloads.get("The stock image", source.url, wanted)
    original = Path(str(source.path))
    algorithm = "sha512" if source.sha512 else "sha256"
    if wanted and (given := digest(original, algorithm)) != wanted:
        raise ImageError(
            f"The stock image has the {algorithm} {given}, the recipe wants {wanted}.",
            "Check where it comes from.",
        )
    return original


def _golden(build: Build, original: Path) -> Golden:
    """It as an image that a machine can be booted from: without a backing file, whatever format it
    had.
    """
    described = json.loads(
        build.programs.run(
            "Looking at the stock image",
            *("qemu-img", "info", "--output=json", original),
            logged=False,
        )
    )
    needs_more = "backing-filename" in described or "data-file" in described.get(
        "format-specific", {}
    ).get("data", {})
    if described["format"] not in ("qcow2", "raw") or needs_more:
        raise ImageError(
            "The stock image is not a qcow2 or raw disk that stands alone.",
            "`qemu-img convert -O qcow2` makes one of it; archives are unpacked first.",
        )
    folder = build.work / "stock"
    folder.mkdir()
    build.step("reading the stock image")
    build.programs.run(
        "Reading the stock image",
        *("qemu-img", "convert", "-f", described["format"], "-O", "qcow2", original),
        folder / DISK,
    )
    found = digest(folder / DISK)
    manifest = Manifest(
        name=build.recipe.name,
        # No other build's, which would take it away from under our machine.
        version=f"stock-{found[:12]}-{os.getpid()}",
        recipe_digest="",
        files={DISK: found},
        packages={},
        built_at="",
        vmrunner_version="",
    )
    return Golden(manifest.name, manifest.version, folder, manifest)


class _Receiver:
    """Writes what comes into a file; a disk that is full is told when all of it has come."""

    def __init__(self, target: Path) -> None:
        self._out, self._sum, self.said, self.size = target.open("wb"), hashlib.sha256(), b"", 0
        self.error: OSError | None = None

    def __call__(self, port: Output, chunk: bytes) -> None:
        if port is not Output.STDOUT:
            self.said = (self.said + chunk)[-4096:]
            return
        self._sum.update(chunk)
        self.size += len(chunk)
        if self.error is None:
            try:
                self._out.write(chunk)
            except OSError as error:
                self.error = error

    def close(self) -> None:
        """Raises OSError where something could not be written."""
        try:
            self._out.close()
        except OSError as error:
            self.error = self.error or error
        if self.error:
            raise self.error

    @property
    def is_whole(self) -> bool:
        """Whether it is what the machine says that it sent."""
        found = re.search(rb"(?m)^([0-9a-f]{64})  -$", self.said)
        return found is not None and found[1].decode() == self._sum.hexdigest()


def _hand_over(build: Build, golden: Golden, tar: Path) -> None:
    """Boot a machine of the image, which packs its files into `tar`."""
    if build.boot_stock is None:
        raise ImageError(
            "A stock image can't be read here: a machine of it has to be booted.",
            "Build it with `vmrunner image build`.",
        )
    build.step("booting the stock image once, for its files")
    receiver = _Receiver(tar)
    try:
        code = build.boot_stock(golden, ("sh", "-c", _HAND_OVER), receiver)
    finally:
        receiver.close()
    # A tar that does not know an option exits with 1, too.
    if code or not receiver.size or not receiver.is_whole:
        said = receiver.said.decode("utf-8", "replace").strip().splitlines()[-4:]
        raise ImageError(
            f"The stock image did not hand its files over (exit {code}).",
            "\n".join(said) or "It did not say why.",
        )
    build.step(f"unpacking its {receiver.size >> 20} MiB of files")


def _install(build: Build) -> None:
    """Bring the packages to what the archive has, and add the recipe's.

    The recipe's sources replace the image's own.
    """
    recipe, tree = build.recipe, build.tree
    place(tree, _NO_DAEMONS, b"#!/bin/sh\nexit 101\n", 0o755)
    try:
        with apt.lent(recipe, tree):
            build.step("asking the archive what is new")
            build.run_in_tree("Asking the archive", *_APT, "update")
            build.step(f"upgrading, and installing {len(recipe.all_packages)} packages")
            build.run_in_tree("Upgrading the packages", *_APT, "full-upgrade")
            if recipe.all_packages:
                build.run_in_tree(
                    "Installing the packages",
                    *_APT,
                    "--no-install-recommends",
                    "install",
                    *recipe.all_packages,
                )
            build.run_in_tree("Removing what was fetched", "apt-get", "clean")
    finally:
        (tree / _NO_DAEMONS[1:]).unlink(missing_ok=True)
