"""A cache that is served for tests, whose clients are addresses of 127.0.0.0/8, and a client that
says what it is told to.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

from tests.forge.gitea import until
from tests.page import free_port
from vmrunner.cache.rights import Rights

API, VERSION = "/_apis/artifactcache", "v1"


@dataclass(frozen=True)
class Answer:
    """What the service says."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        """Its body."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Client:
    """A machine with this address."""

    port: int
    address: str = "127.0.0.1"
    headers: Mapping[str, str] = field(default_factory=dict)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] | None = None,
        headers: Mapping[str, str] = {},
    ) -> Answer:
        """One request."""
        connection = HTTPConnection(
            "127.0.0.1", self.port, timeout=60, source_address=(self.address, 0)
        )
        try:
            connection.request(method, path, body, {**self.headers, **headers})
            answer: HTTPResponse = connection.getresponse()
            return Answer(answer.status, answer.read(), dict(answer.headers))
        finally:
            connection.close()

    def find(self, *keys: str, version: str = VERSION) -> str | None:
        """The key that is hit."""
        answer = self.lookup(*keys, version=version)
        return answer.json["cacheKey"] if answer.status == 200 else None

    def lookup(self, *keys: str, version: str = VERSION) -> Answer:
        """The whole answer."""
        from urllib.parse import quote

        return self.ask("GET", f"{API}/cache?keys={quote(','.join(keys))}&version={version}")

    def reserve(self, key: str, size: int | None = None, version: str = VERSION) -> Answer:
        """See the API."""
        asked = {"key": key, "version": version} | ({} if size is None else {"cacheSize": size})
        return self.ask("POST", f"{API}/caches", json.dumps(asked).encode())

    def part(self, id_: int, data: bytes, begin: int = 0) -> Answer:
        """See the API."""
        return self.ask(
            "PATCH",
            f"{API}/caches/{id_}",
            data,
            {"Content-Range": f"bytes {begin}-{begin + len(data) - 1}/*"},
        )

    def commit(self, id_: int, size: int) -> Answer:
        """See the API."""
        return self.ask("POST", f"{API}/caches/{id_}", json.dumps({"size": size}).encode())

    def save(self, key: str, data: bytes, version: str = VERSION) -> int:
        """The status by which saving ended."""
        reserved = self.reserve(key, len(data), version)
        if reserved.status != 201:
            return reserved.status
        id_ = reserved.json["cacheId"]
        for answer in (self.part(id_, data), self.commit(id_, len(data))):
            if answer.status != 200:
                return answer.status
        return 200

    def load(self, *keys: str, version: str = VERSION) -> bytes | None:
        """What is hit; None where nothing is."""
        found = self.lookup(*keys, version=version)
        if found.status != 200:
            return None
        answer = self.ask("GET", path_of(found.json["archiveLocation"]))
        return answer.body if answer.status == 200 else None


def path_of(url: str) -> str:
    """That of an address."""
    return "/" + url.split("/", 3)[3]


@dataclass
class Served:
    """A service that runs; `allow` says who is behind which address."""

    port: int
    folder: Path
    process: subprocess.Popen[bytes]
    rights_file: Path

    def client(self, address: str = "127.0.0.1", **headers: str) -> Client:
        """A machine."""
        return Client(self.port, address, headers)

    def allow(self, rights: Mapping[str, Rights]) -> None:
        """These are the machines with jobs now."""
        part = self.rights_file.with_suffix(".part")
        part.write_text(json.dumps({at: asdict(each) for at, each in rights.items()}))
        part.replace(self.rights_file)


@contextmanager
def served(
    folder: Path, rights: Mapping[str, Rights], *, port: int = 0, **limits: Any
) -> Iterator[Served]:
    """A service of this folder."""
    port, rights_file = port or free_port(), folder.with_suffix(".rights")
    command = [
        *(sys.executable, "-m", "tests.cache_service", str(folder), "127.0.0.1"),
        *(str(port), str(rights_file)),
        json.dumps(limits),
    ]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log)
    service = Served(port, folder, process, rights_file)
    service.allow(rights)
    try:
        until(lambda: _answers(service), 30, "it answers", every=0.05)
        yield service
    finally:
        process.kill()
        process.wait()
        assert process.stdin
        process.stdin.close()


def _answers(service: Served) -> bool:
    assert service.process.poll() is None, service.folder.with_suffix(".log").read_text()
    try:
        return bool(service.client().ask("GET", "/").status)
    except OSError:
        return False
