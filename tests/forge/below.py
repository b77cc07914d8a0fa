"""Forges behind something: a small reverse proxy, and a real Gitea below a path of it."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import create_server
from typing import Self

import httpx

from tests.forge.gitea import Site, until

_RIGS = Path("/var/lib/gitea/app.ini")  # of the rig's Gitea
_KEPT = ("content-type", "location", "link", "x-total-count", "www-authenticate")
_INI = """WORK_PATH = {folder}
RUN_USER = root
RUN_MODE = prod
I_AM_BEING_UNSAFE_RUNNING_AS_ROOT = true
[server]
HTTP_ADDR = 127.0.0.1
HTTP_PORT = {port}
ROOT_URL = {root}/
STATIC_ROOT_PATH = {static}
DISABLE_SSH = true
OFFLINE_MODE = true
[database]
DB_TYPE = sqlite3
PATH = {folder}/gitea.db
[security]
INSTALL_LOCK = true
[actions]
ENABLED = true
[cron.update_checker]
ENABLED = false
"""


class Proxy:
    """Answers at `url` what `behind` answers, without the path of `url`; a context manager."""

    def __init__(self, path: str = "", behind: str = "") -> None:
        self.behind = behind
        self.asked: list[tuple[str, str]] = []  # path, and the Authorization that came along
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.asked.append((self.path, self.headers.get("Authorization", "")))
                if not self.path.startswith(f"{path}/"):
                    self._send(404, {"content-type": "text/html"}, b"<html>not here</html>")
                    return
                headers = {
                    name: value
                    for name, value in self.headers.items()
                    if name.lower() not in {"connection", "content-length", "accept-encoding"}
                }
                answer = httpx.request(
                    self.command,
                    proxy.behind + self.path.removeprefix(path),
                    content=body,
                    headers=headers,
                    timeout=30,
                )
                kept = {name: answer.headers[name] for name in _KEPT if name in answer.headers}
                self._send(answer.status_code, kept, answer.content)

            do_GET = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815 -- http.server's names

            def _send(self, status: int, headers: dict[str, str], raw: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if status != 204:
                    self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                if status != 204:
                    self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                """Nothing: pytest's output is for the tests."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}{path}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def gitea_below(folder: Path, path: str) -> Iterator[Site]:
    """A Gitea whose ROOT_URL has a path, and that is reached only through a proxy."""
    static = re.search(r"STATIC_ROOT_PATH = (.+)", _RIGS.read_text())
    assert static
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Proxy(path, f"http://127.0.0.1:{port}") as proxy:
        ini = folder / "app.ini"
        ini.write_text(_INI.format(folder=folder, port=port, root=proxy.url, static=static[1]))
        gitea = [f"{static[1]}/gitea", "--config", str(ini)]

        def run(*words: str) -> str:
            return subprocess.run(
                [*gitea, *words], check=True, capture_output=True, text=True, timeout=120
            ).stdout

        run("migrate")
        user = ["--username", "rig", "--email", "rig@forge.example", "--password", "a-Passw0rd"]
        run("admin", "user", "create", "--admin", "--must-change-password=false", *user)
        made = run(
            "admin",
            "user",
            "generate-access-token",
            "--username",
            "rig",
            "--raw",
            "--scopes",
            "all",
        )
        token = re.search(r"^[0-9a-f]{40}$", made, re.MULTILINE)
        assert token
        with (folder / "gitea.log").open("wb") as log:
            server = subprocess.Popen([*gitea, "web"], stdout=log, stderr=log)
        try:
            until(lambda: _answers(port), 120, "Gitea answers")
            with closing(Site(proxy.url, token[0])) as site:
                yield site
        finally:
            server.terminate()
            server.wait(60)


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/api/v1/version", timeout=10).is_success
    except httpx.TransportError:
        return False
