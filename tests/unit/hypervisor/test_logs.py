"""libvirt's logs of our machines: told from others', their last words read, deleted."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmrunner.hypervisor import logs
from vmrunner.hypervisor.logs import Logs
from vmrunner.model.machine import MachineId

MACHINE = MachineId("m", "0123abcd", "0a0b0c0d")
HEAD = """2026-11-29 19:55:00.000+0000: starting up libvirt version: 11.3.0, hostname: host
/usr/bin/qemu-system-x86_64 \\
-name guest=vmr-m-0a0b0c0d0123abcd,debug-threads=on \\
char device redirected to /dev/pts/1 (label charserial0)
2026-11-29T19:55:01.000001Z qemu-system-x86_64: warning: TCG doesn't support this feature
"""
END = "2026-11-29 19:56:00.000+0000: shutting down, reason=crashed\n"
OF_IT = [f"{MACHINE}.log", f"{MACHINE}.log.0", f"{MACHINE}.log.2.gz", f"{MACHINE}.log-20261129"]
OF_OTHERS = [
    ".placeholder",
    "web.log",
    "vmr-m-0a0b0c0d0123abce.log",  # another machine of ours
    "vmr-m2-0a0b0c0d0123abcd.log",  # another manager's
    f"{MACHINE}-web.log",  # somebody's domain that is named after ours
    f"{MACHINE}.txt",
]


def test_what_goes_with_a_machine_is_its_own_log_and_what_was_rotated(tmp_path: Path) -> None:
    for name in OF_IT + OF_OTHERS:
        (tmp_path / name).write_text(HEAD)
    mine = Logs("m", tmp_path)
    assert {str(each) for each in mine.machines()} == {str(MACHINE), "vmr-m-0a0b0c0d0123abce"}
    mine.drop(MACHINE)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(OF_OTHERS)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("", ""),
        (
            "2026-11-29T19:55:02.1Z qemu-system-x86_64: virtio: zero sized buffers\n",
            "virtio: zero sized buffers",
        ),
        (
            "2026-11-29T19:55:02.1Z qemu-system-x86_64: first\n"
            "2026-11-29T19:55:03.1Z qemu-kvm: terminating on signal 15 from pid 7 (x\x1b[2J)\n",
            "terminating on signal 15 from pid 7 (x[2J)",
        ),
        (f"2026-11-29T19:55:02.1Z qemu-system-x86_64: {'x' * 20000}\n", ""),  # no line of ours
    ],
)
def test_what_qemu_said_last(tmp_path: Path, said: str, words: str) -> None:
    (tmp_path / f"{MACHINE}.log").write_text(HEAD + said + END)
    assert Logs("m", tmp_path).last_words(MACHINE) == words


def test_logs_that_are_not_to_be_had_are_none(tmp_path: Path) -> None:
    for folder in (None, tmp_path / "none"):
        mine = Logs("m", folder)
        mine.drop(MACHINE)
        assert (mine.machines(), mine.last_words(MACHINE)) == (frozenset(), "")


@pytest.mark.parametrize(
    ("uri", "folder"),
    [
        ("qemu:///system", "/var/log/libvirt/qemu"),
        ("qemu+unix:///system?socket=/run/x", "/var/log/libvirt/qemu"),
        ("qemu:///session", "/cache/libvirt/qemu/log"),
        ("qemu+ssh://host.example/system", None),
        ("test:///default", None),
    ],
)
def test_where_they_are(monkeypatch: pytest.MonkeyPatch, uri: str, folder: str | None) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert logs.folder(uri) == (Path(folder) if folder else None)
