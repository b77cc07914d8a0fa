"""The forge: that it answers, what the token may do and need not, whether its webhook arrives."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from email.utils import parsedate_to_datetime

from pydantic import TypeAdapter

from vmrunner.config import Config, forge_token, webhook_secret
from vmrunner.doctor import address
from vmrunner.doctor.findings import Finding, failed, good, secret, supported, warning
from vmrunner.errors import ForgeDenied, ForgeError, VmrunnerError
from vmrunner.forge.connect import connect
from vmrunner.forge.http import Http, parse
from vmrunner.forge.seam import Forge
from vmrunner.machine import identity
from vmrunner.model.job import RunnerRecord, Scope, ScopeKind
from vmrunner.model.machine import MachineId

_SKEW = 5.0  # seconds; the forge tells its time in whole ones
_VERSION = TypeAdapter(dict[str, str])
_REPOSITORIES = "/api/v1/repos/search"
_BEYOND = {
    # What only a token with more scopes than ours may read, on both forges.
    "admin": "/api/v1/admin/users?limit=1",
    "issue": "/api/v1/repos/issues/search?limit=1",
    "notification": "/api/v1/notifications/new",
    "user": "/api/v1/user",
}


def look(settings: Config, machines: set[str] | None) -> Iterator[Finding]:
    """`machines`: the names of those that there are, or None where libvirt does not say."""
    wrong = settings.forge_fault()
    if isinstance(wrong, ForgeError):  # nobody knows its name
        yield failed("forge", wrong)
        return
    if wrong:
        yield failed("address", wrong)
    readable: list[str] = []
    try:
        token = forge_token(settings.forge, readable.append)
        http = Http(settings.forge.url, token, settings.forge.ca_file)
    except VmrunnerError as why:
        yield failed("forge", why)
        return
    yield from (warning("token", sentence, "") for sentence in readable)
    with closing(http), closing(connect(settings.forge, token)) as forge:
        yield from _ask(settings, http, forge, machines)


def _ask(
    settings: Config, http: Http, forge: Forge, machines: set[str] | None
) -> Iterator[Finding]:
    try:
        address.meet(http)
        began = time.time()
        answer, headers = http.call("GET", "/api/v1/version", "its version")
        version = parse(_VERSION, answer, "its version").get("version", "?")
    except VmrunnerError as why:
        yield failed("forge", why)
        return
    mistaken = list(address.other_kind(settings.forge.kind, version, settings.forge.url))
    if mistaken:
        yield from mistaken
        return
    took = f"at {settings.forge.url} answered in {time.time() - began:.2f} s"
    yield supported("forge", settings.forge.kind, version, took)
    if date := headers.get("Date"):
        skew = began - parsedate_to_datetime(date).timestamp()
        far = warning(
            "clock",
            f"This host's clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the "
            "forge's.",
            "Run an NTP client on both.",
        )
        yield (
            far if abs(skew) > _SKEW else good("clock", "this host and the forge agree on the time")
        )
    yield from _scopes(settings, forge, machines)
    yield from address.renamed(_named(settings), http)
    yield from address.own(settings, http)
    yield from _too_wide(settings, http)
    yield from _too_narrow(settings, http)


def _named(settings: Config) -> list[Scope]:
    """Every pool's scopes."""
    return list(dict.fromkeys(scope for pool in settings.pools.values() for scope in pool.scope))


def access(forge: Forge, scope: Scope) -> tuple[int, list[RunnerRecord]]:
    """How many jobs the scope has, and its records, where the token may do there what a pool needs.

    Raises ForgeError.
    """
    jobs, records = forge.jobs(scope), forge.runners(scope)
    forge.delete_runner(scope, 0)  # there never is one: whether we may
    return len(jobs), records


def _scopes(settings: Config, forge: Forge, machines: set[str] | None) -> Iterator[Finding]:
    records: list[RunnerRecord] = []
    for scope in _named(settings):
        try:
            waiting, found = access(forge, scope)
            records += found
        except ForgeError as why:
            yield failed("token", why)
        else:
            yield good(
                "token", f"may see jobs and make runners for {scope} ({waiting} jobs there now)"
            )
    if machines is None:
        return
    host = identity.seen(settings.state_dir)
    ours = {
        record.name
        for record in records
        if (machine := MachineId.of(settings.manager, record.name)) and machine.host == host
    }
    if orphans := sorted(ours - machines):
        yield warning(
            "leftovers",
            f"Runner records without a machine: {', '.join(orphans)}.",
            "`vmrunner up` deletes them.",
        )


def _too_wide(settings: Config, http: Http) -> Iterator[Finding]:
    """Reads that the token need not be good for."""
    kinds = {scope.kind for pool in settings.pools.values() for scope in pool.scope}
    needed = {
        "admin" if ScopeKind.INSTANCE in kinds else "",
        "user" if ScopeKind.USER in kinds else "",
    }
    more = []
    for name, path in _BEYOND.items():
        if name not in needed:
            try:
                http.call("GET", path, f"what {name} may read", scope=Scope.parse("instance"))
            except ForgeError:
                continue
            more.append(name)
    if more:
        yield warning(
            "token",
            f"The token may do more than vmrunner needs: it has the scopes {', '.join(more)}.",
            "Make one with only the scopes that the README names; whoever reads its file has them "
            "all.",
        )


def _too_narrow(settings: Config, http: Http) -> Iterator[Finding]:
    """Where there is a cache the token has to read what jobs are about."""
    if settings.cache.listen_port is None:
        return
    try:
        http.call("GET", _REPOSITORIES, "looking for repositories", params={"limit": 1})
    except ForgeDenied:
        yield warning(
            "token",
            "The token may not read repositories and their runs: no job may use the cache.",
            "Make one that has the scope read:repository, too.",
        )
    except ForgeError:
        return  # it is said elsewhere


def webhook(settings: Config) -> Iterator[Finding]:
    """Whether what is configured is heard. Nothing is wrong without it: jobs wait for the poll."""
    section = settings.serve.webhook
    if section.secret_file is None:
        return
    if settings.forge.kind != "gitea":
        yield warning(
            "webhook",
            "Forgejo has no webhook for jobs that wait, so nothing will be heard.",
            "Take listen and secret_file out of [serve.webhook].",
        )
        return
    if not (yield from secret("webhook", webhook_secret, section.secret_file)):
        return
    try:
        at = datetime.fromtimestamp(settings.webhook_heard.stat().st_mtime).astimezone()
    except OSError:
        yield warning(
            "webhook",
            f"The forge's webhook was never heard at {section.listen}: jobs wait for the poll.",
            "Start a workflow while `vmrunner serve` runs; the webhook's page at the forge lists "
            "what became of the delivery.",
        )
    else:
        yield good("webhook", f"heard last at {at:%Y-%m-%d %H:%M:%S %z}")
