"""Which job ran on which machine: jobs of a second, of five kinds, mixed over two pools, and what
`vmrunner history` says of them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import soak
from tests.forge.gitea import Site, until
from tests.ground import Ground
from tests.prepare import GITEA
from tests.vm.test_jobs import LIFE

pytestmark = pytest.mark.vm

JOBS = 15


@pytest.mark.long
def test_history_names_the_job_that_ran_as_the_forge_does(
    site: Site, lay_ground: Callable[..., Ground]
) -> None:
    ground = lay_ground(cloned=True, most=1, labels='debian-12", "main')
    ground.config.write_text(
        ground.config.read_text() + soak.SECOND.format(image=GITEA, start="auto")
    )
    repository, wanted = soak.batch(site, 1, JOBS)
    manager = ground.serve()
    try:
        until(
            lambda: (
                all(job["status"] == "completed" for job in repository.jobs())
                and not ground.leftovers()
            ),
            LIFE,
            "every job done and nothing left",
            every=1,
        )
    finally:
        manager.kill()
        manager.wait()
    jobs = repository.jobs()
    assert {job["name"]: job["conclusion"] for job in jobs} == wanted
    assert soak.unlike(ground, jobs) == []
    rows = soak.history(ground)
    assert len([row for row in rows if row["ran"] == "yes"]) == JOBS
    assert [row["machine"] for row in rows if row["made_for"] and row["made_for"] != row["job"]], (
        "Gitea hands out others than intended"
    )
    told = [line for line in ground.log.read_text().splitlines() if "job ended" in line]
    by_machine = {row["machine"]: row for row in rows}
    for line in told:
        fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
        row = by_machine[fields["machine"]]
        assert (fields["pool"], fields["verdict"], fields["sha"]) == (
            row["pool"],
            row["verdict"],
            row["sha"],
        )
    assert told
