"""What a snapshot rests on: whatever differs after a reboot makes a new one, and what doesn't
matter makes none.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.hypervisor.capabilities import capabilities
from vmrunner.hypervisor.basis import Kernel, nested, of

QEMU, LIBVIRT = 10_000_002, 11_003_000
KERNEL = Kernel("6.12.0-1-amd64", "#1 SMP Debian 6.12.0-1", ("N",))


def digest(*, kernel: Kernel | None = KERNEL, kvm: bool = True, **changed: Any) -> str:
    return of(capabilities(**changed), QEMU, LIBVIRT, kernel, kvm=kvm).digest


@pytest.mark.parametrize(
    "changed",
    [
        {"vendor": "AMD"},
        {"features": ("vmx", "aes")},  # one gone: a microcode update took TSX away in its time
        {"features": ("vmx", "aes", "avx2", "avx512f")},
        {"microcode": 241},
        {"stepping": 4},
        {"machine": "pc-q35-10.1"},
        {"emulator": "/usr/libexec/qemu-kvm"},
        {"kernel": replace(KERNEL, release="6.12.0-2-amd64")},
        {"kernel": replace(KERNEL, version="#1 SMP Debian 6.12.0-1+deb13u1")},
        {"kernel": replace(KERNEL, nested=("Y",))},
        {"kernel": None},
        {"kvm": False},
    ],
)
def test_whatever_differs_after_a_reboot_makes_a_new_snapshot(changed: dict[str, Any]) -> None:
    assert digest(**changed) != digest()


@pytest.mark.parametrize(
    "changed",
    [
        {"memory_kib": 33554432},
        {"uuid": "00000000-0000-4000-8000-000000000002"},
        {"features": ("avx2", "vmx", "aes")},  # in another order
    ],
)
def test_what_does_not_matter_makes_none(changed: dict[str, Any]) -> None:
    assert digest(**changed) == digest()


@pytest.mark.parametrize(
    "changed", [{"microcode": 241}, {"kernel": replace(KERNEL, release="6.12.0-2-amd64")}]
)
def test_software_emulation_has_a_processor_of_its_own(changed: dict[str, Any]) -> None:
    assert digest(kvm=False, **changed) == digest(kvm=False)


def test_versions_count(tmp_path: Path) -> None:
    usual = of(capabilities(), QEMU, LIBVIRT, KERNEL, kvm=True)
    assert of(capabilities(), QEMU + 1, LIBVIRT, KERNEL, kvm=True).digest != usual.digest
    assert of(capabilities(), QEMU, LIBVIRT + 1, KERNEL, kvm=True).digest != usual.digest
    assert (usual.qemu, usual.libvirt, usual.user) == (QEMU, LIBVIRT, "64055")


def test_another_build_of_the_same_version_of_qemu_counts(tmp_path: Path) -> None:
    emulator = tmp_path / "qemu"

    def built(content: bytes, at: int) -> str:
        emulator.write_bytes(content)
        os.utime(emulator, (at, at))
        described = capabilities(emulator=str(emulator))
        return of(described, QEMU, LIBVIRT, None, kvm=False, is_local=True).digest

    first = built(b"one", 1)
    assert built(b"one", 1) == first
    assert built(b"one, and a fix", 1) != first
    assert built(b"two", 2) != first
    emulator.unlink()
    assert of(capabilities(emulator=str(emulator)), QEMU, LIBVIRT, None, kvm=False, is_local=True)


def test_a_host_that_tells_nothing_is_borne() -> None:
    assert of("<capabilities><host/></capabilities>", QEMU, LIBVIRT, None, kvm=False).digest


def test_what_the_modules_say_of_nesting(tmp_path: Path) -> None:
    assert nested(tmp_path) == ()
    (tmp_path / "kvm_amd" / "parameters").mkdir(parents=True)
    (tmp_path / "kvm_amd" / "parameters" / "nested").write_text("1\n")
    assert nested(tmp_path) == ("1",)
    assert Kernel.running(tmp_path).nested == ("1",)
