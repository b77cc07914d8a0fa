"""The floors under `vmrunner exec`: the very QEMU that libvirt started, started again without
libvirt and without vmrunner.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from ipaddress import IPv4Interface
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.ground import Ground
from vmrunner.hypervisor.seam import SEED_SIZE
from vmrunner.machine import seed
from vmrunner.model.machine import MachineId

LOGS = Path("/var/log/libvirt/qemu")
TAP = "vmrbench0"
"""The network interface of its guest."""
_DEADLINE = 240.0


def logged(place: Ground, *command: str) -> tuple[str, str]:
    """The machine of such a command, and what libvirt logs of it, which goes with the machine."""
    environment = os.environ | {"VMRUNNER_CONFIG": str(place.config)}
    machine = log = ""
    with subprocess.Popen(place.command(*command), env=environment) as process:
        while process.poll() is None:
            for path in LOGS.glob(f"vmr-{place.manager}-*.log"):
                with suppress(OSError):
                    machine, log = path.stem, path.read_text() or log
            time.sleep(0.02)
    assert process.returncode == 0
    return machine, log


def command_line(log: str) -> list[str]:
    """How libvirt started the QEMU that this log is of."""
    begin = log.rindex("/usr/bin/qemu-system")
    words = shlex.split(log[begin:].split("\n20", 1)[0].replace("\\\n", " "))
    return words[: words.index("-msg")]


class Floor:
    """One QEMU's command line, to be run any number of times on fresh files in a folder of its
    own.
    """

    def __init__(self, machine: str, log: str, address: IPv4Interface) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="vmrunner-floor-"))
        name = MachineId.of(machine.split("-")[1], machine)
        assert name
        self.machine, self.address = name, address
        self._argv = [
            self._without_libvirt(word, machine) for word in _without_options(command_line(log))
        ]
        files = [
            json.loads(word)["filename"]
            for word in self._argv
            if word.startswith('{"driver":"file","filename"')
        ]
        self.seed = self._folder / "machine.seed.iso"
        self.events = self._folder / "charchannel0"
        """What the guest says."""
        self.marks: dict[str, float] = {}  # of the last run, unix seconds
        self.steps: dict[str, float] = {}  # of the last run, in seconds
        # Each disk is named after the one that it lies on.
        self._backing = files[files.index(f"{self._folder}/machine.qcow2") - 1]

    def _without_libvirt(self, word: str, machine: str) -> str:
        """Sockets, log files and the tap device of our own; the machine's files in our folder."""
        folder = self._folder
        if word.startswith("socket,id=charmonitor"):
            return f"socket,id=charmonitor,path={folder}/monitor,server=on,wait=off"
        if match := re.match(r"(?:file|socket|pty),id=(char\w+),", word):
            name = match[1]
            return (
                f"null,id={name}"
                if name == "charserial0"
                else f"file,id={name},path={folder}/{name}"
            )
        if word.startswith('{"type":"tap"'):
            return f"tap,id=hostnet0,ifname={TAP},script=no,downscript=no"
        return re.sub(rf'"[^"]*/{machine}\.', f'"{folder}/machine.', word)

    def run(self, state: str | None) -> float:
        """Seconds from nothing to a process that is gone, `true` having run in between; `state` is
        what a clone begins with.

        As with `exec`, nobody waits for the guest to power off.
        """
        content = seed.iso(
            self.machine, seed.exec_script(["true"], timedelta(seconds=_DEADLINE)), self.address
        )
        self.marks = {"begin": time.time()}
        with self.alive(state, content):
            if state:
                self.give(content)
            self.resume()
            self.mark("bind")
            self.await_exit()
            self.mark("command")
        self.mark("destroy")
        self.steps = {name: at - before for (_, before), (name, at) in pairwise(self.marks.items())}
        return self.marks["destroy"] - self.marks["begin"]

    @contextmanager
    def alive(self, state: str | None, content: bytes = b"") -> Iterator[None]:
        """A QEMU that waits to go on from this state, or to boot with this seed; it is killed at
        the end. Marks `overlay`, `create` and `load`.
        """
        for file in self._folder.iterdir():
            file.unlink()
        self.seed.write_bytes(bytes(SEED_SIZE) if state else content)
        subprocess.run(["ip", "tuntap", "add", TAP, "mode", "tap", "vnet_hdr"], check=True)
        try:
            overlay(self._folder / "machine.qcow2", self._backing)
            self.mark("overlay")
            # As libvirt does it, whatever its own process is bound to.
            everywhere = ["taskset", "--cpu-list", f"0-{(os.cpu_count() or 1) - 1}"]
            qemu = subprocess.Popen([*everywhere, *self._argv], stdin=subprocess.DEVNULL)
            try:
                with _Monitor(self._folder / "monitor") as self._monitor:
                    self.mark("create")
                    if state:
                        self._load(state)
                        self.mark("load")
                    yield
            finally:
                qemu.kill()
                qemu.wait()
        finally:
            subprocess.run(["ip", "link", "del", TAP], check=False)

    def mark(self, name: str) -> None:
        """Note that it is now."""
        self.marks[name] = time.time()

    def give(self, content: bytes) -> None:
        """A seed for the guest that waits for one."""
        with self.seed.open("r+b") as device:
            device.write(content)

    def pause(self) -> None:
        """Stop the guest."""
        self._monitor.say("stop")

    def resume(self) -> None:
        """Let it begin, or go on."""
        self._monitor.say("cont")

    def _load(self, state: str) -> None:
        self._monitor.say(
            "migrate-set-capabilities",
            capabilities=[{"capability": "x-ignore-shared", "state": True}],
        )
        self._monitor.say("migrate-incoming", uri=f"file:{state}")
        while self._monitor.say("query-migrate").get("status") != "completed":
            time.sleep(0.002)

    def await_exit(self) -> None:
        """Until the guest has said that its command has ended."""
        deadline = time.monotonic() + _DEADLINE
        while b"exit " not in self.events.read_bytes():
            assert time.monotonic() < deadline, "the command does not end"
            time.sleep(0.005)


def _without_options(argv: list[str]) -> list[str]:
    """Without what only libvirt has: its secret, and the files that it passed open."""
    dropped = {
        index + offset
        for index, (option, value) in enumerate(pairwise(argv))
        if option == "-add-fd" or (option == "-object" and '"secret"' in value)
        for offset in (0, 1)
    }
    return [word for index, word in enumerate(argv) if index not in dropped]


def overlay(path: Path, backing: str) -> None:
    """A qcow2 disk on another one."""
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", backing, "-F", "qcow2", str(path), "20G"],
        check=True,
    )


class _Monitor:
    """QMP."""

    def __init__(self, path: Path) -> None:
        deadline = time.monotonic() + 30
        self._socket = socket.socket(socket.AF_UNIX)
        while True:
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.002)
        self._socket.settimeout(_DEADLINE)
        self._lines = self._socket.makefile()
        self._lines.readline()
        self.say("qmp_capabilities")

    def __enter__(self) -> _Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def say(self, command: str, **arguments: object) -> Any:
        """One command's answer."""
        self._socket.sendall(
            json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
        )
        for line in self._lines:
            answer = json.loads(line)
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']}")
            if "return" in answer:
                return answer["return"]
        raise OSError("QEMU has gone")
