"""`make page`: the page in Chromium (tests/browser), and here what it costs with 1,000 machines and
100,000 machines of history, each view beside that of a host with few; what it adds to a pass of
`serve`; and whether it answers while others hold a thousand connections open.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from tests.forge.gitea import until
from tests.scale import Cost, crowd, one_pass
from tests.world import MANIFEST
from vmrunner.cli import surveyed
from vmrunner.manager.history import History
from vmrunner.manager.logbook import Logbook
from vmrunner.manager.record import Record
from vmrunner.model.entry import Entry, Source
from vmrunner.model.machine import Ending
from vmrunner.page.seen import Writer

MACHINES, TIMES = 1000, 63
HOSTS = {"none": (10, 0), "few": (50, 50), "many": (MACHINES, 100_000)}
"""Machines that are there, and machines of the history: hardly any, as many as one page shows, or
far more.
"""
POOLS = ("linux", "big", "team", "arm", "spare")
TALKS = "vmr-m-00000030"
LOGS = (f"/machines/{TALKS}", f"/machines/{TALKS}/log")
"""The longer a log is, the longer it takes; it is bounded."""
VIEWS = (
    "/",
    "/queue",
    "/queue?page=7",
    "/machines",
    "/machines?order=oldest+first&text=1",
    "/machines?pool=linux&page=3",
    "/machines/vmr-m-00000031",
    *LOGS,
    "/history",
    "/history?text=o3%2Fr17",
    "/history?pool=arm&verdict=failure",
    "/history?text=nothing-has-this-name",
    "/plots?span=day",
    "/plots?span=week",
    "/plots?span=quarter",
    "/images",
    "/style.css",
)
MOST_MS, MOST_RATIO, MOST_PASS = 100.0, 2.0, 1.05
PASSES = 40
NOTHING = 5.0  # ms more that are no fault: so much do neighbours make of some rows
CONNECTIONS = 1000
TOKEN = "0123456789abcdef0123456789abcdef"
HEAD = f"Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
END = (b"", b"\r\n")
ENDINGS = [Ending.DONE] * 90 + [Ending.CANCELLED] * 4 + [each for each in Ending if each.is_failure]
VERDICTS = ["success"] * 8 + ["failure", "cancelled"]
CONFIG = """\
manager = "m"
state_dir = "{folder}"
runtime_dir = "{folder}/run"
[forge]
kind = "gitea"
url = "https://forge.example"
[page]
listen = "{listen}"
{more}
"""
POOL = '[pools.{name}]\nlabels = ["{name}"]\nimage = "debian-12"\nmax = {max}\n'


class Log:
    """Says it on standard error."""

    def warning(self, event: str, **fields: object) -> None:
        print(event, fields, file=sys.stderr)

    debug = info = error = warning


def made(shape: type[Any], **given: Any) -> Any:
    """A record with these values, and nothing else in it."""
    empty = {str: "", int: 0, float: 0.0, bool: False}
    return shape(
        **{
            name: given[name]
            if name in given
            else empty.get(hint, () if get_origin(hint) is tuple else None)
            for name, hint in get_type_hints(shape).items()
        }
    )


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def configure(
    folder: Path, listen: str, more: str = "", most: int = 250, pools: tuple[str, ...] = POOLS
) -> Path:
    """A configuration with the page at this address."""
    (folder / "run").mkdir(parents=True, exist_ok=True)
    path = folder / "vmrunner.toml"
    path.write_text(
        CONFIG.format(folder=folder, listen=listen, more=more)
        + "".join(POOL.format(name=name, max=most) for name in pools)
    )
    return path


def with_logs(folder: Path) -> str:
    """The keys of a page that shows logs, to whoever has the token."""
    secret = folder / "page-token"
    secret.write_text(TOKEN)
    secret.chmod(0o600)
    return f'token_file = "{secret}"\nlogs = true'


def publish(folder: Path) -> None:
    """An image with three versions; the newest was rolled back."""
    home = folder / "images" / "debian-12"
    packages = {f"package-{number}": {"version": f"1.{number}"} for number in range(300)}
    for version in ("20270101-1", "20270108-1", "20270115-1"):
        (home / version).mkdir(parents=True, exist_ok=True)
        runner = {"kind": "gitea-runner", "path": "/r", "sha256": "0", "version": "1.0.8"}
        manifest = MANIFEST | {"version": version, "packages": packages, "runner": runner}
        built = f"{version[:4]}-{version[4:6]}-{version[6:8]}T02:30:00+00:00"
        (home / version / "manifest.json").write_text(json.dumps(manifest | {"built_at": built}))
    (home / "current").unlink(missing_ok=True)
    (home / "current").symlink_to("20270108-1")
    lines = (
        ("2027-01-01T02:41:00+00:00", "", "20270101-1", "built", ""),
        ("2027-01-08T02:41:00+00:00", "20270101-1", "20270108-1", "built", ""),
        ("2027-01-15T02:41:00+00:00", "20270108-1", "20270115-1", "built", ""),
        (
            "2027-01-15T03:02:00+00:00",
            "20270115-1",
            "20270108-1",
            "rolled back automatically",
            "3 machines failed: the guest did not report within 5m",
        ),
    )
    (home / "promotions.jsonl").write_text(
        "".join(
            json.dumps(
                {"at": at, "from": before, "to": to, "why": why, "by": "vmrunner", "cause": cause}
            )
            + "\n"
            for at, before, to, why, cause in lines
        )
    )


def remember(folder: Path, rows: int, days: float = 90.0, seed: int = 1) -> None:
    """So many machines of these last days, more by day than by night."""
    dice, now = random.Random(seed), time.time()  # noqa: S311 — no secret
    History(folder / "history.sqlite", print).close()
    ends = sorted(now - 30 - days * 86400 * dice.random() for _ in range(rows))
    marks = ", ".join("?" * len(fields(Record)))
    with closing(sqlite3.connect(folder / "history.sqlite")) as database:
        database.executemany(
            f"INSERT INTO machines VALUES ({marks})",  # noqa: S608 — question marks
            (astuple(_row(dice, number, end)) for number, end in enumerate(ends)),
        )
        database.commit()


def _row(dice: random.Random, number: int, end: float) -> Record:
    ending, verdict = dice.choice(ENDINGS), dice.choice(VERDICTS)
    repository = f"o{number % 5}/r{int(dice.paretovariate(1)) % 50}"
    took, wait, start = dice.lognormvariate(5, 1), dice.lognormvariate(1, 1), dice.uniform(0.7, 3)
    begun = end - took - start
    worked = not ending.blames_pool
    return Record(
        f"vmr-m-{number:08x}",
        dice.choices(POOLS, (10, 4, 3, 2, 1))[0],
        "debian-12/20270108-1",
        job=f"test ({number % 7})" if worked else "",
        job_key=f"{number}.1",
        repository=repository if worked else "",
        made_for="test",
        made_for_repository=repository,
        url=f"https://forge.example/{repository}/actions/runs/{number}",
        sha=f"{number:040x}",
        verdict=verdict if worked else "",
        ran="yes" if worked else "no",
        queued=begun - wait,
        created=begun,
        overlay=begun + 0.02,
        started=begun + 0.3,
        up=begun + start / 2,
        seed=begun + start / 2,
        runner=begun + start if worked else 0.0,
        running=begun + start if worked else 0.0,
        job_started=begun + start if worked else 0.0,
        job_ended=end - 1 if worked else 0.0,
        exit=end - 0.6,
        destroyed=end,
        ending=ending.value,
        reason="" if ending is Ending.DONE else "the guest did not report in time",
        labels="debian-12",
    )


@contextmanager
def served(config_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The page's own process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vmrunner.page.main", "--config", str(config_path)],
        stdin=subprocess.PIPE,
        env=os.environ,
    )
    try:
        yield process
    finally:
        assert process.stdin
        process.stdin.close()
        process.wait(20)


@dataclass(frozen=True)
class Answer:
    """Of a request: when its first byte came, when its last, and what it was."""

    status: int
    first: float  # seconds
    whole: float
    body: bytes


def ask(port: int, address: str, timeout: float = 60.0) -> Answer:
    """One request on a connection of its own."""
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        request = f"GET {address} HTTP/1.1\r\n{HEAD}Connection: close\r\n\r\n"
        connection.sendall(request.encode())
        raw = connection.recv(65536)
        first = time.perf_counter() - began
        while more := connection.recv(65536):
            raw += more
    if not raw:
        raise ConnectionAbortedError
    head, _, body = raw.partition(b"\r\n\r\n")
    return Answer(int(head.split(b" ")[1]), first, time.perf_counter() - began, body)


def is_up(port: int) -> bool:
    """Whether its plots are drawn; of one that wants a token, whether it answers."""
    try:
        return b"being summed up" not in ask(port, "/plots").body
    except OSError:
        return False


def views(ports: dict[str, int]) -> dict[str, dict[str, list[float]]]:
    """Milliseconds to the first byte of each view, at each of these hosts, each time; in turn, so
    that what else the machine does hits all of them.
    """
    found: dict[str, dict[str, list[float]]] = {
        view: {kind: [] for kind in ports} for view in VIEWS
    }
    for view, times in found.items():
        for _ in range(TIMES):
            for kind, port in ports.items():
                answer = ask(port, view)
                assert answer.status in {200, 404}, view
                times[kind].append(answer.first * 1e3)
    return found


def crowded(port: int) -> dict[str, float]:
    """How long a view takes beside a thousand connections, half of which never say their request to
    its end, and half of which never read the answer.
    """
    times, refused = [], 0
    with ExitStack() as stack:
        for number in range(CONNECTIONS):
            other = stack.enter_context(socket.socket())
            other.settimeout(10)
            try:
                other.connect(("127.0.0.1", port))
                other.sendall(f"GET /history HTTP/1.1\r\n{HEAD}".encode() + END[number % 2])
            except OSError:
                refused += 1
        for _ in range(TIMES):
            with suppress(OSError):
                times.append(ask(port, "/").first * 1e3)
    return {
        "connections": CONNECTIONS,
        "refused": refused,
        "answered": len(times),
        "first_byte_ms": round(statistics.median(times), 1) if times else 0.0,
    }


def pass_and_page() -> tuple[Cost, Cost, float]:
    """A pass at rest with 1,000 machines on fakes; what it costs to write down what it saw; and how
    much more passes cost that do so when it is due than passes that never do, turn by turn.
    """
    with crowd(MACHINES, binds_jobs=False) as world:
        world.settings.runtime_dir.mkdir(parents=True, exist_ok=True)
        survey, writer = world.manager.survey(), Writer(world.settings.seen_file, Log())

        def write() -> None:
            now = world.clock.now
            writer.write(lambda: surveyed.status(world.manager, survey, now), now)

        costs = Cost.of(lambda: one_pass(world.manager)), Cost.of(write)
        work = {False: 0.0, True: 0.0}
        for turn in range(2 * PASSES):
            began = time.process_time()
            one_pass(world.manager)
            if turn % 2 and writer.is_due:
                write()
            work[bool(turn % 2)] += time.process_time() - began
        return *costs, work[True] / work[False]


def speak(folder: Path, machine: str, lines: int) -> None:
    """So many lines of its console and of its runner are kept of a machine."""
    said = (
        Entry(number / 10, source, f"line {number} of {source}, of the usual length" + "." * 30)
        for number in range(lines)
        for source in (Source.CONSOLE, Source.RUNNER)
    )
    Logbook(folder / "logs", print).keep(machine, list(said))


def fill(folder: Path, machines: int, rows: int) -> None:
    """A host with so many machines, five waiting jobs for each, and so many rows of history; where
    these are many one machine's log is as long as it may be.
    """
    publish(folder)
    remember(folder, rows)
    speak(folder, TALKS, 5000 if rows > MACHINES else 20)
    with crowd(machines, binds_jobs=False) as world:
        shown = surveyed.status(world.manager, world.manager.survey(), world.clock.now)
    Writer(folder / "run" / "m.seen.json", Log()).write(lambda: shown, time.time())


def main() -> None:
    """Measure; the last line is the figures as JSON; exits non-zero where a limit is exceeded."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    ready, ports = {}, {kind: free_port() for kind in HOSTS}
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="vmrunner-page-", dir="/dev/shm"))
        stack.callback(shutil.rmtree, folder)
        for kind, port in ports.items():
            path = configure(folder / kind, f"127.0.0.1:{port}", with_logs(folder))
            fill(folder / kind, *HOSTS[kind])
            began = time.perf_counter()
            stack.enter_context(served(path))
            until(lambda port=port: is_up(port), 120, "its plots are drawn", every=0.02)
            ready[kind] = round(time.perf_counter() - began, 1)
        measured = views(ports)
        among = crowded(ports["many"])
    times = {
        view: {kind: round(statistics.median(each), 2) for kind, each in row.items()}
        for view, row in measured.items()
    }
    alone, more, slower = pass_and_page()
    ratios = {
        kind: {view: round(row["many"] / row[kind], 2) for view, row in times.items()}
        for kind in ("none", "few")
    }
    print(f"{'first byte, ms':40}" + "".join(f"{kind:>8}" for kind in HOSTS), "  to none  to few")
    for view, row in times.items():
        said = "".join(f"{row[kind]:8.1f}" for kind in HOSTS)
        print(f"{view:40}{said}" + "".join(f"{each[view]:9.2f}" for each in ratios.values()))
    faults = [f"{view}: {row['many']} ms" for view, row in times.items() if row["many"] > MOST_MS]
    faults += [
        f"{view}: {each} times as long"
        for view, each in ratios["none"].items()
        if view not in LOGS
        and each > MOST_RATIO
        and times[view]["many"] - times[view]["none"] > NOTHING
    ]
    if slower > MOST_PASS:
        faults.append(f"a pass costs {slower:.3f} times as much with the page")
    if among["answered"] < TIMES:
        faults.append(f"among {CONNECTIONS} connections it answered {among['answered']} times")
    found = {
        "hosts": HOSTS,
        "first_byte_ms": times,
        "many_to": ratios,
        "ready_seconds": ready,
        "crowded": among,
        "pass_ms": round(alone.seconds * 1e3, 1),
        "seen_file_ms": round(more.seconds * 1e3, 1),
        "pass_with_page": round(slower, 3),
        "faults": faults,
    }
    print(json.dumps(found))
    if faults:
        sys.exit(1)


if __name__ == "__main__":
    main()
