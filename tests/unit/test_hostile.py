"""A hostile forge and hostile guests: whatever they say, there is no traceback, nothing is written
elsewhere, and no machine is lost.

The real clients of both forges read generated answers; the real manager runs on the fake
hypervisor; what people and programs are shown is made as the commands make it.
VMRUNNER_TEST_HOSTILE_EXAMPLES says how many answers, for each forge; they are new ones each time
then.
"""

from __future__ import annotations

import ast
import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from tests.fakes import FakeBindings
from tests.world import POOL, World
from vmrunner.cli import status_cmd, surveyed
from vmrunner.cli.shown import plain
from vmrunner.cli.top_picture import whole
from vmrunner.cli.top_state import Seen
from vmrunner.errors import VmrunnerError
from vmrunner.forge.forgejo import Forgejo
from vmrunner.forge.gitea import Gitea
from vmrunner.forge.http import Http
from vmrunner.hypervisor.domain import domain_xml, parse_metadata
from vmrunner.hypervisor.seam import File
from vmrunner.log import _line
from vmrunner.machine import seed
from vmrunner.manager.manager import Manager
from vmrunner.model.job import Credentials, Scope
from vmrunner.model.label import Label
from vmrunner.model.machine import NO_LIMITS, MachineId, parse_events
from vmrunner.model.secret import Secret

ASKED = os.environ.get("VMRUNNER_TEST_HOSTILE_EXAMPLES", "")
EXAMPLES = int(ASKED or "150")
NASTY = (
    "../../etc/passwd",
    "/etc/cron.d/x",
    "a\nb",
    "\r\nX-Injected: 1",
    "\x1b]0;title\x07\x1b[2J\x1b[31m",
    "\x9b31m",
    "'; rm -rf / #",
    '"$(touch /pwned)`id`"',
    "</job><devices/>&amp;<![CDATA[",
    "\0",
    "\ud800",
    "\u202egnp.exe",
    "{{ 7 * 7 }}{% raw %}",
    "%s%n{0}",
    "[red]a[/red] [/b]",
    "VMRUNNER_CA\n",
    "vmr-m-00000000",
    "debian-12",
    "",
    "x" * 1_000_000,
)
TEXTS = st.sampled_from(NASTY) | st.text(max_size=40)
NUMBERS = st.integers(-(2**70), 2**70) | st.integers(-2, 12)
TIMES = st.sampled_from(
    [
        "2026-01-01T00:00:00Z",
        "0001-01-01T00:00:00",
        "9999-12-31T23:59:59",
        "9999-12-31T23:59:59-23:59",
        "1969-01-01T00:00:00Z",
        "now",
        "",
        None,
    ]
) | st.integers(-(10**12), 10**12)
JUNK = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


RARELY = st.sampled_from([False] * 19 + [True])


