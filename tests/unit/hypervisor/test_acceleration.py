"""Why there is no KVM: four reasons, told apart on hosts that are made up."""

from __future__ import annotations

import pytest

from tests.unit.hypervisor.capabilities import capabilities
from vmrunner.hypervisor.acceleration import Device, Local, NoKvm, judge

QEMU, ITS_GROUP, KVM = 64055, 108, 104
FLAGS = "processor\t: 0\nflags\t\t: fpu {} sse2\nbugs\t\t: none\n"
INTEL, AMD, NEITHER = FLAGS.format("vmx"), FLAGS.format("svm"), FLAGS.format("pae")
USUAL = Device(0o660, 0, KVM)


def local(cpuinfo: str, device: Device | None, *groups: int) -> Local:
    return Local(cpuinfo, device, QEMU, frozenset({ITS_GROUP, *groups}))


@pytest.mark.parametrize(
    ("offered", "here", "reason"),
    [
        (True, local(INTEL, USUAL, KVM), None),
        (True, local(AMD, USUAL, KVM), None),
        (True, local(NEITHER, USUAL, KVM), NoKvm.NO_FLAG),  # opens, and hangs its guests
        (False, local(NEITHER, None), NoKvm.NO_FLAG),
        (False, local(NEITHER.replace("pae", "vmx_not svmx"), None), NoKvm.NO_FLAG),
        (False, local(NEITHER + "note: vmx svm\n", None), NoKvm.NO_FLAG),
        (False, local(INTEL, None, KVM), NoKvm.NO_MODULE),
        (False, local(AMD, None), NoKvm.NO_MODULE),
        (False, local(INTEL, USUAL), NoKvm.NO_ACCESS),
        (False, local(INTEL, Device(0o600, 0, 0), KVM), NoKvm.NO_ACCESS),
        (False, local(INTEL, Device(0o640, 0, KVM), KVM), NoKvm.NO_ACCESS),
        (False, local(INTEL, Device(0o664, 0, KVM)), NoKvm.NO_ACCESS),
        (False, local(INTEL, USUAL, KVM), NoKvm.NOT_OFFERED),
        (False, local(AMD, Device(0o666, 0, 0)), NoKvm.NOT_OFFERED),
        (False, local(AMD, Device(0o600, QEMU, 0)), NoKvm.NOT_OFFERED),
        (True, None, None),
        (False, None, NoKvm.NOT_OFFERED),
    ],
)
def test_each_reason(offered: bool, here: Local | None, reason: NoKvm | None) -> None:
    assert judge(capabilities(kvm=offered), here) is reason


def test_root_opens_everything() -> None:
    assert Device(0, 1, 1).opens_for(0, frozenset())
    assert not Device(0, 1, 1).opens_for(1, frozenset({1}))


def test_every_reason_has_its_own_words_and_a_hint() -> None:
    assert len({(each.said, each.hint) for each in NoKvm}) == len(NoKvm) == 4
    assert all(each.said and each.hint.endswith(".") for each in NoKvm)


def test_this_host_can_be_looked_at() -> None:
    found = Local.look(capabilities())
    assert found.uid == QEMU
    assert ITS_GROUP in found.gids
    assert "processor" in found.cpuinfo
