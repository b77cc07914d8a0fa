"""What the VM tests share: a ground per test whose leftovers are destroyed, and whose consoles are
shown when a test fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.forge.gitea import Site
from tests.ground import STORAGE, Ground, host_of, lay


@pytest.fixture
def lay_ground(site: Site, tmp_path: Path) -> Iterator[Callable[..., Ground]]:
    """`lay` with this test's folder and Gitea's token; every ground is taken down at the end.

    `cloned=True`: the pool's machines are clones. Their snapshot is made by the first test that
    needs it.
    """
    grounds: list[Ground] = []

    def make(*, cloned: bool = False, **options: Any) -> Ground:
        if cloned:
            options["start"] = "auto"
        ground = lay(
            tmp_path / "ground", "suite", "10.90.0.0/24", **{"token": site.token} | options
        )
        grounds.append(ground)
        sweep(ground, site)
        if cloned:
            ground.run("snapshot", "create", "--pool", "main")
        return ground

    yield make
    for ground in grounds:
        for console in (STORAGE / ground.manager).glob("*.console"):
            # Pytest shows it when the test failed.
            print(f"{console.name}:\n{console.read_text(errors='replace')[-4000:]}")
        sweep(ground, site)
    site.clear()  # a job that a failed test left waiting would be the next test's


def sweep(ground: Ground, site: Site) -> None:
    """Whatever an earlier test or run left of this manager."""
    host = host_of(ground.manager)
    for machine in host.machines.all():
        host.machines.destroy(machine.id)
    for record in site.runners():
        if record["name"].startswith(f"vmr-{ground.manager}-"):
            site.call("DELETE", f"/admin/actions/runners/{record['id']}", fine=(404,))
