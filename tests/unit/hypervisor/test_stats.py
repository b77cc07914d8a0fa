"""One domain's record of libvirt's statistics."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import libvirt
import pytest

from vmrunner.errors import HypervisorError
from vmrunner.hypervisor import stats
from vmrunner.hypervisor.stats import Stats, read
from vmrunner.model.machine import MachineId
from vmrunner.model.used import Used

# As libvirt 11.3 tells it without cgroups, shortened.
TOLD: dict[str, object] = {
    "balloon.maximum": 1048576,
    "balloon.rss": 451788,
    "vcpu.current": 2,
    "vcpu.0.time": 10_240_000_000,
    "vcpu.0.delay": 15_477_588_268,
    "vcpu.1.time": 10_100_000_000,
    "vcpu.1.delay": 14_934_927_156,
    "net.count": 1,
    "net.0.rx.bytes": 176,
    "net.0.tx.bytes": 90,
    "block.count": 2,
    "block.0.name": "vda",
    "block.0.wr.bytes": 2375680,
    "block.1.name": "vdb",
    "block.1.wr.bytes": 7,
}


def test_what_libvirt_tells() -> None:
    found = read(TOLD)
    assert (found.vcpus, found.memory_mib, found.memory_peak_mib) == (2, 1024, 441)
    assert (round(found.cpu_seconds, 2), round(found.waited_seconds, 2)) == (20.34, 30.41)
    assert (found.written_bytes, found.received_bytes, found.sent_bytes) == (2375680, 176, 90)


def test_with_cgroups_it_knows_all_of_qemu() -> None:
    assert read(TOLD | {"cpu.time": 31_000_000_000}).cpu_seconds == 31.0


@pytest.mark.parametrize("told", [{}, {"vcpu.current": 4}, {"block.count": 3, "net.count": 0}])
def test_what_it_does_not_tell_is_nothing(told: dict[str, object]) -> None:
    """Another call had the domain in its hands, or its QEMU was on its way out."""
    assert read(told) == Used(vcpus=int(str(told.get("vcpu.current", 0))))


def test_all_of_ours_in_one_call_and_a_connection_that_is_lost_is_opened_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[str] = []
    asked: list[list[str]] = []
    names = ["vmr-m-0a0b0c0d00000001", "somebodys", "vmr-other-0a0b0c0d00000002"]

    def statistics(domains: list[Any], *_: int) -> list[Any]:
        asked.append([domain.name() for domain in domains])
        if len(asked) == 2:
            raise libvirt.libvirtError("the daemon has gone")
        return [(domain, TOLD) for domain in domains]

    def connect(uri: str) -> Any:
        opened.append(uri)
        return SimpleNamespace(
            listAllDomains=lambda _: [SimpleNamespace(name=lambda n=n: n) for n in names],
            domainListGetStats=statistics,
            close=lambda: None,
        )

    monkeypatch.setattr(stats, "connect", connect)
    ours = Stats("qemu:///system", "m")
    assert not opened, "nobody has asked yet"
    assert [str(machine) for machine in ours.used()] == names[:1]
    assert asked == [names[:1]], "other people's guests are not asked"
    with pytest.raises(HypervisorError):
        ours.used()
    assert list(ours.used()) == [MachineId.parse(names[0])]
    assert len(opened) == 2
    names.pop(0)
    assert ours.used() == {}
    assert len(asked) == 3, "for nobody nothing is asked"
