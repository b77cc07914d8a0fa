"""The words: names that are ours, a transition table without dead ends, and guest reports that
can't do harm.
"""

from dataclasses import replace

import yaml

from vmrunner import render
from vmrunner.errors import MachineError
from vmrunner.model.machine import (
    TRANSITIONS,
    EventKind,
    Machine,
    MachineId,
    Metadata,
    Phase,
    may_follow,
    parse_events,
)


def test_names_are_recognised_only_where_they_are_ours() -> None:
    machine = MachineId.new("ci-1", "0a0b0c0d")
    assert MachineId.of("ci-1", str(machine)) == machine
    assert MachineId.of("ci-1", f"{machine}.qcow2") == machine
    assert MachineId.of("ci", str(machine)) is None
    assert MachineId.of("ci-1", "vmr-ci-1-../../../x") is None
    assert MachineId.of("ci-1", "somebody-else") is None
    assert MachineId.of("ci-1", "vmr-ci-1-0a0b0c0dDEADBEEF") is None
    assert MachineId.of("ci-1", "vmr-ci-1-0a0b0c0d-01234567") is None, "the manager ci-1-0a0b0c0d's"


def test_a_name_tells_its_host() -> None:
    machine = MachineId.new("ci-1", "0a0b0c0d")
    for name in (str(machine), f"{machine}.seed.iso"):
        found = MachineId.parse(name)
        assert found
        assert (found.manager, found.host, found.serial) == ("ci-1", "0a0b0c0d", machine.serial)
    older = MachineId.parse("vmr-ci-1-01234567")
    assert older
    assert (older.manager, older.host, str(older)) == ("ci-1", "", "vmr-ci-1-01234567")
    for stranger in ("vmr-01234567", "vmr--01234567", "ci-1-01234567", "vmr-ci-1-01234567x", ""):
        assert MachineId.parse(stranger) is None


def test_what_knows_the_serial_alone_finds_the_machine() -> None:
    machine = MachineId.new("ci-1", "0a0b0c0d")
    found = MachineId.of_tap("ci-1", machine.tap)
    assert found == machine
    assert {machine: 1}[found] == 1
    assert (found.tap, found.mac, len(machine.tap)) == (machine.tap, machine.mac, 15)


def test_no_mac_address_is_a_number_to_yaml() -> None:
    """cloud-init reads 1.1, where digits between colons are one, of base 60: about 1 in 90."""
    words = {"address": "10.87.0.9/24", "gateway": "10.87.0.1", "ipv6": "", "gateway6": ""}

    def read(machine: MachineId) -> object:
        config = yaml.safe_load(render.text("network-config.j2", mac=machine.mac, **words))
        return config["ethernets"]["vmrunner"]["match"]["macaddress"]

    for _ in range(500):
        machine = MachineId.new("ci-1", "0a0b0c0d")
        assert read(machine) == machine.mac
    older = (MachineId("ci-1", f"{serial:08x}") for serial in range(500))
    assert any(isinstance(read(machine), int) for machine in older), "it would be seen"


def test_every_phase_leads_to_destroyed() -> None:
    reached = {Phase.DESTROYED}
    while more := {p for p, after in TRANSITIONS.items() if after & reached} - reached:
        reached |= more
    assert reached == set(Phase)
    assert not may_follow(Phase.FINISHED, Phase.RUNNING)


def test_reports() -> None:
    raw = (
        b"up 1700000000.5\nup 9\nnonsense\nexit 1700000009 \x1b[31m7\nrunner nan\nseed "
        b"-1\n\xff\xfe 3\n"
    )
    events = parse_events(raw)
    assert [e.kind for e in events] == [EventKind.UP, EventKind.EXIT]
    assert events[0].at == 1700000000.5
    assert "\x1b" not in events[1].text
    assert len(parse_events(b"up 1\n" * 1_000_000)) == 1


def test_phase_follows_what_is_seen() -> None:
    machine = MachineId.new("m", "0a0b0c0d")
    assert Machine(machine, alive=True).phase is Phase.STARTED
    bound, idle, warm = (
        Metadata(machine, "p", "i/1", 1.0, runner_id=7, job_key="1"),
        Metadata(machine, "p", "i/1", 1.0, runner_id=7),
        Metadata(machine, "p", "i/1", 1.0),
    )

    def phase(metadata: Metadata, said: bytes) -> Phase:
        return Machine(machine, alive=True, metadata=metadata, events=parse_events(said)).phase

    assert phase(bound, b"up 1\n") is Phase.READY
    assert phase(bound, b"up 1\nseed 2\n") is Phase.BOUND
    assert phase(bound, b"up 1\nseed 2\nrunner 3\n") is Phase.RUNNING
    assert phase(bound, b"up 1\nseed 2\nrunner 3\nexit 4 0\n") is Phase.FINISHED
    assert phase(idle, b"up 1\nseed 2\n") is Phase.BOUND
    assert phase(idle, b"up 1\nseed 2\nrunner 3\n") is Phase.IDLE
    assert phase(replace(idle, running_at=4.0), b"up 1\nseed 2\nrunner 3\n") is Phase.RUNNING
    assert phase(idle, b"up 1\nseed 2\nrunner 3\nexit 4 0\n") is Phase.FINISHED
    assert phase(warm, b"up 1\nseed 2\n") is Phase.STARTED
    assert phase(warm, b"up 1\nseed 2\nready 3\n") is Phase.READY
    assert Machine(machine, alive=False).phase is Phase.CLONED


def test_what_a_console_said_last() -> None:
    assert MachineError("It ended.", console="").hint == "Its console is empty."
    told = MachineError("It ended.", console="\n".join(map(str, range(100)))).hint.splitlines()
    assert (told[:2], told[-1], len(told)) == (["Its console ended with:", "  88"], "  99", 13)
