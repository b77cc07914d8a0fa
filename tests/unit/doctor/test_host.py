"""What doctor says of this host, where that needs no libvirt."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.world import World
from vmrunner.doctor import host
from vmrunner.doctor.findings import Level
from vmrunner.doctor.host import locale


def test_a_kernel_that_does_not_forget_is_told(tmp_path: Path) -> None:
    world = World(tmp_path)

    def said() -> list[tuple[Level, str]]:
        found = host.look(world.settings, world.hypervisor.facts, 0)
        return [(each.level, each.fix) for each in found if "leaves open" in each.said]

    assert said() == []
    world.hypervisor.leftovers_lack = "the kernel does not tell of its connections: no module"
    ((level, fix),) = said()
    assert level is Level.WARNING
    assert "modprobe nf_conntrack_netlink" in fix
    world.history.close()


@pytest.mark.parametrize(
    ("environ", "level", "named"),
    [
        ("", Level.GOOD, "C"),
        ("LC_ALL=C", Level.GOOD, "C"),
        ("LC_ALL=C LANG=de_DE.UTF-8", Level.GOOD, "C"),
        ("LC_ALL= LC_MESSAGES=POSIX LANG=de_DE.UTF-8", Level.GOOD, "C"),
        ("LANG=en_US.UTF-8", Level.WARNING, "en_US.UTF-8"),
        ("LANG=C LC_MESSAGES=de_DE", Level.WARNING, "de_DE"),
        ("LANG=C.UTF-8", Level.WARNING, "C.UTF-8"),
    ],
)
def test_the_locale_of_libvirts_daemon(
    tmp_path: Path, environ: str, level: Level, named: str
) -> None:
    (tmp_path / "virtqemud.pid").write_text("7\n")
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "environ").write_bytes("\0".join(["A=b", *environ.split(), ""]).encode())
    (finding,) = locale(tmp_path, tmp_path)
    assert (finding.level, f"virtqemud runs in the locale {named}" in finding.said) == (level, True)


def test_a_daemon_that_nobody_may_look_at_is_not_judged(tmp_path: Path) -> None:
    assert list(locale(tmp_path, tmp_path)) == []
    (tmp_path / "libvirtd.pid").write_text("7\n")
    assert list(locale(tmp_path, tmp_path)) == []
