"""What fetches packages for machines, with Debian's own nginx and docker-registry: what was fetched
once is there without its upstream, and no job changes what another one gets.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import ssl
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from http.client import HTTPConnection, IncompleteRead
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme

from tests.fetching import (
    ADDRESS,
    APT,
    MANIFEST,
    NAME,
    PACKAGE,
    Upstream,
    answering,
    as_registry,
    ask,
    digest,
    kill,
    proxy,
    push,
    registry,
    resolving,
    running,
    with_a_package,
)
from tests.forge.gitea import until
from vmrunner.cli.packages_files import Proxy
from vmrunner.machine import packages
from vmrunner.model.packages import Ecosystem

pytestmark = pytest.mark.long  # `make long` has these programs
NGINX = [each for each in Ecosystem if each is not Ecosystem.OCI]
STAYS = {
    Ecosystem.APT: "/debian/pool/main/h/hello/hello_2.10-3_amd64.deb",
    Ecosystem.NPM: "/@scope%2fname/-/name-1.2.3.tgz",
    Ecosystem.PYPI: "/files/packages/0a/1b/six-1.16.0.tar.gz",
    Ecosystem.GO: "/example.com/!module/@v/v1.2.3.zip",
    Ecosystem.CRATES: "/files/crates/name/1.2.3/download",
    Ecosystem.MAVEN: "/maven2/org/example/name/1.2.3/name-1.2.3.jar",
}
CHANGES = {
    Ecosystem.APT: "/debian/dists/stable/InRelease",
    Ecosystem.NPM: "/@scope%2fname",
    Ecosystem.PYPI: "/simple/six/",
    Ecosystem.GO: "/example.com/!module/@v/list",
    Ecosystem.CRATES: "/na/me/name",
    Ecosystem.MAVEN: "/maven2/org/example/name/maven-metadata.xml",
}
HOSTILE = {
    "Host": "127.0.0.66",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-For": "192.0.2.66",
    "X-Forwarded-Proto": "gopher",
    "Forwarded": "host=evil.example",
    "X-Original-URL": "/evil",
    "X-Rewrite-URL": "/evil",
    "X-HTTP-Method-Override": "DELETE",
    "Authorization": "Basic ZXZpbDpldmls",
    "Proxy-Authorization": "Basic ZXZpbDpldmls",
    "Cookie": "session=evil",
    "Range": "bytes=1-2",
    "If-Range": '"evil"',
    "If-None-Match": "*",
    "If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT",
    "Accept": "text/evil",
    "Accept-Encoding": "br, evil",
    "Accept-Language": "tlh",
    "User-Agent": "evil/1.0",
    "Referer": "http://evil.example/",
    "Origin": "http://evil.example",
    "Cache-Control": "no-store, no-cache, max-age=0",
    "Pragma": "no-cache",
    "Connection": "close, X-Evil",
    "X-Evil": "1",
    "Expect": "evil",
    "Via": "1.1 evil",
}
"""What a job may send along, in the hope that another one gets what that makes of the answer."""


@pytest.fixture(scope="module", autouse=True)
def _resolver() -> Iterator[None]:
    for program in ("nginx", "docker-registry"):
        assert shutil.which(program), f"{program} is missing here: `make long` installs it"
    with resolving():
        yield


def made(folder: Path, kind: Ecosystem, upstream: Upstream) -> Proxy:
    return proxy(folder, kind, upstream.url)


def target(kind: Ecosystem, path: str) -> str:
    """As a client writes it: apt's to a proxy has the host."""
    return f"http://{NAME}{path}" if kind is Ecosystem.APT else path


def asked(kind: Ecosystem, upstream: Upstream) -> dict[str, str]:
    return {"Host": f"{NAME}:{upstream.port}"} if kind is Ecosystem.APT else {}


def local_files(upstream: Upstream) -> Callable[[str], str]:
    """Files come from the same place as their index here."""

    def change(config: str) -> str:
        for files in filter(None, (each.files for each in Ecosystem)):
            config = config.replace(files, upstream.url)
            config = config.replace(urlsplit(files).netloc, urlsplit(upstream.url).netloc)
        return config

    return change


