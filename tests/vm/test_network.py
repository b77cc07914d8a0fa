"""What real machines reach, tried from inside them: booted and cloned, under each policy, with
libvirt's own network and dnsmasq.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.forge.gitea import Site, until
from tests.ground import Ground
from tests.net import place
from tests.net.place import (
    CGNAT,
    HOST_PUBLIC,
    INTERNET,
    LAN,
    METADATA,
    MIRROR,
    RESOLVER,
    WORLD,
    each_rule_alone,
    world,
)
from tests.vm.test_jobs import LIFE, up_until_done

pytestmark = pytest.mark.vm
FORGE = "203.0.113.10"
GATEWAY = "10.90.0.1"
PROBE = place.PROBE.read_text()
CELLS: dict[str, tuple[list[Any], set[str]]] = {
    # What a machine tries, and the policies under which it gets through.
    "the forge": (["tcp", FORGE, 3000], {"internet", "none", "allowlist"}),
    "our resolver": (["dns", GATEWAY, "plain.example"], {"internet", "allowlist"}),
    "a name that leads to the LAN": (["dns", GATEWAY, "rebound.example"], set()),
    "the internet": (["tcp", INTERNET, 443], {"internet"}),
    "the internet by ICMP": (["ping", INTERNET], {"internet"}),
    "an allowed name": (["tcp", MIRROR, 80], {"internet", "allowlist"}),
    "another port of it": (["tcp", MIRROR, 443], {"internet"}),
    "the gateway": (["tcp", GATEWAY, 53], {"internet", "allowlist"}),
    "another port of the gateway": (["tcp", GATEWAY, 3000], set()),
    "the gateway by ICMP": (["ping", GATEWAY], set()),
    "another port of the forge's host": (["tcp", FORGE, 8080], set()),
    "the host's other address": (["tcp", HOST_PUBLIC, 8080], set()),
    "the LAN": (["tcp", LAN, 80], set()),
    "the metadata service": (["tcp", METADATA, 80], set()),
    "carrier-grade NAT": (["tcp", CGNAT, 80], set()),
    "another resolver": (["dns", RESOLVER, "deb.example"], set()),
}


def expected(policy: str) -> dict[str, bool]:
    return {name: policy in policies for name, (_, policies) in CELLS.items()}


def probing(what: list[list[Any]]) -> list[str]:
    """The command that tries all of this in a machine."""
    return ["env", "PROBE_PATIENCE=4", "python3", "-c", PROBE, "try", json.dumps(what)]


def answers(name: str) -> bool:
    """Whether the resolver outside has an address for it."""
    asked = [sys.executable, "-c", PROBE, "try", json.dumps([["dns", RESOLVER, name]])]
    return bool(
        json.loads(subprocess.run(asked, check=True, capture_output=True, text=True).stdout)
        == [True]
    )


@pytest.fixture(scope="module", autouse=True)
def outside() -> Iterator[None]:
    """The world behind the host, with a resolver that libvirt's dnsmasq asks."""
    settings = Path("/etc/resolv.conf")
    before = settings.read_text()
    # Not an address for documentation: to dnsmasq those are private.
    names = [
        "--address=/plain.example/198.18.0.7",
        f"--address=/deb.example/{MIRROR}",
        f"--address=/rebound.example/{LAN}",
    ]
    command = [
        "dnsmasq",
        "--keep-in-foreground",
        "--no-resolv",
        "--no-hosts",
        "--conf-file=/dev/null",
        "--bind-interfaces",
    ]
    with world():
        resolver = subprocess.Popen(
            [
                "ip",
                "netns",
                "exec",
                WORLD,
                *command,
                f"--listen-address={RESOLVER}",
                "--pid-file=",
                *names,
            ]
        )
        settings.write_text(f"nameserver {RESOLVER}\n")
        try:
            until(lambda: answers("deb.example"), 30, "the resolver answers")
            assert answers("rebound.example")
            yield
        finally:
            settings.write_text(before)
            resolver.kill()
            resolver.wait()


