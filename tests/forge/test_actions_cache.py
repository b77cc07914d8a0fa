"""The real client of jobs, `@actions/cache`, at our service: each line of it that is in use."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import actions_cache
from tests.caching import Served, served
from tests.unit.cache.test_service import corrupt
from vmrunner.cache.rights import Rights

pytestmark = pytest.mark.long  # Node.js and npm's packages: `python -m tests.actions_cache`
MAIN, TOPIC = "refs/heads/main", "refs/heads/topic"
SCRIPT = Path(actions_cache.__file__).with_suffix(".mjs")
JOB = Rights("org/tool", MAIN, (MAIN,))
KiB = 1024


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("cache") / "cache", {"127.0.0.1": JOB}) as running:
        yield running


@pytest.fixture(params=actions_cache.VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    # npm's registry may be out of reach where the suite runs; `make long` fetches it beforehand.
    if not (shutil.which("node") and actions_cache.folder(request.param).exists()):
        pytest.skip("`rig/rig run --outside -- python -m tests.actions_cache` installs it")
    return str(request.param)


class Job:
    """A job's workspace, and what it calls the library for."""

    def __init__(self, service: Served, version: str, folder: Path) -> None:
        self._service, self._version, self.folder = service, version, folder
        self.kept = folder / "kept"
        self.kept.mkdir(parents=True)
        self.said = ""

    def call(self, what: str, *arguments: str) -> Any:
        """What the library gives back."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "RUNNER_TEMP": str(self.folder / "temp"),
            "GITHUB_WORKSPACE": str(self.folder),
            "GITHUB_SERVER_URL": "https://forge.example",
            "GITHUB_REF": MAIN,
            "ACTIONS_CACHE_URL": f"http://127.0.0.1:{self._service.port}/",
            "ACTIONS_RUNTIME_TOKEN": "of-the-job",
        }
        command = ["node", str(SCRIPT), str(actions_cache.folder(self._version)), what]
        done = subprocess.run(
            [*command, *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        self.said = done.stderr
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def save(self, key: str) -> Any:
        return self.call("save", key, "kept")

    def restore(self, key: str, *more: str) -> Any:
        shutil.rmtree(self.kept, ignore_errors=True)
        return self.call("restore", key, "kept", *more)

    def files(self) -> dict[str, str]:
        """What is in its folder, by digests."""
        return {
            str(each.relative_to(self.kept)): hashlib.sha256(each.read_bytes()).hexdigest()
            for each in self.kept.rglob("*")
            if each.is_file()
        }


@pytest.fixture
def job(service: Served, version: str, tmp_path: Path) -> Job:
    service.allow({"127.0.0.1": JOB})
    return Job(service, version, tmp_path)


def test_saved_then_restored(job: Job, version: str) -> None:
    assert job.restore(f"{version}-none") == {"result": None}
    (job.kept / "deep").mkdir(parents=True)
    (job.kept / "deep" / "large").write_bytes(os.urandom(5000 * KiB))  # in several parts
    (job.kept / "ünïcode").write_text("x")
    before = job.files()
    saved = job.save(f"{version}-linux-1")
    assert saved["result"] > 0, job.said
    assert job.restore(f"{version}-linux-1") == {"result": f"{version}-linux-1"}
    assert job.files() == before
    assert job.restore(f"{version}-linux-2", f"{version}-linux-") == {
        "result": f"{version}-linux-1"
    }
    assert job.files() == before


def test_a_key_that_is_there_is_not_saved_again(job: Job, version: str) -> None:
    (job.kept / "file").write_text("first")
    assert job.save(f"{version}-twice")["result"] > 0
    (job.kept / "file").write_text("second")
    assert job.save(f"{version}-twice") == {"result": -1}
    assert "another job may be creating this cache" in job.said
    assert job.restore(f"{version}-twice") == {"result": f"{version}-twice"}
    assert (job.kept / "file").read_text() == "first"


@pytest.mark.parametrize(
    ("rights", "says"),
    [
        ({"127.0.0.1": Rights("org/tool", None, (MAIN,))}, "may read the cache, and not write it"),
        ({}, "No job is known to run on this machine"),
    ],
)
def test_a_job_that_may_not_write_goes_on(
    service: Served, job: Job, version: str, rights: dict[str, Rights], says: str
) -> None:
    service.allow(rights)
    (job.kept / "file").write_text("x")
    assert job.save(f"{version}-refused") == {"result": -1}
    assert says in job.said
    assert job.restore(f"{version}-refused") == {"result": None}


def test_another_branch_is_not_read(service: Served, job: Job, version: str) -> None:
    (job.kept / "file").write_text("x")
    assert job.save(f"{version}-branch")["result"] > 0
    for reads, found in (((TOPIC,), None), ((TOPIC, MAIN), f"{version}-branch")):
        service.allow({"127.0.0.1": Rights("org/tool", TOPIC, reads)})
        assert job.restore(f"{version}-branch") == {"result": found}


@pytest.mark.parametrize("at", [0, 400 * KiB])
def test_a_corrupt_entry_is_no_error_of_the_job(
    service: Served, job: Job, version: str, at: int
) -> None:
    (job.kept / "file").write_bytes(os.urandom(700 * KiB))
    key = f"{version}-corrupt-{at}"
    assert job.save(key)["result"] > 0
    corrupt(service.folder, at)
    assert job.restore(key) == {"result": None}
    assert job.files() == {}


def test_what_the_cache_does_not_take(version: str, tmp_path: Path) -> None:
    """A quota, and a disk that is full: the job goes on, and its log says why."""
    for limits, says in (
        ({"most_per_repository": 100 * KiB}, "more than the cache keeps"),
        ({"keep_free": 1 << 60}, "The host's disk has no room"),
    ):
        with served(tmp_path / f"cache-{len(says)}", {"127.0.0.1": JOB}, **limits) as running:
            job = Job(running, version, tmp_path / f"job-{len(says)}")
            (job.kept / "file").write_bytes(os.urandom(200 * KiB))
            assert job.save("k") == {"result": -1}
            assert says in job.said or "507" in job.said, job.said
            assert job.restore("k") == {"result": None}