@pytest.mark.parametrize("kind", NGINX)
def test_what_was_fetched_once_is_there_without_the_upstream(
    tmp_path: Path, kind: Ecosystem
) -> None:
    upstream = Upstream(headers={"Cache-Control": "private, no-store", "Set-Cookie": "a=b"})
    with ExitStack() as stack:
        place = stack.enter_context(ExitStack())
        place.enter_context(answering(upstream))
        one = stack.enter_context(running(made(tmp_path, kind, upstream), local_files(upstream)))
        first = [
            ask(one, target(kind, path), asked(kind, upstream))
            for path in (STAYS[kind], CHANGES[kind])
        ]
        assert [(each.status, each.kept) for each in first] == [(200, "MISS")] * 2
        place.close()
        again = [
            ask(one, target(kind, path), asked(kind, upstream))
            for path in (STAYS[kind], CHANGES[kind])
        ]
        assert [each.body for each in again] == [each.body for each in first]
        assert {each.kept for each in again} <= {"HIT", "STALE"}
        unknown = ask(one, target(kind, "/another"), asked(kind, upstream))
        assert unknown.status == 502
    assert len(upstream.asked) == 2
    for got in (*first, *again):
        assert got.headers["Set-Cookie"] is None


def another(path: str, number: int) -> str:
    """The path of another thing, which is kept for as long."""
    if "1.2.3" in path:
        return path.replace("1.2.3", f"1.2.{number}")
    head = "/files" if path.startswith("/files/") else ""
    return f"{head}/{number}{path.removeprefix(head)}"


def changed(one: Proxy, other: Proxy, kind: Ecosystem, upstream: Upstream, path: str) -> set[str]:
    """The headers after which an honest machine gets something else than at the other, which had no
    machine before.
    """
    found = set()
    for number, (name, value) in enumerate(HOSTILE.items()):
        at = target(kind, another(path, number))
        ask(one, at, asked(kind, upstream) | {name: value})
        honest = [ask(each, at, asked(kind, upstream)) for each in (one, other)]
        assert honest[1].status == 200
        if (honest[0].status, honest[0].body) != (honest[1].status, honest[1].body):
            found.add(name)
    return found


@pytest.mark.parametrize("kind", NGINX)
def test_no_header_of_a_job_changes_what_another_one_gets(tmp_path: Path, kind: Ecosystem) -> None:
    upstream = Upstream()
    with answering(upstream):
        one, other = (made(tmp_path / name, kind, upstream) for name in ("one", "other"))
        with running(one, local_files(upstream)), running(other, local_files(upstream)):
            for path in (STAYS[kind], CHANGES[kind]):
                assert changed(one, other, kind, upstream, path) == set()


def test_the_same_shows_what_is_passed_on(tmp_path: Path) -> None:
    """So the test above can fail: a proxy as many have it."""
    upstream, kind = Upstream(), Ecosystem.NPM
    passes = ("proxy_pass_request_headers off;", "proxy_pass_request_headers on;")
    with answering(upstream):
        one, other = (made(tmp_path / name, kind, upstream) for name in ("one", "other"))
        with running(one, lambda text: text.replace(*passes)), running(other):
            found = changed(one, other, kind, upstream, STAYS[kind])
    assert {"X-Forwarded-Host", "Cookie", "Authorization", "X-Original-URL", "X-Evil"} <= found


@pytest.mark.parametrize("kind", NGINX)
def test_queries_other_methods_and_bodies(tmp_path: Path, kind: Ecosystem) -> None:
    upstream = Upstream()
    with answering(upstream), running(made(tmp_path, kind, upstream), local_files(upstream)) as one:
        host = asked(kind, upstream)
        evil = ask(one, target(kind, f"{STAYS[kind]}?evil=1"), host)
        honest = ask(one, target(kind, STAYS[kind]), host)
        assert (evil.body, b"evil" in honest.body) == (honest.body, False)
        body = ask(one, target(kind, CHANGES[kind]), host, body=b"evil")
        honest = ask(one, target(kind, CHANGES[kind]), host)
        assert (body.body, b"evil" in honest.body) == (honest.body, False)
        before = len(upstream.asked)
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PURGE", "CONNECT", "EVIL"):
            got = ask(one, target(kind, STAYS[kind]), host, method=method, body=b"evil")
            assert got.status in {400, 405}, method
        assert len(upstream.asked) == before
        assert ask(one, target(kind, STAYS[kind]), host).body != b""
        assert ask(one, target(kind, STAYS[kind]), host, method="HEAD").status == 200
        assert len(upstream.asked) == before