@pytest.mark.parametrize("start", [pytest.param("boot", marks=pytest.mark.long), "snapshot"])
@pytest.mark.parametrize("policy", ["internet", "none"])
def test_what_a_machine_reaches(lay_ground: Callable[..., Ground], start: str, policy: str) -> None:
    ground = lay_ground()
    options = ["--image", "test-gitea", "--memory", "1GiB", "--network", policy]
    if start == "snapshot":
        ground.run("snapshot", "create", "--image", "test-gitea", "--memory", "1GiB")
    else:
        options.append("--boot")
    done = ground.run("exec", *options, "--", *probing([cell for cell, _ in CELLS.values()]))
    assert (": cloned" in done.stderr) is (start == "snapshot")
    found = dict(zip(CELLS, json.loads(done.stdout), strict=True))
    assert found == expected(policy)


def test_a_job_with_an_allowlist(site: Site, lay_ground: Callable[..., Ground]) -> None:
    ground = lay_ground(cloned=True, more='network = "allowlist"\nallow = ["deb.example:80"]\n')
    script = PROBE.replace("\n", "\n          ")
    cells = json.dumps([cell for cell, _ in CELLS.values()])
    steps = f"""\
on: [push]
jobs:
  probe:
    runs-on: [debian-12]
    steps:
      - run: |
          cat >/probe.py <<'PROBE'
          {script}
          PROBE
          PROBE_PATIENCE=4 python3 /probe.py try '[["dns", "{GATEWAY}", "deb.example"]]'
          PROBE_PATIENCE=4 python3 /probe.py try '{cells}'
"""
    repository = site.repository("rig", "allowlist", steps)
    until(lambda: len(repository.jobs()) == 1, 30, "the job")
    (job,) = up_until_done(ground, repository)
    log = repository.said(job["id"])
    found = re.findall(r"\[(?:true|false)[^]]*\]", log)
    assert found, log
    assert dict(zip(CELLS, json.loads(found[-1]), strict=True)) == expected("allowlist")
    repository.delete()


