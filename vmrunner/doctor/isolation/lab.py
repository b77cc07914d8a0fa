"""Where isolation is tried: this host's own libvirt, network and rules, and machines that run our
probes instead of a job.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from vmrunner.config import Config
from vmrunner.errors import MachineError
from vmrunner.hypervisor.seam import Hypervisor, Output
from vmrunner.machine import clones, oneshot
from vmrunner.model.image import Golden
from vmrunner.model.machine import MachineId, Shape
from vmrunner.network.forge import ForgeAddresses
from vmrunner.network.policy import Reach
from vmrunner.render import guest

_BOOT = timedelta(minutes=5)


@dataclass(frozen=True)
class Cell:
    """One thing that was tried from inside a machine."""

    policy: str  # empty: the same under each
    group: str
    what: str
    is_open: bool
    should_be_open: bool = False
    measured: str = ""

    @property
    def is_right(self) -> bool:
        """Whether it is as the policy says."""
        return self.is_open is self.should_be_open


@dataclass(frozen=True)
class Lab:
    """`open_host` is called for each machine that runs at once.

    Machines are cloned where `snapshot` is true and there is one.
    """

    settings: Config
    open_host: Callable[[], Hypervisor]
    golden: Golden
    shape: Shape
    snapshot: bool
    say: Callable[[str], None]

    @property
    def forge(self) -> ForgeAddresses:
        """Where the forge is."""
        return self.settings.forge_addresses()

    @contextmanager
    def on_one_processor(self) -> Iterator[Lab]:
        """The same with machines of one virtual processor each.

        Where they are cloned there is a snapshot for them meanwhile.
        """
        lab, made = replace(self, shape=replace(self.shape, vcpus=1)), None
        with closing(self.open_host()) as host:
            if self.snapshot and host.snapshots.find(lab.golden, lab.shape) is None:
                made = clones.make(
                    host,
                    self.settings,
                    lab.golden,
                    lab.shape,
                    timeout=_BOOT.total_seconds(),
                    say=self.say,
                )
        try:
            yield lab
        finally:
            if made:
                with closing(self.open_host()) as host:
                    host.snapshots.drop(made.key)

    def run(
        self,
        program: str,
        *arguments: str,
        write: Callable[[bytes], None],
        policy: str = Reach.NONE,
        machine: MachineId | None = None,
        host: Hypervisor | None = None,
        started: Callable[[MachineId], None] = lambda _: None,
        timeout: timedelta = _BOOT,
    ) -> int:
        """Run one of our probes in a machine of its own and return its exit code; `write` gets what
        it prints.

        Raises HypervisorError without root, MachineError where the machine does not come up or the
        probe does not end.
        """
        own = host or self.open_host()
        try:
            patience = "1" if own.facts.kvm else "4"
            probe = ["env", f"PROBE_PATIENCE={patience}", "python3", "-c", guest(program)]
            return oneshot.run(
                own,
                self.settings,
                oneshot.Command(
                    self.golden,
                    [*probe, *arguments],
                    self.shape,
                    timeout,
                    boot_timeout=_BOOT,
                    snapshot=self.snapshot,
                    network=policy,
                    machine=machine,
                ),
                write=lambda stream, chunk: write(chunk) if stream is Output.STDOUT else None,
                say=self.say,
                started=started,
            )
        finally:
            if host is None:
                own.close()

    def answers(
        self,
        program: str,
        *arguments: str,
        policy: str = Reach.NONE,
        machine: MachineId | None = None,
    ) -> Any:
        """What a probe prints, which is JSON."""
        output = bytearray()
        code = self.run(program, *arguments, write=output.extend, policy=policy, machine=machine)
        try:
            return json.loads(output)
        except ValueError:
            raise MachineError(
                f"The probe ended with exit code {code}, and without its answers.",
                "Has the image Python?",
            ) from None

    def residue(self) -> tuple[str, ...]:
        """The files of machines that are left on the host."""
        with closing(self.open_host()) as host:
            return host.machines.residue().files
