"""The forge's URL has one form, and what can't be one is one sentence that shows nothing of it."""

from __future__ import annotations

import pytest

from vmrunner.network.forge_url import parse, port_of


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("https://forge.example", "https://forge.example"),
        ("https://forge.example/", "https://forge.example"),
        ("https://forge.example///", "https://forge.example"),
        ("HTTPS://Forge.Example", "https://forge.example"),
        ("https://forge.example.", "https://forge.example"),
        ("https://forge.example.:3000/", "https://forge.example:3000"),
        ("https://forge.example:443", "https://forge.example"),
        ("https://forge.example:", "https://forge.example"),
        ("http://forge.example:80/git/", "http://forge.example/git"),
        ("http://forge.example:443", "http://forge.example:443"),
        ("https://forge.example/Git/a-b", "https://forge.example/Git/a-b"),
        ("https://forge.example/api", "https://forge.example/api"),
        ("https://f\u00f6rge.example", "https://xn--frge-5qa.example"),
        ("https://F\u00d6RGE.example", "https://xn--frge-5qa.example"),
        ("https://xn--frge-5qa.example", "https://xn--frge-5qa.example"),
        ("http://forge_1:3000", "http://forge_1:3000"),
        ("http://192.0.2.7:3000", "http://192.0.2.7:3000"),
        ("https://[2001:DB8:0::7]:443/", "https://[2001:db8::7]"),
        ("https://[2001:db8::7]:3000", "https://[2001:db8::7]:3000"),
    ],
)
def test_what_only_looks_different_is_the_same(written: str, read: str) -> None:
    assert parse(written) == read
    assert parse(read) == read


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("forge.example", "written like"),
        ("ssh://git@forge.example", "written like"),
        ("git@forge.example:org/r1.git", "written like"),
        ("https:///git", "written like"),
        ("https://[2001:db8::7", "written like"),
        (3000, "written like"),
        ("https://user:s3cret@forge.example", "a user or a password"),
        ("https://s3cret@forge.example", "a user or a password"),
        ("https://forge.example/?token=s3cret", "no ? and no #"),
        ("https://forge.example/#s3cret", "no ? and no #"),
        ("https://forge.example\n", "a blank"),
        ("https://forge.example /git", "a blank"),
        ("https://forge.example\\git", "a backslash"),
        ("https://forge\u200b.example", "invisible"),
        ("https://forge.example:0", "ports are"),
        ("https://forge.example:65536", "ports are"),
        ("https://forge.example:http", "ports are"),
        ("https://[fe80::1%25eth0]:3000", "the zone"),
        ("https://[fe80::1%eth0]:3000", "the zone"),
        ("https://[192.0.2.7]", "written like"),
        ("https://2001:db8::7", "stands in brackets"),
        ("http://127.1:3000", "neither a name nor a whole IPv4 address"),
        ("http://2130706433", "neither a name nor a whole IPv4 address"),
        ("http://0x7f.1", "neither a name nor a whole IPv4 address"),
        ("http://192.0.2.256", "neither a name nor a whole IPv4 address"),
        ("http://192.0.2.07", "neither a name nor a whole IPv4 address"),
        ("https://forge..example", "not a name"),
        ("https://.", "not a name"),
        (f"https://{'a' * 64}.example", "not a name"),
        ("https://forge!.example", "not a name"),
        ("https://stra\u00dfe.example", "ASCII form"),
        ("https://forge.example/a//b", "its path"),
        ("https://forge.example/../git", "its path"),
        ('https://forge.example/"', "its path"),
        ("https://forge.example/$HOME", "its path"),
        ("https://forge.example/api/v1", "the forge's API"),
        ("https://forge.example/git/api/v1/version", "the forge's API"),
    ],
)
def test_what_can_be_no_forges_address_is_said(written: object, said: str) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        parse(written)
    assert said in str(raised.value)
    assert "s3cret" not in str(raised.value)
    assert not raised.value.__cause__


def test_the_port() -> None:
    urls = ("https://forge.example", "http://forge.example/git", "http://[2001:db8::7]:3000")
    assert [port_of(url) for url in urls] == [443, 80, 3000]
