"""The host's own life: it shuts down with Debian's libvirt-guests."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.forge.gitea import until
from tests.ground import Ground

pytestmark = pytest.mark.vm
GUESTS = Path("/usr/lib/libvirt/libvirt-guests.sh")
# In place of gettext's, which the rig has not: what is said stays English.
GETTEXT = """\
gettext() { printf %s "$1"; }
eval_gettext() { eval "printf %s \\"$1\\""; }
"""


def libvirt_guests_stop(folder: Path, seconds: int) -> str:
    """What `libvirt-guests.sh stop`, the real one, says with this SHUTDOWN_TIMEOUT. In parallel:
    otherwise it waits for no guest that libvirt refuses to shut down, as it does a paused one.
    """
    for name in ("default", "var/lib/libvirt"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "var/lib/libvirt/libvirt-guests").unlink(missing_ok=True)  # of the last stop
    (folder / "gettext.sh").write_text(GETTEXT)
    (folder / "default" / "libvirt-guests").write_text(
        f"URIS=qemu:///system\nPARALLEL_SHUTDOWN=10\nSHUTDOWN_TIMEOUT={seconds}\n"
    )
    script = GUESTS.read_text()
    for old, new in (
        ('"/usr/bin"/gettext.sh', str(folder / "gettext.sh")),
        ('initconfdir="/etc/default"', f"initconfdir={folder}/default"),
        ('localstatedir="/var"', f"localstatedir={folder}/var"),
    ):
        assert old in script
        script = script.replace(old, new)
    return subprocess.run(
        ["sh", "-c", script, "libvirt-guests.sh", "stop"],
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout


@pytest.mark.long
def test_a_host_with_a_parked_clone_shuts_down(
    lay_ground: Callable[..., Ground], tmp_path: Path
) -> None:
    ground = lay_ground(cloned=True, most=1, more="warm = 1\n")

    def is_parked() -> bool:
        ground.run("up")
        return [each["paused"] for each in ground.status()["pools"][0]["machines"]] == [True]

    until(is_parked, 120, "a parked clone")
    machine = ground.status()["pools"][0]["machines"][0]["name"]
    waited = libvirt_guests_stop(tmp_path, 2)
    assert f"Starting shutdown on guest: {machine}" in waited
    assert "Timeout expired while shutting down domains" in waited
    ground.run("down", "--halt")
    assert ground.leftovers() == []
    assert "no running guests." in libvirt_guests_stop(tmp_path, 300)
    assert ground.status()["pools"][0]["drained"] is False
