"""Where the cases run: a plain Debian tree, three kinds of machines of it, and containers in
machines.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from tests.conformance import plain
from tests.containers import JOB_NAME
from tests.forge.gitea import Site
from tests.ground import Ground, lay
from tests.prepare import IMAGES, JOBS, JOBS_DOCKER
from vmrunner.image.versions import store
from vmrunner.model.label import Label
from vmrunner.runner_config import runner_config

MANAGER, SUBNET = "conf", "10.78.0.0/24"


@dataclass(frozen=True)
class Side:
    """One way to run jobs."""

    name: str  # also its label, and the end of the name of its repositories' owner
    image: str = JOBS
    start: str = ""  # of machines; empty: without one
    warm: int = 0
    most: int = 3
    place: str = "host"  # of its label
    container: str = ""  # that each job asks for

    @property
    def is_contained(self) -> bool:
        """Whether its jobs run in containers."""
        return bool(self.container) or self.place != "host"

    @property
    def owner(self) -> str:
        return f"conf-{self.name}"

    @property
    def section(self) -> str:
        """Of the configuration."""
        return (
            f'[pools.{self.name}]\nlabels = ["{self.name}:{self.place}"]\nimage = '
            f'"{self.image}"\nmemory = "1GiB"\ndisk = "10GiB"\n'
            # The workflow `reusable` calls another one without `runs-on`.
            "takes_unlabelled = true\n"
            f'max = {self.most}\nstart = "{self.start}"\nwarm = {self.warm}\nboot_timeout = '
            '"10m"\npickup_timeout = "5m"\n'
        )


PLAIN = Side("plain", most=8)
SIDES = (
    PLAIN,
    Side("parked", start="snapshot", warm=2, most=4),
    Side("cloned", start="snapshot"),
    Side("booted", start="boot"),
    Side("label", image=JOBS_DOCKER, start="snapshot", place=f"docker://{JOB_NAME}", most=2),
    Side("container", image=JOBS_DOCKER, start="snapshot", container=JOB_NAME, most=2),
)


@contextmanager
def runners(site: Site, side: Side, folder: Path) -> Iterator[None]:
    """Runners at work for this side's jobs."""
    with _plain(site, side, folder) if side == PLAIN else _machines(site, side, folder):
        yield


@contextmanager
def _plain(site: Site, side: Side, folder: Path) -> Iterator[None]:
    # As it is in the seed of a machine.
    config = runner_config(
        "gitea",
        job_timeout=timedelta(hours=3),
        labels=[Label.parse(f"{side.name}:host")],
        environment={},
        more={},
    )
    with (
        plain.tree(store.find(IMAGES, side.image), folder / "plain") as root,
        plain.Runners(site, root, folder / "plain", side.name, config, side.most),
    ):
        yield


@contextmanager
def _machines(site: Site, side: Side, folder: Path) -> Iterator[None]:
    ground = ground_of(site, folder, side)
    ground.run("down", "--all", "--now")
    ground.run("up", side.name)  # "down" holds until then
    if side.start == "snapshot":
        ground.run("snapshot", "create", "--pool", side.name, timeout=900)
    served = ground.serve()
    try:
        yield
    finally:
        served.terminate()
        served.wait(60)
        ground.run("down", "--all", "--now")


def ground_of(site: Site, folder: Path, side: Side) -> Ground:
    """A manager with this side's pool alone."""
    ground = lay(folder / side.name, MANAGER, SUBNET, token=site.token)
    head, _, _ = ground.config.read_text().partition("[pools.main]")
    ground.config.write_text(head + side.section)
    return ground