@pytest.mark.parametrize("kind", NGINX)
def test_no_other_place_is_asked(tmp_path: Path, kind: Ecosystem) -> None:
    upstream, other = Upstream(), Upstream()
    with ExitStack() as stack:
        for each in (upstream, other):
            stack.enter_context(answering(each))
        one = stack.enter_context(running(made(tmp_path, kind, upstream), local_files(upstream)))
        place = f"{ADDRESS}:{other.port}"
        for path, headers in (
            (f"http://{place}/x", {"Host": place}),
            ("/x", {"Host": place}),
            (f"//{place}/x", {}),
            (f"/@{place}/x", {}),
            (f"http://{place}@127.0.0.1/x", {}),
        ):
            ask(one, path, headers)
        # One that names nobody, as old programs do.
        ask(one, "/x", {"Host": ""})
    assert other.asked == []
    if kind is Ecosystem.APT:
        assert upstream.asked == []


@pytest.mark.parametrize("kind", NGINX)
def test_errors_and_halves_are_not_kept(tmp_path: Path, kind: Ecosystem) -> None:
    upstream = Upstream()
    with answering(upstream), running(made(tmp_path, kind, upstream), local_files(upstream)) as one:
        host, path = asked(kind, upstream), target(kind, STAYS[kind])
        for status in (404, 410, 302, 301, 500, 206):
            upstream.status = status
            upstream.headers = {"Location": "/elsewhere"} if status in {301, 302} else {}
            assert ask(one, path, host).status == status
        assert "/elsewhere" not in upstream.paths()
        upstream.status, upstream.headers, upstream.cut = 200, {}, True
        with pytest.raises(IncompleteRead):
            ask(one, path, host)
        upstream.cut = False
        whole = ask(one, path, host)
        assert (whole.status, whole.kept) == (200, "MISS")
        assert ask(one, path, host).kept == "HIT"


def test_killed_in_the_middle(tmp_path: Path) -> None:
    upstream, path = Upstream(), STAYS[Ecosystem.GO]
    whole = upstream.pages[path] = os.urandom(1 << 20)
    with ExitStack() as stack:
        stack.enter_context(answering(upstream))
        one = made(tmp_path, Ecosystem.GO, upstream)
        upstream.goes_on.clear()
        with running(one):
            link = stack.enter_context(closing(HTTPConnection("127.0.0.1", one.mirror.port)))
            link.request("GET", path)
            answer = link.getresponse()
            assert answer.read(1000) == whole[:1000]
            kill(one)
            with pytest.raises((IncompleteRead, ConnectionResetError)):
                answer.read()
        upstream.goes_on.set()
        with running(one):
            for kept in ("MISS", "HIT"):
                got = ask(one, path)
                assert (got.kept, got.body == whole) == (kept, True)


def test_a_full_disk(tmp_path: Path) -> None:
    """Who fetches is cut off, and sees it; nothing of that is kept."""
    upstream, path = Upstream(), STAYS[Ecosystem.GO]
    whole = upstream.pages[path] = os.urandom(1 << 20)
    with ExitStack() as stack:
        stack.enter_context(answering(upstream))
        one = made(tmp_path, Ecosystem.GO, upstream)
        one.folder.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", one.folder], check=True)
        stack.callback(subprocess.run, ["umount", one.folder], check=True)
        stack.enter_context(running(one, lambda text: text.replace("min_free=1024m", "")))
        other = one.folder / "other"
        other.write_bytes(bytes(3 << 20))
        with pytest.raises(IncompleteRead):
            ask(one, path)
        other.unlink()
        for kept in ("MISS", "HIT"):
            got = ask(one, path)
            assert (got.kept, got.body == whole) == (kept, True)


def test_no_machine_keeps_another_one_out(tmp_path: Path) -> None:
    upstream, greedy = Upstream(), "127.0.0.2"
    fewer = ("limit_conn machines 128;", "limit_conn machines 8;")
    with ExitStack() as stack:
        stack.enter_context(answering(upstream))
        one = made(tmp_path, Ecosystem.GO, upstream)
        stack.enter_context(running(one, lambda text: text.replace(*fewer)))
        ask(one, "/known")
        upstream.goes_on.clear()
        stack.callback(upstream.goes_on.set)
        for number in range(8):
            link = HTTPConnection("127.0.0.1", one.mirror.port, 30, (greedy, 0))
            stack.callback(link.close)
            link.request("GET", another(STAYS[Ecosystem.GO], number))
        while len(upstream.asked) < 9:
            time.sleep(0.02)
        assert ask(one, "/known", machine=greedy).status == 503
        assert ask(one, "/known").status == 200


