"""How long a neighbour's DNS takes beside a machine that asks for a zone whose server is silent.

libvirt's own network and dnsmasq with our options and rules; stand-ins in namespaces take the place
of machines (tests/net/place.py), and a name server of ours, 20 ms away, that of the world. Who
attacks has a low priority: what it takes of the processor is not what is measured.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import libvirt

from tests.bench.common import p95, say
from tests.net.place import ADDRESSES, MANAGER, ONE, RESOLVER, SUBNET, TWO, machines, world, written
from tests.net.resolving import asked, asking, name_server, until_it_answers
from vmrunner.config import NetworkConfig
from vmrunner.hypervisor.network import ensure_network, remove_network
from vmrunner.network.firewall import Firewall
from vmrunner.network.forge import ForgeAddresses
from vmrunner.network.policy import Policy, Reach, pool_policy

BOUNDS = NetworkConfig().bounds  # as a user has them
_INTERNET = pool_policy("internet")
_POLICIES = (Policy(Reach.NONE, Reach.NONE), Policy(_INTERNET, Reach.INTERNET))
_AT_ITS_HEIGHT = 3.0  # seconds until an attack has all that it gets
_QUERIES, _RATE = 100, 25.0  # of the neighbour, in each round and of each kind
NAMES = {"a new name": "*.{round}.near.test", "a cached name": "near.test"}
ATTACKS = {"as many as it may": float(BOUNDS.dns_queries), "as many as it can": 0.0}


def beside(rounds: int) -> dict[str, Any]:
    """Milliseconds of answers, as usual and beside each attack in turns; and how many of the
    neighbour's queries had none.
    """
    took: dict[str, dict[str, list[float]]] = {
        side: {kind: [] for kind in NAMES} for side in ("usual", *ATTACKS)
    }
    lost = dict.fromkeys(took, 0)
    with _network():
        for number in range(rounds):
            for side, rate in {"usual": None, **ATTACKS}.items():
                with ExitStack() as stack:
                    if rate is not None:
                        attack = stack.enter_context(asking(ONE, "*.slow.test", 0, rate))
                        stack.callback(attack.kill)
                        os.setpriority(os.PRIO_PROCESS, attack.pid, 19)
                        time.sleep(_AT_ITS_HEIGHT)
                    for kind, name in NAMES.items():
                        its = name.format(round=f"{side.replace(' ', '')}{number}")
                        answers = asked(TWO, its, _QUERIES, _RATE)
                        took[side][kind] += [1000 * each for each in answers if each is not None]
                        lost[side] += answers.count(None)
                say(f"resolver/{number} {side}: {lost[side]} without an answer")
                if rate is not None:
                    time.sleep(11.0)  # until nothing of it waits
    return {
        side: {
            "unanswered": lost[side],
            **{
                kind: {"median": _middle(values), "p95": p95(values), "queries": len(values)}
                for kind, values in kinds.items()
            },
        }
        for side, kinds in took.items()
    }


def _middle(values: list[float]) -> float:
    return round(sorted(values)[len(values) // 2], 3)


@contextmanager
def _network() -> Iterator[None]:
    with ExitStack() as stack:
        connection = stack.enter_context(closing(libvirt.open("qemu:///system")))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        firewall = Firewall(MANAGER, SUBNET, _POLICIES, BOUNDS, ForgeAddresses("", folder), folder)
        stack.enter_context(world())
        stack.enter_context(written(Path("/etc/resolv.conf"), f"nameserver {RESOLVER}\n"))
        remove_network(connection, MANAGER)
        stack.callback(remove_network, connection, MANAGER)
        ensure_network(connection, MANAGER, SUBNET, firewall.dns_options)
        stack.enter_context(machines(ports=()))
        stack.enter_context(name_server())
        firewall.ensure()
        stack.callback(firewall.remove)
        for machine, address in ADDRESSES.items():
            firewall.admit(machine, address, _INTERNET)
        until_it_answers()
        yield
