"""`vmrunner logs` and `vmrunner history show`, of machines that are named in several ways."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes import Clock, Doom, FakeHypervisor
from tests.unit.cli.schemas import checked
from vmrunner.cli import logs_cmd
from vmrunner.cli.main import main
from vmrunner.errors import HypervisorError
from vmrunner.hypervisor.seam import File
from vmrunner.machine.bindings import Bindings
from vmrunner.manager.history import History
from vmrunner.manager.logbook import Logbook
from vmrunner.manager.record import Record
from vmrunner.model.binding import Binding
from vmrunner.model.entry import Entry, Source
from vmrunner.model.job import Credentials, Scope
from vmrunner.model.machine import MachineId

Run = Callable[..., tuple[int, str, str]]
FIRST, SECOND, LIVES = (f"vmr-m-0a0b0c0d0000000{number}" for number in (1, 2, 3))
RUN = "http://forge.example/o/r/actions/runs/7"
ENDED = Record(
    FIRST,
    "p",
    "debian-12/1",
    job="build",
    job_key="41.1",
    repository="o/r",
    url=f"{RUN}/jobs/41",
    run_url=RUN,
    verdict="failure",
    created=1000.0,
    destroyed=1100.0,
    ending="done",
    ran="yes",
    vcpus=2,
    memory_mib=1024,
    memory_peak_mib=900,
    guest_peak_mib=1000,
    cpu_seconds=12.5,
    written_bytes=5 << 20,
    log_bytes=4096,
)


@pytest.fixture
def host(tmp_path: Path) -> FakeHypervisor:
    return FakeHypervisor(doom=Doom(), now=Clock())


@pytest.fixture
def run(
    tmp_path: Path,
    host: FakeHypervisor,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Run]:
    (tmp_path / "c.toml").write_text(
        f'manager = "m"\nstate_dir = "{tmp_path}/state"\nruntime_dir = "{tmp_path}/run"\n'
        f'[forge]\nkind = "gitea"\nurl = "http://forge.example"\n'
        f'token_file = "{tmp_path}/none"\n[pools.p]\nlabels = ["a"]\nimage = "web"\n'
    )
    with closing(History(tmp_path / "state" / "history.sqlite", print)) as history:
        for record in (
            ENDED,
            replace(ENDED, machine=SECOND, job_key="41.2", created=1200.0, destroyed=1300.0),
            replace(
                Record(LIVES, "p", created=1400.0, started=1401.0),
                made_for="test",
                made_for_key="42.0",
                made_for_repository="o/r",
            ),
        ):
            history._write(record)
    book = Logbook(tmp_path / "state" / "logs")
    book.note(FIRST, Entry(1001.0, Source.MANAGER, "machine started"))
    book.keep(FIRST, [Entry(1050.0, Source.CONSOLE, "it says this")])
    book.note(LIVES, Entry(1402.0, Source.MANAGER, "machine started"))
    machine = MachineId.parse(LIVES)
    assert machine
    host.files[machine, File.CONSOLE] = b"[    3.0] boots\nlogin: "
    host.files[machine, File.RUNNER_LOG] = b"with the token hush\n"
    Bindings(tmp_path / "run", "m").save(
        Binding(machine, "p", Scope.parse("instance"), credentials=Credentials(1, "u", "hush"))
    )
    monkeypatch.setattr(logs_cmd, "open_libvirt", lambda _: host)

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr("sys.argv", ["vmrunner", *arguments, "-c", str(tmp_path / "c.toml")])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


def test_a_machine_that_has_ended(run: Run) -> None:
    code, printed, _ = run("logs", FIRST)
    lines = [line.split(maxsplit=2)[2] for line in printed.splitlines()]
    assert code == 0
    assert lines == [
        "phase    created for pool p, from debian-12/1",
        "manager  machine started",
        "console  it says this",
        "phase    destroyed: done",
    ]
    assert [each["source"] for each in checked("logs", run("logs", FIRST, "--json")[1])] == [
        line.split()[0] for line in lines
    ]


def test_a_machine_that_lives(run: Run) -> None:
    printed = run("logs", LIVES)[1]
    assert "console  [    3.0] boots" in printed
    assert "login" not in printed, "it has not ended this line"
    assert "with the token ***" in printed
    assert "hush" not in printed


def test_without_libvirt_the_rest_is_shown(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> FakeHypervisor:
        raise HypervisorError("libvirt does not run.")

    monkeypatch.setattr(logs_cmd, "open_libvirt", refuse)
    code, printed, said = run("logs", LIVES)
    assert code == 0
    assert "manager  machine started" in printed
    assert "libvirt does not run. What its guest says is not shown." in said


@pytest.mark.parametrize(
    ("text", "machine"),
    [
        (FIRST, FIRST),
        ("vmr-m-0a0b0c0d00000003", LIVES),
        ("0003", LIVES),
        ("41", SECOND),  # the one that had it last
        ("41.1", FIRST),
        ("42", LIVES),  # it was made for it, and nothing is known of what runs there
        (f"{RUN}/jobs/41", SECOND),
        (f"{RUN}/", SECOND),
    ],
)
def test_how_a_machine_may_be_named(run: Run, text: str, machine: str) -> None:
    code, printed, _ = run("history", "show", text, "--json")
    assert code == 0
    assert [each["machine"] for each in checked("history", printed)] == [machine]


@pytest.mark.parametrize("command", [("logs",), ("history", "show")])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("vmr-m-0a0b0c0d", "vmr-m-0a0b0c0d may be 3 machines."),
        ("4", "No machine is known as 4."),
        ("003", "No machine is known as 003."),
        ("vmr", "No machine is known as vmr."),
        ("%", "No machine is known as %."),
        ("/", "No machine is known as /."),
        ("../../etc/passwd", "No machine is known as ../../etc/passwd."),
        ("http://forge.example/o/r/actions/runs/8", "No machine is known as http"),
        ("a\x1b[2Jb", "No machine is known as a [2Jb."),
    ],
)
def test_one_that_is_not_known(run: Run, command: tuple[str, ...], text: str, said: str) -> None:
    code, printed, errors = run(*command, text)
    assert (code, printed) == (1, "")
    assert said in errors
    assert "Traceback" not in errors


def test_a_run_of_several_jobs_names_its_machines(run: Run, tmp_path: Path) -> None:
    with closing(History(tmp_path / "state" / "history.sqlite", print)) as history:
        history._write(replace(ENDED, machine=f"{FIRST[:-1]}9", job_key="43.1", created=1250.0))
    code, _, errors = run("logs", RUN)
    assert code == 1
    assert f"{RUN} may be 3 machines." in errors
    assert SECOND in errors


@pytest.mark.parametrize("arguments", [("show",), ("show", "a", "b"), ("a", "b")])
def test_a_command_line_that_can_not_be_meant(run: Run, arguments: tuple[str, ...]) -> None:
    code, _, errors = run("history", *arguments)
    assert code == 2
    assert "It is `history`, `history MACHINE` or `history show MACHINE`." in errors


def test_all_that_is_known_of_one(run: Run) -> None:
    code, printed, _ = run("history", "show", FIRST)
    assert code == 0
    for each in ("o/r: build", "failure", "900 MiB of the host's at most, of 1.0 GiB", "5.0 MiB"):
        assert each in printed
    assert "1.0 of 1.0 GiB of its memory were in use: give the pool more `memory`." in printed
    assert "give the pool more `memory`" in run("history", FIRST)[1]


def test_a_machine_is_followed_to_its_end(
    run: Run, host: FakeHypervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = MachineId.parse(LIVES)
    assert machine

    def later() -> None:
        host.files[machine, File.CONSOLE] += b"root\n[    4.0] works\n"

    def end() -> None:
        Logbook(tmp_path / "state" / "logs").keep(
            LIVES,
            [
                Entry(1403.0, Source.CONSOLE, text)
                for text in ("[    3.0] boots", "login: root", "[    4.0] works", "bye")
            ],
        )
        with closing(History(tmp_path / "state" / "history.sqlite", print)) as history:
            history._write(
                replace(history.named(LIVES)[0], destroyed=1500.0, ending="died", reason="it went")
            )

    steps = iter([later, lambda: None, end, lambda: None])
    monkeypatch.setattr(logs_cmd.time, "sleep", lambda _: next(steps)())
    code, printed, _ = run("logs", LIVES, "-f", "--json")
    texts = [json.loads(line)["text"] for line in printed.splitlines()]
    assert code == 0
    assert texts[-3:] == ["[    4.0] works", "bye", "destroyed: died it went"]
    for each in ("machine started", "[    3.0] boots", "login: root", "[    4.0] works"):
        assert texts.count(each) == 1
