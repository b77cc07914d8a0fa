"""The cache of jobs: real Gitea, its real runner, real machines, and a client in them that speaks
as actions/cache does.
"""

from __future__ import annotations

import base64
import io
import json
import re
import tarfile
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest

from tests import actions_cache
from tests.forge.gitea import URL, Repository, Site, until
from tests.ground import STORAGE, Ground
from tests.page import free_port
from tests.prepare import DOCKER
from tests.prepare import JOBS as JOBS_IMAGE
from tests.vm.test_endings import serving
from vmrunner import config
from vmrunner.cache import who
from vmrunner.cache.lab import Lab as Jobs
from vmrunner.doctor.isolation.cache import cells
from vmrunner.doctor.isolation.lab import Lab
from vmrunner.hypervisor.host import open_host
from vmrunner.image.versions import store
from vmrunner.network.addresses import Addresses

pytestmark = [pytest.mark.vm, pytest.mark.long]
LIFE = 240.0  # seconds for one job on a slow day

CLIENT = """\
import json, os, sys, urllib.error, urllib.request
BASE = os.environ["ACTIONS_CACHE_URL"] + "_apis/artifactcache/"

def ask(method, path, body=b"", **headers):
    url = path if "://" in path else BASE + path
    wanted = urllib.request.Request(url, body or None, headers, method=method)
    try:
        with urllib.request.urlopen(wanted, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()

def call(path, **body):
    return ask("POST", path, json.dumps(body).encode(), **{"Content-Type": "application/json"})

def save(key, content):
    status, answer = call("caches", key=key, version="v1", cacheSize=len(content))
    if status != 201:
        return f"reserve {status}"
    path = f"caches/{json.loads(answer)['cacheId']}"
    part = {"Content-Range": f"bytes 0-{len(content) - 1}/*"}
    part["Content-Type"] = "application/octet-stream"
    sent = ask("PATCH", path, content, **part)[0]
    return f"save {sent} {call(path, size=len(content))[0]}"

def restore(key):
    status, answer = ask("GET", f"cache?keys={key}&version=v1")
    if status != 200:
        return f"restore {status}"
    found = json.loads(answer)
    content = ask("GET", found["archiveLocation"])[1].decode()
    return f"restore {status} {found['cacheKey']} {content}"

for word, *rest in (line.split() for line in sys.argv[1:]):
    print("cache:", {"save": save, "restore": restore}[word](
        rest[0], *(each.encode() for each in rest[1:])))
"""
JOB = """\
on: {on}
jobs:
  it:
    runs-on: [debian-12]
    steps:
      - run: |
          cat >/client.py <<'END'
{client}
          END
          python3 /client.py {words}
{more}"""


def workflow(*words: str, on: str = "workflow_dispatch", more: str = "") -> str:
    quoted = " ".join(f"'{each}'" for each in words)
    return JOB.format(on=on, client=indent(CLIENT, " " * 10), words=quoted, more=more)


def job(repository: Repository, file: str, *words: str, branch: str = "main") -> list[str]:
    """What this one says of the cache, when it is over."""
    if branch != "main":
        site, body = repository.site, {"new_branch_name": branch, "old_branch_name": "main"}
        site.call("POST", f"/repos/{repository.name}/branches", body, fine=(409,))
    repository.push(workflow(*words), file)
    return dispatched(repository, file, branch)


def dispatched(repository: Repository, file: str, branch: str = "main") -> list[str]:
    """The same of a workflow that is there already."""
    before = len(repository.jobs())
    path = f"/repos/{repository.name}/actions/workflows/{file}/dispatches"
    repository.site.call("POST", path, {"ref": branch})
    until(lambda: len(repository.jobs()) > before, 30, "the job")
    number = repository.jobs()[-1]["id"]

    def over() -> dict[str, Any] | None:
        found = next(each for each in repository.jobs() if each["id"] == number)
        return found if found["status"] == "completed" else None

    ended = until(over, LIFE, "its end", every=0.5)
    assert ended["conclusion"] == "success", repository.log(number)
    said = repository.said(number).splitlines()
    return [line.removeprefix("cache: ") for line in said if line.startswith("cache: ")]


def laid(lay_ground: Callable[..., Ground], **options: Any) -> Ground:
    more = options.pop("more", "")
    cache = f"{more}\n[cache]\nlisten_port = {free_port()}\n"
    return lay_ground(cloned=True, more=cache, **options)


def test_a_second_job_finds_what_the_first_one_kept_and_nobody_else_does(
    site: Site, lay_ground: Callable[..., Ground]
) -> None:
    ground = laid(lay_ground)
    empty = "on: workflow_dispatch\njobs: {it: {runs-on: nothing, steps: [{run: 'true'}]}}\n"
    one = site.repository("rig", "one", empty)
    other = site.repository("rig", "other", empty)
    with serving(ground):
        assert job(one, "save.yaml", "restore k", "save k-1 hello") == [
            "restore 204",
            "save 200 200",
        ]
        assert job(one, "again.yaml", "restore k", "save k-1 world") == [
            "restore 200 k-1 hello",
            "reserve 409",
        ]
        assert job(other, "not.yaml", "restore k") == ["restore 204"]
        # A new machine may have the address of one before; what it may do is its own.
        assert job(one, "last.yaml", "restore k-1") == ["restore 200 k-1 hello"]
    assert "goes on without the cache" not in ground.log.read_text()


