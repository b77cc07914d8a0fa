"""What an instance says to GARM, said from the host: its way from pending to idle, and the
registration token, which never enters a machine.

Source: GARM 0.2.1, the instance's URLs; the token for them is the instance's own.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

import httpx

from vmrunner import __version__
from vmrunner.errors import ConfigError, GarmError
from vmrunner.garm.contract import Bootstrap
from vmrunner.waiting import Deadline

_TIMEOUT = httpx.Timeout(20.0, connect=5.0)  # seconds
_PATIENCE = 10.0  # seconds for which a GARM that is not there is asked again
_AGAIN = 0.5  # seconds between two attempts


class Garm:
    """GARM, as one instance sees it."""

    def __init__(
        self, wanted: Bootstrap, *, patience: Callable[[], Deadline] = lambda: Deadline(_PATIENCE)
    ) -> None:
        self._callback, self._metadata = wanted.callback_url, wanted.metadata_url
        self._patience = patience
        self._client = httpx.Client(
            timeout=_TIMEOUT,
            verify=_trusting(wanted.ca),
            trust_env=False,  # a proxy of the environment would see the token
            headers={
                "User-Agent": f"vmrunner/{__version__}",
                "Authorization": f"Bearer {wanted.token.get_secret_value()}",
            },
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def installing(self) -> None:
        """The instance is being made; without that GARM refuses what follows."""
        self._status("installing", "vmrunner makes a machine")

    def registration_token(self) -> str:
        """Where GARM has got it from the forge. It is given once in each attempt."""
        answer = self._ask("GET", f"{self._metadata}/runner-registration-token/", "a token")
        token = answer.text.strip()
        if not token or not token.isprintable() or any(c.isspace() for c in token):
            raise GarmError("GARM answered with no registration token.", "Its own log says more.")
        return token

    def registered(self, runner_id: int, os_name: str, os_version: str) -> None:
        """The forge has its runner: this one, and the machine will be of this system."""
        about = {"os_name": os_name, "os_version": os_version, "agent_id": runner_id}
        self._ask("POST", f"{self._callback}/system-info/", "the system's name", about)
        self._status("idle", "the runner is registered", agent_id=runner_id)

    def _status(self, status: str, message: str, **more: Any) -> None:
        about = {"status": status, "message": message, **more}
        self._ask("POST", f"{self._callback.removesuffix('/status')}/status", "a status", about)

    def _ask(self, method: str, url: str, doing: str, body: Any = None) -> httpx.Response:
        """One request; again for a while where nobody took it, or GARM itself stumbles."""
        deadline = self._patience()
        while True:
            try:
                answer = self._client.request(method, url, json=body)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                fault = GarmError(
                    f"GARM can't be reached for {doing}: {_said(error)}.",
                    "Are its metadata and callback URLs right, and reached from this host?",
                )
            except httpx.HTTPError as error:
                raise GarmError(
                    f"GARM did not answer for {doing}: {_said(error)}.", "Its own log says more."
                ) from None
            else:
                if answer.is_success:
                    return answer
                fault = GarmError(
                    f"GARM answered {answer.status_code} for {doing}.",
                    "Does its controller have metadata, callback and webhook URLs? "
                    "Its own log says more.",
                )
                if answer.status_code < 500 or method == "GET":
                    raise fault
            if deadline.is_over:
                raise fault
            deadline.pause(_AGAIN)


def _said(error: httpx.HTTPError) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _trusting(ca: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca:
        try:
            context.load_verify_locations(cadata=ca)
        except ssl.SSLError as error:
            raise ConfigError(
                f"GARM's ca-cert-bundle can't be used: {error.reason}.",
                "It is what the forge's endpoint has in GARM.",
            ) from None
    return context
