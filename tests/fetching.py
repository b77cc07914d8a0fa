"""What fetches packages for machines, run by hand, and a place to fetch them from."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection, HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

from vmrunner.cli.packages_files import Proxy
from vmrunner.model.packages import Ecosystem, Mirror

RESOLVER = "127.0.0.53"
NAME, ADDRESS = "127.0.0.9.nip.test", "127.0.0.9"
"""A place that only the resolver of these tests knows."""

_NOBODY = ("nobody", "nogroup")
_AS_NOBODY = [
    *("setpriv", f"--reuid={_NOBODY[0]}", f"--regid={_NOBODY[1]}", "--clear-groups"),
    *("--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"),
]
PACKAGE = "hello-cache_1_all.deb"
APT = {
    "Dir::Etc::SourceParts": "/dev/null",
    "APT::Sandbox::User": "root",
    "Acquire::Languages": "none",
    "Acquire::Check-Valid-Until": "false",
    "Acquire::Check-Date": "false",
    "Acquire::Retries": "0",
    "Acquire::AllowInsecureRepositories": "true",
}
"""What apt has to be told to take what nobody has signed."""


def free_port(address: str = "127.0.0.1") -> int:
    """A port that nobody has now."""
    with socket.create_server((address, 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


@dataclass
class Upstream:
    """A place on loopback. What is not among its `pages` is made of all that the request says, so
    that what is passed on of a request shows in what comes back.
    """

    pages: dict[str, bytes] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200
    only_pages: bool = False  # there is nothing else
    cut: bool = False  # ends in the middle
    goes_on: Event = field(default_factory=Event)  # in the middle it waits for that
    asked: list[tuple[str, str, HTTPMessage]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        """By its name."""
        return f"http://{NAME}:{self.port}"

    def paths(self) -> list[str]:
        """What it was asked for."""
        return [path for _, path, _ in self.asked]


@contextmanager
def answering(upstream: Upstream, tls: ssl.SSLContext | None = None) -> Iterator[Upstream]:
    """While it is entered, the place answers."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            upstream.asked.append((self.command, self.path, self.headers))
            size = int(self.headers.get("Content-Length") or 0)
            sent = self.rfile.read(size)
            told = f"{self.command} {self.path} {self.headers} {sent!r}".encode()
            body = upstream.pages.get(self.path, told)
            absent = upstream.only_pages and self.path not in upstream.pages
            self.send_response(404 if absent else upstream.status)
            for name, value in upstream.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            half = len(body) // 2
            with suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(body[:half])
                upstream.goes_on.wait(30)
                self.wfile.write(b"" if upstream.cut else body[half:])
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    for method in ("POST", "PUT", "DELETE", "PATCH", "HEAD"):
        setattr(Answer, f"do_{method}", Answer.do_GET)
    server = ThreadingHTTPServer((ADDRESS, upstream.port), Answer)
    upstream.port = server.server_port
    upstream.goes_on.set()
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield upstream
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def resolving() -> Iterator[None]:
    """The resolver that knows the place."""
    command = [sys.executable, "-m", "tests.net.upstream", RESOLVER]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.communicate()


def proxy(folder: Path, of: Ecosystem, upstream: str) -> Proxy:
    """The program for one kind, with all that it has in this folder; not running yet."""
    mirror = Mirror(of, upstream, "127.0.0.1", free_port())
    return Proxy(
        mirror, 100, 1024, [RESOLVER], folder / "configs", folder / "cache", folder / "run"
    )


@contextmanager
def running(made: Proxy, change: Callable[[str], str] = str) -> Iterator[Proxy]:
    """While it is entered, it runs as its unit has it: as nobody, with nothing that root may. Its
    configuration is changed so.
    """
    own = (made.folder, made.runtime / made.unit_name)
    for folder in (*own, made.config_path.parent):
        folder.mkdir(parents=True, exist_ok=True)
        for above in (folder, *folder.parents):
            if above.is_relative_to("/tmp/pytest-of-root"):
                above.chmod(0o755)
    for folder in own:
        shutil.chown(folder, *_NOBODY)
    made.config_path.write_text(change(made.config()))
    made.script_path.write_text(made.script())
    log = made.folder / "log"
    with log.open("wb") as said:
        process = subprocess.Popen(
            [*_AS_NOBODY, *made.command], stdout=said, stderr=said, start_new_session=True
        )
    try:
        while True:
            try:
                socket.create_connection((made.mirror.address, made.mirror.port), 5).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                time.sleep(0.02)
        yield made
    finally:
        with suppress(ProcessLookupError):  # a test may have killed it
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def kill(made: Proxy) -> None:
    """At once, as a host that fails does it."""
    pid = int((made.runtime / made.unit_name / "nginx.pid").read_text())
    os.killpg(pid, signal.SIGKILL)


