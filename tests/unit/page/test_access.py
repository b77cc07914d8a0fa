"""Who may look, and what every answer tells the browser."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.page.site import VIEWS, Page, basic
from tests.unit.test_hostile import NASTY
from vmrunner.model.secret import Secret
from vmrunner.page.access import POLICY, Rules

TOKEN = "0123456789abcdef0123456789abcdef"
MACHINE = "/machines/vmr-m-00000001"
ADDRESSES = (
    *VIEWS,
    MACHINE,
    f"{MACHINE}/log",
    "/style.css",
    "/page.js",
    "/icon.svg",
    "/favicon.ico",
    "/nothing",
)


@pytest.fixture
def guarded(tmp_path: Path) -> Callable[[Rules], Page]:
    return lambda rules: Page(tmp_path, rules)


@pytest.mark.parametrize("address", ADDRESSES)
def test_nothing_is_shown_without_the_token(guarded: Callable[[Rules], Page], address: str) -> None:
    with closing(guarded(Rules(token=Secret(TOKEN)))) as page:
        for given_ in (
            {},
            {"authorization": basic(TOKEN[:-1])},
            {"authorization": basic("", user=TOKEN)},
            {"authorization": f"Bearer {TOKEN}x"},
            {"authorization": f"Digest {TOKEN}"},
            {"authorization": "Basic !!!"},
            {"authorization": ""},
            {"x_forwarded_user": "root"},
        ):
            answer = page.get(address, **given_)
            assert answer.status_code == 401, given_
            assert answer.headers["www-authenticate"].startswith("Basic ")
            assert TOKEN not in answer.text


def test_the_token_opens_it(guarded: Callable[[Rules], Page]) -> None:
    with closing(guarded(Rules(token=Secret(TOKEN)))) as page:
        for given_ in (basic(TOKEN), basic(TOKEN, ""), f"Bearer {TOKEN}", f"bearer  {TOKEN}"):
            assert page.get("/", authorization=given_).status_code == 200


def test_a_proxys_header(guarded: Callable[[Rules], Page]) -> None:
    with closing(guarded(Rules(user_header="X-Forwarded-User"))) as page:
        assert page.get("/").status_code == 403
        assert page.get("/", x_forwarded_user=" ").status_code == 403
        assert page.get("/", x_forwarded_user="ada").status_code == 200


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("localhost", True),
        ("LOCALHOST:8480", True),
        ("127.0.0.1:8480", True),
        ("192.0.2.7", True),
        ("[::1]:8480", True),
        ("ci.example", True),
        ("CI.example:443", True),
        ("evil.example", False),
        ("ci.example.evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example:80", False),
        ("", False),
        ("[::1", True),
        ("a@localhost", False),
    ],
)
def test_only_our_own_names_are_answered(
    guarded: Callable[[Rules], Page], host: str, known: bool
) -> None:
    with closing(guarded(Rules(frozenset({"ci.example"})))) as page:
        assert page.get("/", host=host).status_code == (200 if known else 421)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
def test_it_only_shows(page: Page, method: str) -> None:
    for address in ADDRESSES:
        answer = page.get(address, method)
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


def test_a_head_is_an_answer_without_a_body(page: Page) -> None:
    answer = page.get("/", "HEAD")
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("address", ADDRESSES)
def test_what_every_answer_tells_the_browser(page: Page, address: str) -> None:
    headers = page.get(address).headers
    assert headers["content-security-policy"] == POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cache-control"] == ("max-age=600" if "." in address else "no-store")
    assert "unsafe" not in POLICY


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd",
        "/..%2f..%2f..%2fetc%2fpasswd",
        "/style.css/../../vmrunner.toml",
        "/machines/..%2F..%2Fhistory.sqlite",
        "/machines/..%2Fhistory.sqlite/log",
        "/machines/%2e%2e/log",
        "/machines/%2e%2e/%2e%2e/history.sqlite",
        "//etc/passwd",
        "/page/../page/base.html",
        "/machines/%00",
        "/%ff%fe",
    ],
)
def test_no_path_leads_out(page: Page, path: str) -> None:
    answer = page.get(f"http://localhost{path}")
    assert answer.status_code == 404
    assert "root:" not in answer.text


@given(host=st.text(max_size=40))
def test_no_host_is_an_error(host: str) -> None:
    assert Rules(frozenset({"ci.example"})).knows_host(host) in {True, False}


@given(header=st.binary(max_size=60))
def test_no_header_is_an_error(header: bytes) -> None:
    headers = {b"host": b"localhost", b"authorization": header}
    assert Rules(token=Secret(TOKEN)).refusal(headers)


@pytest.mark.parametrize("text", NASTY)
def test_what_is_asked_for_stays_a_value(page: Page, text: str) -> None:
    value = "".join(f"%{each:02x}" for each in text[:500].encode("utf-8", "surrogatepass"))
    names = "text", "pool", "ending", "verdict", "failed", "before", "span", "page"
    for address in VIEWS:
        answer = page.get(f"{address}?" + "&".join(f"{name}={value}" for name in names))
        assert answer.status_code == 200
        assert "<job>" not in answer.text
        assert "</job>" not in answer.text
