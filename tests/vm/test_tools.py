"""A disk of tools in real machines, which real Gitea's jobs run in, by its real runner."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import tooling
from tests.archive import Site as Server
from tests.forge.gitea import URL, VERSION, Repository, Site, until
from tests.garm.calls import call, with_flavor
from tests.garm.double import INSTANCE, Double
from tests.ground import STORAGE, Ground
from tests.prepare import DOCKER, GITEA
from tests.vm.test_cache import packed
from tests.vm.test_endings import serving
from tests.vm.test_garm import INSTALL, registration, wanted
from vmrunner import files
from vmrunner.model.image import DISK

pytestmark = [pytest.mark.vm, pytest.mark.long]
LIFE = 240.0  # seconds for one job on a slow day
FIND = """\
on: workflow_dispatch
jobs:
  it:
    runs-on: [debian-12]
    steps:
      - run: |
          echo "told: $RUNNER_TOOL_CACHE $AGENT_TOOLSDIRECTORY"
          cd "$RUNNER_TOOL_CACHE/go"
          for version in *; do
            echo "told: $version $(test -e $version/x64.complete && $version/x64/bin/go)"
          done
          mkdir -p 1.27.0/x64/bin
          printf '#!/bin/sh\\necho added\\n' >1.27.0/x64/bin/go
          chmod +x 1.27.0/x64/bin/go
          touch 1.27.0/x64.complete
          mv 1.26.0 1.25.0
          echo 'echo and more' >>1.25.0/x64/bin/go
          1.25.0/x64/bin/go
"""
FOUND = [
    "told: /job/tool_cache /opt/hostedtoolcache",
    "told: 1.26.0 this is go 1.26.0",
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "vendor"
    folder.mkdir()
    with Server(folder, 0) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield served
        served.shutdown()


def built(ground: Ground, vendor: Path, url: str, image: str, more: str = "") -> Path:
    """The disk of tools, built as an admin does; the rig's image stands beside it. Returns its
    volume at libvirt.
    """
    images = ground.folder / "state" / "images"
    tooling.beside_images(ground, image)
    recipe = tooling.lay(vendor, "tools", [("go", "1.26.0")], url)
    recipe.write_text(recipe.read_text() + more)
    ground.run("image", "build", "tools", "--recipes", str(vendor))
    version = (images / "tools" / "current").readlink()
    return STORAGE / ground.manager / f"image-tools-{version}.{DISK}"


def ended(repository: Repository) -> str:
    """What its next one says, when it is over."""
    number = len(repository.jobs()) + 1
    repository.dispatch()

    def over() -> bool:
        jobs = repository.jobs()
        return len(jobs) == number and jobs[-1]["status"] == "completed"

    until(over, LIFE, "its end", every=0.5)
    last = repository.jobs()[-1]
    said = repository.said(last["id"])
    assert last["conclusion"] == "success", said
    return said


def told(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("told: ")]


@pytest.mark.parametrize(
    ("start", "more"),
    [("boot", ""), ("snapshot", 'job_user = "runner"'), ("snapshot", "warm = 1")],
    ids=["booted", "cloned", "parked"],
)
def test_jobs_find_their_tools_and_what_they_add_stays_in_their_machine(
    site: Site,
    lay_ground: Callable[..., Ground],
    server: Server,
    tmp_path: Path,
    start: str,
    more: str,
) -> None:
    ground = lay_ground(start=start, more=f'tools = "tools"\n{more}')
    volume = built(ground, tmp_path / "vendor", server.url, GITEA)
    if start == "snapshot":
        ground.run("snapshot", "create", "--pool", "main")
    one = site.repository("rig", "one", FIND)
    with serving(ground):
        if "warm" in more:
            until(lambda: _phases(ground) == ["ready"], LIFE, "one is parked")
        first, second = ended(one), ended(one)
    assert told(first) == FOUND
    assert "and more" in first
    assert told(second) == FOUND
    assert files.digest(volume) == files.digest(_disk(ground))


def _disk(ground: Ground) -> Path:
    """As it was built."""
    return ground.folder / "state" / "images" / "tools" / "current" / DISK


def _phases(ground: Ground) -> list[str]:
    return [each["phase"] for each in ground.status()["pools"][0]["machines"]]


REAL = f"""\
on: workflow_dispatch
jobs:
  it:
    runs-on: [debian-12]
    steps:
      - run: |
          curl -sf {URL}/rig/one/raw/branch/main/client.tgz | tar xz
          curl -sfO {URL}/rig/one/raw/branch/main/tool_cache.cjs
          "$RUNNER_TOOL_CACHE/node/{tooling.NODE}/x64/bin/node" tool_cache.cjs
