"""Who may look: the host that is asked for, then the token or the reverse proxy's header. And what
every answer tells the browser.

The page only shows: nothing but GET and HEAD is answered, so there is nothing that another site
could have a browser do.
"""

from __future__ import annotations

import binascii
import hmac
from base64 import b64decode
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any

from vmrunner.model.secret import Secret

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_EVERY_ANSWER = {
    b"content-security-policy": POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
}


@dataclass(frozen=True)
class Rules:
    """Who is let in; without a token and a header everybody who reaches it."""

    hosts: frozenset[str] = frozenset()  # names beside the host's addresses and localhost
    token: Secret | None = None
    user_header: str = ""

    def knows_host(self, host: str) -> bool:
        """Whether a browser was meant to ask this one.

        A name that is not ours may be a stranger's that leads here, so that the stranger's scripts
        could read what we answer (DNS rebinding); an address can't be.
        """
        name = _without_port(host).lower()
        return name == "localhost" or name in self.hosts or _is_address(name)

    def refusal(self, headers: dict[bytes, bytes]) -> HTTPStatus | None:
        """Why one with these headers is not let in; None: it is."""
        if not self.knows_host(headers.get(b"host", b"").decode("latin-1")):
            return HTTPStatus.MISDIRECTED_REQUEST
        if not self.token and not self.user_header:
            return None
        if self.user_header and headers.get(self.user_header.lower().encode(), b"").strip():
            return None
        if self.token and hmac.compare_digest(
            _offered(headers.get(b"authorization", b"")), self.token.value.encode()
        ):
            return None
        return HTTPStatus.UNAUTHORIZED if self.token else HTTPStatus.FORBIDDEN


_SAID = {
    HTTPStatus.MISDIRECTED_REQUEST: "This page is not known by that name. Add the name to "
    "page.hosts in vmrunner's configuration.",
    HTTPStatus.UNAUTHORIZED: "This page wants the token of page.token_file: as the password, with "
    "any user's name.",
    HTTPStatus.FORBIDDEN: "The reverse proxy has named no user.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This page only shows.",
}


class Guard:
    """The application behind these rules."""

    def __init__(self, app: App, rules: Rules) -> None:
        self._app, self._rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                more = [each for each in _EVERY_ANSWER.items() if each[0] not in given]
                if b"cache-control" not in given:
                    more.append((b"cache-control", b"no-store"))
                message["headers"] = [*message["headers"], *more]
            await send(message)

        refusal = self._rules.refusal(dict(scope["headers"]))
        if refusal is None and scope["method"] not in {"GET", "HEAD"}:
            refusal = HTTPStatus.METHOD_NOT_ALLOWED
        if refusal is None:
            await self._app(scope, receive, guarded)
        else:
            await _refuse(refusal, guarded)


async def _refuse(status: HTTPStatus, send: Send) -> None:
    body = f"{_SAID[status]}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
    ]
    if status is HTTPStatus.UNAUTHORIZED:
        headers.append((b"www-authenticate", b'Basic realm="vmrunner", charset="UTF-8"'))
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        headers.append((b"allow", b"GET, HEAD"))
    await send({"type": "http.response.start", "status": status.value, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _offered(header: bytes) -> bytes:
    """The token that an Authorization header brings: a Bearer's, or the password of Basic."""
    kind, _, value = header.strip().partition(b" ")
    if kind.lower() == b"bearer":
        return value.strip()
    if kind.lower() != b"basic":
        return b""
    try:
        return b64decode(value.strip(), validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        return bool(ip_address(name))
    except ValueError:
        return False
