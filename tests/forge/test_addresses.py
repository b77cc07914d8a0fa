"""Addresses that mislead: each works, or is one sentence of doctor's; and the token goes nowhere
else.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.forge.below import Proxy, gitea_below
from tests.forge.double import Double
from tests.forge.gitea import Site, until
from tests.forge.test_behaviour import Runner
from vmrunner.config import Config
from vmrunner.doctor import address, forge
from vmrunner.doctor.findings import Finding, Level
from vmrunner.errors import ForgeNotFound, ForgeUnreachable, VmrunnerError
from vmrunner.forge.http import Http
from vmrunner.forge.seam import Forge
from vmrunner.model.job import JobState, Scope, Sought
from vmrunner.model.secret import Secret

INSTANCE = Scope.parse("instance")
WORKFLOW = "on: push\njobs: {job: {runs-on: vm, steps: [{run: 'true'}]}}\n"
Client = Callable[..., Forge]
Look = Callable[..., list[Finding]]


@pytest.fixture
def look(tmp_path: Path) -> Look:
    """Doctor's findings about the forge: `look(url, token, kind="forgejo", **pool)`."""

    def call(url: str, token: str, kind: str = "forgejo", **pool: Any) -> list[Finding]:
        file = tmp_path / "token"
        file.write_text(token)
        file.chmod(0o600)
        settings = {
            "manager": "m",
            "runtime_dir": str(tmp_path),
            "forge": {"kind": kind, "url": url, "token_file": str(file)},
            "pools": {"p": {"labels": ["a"], "image": "a"} | pool},
        }
        found = list(forge.look(Config.model_validate(settings), None))
        assert all(token not in each.said + each.fix for each in found)
        assert all(each.fix for each in found if each.level is not Level.GOOD)
        return found

    return call


def of(found: list[Finding], check: str) -> list[tuple[Level, str]]:
    return [(each.level, each.said) for each in found if each.check == check]


def there(found: list[Finding], level: Level, check: str, said: str, fix: str = "") -> None:
    """One such finding, with this fix."""
    (one,) = [each for each in found if each.check == check and each.level is level]
    assert (said in one.said, fix in one.fix) == (True, True), one


def says(handler: Any, status: int, page: bytes = b"", location: str = "") -> bool:
    """An answer in the double's place, and the last one of its connection."""
    headers = {"Connection": "close"} | ({"Location": location} if location else {})
    handler.send_raw(status, page, headers)
    return True


def says_json(handler: Any, status: int, body: Any) -> bool:
    return says(handler, status, json.dumps(body).encode())


def sent_on(double: Double, to: str, status: int) -> None:
    """The forge answers everything with a redirect, `to` followed by what was asked for."""

    def fault(handler: Any) -> bool:
        return says(handler, status, location=f"{to}{handler.path}")

    double.fault = fault


def met(url: str, ca: Path | None = None) -> VmrunnerError:
    """What is wrong with the first question."""
    with closing(Http(url, Secret("t0ken"), ca)) as http, pytest.raises(ForgeUnreachable) as raised:
        address.meet(http)
    return raised.value


# ---- redirects ----


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("kind", ["forgejo", "gitea"])
def test_no_token_follows_a_redirect_to_another_host(
    client: Client, double: Double, look: Look, status: int, kind: str
) -> None:
    with Proxy("/git") as other:
        sent_on(double, other.url, status)
        api = client(double.url, double.token, kind=kind)
        for call in (
            lambda: api.jobs(INSTANCE),
            lambda: api.create_runner(INSTANCE, "vmr-m-0123abcd", ["a"]),
            lambda: api.delete_runner(INSTANCE, 1),
        ):
            with pytest.raises(ForgeUnreachable) as raised:
                call()
            assert "sends" in raised.value.sentence
            assert other.url in raised.value.sentence
            assert f'Set forge.url to "{other.url}"' in raised.value.hint
        found = look(double.url, double.token, kind)
        there(found, Level.ERROR, "forge", f"sends its version on to {other.url}", other.url)
        assert other.asked == []


def test_doctor_sends_no_token_before_it_knows_where_it_is(double: Double, look: Look) -> None:
    seen: list[str] = []

    def fault(handler: Any) -> bool:
        seen.append(handler.headers.get("Authorization", ""))
        return says(handler, 301, location=f"https://forge.example{handler.path}")

    double.fault = fault
    there(look(double.url, double.token), Level.ERROR, "forge", "sends its version on to https://")
    assert seen == [""]


