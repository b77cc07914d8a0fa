"""The forge's address: that it is there, of the configured kind, and what it calls itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from pydantic import TypeAdapter

from vmrunner.config import Config
from vmrunner.doctor.findings import Finding, error, good, warning
from vmrunner.errors import ForgeError, ForgeUnreachable
from vmrunner.forge.http import Http, actions_path, decode, is_forges, parse
from vmrunner.model.job import Scope, ScopeKind
from vmrunner.network import forge_url
from vmrunner.network.policy import Reach
from vmrunner.support import numbers
from vmrunner.text import presentable

_VERSION = "/api/v1/version"
_SHAPE = TypeAdapter(dict[str, Any])
_NAMES = {"forgejo": "Forgejo", "gitea": "Gitea"}
_AUTHORIZE = "/login/oauth/authorize"
_OWN_URL = "Let ROOT_URL in the forge's app.ini and forge.url be one address that machines reach."


def meet(http: Http) -> str:
    """See whether a forge is there, before the token is sent to it; its version, empty where it
    tells none to strangers. Raises ForgeUnreachable.
    """
    doing = "its version"
    answer = http.send("GET", _VERSION, doing, headers={})
    if answer.status_code == 404:
        raise ForgeUnreachable(
            f"There is no forge at {http.url}: {_VERSION} is not known there.",
            'Is forge.url complete, with the path that the forge is below ("https://…/git")?',
        )
    if answer.is_success:
        return str(parse(_SHAPE, decode(answer, doing), doing).get("version", ""))
    if answer.status_code < 500 and not is_forges(answer):
        # A forge that shows nobody anything refuses here, but in its own words.
        raise ForgeUnreachable(
            f"Something at {http.url} that is not the forge answered {doing} with "
            f"{answer.status_code}.",
            "Is forge.url the forge's own, with no login page or proxy in front of it, and does "
            "its port want http:// or https://?",
        )
    return ""


def kind_of(version: str) -> str:
    """Whose version this is, "forgejo" or "gitea"; empty for what is none.

    Forgejo's version names the one of Gitea that it is like; Gitea's does not.
    """
    if not numbers(version):
        return ""
    return "forgejo" if "+gitea-" in version else "gitea"


def other_kind(kind: str, version: str, url: str) -> Iterator[Finding]:
    """Whether it is the kind that is configured, where it tells its version."""
    found = kind_of(version)
    if found and found != kind:
        yield error(
            "forge",
            f'{url} is {_NAMES[found]} {presentable(version)}, and forge.kind is "{kind}".',
            f'Set forge.kind to "{found}"; images need that one\'s runner, too.',
        )


def own(settings: Config, http: Http) -> Iterator[Finding]:
    """What the forge calls itself. Jobs clone from there, whatever forge.url is."""
    told = _told(http)
    if not told:
        return
    try:
        root = forge_url.parse(told)
    except ValueError as why:
        yield error("address", f"The forge calls itself {presentable(told)}: {why}.", _OWN_URL)
        return
    if root == settings.forge.url:
        yield good("address", f"the forge calls itself {root}, too")
        return
    said = f"The forge calls itself {root}, and jobs clone from there, not from {http.url}"
    if wrong := settings.forge_fault(root):
        yield error("address", f"{said}.", f"{wrong.sentence} {_OWN_URL}")
    elif closed := _closed(settings, root):
        yield error(
            "address", f"{said}; machines of {', '.join(closed)} are not let there.", _OWN_URL
        )
    else:
        yield warning("address", f"{said}.", _OWN_URL)


def renamed(scopes: list[Scope], http: Http) -> Iterator[Finding]:
    """Scopes that the forge has under another name now, as it tells only who asks by the old."""
    for scope in scopes:
        if scope.kind not in {ScopeKind.ORGANISATION, ScopeKind.REPOSITORY}:
            continue
        try:
            place = http.place_of(scope)
        except ForgeError:
            continue  # that is said of its token
        if place != actions_path(scope):
            name = "/".join(place.split("/")[4:-1])
            yield warning(
                "scope",
                f"{scope} was renamed at the forge: it is {presentable(name)} now.",
                f'Write scope = "{scope.kind}:{presentable(name)}": whoever takes the old name '
                "would get the pool's machines.",
            )


def _told(http: Http) -> str:
    """ROOT_URL, by what the forge publishes for OAuth, else by a repository's address; empty where
    it tells neither.
    """
    doing = "its own address"
    try:
        answer = http.send("GET", "/.well-known/openid-configuration", doing, headers={})
        if answer.is_success:
            found = str(parse(_SHAPE, decode(answer, doing), doing).get("authorization_endpoint"))
            if found.endswith(_AUTHORIZE):
                return found.removesuffix(_AUTHORIZE)
    except ForgeError:
        pass
    try:
        listed, _ = http.call("GET", "/api/v1/repos/search", doing, params={"limit": 1})
        (repository,) = parse(_SHAPE, listed, doing)["data"]
        end = f"/{repository['full_name']}.git"
        found = str(repository["clone_url"])
        return found.removesuffix(end) if found.endswith(end) else ""
    except (ForgeError, KeyError, TypeError, ValueError):
        return ""


def _closed(settings: Config, root: str) -> list[str]:
    """Pools whose machines are let to forge.url alone, where the other is elsewhere."""
    there, here = _site(root), _site(settings.forge.url)
    return [
        name
        for name, pool in settings.pools.items()
        if pool.network is not Reach.INTERNET
        and there != here
        and not any(f".{there[0]}".endswith(f".{to.name}") for to in pool.allow if to.name)
    ]


def _site(url: str) -> tuple[str | None, int]:
    return urlsplit(url).hostname, forge_url.port_of(url)
