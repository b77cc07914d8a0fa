"""`make cache CACHE="--git"`: what the checkout of a large repository costs, by the commands of
actions/checkout at real Gitea: whole, in part, and with a reference of the repository beside it, as
docs/howto/caches.md has it. The last line is JSON.

Bytes are those of loopback, requests and answers; nothing else may use the rig meanwhile.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from tests.checkout import Checkout, git, login, reference_script, template
from tests.forge.gitea import URL, Site
from tests.forge.process import GiteaProcess

OWNER, LARGE, SMALL = "checkouts", "large", "small"
MIB = 1 << 20
PLACE = Path("/dev/shm")  # a disk that others use, too, would be what is measured
EDITED = 3  # files in each commit


class History:
    """Commits on main that nobody wrote: text in `files` files in 400 folders, of which each
    further commit has a few anew.
    """

    def __init__(self, files: int) -> None:
        self._random = random.Random(files)  # noqa: S311 — no secret
        letters = "abcdefghijklmnopqrstuvwxyz_"
        words = [
            "".join(self._random.choices(letters, k=self._random.randint(2, 10)))
            for _ in range(8_000)
        ]
        self._text = " ".join(self._random.choices(words, k=600_000)).encode()
        self._files = files

    def write(self, folder: Path, commits: int) -> None:
        """Into a new bare repository."""
        git(folder, "init", "--quiet", "--bare", "--initial-branch", "main", ".")
        with subprocess.Popen(
            ["git", "fast-import", "--quiet"], cwd=folder, stdin=subprocess.PIPE
        ) as importer:
            assert importer.stdin
            for number in range(commits):
                of = range(self._files) if number == 0 else self._some()
                importer.stdin.write(
                    b"commit refs/heads/main\ncommitter t <t@forge.example> %d +0000\ndata 0\n%s\n"
                    % (1_700_000_000 + number, b"".join(self._changes(of)))
                )
        assert importer.returncode == 0

    def _some(self) -> list[int]:
        return [self._random.randrange(self._files) for _ in range(EDITED)]

    def _changes(self, of: Sequence[int]) -> Iterator[bytes]:
        for number in of:
            content = self._content()
            name = b"d%02d/e%02d/f%d.txt" % (number % 20, number // 20 % 20, number)
            yield b"M 100644 inline %s\ndata %d\n%s\n" % (name, len(content), content)

    def _content(self) -> bytes:
        """8 KiB on average, and like no other one's."""
        parts = max(1, int(self._random.lognormvariate(8.4, 1)) // 1024)
        starts = (self._random.randrange(len(self._text) - 1024) for _ in range(parts))
        return b"\n".join(self._text[at : at + 1024] for at in starts)


@dataclass(frozen=True)
class Cost:
    """Of one checkout."""

    mib: float  # from the forge and to it
    requests: float
    seconds: float
    job: float  # seconds of a processor
    forge: float  # the same

    @classmethod
    def median(cls, costs: Sequence[Cost]) -> Cost:
        """Of each figure by itself."""
        names = [field.name for field in fields(cls)]
        return cls(*(statistics.median(getattr(cost, name) for cost in costs) for name in names))

    def rounded(self) -> dict[str, float]:
        """Each figure by its name."""
        return {name: round(value, 2) for name, value in asdict(self).items()}


def received() -> int:
    """Bytes of loopback so far."""
    return int(Path("/sys/class/net/lo/statistics/rx_bytes").read_text())


def worked() -> float:
    """Seconds of a processor that ended children of this process have taken."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def wire(mbit: int) -> Iterator[None]:
    """The rig's loopback with so many Mbit/s; 0: as it is."""
    queue = ["dev", "lo", "root"]
    if mbit:
        limit = ["tbf", "rate", f"{mbit}mbit", "burst", "256kb", "latency", "50ms"]
        subprocess.run(["tc", "qdisc", "add", *queue, *limit], check=True)
    try:
        yield
    finally:
        if mbit:
            subprocess.run(["tc", "qdisc", "del", *queue], check=True)


class Bench:
    """Checkouts of one forge, in folders that go."""

    def __init__(self, token: str, folder: Path) -> None:
        self._token, self._folder, self._gitea = token, folder, GiteaProcess()

    def cost(self, url: str, commit: str, checkout: Checkout) -> Cost:
        """Of one."""
        folder, trace = self._folder / "workspace", self._folder / "trace"
        folder.mkdir()
        told = {"GIT_TRACE_CURL": str(trace), "GIT_TRACE_CURL_NO_DATA": "1"}
        traced = replace(checkout, environment={**checkout.environment, **told})
        before = received(), time.perf_counter(), worked(), self._gitea.worked()
        traced.run(url, commit, self._token, folder)
        after = received(), time.perf_counter(), worked(), self._gitea.worked()
        assert git(folder, "rev-parse", "HEAD") == commit
        requests = len(re.findall(r"Send header: (?:GET|POST) ", trace.read_text()))
        shutil.rmtree(folder)
        trace.unlink()
        size, *times = (late - early for late, early in zip(after, before, strict=True))
        return Cost(size / MIB, requests, *times)


def push(source: Path, url: str, token: str, what: str) -> None:
    """A commit, to the forge's main."""
    header = f"http.extraheader={login(token)}"
    git(source, "-c", header, "push", "--quiet", url, f"{what}:refs/heads/main")


def measure(site: Site, folder: Path, options: argparse.Namespace) -> dict[str, Cost]:
    """Everything, in turns; medians."""
    urls = {name: f"{URL}/{OWNER}/{name}" for name in (LARGE, SMALL)}
    sources = {name: folder / f"{name}.git" for name in urls}
    for name, source in sources.items():
        source.mkdir()
        size = (options.files, options.commits) if name == LARGE else (40, 40)
        History(size[0]).write(source, size[1])
        site.call("POST", f"/orgs/{OWNER}/repos", {"name": name})
    push(sources[SMALL], urls[SMALL], site.token, "main")
    push(sources[LARGE], urls[LARGE], site.token, f"main~{options.behind}")
    place = folder / "reference"
    subprocess.run(["sh", "-eu", "-c", reference_script(urls[LARGE], place)], check=True)
    push(sources[LARGE], urls[LARGE], site.token, "main")
    tips = {name: git(source, "rev-parse", "main") for name, source in sources.items()}
    beside = {"GIT_TEMPLATE_DIR": template(place)}
    ways = {
        "depth 1": (LARGE, Checkout()),
        "depth 1, one folder of twenty": (LARGE, Checkout(sparse=["d03"])),
        "depth 1, reference": (LARGE, Checkout(environment=beside)),
        "depth 0": (LARGE, Checkout(0)),
        "depth 0, blob:none": (LARGE, Checkout(0, filter="blob:none")),
        "depth 0, reference": (LARGE, Checkout(0, environment=beside)),
        "another repository": (SMALL, Checkout()),
        "another repository, reference": (SMALL, Checkout(environment=beside)),
    }
    bench = Bench(site.token, folder)
    for name in tips:
        bench.cost(urls[name], tips[name], Checkout())  # the forge has much to do after a push
    seen: dict[str, list[Cost]] = {way: [] for way in ways}
    for _ in range(options.rounds):
        for way, (name, checkout) in ways.items():
            seen[way].append(bench.cost(urls[name], tips[name], checkout))
    return {way: Cost.median(costs) for way, costs in seen.items()}


def laid(site: Site) -> Callable[[], None]:
    """An organisation of this name without repositories, and what removes it."""

    def remove() -> None:
        for name in (LARGE, SMALL):
            site.call("DELETE", f"/repos/{OWNER}/{name}", fine=(404,))

    site.organisation(OWNER)
    remove()
    return remove


def main(words: Sequence[str] | None = None) -> None:
    """Measure."""
    parser = argparse.ArgumentParser(prog='make cache CACHE="--git"', description=__doc__)
    parser.add_argument("--files", type=int, default=5_000)
    parser.add_argument("--commits", type=int, default=5_000)
    parser.add_argument("--behind", type=int, default=200, help="commits since the reference")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mbit", type=int, default=0, help="the wire to the forge, in Mbit/s")
    options = parser.parse_args(words)
    site = Site()
    folder = Path(tempfile.mkdtemp(prefix="vmrunner-git-", dir=PLACE))
    remove = laid(site)
    try:
        with wire(options.mbit):
            costs = measure(site, folder, options)
    finally:
        remove()
        site.close()
        shutil.rmtree(folder)
    print(f"{'':31}{'MiB':>8}{'requests':>10}{'seconds':>9}{'job':>8}{'forge':>8}")
    for way, cost in costs.items():
        print(
            f"{way:31}{cost.mib:8.2f}{cost.requests:10.0f}{cost.seconds:9.2f}{cost.job:8.2f}"
            f"{cost.forge:8.2f}"
        )
    print(
        json.dumps(
            {
                **vars(options),
                "checkouts": {way: cost.rounded() for way, cost in costs.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