@pytest.mark.parametrize(
    ("location", "said", "hint"),
    [
        ("https://forge.example/git/api/v1/version", "https://forge.example/git/api/v1", '/git"'),
        ("/git/api/v1/version", "/git/api/v1/version", '/git"'),
        ("//forge.example/api/v1/version/", "http://forge.example/api", '"http://forge.example"'),
        ("/user/login?redirect_to=%2fapi", "/user/login.", "no login page"),
        ("https://login.example/?rd=s3cret#s3cret", "https://login.example/.", "no login page"),
        ("https://a:s3cret@login.example/x", "https://login.example/x.", "no login page"),
        ("https://[::1", "Invalid URL in location header", "forge.url"),
        ("/api/v1/../../user/login", "/user/login.", "no login page"),
        ("/api/v1/version", "in a circle", "log"),
    ],
)
def test_redirects_of_all_kinds(double: Double, location: str, said: str, hint: str) -> None:
    double.fault = lambda handler: says(handler, 302, location=location)
    error = met(double.url)
    assert (said in error.sentence, hint in error.hint) == (True, True), (
        error.sentence,
        error.hint,
    )
    assert "s3cret" not in error.sentence + error.hint


def test_a_slash_that_a_proxy_puts_behind_works(client: Client, double: Double) -> None:
    double.add_job("job")

    def fault(handler: Any) -> bool:
        path, _, query = handler.path.partition("?")
        if not path.endswith("/"):
            return says(handler, 308, location=f"{path}/?{query}" if query else f"{path}/")
        handler.path = path.rstrip("/") + (f"?{query}" if query else "")
        return False

    double.fault = fault
    api = client(double.url, double.token)
    assert [job.name for job in api.jobs(INSTANCE)] == ["job"]
    made = api.create_runner(INSTANCE, "vmr-m-0123abcd", ["a"])
    assert [record.id for record in api.runners(INSTANCE)] == [made.id]
    api.delete_runner(INSTANCE, made.id)
    assert double.runners == {}


# ---- below a path, and what the forge calls itself ----