def record(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A record of the right shape, now and then with a field that isn't."""
    drawn = st.tuples(st.fixed_dictionaries(fields), RARELY, st.sampled_from(sorted(fields)), JUNK)
    return drawn.map(lambda each: each[0] | {each[2]: each[3]} if each[1] else each[0])


LABELS = st.lists(st.just("debian-12") | TEXTS, max_size=2)
GITEA_JOB = record(
    id=NUMBERS,
    url=TEXTS | st.just("https://forge.example/api/v1/repos/o/r/actions/jobs/1"),
    html_url=TEXTS,
    name=TEXTS,
    labels=st.just(["debian-12"]) | LABELS,
    run_attempt=NUMBERS,
    status=st.sampled_from(["queued", "in_progress", "waiting", "completed"]) | TEXTS,
    conclusion=TEXTS,
    runner_id=NUMBERS,
    runner_name=TEXTS,
    created_at=TIMES,
    steps=st.none() | st.lists(record(started_at=TIMES, completed_at=TIMES), max_size=2),
)
FORGEJO_JOB = record(
    id=NUMBERS,
    name=TEXTS,
    handle=st.uuids().map(str) | TEXTS,
    repo_id=NUMBERS,
    task_id=NUMBERS,
    runs_on=st.just(["debian-12"]) | LABELS,
    status=st.sampled_from(["waiting", "running"]),
)
RUNNER = record(
    id=NUMBERS,
    name=TEXTS,
    status=st.sampled_from(["online", "offline", "idle", "active"]) | TEXTS,
    ephemeral=st.booleans(),
)
MINTED = record(id=NUMBERS, uuid=st.uuids().map(str) | TEXTS, token=st.just("t" * 40) | TEXTS)
EVENTS = st.binary(max_size=200) | st.lists(
    st.tuples(
        st.sampled_from(["up", "seed", "ready", "runner", "hold", "exit", "x"]),
        st.floats().map(str) | TEXTS,
        TEXTS,
    ).map(" ".join),
    max_size=5,
).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass"))
CODES = st.sampled_from([200] * 40 + [201, 204, 302, 401, 403, 404, 409, 500])


WHIMS = st.fixed_dictionaries(
    # What the forge will answer, drawn beforehand: how often it is asked depends on random names.
    {
        "codes": st.lists(CODES, min_size=1, max_size=12),
        "runners": st.lists(st.lists(RUNNER, max_size=2), min_size=1, max_size=3),
        "minted": st.lists(MINTED, min_size=1, max_size=3),
        "names": st.lists(TEXTS, min_size=1, max_size=3),
        "rest": st.lists(
            st.just({"token": "t", "ackIndex": "1", "state": {"result": "RESULT_FAILURE"}}) | JUNK,
            min_size=1,
            max_size=3,
        ),
        "instead": st.lists(
            st.tuples(
                RARELY, st.binary(max_size=50) | JUNK.map(lambda junk: json.dumps(junk).encode())
            ).map(lambda each: each[1] if each[0] else None),
            min_size=9,
            max_size=15,
        ),
    }
)


class HostileForge:
    """Answers each request with the next of what was drawn for its kind."""

    def __init__(self, jobs: list[list[Any]], whims: dict[str, list[Any]], inside: str) -> None:
        self._drawn = {name: cycle(drawn) for name, drawn in (whims | {"jobs": jobs}).items()}
        self._inside = inside

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path, method = request.url.path, request.method
        kind = "rest"
        if path.endswith("/jobs"):
            kind = "jobs"
        elif path.endswith("/runners"):
            kind = "runners" if method == "GET" else "minted"
        elif path.endswith("/Register"):
            kind = "minted"
        elif "/repositories/" in path:
            kind = "names"
        content = next(self._drawn[kind])
        if kind in ("jobs", "runners"):
            content = content if request.url.params.get("page", "1") == "1" else []
            if self._inside:
                content = {kind: content, "total_count": len(content)}
        elif kind == "names":
            content = {"full_name": content}
        elif path.endswith("/Register"):
            content = {"runner": content}
        instead = next(self._drawn["instead"])
        return httpx.Response(
            next(self._drawn["codes"]),
            content=json.dumps(content).encode() if instead is None else instead,
        )


written: list[str] | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if written is None:
        return
    if (
        event == "open"
        and isinstance(arguments[0], str)
        and isinstance(arguments[1], str)
        and set(arguments[1]) & set("wax+")
    ):
        written.append(arguments[0])
    elif event in {
        "os.rename",
        "os.mkdir",
        "os.remove",
        "os.rmdir",
        "os.symlink",
        "os.link",
        "os.chmod",
        "os.truncate",
    }:
        written.extend(str(each) for each in arguments[:2] if isinstance(each, str | Path))


sys.addaudithook(_audit)


@contextmanager
def writing_only_below(folder: Path) -> Iterator[None]:
    """Whatever Python changes on the file system meanwhile lies in the folder."""
    global written  # an audit hook can't be removed, so this one is switched
    written = []
    try:
        yield
    finally:
        seen, written = written, None
    outside = [path for path in seen if not str(Path(path).absolute()).startswith(str(folder))]
    assert outside == [], outside


def check_output(text: str) -> None:
    """Nothing that a terminal obeys, and no line without an end."""
    assert all(char.isprintable() or char == "\n" for char in text), repr(
        [char for char in text if not char.isprintable()][:5]
    )
    assert len(text) < 200_000


def shown(manager: Manager) -> None:
    """`vmrunner status`, as text and as JSON, and `vmrunner top`."""
    status = surveyed.status(manager, manager.survey(), time.time())
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(status_cmd._picture(status))
    check_output(console.file.getvalue())  # type: ignore[attr-defined]
    check_output(json.dumps(plain(status), indent=1))
    check_output("\n".join(map(str, whole(Seen(status), 0))))


started: Counter[str] = Counter()


def live(data: st.DataObject, kind: str) -> None:
    jobs = data.draw(
        st.lists(
            st.lists(FORGEJO_JOB if kind == "forgejo" else GITEA_JOB, max_size=3),
            min_size=1,
            max_size=2,
        )
    )
    reports, slept = (
        data.draw(st.lists(EVENTS, min_size=6, max_size=6)),
        data.draw(st.sampled_from([1, 60, 20000])),
    )
    whims = data.draw(WHIMS)
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    world = World(
        folder,
        binds_jobs=kind == "forgejo",
        pools={"p": POOL | {"max": 3, "hold_failed": "1m", "job_may_hold": "5m"}},
    )
    http = Http("https://forge.example", Secret("token"))
    http.close()
    answers = HostileForge(jobs, whims, "" if kind == "forgejo" else "jobs")
    http._client = httpx.Client(transport=httpx.MockTransport(answers))
    forge = Forgejo(http) if kind == "forgejo" else Gitea(http)
    bindings = FakeBindings(world.settings.runtime_dir, "m", world.doom)
    manager = Manager(
        world.settings,
        world.hypervisor,
        forge,
        world.history,
        world.log,
        bindings=bindings,
        clock=world.clock,
        steady=world.clock.steady,
        workers=1,
    )
    try:
        for _ in range(2):
            with writing_only_below(folder):
                outcome, _ = manager.reconcile()
                for failure in outcome.failures:
                    check_output(f"{failure.sentence}\n{failure.hint}")
                shown(manager)
            # No machine is lost track of: what the host has is what a pass sees, and each has its
            # binding or its end.
            seen = {machine.id for machine in manager.observe().machines}
            assert (
                set(world.hypervisor.domains) | {machine for machine, _ in world.hypervisor.files}
                <= seen
            )
            assert {machine for machine, _ in world.hypervisor.files} <= set(
                world.hypervisor.domains
            )
            started[kind] += len(world.hypervisor.domains)
            for machine, metadata in world.hypervisor.domains.items():
                described = domain_xml(
                    kvm=False,
                    shape=world.settings.pools["p"].shape,
                    metadata=metadata,
                    network="n",
                    files=dict.fromkeys(
                        ("overlay", "seed", "events", "console", "runner_log"), "/f"
                    ),
                    boot=None,
                    backing=("/b",),
                    limits=NO_LIMITS,
                )
                assert parse_metadata(described, machine) is not None
                world.hypervisor.events[machine] = parse_events(reports.pop())
            world.clock.now += slept
        for event, fields in world.log.lines:
            check_output(_line(None, "info", {"event": event, **fields}))
        for row in world.history.all():
            check_output(f"{row.job} {row.reason} {row.repository} {row.url}")
        for (_, file), content in world.hypervisor.files.items():
            assert file is not File.SEED or len(content) == 1 << 20
    finally:
        http.close()
        world.history.close()
        World.opened.clear()
        shutil.rmtree(folder)


OPTIONS = settings(
    max_examples=EXAMPLES,
    derandomize=not ASKED,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    print_blob=True,
)


@OPTIONS
@given(data=st.data())
def test_a_hostile_gitea(data: st.DataObject) -> None:
    live(data, "gitea")


def test_some_of_its_jobs_were_believed() -> None:
    assert started["gitea"] > EXAMPLES // 50, "else nothing was tried"


@OPTIONS
@given(data=st.data())
def test_a_hostile_forgejo(data: st.DataObject) -> None:
    live(data, "forgejo")


def test_some_of_the_others_were_too() -> None:
    assert started["forgejo"] > EXAMPLES // 50


@pytest.mark.parametrize("text", [text for text in NASTY if "\ud800" not in text])
def test_what_a_forge_says_stays_a_value(text: str) -> None:
    for kind in ("gitea", "forgejo"):
        job = seed.Job(
            kind=kind,
            url="https://forge.example",
            machine=MachineId("m", "00000000"),
            credentials=Credentials(1, text, text),
            labels=[Label("debian-12")],
            job_timeout=timedelta(hours=1),
            pickup_timeout=timedelta(minutes=1),
            handle=text,
        )
        line = ast.parse(seed.job_script(job)).body[0]
        assert isinstance(line, ast.Assign)
        told = json.loads(ast.literal_eval(line.value))
        assert text in (
            told["files"]["token"]
            if kind == "forgejo"
            else json.loads(told["files"][".runner"])["token"]
        )


def test_a_scope_can_not_leave_its_path() -> None:
    for text in NASTY:
        for kind in ("organisation", "repository"):
            try:
                scope = Scope.parse(f"{kind}:{text}")
            except VmrunnerError:
                continue
            assert ".." not in str(scope).split("/")