@pytest.mark.parametrize("signer", ["known", "a stranger"])
def test_who_answers_for_the_upstream_has_to_show_who_it_is(tmp_path: Path, signer: str) -> None:
    ours, strangers, upstream = trustme.CA(), trustme.CA(), Upstream()
    ours.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = (ours if signer == "known" else strangers).issue_cert(NAME)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(tls)
    with answering(upstream, tls):
        url = upstream.url.replace("http:", "https:")
        known = str(tmp_path / "ca.pem")
        one = replace(proxy(tmp_path, Ecosystem.GO, url), certificates=known)
        with running(one):
            got = ask(one, STAYS[Ecosystem.GO])
    assert (got.status, len(upstream.asked)) == ((200, 1) if signer == "known" else (502, 0))


def test_npm_in_short_and_in_full(tmp_path: Path) -> None:
    upstream, short = Upstream(), {"Accept": "application/vnd.npm.install-v1+json; q=1.0, */*"}
    with answering(upstream), running(made(tmp_path, Ecosystem.NPM, upstream)) as one:
        got = [ask(one, "/name", each).body for each in (short, {}, short, {})]
        assert got[0] != got[1]
        assert got[:2] == got[2:]
        assert b"install-v1" in got[0]
        audit = "/-/npm/v1/security/advisories/bulk"
        said = [ask(one, audit, method="POST", body=each).body for each in (b"{1}", b"{2}")]
        assert [b"{1}" in said[0], b"{2}" in said[1]] == [True, True], "not kept"
        # A question, and nothing that would change something there.
        before = len(upstream.asked)
        for method in ("PUT", "DELETE", "PATCH", "GET"):
            assert ask(one, audit, method=method, body=b"{3}").status == 405
        assert len(upstream.asked) == before


def test_the_files_of_pypis_index_come_from_here(tmp_path: Path) -> None:
    upstream = Upstream()
    with (
        answering(upstream),
        running(made(tmp_path, Ecosystem.PYPI, upstream), local_files(upstream)) as one,
    ):
        upstream.headers = {"Content-Type": "text/html"}
        upstream.pages["/simple/six/"] = f'<a href="{upstream.url}/packages/a/six.whl#x">'.encode()
        assert ask(one, "/simple/six/").body == b'<a href="/files/packages/a/six.whl#x">'
        ask(one, "/files/packages/a/six.whl")
        assert upstream.paths() == ["/simple/six/", "/packages/a/six.whl"]


def test_crates_come_from_here(tmp_path: Path) -> None:
    """Wherever the index says that they are: beside it, or where the public ones are."""
    upstream = Upstream(headers={"Content-Type": "text/plain"})
    with answering(upstream):
        one = proxy(tmp_path, Ecosystem.CRATES, f"{upstream.url}/index")
        files = one.mirror.of.files
        upstream.pages["/index/config.json"] = (
            f'{{"dl": "{files}/crates", "own": "{upstream.url}/dl", "api": "https://a.example"}}'
        ).encode()
        upstream.pages["/index/config.json/config.json"] = files.encode()
        with running(one):
            here = f"http://127.0.0.1:{one.mirror.port}"
            for kept in ("MISS", "HIT"):
                got = ask(one, "/index/config.json", {"Accept-Encoding": "gzip"})
                assert (got.status, got.kept) == (200, kept)
                assert json.loads(got.body) == {
                    "dl": f"{here}/files/crates",
                    "own": f"{here}/dl",
                    "api": "https://a.example",
                }
            assert upstream.asked[-1][2]["Accept-Encoding"] == "identity"
            # Nothing else is changed, and the list of a crate comes short.
            assert ask(one, "/index/config.json/config.json").body == files.encode()
            upstream.headers["Content-Encoding"] = "gzip"
            upstream.pages["/index/na/me/name"] = packed = gzip.compress(files.encode())
            short = ask(one, "/index/na/me/name", {"Accept-Encoding": "gzip"})
            assert (short.body, upstream.asked[-1][2]["Accept-Encoding"]) == (packed, "gzip")
            assert ask(one, "/index/na/me/name").body == files.encode()