@pytest.fixture(scope="module")
def below(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A real Gitea below /git."""
    with gitea_below(tmp_path_factory.mktemp("gitea"), "/git") as site:
        yield site


def test_gitea_below_a_path(below: Site, client: Client, look: Look) -> None:
    below.organisation("org1")
    below.repository("org1", "r1", WORKFLOW)
    api = client(f"{below.url}/", below.token, kind="gitea")
    (job,) = until(lambda: api.jobs(INSTANCE), 20, "the job")
    assert (job.repository, job.state) == ("org1/r1", JobState.WAITING)
    made = api.create_runner(INSTANCE, "vmr-m-0123abcd", ["vm"])
    assert made.id in {record.id for record in api.runners(INSTANCE)}
    api.delete_runner(INSTANCE, made.id)
    found = look(below.url, below.token, "gitea")
    assert (Level.GOOD, f"the forge calls itself {below.url}, too") in of(found, "address")
    # Only that it is this host's loopback is wrong with it.
    assert [each.check for each in found if each.level is Level.ERROR] == ["address"]


def test_gitea_below_a_path_that_forge_url_lacks(below: Site, client: Client, look: Look) -> None:
    found = look(below.url.removesuffix("/git"), below.token, "gitea")
    there(found, Level.ERROR, "forge", "There is no forge at http://127.0.0.1:", "/git")
    api = client(below.url.removesuffix("/git"), below.token, kind="gitea")
    with pytest.raises(ForgeUnreachable, match="that is not the forge answered listing jobs"):
        api.jobs(INSTANCE)


@pytest.mark.long
def test_a_renamed_organisation_below_a_path(below: Site, client: Client, look: Look) -> None:
    renaming(below, client, look)


def test_gitea_that_calls_itself_otherwise(site: Site, look: Look) -> None:
    with Proxy("", site.url) as proxy:
        found = look(proxy.url, site.token, "gitea")
        said = f"The forge calls itself {site.url}, and jobs clone from there, not from {proxy.url}"
        there(found, Level.WARNING, "address", said, "ROOT_URL")
        # With such a `network` no machine is let to another port.
        found = look(proxy.url, site.token, "gitea", network="none")
        assert (Level.ERROR, f"{said}; machines of p are not let there.") in of(found, "address")
        allow = {"network": "allowlist", "allow": ["forge.example:3000"]}
        there(look(proxy.url, site.token, "gitea", **allow), Level.WARNING, "address", said)
    assert (Level.GOOD, f"the forge calls itself {site.url}, too") in of(
        look(site.url, site.token, "gitea"), "address"
    )


def calls_itself(double: Double, root: str, *, oauth: bool = True) -> None:
    """What the forge publishes of itself, with OAuth switched off only for its repositories."""
    repository = {"full_name": "org1/r1", "clone_url": f"{root}/org1/r1.git"}

    def fault(handler: Any) -> bool:
        if handler.path.startswith("/.well-known/"):
            if oauth:
                told = {"authorization_endpoint": f"{root}/login/oauth/authorize"}
                return says_json(handler, 200, told)
            return says(handler, 404, b"404 page not found")
        if handler.path.startswith("/api/v1/repos/search"):
            return says_json(handler, 200, {"ok": True, "data": [repository]})
        return False

    double.fault = fault


@pytest.mark.parametrize("oauth", [True, False])
@pytest.mark.parametrize(
    ("root", "level", "said", "fix"),
    [
        (
            "http://localhost:3000",
            Level.ERROR,
            "calls itself http://localhost:3000",
            "localhost is",
        ),
        ("http://[::1]:3000", Level.ERROR, "calls itself http://[::1]:3000", "address is ::1"),
        ("http://192.0.2.7:3000/git", Level.WARNING, "calls itself http://192.0.2.7:3000/git,", ""),
        ("http://u:p@192.0.2.7", Level.ERROR, "a user or a password", "ROOT_URL"),
    ],
)
def test_a_forge_that_calls_itself_otherwise(
    double: Double, look: Look, oauth: bool, root: str, level: Level, said: str, fix: str
) -> None:
    calls_itself(double, root, oauth=oauth)
    found = [each for each in look(double.url, double.token) if "calls itself" in each.said]
    there(found, level, "address", said, fix)


def test_a_forge_that_calls_itself_the_same_in_other_letters(double: Double, look: Look) -> None:
    calls_itself(double, f"{double.url.replace('http', 'HTTP')}//")
    found = of(look(double.url, double.token), "address")
    assert (Level.GOOD, f"the forge calls itself {double.url}, too") in found


def test_a_forge_that_does_not_tell_what_it_calls_itself(double: Double, look: Look) -> None:
    assert not [each for each in look(double.url, double.token) if "calls itself" in each.said]


# ---- renamed ----


def renaming(site: Site, client: Client, look: Look) -> None:
    """An organisation and its repository are renamed, while a job waits, runs, and ends."""
    for name in ("renamed-a", "renamed-b"):
        site.call("DELETE", f"/repos/{name}/r1", fine=(404, 301, 307))
        site.call("DELETE", f"/repos/{name}/r2", fine=(404, 301, 307))
        site.call("DELETE", f"/orgs/{name}", fine=(404, 301, 307))
    site.organisation("renamed-a")
    site.repository("renamed-a", "r1", WORKFLOW)
    api = client(site.url, site.token, kind="gitea")
    scopes = [Scope.parse("organisation:renamed-a"), Scope.parse("repository:renamed-a/r1")]
    (job,) = until(lambda: api.jobs(scopes[0]), 20, "the job")

    site.call("PATCH", "/repos/renamed-a/r1", {"name": "r2"})
    site.call("POST", "/orgs/renamed-a/rename", {"new_name": "renamed-b"})
    for scope in scopes:
        (seen,) = api.jobs(scope)
        assert (seen.key, seen.repository) == (job.key, "renamed-b/r2")
        made = api.create_runner(scope, "vmr-m-0123abcd", ["vm"])
        assert [record.id for record in api.runners(scope)] == [made.id]
        assert api.runner(scope, made.id)
        api.disable_runner(scope, made.id)
        assert [record.disabled for record in api.runners(scope)] == [True]
        api.delete_runner(scope, made.id)
        assert api.runners(scope) == []
        found = look(site.url, site.token, "gitea", scope=str(scope))
        now = "renamed-b" if scope is scopes[0] else "renamed-b/r2"
        there(found, Level.WARNING, "scope", f"{scope} was renamed", f'"{scope.kind}:{now}"')
        assert not [each for each in of(found, "token") if each[0] is Level.ERROR]
    # As a machine's binding knows it, from before.
    asked = api.job(INSTANCE, "renamed-a/r1", job.key)
    assert asked
    assert (asked.state, asked.repository) == (JobState.WAITING, "renamed-b/r2")
    site.call("DELETE", "/repos/renamed-b/r2")
    site.call("DELETE", "/orgs/renamed-b")


def test_renamed_while_it_is_used(site: Site, client: Client, look: Look) -> None:
    renaming(site, client, look)


def test_a_repository_that_is_renamed_while_its_job_runs(site: Site, client: Client) -> None:
    site.organisation("org1")
    for name in ("before", "after"):
        site.call("DELETE", f"/repos/org1/{name}", fine=(404, 301))
    site.repository("org1", "before", WORKFLOW)
    api = client(site.url, site.token, kind="gitea")
    until(lambda: api.jobs(Scope.parse("repository:org1/before")), 20, "the job")
    credentials = api.create_runner(INSTANCE, "vmr-m-0123abcd", ["vm"])
    Runner(api, credentials).take(["vm"])
    (job,) = [each for each in api.jobs(INSTANCE) if each.state is JobState.RUNNING]
    assert job.repository == "org1/before"
    site.call("PATCH", "/repos/org1/before", {"name": "after"})
    now = api.job(INSTANCE, job.repository, job.key)
    assert now
    assert (now.state, now.repository) == (JobState.RUNNING, "org1/after")
    assert api.fail_job(job, credentials, ["its machine died"])
    had = api.ended_jobs(INSTANCE, [Sought(credentials.id, ("vm",), (job,))])[credentials.id]
    assert had
    assert (had.repository, had.conclusion) == ("org1/after", "failure")
    site.call("DELETE", "/repos/org1/after")


def test_a_repository_that_is_renamed_while_its_job_runs_on_forgejo(
    client: Client, double: Double
) -> None:
    job = double.add_job("job", repository="org1/before")
    api = client(double.url, double.token)
    credentials = api.create_runner(INSTANCE, "vmr-m-0123abcd", ["debian-12"])
    runner = Runner(api, credentials)
    task = runner.take(["debian-12"])
    (seen,) = api.jobs(INSTANCE)
    job.repository = double.repositories[job.repo_id] = "org1/after"

    def fault(handler: Any) -> bool:
        if "/org1/before/" in handler.path:
            return says(handler, 301, location=handler.path.replace("/before/", "/after/"))
        return False

    double.fault = fault
    runner.finish(task)
    api.jobs(INSTANCE)
    had = api.ended_jobs(INSTANCE, [Sought(credentials.id, ("debian-12",), (seen,))])
    assert [job.conclusion for job in had.values() if job] == ["success"]


def test_scopes_that_have_their_names_still(site: Site, look: Look) -> None:
    site.organisation("org1")
    found = look(site.url, site.token, "gitea", scope=["organisation:org1", "instance", "user"])
    assert of(found, "scope") == []


def test_a_renamed_organisation_on_forgejo(client: Client, double: Double, look: Look) -> None:
    double.add_job("job", repository="new/r1")

    def fault(handler: Any) -> bool:
        if "/old/" in handler.path:
            return says(handler, 307, location=handler.path.replace("/old/", "/new/"))
        return False

    double.fault = fault
    api, scope = client(double.url, double.token), Scope.parse("organisation:old")
    assert [job.name for job in api.jobs(scope)] == ["job"]
    made = api.create_runner(scope, "vmr-m-0123abcd", ["a"])
    assert double.runners[made.id].scope == "orgs/new"
    found = look(double.url, double.token, scope="organisation:old")
    there(found, Level.WARNING, "scope", "organisation:old was renamed", '"organisation:new"')


# ---- somebody else answers ----


@pytest.mark.parametrize("status", [401, 403, 404])
@pytest.mark.parametrize("page", [b"404 page not found", b"<html>nginx</html>", b"", b"[]"])
def test_a_proxys_no_is_not_the_forges(
    client: Client, double: Double, status: int, page: bytes
) -> None:
    """Believed, it would be a record that is gone, and the end of its machine."""
    double.fault = lambda handler: says(handler, status, page)
    api = client(double.url, double.token)
    for call in (lambda: api.runner(INSTANCE, 1), lambda: api.delete_runner(INSTANCE, 1)):
        with pytest.raises(ForgeUnreachable) as raised:
            call()
        assert "is not the forge answered" in raised.value.sentence
        assert str(status) in raised.value.sentence


def test_the_forges_no_is_believed(client: Client, double: Double) -> None:
    api = client(double.url, double.token)
    assert api.runner(INSTANCE, 1) is None
    double.without_actions.add("org1/r1")
    with pytest.raises(ForgeNotFound):
        api.create_runner(Scope.parse("repository:org1/r1"), "vmr-m-0123abcd", ["a"])


@pytest.mark.parametrize(
    ("status", "page", "said"),
    [
        (200, b"<html>Log in</html>", "not JSON"),
        (200, b"[]", "something unusable"),
        (404, b"<html>nginx</html>", "There is no forge at"),
        (404, b'{"message": "no such page"}', "There is no forge at"),
        (400, b"Client sent an HTTP request to an HTTPS server.\n", "that is not the forge"),
        (401, b"<html>Who are you?</html>", "that is not the forge"),
        (407, b"", "that is not the forge"),
        (511, b"<html>captive</html>", "511"),
    ],
)
def test_what_is_no_forge(double: Double, look: Look, status: int, page: bytes, said: str) -> None:
    double.fault = lambda handler: says(handler, status, page)
    there(look(double.url, double.token), Level.ERROR, "forge", said)


def test_a_forge_that_shows_nobody_anything(double: Double, look: Look) -> None:
    def fault(handler: Any) -> bool:
        if handler.headers.get("Authorization"):
            return False
        return says_json(handler, 403, {"message": "Only signed in user is allowed to call APIs."})

    double.fault = fault
    assert [level for level, _ in of(look(double.url, double.token), "forge")] == [Level.GOOD]


@pytest.mark.parametrize(
    ("kind", "version", "said", "fix"),
    [
        ("forgejo", "28.0.0", "is Gitea 28.0.0", '"gitea"'),
        ("gitea", "15.0.9+gitea-1.22.0", "is Forgejo 15.0.9", '"forgejo"'),
    ],
)
def test_the_other_kind_of_forge(
    double: Double, look: Look, kind: str, version: str, said: str, fix: str
) -> None:
    double.version = version
    there(look(double.url, double.token, kind), Level.ERROR, "forge", said, fix)


def test_real_gitea_is_no_forgejo(site: Site, look: Look) -> None:
    there(look(site.url, site.token), Level.ERROR, "forge", "is Gitea 1.26.0", '"gitea"')


# ---- TLS, names and proxies ----


@pytest.mark.parametrize(
    ("named", "days", "said", "hint"),
    [
        ("other.example", 1, "is for another name", "a name that the certificate has"),
        ("192.0.2.7", 1, "is for another name", "a name that the certificate has"),
        ("127.0.0.1", -1, "has expired", "clock"),
    ],
)
def test_a_certificate_that_does_not_fit(
    tmp_path: Path, named: str, days: int, said: str, hint: str
) -> None:
    authority, server = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    until_then = datetime.now(UTC) + timedelta(days=days)
    authority.issue_cert(named, not_after=until_then).configure_cert(server)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with Double(tls=server) as double:
        error = met(double.url, tmp_path / "ca.pem")
        assert (said in error.sentence, hint in error.hint) == (True, True), error.sentence
        error = met(double.url)
        assert "ca_file" in error.hint, "and it is not trusted: that comes first"


def test_tls_where_there_is_none(double: Double) -> None:
    error = met(double.url.replace("http:", "https:"))
    assert ("answers without TLS" in error.sentence, "http://" in error.hint) == (True, True)


def test_no_tls_where_there_is_some() -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(server)
    with Double(tls=server) as double:
        assert met(double.url.replace("https:", "http:")).hint


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_the_environments_proxy_is_not_asked(
    double: Double, look: Look, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    with Proxy() as other:
        monkeypatch.setenv(variable, other.url)
        assert [level for level, _ in of(look(double.url, double.token), "forge")] == [Level.GOOD]
        error = met("http://127.0.0.1:9")
        assert f"without the proxy in {variable}" in error.hint
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert "proxy" not in met("http://127.0.0.1:9").hint
        assert other.asked == []


def test_another_schemes_proxy_is_not_spoken_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    assert "proxy" not in met("http://127.0.0.1:9").hint


def test_a_name_that_nobody_knows(look: Look) -> None:
    found = look("http://nowhere.invalid", "t0ken")
    assert [(each.level, each.check) for each in found] == [(Level.ERROR, "forge")]
    assert "nowhere.invalid is not known on this host" in found[0].said


def test_a_forge_on_this_hosts_loopback(double: Double, look: Look) -> None:
    found = look(double.url, double.token)
    there(found, Level.ERROR, "address", "The forge's address is 127.0.0.1: to a machine that is")
    assert of(found, "forge")[0][0] is Level.GOOD, "which it answers this host all the same"


def test_an_ipv6_address_alone(look: Look) -> None:
    there(look("http://[2001:db8::7]:9", "t0ken"), Level.ERROR, "address", "have no IPv6", "ipv6")
