"""Containers inside machines: jobs of the real Gitea build, run and compose them, and run in them,
in clones of one snapshot.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.forge.gitea import URL, Site, until
from tests.ground import Ground
from tests.prepare import DOCKER
from tests.vm.test_jobs import LIFE, up_until_done

pytestmark = pytest.mark.vm

MIRROR, PROXY = "http://198.51.100.7:5000", "http://198.51.100.8:3128"
WORKFLOW = f"""\
on: [push]
jobs:
  build:
    runs-on: [docker]
    steps:
      - run: docker system df --format '{{{{.Type}}}} {{{{.TotalCount}}}}' | paste -sd ,
      - run: docker version --format 'Docker answers as {{{{.Server.Os}}}}'
      - run: test -e /run/told && echo "it was"" told"
      - run: |
          cp /bin/busybox .
          printf 'FROM scratch\\nCOPY busybox /busybox\\nENTRYPOINT ["/busybox", "echo"]\\n' >Dockerfile
          docker build --quiet --tag one . >/dev/null
          docker run --rm one "made from"" scratch"
          printf 'FROM tests/base:1\\nRUN echo "made by $(id -u)" >/made\\nCMD ["cat", "/made"]\\n' >two
          docker build --quiet --tag two - <two >/dev/null
          docker run --rm two
          docker run --rm --privileged two ls /dev/vda
      - run: |
          printf 'services: {{it: {{image: two}}}}\\n' >compose.yaml
          docker compose --ansi never up --no-color
      - run: docker info --format 'mirrors {{{{.RegistryConfig.Mirrors}}}}, proxy {{{{.HTTPProxy}}}}.'
      - run: |
          useradd --create-home ci
          printf 'FROM scratch\\nCOPY busybox /busybox\\nRUN ["/busybox", "echo", "made without root"]\\n' >/home/ci/Containerfile
          cp busybox /home/ci && chown -R ci: /home/ci
          runuser -l ci -c 'buildah build --isolation chroot --tag three .'
          runuser -l ci -c 'podman run --rm --network none three /busybox echo "ran without"" root"'
  inside:
    runs-on: [boxed]
    defaults: {{run: {{shell: sh}}}} # its image has no bash, which is the runner's default
    steps:
      - run: |
          echo "in $(pwd) with $(ls /)"
          echo "through $http_proxy"
          wget -Y off -q -O - {URL}/api/v1/version
"""  # noqa: E501 — a workflow keeps its lines


@pytest.mark.long
def test_jobs_build_containers_and_run_in_them(
    site: Site, lay_ground: Callable[..., Ground]
) -> None:
    boxed = (
        f'[pools.boxed]\nlabels = ["boxed:docker://tests/base:1"]\nimage = "{DOCKER}"\nmemory '
        f'= "1GiB"\ndisk = "6GiB"\nproxy = "{PROXY}"\n'
    )
    ground = lay_ground(
        cloned=True,
        image=DOCKER,
        labels="docker",
        more=f'registry_mirror = "{MIRROR}"\nwarm = 1\n{boxed}',
    )
    until(
        lambda: ground.run("up") and ground.status()["pools"][0]["machines"][0]["paused"],
        LIFE,
        "a clone that has rehearsed",
        every=1,
    )
    repository = site.repository("rig", "containers", WORKFLOW)
    until(lambda: len(repository.jobs()) == 2, LIFE, "the jobs")
    ground.config.write_text(ground.config.read_text().replace("warm = 1", "warm = 0"))
    jobs = {job["name"]: job for job in up_until_done(ground, repository, 2)}
    built, inside = (repository.said(jobs[name]["id"]) for name in ("build", "inside"))
    for said in (
        "Images 1,Containers 0,Local Volumes 0,Build Cache 0",
        "Docker answers as linux",
        "it was told",
        "made from scratch",
        "made by 0",
        "/dev/vda",
        "| made by 0",
        f"mirrors [{MIRROR}/], proxy .",
        "made without root",
        "ran without root",
    ):
        assert said in built, built
    for said in ("in /workspace/rig/", " with bin", f"through {PROXY}", '"version":"1.'):
        assert said in inside, inside
    assert {job["conclusion"] for job in jobs.values()} == {"success"}