STAY = {
    Ecosystem.CRATES: (
        "/dl/name/1.2.3/download",
        "/dl/name/1.2.3-rc.1+b/download",
        "/dl/name/name-1.2.3.crate",
    ),
    Ecosystem.MAVEN: (
        "/org/example/name/1.2.3/name-1.2.3.pom",
        "/org/example/name/1.2.3/name-1.2.3-sources.jar.sha1",
        "/org/example/a.b/Final/a.b-Final.tar.gz",
        "/name/r09/name-r09.jar.asc",
    ),
}
PASS = {
    Ecosystem.CRATES: ("/config.json", "/1/a", "/do/wn/download", "/cr/at/crate", "/3/d/dl-"),
    Ecosystem.MAVEN: (
        "/org/example/name/maven-metadata.xml",
        "/org/example/name/maven-metadata.xml.sha1",
        "/org/example/name/1.2-SNAPSHOT/maven-metadata.xml",
        "/org/example/name/1.2-SNAPSHOT/name-1.2-SNAPSHOT.jar",
        "/org/example/name/1.2-SNAPSHOT/name-1.2-20261130.000000-1.jar",
        "/org/example/name/1.2/other-1.2.jar",
        "/archetype-catalog.xml",
    ),
}


@pytest.mark.parametrize("kind", STAY)
def test_versions_stay_and_what_lists_them_does_not(tmp_path: Path, kind: Ecosystem) -> None:
    soon = ("proxy_cache_valid 200 1m;", "proxy_cache_valid 200 1s;")
    upstream = Upstream()
    with (
        answering(upstream),
        running(made(tmp_path, kind, upstream), lambda text: text.replace(*soon)) as one,
    ):
        paths = [*STAY[kind], *PASS[kind]]
        for path in paths:
            assert ask(one, path).status == 200
        time.sleep(2.1)
        kept = {path: ask(one, path).kept for path in paths}
    assert {path for path, how in kept.items() if how == "HIT"} == set(STAY[kind])


def test_what_may_change_is_asked_for_again(tmp_path: Path) -> None:
    """A minute later; here after a second."""
    upstream = Upstream(headers={"Last-Modified": "Mon, 30 Nov 2026 00:00:00 GMT"})
    upstream.pages |= {"/m/@v/list": b"v1.0.0\n", "/m/@v/master.info": b"{1}"}
    soon = ("proxy_cache_valid 200 1m;", "proxy_cache_valid 200 1s;")
    with ExitStack() as stack:
        stack.enter_context(answering(upstream))
        one = made(tmp_path, Ecosystem.GO, upstream)
        stack.enter_context(running(one, lambda text: text.replace(*soon)))
        for path in upstream.pages:
            got = ask(one, path)
            assert (got.status, got.kept) == (200, "MISS")
        time.sleep(2.1)
        upstream.pages |= {"/m/@v/list": b"v1.0.1\n", "/m/@v/master.info": b"{2}"}
        assert ask(one, "/m/@v/list").body == b"v1.0.1\n"
        assert ask(one, "/m/@v/master.info").body == b"{2}", "a branch is no version"
        assert upstream.asked[-1][2]["If-Modified-Since"] == upstream.headers["Last-Modified"]


# ---- real clients ----


def told(one: Proxy, folder: Path, path: str) -> Path:
    """The file that a machine has about this."""
    file = folder / path.strip("~/").replace("/", "-")
    file.write_text(packages.files([one.mirror])[path])
    return file


