"""A person's way into a machine, to a double of its door."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable

import paramiko
import pytest

from tests.fakes import FakeHypervisor
from tests.guest_double import GuestDouble, Speaker
from vmrunner.errors import MachineError
from vmrunner.hypervisor.seam import Way
from vmrunner.machine import named, visit
from vmrunner.model.machine import Machine, MachineId, Metadata

ONE, OTHER = MachineId("m", "0000000a", "0a0b0c0d"), MachineId("m", "0000101a", "0a0b0c0d")
GONE = struct.pack(">i", -1)


def host(*machines: MachineId) -> FakeHypervisor:
    made = FakeHypervisor()
    made.domains = {each: Metadata(each, "p", "image/1", 0.0) for each in machines}
    return made


def talked(double: Callable[[], Speaker]) -> tuple[FakeHypervisor, Machine]:
    made = host(ONE)
    made.speakers[ONE, Way.DOOR] = double
    return made, named.find(made.machines.all(), str(ONE))


def test_one_that_is_paused_is_left_so() -> None:
    made = host(ONE)
    made.paused.add(ONE)
    with (
        pytest.raises(MachineError, match="is paused: it waits for a job"),
        visit.entered(made.machines, named.find(made.machines.all(), str(ONE))),
    ):
        pass


# ---- the session ----


def test_a_command_its_output_and_its_exit_code() -> None:
    def run(channel: paramiko.Channel, command: str) -> int:
        channel.sendall(command.encode())
        channel.sendall_stderr(b"oh")
        return 7

    double = GuestDouble(run=run)
    made, machine = talked(double)
    with visit.entered(made.machines, machine) as (transport, line):
        channel = transport.open_session()
        channel.exec_command(visit.command_line(["echo", "a b", "$HOME"]))
        assert channel.makefile().read() == b"echo 'a b' '$HOME'"
        assert channel.makefile_stderr().read() == b"oh"
        assert channel.recv_exit_status() == 7
    assert set(double.asked) == {"root"}
    assert line.fault == ""
    assert all(each.is_closed for each in double.visits)


def test_each_visit_has_a_key_of_its_own() -> None:
    double = GuestDouble()
    made, machine = talked(double)
    for _ in range(2):
        with visit.entered(made.machines, machine):
            pass
    keys = [json.loads(each.said.partition(b"\n")[0])["key"] for each in double.visits]
    assert len({*keys}) == 2
    assert all(key.startswith("ecdsa-sha2-nistp256 ") for key in keys)


def test_another_host_key_than_the_door_said_is_not_taken() -> None:
    other = paramiko.ECDSAKey.generate()
    double = GuestDouble(answer={"host_key": f"{other.get_name()} {other.get_base64()}"})
    made, machine = talked(double)
    with (
        pytest.raises(MachineError, match="another host key than its door said"),
        visit.entered(made.machines, machine),
    ):
        pass
    assert double.asked == [], "no key was offered"
    assert all(each.is_closed for each in double.visits)


@pytest.mark.parametrize(
    "first",
    [
        b"SSH-2.0-x\r\n",
        struct.pack(">i", 5) + b"[1,2]",
        struct.pack(">i", 20) + b'{"word": "another"} ',
        struct.pack(">i", 3) + b"\xff\xfe\xfd",
        struct.pack(">i", 100_000) + b"[" * 100_000,
        GONE,
        b"\x7f\xff\xff\xff",
    ],
)
def test_what_is_left_of_a_visit_before_is_no_answer(first: bytes) -> None:
    double = GuestDouble(first=first)
    made, machine = talked(double)
    with visit.entered(made.machines, machine) as (transport, _):
        assert transport.is_authenticated()
    assert len(double.visits) == 2
    assert double.visits[0].is_closed


@pytest.mark.parametrize(
    ("lack", "sentence", "hint"),
    [
        ("server", "has no SSH server", "openssh-server"),
        ("locked", "root is locked", "usermod"),
        ("key", "was not opened", ""),
        ("\x1b[2J{machine.x}", "was not opened", ""),
    ],
)
def test_why_a_door_stays_closed(lack: str, sentence: str, hint: str) -> None:
    double = GuestDouble(answer={"lack": lack})
    made, machine = talked(double)
    with pytest.raises(MachineError) as caught, visit.entered(made.machines, machine):
        pass
    assert sentence in caught.value.sentence
    assert hint in caught.value.hint
    assert caught.value.sentence.isprintable()


def test_nobody_answers() -> None:
    made, machine = talked(Speaker)
    with (
        pytest.raises(MachineError, match="Nobody answers at the door"),
        visit.entered(made.machines, machine, patience=0.05),
    ):
        pass


def test_a_machine_that_goes_in_the_middle_is_told_so(capfd: pytest.CaptureFixture[str]) -> None:
    double = GuestDouble()
    made, machine = talked(double)

    def stay() -> None:
        with visit.entered(made.machines, machine) as (transport, _):
            double.visits[0].feed(b"")
            for _ in range(1000):
                transport.open_session()

    with pytest.raises(MachineError, match=f"{ONE} ended, or its door was closed"):
        stay()
    assert capfd.readouterr() == ("", "")


# ---- the line ----


@pytest.mark.parametrize("split", [1, 3, 1000])
def test_frames_however_they_are_cut(split: int) -> None:
    speaker = Speaker()
    raw = b"".join(struct.pack(">i", len(each)) + each for each in (b"ab", b"", b"cdef")) + GONE
    for at in range(0, len(raw), split):
        speaker.feed(raw[at : at + split])
    line = visit.Line(speaker)
    assert [line.recv(3) for _ in range(4)] == [b"ab", b"cde", b"f", b""]
    assert line.fault == ""


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (b"\xff\xff\xff\x00", "what no door says"),
        (b"\x7f\xff\xff\xff", "what no door says"),
        (b"", "ended"),
    ],
)
def test_a_line_that_ends_says_why(raw: bytes, fault: str) -> None:
    speaker = Speaker()
    speaker.feed(raw)
    line = visit.Line(speaker)
    assert line.recv(1) == b""
    assert fault in line.fault


def test_a_machine_without_a_sign_of_life_is_not_waited_for() -> None:
    line = visit.Line(Speaker(), silent=0.05)
    assert line.recv(1) == b""
    assert "no sign of life" in line.fault


def test_a_line_waits_as_long_as_it_is_told() -> None:
    line = visit.Line(Speaker())
    line.settimeout(0.01)
    with pytest.raises(TimeoutError):
        line.recv(1)
