"""What virt-lightning's manual says: `vl up` with a stock cloud image, a command over ssh, `vl
down`.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from tests import stock
from tests.bench.common import LIFE

_PROGRAM = "/opt/virt-lightning/bin/vl"
_IMAGES = Path("/var/lib/virt-lightning/pool/upstream")  # no setting of its own moves it
_ADDRESS = "192.168.123.50"  # in the network that it makes
_SSH = (
    "-o",
    "StrictHostKeyChecking=no",
    "-o",
    "UserKnownHostsFile=/dev/null",
    "-o",
    "LogLevel=ERROR",
    "-o",
    "BatchMode=yes",
)
# The seed is a plain disk, since the kernel of cloud images drives no CD-ROM of this machine type.
_MACHINE = f"""\
- name: lightning
  distro: stock
  memory: 1024
  vcpus: 2
  meta_data_media_type: disk
  networks: [{{ipv4: {_ADDRESS}}}]
"""


class Lightning:
    """Its image, key and configuration, laid once; needs `genisoimage` and `ssh`, too."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="vmrunner-lightning-"))
        _IMAGES.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(stock.cached(stock.SUITE), _IMAGES / "stock.qcow2")
        self._key = self._folder / "key"
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._key)], check=True
        )
        (self._folder / "config.ini").write_text(f"[main]\nssh_key_file = {self._key}.pub\n")
        (self._folder / "virt-lightning.yaml").write_text(_MACHINE)
        self._vl("down")  # a machine that a killed run left would be taken for a new one

    def _vl(self, command: str) -> None:
        subprocess.run(
            [_PROGRAM, "--config", "config.ini", command],
            cwd=self._folder,
            check=True,
            capture_output=True,
            timeout=LIFE,
        )

    def life(self) -> tuple[float, float]:
        """Seconds until ssh answers, for which `vl up` waits, and until `true` has run over it and
        the machine is gone.
        """
        began = time.monotonic()
        try:
            self._vl("up")
            first = time.monotonic() - began
            subprocess.run(
                ["ssh", *_SSH, "-i", str(self._key), f"root@{_ADDRESS}", "true"],
                check=True,
                timeout=LIFE,
            )
        finally:
            self._vl("down")
        return first, time.monotonic() - began