@contextmanager
def listening(ground: Ground) -> Iterator[str]:
    """A machine that answers on port 8080, and its address."""
    echo = (
        "import socket; s = socket.create_server(('', 8080)); print(socket.gethostname(), "
        "flush=True)\nwhile True: s.accept()"
    )
    command = ground.command(
        "exec", "--image", "test-gitea", "--memory", "1GiB", "--", "python3", "-c", echo
    )
    environment = {"VMRUNNER_CONFIG": str(ground.config), "PATH": "/usr/sbin:/usr/bin"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        ended = threading.Timer(LIFE, process.kill)
        ended.start()
        try:
            assert process.stdout
            name = process.stdout.readline().strip()
            described = subprocess.run(
                ["virsh", "-c", "qemu:///system", "dumpxml", name],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            address = re.search(r"address=.(10\.90\.0\.\d+)/24", described)
            assert address, described
            yield address[1]
        finally:
            ended.cancel()
            process.terminate()


def evidence(address: str) -> str:
    """What lies between two machines of which one has reached the other, while it is so."""
    commands = (
        f"virsh -q list; bridge -d link; ip neigh; ip route get {address}; sysctl -a -r proxy_arp; "
        "nft list ruleset"
    )
    return subprocess.run(["sh", "-c", commands], capture_output=True, text=True).stdout


def test_neighbours_and_the_outside_reach_nobody(lay_ground: Callable[..., Ground]) -> None:
    ground = lay_ground()
    ground.run("snapshot", "create", "--image", "test-gitea", "--memory", "1GiB")
    with listening(ground) as address:
        tried = probing(
            [
                ["tcp", address, 8080],
                ["udp", address, 8080],
                ["ping", address],
                ["tcp", FORGE, 3000],
            ]
        )
        done = ground.run("exec", "--image", "test-gitea", "--memory", "1GiB", "--", *tried)
        assert json.loads(done.stdout) == [False, False, False, True], (
            f"{done.stderr}\n{evidence(address)}"
        )
        outside = [
            "ip",
            "netns",
            "exec",
            WORLD,
            "python3",
            "-c",
            PROBE,
            "try",
            json.dumps([["tcp", address, 8080], ["ping", address]]),
        ]
        assert json.loads(
            subprocess.run(outside, check=True, capture_output=True, text=True).stdout
        ) == [False, False]
        # The probe can find it once the ports of the bridge are open to each other.
        for tap in [
            path.name
            for path in Path("/sys/class/net").iterdir()
            if re.fullmatch(r"v[0-9a-f]{14}", path.name)
        ]:
            subprocess.run(
                ["ip", "link", "set", tap, "type", "bridge_slave", "isolated", "off"], check=True
            )
        with each_rule_alone():
            done = ground.run("exec", "--image", "test-gitea", "--memory", "1GiB", "--", *tried)
        assert json.loads(done.stdout) == [True, True, True, True], (
            "of two ports, one that is not isolated is enough"
        )


def test_rules_that_are_gone_come_back_with_the_next_pass(
    lay_ground: Callable[..., Ground],
) -> None:
    ground = lay_ground(start="snapshot")

    def rules() -> tuple[str, str]:
        listed = json.loads(ground.run("doctor", "--json", check=False).stdout)
        ((level, said),) = [
            (each["level"], each["said"]) for each in listed if each["check"] == "rules"
        ]
        return level, said

    def elements() -> str:
        return subprocess.run(
            ["nft", "list", "map", "inet", "vmr-suite", "machines"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    ground.run("snapshot", "create", "--image", "test-gitea", "--memory", "1GiB")
    with listening(ground) as address:
        assert f"{address} : goto internet" in elements()
        assert rules()[0] == "good"
        subprocess.run(["nft", "delete", "table", "inet", "vmr-suite"], check=True)
        assert rules() == (
            "error",
            "What filters the machines' network has changed: the nftables table vmr-suite is gone.",
        )
        ground.run("up")
        assert rules()[0] == "good"
        assert f"{address} : goto internet" in elements(), "and the machine that runs is in them"
    until(lambda: address not in elements(), 30, "a machine that is gone is not")


@pytest.mark.long
def test_doctor_tries_it_all_from_inside(site: Site, lay_ground: Callable[..., Ground]) -> None:
    ground = lay_ground(cloned=True, more='network = "allowlist"\nallow = ["198.51.100.20:80"]\n')
    done = ground.run("doctor", "--isolation", "--json", check=False)
    cells = json.loads(done.stdout)
    wrong = [cell for cell in cells if cell["is_open"] is not cell["should_be_open"]]
    print(done.stderr, *wrong, sep="\n")
    # What is timed is doctor's to judge: whatever else keeps this host busy is not its machines'.
    assert not [cell for cell in wrong if cell["group"] != "resources"]
    assert done.returncode == (11 if wrong else 0)
    assert {cell["policy"] for cell in cells} == {"internet", "none", "pool-main", ""}
    groups = {"forge", "DNS", "internet", "private", "host", "neighbour", "spoofing"}
    assert {cell["group"] for cell in cells if cell["policy"]} == groups | {"allowed"}
    assert Counter(cell["group"] for cell in cells if not cell["policy"]) == {
        "residue": 9,
        "credentials": 6,
        "resources": 4,
    }
    assert ground.leftovers() == []
    assert not [
        name
        for name in (record["name"] for record in site.runners())
        if name.startswith(f"vmr-{ground.manager}-")
    ]
    assert sum("as a tunnel would" in cell["what"] for cell in cells) == 2, (
        "not where there is no DNS at all"
    )
    assert sum("that nobody answers" in cell["what"] for cell in cells) == 2
    assert {
        cell["what"] for cell in cells if cell["policy"] == "pool-main" and cell["is_open"]
    } == {
        "203.0.113.10 port 3000",
        "our resolver, for forge.example",
        "198.51.100.20 port 80",
    }
    # Without the rules it finds what is open: the probe can fail.
    for family in ("inet", "bridge"):
        subprocess.run(["nft", "delete", "table", family, "vmr-suite"], check=True)
    text = ground.config.read_text().replace(
        'network = "allowlist"\nallow = ["198.51.100.20:80"]\n', ""
    )
    ground.config.write_text(f"{text}[network]\nfilter = false\n")
    done = ground.run("doctor", "--isolation", "--policy", "internet", check=False)
    assert done.returncode == 11
    assert re.search(r"internet +host +the gateway by ICMP +open +closed", done.stdout), done.stdout
    assert re.search(r"internet +spoofing +another address +open +closed", done.stdout), done.stdout
    assert re.search(
        r"internet +DNS +4000 queries at once, as a tunnel +open +closed", done.stdout
    ), done.stdout
    assert re.search(r"internet +DNS +256 queries beside as many +open +closed", done.stdout), (
        done.stdout
    )
