"""What KVM changes, as far as a host without it can tell: libvirt accepts the XML, and QEMU has
what it is told.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import libvirt
import libvirt_qemu
import pytest

from vmrunner.hypervisor.domain import domain_xml
from vmrunner.model.machine import NO_LIMITS, MachineId, Metadata, Shape

MACHINE = MachineId("kvm", "0123abcd")


@pytest.fixture
def qemu() -> Iterator[Any]:
    with closing(libvirt.open("qemu:///system")) as connection:
        yield connection


def described(folder: Any, *, kvm: bool, nested: bool) -> str:
    return domain_xml(
        kvm=kvm,
        shape=Shape(1, 32, 1, nested),
        metadata=Metadata(MACHINE, "p", "web/v1", 1.0),
        network="none",
        files={
            name: f"{folder}/{name}"
            for name in ("overlay", "seed", "events", "console", "runner_log")
        },
        boot=None,
        backing=(f"{folder}/base",),
        limits=NO_LIMITS,
    )


def refused(qemu: Any, text: str) -> tuple[int, str]:
    """libvirt's code and words for a definition; (0, "") where it takes it."""
    try:
        domain = qemu.defineXMLFlags(text, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
    except libvirt.libvirtError as error:
        return error.get_error_code(), str(error)
    domain.undefine()
    return 0, ""


@pytest.mark.parametrize("nested", [True, False])
def test_libvirt_knows_every_word_of_a_machine_with_kvm(
    qemu: Any, tmp_path: Any, nested: bool
) -> None:
    """Where it has no KVM it says so, after it has looked at the words."""
    right = described(tmp_path, kvm=True, nested=nested)
    code, said = refused(qemu, right)
    assert code in {0, libvirt.VIR_ERR_CONFIG_UNSUPPORTED}, said
    assert not code or "virt type 'kvm'" in said
    code, _ = refused(qemu, right.replace("migratable=", "portable="))
    assert code == libvirt.VIR_ERR_XML_INVALID_SCHEMA


@pytest.mark.parametrize("nested", [True, False])
def test_a_machine_has_svm_only_where_that_is_said(qemu: Any, tmp_path: Any, nested: bool) -> None:
    """Software emulation has it, too."""
    processor = described(tmp_path, kvm=False, nested=nested)
    processor = processor[processor.index("<cpu") : processor.index("</cpu>")] + "</cpu>"
    domain = qemu.createXML(
        f"<domain type='qemu'><name>{MACHINE}</name><memory unit='MiB'>16</memory>"
        f"<os><type arch='x86_64' machine='q35'>hvm</type></os>{processor}<devices>"
        "<controller type='usb' model='none'/><memballoon model='none'/></devices></domain>",
        libvirt.VIR_DOMAIN_START_PAUSED,
    )
    try:
        told = {"path": "/machine/unattached/device[0]", "property": "svm"}
        command = json.dumps({"execute": "qom-get", "arguments": told})
        assert json.loads(libvirt_qemu.qemuMonitorCommand(domain, command, 0))["return"] is nested
    finally:
        domain.destroy()
