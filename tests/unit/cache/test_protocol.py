"""What requests say, whatever they bring."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from vmrunner.cache import protocol
from vmrunner.cache.refused import Refused, Why


def refused(call: Callable[..., object], *args: object) -> Why:
    with pytest.raises(Refused) as found:
        call(*args)
    assert found.value.sentence.endswith(".")
    return found.value.why


def test_every_refusal_has_a_status() -> None:
    assert set(protocol.STATUS) == set(Why)
    assert len(set(protocol.STATUS.values())) == len(Why)


def test_keys() -> None:
    assert protocol.keys("a-1,a-,, a ") == ("a-1", "a-", "a")
    assert protocol.keys("../../etc/passwd") == ("../../etc/passwd",)
    assert protocol.keys("ключ-🐈") == ("ключ-🐈",)


@pytest.mark.parametrize(
    "text",
    ["", ",, ,", ",".join("abcdefghijk"), "x" * 513, "a\0b", "a\nb", "\x7f", "\ud800"],
)
def test_keys_that_are_none(text: str) -> None:
    assert refused(protocol.keys, text) is Why.WRONG


def test_a_new_entry() -> None:
    asked = {"key": " k ", "version": "v", "cacheSize": 7}
    assert protocol.wanted(json.dumps(asked).encode()) == protocol.Wanted("k", "v", 7)
    asked["cacheSize"] = 0  # what old clients say that do not know it
    assert protocol.wanted(json.dumps(asked).encode()).size is None
    assert protocol.wanted(b'{"key": "k", "version": "v"}').size is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b"[" * 50_000,
        b'{"version": "v"}',
        b'{"key": 1, "version": "v"}',
        b'{"key": "k"}',
        b'{"key": "k", "version": ["v"]}',
        b'{"key": "a,b", "version": "v"}',
        b'{"key": "  ", "version": "v"}',
        b'{"key": "\\ud800", "version": "v"}',
        b'{"key": "k", "version": "v", "cacheSize": "7"}',
        b'{"key": "k", "version": "v", "cacheSize": -1}',
        b'{"key": "k", "version": "v", "cacheSize": 1.5}',
        b'{"key": "k", "version": "v", "cacheSize": true}',
        b'{"key": "k", "version": "v", "cacheSize": 1e300}',
        b'{"key": "k", "version": "v", "cacheSize": 10000000000000000}',
    ],
)
def test_a_new_entry_that_is_none(body: bytes) -> None:
    assert refused(protocol.wanted, body) is Why.WRONG


@pytest.mark.parametrize("body", [b"{}", b'{"size": null}', b'{"size": -1}', b"7"])
def test_a_size_that_is_none(body: bytes) -> None:
    assert refused(protocol.size, body) is Why.WRONG


def test_a_part() -> None:
    assert protocol.content_range("bytes 0-99/*") == (0, 100)
    assert protocol.content_range(" bytes 5-5/10") == (5, 6)


@pytest.mark.parametrize(
    "header",
    ["", "bytes */10", "bytes 5-4/*", "bytes -5/*", "bytes 1-2", "0-1/*", f"bytes 0-{10**15}/*"],
)
def test_a_part_that_is_none(header: str) -> None:
    assert refused(protocol.content_range, header) is Why.WRONG


@pytest.mark.parametrize(
    ("header", "bytes_"),
    [
        ("", (0, 10)),
        ("bytes=0-", (0, 10)),
        ("bytes=2-4", (2, 5)),
        ("bytes=2-400", (2, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-30", (0, 10)),
        ("bytes=0-1,3-4", (0, 10)),  # several: all of it
        ("lines=0-1", (0, 10)),
        ("bytes=4-2", (0, 10)),
        ("bytes=-", (0, 10)),
        ("bytes=10-", None),
        ("bytes=-0", None),
    ],
)
def test_what_of_an_archive_is_asked_for(header: str, bytes_: tuple[int, int] | None) -> None:
    assert protocol.byte_range(header, 10) == bytes_


@pytest.mark.parametrize("text", ["", "-1", "1.0", "9" * 17, "../1", "٣"])
def test_an_id_that_is_none(text: str) -> None:
    assert refused(protocol.number, text) is Why.UNKNOWN
