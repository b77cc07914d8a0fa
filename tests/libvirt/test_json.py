"""`--json` of the commands that ask libvirt, on a real one: as their schemas say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ground import Ground, lay
from tests.unit.cli.schemas import checked

NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    ground = lay(tmp_path, "json", "10.88.0.0/24", token="t0ken", url=NOWHERE)
    (tmp_path / "state" / "images").unlink()
    return ground


def test_what_is_asked_of_libvirt_is_as_its_schema_says(ground: Ground) -> None:
    for command, arguments, code in (
        ("up", (), 4),
        ("up", ("--dry-run",), 0),
        ("status", (), 0),
        ("doctor", (), 11),
        ("snapshot list", (), 0),
        ("snapshot verify", (), 0),
        ("snapshot drop", ("--yes",), 0),
        ("image prune", (), 0),
        ("down", ("--all", "--purge"), 4),
    ):
        done = ground.run(*command.split(), *arguments, "--json", check=False)
        assert done.returncode == code, done.stderr
        checked(command, done.stdout)
