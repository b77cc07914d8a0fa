"""What runs in machines to try their isolation: that it finds what there is, and forges what it
says. tests/net and tests/vm run it for real.
"""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.caching import served
from tests.unit.guest.programs import load
from vmrunner.cache.rights import Rights
from vmrunner.doctor.isolation import ears, network
from vmrunner.doctor.isolation import load as loads

Probe = Any
MAC, ROUTER, PEER_MAC = "52:54:00:00:00:09", "52:54:00:00:00:01", "52:54:00:00:00:0a"
FOUR = ("10.87.0.9", "10.87.0.1", "10.87.0.10")
SIX = ("fd87::9", "fd87::1", "fd87::a")


def printed(probe: Probe, capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """What its command line prints, which is JSON."""
    probe.sys = SimpleNamespace(argv=["probe", *arguments], stderr=sys.stderr)
    probe.main()
    return json.loads(capsys.readouterr().out)


# ---- the network ----


@pytest.fixture
def net() -> Probe:
    return load("probe_network.py")


def test_a_cache_tells_who_has_a_job_and_nobody_else(
    net: Probe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(tmp_path / "cache", {}) as service:
        asked = json.dumps([["cache", "127.0.0.1", service.port], ["cache", "127.0.0.1", 9]])
        assert printed(net, capsys, "try", asked) == [False, False]
        service.allow({"127.0.0.1": Rights("o/r", None, ("refs/heads/main",))})
        assert printed(net, capsys, "try", asked) == [True, False]


def sum_of(content: bytes) -> int:
    """RFC 1071: 0xFFFF over what has its checksum in it."""
    total = sum(struct.unpack(f"!{len(content) // 2}H", content))
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return total


def forged(net: Probe) -> dict[str, tuple[str, str, int, bytes]]:
    """Every frame that it knows."""
    address, gateway, peer = FOUR
    found = net.frames(MAC, address, gateway, ROUTER, peer, PEER_MAC)
    address, gateway, peer = SIX
    made: dict[str, Any] = found | net.frames6(MAC, address, gateway, peer, PEER_MAC)
    return made


def test_every_frame_that_doctor_sends_is_known(net: Probe) -> None:
    wanted = {
        *network._AT_THE_HOST,
        *network._AT_THE_NEIGHBOUR,
        *network._AT_THE_HOST6,
        *network._AT_THE_NEIGHBOUR6,
    }
    assert wanted <= forged(net).keys()


def test_every_frame_is_known_again_by_its_mark(net: Probe) -> None:
    for name, (*_, content) in forged(net).items():
        assert net.MARK.findall(content) == [name.encode()] == ears._MARK.findall(content)


def test_a_forged_packet_is_a_good_one(net: Probe) -> None:
    """The firewall drops it for what is forged in it, not because it is broken."""
    kinds = set()
    for name, (*_, kind, frame) in forged(net).items():
        if kind == net.VLAN:
            (kind,), frame = struct.unpack("!2xH", frame[:4]), frame[4:]
        if kind == net.IP4:
            assert (frame[0], sum_of(frame[:20])) == (0x45, 0xFFFF), name
            assert struct.unpack("!H", frame[2:4])[0] == len(frame), name
        elif kind == net.IP6:
            length, header = struct.unpack("!HB", frame[4:7])
            assert frame[40 + length :] == net.mark(name), name
            content = frame[40 : 40 + length]
            if header in (socket.IPPROTO_DSTOPTS, socket.IPPROTO_FRAGMENT):
                header, content = content[0], content[8:]
            pseudo = frame[8:40] + struct.pack("!II", len(content), header)
            assert sum_of(pseudo + content) == 0xFFFF, name
        kinds.add(kind)
    assert kinds == {net.IP4, net.IP6, net.ARP}


def test_what_is_forged_in_a_frame(net: Probe) -> None:
    frames = forged(net)
    peer = socket.inet_aton(FOUR[2])
    source, target, _, content = frames["a neighbour altogether"]
    assert (source, target, content[12:16]) == (PEER_MAC, ROUTER, peer)
    assert (frames["honest"][0], frames["another mac"][0]) == (MAC, "52:54:00:ff:ff:ff")
    assert frames["a neighbours address"][3][12:16] == peer
    # An answer: the gateway's address is at this machine's MAC.
    assert frames["arp for the gateway"][3][6:18] == (
        b"\0\2" + bytes.fromhex(MAC.replace(":", "")) + socket.inet_aton(FOUR[1])
    )
    redirect = frames["redirect"][3][40:]
    assert (redirect[0], redirect[24:40]) == (137, socket.inet_pton(socket.AF_INET6, SIX[1]))


@pytest.fixture
def ports() -> Iterator[dict[str, int]]:
    """Of this host: open, closed and echo (UDP), mute (UDP)."""
    with ExitStack() as stack:
        made = {
            name: stack.enter_context(closing(socket.socket(socket.AF_INET, kind)))
            for name, kind in (
                ("open", socket.SOCK_STREAM),
                ("closed", socket.SOCK_STREAM),
                ("echo", socket.SOCK_DGRAM),
                ("mute", socket.SOCK_DGRAM),
            )
        }
        for each in made.values():
            each.bind(("127.0.0.1", 0))
        made["open"].listen()
        found = {name: each.getsockname()[1] for name, each in made.items()}

        def echo() -> None:
            for _ in range(2):
                made["echo"].sendto(b"echo", made["echo"].recvfrom(64)[1])

        thread = threading.Thread(target=echo)
        thread.start()
        yield found
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as last:
            while thread.is_alive():
                last.sendto(b"", ("127.0.0.1", found["echo"]))
                thread.join(0.05)


def test_a_refusal_is_an_answer_of_somebody(
    net: Probe, ports: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    answers = [
        ("tcp", "open", True),
        ("connect", "open", True),
        ("tcp", "closed", True),
        ("connect", "closed", False),
        ("udp", "echo", True),
        ("echo", "echo", True),
    ]
    silence = [("udp", "mute", False), ("echo", "mute", False)]
    for patience, wanted in ((30.0, answers), (0.3, silence)):
        net.PATIENCE = patience
        asked = json.dumps([(kind, "127.0.0.1", ports[name]) for kind, name, _ in wanted])
        assert printed(net, capsys, "try", asked) == [answer for *_, answer in wanted]


def test_a_question_for_a_name(net: Probe) -> None:
    asked = net.query("a.example")
    assert asked[2:12] == b"\1\0\0\1\0\0\0\0\0\0", "recursive, and one"
    assert asked[12:] == b"\1a\7example\0\0\1\0\1"


@pytest.mark.parametrize(
    ("mounts", "vsock", "found"),
    [
        ("/dev/vda / ext4 rw 0 0\n9p /srv tmpfs rw 0 0\n", False, False),
        ("host /srv 9p rw 0 0\n", False, True),
        ("host /srv virtiofs rw 0 0\n", False, True),
        ("", True, True),
    ],
)
def test_a_way_beside_the_network(net: Probe, mounts: str, vsock: bool, found: bool) -> None:
    net.open = lambda path: {"/proc/mounts": io.StringIO(mounts)}[path]
    net.os = SimpleNamespace(path=SimpleNamespace(exists=lambda path: vsock))
    assert net.shared() is found


# ---- what is left of a job ----


@pytest.fixture
def residue() -> Probe:
    return load("probe_residue.py")


TOKEN = "5e" * 16


def test_a_mark_is_found_wherever_it_lies(residue: Probe, tmp_path: Path) -> None:
    """Also over the border of what is read at once."""
    residue.CHUNK = 100
    mark = residue.mark("environment", TOKEN)
    assert len(mark) <= residue.LONGEST
    for at in range(250):
        (tmp_path / "disk").write_bytes(b"<residue " + bytes(at) + mark + b"<residue raw x>")
        assert residue.marks_of(str(tmp_path / "disk")) == {"environment"}, at
    assert residue.marks_of(str(tmp_path / "none")) == set()
    assert residue.marks(residue.mark("a", TOKEN) + residue.mark("b", TOKEN)) == {"a", "b"}


def test_places_of_a_disk(residue: Probe, tmp_path: Path) -> None:
    size = 1 << 30
    with (tmp_path / "disk").open("wb") as disk:
        disk.truncate(size)
        places = residue.places(disk.fileno())
    assert len(set(places)) == residue.PLACES
    assert all(at % 4096 == 0 and size * 3 // 4 <= at <= size - 4096 for at in places)


def test_the_memory_is_what_has_a_physical_address(residue: Probe, tmp_path: Path) -> None:
    """As the kernel's own map of it, an ELF core, says."""
    segments = [("inside", 1, 0), ("nowhere", 1, 2**64 - 1), ("note", 4, 0)]
    head = bytearray(64)
    struct.pack_into("<Q", head, 32, 64)
    struct.pack_into("<HH", head, 54, 56, len(segments))
    contents, table = b"", b""
    for name, kind, physical in segments:
        content = residue.mark(name.rstrip(), TOKEN).rjust(300, b"\0")
        at = 64 + 56 * len(segments) + len(contents)
        table += struct.pack("<IIQQQQQQ", kind, 0, at, 0, physical, len(content), 0, 0)
        contents += content
    (tmp_path / "kcore").write_bytes(bytes(head) + table + contents)
    core = {"/proc/kcore": tmp_path / "kcore"}
    residue.CHUNK = 100
    residue.open = lambda path, mode, **more: core[path].open(mode, **more)
    assert residue.memory() == {"inside"}


# ---- load, and credentials ----


def test_every_attack_of_doctor_is_known() -> None:
    assert load("probe_load.py").ATTACKS.keys() == loads._ATTACKS.keys()


class Forge(BaseHTTPRequestHandler):
    """It answers who has this token, and only two calls."""

    asked: list[tuple[str, Any]]

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(content, self.headers["x-runner-token"] == "t0ken")

    def do_GET(self) -> None:
        self._answer(None, self.headers["Authorization"] == "token t0ken")

    def _answer(self, content: Any, known: bool) -> None:
        name = self.path.rpartition("/")[2]
        self.asked.append((name, content))
        self.send_response(200 if known and name in ("Declare", "user") else 401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@pytest.mark.parametrize(("token", "answered"), [("t0ken", {"declare", "api"}), ("other", set())])
def test_what_credentials_are_good_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], token: str, answered: set[str]
) -> None:
    probe = load("probe_credentials.py")
    probe.open = lambda path, mode: {"/etc/hosts": tmp_path / "hosts"}[path].open(mode)
    Forge.asked = []
    forge = ThreadingHTTPServer(("127.0.0.1", 0), Forge)
    threading.Thread(target=forge.serve_forever, daemon=True).start()
    told = {
        "url": f"http://127.0.0.1:{forge.server_port}",
        "uuid": "u",
        "token": token,
        "label": "l",
        "ca": "",
        "hosts": ["203.0.113.10 forge.example"],
    }
    try:
        found = printed(probe, capsys, json.dumps(told))
    finally:
        forge.shutdown()
        forge.server_close()
    assert {call for call, answer in found.items() if answer} == answered
    assert found.keys() == {"declare", "fetch", "single", "register", "api"}
    names = ["Declare", "FetchTask", "FetchSingleTask", "Register", "user"]
    assert [name for name, _ in Forge.asked] == names
    assert (tmp_path / "hosts").read_text() == "203.0.113.10 forge.example\n"


# ---- the image ----


@pytest.fixture
def image() -> Probe:
    return load("probe_image.py")


HEAD = "  sl  local_address rem_address   st\n"
TABLES = {
    "tcp": "0: 0100007F:0016 00000000:0000 0A\n1: 00000000:0016 00000000:0000 0A\n"
    "2: 0A57000A:D431 0157000A:01BB 01\n",
    "tcp6": f"0: {'0' * 24}01000000:0019 {'0' * 32}:0000 0A\n"
    f"1: {'0' * 32}:006F {'0' * 32}:0000 0A\n",
    "udp": "0: 3500007F:0035 00000000:0000 07\n1: 00000000:0044 00000000:0000 07\n"
    "2: 00000000:14E9 00000000:0000 07\n",
}


@pytest.mark.parametrize(
    ("listens", "found"), [([], "tcp 111, tcp 22, udp 68"), ([22, 68, 111], "none")]
)
def test_what_listens_beyond_the_loopback(image: Probe, listens: list[int], found: str) -> None:
    def opened(path: str) -> io.StringIO:
        if (table := path.removeprefix("/proc/net/")) in TABLES:
            return io.StringIO(HEAD + TABLES[table])
        raise FileNotFoundError  # udp6: a kernel without IPv6

    image.open = opened
    assert image.ports({"listens": listens}) == (found == "none", found)


def test_secrets_that_somebody_left(image: Probe, tmp_path: Path) -> None:
    for name in ("one", "below/two", "packages/three"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / ".netrc").touch()
    (tmp_path / "one/.pgpass").symlink_to("/etc/hostname")
    image.PLACES, image.TEXTS = (str(tmp_path),), (str(tmp_path / "packages"),)
    image.is_shipped = lambda path: "below" not in path
    assert image.secrets({}) == (False, f"{tmp_path}/one/.netrc")
    for number in range(6):
        (tmp_path / f"{number}.d").mkdir()
        (tmp_path / f"{number}.d/.netrc").touch()
    assert image.secrets({})[1].endswith(" and 2 more")
    image.is_shipped = lambda path: False
    assert image.secrets({}) == (True, "none"), "it was made at the boot"


@pytest.mark.parametrize(
    ("tells", "least", "passes"),
    [
        ("git version 2.34.0", [2, 34, 1], False),
        ("git version 2.9.5", [2, 34, 1], False),
        ("git: it says nothing", [2, 34, 1], False),
        ("git version 2.34.1", [2, 34, 1], True),
        ("git version 2.47.3", [2, 34, 1], True),
        ("git version 2.9.5", [], True),
    ],
)
def test_a_git_that_the_runner_can_not_use(
    image: Probe, monkeypatch: pytest.MonkeyPatch, tells: str, least: list[int], passes: bool
) -> None:
    really = image.run

    def run(*command: str, **options: Any) -> Any:
        if command == ("git", "--version"):
            return SimpleNamespace(returncode=0, stdout=tells, stderr="")
        return really("true", **options)

    image.run = run
    monkeypatch.setattr(image.shutil, "which", lambda name: name)
    passed, said = image.git({"has_git": True, "least_git": least})
    assert (passed, "needs git 2.34.1" in said) == (passes, not passes)


@pytest.mark.parametrize(("has", "least"), [(False, []), (True, []), (False, [2, 34, 1])])
def test_an_image_without_git(
    image: Probe, monkeypatch: pytest.MonkeyPatch, has: bool, least: list[int]
) -> None:
    monkeypatch.setattr(image.shutil, "which", lambda name: None)
    passed, said = image.git({"has_git": has, "least_git": least})
    assert (passed, "needs git" in said) == (not has and not least, bool(least))


@pytest.mark.parametrize(
    ("stdout", "stderr", "said"),
    [
        ("one\ntwo\n", "", "exit 3: two"),
        ("", "\n  wrong  \n\n", "exit 3: wrong"),
        ("", "x" * 500, f"exit 3: {'x' * 160}"),
        ("", "", "exit 3"),
    ],
)
def test_what_a_program_said_in_the_end(image: Probe, stdout: str, stderr: str, said: str) -> None:
    done = SimpleNamespace(returncode=3, stdout=stdout, stderr=stderr)
    assert image.last(done) == said


def test_what_was_in_the_image_is_older_than_the_boot(image: Probe, tmp_path: Path) -> None:
    changed = os.lstat(tmp_path).st_ctime
    for booted, shipped in ((changed + 10, True), (changed + 1, False), (changed - 10, False)):
        image.open = lambda path, at=booted: {"/proc/stat": io.StringIO(f"cpu 1\nbtime {at}\n")}[
            path
        ]
        assert image.is_shipped(str(tmp_path)) is shipped
    assert image.is_shipped(str(tmp_path / "none")) is False


def test_each_look_is_answered_whatever_the_others_do(
    image: Probe, capsys: pytest.CaptureFixture[str]
) -> None:
    image.settled = lambda: None
    for name in ("root", "space", "runners", "dns", "forge", "secrets", "host_keys", "machine_id"):
        setattr(image, name, lambda _: (True, "fine"))
    for name in ("ports", "units", "git", "settings"):
        setattr(image, name, lambda _: (True, "fine"))

    def broken(_: object) -> None:
        raise OSError("it is broken")

    def late(_: object) -> None:
        raise image.subprocess.TimeoutExpired("x", 30.0)

    image.seed, image.dns = broken, late
    image.tools = lambda _: (True, "no node", True)
    image.job_user = lambda _: (False, "no home", False)
    image.sys = SimpleNamespace(
        argv=["probe", json.dumps({"checks": {"mine": "echo so; exit 4", "fine": "exec true"}})]
    )
    image.main()
    clock, *lines = map(json.loads, capsys.readouterr().out.splitlines())
    assert clock.keys() == {"now"}
    found = {line["check"]: (line["passed"], line["measured"], line["noted"]) for line in lines}
    assert found["seed"] == (False, "OSError: it is broken", False)
    assert found["dns"] == (False, "it did not end within 30 s", False)
    assert (found["tools"], found["job user"]) == (
        (True, "no node", True),
        (False, "no home", False),
    )
    assert found["recipe: mine"] == (False, "exit 4: so", False)
    assert found["recipe: fine"] == (True, "exit 0", False)
    assert len(found) == 17


def test_the_last_word_of_a_program_that_says_much_is_its_error() -> None:
    image = load("probe_image.py")
    both = image.subprocess.CompletedProcess([], 7, "half\n", "a warning\nit is broken\n")
    assert image.last(both) == "exit 7: it is broken"
    assert image.last(image.subprocess.CompletedProcess([], 0, "fine\n", "")) == "exit 0: fine"
