"""The one door to the forge's HTTP API: requests out, checked records in, every failure one of our
errors.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote, urlsplit

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
from vmrunner.forge import misled
from vmrunner.model.job import Scope, ScopeKind
from vmrunner.model.secret import Secret
from vmrunner.text import presentable

_TIMEOUT = httpx.Timeout(20.0, connect=10.0)  # seconds
PAGE = 50
"""Records a request; both forges' default upper bound."""
_MOST_HOPS = 5  # an owner and a repository that were renamed are two
_MOST_PAGES = 1000  # a forge that ignores `page` must not keep us for ever
_REFUSALS = {401, 403, 404}  # which mean something where the forge itself says them
_COUNT = re.compile("[0-9]{1,18}")
_IN_FRONT = "Is forge.url the forge's own, with no login page or proxy in front of it?"
_LISTED = TypeAdapter(dict[str, Any])
T = TypeVar("T")
Number = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""As both forges count: 64 bits, which is also what the history can keep."""
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


def token_scope(scope: Scope, *, reading: bool = False) -> str:
    """What an access token needs there, in the forges' words."""
    return f"{'read' if reading else 'write'}:{_TOKEN_SCOPES[scope.kind]}"


def parse(shape: TypeAdapter[T], answer: Any, what: str) -> T:
    """Check an answer's shape; ForgeUnreachable where it isn't what both forges publish."""
    try:
        return shape.validate_python(answer)
    except ValidationError as error:
        first = error.errors()[0]
        key = presentable(".".join(str(part) for part in first["loc"])) or "the answer"
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
        answer = self._ask(method, path, doing, scope=scope, params=params, body=body)
        return (decode(answer, doing) if answer.content else None), answer.headers

    def place_of(self, scope: Scope) -> str:
        """The path of a scope's Actions API where the forge has it now: another one than
        `actions_path` where its owner or its repository was renamed.
        """
        path, end = actions_path(scope), "/runners"
        answer = self._ask("GET", path + end, "finding a scope", scope=scope, params={"limit": 1})
        return unquote(answer.url.path).removeprefix(urlsplit(self.url).path).removesuffix(end)

    def _ask(
        self,
        method: str,
        path: str,
        doing: str,
        *,
        scope: Scope | None = None,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
    ) -> httpx.Response:
        """One request with the token that the forge grants."""
        headers = {"Authorization": f"token {self._token.value}"}
        answer = self.send(method, path, doing, headers=headers, params=params, body=body)
        if answer.is_success:
            return answer
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
        """One request as it is; ForgeUnreachable where no HTTP answer comes.

        The forge's redirects are followed within its API, whatever the method: it has done nothing
        yet. None is followed to anywhere else, where the token has no business.
        """
        url = httpx.URL(self.url + path)
        for _ in range(_MOST_HOPS):
            # A redirect that forgets what was asked for would list something else.
            asked = params if params and not url.query else None
            answer = self._request(method, url, doing, headers=headers, params=asked, body=body)
            if not answer.has_redirect_location:
                return answer
            further = misled.next_url(answer, self.url)
            if further is None:
                raise misled.elsewhere(answer, self.url, path, doing)
            url = further
        raise ForgeUnreachable(
            f"The forge at {self.url} sends {doing} in a circle.", "Its own log says more."
        )

    def _request(
        self,
        method: str,
        url: httpx.URL,
        doing: str,
        *,
        headers: Mapping[str, str],
        params: Mapping[str, Any] | None,
        body: Any,
    ) -> httpx.Response:
        try:
            return self._client.request(
                method,
                url,
                headers=dict(headers),
                params=params,
                json=body,
                extensions={"trace": self._trace},
            )
        except httpx.TimeoutException:
            raise ForgeUnreachable(
                f"The forge at {self.url} did not answer {doing} within {_TIMEOUT.read:.0f} s.",
                f"Is it overloaded, or a firewall in between?{misled.around_proxy(self.url)}",
            ) from None
        except httpx.DecodingError:  # such as a gzip that is none
            raise ForgeUnreachable(
                f"The forge answered {doing} with something that can't be unpacked.", _IN_FRONT
            ) from None
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise misled.unreachable(error, self.url) from None
        except RuntimeError:
            if not self._client.is_closed:
                raise
            raise ForgeUnreachable(
                f"The connection to {self.url} was closed before {doing}.",
                "The configuration was read again.",
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
            if not records or (_COUNT.fullmatch(total) and seen >= int(total)):
                return

    def _refusal(
        self, answer: httpx.Response, doing: str, scope: Scope | None, *, reading: bool
    ) -> ForgeError:
        said = message(answer)
        if answer.status_code in _REFUSALS and not is_forges(answer):
            # Proxies answer so while the forge is away; believed, it would be what ends machines.
            return ForgeUnreachable(
                f"Something at {self.url} that is not the forge answered {doing} with "
                f"{answer.status_code}.",
                "Does the forge run, and is forge.url its own, with the path that it is below?",
            )
        wanted = token_scope(scope or Scope(ScopeKind.INSTANCE), reading=reading)
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
            "Its own log says more."
            if answer.status_code != 400 or is_forges(answer)
            else "Does its port want https:// in forge.url?",
        )


def is_forges(answer: httpx.Response) -> bool:
    """Whether an answer that is an error is the forge's own, not that of a proxy or another
    program.
    """
    try:
        told = answer.json()
    except (ValueError, RecursionError):
        return False
    return isinstance(told, dict) and "message" in told


def decode(answer: httpx.Response, doing: str) -> Any:
    """The answer's JSON; ForgeUnreachable where it is none (a proxy's page, a truncated answer)."""
    try:
        return answer.json()
    except (ValueError, RecursionError):
        raise ForgeUnreachable(
            f"The forge answered {doing} with something that is not JSON.", _IN_FRONT
        ) from None


def message(answer: httpx.Response) -> str:
    """What an error answer says for itself, on one short line."""
    try:
        said = answer.json().get("message") or answer.reason_phrase
    except (ValueError, AttributeError, RecursionError):
        said = answer.reason_phrase
    return presentable(" ".join(str(said).split()), 300)
