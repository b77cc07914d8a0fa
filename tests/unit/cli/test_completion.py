"""Shells complete names: from files alone, without what takes long to load, and never an error."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.goldens import publish
from vmrunner.manager.history import History
from vmrunner.manager.record import Record

SLOW = ("httpx", "libvirt", "jinja2", "structlog", "vmrunner.config", "vmrunner.hypervisor")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    for version in ("1", "2"):
        publish(tmp_path / "state" / "images", version)
    publish(tmp_path / "state" / "images", "1", name="other")
    with closing(History(tmp_path / "state" / "history.sqlite", print)) as history:
        history._write(Record("vmr-m-0123456789abcdef", "p", ending="done"))
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "debian-mine.toml").touch()
    (tmp_path / "storage" / "m").mkdir(parents=True)
    (tmp_path / "storage" / "m" / "snapshot-0a1b.ram").touch()
    path = tmp_path / "c.toml"
    path.write_text(
        f'state_dir = "{tmp_path}/state"\nrecipes_dir = "{tmp_path}/recipes"\n'
        f'[libvirt]\nstorage_path = "{tmp_path}/storage"\n'
        '[pools.docker]\n[pools.debian]\nnonsense = "is not looked at"\n'
    )
    return path


def test_a_tab_makes_no_file(config: Path) -> None:
    before = sorted((config.parent / "state").iterdir())
    assert completed("vmrunner history vmr", config) == ["vmr-m-0123456789abcdef"]
    assert sorted((config.parent / "state").iterdir()) == before


def completed(line: str, config: Path | str) -> list[str]:
    """What bash would offer behind this beginning of a command line."""
    words = shlex.split(line) + ([""] if line.endswith(" ") else [])
    program = (
        "import sys\nfrom vmrunner.cli.main import main\nsys.argv[0] = 'vmrunner'\n"
        f"try:\n main()\nfinally:\n print(*(set({SLOW}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ
        | {
            "_VMRUNNER_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
            "VMRUNNER_CONFIG": str(config),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr.strip() == "", "nothing that takes long is loaded, and nothing is said"
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("vmrunner st", ["status"]),
        ("vmrunner snapshot ", ["create", "list", "verify", "drop", "apparmor"]),
        ("vmrunner up --dry", ["--dry-run"]),
        ("vmrunner down ", ["debian", "docker"]),
        ("vmrunner up do", ["docker"]),
        ("vmrunner snapshot create --pool ", ["debian", "docker"]),
        ("vmrunner snapshot drop ", ["0a1b"]),
        ("vmrunner exec --image ", ["other", "web"]),
        ("vmrunner exec --pool d", ["debian", "docker"]),
        ("vmrunner exec --tools o", ["other"]),
        ("vmrunner image rollback w", ["web"]),
        ("vmrunner image verify web/", ["web/1", "web/2"]),
        ("vmrunner image promote web ", ["1", "2"]),
        ("vmrunner image build debian-m", ["debian-mine"]),
        ("vmrunner image build debian-12-f", ["debian-12-full"]),
        ("vmrunner history vmr-", ["vmr-m-0123456789abcdef"]),
        ("vmrunner doctor --policy pool-d", ["pool-debian", "pool-docker"]),
    ],
)
def test_names_of_what_there_is(config: Path, line: str, names: list[str]) -> None:
    assert completed(line, config) == names


@pytest.mark.parametrize("text", ["[pools", "pools = 3\nlibvirt = 4\nstate_dir = 5\n", None])
def test_a_configuration_that_can_not_be_read_has_no_names(
    tmp_path: Path, text: str | None
) -> None:
    if text is not None:
        (tmp_path / "c.toml").write_text(text)
    for line in ("vmrunner up ", "vmrunner history ", "vmrunner exec -i "):
        assert completed(line, tmp_path / "c.toml") == []
    usual = tmp_path / "empty.toml"
    usual.touch()
    drop = "vmrunner snapshot drop "
    assert completed(drop, tmp_path / "c.toml") == completed(drop, usual), "of the usual folder"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_lines(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vmrunner.cli.main", "completion", shell],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"_VMRUNNER_COMPLETE=complete_{shell}" in done.stdout
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True)