@dataclass(frozen=True)
class Got:
    """An answer."""

    status: int
    body: bytes
    headers: HTTPMessage

    @property
    def kept(self) -> str:
        """HIT, MISS, STALE …"""
        return str(self.headers["X-Vmrunner-Cache"])


def ask(
    made: Proxy,
    target: str,
    headers: Mapping[str, str] | None = None,
    *,
    method: str = "GET",
    body: bytes = b"",
    machine: str = "127.0.0.1",
) -> Got:
    """One request, written as it is, as from a machine with this address."""
    link = HTTPConnection(made.mirror.address, made.mirror.port, 30, (machine, 0))
    try:
        link.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        host = {"Host": f"{made.mirror.address}:{made.mirror.port}"}
        for name, value in (host | dict(headers or {})).items():
            link.putheader(name, value)
        if body:
            link.putheader("Content-Length", str(len(body)))
        link.endheaders(body or None)
        answer = link.getresponse()
        return Got(answer.status, answer.read(), answer.headers)
    finally:
        link.close()


def with_a_package(upstream: Upstream, folder: Path) -> bytes:
    """Debian's package `hello-cache`, in an archive below /debian there; its content."""
    package = folder / "package/DEBIAN"
    package.mkdir(parents=True)
    control = (
        "Package: hello-cache\nVersion: 1\nArchitecture: all\nMaintainer: a <a@example.org>\n"
        "Description: a test\n"
    )
    (package / "control").write_text(control)
    subprocess.run(
        ["dpkg-deb", "-b", package.parent, folder / PACKAGE], check=True, capture_output=True
    )
    content = (folder / PACKAGE).read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    listed = (
        f"{control}Filename: pool/main/h/{PACKAGE}\nSize: {len(content)}\nSHA256: {sha256}\n\n"
    ).encode()
    digest = hashlib.sha256(listed).hexdigest()
    indices = [f"main/binary-{name}/Packages" for name in ("all", "amd64")]
    release = (
        "Origin: t\nSuite: stable\nCodename: stable\nArchitectures: all amd64\nComponents: main\n"
        "Date: Mon, 30 Nov 2026 00:00:00 UTC\nSHA256:\n"
    ) + "".join(f" {digest} {len(listed)} {index}\n" for index in indices)
    at = "/debian/dists/stable"
    upstream.pages |= {f"{at}/Release": release.encode(), f"/debian/pool/main/h/{PACKAGE}": content}
    upstream.pages |= {f"{at}/{index}": listed for index in indices}
    return content


# ---- container images ----

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG = "application/vnd.docker.container.image.v1+json"
_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


def registry(folder: Path, address: str = "127.0.0.1") -> Proxy:
    """The program that mirrors a registry; to be run with `as_registry` it is one itself."""
    made = proxy(folder, Ecosystem.OCI, "http://127.0.0.1:1")
    return replace(made, mirror=replace(made.mirror, address=address))


def as_registry(config: str) -> str:
    """The configuration of one that mirrors none."""
    return config.partition("proxy:")[0]


def digest(content: bytes) -> str:
    """As registries name what they have."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def push(
    one: Proxy,
    tag: str,
    content: bytes,
    command: Sequence[str] = (),
    *,
    machine: str = "127.0.0.1",
) -> str:
    """Docker's image `a` of one layer; its digest."""
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": list(command)},
        "rootfs": {"type": "layers", "diff_ids": [digest(gzip.decompress(content))]},
    }
    blobs = {_CONFIG: json.dumps(config).encode(), _LAYER: content}
    for blob in blobs.values():
        begun = ask(one, "/v2/library/a/blobs/uploads/", method="POST", machine=machine)
        at = str(begun.headers["Location"]).partition(f":{one.mirror.port}")[2]
        path = f"{at}&digest={digest(blob)}"
        assert ask(one, path, method="PUT", body=blob, machine=machine).status == 201
    told = [
        {"mediaType": kind, "size": len(blob), "digest": digest(blob)}
        for kind, blob in blobs.items()
    ]
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": told[0], "layers": told[1:]}
    body, headers = json.dumps(manifest).encode(), {"Content-Type": MANIFEST}
    path = f"/v2/library/a/manifests/{tag}"
    assert ask(one, path, headers, method="PUT", body=body, machine=machine).status == 201
    return digest(body)
