"""Which names are asked for, how often, and what is remembered of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest

from vmrunner.network import allowed, lookup
from vmrunner.network.allowed import AllowedAddresses, below

SERVER = IPv4Address("127.0.0.1")


def test_names_below_allowed_ones_are_allowed() -> None:
    names = ("example.org", "cdn.example.org", "lan")
    assert below(names, ["A.cdn.Example.org.", "anexample.org", "org", "lan", "x.lan", "lan"]) == {
        "a.cdn.example.org": ["example.org", "cdn.example.org"],
        "lan": ["lan"],
        "x.lan": ["lan"],
    }


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, list[str]]:
    """What the resolver says; and a /etc/hosts."""
    answers: dict[str, list[str]] = {}

    def addresses(
        _: IPv4Address, names: Sequence[str], *, ipv6: bool, patience: float
    ) -> dict[str, list[lookup.Address]]:
        assert not ipv6
        assert patience <= 1
        return {
            name: [ip_address(each) for each in answers[name]] for name in names if name in answers
        }

    monkeypatch.setattr(lookup, "addresses", addresses)
    hosts = tmp_path / "hosts"
    hosts.write_text(
        "127.0.0.1 localhost\n\n192.0.2.7\tmirror.lan  www.mirror.lan # no.mirror.lan\n"
    )
    monkeypatch.setattr(allowed, "_HOSTS", hosts)
    return answers


def asking(folder: Path, *names: str) -> AllowedAddresses:
    return AllowedAddresses(names, SERVER, folder, ipv6=False)


def test_what_the_host_has_below_a_name_is_its_own(
    said: dict[str, list[str]], tmp_path: Path
) -> None:
    said |= {"mirror.lan": ["192.0.2.7", "127.0.0.1"], "www.mirror.lan": ["192.0.2.8"]}
    assert asking(tmp_path, "mirror.lan").asked() == {"mirror.lan": {"192.0.2.7", "192.0.2.8"}}


def test_it_is_asked_again_after_a_minute_and_sooner_where_nobody_said(
    said: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(allowed.time, "time", lambda: now)
    known = asking(tmp_path, "a.test")
    assert known.asked() == {"a.test": set()}
    said["a.test"] = ["198.18.0.1"]
    assert known.asked() == {}
    now += allowed._AGAIN
    assert known.asked() == {"a.test": {"198.18.0.1"}}
    now += allowed._EVERY - 1
    assert known.asked() == {}
    now += 1
    assert known.asked() == {"a.test": {"198.18.0.1"}}
    now -= 5000
    assert known.asked() == {"a.test": {"198.18.0.1"}}, "the clock was set back"


@pytest.mark.usefixtures("said")
def test_what_sets_held_is_remembered(tmp_path: Path) -> None:
    asking(tmp_path, "a.test").note({"a.test": {"198.18.0.1"}, "b.test": set()})
    assert asking(tmp_path, "a.test").held() == {"a.test": ["198.18.0.1"]}
    (tmp_path / "allowed-addresses.json").write_text('{"held": 3}')
    assert asking(tmp_path, "a.test").held() == {}


def test_without_names_nobody_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(lookup, "addresses")
    assert asking(tmp_path).asked() == {}
    assert list(tmp_path.iterdir()) == []
