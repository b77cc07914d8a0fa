"""The report of `make kvm`: what is in it, and what never."""

from __future__ import annotations

import json

import pytest

from tests.kvm import compose, nameless

KNOWN = {
    "kernel": "6.12.0-build7-amd64",
    "processor": "Invented Processor 9000 @ 3.00GHz",
    "QEMU": "10.0.2",
    "odd": "at 192.0.2.7, fe80::1 and 52:54:00:12:34:56",
}
FIGURES = {"queue": {"snapshot": {"median": 0.51, "p95": 0.7, "runs": 20, "phases": {"up": 0.1}}}}


def test_versions_and_figures_are_in_it() -> None:
    said = compose(KNOWN, FIGURES, "elsewhere")
    for expected in ("6.12.0-build7-amd64", "Invented Processor 9000 @ 3.00GHz", "10.0.2", "0.51"):
        assert expected in said
    assert json.loads(said.splitlines()[-1]) == FIGURES


@pytest.mark.parametrize("secret", ["192.0.2.7", "fe80::1", "52:54:00:12:34:56"])
def test_addresses_are_not(secret: str) -> None:
    assert secret not in compose(KNOWN, FIGURES, "elsewhere")


@pytest.mark.parametrize("host", ["build7", "build7.lan.example"])
def test_the_hosts_name_is_not(host: str) -> None:
    assert "build7" not in compose(KNOWN, FIGURES, host)


def test_a_short_name_takes_no_letters_out_of_words() -> None:
    assert nameless("amd64 on d6", "d6") == "amd64 on (host)"
    assert nameless("amd64", "") == "amd64"
