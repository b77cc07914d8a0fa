"""Which machines are shown of those that are there, and in which order."""

from __future__ import annotations

from typing import Any

import pytest

from vmrunner.page.there import Order, Sought


def machine(name: str, phase: str, job: str, age: float | None) -> dict[str, Any]:
    return {"name": f"vmr-m-{name}", "phase": phase, "job": job, "age_seconds": age}


POOLS = [
    {
        "name": "linux",
        "machines": [
            machine("0a", "running", "acme/site: build", 40.0),
            machine("0b", "ready", "", None),
            machine("0c", "held", "Acme/App: test", 900.0),
        ],
    },
    {"name": "big", "machines": [machine("0d", "running", "ada/notes: check", 3.0)]},
    {"name": "none", "machines": []},
]


@pytest.mark.parametrize(
    ("sought", "names"),
    [
        (Sought(), "0a 0b 0c 0d"),
        (Sought(pool="big"), "0d"),
        (Sought(pool="none"), ""),
        (Sought(pool="BIG"), ""),
        (Sought(phase="running"), "0a 0d"),
        (Sought(phase="running", pool="linux"), "0a"),
        (Sought(text="ACME/"), "0a 0c"),
        (Sought(text="m-0d"), "0d"),
        (Sought(text="%"), ""),
        (Sought(order=Order.OLDEST), "0c 0a 0d 0b"),
        (Sought(order=Order.NEWEST), "0d 0a 0c 0b"),
        (Sought(order=Order.NEWEST, text="acme"), "0a 0c"),
    ],
)
def test_which_ones_in_which_order(sought: Sought, names: str) -> None:
    found = sought.among(POOLS)
    assert [each["name"].removeprefix("vmr-m-") for _, each in found] == names.split()
    assert all(
        each in pool["machines"] for name, each in found for pool in POOLS if name == pool["name"]
    )


def test_an_order_alone_leaves_nothing_out() -> None:
    assert not Sought(order=Order.OLDEST)
    assert Sought(text="x")
