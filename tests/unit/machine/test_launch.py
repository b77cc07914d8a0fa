"""How machines come to be: cloned or booted, at work or waiting, the same for all who want one."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from ipaddress import IPv6Interface
from pathlib import Path

import pycdlib
import pytest

from tests.fakes import FakeHypervisor, FakeMachines
from tests.goldens import publish
from tests.world import POOL, World
from vmrunner.errors import HypervisorError, MachineError
from vmrunner.hypervisor.seam import File, Output
from vmrunner.image.versions import store
from vmrunner.machine import launch, oneshot
from vmrunner.machine.launch import Launch
from vmrunner.machine.oneshot import Command
from vmrunner.model.image import Golden
from vmrunner.model.machine import Limits, MachineId, Metadata

MACHINE = MachineId("m", "0a0b0c0d")
LIMITS = Limits(cpu_weight=7)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, pools={"p": POOL | {"start": "auto"}})
    yield made
    made.history.close()


def golden(world: World) -> Golden:
    return store.find(world.settings.images_dir, "debian-12")


def wanted(world: World) -> Launch:
    metadata = Metadata(MACHINE, "p", golden(world).id, world.clock.now, address="10.87.0.9/24")
    return Launch(
        metadata,
        golden(world),
        world.settings.pools["p"].shape,
        IPv6Interface("fd87::9/64"),
        LIMITS,
        world.manager.shelf,
        world.clock,
    )


def bound(metadata: Metadata) -> Metadata:
    return replace(metadata, runner_id=5)


def seed_of(world: World, name: str) -> str:
    """One of the files in the machine's seed."""
    image, out = pycdlib.PyCdlib(), io.BytesIO()
    image.open_fp(io.BytesIO(world.hypervisor.files[MACHINE, File.SEED]))
    image.get_file_from_iso_fp(out, rr_path=f"/{name}")
    image.close()
    return out.getvalue().decode()


@pytest.mark.parametrize("cloned", [True, False])
def test_one_that_is_at_work_at_once(world: World, cloned: bool) -> None:
    key = world.make_snapshot("p").key if cloned else ""
    made = launch.start(world.hypervisor, wanted(world), "#!/bin/sh\ntrue\n", bound)
    assert world.hypervisor.domains[MACHINE] == made
    assert (made.snapshot, made.runner_id, made.overlay_at) == (key, 5, world.clock.now)
    assert world.hypervisor.limits[MACHINE] == LIMITS
    assert MACHINE not in world.hypervisor.paused
    assert seed_of(world, "user-data") == "#!/bin/sh\ntrue\n"
    assert "10.87.0.9/24" in seed_of(world, "network-config")
    assert "fd87::9/64" in seed_of(world, "network-config")


@pytest.mark.parametrize("cloned", [True, False])
def test_one_that_waits_has_no_network_until_it_is_let_go(world: World, cloned: bool) -> None:
    if cloned:
        world.make_snapshot("p")
    made = launch.park(world.hypervisor, wanted(world), "a rehearsal")
    assert (bool(made.snapshot), bool(made.parked_at)) == (cloned, cloned)
    assert (seed_of(world, "user-data") == "a rehearsal") is cloned
    assert "10.87.0.9" not in seed_of(world, "network-config")
    assert "::9" not in seed_of(world, "network-config")
    done = launch.let_go(world.hypervisor.machines, bound(made), "#!/bin/sh\n", None)
    assert (world.hypervisor.domains[MACHINE], done.runner_id) == (done, 5)
    assert seed_of(world, "user-data") == "#!/bin/sh\n"
    assert "10.87.0.9/24" in seed_of(world, "network-config")


def test_a_clone_that_is_not_let_go_bears_no_mark_of_a_runner(world: World) -> None:
    world.make_snapshot("p")
    world.hypervisor.fail_at = "bind"
    with pytest.raises(HypervisorError):
        launch.start(world.hypervisor, wanted(world), "#!/bin/sh\n", bound)
    assert not world.hypervisor.domains[MACHINE].is_bound
    assert MACHINE in world.hypervisor.paused


def test_one_is_booted_where_it_shall_not_be_cloned_or_the_snapshot_is_no_good(
    world: World,
) -> None:
    key = world.make_snapshot("p").key
    made = launch.start(world.hypervisor, replace(wanted(world), shelf=None), "#!/bin/sh\n")
    assert (made.snapshot, list(world.hypervisor.kept)) == ("", [key])
    world.hypervisor.machines.destroy(MACHINE)
    world.hypervisor.clones_fail = True
    made = launch.start(world.hypervisor, wanted(world), "#!/bin/sh\n")
    assert (made.snapshot, list(world.hypervisor.kept)) == ("", [])
    assert world.manager.shelf.failure(key)
    assert MACHINE in world.hypervisor.domains


