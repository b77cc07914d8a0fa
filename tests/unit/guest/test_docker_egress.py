"""What Docker is told of a pool's registry mirror and proxy, before a job."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.guest.programs import load

MIRROR = {"VMRUNNER_REGISTRY_MIRROR": "http://mirror.example:5000"}
PROXY = {"http_proxy": "http://proxy.example:3128", "no_proxy": "localhost"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With settings of the recipe's."""
    (tmp_path / "daemon.json").write_text('{"bip": "198.18.0.1/24", "registry-mirrors": ["old"]}')
    return tmp_path


def run(folder: Path, environment: dict[str, str]) -> list[str]:
    """Run it; returns what systemd was asked for."""
    program: Any = load("docker-egress")
    asked: list[str] = []
    program.DAEMON, program.CLIENT = folder / "daemon.json", folder / "home/.docker/config.json"
    program.os = SimpleNamespace(environ=environment, chown=lambda *_: None)
    program.subprocess = SimpleNamespace(run=lambda words, check: asked.append(words[1]))
    program.main()
    return asked


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({"VMRUNNER_REGISTRY_MIRROR": ""}, []),
        (MIRROR, ["kill"]),
        (PROXY, ["restart"]),
        (MIRROR | PROXY, ["restart"]),
    ],
)
def test_docker_is_told_once(folder: Path, environment: dict[str, str], asked: list[str]) -> None:
    """A reload is enough for a mirror, not for a proxy."""
    assert run(folder, environment) == asked
    daemon = json.loads((folder / "daemon.json").read_text())
    assert daemon["bip"] == "198.18.0.1/24", "what else is in there stays"
    mirror = environment.get("VMRUNNER_REGISTRY_MIRROR") or "old"
    assert daemon["registry-mirrors"] == [mirror]
    client = folder / "home/.docker/config.json"
    assert ("proxies" in daemon) is client.exists() is ("http_proxy" in environment)


def test_builds_and_containers_have_the_proxy(folder: Path) -> None:
    run(folder, PROXY)
    daemon = json.loads((folder / "daemon.json").read_text())["proxies"]
    client = json.loads((folder / "home/.docker/config.json").read_text())["proxies"]["default"]
    proxy, direct = PROXY.values()
    assert daemon == {"http-proxy": proxy, "https-proxy": proxy, "no-proxy": direct}
    assert client == {"httpProxy": proxy, "httpsProxy": proxy, "noProxy": direct}


@pytest.mark.parametrize(
    ("mirror", "plain"),
    [
        ("http://mirror.example:5000", ["old.example:80", "mirror.example:5000"]),
        ("http://192.0.2.7", ["old.example:80", "192.0.2.7"]),
        ("https://mirror.example", ["old.example:80"]),
    ],
)
def test_builds_ask_a_mirror_without_tls_as_pulls_do(
    folder: Path, mirror: str, plain: list[str]
) -> None:
    (folder / "daemon.json").write_text('{"insecure-registries": ["old.example:80"]}')
    run(folder, {"VMRUNNER_REGISTRY_MIRROR": mirror})
    assert json.loads((folder / "daemon.json").read_text())["insecure-registries"] == plain
