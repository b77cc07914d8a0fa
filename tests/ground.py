"""A place to run the real `vmrunner` program in: a configuration for this rig, a state folder, and
nothing left from before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import libvirt

from tests.forge.gitea import URL
from tests.prepare import GITEA, IMAGES
from vmrunner.hypervisor.host import LibvirtHost

STORAGE = Path("/var/lib/libvirt/vmrunner")
_RUN = "import sys; from vmrunner.cli.main import main; sys.exit(main())"


@dataclass(frozen=True)
class Ground:
    """One manager's configuration and folders."""

    manager: str
    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "vmrunner.toml"

    @property
    def log(self) -> Path:
        """What `serve` has said."""
        return self.folder / "serve.log"

    def command(self, *arguments: str) -> list[str]:
        """The command line of the program, with this configuration."""
        return [sys.executable, "-c", _RUN, *arguments]

    def run(
        self, *arguments: str, check: bool = True, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run `vmrunner` to its end."""
        done = subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            timeout=timeout,
            env=os.environ | {"VMRUNNER_CONFIG": str(self.config)},
        )
        assert not check or done.returncode == 0, (
            f"vmrunner {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done

    def serve(self, *options: str) -> subprocess.Popen[bytes]:
        """`vmrunner serve` in the background, its log beside its configuration."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.command("serve", *options),
                stdout=log,
                stderr=log,
                env=os.environ | {"VMRUNNER_CONFIG": str(self.config)},
            )

    def status(self) -> dict[str, Any]:
        """`vmrunner status --json`."""
        found: dict[str, Any] = json.loads(self.run("status", "--json").stdout)
        return found

    def leftovers(self) -> list[str]:
        """Domains, machine files and runtime files of this manager, asked of libvirt and the file
        system, not of vmrunner.
        """
        connection = libvirt.open("qemu:///system")
        head = f"vmr-{self.manager}-"
        found = [
            f"domain {domain.name()}"
            for domain in connection.listAllDomains()
            if domain.name().startswith(head)
        ]
        folder = STORAGE / self.manager
        found += (
            [f"file {path.name}" for path in sorted(folder.glob(f"{head}*"))]
            if folder.is_dir()
            else []
        )
        found += [
            f"runtime {path.name}" for path in sorted((self.folder / "run").rglob(f"{head}*"))
        ]
        return found


def lay(
    folder: Path,
    manager: str,
    subnet: str,
    *,
    token: str,
    url: str = URL,
    kind: str = "gitea",
    image: str = GITEA,
    labels: str = "debian-12",
    most: int = 2,
    start: str = "boot",
    more: str = "",
) -> Ground:
    """Write the configuration; `more` is added to the pool's table.

    Machines are booted unless `start` says otherwise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / "state"
    state.mkdir(exist_ok=True)
    if not (state / "images").exists():
        (state / "images").symlink_to(IMAGES)
    secret = folder / "forge-token"
    secret.write_text(token + "\n")
    secret.chmod(0o600)
    ground = Ground(manager, folder)
    ground.config.write_text(
        f"""manager = "{manager}"
state_dir = "{state}"
runtime_dir = "{folder / "run"}"
[forge]
kind = "{kind}"
url = "{url}"
token_file = "{secret}"
[libvirt]
subnet = "{subnet}"
[pools.main]
labels = ["{labels}"]
image = "{image}"
max = {most}
memory = "1GiB"
disk = "6GiB"
start = "{start}"
{more}
"""
    )
    return ground


def host_of(manager: str, subnet: str = "10.0.0.0/24", **more: Any) -> LibvirtHost:
    """This manager's part of the rig's libvirt, without the program."""
    return LibvirtHost(
        uri="qemu:///system",
        manager=manager,
        storage_path=STORAGE,
        subnet=IPv4Network(subnet),
        **{"accelerator": "software", "warn": lambda _: None} | more,
    )
