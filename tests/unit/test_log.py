"""Log lines: an event with its fields on one line, whatever is in them; journald's priorities;
JSON.
"""

from __future__ import annotations

import json
import re

import pytest

from vmrunner.log import Format, Level, open_log
from vmrunner.model.machine import MachineId

MACHINE = MachineId("m", "0123abcd")
FORGERIES = {
    "a newline": "x\n12:00:00 machine destroyed machine=vmr-m-ffffffff",
    "a newline alone": "x\ny",
    "a carriage return": "x\ry",
    "a colour": "\x1b[31mred",
    "a one-byte escape": "\x9b31mred",
    "a line separator": "x\u2028y",
    "a vertical tab": "x\x0by",
    "right to left": "x\u202ey",
    "half a character": "x\udc80y",
    "a field": 'x" machine="vmr-m-ffffffff',
    "a bare field": "x machine=vmr-m-ffffffff",
}


@pytest.fixture(autouse=True)
def _no_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == "", "stdout is for what a command prints"
    return err


def test_a_line_has_the_time_the_event_and_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    open_log(Format.TEXT).info(
        "machine started",
        machine=MACHINE,
        pool="p",
        job="o/r: build it",
        url="https://f/x?y=1",
        none=None,
        empty="",
    )
    line = said(capsys)
    assert re.sub(r"^\d\d:\d\d:\d\d ", "", line) == (
        'machine started machine=vmr-m-0123abcd pool=p job="o/r: build it" url=https://f/x?y=1\n'
    )


def test_zero_is_a_value_and_other_scripts_stay_readable(
    capsys: pytest.CaptureFixture[str],
) -> None:
    open_log(Format.TEXT).info("x", count=0, job="Prüfung 東京")
    assert said(capsys).endswith('x count=0 job="Prüfung 東京"\n')


@pytest.mark.parametrize(("level", "priority"), [("info", 6), ("warning", 4), ("error", 3)])
def test_journald_gets_the_priority_and_no_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, level: str, priority: int
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "9:12345")
    getattr(open_log(Format.TEXT), level)("it happened", pool="p")
    assert said(capsys) == f"<{priority}>it happened pool=p\n"


@pytest.mark.parametrize("value", FORGERIES.values(), ids=FORGERIES)
@pytest.mark.parametrize("form", Format)
@pytest.mark.parametrize("place", ["field", "event"])
def test_nothing_in_a_value_makes_another_line_or_colours_it(
    capsys: pytest.CaptureFixture[str], form: Format, place: str, value: str
) -> None:
    open_log(form).error(
        **({"event": "x", "job": value} if place == "field" else {"event": value}), pool="p"
    )
    line = said(capsys)
    assert line.endswith("\n")
    assert line[:-1].isprintable()


@pytest.mark.parametrize("value", FORGERIES.values(), ids=FORGERIES)
def test_a_field_can_be_read_back(capsys: pytest.CaptureFixture[str], value: str) -> None:
    open_log(Format.TEXT).info("x", job=value, pool="p")
    (quoted,) = re.findall(r' x job=("(?:[^"\\]|\\.)*") pool=p$', said(capsys))
    assert json.loads(quoted) == value


def test_json_lines_carry_the_machine_the_pool_and_the_job(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = open_log(Format.JSON)
    log.info("machine started", machine=MACHINE, pool="p", job="o/r: build\nit")
    log.warning("machine destroyed", machine=MACHINE)
    first, second = map(json.loads, said(capsys).splitlines())
    assert first.pop("timestamp").endswith("Z")
    assert first == {
        "event": "machine started",
        "level": "info",
        "machine": "vmr-m-0123abcd",
        "pool": "p",
        "job": "o/r: build\nit",
    }
    assert (second["level"], second["machine"]) == ("warning", "vmr-m-0123abcd")


@pytest.mark.parametrize(
    ("level", "heard"),
    [
        (Level.DEBUG, ["debug", "info", "warning", "error"]),
        (Level.INFO, ["info", "warning", "error"]),
        (Level.WARNING, ["warning", "error"]),
        (Level.ERROR, ["error"]),
    ],
)
def test_only_what_is_asked_for_is_said(
    capsys: pytest.CaptureFixture[str], level: Level, heard: list[str]
) -> None:
    log = open_log(Format.JSON, level)
    for each in ("debug", "info", "warning", "error"):
        getattr(log, each)(each)
    assert [json.loads(line)["event"] for line in said(capsys).splitlines()] == heard
