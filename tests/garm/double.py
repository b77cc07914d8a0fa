"""GARM's instance URLs and a forge that registers runners, in one small server: what the provider
meets when it makes a machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

INSTANCE, REGISTRATION, RUNNER = "instance-token-7a", "registration-token-7b", "runner-token-7c"
UUID = "0a0b0c0d-0000-4000-8000-000000000001"
CONTROLLER, POOL = "11111111-2222-4333-8444-555555555555", "66666666-7777-4888-9999-000000000000"


def bootstrap(url: str, name: Any = "garm-aB1", **more: Any) -> dict[str, Any]:
    """What GARM, at this URL together with the forge, writes to CreateInstance."""
    return {
        "name": name,
        "tools": [{"os": "linux", "architecture": "amd64", "filename": "runner"}],
        "repo_url": f"{url}/org/repo",
        "callback-url": f"{url}/api/v1/callbacks",
        "metadata-url": f"{url}/api/v1/metadata",
        "instance-token": INSTANCE,
        "ssh-keys": None,
        "extra_specs": {"runner_install_template": "aGVsbG8="},
        "github-runner-group": "",
        "ca-cert-bundle": None,
        "arch": "amd64",
        "os_type": "linux",
        "flavor": "small",
        "image": "debian-12",
        "labels": [
            "debian-12",
            f"runner-controller-id={CONTROLLER}",
            f"runner-pool-id={POOL}",
        ],
        "pool_id": POOL,
        "user_data_options": {"disable_updates_on_boot": True, "extra_packages": None},
        "jit_config_enabled": False,
    } | more


class Double:
    """A context manager. `refuses` are paths (or parts of them) and the status that they get;
    `install` is the install script.
    """

    def __init__(self, registration: str = REGISTRATION, address: str = "127.0.0.1") -> None:
        self.registration, self.install = registration, "true\n"
        self.said: list[tuple[str, Any]] = []  # path, body
        self.refuses: dict[str, int] = {}
        self.during: Callable[[], object] = lambda: None  # while a runner is registered
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                raw = self.rfile.read(length)
                double.said.append((self.path, json.loads(raw) if raw else None))
                status, body = double.reply(self.path, self.headers.get("Authorization", ""))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = answer  # noqa: N815 — http.server's names

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer((address, 0), Handler)
        self.url = f"http://{address}:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def reply(self, path: str, authorization: str) -> tuple[int, bytes]:
        """Status and body."""
        for part, status in self.refuses.items():
            if part in path:
                return status, f'{{"error": "{authorization}"}}'.encode()  # tempting to show
        if path.endswith("/Register"):
            self.during()
            runner = {"id": "41", "uuid": UUID, "token": RUNNER}
            return 200, json.dumps({"runner": runner}).encode()
        if authorization != f"Bearer {INSTANCE}":
            return 401, b"{}"
        if path.endswith("/runner-registration-token/"):
            return 200, self.registration.encode()
        if path.endswith("/install-script/"):
            return 200, self.install.encode()
        return 200, b""

    def bootstrap(self, name: str = "garm-aB1", **more: Any) -> dict[str, Any]:
        """What GARM writes to CreateInstance."""
        return bootstrap(self.url, name, **more)

    def __enter__(self) -> Double:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
