"""What machines are told of packages that come through this host."""

from __future__ import annotations

import configparser
import socket
import tomllib
from xml.etree import ElementTree

import pytest

from vmrunner.machine import packages
from vmrunner.model.packages import Ecosystem, Mirror


def mirror(of: Ecosystem, upstream: str = "") -> Mirror:
    return Mirror(of, upstream or of.public, "10.87.0.1", 8490)


def test_apt_by_hosts() -> None:
    ((path, text),) = packages.files([mirror(Ecosystem.APT, "http://m.example:81/debian")]).items()
    assert path == "/etc/apt/apt.conf.d/95vmrunner-packages"
    assert 'Acquire::http::Proxy::deb.debian.org "http://10.87.0.1:8490";\n' in text
    assert 'Acquire::http::Proxy::m.example "http://10.87.0.1:8490";\n' in text
    assert 'Acquire::http::Proxy "' not in text, "what nobody keeps is fetched directly"
    assert "https::" not in text


@pytest.mark.parametrize(
    ("upstream", "index"),
    [
        ("", "http://10.87.0.1:8490/simple/"),
        ("https://pypi.example/root/pypi/+simple", "http://10.87.0.1:8490/root/pypi/+simple/"),
        ("https://pypi.example", "http://10.87.0.1:8490/"),
    ],
)
def test_pip(upstream: str, index: str) -> None:
    found = configparser.ConfigParser(interpolation=None)
    found.read_string(packages.files([mirror(Ecosystem.PYPI, upstream)])["/etc/pip.conf"])
    assert dict(found["global"]) == {"index-url": index, "trusted-host": "10.87.0.1:8490"}


def test_npm() -> None:
    public = packages.files([mirror(Ecosystem.NPM)])["~/.npmrc"]
    assert public.splitlines()[1:] == ["registry=http://10.87.0.1:8490/"]
    own = packages.files([mirror(Ecosystem.NPM, "https://npm.example:8443/repo")])["~/.npmrc"]
    assert own.splitlines()[1:] == [
        "registry=http://10.87.0.1:8490/repo/",
        "replace-registry-host=npm.example",
    ]


def test_go_asks_the_upstream_when_the_host_does_not_answer() -> None:
    text = packages.files([mirror(Ecosystem.GO)])["~/.config/go/env"]
    assert "GOPROXY=http://10.87.0.1:8490|https://proxy.golang.org,direct\n" in text
    assert "SUM" not in text, "checksums go on to be looked up"


@pytest.mark.parametrize(
    ("upstream", "index"),
    [
        ("", "sparse+http://10.87.0.1:8490/"),
        ("https://crates.example:8443/a/index", "sparse+http://10.87.0.1:8490/a/index/"),
    ],
)
def test_cargo_has_another_source_of_the_same_crates(upstream: str, index: str) -> None:
    text = packages.files([mirror(Ecosystem.CRATES, upstream)])["~/.cargo/config.toml"]
    assert tomllib.loads(text) == {
        "source": {"crates-io": {"replace-with": "vmrunner"}, "vmrunner": {"registry": index}}
    }


@pytest.mark.parametrize(
    ("upstream", "url"),
    [
        ("", "http://10.87.0.1:8490/maven2"),
        ("https://maven.example/repo/central", "http://10.87.0.1:8490/repo/central"),
        ("https://maven.example", "http://10.87.0.1:8490"),
    ],
)
def test_maven_has_a_mirror_of_central_alone(upstream: str, url: str) -> None:
    text = packages.files([mirror(Ecosystem.MAVEN, upstream)])["~/.m2/settings.xml"]
    found = {each.tag: each.text for each in ElementTree.fromstring(text).iter() if not len(each)}  # noqa: S314 — our own
    assert found == {"id": "vmrunner", "mirrorOf": "central", "url": url}


def test_docker_has_a_registry_mirror() -> None:
    both = [mirror(Ecosystem.GO), mirror(Ecosystem.OCI)]
    assert packages.registry(both) == "http://10.87.0.1:8490"
    assert packages.registry(both[:1]) == ""
    assert packages.files(both[1:]) == {}


def test_a_machine_is_told_of_those_that_answer() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as there,
        socket.create_server(("127.0.0.1", 0)) as gone,
    ):
        ports = [each.getsockname()[1] for each in (there, gone)]
        gone.close()
        one, other = (Mirror(Ecosystem.GO, "https://a.example", "127.0.0.1", p) for p in ports)
        assert packages.answering([other, one]) == (one,)
