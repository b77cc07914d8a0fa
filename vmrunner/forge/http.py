"""The one door to the forge's HTTP API: requests out, checked records in, every failure one of our
errors.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar

import httpx
from pydantic import Field, TypeAdapter, ValidationError

from vmrunner import __version__
from vmrunner.errors import (
    ConfigError,
    ForgeDenied,
    ForgeError,
    ForgeNotFound,
    ForgeTokenUnknown,
    ForgeUnreachable,
)
from vmrunner.model.job import Scope, ScopeKind
from vmrunner.model.secret import Secret

_TIMEOUT = httpx.Timeout(20.0, connect=10.0)  # seconds
PAGE = 50
"""Records a request; both forges' default upper bound."""
_MOST_PAGES = 1000  # a forge that ignores `page` must not keep us for ever
_LISTED = TypeAdapter(dict[str, Any])
T = TypeVar("T")
Word = Annotated[str, Field(pattern=r"^[!-~]{1,500}$")]
"""What travels on in headers and scripts: printable ASCII without blanks."""

_TOKEN_SCOPES = {
    ScopeKind.INSTANCE: "admin",
    ScopeKind.ORGANISATION: "organization",
    ScopeKind.USER: "user",
    ScopeKind.REPOSITORY: "repository",
}


def actions_path(scope: Scope) -> str:
    """Where a scope's Actions API is, on both forges."""
    prefix = {
        ScopeKind.INSTANCE: "admin",
        ScopeKind.ORGANISATION: f"orgs/{scope.name}",
        ScopeKind.USER: "user",
        ScopeKind.REPOSITORY: f"repos/{scope.name}",
    }[scope.kind]
    return f"/api/v1/{prefix}/actions"


def parse(shape: TypeAdapter[T], answer: Any, what: str) -> T:
    """Check an answer's shape; ForgeUnreachable where it isn't what both forges publish."""
    try:
        return shape.validate_python(answer)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the answer"
        raise ForgeUnreachable(
            f"The forge answered {what} with something unusable: {key}: {first['msg']}.",
            "Is forge.kind right, and no proxy in between?",
        ) from None


