"""Bad input through the real program: one sentence, a hint, an exit code; never a traceback."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ground import Ground, lay
from vmrunner.errors import (
    ConfigError,
    ForgeUnreachable,
    HypervisorError,
    ImageError,
    WrongCommand,
)

NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    ground = lay(tmp_path, "cli", "10.88.0.0/24", token="t0ken", url=NOWHERE)
    (tmp_path / "state" / "images").unlink()
    return ground


def change(old: str, new: str) -> Callable[[Ground], None]:
    def edit(ground: Ground) -> None:
        text = ground.config.read_text()
        assert old in text
        ground.config.write_text(text.replace(old, new))

    return edit


def chmod_token(ground: Ground) -> None:
    (ground.folder / "forge-token").chmod(0o644)


BAD = {
    "config missing": (
        lambda ground: ground.config.unlink(),
        "up",
        ConfigError,
        "There is no configuration at",
    ),
    "config unparsable": (change("[forge]", "[forge"), "up", ConfigError, "is not valid TOML"),
    "unknown key": (
        change("max =", "maximum ="),
        "up",
        ConfigError,
        "pools.main.maximum: is not a key",
    ),
    "wrong type": (change("max = 2", 'max = "two"'), "status", ConfigError, "pools.main.max"),
    "unknown pool": (lambda _: None, "up nowhere", ConfigError, "There is no pool 'nowhere'"),
    "token missing": (
        lambda ground: (ground.folder / "forge-token").unlink(),
        "up",
        ConfigError,
        "does not exist",
    ),
    "token empty": (
        lambda ground: (ground.folder / "forge-token").write_text("\n"),
        "up",
        ConfigError,
        "does not hold one token",
    ),
    "ca_file missing": (
        change("[libvirt]", 'ca_file = "/nowhere.pem"\n[libvirt]'),
        "up",
        ConfigError,
        "/nowhere.pem can't be read",
    ),
    "libvirt not running": (
        change("[libvirt]", '[libvirt]\nuri = "qemu+unix:///system?socket=/nowhere"'),
        "up",
        HypervisorError,
        "libvirt does not answer",
    ),
    "forge unreachable": (lambda _: None, "up", ForgeUnreachable, "can't be reached"),
    "image unknown": (
        lambda _: None,
        "exec --image nowhere -- true",
        ImageError,
        "There is no image 'nowhere'",
    ),
    "halt of one pool": (lambda _: None, "down --halt main", WrongCommand, "--halt is for every"),
    "snapshot of an unknown pool": (
        lambda _: None,
        "snapshot create --pool nowhere",
        ConfigError,
        "There is no pool 'nowhere'",
    ),
    "snapshot unknown": (
        lambda _: None,
        "snapshot verify nowhere",
        ConfigError,
        "There is no snapshot 'nowhere'",
    ),
    "promotion of an unknown image": (
        lambda _: None,
        "image promote nowhere 1",
        ImageError,
        "There is no image 'nowhere'",
    ),
    "rollback of an unknown image": (
        lambda _: None,
        "image rollback ../nowhere",
        ImageError,
        "There is no image '../nowhere'",
    ),
    "pruning an unknown image": (
        lambda _: None,
        "image prune nowhere",
        ImageError,
        "There is no image 'nowhere'",
    ),
    "recipe unknown": (
        lambda _: None,
        "image build nowhere",
        ImageError,
        "There is no recipe 'nowhere'",
    ),
    "recipes' folder missing": (
        lambda _: None,
        "image build x --recipes /nowhere",
        ConfigError,
        "There is no folder /nowhere",
    ),
    "size wrong": (
        lambda _: None,
        "exec --memory 2G -- true",
        WrongCommand,
        "a size is written like",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(ground: Ground, case: str) -> None:
    spoil, command, error, said = BAD[case]
    spoil(ground)
    done = ground.run(*command.split(), check=False)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert done.returncode == error.exit_code, done.stderr
    assert lines[0].startswith("vmrunner: ")
    assert said.lower() in lines[0].lower()
    assert lines[1].startswith("  "), "a hint"
    assert "Traceback" not in done.stderr
    assert "t0ken" not in done.stdout + done.stderr
    assert ground.leftovers() == []


def test_a_world_readable_token_is_a_warning(ground: Ground) -> None:
    chmod_token(ground)
    assert "can be read by others; run `chmod 600" in ground.run("up", check=False).stderr


def test_a_wrong_command_line_is_exit_code_2(ground: Ground) -> None:
    assert ground.run("upp", check=False).returncode == 2
    assert ground.run("up", "--nowhere", check=False).returncode == 2


def test_status_shows_the_machines_also_when_the_forge_is_away(ground: Ground) -> None:
    status = ground.status()
    (pool,), (forge,) = status["pools"], status["forge"]
    assert (pool["name"], pool["machines"], "can't be reached" in forge["problem"]) == (
        "main",
        [],
        True,
    )


def test_config_check_and_example(ground: Ground) -> None:
    change(NOWHERE, "http://192.0.2.7:3000")(ground)
    assert "manager cli, pools main" in ground.run("config", "check").stdout
    assert "[pools.debian-12]" in ground.run("config", "example").stdout


def test_libvirt_that_does_not_permit_us(ground: Ground) -> None:
    if os.geteuid() != 0:
        pytest.fail("run the tests as root: this one drops privileges")
    ground.folder.chmod(0o777)
    (ground.folder / "forge-token").chmod(0o644)
    for folder in (ground.folder, *ground.folder.parents):
        folder.chmod(folder.stat().st_mode | 0o755)
    (ground.folder / "state").chmod(0o777)
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *ground.command("up")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | {"VMRUNNER_CONFIG": str(ground.config)},
        timeout=60,
    )
    assert (done.returncode, "does not let this user in" in done.stderr) == (
        HypervisorError.exit_code,
        True,
    ), done.stderr


def test_the_rules_for_apparmor_name_the_configured_folder(ground: Ground) -> None:
    change("[libvirt]", '[libvirt]\nstorage_path = "/srv/machines"')(ground)
    rules = [
        line.strip()
        for line in ground.run("snapshot", "apparmor").stdout.splitlines()
        if not line.startswith("#")
    ]
    assert rules[0] == "/srv/machines/*/snapshot-*.ram r,"
    assert all(rule.startswith("/srv/machines/*/") and rule.endswith(",") for rule in rules)
