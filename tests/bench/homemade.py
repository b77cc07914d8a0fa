"""What most home-made scripts do: `virt-install --import` of a stock image with a cloud-init
seed.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from contextlib import closing, suppress
from ipaddress import IPv4Interface
from pathlib import Path

import libvirt

from tests.bench.common import LIFE, MANAGER
from tests.bench.floor import overlay
from tests.forge.gitea import until
from tests.prepare import CLOUD_INIT, IMAGES
from vmrunner.image.versions import store
from vmrunner.machine import seed
from vmrunner.model.image import DISK
from vmrunner.model.machine import MachineId

_BEGAN = "vmrunner-bench-began"
_SCRIPT = f"#!/bin/sh\necho {_BEGAN} >/dev/ttyS0\nsystemctl poweroff --force --force\n"


def life(address: IPv4Interface) -> tuple[float, float]:
    """Seconds until the seed's script begins, and until the machine is gone.

    Needs the program `virt-install`.
    """
    machine, golden = MachineId.new(MANAGER, "0a0b0c0d"), store.find(IMAGES, CLOUD_INIT)
    with (
        tempfile.TemporaryDirectory(prefix="vmrunner-homemade-") as name,
        closing(libvirt.open("qemu:///system")) as host,
    ):
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "seed.iso").write_bytes(seed.iso(machine, _SCRIPT, address))
        console = folder / "console"
        began = time.monotonic()
        overlay(folder / "disk.qcow2", str((golden.directory / DISK).resolve()))
        # What has to be said beyond the usual: the image has no boot loader, and its kernel drives
        # neither e1000 nor a CD-ROM.
        boot = f"kernel={golden.directory / 'vmlinuz'},initrd={golden.directory / 'initrd'}"
        boot += f",kernel_args={golden.manifest.kernel_arguments}"
        command = (
            f"virt-install --connect qemu:///system --virt-type qemu --name {machine} --transient "
            "--import --memory 1024 --vcpus 2"
            f" --osinfo debian12 --graphics none --serial file,source.path={console} "
            "--noautoconsole"
            f" --network network=vmr-{MANAGER},mac={machine.mac},model=virtio --disk "
            f"{folder}/disk.qcow2,format=qcow2,bus=virtio"
            f" --disk {folder}/seed.iso,format=raw,bus=virtio,readonly=on --boot"
        )
        try:
            subprocess.run([*command.split(), boot], check=True, stdout=subprocess.DEVNULL)
            until(
                lambda: _BEGAN in console.read_text(errors="replace"),
                LIFE,
                "its script",
                every=0.05,
            )
            first = time.monotonic() - began
            until(
                lambda: str(machine) not in {domain.name() for domain in host.listAllDomains()},
                LIFE,
                "its power-off",
                every=0.1,
            )
            return first, time.monotonic() - began
        finally:
            with suppress(libvirt.libvirtError):
                host.lookupByName(str(machine)).destroy()