class Http:
    """Requests to one forge with one access token.

    Nothing is retried here: the manager's next pass is the retry.
    """

    def __init__(self, url: str, token: Secret, ca_file: Path | None = None) -> None:
        self.url = url
        self.connections = 0  # that were made until now
        verify: ssl.SSLContext | bool = True
        if ca_file is not None:
            try:
                verify = ssl.create_default_context(cafile=str(ca_file))
            except (OSError, ssl.SSLError) as error:
                raise ConfigError(
                    f"The certificates {ca_file} can't be read: {error}.",
                    "forge.ca_file wants a PEM file.",
                ) from None
        self._token = token
        # A proxy from the environment would see the token; the forge must be reachable from the
        # machines directly anyway.
        self._client = httpx.Client(
            timeout=_TIMEOUT,
            verify=verify,
            trust_env=False,
            headers={"User-Agent": f"vmrunner/{__version__}"},
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def call(
        self,
        method: str,
        path: str,
        doing: str,
        *,
        scope: Scope | None = None,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
    ) -> tuple[Any, httpx.Headers]:
        """One request to the REST API; returns the decoded JSON (None where there is none) and the
        headers.
        """
        answer = self.send(
            method,
            path,
            doing,
            headers={"Authorization": f"token {self._token.value}"},
            params=params,
            body=body,
        )
        if answer.is_success:
            return (decode(answer, doing) if answer.content else None), answer.headers
        raise self._refusal(answer, doing, scope, reading=method == "GET")

    def send(
        self,
        method: str,
        path: str,
        doing: str,
        *,
        headers: Mapping[str, str],
        params: Mapping[str, Any] | None = None,
        body: Any = None,
    ) -> httpx.Response:
        """One request as it is; ForgeUnreachable where no HTTP answer comes."""
        try:
            return self._client.request(
                method,
                self.url + path,
                headers=dict(headers),
                params=params,
                json=body,
                extensions={"trace": self._trace},
            )
        except httpx.TimeoutException:
            raise ForgeUnreachable(
                f"The forge at {self.url} did not answer {doing} within {_TIMEOUT.read:.0f} s.",
                "Is it overloaded, or a firewall in between?",
            ) from None
        except (httpx.TransportError, httpx.InvalidURL) as error:
            if "CERTIFICATE" in str(error).upper() or "SSL" in str(error).upper():
                raise ForgeUnreachable(
                    f"The TLS connection to {self.url} failed: {error}.",
                    "For a private CA, name its certificate as forge.ca_file.",
                ) from None
            raise ForgeUnreachable(
                f"The forge at {self.url} can't be reached: {error}.",
                "Check forge.url, and that the forge runs.",
            ) from None

    def _trace(self, event: str, _: object) -> None:
        if event == "connection.connect_tcp.complete":
            self.connections += 1

    def read_runner(self, scope: Scope, runner_id: int, shape: TypeAdapter[T]) -> T | None:
        """One runner's record, at the same place of both forges; None where there is none."""
        path, doing = f"{actions_path(scope)}/runners/{runner_id}", "reading a runner"
        try:
            answer, _ = self.call("GET", path, doing, scope=scope)
        except ForgeNotFound:
            return None
        return parse(shape, answer, doing)

    def delete_runner(self, scope: Scope, runner_id: int) -> None:
        """Nothing happens where there is none."""
        path = f"{actions_path(scope)}/runners/{runner_id}"
        with suppress(ForgeNotFound):
            self.call("DELETE", path, "deleting a runner", scope=scope)

    def pages(
        self,
        path: str,
        doing: str,
        shape: TypeAdapter[list[T]],
        *,
        scope: Scope,
        inside: str = "",
        **params: Any,
    ) -> list[T]:
        """Every record of a paged list; `inside` names the key that holds it, where the list isn't
        the answer itself.
        """
        return [
            record
            for page in self.each_page(path, doing, shape, scope=scope, inside=inside, **params)
            for record in page
        ]

    def each_page(
        self,
        path: str,
        doing: str,
        shape: TypeAdapter[list[T]],
        *,
        scope: Scope,
        inside: str = "",
        **params: Any,
    ) -> Iterator[list[T]]:
        """The same a page at a time, each asked for when it is wanted."""
        seen = 0
        for page in range(1, _MOST_PAGES + 1):
            answer, headers = self.call(
                "GET", path, doing, scope=scope, params={**params, "page": page, "limit": PAGE}
            )
            total = headers.get("X-Total-Count", "")
            if inside:
                listed = parse(_LISTED, answer, doing)
                total, answer = str(listed.get("total_count", "")), listed.get(inside, ...)
            records = parse(shape, [] if answer is None else answer, doing)
            yield records
            seen += len(records)
            if not records or (total.isdigit() and seen >= int(total)):
                return

    def _refusal(
        self, answer: httpx.Response, doing: str, scope: Scope | None, *, reading: bool
    ) -> ForgeError:
        said = message(answer)
        kind = scope.kind if scope else ScopeKind.INSTANCE
        wanted = f"{'read' if reading else 'write'}:{_TOKEN_SCOPES[kind]}"
        if answer.status_code == 401:
            return ForgeTokenUnknown(
                f"The forge does not know the access token (401: {said}).",
                "Make a new one and put it into the token file.",
            )
        if answer.status_code == 403:
            return ForgeDenied(
                f"The forge refuses {doing} (403: {said}).",
                f"The access token needs the scope {wanted}, and its user must own or administer "
                f"{scope}.",
            )
        if answer.status_code == 404:
            return ForgeNotFound(
                f"The forge knows nothing of {doing} (404: {said}).",
                f"Does {scope} exist, and is Actions switched on there?",
            )
        return ForgeUnreachable(
            f"The forge answered {doing} with {answer.status_code}: {said}.",
            "Its own log says more.",
        )


def decode(answer: httpx.Response, doing: str) -> Any:
    """The answer's JSON; ForgeUnreachable where it is none (a proxy's page, a truncated answer)."""
    try:
        return answer.json()
    except ValueError:
        raise ForgeUnreachable(
            f"The forge answered {doing} with something that is not JSON.",
            "Is forge.url the forge's own?",
        ) from None


def message(answer: httpx.Response) -> str:
    """What an error answer says for itself, on one short line."""
    try:
        said = answer.json().get("message") or answer.reason_phrase
    except (ValueError, AttributeError):
        said = answer.reason_phrase
    return " ".join(str(said).split())[:300]
