"""The program as GARM starts it: nothing in the environment but GARM's words, no arguments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.garm.double import CONTROLLER, INSTANCE, POOL, bootstrap

CONFIG = """manager = "m"
state_dir = "{folder}/state"
runtime_dir = "{folder}/run"
[forge]
kind = "gitea"
url = "http://forge.example"
[libvirt]
uri = "qemu+unix:///system?socket={folder}/nowhere"
[network]
filter = false
[garm.flavors.small]
memory = "1GiB"
"""


def call(
    command: str, config: Path | None = None, stdin: bytes | None = b"", **more: str
) -> subprocess.CompletedProcess[bytes]:
    """As GARM does it; `stdin` None: it is closed."""
    environment = {
        "GARM_COMMAND": command,
        "GARM_CONTROLLER_ID": CONTROLLER,
        "GARM_POOL_ID": POOL,
        "GARM_INSTANCE_ID": "garm-aB1",
        "GARM_PROVIDER_CONFIG_FILE": str(config or "/nowhere/vmrunner.toml"),
        **more,
    }
    words = [sys.executable, "-m", "vmrunner.garm.main"]
    if stdin is None:
        words = ["/bin/sh", "-c", 'exec "$@" <&-', "-", *words]
    return subprocess.run(
        words, env=environment, input=stdin, capture_output=True, timeout=60, check=False
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "vmrunner.toml"
    path.write_text(CONFIG.format(folder=tmp_path))
    return path


@pytest.mark.parametrize("stdin", [b"", None])
def test_what_needs_no_host(stdin: bytes | None) -> None:
    version = call("GetVersion", stdin=stdin)
    assert (version.returncode, version.stderr) == (0, b"")
    assert version.stdout.startswith(b"v")
    schema = call("GetExtraSpecsJSONSchema", GARM_INTERFACE_VERSION="v0.1.1")
    assert json.loads(schema.stdout)["type"] == "object"


def fails(done: subprocess.CompletedProcess[bytes], code: int, *words: str) -> None:
    """One line says so, and nothing else is printed."""
    said = done.stderr.decode()
    assert (done.returncode, done.stdout, said.count("\n")) == (code, b"", 1), said
    assert said.startswith("vmrunner: ")
    assert all(word in said for word in words), said
    assert INSTANCE not in said


def test_what_is_wrong_is_one_sentence(config: Path) -> None:
    wanted = json.dumps(bootstrap("http://forge.example")).encode()
    fails(call("Dance"), 1, "no command 'Dance'")
    fails(call("CreateInstance", config, None), 1, "nothing on its stdin")
    fails(call("CreateInstance", config, wanted[:-1]), 1, "not JSON")
    fails(call("CreateInstance", None, wanted), 3, "no configuration at /nowhere")
    fails(call("CreateInstance", config, wanted), 5, "libvirt")
    fails(call("DeleteInstance", config), 5, "libvirt")
    config.write_text(CONFIG.format(folder=config.parent).partition("[garm")[0])
    fails(call("ListInstances", config), 3, "pools", "is missing")
    assert not [path for path in config.parent.rglob("*") if path.is_file() and path != config]


def test_a_fault_of_ours_shows_no_value(config: Path, tmp_path: Path) -> None:
    """Whatever it is: an exception's text may have the token in it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import vmrunner.garm.contract as c\n"
        f"def broken(raw): raise RuntimeError({INSTANCE!r})\n"
        "c.Bootstrap.read = staticmethod(broken)\n"
    )
    wanted = json.dumps(bootstrap("http://forge.example")).encode()
    done = call("CreateInstance", config, wanted, PYTHONPATH=f"{tmp_path}:{os.getcwd()}")
    fails(done, 1, "A fault in vmrunner", "RuntimeError")