def test_real_apt(tmp_path: Path) -> None:
    upstream = Upstream(only_pages=True)
    content = with_a_package(upstream, tmp_path)

    def fetch(machine: Path, one: Proxy) -> bytes:
        for name in ("state/lists/partial", "cache/archives/partial"):
            (machine / name).mkdir(parents=True)
        conf = told(one, machine, "/etc/apt/apt.conf.d/95vmrunner-packages")
        (machine / "sources.list").write_text(
            f"deb [trusted=yes] http://{NAME}:{upstream.port}/debian stable main\n"
        )
        settings = APT | {
            "Dir::State": str(machine / "state"),
            "Dir::Cache": str(machine / "cache"),
            "Dir::Etc::SourceList": str(machine / "sources.list"),
        }
        options = [word for each in settings.items() for word in ("-o", f"{each[0]}={each[1]}")]
        for command in (["update"], ["download", "hello-cache"]):
            done = subprocess.run(
                ["apt-get", *options, *command],
                cwd=machine,
                env=os.environ | {"APT_CONFIG": str(conf)},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stdout + done.stderr
        return (machine / PACKAGE).read_bytes()

    with answering(upstream):
        one = proxy(tmp_path / "host", Ecosystem.APT, f"{upstream.url}/debian")
        with running(one):
            assert fetch(tmp_path / "one", one) == content
            upstream.pages.clear()
            assert fetch(tmp_path / "two", one) == content


def test_real_pip(tmp_path: Path) -> None:
    wheel = tmp_path / "cached-1.0-py3-none-any.whl"
    about = "Metadata-Version: 2.1\nName: cached\nVersion: 1.0\n"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("cached.py", "")
        file.writestr("cached-1.0.dist-info/METADATA", about)
        file.writestr("cached-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr("cached-1.0.dist-info/RECORD", "")
    upstream = Upstream(headers={"Content-Type": "text/html"})

    def fetch(name: str, one: Proxy) -> bytes:
        folder = tmp_path / name
        folder.mkdir()
        conf = told(one, folder, "/etc/pip.conf")
        around = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--no-cache-dir", "-d", folder, "cached"],
            env=around | {"PIP_CONFIG_FILE": str(conf)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return (folder / wheel.name).read_bytes()

    with ExitStack() as stack:
        place = stack.enter_context(ExitStack())
        place.enter_context(answering(upstream))
        upstream.pages |= {
            "/simple/cached/": f'<a href="{upstream.url}/p/{wheel.name}">{wheel.name}</a>'.encode(),
            f"/p/{wheel.name}": wheel.read_bytes(),
        }
        one = proxy(tmp_path / "host", Ecosystem.PYPI, f"{upstream.url}/simple")
        stack.enter_context(running(one, local_files(upstream)))
        assert fetch("one", one) == wheel.read_bytes()
        place.close()
        before = len(upstream.asked)
        assert fetch("two", one) == wheel.read_bytes()
    assert len(upstream.asked) == before


# ---- container images ----


def pulled(one: Proxy, tag: str) -> tuple[str, bytes]:
    """The digest of what a tag means there, and the layer of that image."""
    found = ask(one, f"/v2/library/a/manifests/{tag}", {"Accept": MANIFEST})
    assert found.status == 200, found
    its = json.loads(found.body)["layers"][0]["digest"]
    return digest(found.body), ask(one, f"/v2/library/a/blobs/{its}").body


def test_a_registrys_mirror(tmp_path: Path) -> None:
    old, new = gzip.compress(b"1"), gzip.compress(b"2")
    with ExitStack() as stack:
        source = stack.enter_context(ExitStack())
        there = registry(tmp_path / "there")
        source.enter_context(running(there, as_registry))
        first = push(there, "latest", old)
        url = f"http://127.0.0.1:{there.mirror.port}"
        one = stack.enter_context(running(proxy(tmp_path / "here", Ecosystem.OCI, url)))
        assert pulled(one, "latest") == (first, old)
        second = push(there, "latest", new)
        assert pulled(one, "latest") == (second, new), "a tag is asked for each time"
        # Nobody writes.
        for method, path in (
            ("POST", "/v2/library/a/blobs/uploads/"),
            ("PUT", "/v2/library/a/manifests/latest"),
            ("DELETE", f"/v2/library/a/manifests/{second}"),
            ("DELETE", f"/v2/library/a/blobs/{digest(new)}"),
        ):
            assert ask(one, path, method=method).status in {400, 404, 405}, (method, path)
        source.close()
        assert pulled(one, "latest") == (second, new)
        assert pulled(one, first) == (first, old)


@pytest.mark.parametrize(
    ("max_mib", "free_mib", "most"),
    [(1, 0, 1 << 20), pytest.param(100, 1 << 40, 0, marks=pytest.mark.long)],
)
def test_a_registrys_mirror_has_a_bound(
    tmp_path: Path, max_mib: int, free_mib: int, most: int
) -> None:
    """It fetches again what had to go, also while it runs."""
    layers = [gzip.compress(os.urandom(600_000)) for _ in range(3)]

    def kept() -> list[int]:
        return [path.stat().st_blocks * 512 for path in here.folder.rglob("data")]

    with ExitStack() as stack:
        there = registry(tmp_path / "there")
        stack.enter_context(running(there, as_registry))
        url = f"http://127.0.0.1:{there.mirror.port}"
        made = proxy(tmp_path / "here", Ecosystem.OCI, url)
        here = replace(made, max_mib=max_mib, free_mib=free_mib, rest=0.2)
        stack.enter_context(running(here))
        images = [push(there, f"t{number}", layer) for number, layer in enumerate(layers)]
        for _ in range(2):
            for image, layer in zip(images, layers, strict=True):
                assert pulled(here, image) == (image, layer)
            until(lambda: sum(kept()) <= most, 30, "the bound")
        assert (len(kept()) > 0) == (most > 0), "and not more goes than has to"