# Whoever looks on from inside outlives the job: what it is told goes to the console.
PROBE = """\
          cat >/probe <<'END'
          while sleep 0.2; do
            echo "probe: $(curl -s -m 2 -o /dev/null -w '%{http_code}' "$ACTIONS_CACHE_URL"_apis/artifactcache/cache'?keys=k&version=v1')"
          done
          END
          setsid sh /probe </dev/null >/dev/console 2>&1 &
"""  # noqa: E501 — a workflow keeps its lines
# Until a label with this word is there.
ONCE = f"""\
          for n in $(seq 300); do
            curl -s {URL}/api/v1/repos/rig/one/labels | grep -q '"go"' && break; sleep 0.5
          done
"""


def probed(ground: Ground, machine: str, count: int = 3) -> list[str]:
    """What it says next."""
    console = STORAGE / ground.manager / f"{machine}.console"
    before = len(console.read_text(errors="replace"))

    def said() -> list[str]:
        # The first line may be the end of one.
        lines = console.read_text(errors="replace")[before:].splitlines()[1:-1]
        return [line.partition("probe: ")[2].strip() for line in lines if "probe: " in line]

    until(lambda: len(said()) >= count, 60, "the probe says more")
    return said()


def test_over_a_kill_of_serve_and_until_the_job_is_over(
    site: Site, lay_ground: Callable[..., Ground]
) -> None:
    ground = laid(lay_ground, most=1, more='hold_failed = "10m"')
    one = site.repository(
        "rig", "one", workflow("save k hello", on="push", more=f"{PROBE}{ONCE}          exit 1\n")
    )

    def machine() -> dict[str, Any]:
        found: list[dict[str, Any]] = ground.status()["pools"][0]["machines"]
        return found[0] if found else {"name": "", "phase": ""}

    told = who.reader(ground.folder / "run" / "suite.jobs.json")
    with serving(ground) as process:
        until(lambda: told.now(), LIFE, "its job is known", every=0.5)
        name = machine()["name"]
        assert list(told.now()) == [name]
        facts = told.now()[name]
        assert facts
        assert (facts.repository, facts.ref) == ("rig/one", "refs/heads/main")
        until(lambda: "200" in probed(ground, name, 1), 60, "it finds what it kept")
        process.kill()
        process.wait()
        until(lambda: "000" in probed(ground, name, 1), 60, "the cache has ended with serve")
    with serving(ground):
        until(lambda: "200" in probed(ground, name, 1), 60, "it finds it again")
        site.call("POST", f"/repos/{one.name}/labels", {"name": "go", "color": "00aabb"})
        until(lambda: machine()["phase"] == "held", LIFE, "it is held", every=0.5)
        until(lambda: set(probed(ground, name)) == {"000"}, 60, "it is refused")
        until(lambda: not told.now(), 30, "nothing is told of it any more")
        # Nor would it be heard if its network were open.
        (address,) = [
            path.name
            for path in (ground.folder / "run" / "addresses").iterdir()
            if path.read_text() == name
        ]
        asked = who.Who(
            [ground.folder / "run" / "suite.jobs.json"],
            Addresses(ground.folder / "run", IPv4Network("10.90.0.0/24")),
            {},
            patience=0.0,
        )
        assert asked.of(address) is None
        ground.run("release", name[-8:])
    assert ground.leftovers() == []


def test_a_job_in_a_container_reaches_it(site: Site, lay_ground: Callable[..., Ground]) -> None:
    asked = "_apis/artifactcache/cache?keys=k&version=v1"
    step = f'wget -S -O - "${{ACTIONS_CACHE_URL}}{asked}" 2>&1'
    text = (
        "on: push\njobs:\n  it:\n    runs-on: [boxed]\n    defaults: {run: {shell: sh}}\n"
        f"    steps:\n      - run: |\n          {step}\n"
    )
    ground = laid(lay_ground, most=1, image=DOCKER, labels="boxed:docker://tests/base:1")
    one = site.repository("rig", "one", text)
    with serving(ground):
        until(lambda: any(each["status"] == "completed" for each in one.jobs()), LIFE, "its end")
    (done,) = one.jobs()
    assert done["conclusion"] == "success", one.said(done["id"])
    assert "HTTP/1.1 204 No Content" in one.said(done["id"])


BUILD = """\
on: workflow_dispatch
jobs:
  it:
    runs-on: [docker]
    steps:
      - run: |
          sed -i 's/"storage-driver".*/"features": {"containerd-snapshotter": true}/' /etc/docker/daemon.json
          systemctl restart docker
          cp /bin/busybox .
          printf '%s\\n' 'FROM scratch' 'COPY busybox /' \\
            'RUN ["/busybox", "cp", "/proc/sys/kernel/random/uuid", "/made"]' >Dockerfile
          docker build --quiet --cache-from type=gha --cache-to type=gha,mode=max --tag built .
          echo "cache: $(docker run --rm built /busybox cat /made)"
"""  # noqa: E501 — a workflow keeps its lines


