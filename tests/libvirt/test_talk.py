"""A conversation with a machine through libvirt, to QEMUs without a guest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress

import libvirt
import pytest

from vmrunner.errors import HypervisorError, Occupied
from vmrunner.hypervisor.seam import Way
from vmrunner.hypervisor.talk import LibvirtTalk
from vmrunner.model.machine import MachineId
from vmrunner.waiting import Deadline

URI = "qemu:///system"
MACHINE = MachineId("talk", "00000001", "0a0b0c0d")
DOMAIN = """
<domain type="qemu">
  <name>{name}</name><memory unit="MiB">32</memory>
  <os><type arch="x86_64" machine="q35">hvm</type></os>
  <devices>{devices}<controller type="usb" model="none"/><memballoon model="none"/></devices>
</domain>
"""
NOW = """
<serial type="pty"/>
<channel type="unix"><source mode="bind"/><target type="virtio" name="org.vmrunner.door"/></channel>
"""
OLDER = '<serial type="null"/>'  # or a file: nobody can type there


@pytest.fixture
def domain(request: pytest.FixtureRequest) -> Iterator[None]:
    with closing(libvirt.open(URI)) as connection:
        described = DOMAIN.format(name=MACHINE, devices=request.param)
        made = connection.createXML(described, libvirt.VIR_DOMAIN_START_PAUSED)
        yield
        with suppress(libvirt.libvirtError):  # a test did it
            made.destroy()


@pytest.mark.parametrize("domain", [NOW], indirect=True)
@pytest.mark.usefixtures("domain")
def test_one_at_a_time_until_it_leaves_or_the_machine_is_gone() -> None:
    for way in Way:
        first = LibvirtTalk(URI, MACHINE, way)
        with pytest.raises(Occupied, match=f"Somebody is at the {way} of vmr-talk-"):
            LibvirtTalk(URI, MACHINE, way)
        assert first.hear(0.01) is None
        first.close()
        first.close()
        assert first.hear(10) == b""
    again = [LibvirtTalk(URI, MACHINE, way) for way in Way]
    with closing(libvirt.open(URI)) as connection:
        connection.lookupByName(str(MACHINE)).destroy()
    for talk in again:
        deadline = Deadline(10)
        while (heard := talk.hear(1)) is None and not deadline.is_over:
            pass
        assert heard == b""
        talk.close()


@pytest.mark.parametrize("domain", [OLDER], indirect=True)
@pytest.mark.parametrize("way", Way)
@pytest.mark.usefixtures("domain")
def test_a_machine_that_an_older_vmrunner_made(way: Way) -> None:
    with pytest.raises(HypervisorError, match=f"has no {way}: an older vmrunner made it"):
        LibvirtTalk(URI, MACHINE, way)


def test_a_machine_that_is_gone() -> None:
    with pytest.raises(HypervisorError, match="vmr-talk-"):
        LibvirtTalk(URI, MACHINE, Way.DOOR)
