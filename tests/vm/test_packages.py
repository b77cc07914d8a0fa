"""Packages that come through the host, in real machines: real Gitea, its real runner, real apt, and
Debian's nginx on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.containers import base_layer
from tests.fetching import (
    APT,
    NAME,
    Upstream,
    answering,
    as_registry,
    proxy,
    push,
    registry,
    resolving,
    running,
    with_a_package,
)
from tests.forge.gitea import Repository, Site, until
from tests.ground import Ground
from tests.prepare import DOCKER
from tests.vm.test_endings import serving
from vmrunner.model.packages import Ecosystem, Mirror

pytestmark = [pytest.mark.vm, pytest.mark.long]
LIFE = 240.0  # seconds for one job on a slow day
GATEWAY, PORTS = "10.90.0.1", {each: 8490 + number for number, each in enumerate(Ecosystem)}
OPTIONS = " ".join(f"-o {name}={value}" for name, value in APT.items())
WORKFLOW = """\
on: push
jobs:
  it:
    runs-on: [debian-12]
    steps:
      - run: |
          for file in /etc/apt/apt.conf.d/95vmrunner-packages /etc/pip.conf ~/.npmrc ~/.config/go/env; do
            if [ -e $file ]; then echo "told: $file $(tail -n 1 $file)"; else echo "told: $file nothing"; fi
          done
          echo 'deb [trusted=yes] {url}/debian stable main' >/sources.list
          apt-get -o Dir::Etc::SourceList=/sources.list {options} update
          apt-get -o Dir::Etc::SourceList=/sources.list {options} install -y hello-cache
          echo "told: $(dpkg-query -W hello-cache)"
          echo "told: $(curl -sS -m 5 -o /dev/null -w '%{{http_code}}' http://{gateway}:{closed}/ || true)"
"""  # noqa: E501 — a workflow keeps its lines


def told(repository: Repository) -> list[str]:
    """What its job says, when it is over."""

    def over() -> dict[str, Any] | None:
        found = repository.jobs()
        return found[0] if found and found[0]["status"] == "completed" else None

    ended = until(over, LIFE, "its end", every=0.5)
    said = repository.said(ended["id"]).splitlines()
    assert ended["conclusion"] == "success", said
    return [line.removeprefix("told: ") for line in said if line.startswith("told: ")]


def test_another_repositorys_job_has_a_package_that_the_host_has_kept(
    site: Site, lay_ground: Callable[..., Ground], tmp_path: Path
) -> None:
    upstream = Upstream(only_pages=True)
    with_a_package(upstream, tmp_path)
    with ExitStack() as stack:
        stack.enter_context(resolving())
        stack.enter_context(answering(upstream))
        apt = f"{upstream.url}/debian"
        # Only the forge and this host are reached.
        more = f'network = "allowlist"\n[cache.packages]\napt = "{apt}"\nnpm = true\ngo = true\n'
        ground = lay_ground(cloned=True, more=more)
        workflow = WORKFLOW.format(
            url=upstream.url,
            options=OPTIONS,
            gateway=GATEWAY,
            closed=PORTS[Ecosystem.PYPI],
        )
        # npm's answers nothing, and nobody is told of it.
        for kind, place in ((Ecosystem.APT, apt), (Ecosystem.GO, Ecosystem.GO.public)):
            made = proxy(tmp_path / kind, kind, place)
            mirror = Mirror(kind, place, GATEWAY, PORTS[kind])
            stack.enter_context(running(replace(made, mirror=mirror)))
        with serving(ground):
            first = told(site.repository("rig", "one", workflow))
            upstream.pages.clear()
            second = told(site.repository("rig", "two", workflow))
    go = f"GOPROXY=http://{GATEWAY}:{PORTS[Ecosystem.GO]}|{Ecosystem.GO.public},direct"
    assert first == [
        "/etc/apt/apt.conf.d/95vmrunner-packages Acquire::http::Proxy::"
        f'{NAME} "http://{GATEWAY}:{PORTS[Ecosystem.APT]}";',
        "/etc/pip.conf nothing",
        "/root/.npmrc nothing",
        f"/root/.config/go/env {go}",
        "hello-cache\t1",
        "000",
    ]
    assert second == first


IMAGES = """\
on: push
jobs:
  it:
    runs-on: [docker]
    steps:
      - run: |
          docker info --format 'told: {{range .RegistryConfig.Mirrors}}{{.}}{{end}}'
          printf 'FROM a:latest\\n' | docker build --quiet --tag built - >/dev/null
          echo "told: built, $(docker run --rm built)"
          echo "told: $(docker run --rm a:latest)"
"""


def test_another_repositorys_job_has_a_container_image_that_the_host_has_kept(
    site: Site, lay_ground: Callable[..., Ground], tmp_path: Path
) -> None:
    # A registry in place of Docker Hub.
    there = registry(tmp_path / "there")
    with ExitStack() as stack:
        source = stack.enter_context(ExitStack())
        source.enter_context(running(there, as_registry))
        push(there, "latest", base_layer(), ["/bin/echo", "from a mirror"])
        url = f"http://127.0.0.1:{there.mirror.port}"
        more = f'network = "allowlist"\n[cache.packages]\noci = "{url}"\n'
        ground = lay_ground(cloned=True, image=DOCKER, labels="docker", more=more)
        made = proxy(tmp_path / "here", Ecosystem.OCI, url)
        mirror = Mirror(Ecosystem.OCI, url, GATEWAY, PORTS[Ecosystem.OCI])
        stack.enter_context(running(replace(made, mirror=mirror)))
        with serving(ground):
            first = told(site.repository("rig", "one", IMAGES))
            source.close()
            second = told(site.repository("rig", "two", IMAGES))
    mirrors = f"http://{GATEWAY}:{PORTS[Ecosystem.OCI]}/"
    assert first == [mirrors, "built, from a mirror", "from a mirror"]
    assert second == first
