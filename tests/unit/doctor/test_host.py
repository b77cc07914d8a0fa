"""What doctor says of the host: whether what machines leave open can be deleted."""

from __future__ import annotations

from pathlib import Path

from tests.world import World
from vmrunner.doctor import host
from vmrunner.doctor.findings import Level


def test_a_kernel_that_does_not_forget_is_told(tmp_path: Path) -> None:
    world = World(tmp_path)

    def said() -> list[tuple[Level, str]]:
        found = host.look(world.settings, world.hypervisor.facts)
        return [(each.level, each.fix) for each in found if "leaves open" in each.said]

    assert said() == []
    world.hypervisor.leftovers_lack = "the kernel does not tell of its connections: no module"
    ((level, fix),) = said()
    assert level is Level.WARNING
    assert "modprobe nf_conntrack_netlink" in fix
    world.history.close()
