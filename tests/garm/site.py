"""The rig's GARM: the real one, with the rig's Gitea and vmrunner as its provider.

It is built by `rig/rig garm`; whoever wants it starts one of their own, in a folder of their own.
"""

from __future__ import annotations

import secrets
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from tests.forge.gitea import URL, Site, until

BIN = Path(__file__).with_name("bin")
PORT = 9997
PASSWORD = "a-Passw0rd-of-the-tests!"
CONFIG = """
[default]
enable_webhook_management = true
[logging]
log_file = "{folder}/garm.log"
log_level = "debug"
[metrics]
enable = false
[jwt_auth]
secret = "{secret}"
time_to_live = "8760h"
[apiserver]
bind = "{address}"
port = {port}
use_tls = false
[database]
backend = "sqlite3"
passphrase = "{passphrase}"
[database.sqlite3]
db_file = "{folder}/garm.db"
"""
PROVIDER = """
[[provider]]
name = "{name}"
provider_type = "external"
description = "of the tests"
[provider.external]
provider_executable = "{program}"
config_file = "{config}"
interface_version = "v0.1.0"
"""


class Garm:
    """One GARM on an address of the host. `providers` are programs and their configurations by
    their names.
    """

    def __init__(
        self, folder: Path, providers: Mapping[str, tuple[Path, Path]], address: str = "127.0.0.1"
    ) -> None:
        self.folder, self._token = folder, ""
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("garm.db*"):
            old.unlink()
        config = folder / "config.toml"
        text = CONFIG.format(
            folder=folder,
            secret=secrets.token_urlsafe(48),
            passphrase=_passphrase(),
            address=address,
            port=PORT,
        )
        for name, (program, own) in providers.items():
            text += PROVIDER.format(name=name, program=program, config=own)
        config.write_text(text)
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._base = f"http://{address}:{PORT}"
        self._client = httpx.Client(base_url=f"{self._base}/api/v1", timeout=30)

    def start(self) -> None:
        """Returns when it answers."""
        with (self.folder / "output.log").open("ab") as output:
            self._process = subprocess.Popen(
                [BIN / "garm", "-config", self._config], stdout=output, stderr=output
            )
        until(self._answers, 60, "GARM answers")

    def _answers(self) -> bool:
        with suppress(httpx.HTTPError):
            return self._client.get("/controller-info").status_code < 500
        return False

    def kill(self) -> None:
        """As `kill -9` does it."""
        assert self._process
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """End it."""
        if self._process and self._process.poll() is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
            self._process.kill()
        self._client.close()

    def call(self, method: str, path: str, body: Any = None, *, fine: tuple[int, ...] = ()) -> Any:
        """One request to its API; an answer that is neither a success nor in `fine` is an error."""
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        answer = self._client.request(method, path, json=body, headers=headers)
        assert answer.is_success or answer.status_code in fine, (
            f"GARM: {method} {path}: {answer.status_code} {answer.text}"
        )
        return answer.json() if answer.content else None

    def set_up(self, site: Site, backoff: int = 0) -> None:
        """An administrator, its URLs, and the rig's Gitea."""
        user = {"username": "admin", "password": PASSWORD}
        about = {"email": "admin@forge.example", "full_name": "Admin"}
        self.call("POST", "/first-run/", user | about)
        self._token = self.call("POST", "/auth/login", user)["token"]
        urls = {
            "metadata_url": f"{self._base}/api/v1/metadata",
            "callback_url": f"{self._base}/api/v1/callbacks",
            "webhook_url": f"{self._base}/webhooks",
            "minimum_job_age_backoff": backoff,
        }
        self.call("PUT", "/controller", urls)
        endpoint = {
            "name": "gitea",
            "api_base_url": URL,
            "base_url": URL,
            "use_internal_tools_metadata": True,
        }
        self.call("POST", "/gitea/endpoints", endpoint)
        credentials = {
            "name": "gitea",
            "endpoint": "gitea",
            "auth_type": "pat",
            "pat": {"oauth2_token": site.token},
        }
        self.call("POST", "/gitea/credentials", credentials)

    def organisation(self, site: Site, name: str) -> str:
        """Its id; it is made at Gitea, and its webhook there."""
        site.organisation(name)
        for old in site.call("GET", f"/orgs/{name}/hooks"):  # of an earlier GARM
            site.call("DELETE", f"/orgs/{name}/hooks/{old['id']}")
        body = {
            "name": name,
            "credentials_name": "gitea",
            "webhook_secret": secrets.token_hex(16),
            "forge_type": "gitea",
        }
        found: str = self.call("POST", "/organizations", body)["id"]
        hook = {"webhook_endpoint_type": "direct", "insecure_ssl": True}
        self.call("POST", f"/organizations/{found}/webhook", hook)
        return found

    def pool(self, organisation: str, image: str, **more: Any) -> str:
        """A pool's id."""
        body = {
            "provider_name": "vmrunner",
            "image": image,
            "flavor": "small",
            "os_type": "linux",
            "os_arch": "amd64",
            "tags": ["for-garm"],
            "enabled": True,
            "max_runners": 2,
            "min_idle_runners": 0,
            "runner_bootstrap_timeout": 20,
            "extra_specs": {},
        }
        path = f"/organizations/{organisation}/pools"
        found: str = self.call("POST", path, body | more)["id"]
        return found

    def instances(self) -> list[dict[str, Any]]:
        """All that it knows, with what has happened to each."""
        found: list[dict[str, Any]] = self.call("GET", "/instances") or []
        return found

    def close_pool(self, organisation: str, pool: str) -> None:
        """No runner more, and what is idle goes."""
        body = {"enabled": False, "min_idle_runners": 0}
        self.call("PUT", f"/organizations/{organisation}/pools/{pool}", body)
        self.dismiss()

    def dismiss(self) -> None:
        """What is idle goes. GARM refuses one that is being made; then it stays until it is asked
        again.
        """
        for each in self.instances():
            self.call("DELETE", f"/instances/{each['name']}", fine=(400, 404, 409, 500))

    def told(self) -> str:
        """Its log."""
        path = self.folder / "garm.log"
        return path.read_text(errors="replace") if path.exists() else ""


def _passphrase() -> str:
    """32 characters that GARM takes for strong."""
    return secrets.token_urlsafe(24)[:32]


def wait_for_quiet(garm: Garm, seconds: float = 180) -> None:
    """No instance is left at GARM."""
    until(lambda: not garm.instances(), seconds, "no instance at GARM", every=1)