@dataclass
class Talkative(FakeMachines):
    """They print a word, and report what they are told to."""

    said: bytes = b""

    def read(self, machine: MachineId, file: File, *, tail: int = 65536) -> bytes:
        """See Machines."""
        return self.said if file is File.EVENTS else super().read(machine, file, tail=tail)

    def stream(self, machine: MachineId, output: Output, write: object) -> None:
        """See Machines."""
        assert callable(write)
        write(f"the {output}".encode())


def talkative(world: World, said: bytes = b"up 1\nrunner 2\nexit 3 7\n") -> FakeHypervisor:
    """A host with such machines, and this world's snapshots."""
    host = FakeHypervisor(kept=world.hypervisor.kept)
    host.machines = Talkative(host, said)
    return host


@pytest.mark.parametrize("cloned", [True, False])
@pytest.mark.parametrize("may_be", [True, False])
def test_a_command_has_a_machine_of_its_own_and_nothing_of_it_stays(
    world: World, cloned: bool, may_be: bool
) -> None:
    if cloned:
        world.make_snapshot("p")
    host, printed, said, seen = talkative(world), {}, [], []
    command = Command(
        golden(world),
        ["true"],
        world.settings.pools["p"].shape,
        timedelta(minutes=1),
        snapshot=may_be,
        machine=MACHINE,
    )

    def started(machine: MachineId) -> None:
        seen.append(host.domains[machine])

    code = oneshot.run(
        host,
        world.settings,
        command,
        write=lambda output, chunk: printed.update({output: chunk}),
        say=said.append,
        started=started,
    )
    assert (code, printed) == (
        7,
        {Output.STDOUT: b"the stdout", Output.STDERR: b"the stderr"},
    )
    (metadata,) = seen
    assert (metadata.image, metadata.network, bool(metadata.snapshot)) == (
        "debian-12/1",
        "internet",
        cloned and may_be,
    )
    assert metadata.overlay_at >= metadata.created_at > 0
    hint = "; `vmrunner snapshot create` lets the next ones start at once" if may_be else ""
    assert said == [
        f"machine {MACHINE}: {'cloned' if cloned and may_be else 'booting' + hint}",
        f"machine {MACHINE}: destroyed",
    ]
    assert not host.machines.residue()
    assert left(world, host) == []


def test_a_commands_machine_has_its_tools(world: World) -> None:
    publish(world.settings.images_dir, "3", name="tools", tools={"go/1.26.0/x64": "0" * 64})
    whole = store.for_machines(world.settings.images_dir, "debian-12", "tools")
    host, seen = talkative(world), []
    command = Command(whole, ["true"], world.settings.pools["p"].shape, timedelta(minutes=1))

    def started(machine: MachineId) -> None:
        seen.append((host.domains[machine].tools, host.files[machine, File.SEED]))

    oneshot.run(
        host, world.settings, command, write=lambda *_: None, say=lambda _: None, started=started
    )
    ((tools, seed),) = seen
    assert (tools, "image-tools-3.disk.qcow2" in host.published) == ("tools/3", True)
    assert b"export RUNNER_TOOL_CACHE=/opt/hostedtoolcache" in seed


def left(world: World, host: FakeHypervisor) -> list[object]:
    """Locks, addresses, and what the host knows of those who had them."""
    folders = (world.settings.runtime_dir / name for name in ("exec", "addresses"))
    return [*(path.name for folder in folders for path in folder.iterdir()), *host.known]


def test_the_address_of_a_command_that_was_killed_comes_back_without_a_pass(world: World) -> None:
    host = talkative(world)
    host.known[world.settings.addresses().take(MACHINE).ip] = MACHINE
    lock = world.settings.runtime_dir / "exec" / f"{MACHINE}.lock"
    lock.parent.mkdir()
    lock.touch()
    command = Command(
        golden(world), ["true"], world.settings.pools["p"].shape, timedelta(minutes=1)
    )
    oneshot.run(host, world.settings, command, write=lambda *_: None, say=lambda _: None)
    assert left(world, host) == []


def test_a_machine_that_does_not_come_up_in_time_goes(world: World) -> None:
    host = talkative(world, b"up 1\n")
    command = Command(
        golden(world),
        ["true"],
        world.settings.pools["p"].shape,
        timedelta(0),
        boot_timeout=timedelta(0),
    )
    with pytest.raises(MachineError, match=r"The guest did not come up within 0 s\."):
        oneshot.run(host, world.settings, command, write=lambda *_: None, say=lambda _: None)
    assert not host.machines.residue()
