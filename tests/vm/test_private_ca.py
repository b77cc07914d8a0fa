"""A forge whose certificate a private authority has signed: what a job calls trusts it, in booted
machines and in clones alike.

A clone's Docker has read the system's authorities before the machine knew of this one.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.forge.gitea import URL, Site
from tests.ground import Ground
from tests.prepare import DOCKER
from tests.vm.test_jobs import up_until_done

pytestmark = pytest.mark.vm

HOST, PORT = "forge.example", 3443
SITE = f"https://{HOST}:{PORT}"
WORKFLOW = f"""\
on: [push]
jobs:
  trusts:
    runs-on: [docker]
    steps:
      - run: curl -fsS {SITE}/api/v1/version
      - run: git ls-remote {SITE}/rig/private-ca.git HEAD
      - run: python3 -c 'import urllib.request as r; print(r.urlopen("{SITE}/api/v1/version").status)'
      - run: |
          node -e 'fetch("{SITE}/api/v1/version").then(it => process.exit(it.ok ? 0 : 1))'
      - run: |
          docker pull {HOST}:{PORT}/rig/none:1 2>&1 | tee said || true
          ! grep -e x509 -e certificate said
          grep v2/token said # the registry's answer, which comes through TLS: where to get a token, which is not there
  inside:
    runs-on: [boxed]
    defaults: {{run: {{shell: sh}}}} # its image has no bash, which is the runner's default
    steps:
      - run: test "$(cat "$NODE_EXTRA_CA_CERTS" | tail -n 1)" = "-----END CERTIFICATE-----"
      - run: test "$SSL_CERT_FILE" = "$GIT_SSL_CAINFO"
"""  # noqa: E501 — a workflow keeps its lines
BOXED = (
    '[pools.boxed]\nlabels = ["boxed:docker://tests/base:1"]\nimage = "{image}"\nmemory = '
    '"1GiB"\ndisk = "6GiB"\nstart = "{start}"\n'
)


def certificates(folder: Path) -> tuple[Path, Path]:
    """An authority, and the forge's key with its certificate."""
    authority, key, leaf = (folder / name for name in ("ca.pem", "ca.key", "forge.pem"))
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    run = ["openssl", "req", "-x509", *curve]
    usage = ["-addext", "keyUsage=critical,keyCertSign"]
    subprocess.run(
        [*run, *usage, "-subj", "/CN=Tests", "-keyout", key, "-out", authority],
        check=True,
        capture_output=True,
    )
    signed = [
        "-CA",
        authority,
        "-CAkey",
        key,
        "-addext",
        f"subjectAltName=DNS:{HOST}",
        "-addext",
        "basicConstraints=CA:FALSE",
    ]
    subprocess.run(
        [*run, *signed, "-subj", f"/CN={HOST}", "-keyout", folder / "forge.key", "-out", leaf],
        check=True,
        capture_output=True,
    )
    leaf.write_text(leaf.read_text() + (folder / "forge.key").read_text())
    return authority, leaf


@contextmanager
def encrypted(leaf: Path) -> Iterator[None]:
    """Gitea's address, with TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(leaf)
    behind = urlsplit(URL)

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while chunk := source.recv(65536):
                target.sendall(chunk)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def serve(plain: socket.socket) -> None:
        with (
            suppress(OSError),
            context.wrap_socket(plain, server_side=True) as outside,
            socket.create_connection((behind.hostname or "", behind.port or 80)) as inside,
        ):
            back = threading.Thread(target=pump, args=(inside, outside), daemon=True)
            back.start()
            pump(outside, inside)
            back.join(60)

    with socket.create_server((HOST, PORT)) as listener:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(
                        target=serve, args=(listener.accept()[0],), daemon=True
                    ).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield
        finally:
            # Else it stays open as long as the thread waits at it.
            listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.long
@pytest.mark.parametrize("start", ["boot", "snapshot"])
def test_everything_trusts_it(
    site: Site, lay_ground: Callable[..., Ground], tmp_path: Path, start: str
) -> None:
    authority, leaf = certificates(tmp_path)
    more = BOXED.format(image=DOCKER, start=start)
    with encrypted(leaf):
        ground = lay_ground(
            cloned=start == "snapshot", url=SITE, image=DOCKER, labels="docker", more=more
        )
        ground.config.write_text(
            ground.config.read_text().replace("[libvirt]", f'ca_file = "{authority}"\n[libvirt]')
        )
        repository = site.repository("rig", "private-ca", WORKFLOW)
        jobs = {job["name"]: job for job in up_until_done(ground, repository, 2)}
        for job in jobs.values():
            assert job["conclusion"] == "success", repository.said(job["id"])
