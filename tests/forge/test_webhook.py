"""The webhook of real Gitea: made as docs/operations.md says, heard, and followed by a machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.forge.gitea import Repository, Site, until
from tests.world import POOL, World
from vmrunner.forge.seam import Forge
from vmrunner.manager import serve
from vmrunner.manager.serve import Server
from vmrunner.manager.webhook import Listener, Verdict
from vmrunner.model.secret import Secret

ORGANISATION = "hooked"
SECRET = Secret("s3cret-of-the-webhook")
WORKFLOW = (
    "on: workflow_dispatch\njobs:\n  job:\n    runs-on: vm-hooked\n    steps: [{run: 'true'}]\n"
)


@pytest.fixture
def repository(site: Site) -> Iterator[Repository]:
    site.organisation(ORGANISATION)
    repository = site.repository(ORGANISATION, "r1", WORKFLOW)
    yield repository
    repository.delete()
    for record in site.runners():
        if record["name"].startswith("vmr-m-"):
            site.call("DELETE", f"/admin/actions/runners/{record['id']}", fine=(404,))


@pytest.fixture
def world(
    tmp_path: Path, site: Site, client: Callable[..., Forge], monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    """A manager of real Gitea, which nothing wakes but the webhook; its machines are fakes."""
    monkeypatch.setattr(serve, "_LONGEST", 3600.0)
    world = World(tmp_path, pools={"p": POOL | {"labels": ["vm-hooked"]}}, serve={"poll": "1h"})
    world.forge = client(site.url, site.token, kind="gitea")  # type: ignore[assignment]
    world.clock.now = time.time()
    world.restart()
    yield world
    world.history.close()


def heard(listener: Listener, verdict: Verdict) -> bool:
    samples = [sample for metric in listener.collect() for sample in metric.samples]
    return any(sample.labels.get("verdict") == verdict.value and sample.value for sample in samples)


@pytest.mark.parametrize(
    ("hooks", "system"),
    [("/admin/hooks", {"is_system_webhook": "true"}), (f"/orgs/{ORGANISATION}/hooks", {})],
    ids=["system", "organisation"],
)
@pytest.mark.parametrize(
    "wrong",
    [{}, {"secret": "another"}, {"secret": ""}, {"content_type": "form"}],
    ids=["right", "secret", "none", "form"],
)
def test_a_job_that_is_queued_wakes_serve(
    world: World,
    site: Site,
    repository: Repository,
    tmp_path: Path,
    hooks: str,
    system: dict[str, str],
    wrong: dict[str, str],
) -> None:
    server = Server(
        lambda: world.manager,
        world.log,
        make_snapshot=lambda _: pytest.fail("it is booted"),
        notify=lambda _: None,
    )
    listener = Listener("127.0.0.1:0", SECRET, server.wake, world.log, tmp_path / "m.webhook")
    serving = threading.Thread(target=server.serve)
    with ExitStack() as stack, listener:
        serving.start()
        stack.callback(serving.join)
        stack.callback(server.stop)
        # Not before: the first pass would find the job, too.
        until(lambda: listener.port and server.figures.last_pass, 20, "its first pass")
        settings = {
            "url": f"http://127.0.0.1:{listener.port}/webhook",
            "content_type": "json",
            "secret": SECRET.value,
            **system,
            **wrong,
        }
        hook = site.call(
            "POST",
            hooks,
            {"type": "gitea", "active": True, "events": ["workflow_job"], "config": settings},
        )
        stack.callback(site.call, "DELETE", f"{hooks}/{hook['id']}")
        repository.dispatch()
        if not wrong:
            until(world.machines, 20, "the machine")
        else:
            until(lambda: heard(listener, Verdict.FORGED), 20, "the delivery")
            until(repository.jobs, 20, "the job")
            assert world.machines() == [], "the next poll would find it"
    assert heard(listener, Verdict.WOKE) == (not wrong)