def test_a_build_of_docker_goes_on_from_that_of_another_machine(
    site: Site, lay_ground: Callable[..., Ground]
) -> None:
    """BuildKit's own cache: it speaks the same protocol, from Docker's daemon."""
    ground = laid(lay_ground, most=1, image=DOCKER, labels="docker")
    empty = "on: workflow_dispatch\njobs: {it: {runs-on: nothing, steps: [{run: 'true'}]}}\n"
    repositories = [site.repository("rig", name, empty) for name in ("one", "other")]
    one, other = repositories
    for each in repositories:
        each.push(BUILD, "build.yaml")
    with serving(ground):
        first, again, elsewhere = (dispatched(each, "build.yaml") for each in (one, one, other))
    assert len(first) == 1
    assert again == first
    assert elsewhere != first


def test_a_machine_without_a_job_reaches_it_and_is_told_nothing(
    lay_ground: Callable[..., Ground],
) -> None:
    ground = laid(lay_ground)
    with serving(ground):
        until(lambda: "the cache is served" in ground.log.read_text(), 60, "it is served")
        done = ground.run("doctor", "--isolation", "--policy", "pool-main", "--json", check=False)
    cells = {(each["group"], each["what"]): each["is_open"] for each in json.loads(done.stdout)}
    port = config.load(ground.config).cache.listen_port
    assert cells["host", f"the gateway, TCP port {port}, which is offered"] is True
    assert cells["cache", "for a machine without a job"] is False
    # The port is open at that one address, and nothing else of the host is.
    others = {what: is_open for (group, what), is_open in cells.items() if group == "host"}
    assert [what for what, is_open in others.items() if is_open] == [
        f"the gateway, TCP port {port}, which is offered"
    ]


def test_no_machine_gets_what_anothers_job_kept(lay_ground: Callable[..., Ground]) -> None:
    ground = laid(lay_ground)
    settings = config.load(ground.config)
    pool = settings.pools["main"]
    lab = Lab(
        settings,
        lambda: open_host(settings, lambda _: None),
        store.find(settings.images_dir, pool.image),
        pool.shape,
        snapshot=True,
        say=print,
    )
    with serving(ground):
        until(lambda: "the cache is served" in ground.log.read_text(), 60, "it is served")
        found = list(cells(lab, Jobs(settings)))
    assert [each for each in found if not each.is_right] == []
    assert len(found) == 11
    assert ground.leftovers() == []
    assert json.loads(ground.run("cache", "stats", "--json").stdout) == []


VERSION = "4.1.0"  # that of actions/cache@v4
REAL = """\
on: workflow_dispatch
jobs:
  it:
    runs-on: [debian-12]
    steps:
      - run: |
          curl -sf {url}/rig/one/raw/branch/main/client.tgz | tar xz
          curl -sfO {url}/rig/one/raw/branch/main/client.mjs
          {begins}
          node client.mjs "$PWD" {what}
          echo "kept: $(sha256sum <kept/file)"
"""


def packed(folder: Path) -> bytes:
    """The client as one archive, without what it does not need to run."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for path in sorted(folder.rglob("*")):
            named = path.relative_to(folder)
            if path.suffix in {".js", ".cjs", ".json"} and not {"esm", "browser"} & {*named.parts}:
                archive.add(path, named)
    return out.getvalue()


def test_the_real_client_in_a_real_job(site: Site, lay_ground: Callable[..., Ground]) -> None:
    # npm's registry may be out of reach where the suite runs; `make long` fetches it beforehand.
    if not actions_cache.folder(VERSION).exists():
        pytest.skip("`rig/rig run --outside -- python -m tests.actions_cache` installs it")
    ground = laid(lay_ground, most=1, image=JOBS_IMAGE)
    save = REAL.format(
        url=URL, begins="mkdir kept; head -c 3M /dev/urandom >kept/file", what="save k-1 kept"
    )
    one = site.repository("rig", "one", save)
    script = Path(actions_cache.__file__).with_suffix(".mjs").read_bytes()
    client = packed(actions_cache.folder(VERSION))
    for name, content in (("client.tgz", client), ("client.mjs", script)):
        body = {"content": base64.b64encode(content).decode(), "message": name}
        site.call("POST", f"/repos/rig/one/contents/{name}", body)
    one.push(REAL.format(url=URL, begins="", what="restore k-2 kept k-"), "again.yaml")
    said = []
    with serving(ground):
        for number, file in enumerate(("ci.yaml", "again.yaml"), 1):
            one.dispatch(file)

            def over(number: int = number) -> bool:
                jobs = one.jobs()
                return len(jobs) == number and jobs[-1]["status"] == "completed"

            until(over, LIFE, "its end", every=0.5)
            said.append(one.said(one.jobs()[-1]["id"]))
    kept = [re.findall(r"kept: [0-9a-f]{64}", text) for text in said]
    assert len(kept[0]) == 1, said[0]
    assert kept[1] == kept[0], said[1]
    assert '{"result":"k-1"}' in said[1]
