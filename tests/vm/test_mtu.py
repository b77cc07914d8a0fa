"""What real machines, and Docker in them, make of the network's `mtu`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.ground import Ground
from tests.prepare import DOCKER, GITEA

pytestmark = [pytest.mark.vm, pytest.mark.long]
CARD = "cat /sys/class/net/e*/mtu\n"
DOCKERS = """
docker network create jobs >/dev/null
cat /sys/class/net/docker0/mtu
docker network inspect --format '{{index .Options "com.docker.network.driver.mtu"}}' jobs
"""


@pytest.mark.parametrize("mtu", [1400, 1280])
@pytest.mark.parametrize("start", ["boot", "snapshot"])
def test_a_machines_card_has_it(lay_ground: Callable[..., Ground], start: str, mtu: int) -> None:
    assert said(lay_ground, GITEA, start, mtu, CARD) == [str(mtu)]


@pytest.mark.parametrize("start", ["boot", "snapshot"])
def test_docker_has_it_for_its_networks(lay_ground: Callable[..., Ground], start: str) -> None:
    script = "systemctl start docker.service\n" + CARD + DOCKERS
    assert said(lay_ground, DOCKER, start, 1400, script) == ["1400"] * 3


def said(
    lay_ground: Callable[..., Ground], image: str, start: str, mtu: int, script: str
) -> list[str]:
    """What a script in such a machine prints; the network is made anew, and as it should be."""
    ground = lay_ground(start=start, image=image, more=f"[network]\nmtu = {mtu}\n")
    options = ["--image", image, "--memory", "1GiB"]
    if start == "snapshot":
        ground.run("snapshot", "create", *options)
    else:
        options.append("--boot")
    return ground.run("exec", *options, "--", "sh", "-c", script).stdout.split()