"""


def test_the_library_of_actions_finds_them_in_a_job_that_reaches_the_forge_alone(
    site: Site, lay_ground: Callable[..., Ground], server: Server, tmp_path: Path
) -> None:
    # npm's registry may be out of reach where the suite runs; `make long` fetches both beforehand.
    if not tooling.CLIENT.exists():
        pytest.skip("`rig/rig run --outside -- python -m tests.tooling` fetches it")
    ground = lay_ground(most=1, more='tools = "tools"\nnetwork = "none"')
    node = tooling.RECIPE.format(
        name="node", version=tooling.NODE, source=f'path = "{tooling.NODE_ARCHIVE}"'
    )
    built(ground, tmp_path / "vendor", server.url, GITEA, node)
    one = site.repository("rig", "one", REAL)
    script = Path(tooling.__file__).with_name("tool_cache.cjs").read_bytes()
    for name, content in (("client.tgz", packed(tooling.CLIENT)), ("tool_cache.cjs", script)):
        body = {"content": base64.b64encode(content).decode(), "message": name}
        site.call("POST", f"/repos/rig/one/contents/{name}", body)
    with serving(ground):
        said = ended(one)
    (found,) = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    there = "/job/tool_cache"
    assert found == {
        "exact": f"{there}/go/1.26.0/x64",
        "range": f"{there}/go/1.26.0/x64",
        "node": f"{there}/node/{tooling.NODE}/x64",
        "missing": "",
        "added": f"{there}/go/1.27.0/x64",
        "then": ["1.26.0", "1.27.0"],
    }


CONTAINER = """\
on: workflow_dispatch
jobs:
  it:
    runs-on: [boxed]
    defaults: {run: {shell: sh}}
    steps:
      - run: |
          echo "told: $RUNNER_TOOL_CACHE $AGENT_TOOLSDIRECTORY"
          echo "told: $($RUNNER_TOOL_CACHE/go/1.26.0/x64/bin/go)"
          touch $RUNNER_TOOL_CACHE/go/1.26.0/x64/added
"""


def test_containers_of_a_job_have_them_too(
    site: Site, lay_ground: Callable[..., Ground], server: Server, tmp_path: Path
) -> None:
    ground = lay_ground(
        most=1, image=DOCKER, labels="boxed:docker://tests/base:1", more='tools = "tools"'
    )
    built(ground, tmp_path / "vendor", server.url, DOCKER)
    one = site.repository("rig", "one", CONTAINER)
    with serving(ground):
        said = ended(one)
    place = "/opt/hostedtoolcache"
    assert told(said) == [f"told: {place} {place}", "told: this is go 1.26.0"]


COMMAND = f"""\
echo "told: $RUNNER_TOOL_CACHE $AGENT_TOOLSDIRECTORY"
echo "told: $($RUNNER_TOOL_CACHE/go/1.26.0/x64/bin/go)"
cd $RUNNER_TOOL_CACHE/go && touch 1.26.0/x64/mine && mv 1.26.0 1.25.0 && echo told: $(ls)
curl -sf -m 60 {VERSION} >/dev/null && echo told: the forge
"""


@pytest.mark.parametrize(("start", "said"), [("boot", "booting"), ("snapshot", "cloned")])
def test_one_command_finds_them_too(
    lay_ground: Callable[..., Ground], server: Server, tmp_path: Path, start: str, said: str
) -> None:
    """A new version has its snapshot before it is current: `exec` finds it. As a machine of the
    pool it knows the forge by its name, and may not ask DNS for it.
    """
    ground = lay_ground(start=start, more='tools = "tools"\nnetwork = "none"')
    volume = built(ground, tmp_path / "vendor", server.url, GITEA)
    done = ground.run("exec", "--pool", "main", "--", "sh", "-c", COMMAND)
    assert f": {said}" in done.stderr
    place = "/opt/hostedtoolcache"
    assert told(done.stdout) == [
        f"told: {place} {place}",
        "told: this is go 1.26.0",
        "told: 1.25.0",
        "told: the forge",
    ]
    assert files.digest(volume) == files.digest(_disk(ground))
    assert ground.leftovers() == []


FOR_GARM = """\
on: push
jobs:
  it:
    runs-on: [for-garm]
    steps:
      - run: |
          echo "told: $AGENT_TOOLSDIRECTORY"
          echo "told: $($AGENT_TOOLSDIRECTORY/go/1.26.0/x64/bin/go)"
          touch $AGENT_TOOLSDIRECTORY/go/1.26.0/x64/mine
"""


@pytest.mark.parametrize("install", ["host", "machine"])
def test_machines_for_garm_have_them(
    site: Site,
    lay_ground: Callable[..., Ground],
    server: Server,
    tmp_path: Path,
    install: str,
) -> None:
    """Also where GARM's own script makes the runner: its login forgets most of the environment."""
    address = URL.removeprefix("http://").partition(":")[0]
    repository = site.repository("rig", "garm", FOR_GARM)
    with Double(registration(site), address) as garm:
        reach = f'allow = ["{garm.url.removeprefix("http://")}"]'
        flavor = f'tools = "tools"\nstart = "boot"\ninstall = "{install}"\n{reach}\n'
        ground = with_flavor(lay_ground(), flavor)
        built(ground, tmp_path / "vendor", server.url, GITEA)
        token = f"curl -fsS -H 'Authorization: Bearer {INSTANCE}'"
        garm.install = INSTALL.format(call=token, garm=garm.url, forge=URL, name="garm-it")
        call(ground, "CreateInstance", wanted=wanted(garm, "garm-it"))
        until(lambda: repository.jobs()[0]["status"] == "completed", LIFE, "its job is over")
        (job,) = repository.jobs()
        said = repository.said(job["id"])
        call(ground, "DeleteInstance", "garm-it")
    assert (job["conclusion"], job["runner_name"]) == ("success", "garm-it"), said
    assert told(said) == ["told: /opt/hostedtoolcache", "told: this is go 1.26.0"]
    assert ground.leftovers() == []
