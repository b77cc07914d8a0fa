"""What the host's kernel can bound: both versions of cgroups, and none."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmrunner.hypervisor.cgroup import Cgroups


def folder(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"cgroup.controllers": "cpuset cpu io memory pids\n"},
            Cgroups(memory=True, cpu=True, unified=True),
        ),
        ({"cgroup.controllers": "cpuset pids\n"}, Cgroups(memory=False, cpu=False, unified=True)),
        ({"memory/tasks": "", "cpu/tasks": ""}, Cgroups(memory=True, cpu=True, unified=False)),
        ({"cpu/tasks": ""}, Cgroups(memory=False, cpu=True, unified=False)),
        ({}, Cgroups(memory=False, cpu=False, unified=False)),
    ],
)
def test_what_a_host_has(tmp_path: Path, files: dict[str, str], expected: Cgroups) -> None:
    assert Cgroups.of_host("qemu:///system", folder(tmp_path, files)) == expected


def test_another_host_is_taken_for_a_usual_one(tmp_path: Path) -> None:
    assert Cgroups.of_host("qemu+ssh://192.0.2.7/system", tmp_path) == Cgroups(
        memory=True, cpu=True, unified=True
    )


def test_the_units_of_each() -> None:
    new, old, none = (
        Cgroups(True, True, True),
        Cgroups(True, True, False),
        Cgroups(False, False, True),
    )
    assert [each.cpu_shares(100) for each in (new, old, none)] == [100, 1024, 0], (
        "as the kernel's own default"
    )
    assert [each.cpu_shares(1) for each in (new, old)] == [1, 10]
    assert none.hard_limit_mib(1024, kvm=True) == 0
    assert 1024 < new.hard_limit_mib(1024, kvm=True) < new.hard_limit_mib(1024, kvm=False)
