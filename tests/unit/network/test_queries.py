"""How many DNS queries of machines may wait, and what the resolver needs for that."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from vmrunner.network import queries
from vmrunner.network.policy import Bounds


def bounds(waiting: int) -> Bounds:
    return Bounds(connections=1, new_connections=1, dns_queries=1, dns_waiting=waiting)


@pytest.mark.parametrize("waiting", [16, 256, 10_000])
@pytest.mark.parametrize("subnet", ["10.87.0.0/24", "10.87.0.0/29"])
def test_all_machines_together_leave_places(subnet: str, waiting: int) -> None:
    """dnsmasq knows a query for 40 s at most, of which a machine's count forgets it after 10."""
    network = IPv4Network(subnet)
    most_of_one = 4 * waiting + (4 + 40) * (waiting // 16)
    machines = network.num_addresses - 3
    asked = min(machines * most_of_one, 999_999)
    assert queries.places(network, bounds(waiting)) > asked


def test_a_machine_that_waits_for_all_it_may_is_not_cut_off() -> None:
    assert queries.held(bounds(16)) >= 1


def test_whose_something_is_can_be_seen_from_its_name() -> None:
    for line in queries.without("vmr-a", IPv4Address("10.87.0.5")).splitlines():
        *_, name = line.partition(" {")[0].split()
        found = queries.LANE.fullmatch(name)
        assert name in queries.MAPS or (found and found[1] == "10.87.0.5")
    assert queries.LANE.fullmatch("to-10.example") is None
    assert queries.LANE.fullmatch("told") is None
