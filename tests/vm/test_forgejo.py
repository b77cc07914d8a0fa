"""The Forgejo double's jobs in real machines: each machine takes the job that it was made for, with
`one-job`, and a cancelled one ends."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest

from tests.forge.double import Double
from tests.forge.gitea import until
from tests.ground import Ground
from tests.prepare import FORGEJO
from tests.vm.test_jobs import LIFE

pytestmark = pytest.mark.vm


def test_each_machine_takes_its_own_job_and_a_cancelled_one_goes(
    lay_ground: Callable[..., Ground],
) -> None:
    with Double("203.0.113.10", host="forge.example") as double:
        ground = lay_ground(
            url=double.url, token=double.token, kind="forgejo", image=FORGEJO, most=2
        )
        failing = double.add_job("failing", steps=["echo on $(hostname); exit 1", "echo never"])
        endless = double.add_job("endless", steps=["sleep 600"])
        ground.run("up")
        made = {machine["name"] for machine in ground.status()["pools"][0]["machines"]}
        assert len(made) == 2
        ground.run("up")
        # On a busy host one of them has done its job by now, and its runner is gone.
        assert {runner.name for runner in double.runners.values()} <= made, (
            "each job has its machine already"
        )
        third = double.add_job("third")

        def both_taken() -> bool:
            ground.run("up")
            return bool(failing.result and endless.task_id)

        until(both_taken, LIFE, "both jobs are taken", every=1)
        for job in (failing, endless):
            assert job.runner is not None
            assert keys(ground, job.runner.name)[0] == job.handle
        assert failing.runner is not None
        assert (failing.result, failing.log) == (
            "RESULT_FAILURE",
            [f"on {failing.runner.name}", "job failed"],
        )
        assert third.task_id == 0, "nobody took the job of another"

        double.cancel(endless)
        double.cancel(third)  # while its machine boots
        until(
            lambda: ground.run("up") and not ground.leftovers(),
            LIFE,
            "the cancelled job's machine is gone",
            every=1,
        )
        assert double.runners == {}
        assert endless.result == third.result == "RESULT_CANCELLED"
        name = failing.runner.name
        until(
            lambda: ground.run("up") and keys(ground, name)[1] == failing.handle,
            LIFE,
            "the job that ran is written down",
            every=1,
        )


def keys(ground: Ground, machine: str) -> tuple[str, str]:
    """Of the job that a machine was made for, which is written down at once, and of the one that
    ran, when the forge has said so."""
    with closing(sqlite3.connect(ground.folder / "state" / "history.sqlite")) as history:
        made_for, ran = history.execute(
            "SELECT made_for_key, job_key FROM machines WHERE machine = ?", (machine,)
        ).fetchone()
    return made_for, ran
