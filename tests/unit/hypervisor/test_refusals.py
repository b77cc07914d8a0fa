"""libvirt's refusals as sentences: what the storage lacks is told apart, and a lost connection is
none of that.
"""

from __future__ import annotations

from dataclasses import dataclass

import libvirt
import pytest

from vmrunner.errors import Denied, DiskFull, HypervisorError
from vmrunner.hypervisor.connection import translate


@dataclass(frozen=True)
class Said:
    """As much of a libvirtError as is looked at."""

    message: str

    def get_error_message(self) -> str:
        return self.message

    def get_error_code(self) -> int:
        return libvirt.VIR_ERR_SYSTEM_ERROR  # type: ignore[no-any-return]

    def get_error_domain(self) -> int:
        return libvirt.VIR_FROM_STORAGE  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("said", "kind", "sentence", "hint"),
    [
        ("cannot fill file '/p/x': No space left on device", DiskFull, "is full", "df -i"),
        ("cannot create path '/p/x': Read-only file system", HypervisorError, "read-only", "dmesg"),
        ("cannot write: Disk quota exceeded", HypervisorError, "quota is used up", "Raise"),
        ("cannot open '/p': Stale file handle", HypervisorError, "does not know", "Mount it again"),
        (
            "cannot stat: Transport endpoint is not connected",
            HypervisorError,
            "program behind the storage's mount",
            "Mount it again",
        ),
        (
            "Could not open '/home/x': Required key not available",
            HypervisorError,
            "encrypted",
            "Unlock",
        ),
        ("cannot open '/p': Permission denied", Denied, "does not permit", "group libvirt"),
        (
            "End of file while reading data: Input/output error",
            HypervisorError,
            "libvirt refused",
            "journalctl",
        ),
    ],
)
def test_what_is_wrong(said: str, kind: type[HypervisorError], sentence: str, hint: str) -> None:
    error = translate(Said(said), "writing x")
    assert type(error) is kind
    assert sentence in error.sentence
    assert "writing x" in error.sentence
    assert hint in error.hint
