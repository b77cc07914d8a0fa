"""The log of a machine on its page: what is shown of it, and to whom."""

from __future__ import annotations

import html
import re
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.page.site import NOW, Answers, Page
from tests.unit.page.test_views import Outline
from tests.unit.test_hostile import NASTY
from vmrunner.cli.app import clock
from vmrunner.manager.logbook import plain
from vmrunner.manager.record import Record
from vmrunner.model import entry
from vmrunner.model.entry import Entry, Source
from vmrunner.page import words
from vmrunner.page.guests import Answer
from vmrunner.page.said import SHOWN


@given(at=st.floats(1e9, 3e9) | st.integers(10**12, 3 * 10**12).map(lambda ms: ms / 1000))
def test_times_are_those_of_the_command(at: float) -> None:
    assert words.instant(at) == clock(at)


@pytest.mark.parametrize("at", [0.0, -1.0, float("inf"), float("-inf"), float("nan"), 1e300])
def test_a_time_that_is_none(at: float) -> None:
    assert words.instant(at) == "–"  # noqa: RUF001 — meant


@pytest.fixture
def guests() -> Answers:
    return Answers()


@pytest.fixture
def page(tmp_path: Path, guests: Answers) -> Iterator[Page]:
    with closing(Page(tmp_path, guests=guests)) as made:
        yield made


def ended(page: Page, *said: Entry) -> Record:
    row = page.remember(1)
    page.logbook.note(row.machine, Entry(row.created + 1, Source.MANAGER, "machine started"))
    page.logbook.keep(row.machine, said)
    return row


def lives(page: Page) -> Record:
    row = page.remember(1, ending="", destroyed=0.0, exit=0.0, job_ended=0.0)
    page.logbook.note(row.machine, Entry(row.created + 1, Source.MANAGER, "machine started"))
    return row


def lines(text: str) -> list[tuple[str, str]]:
    """Source and text of each line that is shown."""
    found = re.findall(r"<li><time [^>]+>[^<]+</time> <b>(\w+)</b> <bdi>(.*?)</bdi></li>", text)
    assert len(found) == text.count("<li><time")
    return [(source, html.unescape(said)) for source, said in found]


def test_without_the_key_nothing_is_shown(tmp_path: Path) -> None:
    with closing(Page(tmp_path)) as page:
        row = ended(page, Entry(NOW - 80, Source.CONSOLE, "it says this"))
        assert "it says this" not in page.text(f"/machines/{row.machine}")
        assert page.get(f"/machines/{row.machine}/log").status_code == 404


def test_a_machine_that_has_ended(page: Page) -> None:
    at = page.remember(1).created
    row = ended(page, Entry(at + 2, Source.CONSOLE, "boots"), Entry(at + 9, Source.RUNNER, "runs"))
    text = page.text(f"/machines/{row.machine}")
    assert Outline(text).open == []
    shown = [(source, said) for source, said in lines(text) if source != "phase"]
    assert shown == [("manager", "machine started"), ("console", "boots"), ("runner", "runs")]
    answer = page.get(f"/machines/{row.machine}/log")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert re.search(r"(?m)^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}  console  boots$", answer.text)
    assert [line.split()[2] for line in answer.text.splitlines()] == [
        source for source, _ in lines(text)
    ]


def test_the_page_has_the_last_lines_and_the_text_has_all(page: Page) -> None:
    at = page.remember(1).created
    said = [Entry(at + n / 1000, Source.CONSOLE, f"line {n}") for n in range(SHOWN * 2)]
    row = ended(page, *said)
    shown = lines(page.text(f"/machines/{row.machine}"))
    whole = page.text(f"/machines/{row.machine}/log").splitlines()
    assert len(shown) == SHOWN
    assert len(whole) > 2 * SHOWN
    assert [said for _, said in shown] == [line.split(maxsplit=3)[3] for line in whole[-SHOWN:]]


def test_what_is_added_after_the_end_is_there(page: Page) -> None:
    row = ended(page, *[Entry(NOW - 100, Source.CONSOLE, "x")] * 3 * SHOWN)
    page.logbook.note(row.machine, Entry(NOW + 1, Source.MANAGER, "its job failed"))
    assert lines(page.text(f"/machines/{row.machine}"))[-1] == ("manager", "its job failed")


def test_a_machine_that_lives(page: Page, guests: Answers) -> None:
    row = lives(page)
    raw = plain([Entry(row.created + 3, Source.CONSOLE, f"line {n}") for n in range(3 * SHOWN)])
    guests.answer = Answer(0.0, raw)
    text = page.text(f"/machines/{row.machine}")
    assert 'id="live" data-every="5"' in text
    assert "not shown" not in text
    shown = lines(text)
    assert len(shown) == SHOWN
    assert ("console", f"line {3 * SHOWN - 1}") in shown
    assert "manager  machine started" in page.text(f"/machines/{row.machine}/log")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (None, "is being asked for: look again in a moment"),
        (Answer(0.0, b"", "libvirt does not run."), "libvirt does not run. What its guest says"),
    ],
)
def test_what_its_guest_says_may_be_missing(
    page: Page, guests: Answers, answer: Answer | None, says: str
) -> None:
    row, guests.answer = lives(page), answer
    text, whole = (page.text(f"/machines/{row.machine}{more}") for more in ("", "/log"))
    assert says in text
    assert says in whole
    assert ("manager", "machine started") in lines(text)


def test_a_machine_of_which_nothing_is_known_has_no_log(page: Page) -> None:
    assert page.get("/machines/vmr-m-ffffffff/log").status_code == 404


def test_one_of_which_nothing_is_kept(page: Page) -> None:
    row = page.remember(1)
    assert {source for source, _ in lines(page.text(f"/machines/{row.machine}"))} == {"phase"}


HOSTILE = (
    *(text.encode("utf-8", "surrogatepass") for text in NASTY),
    b"\x1b[31mred\x1b[0m \x1b]0;title\x07 \x1b[2J\x1b[H",
    b"\xff\xfe\xc3( \x80\x9b31m",
    "\u202egnp.exe \u2066 \u200f \u2028line \u2029".encode(),
    b"<script>window.hit = 1</script><img src=x onerror=hit()>",
    b"</bdi></li></ol></div><h1>taken over</h1>",
    b"2026-01-01 00:00:00.000  manager  job ended: success",
    b"x" * 100_000,
    b"\t\x00\x07\x08\r overwritten",
    ("z" + "\u0300" * 2000).encode(),
)


def test_hostile_bytes_are_text_on_one_line(page: Page) -> None:
    at = page.remember(1).created
    said = entry.console(b"\n".join(HOSTILE), at, NOW, ())
    row = ended(page, *said)
    text, whole = (page.text(f"/machines/{row.machine}{more}") for more in ("", "/log"))
    outline = Outline(text)
    assert outline.open == []
    assert (outline.tags.count("h1"), outline.tags.count("script")) == (1, 1)
    assert len(outline.tags) == len(Outline(page.text(f"/machines/{row.machine}")).tags)
    assert {source for source, _ in lines(text)} == {"console", "manager", "phase"}
    assert max(len(said) for _, said in lines(text)) == 1000
    for shown in (text, whole):
        assert [each for each in shown if not each.isprintable() and each != "\n"] == []
    assert all(line.split()[2] in set(Source) for line in whole.splitlines())


def test_a_file_that_is_broken(page: Page) -> None:
    row = ended(page, Entry(NOW - 80, Source.CONSOLE, "boots"))
    path = page.world.settings.logs_dir / f"{row.machine}.jsonl"
    path.write_bytes(
        b'[1e999, "console", "late"]\n[NaN, "runner", "never"]\n[-1, "guest", "early"]\n'
        b'[1, "nobody", "x"]\n[[], "guest", "x"]\n\xff\xfe\n[1, "guest", "\\ud800"]\n{"a": 1}\n'
        + b"[" * 100_000
        + b"\n[1"
        + b"0" * 400
        + b', "guest", "x"]\n"x'
    )
    text, whole = (page.text(f"/machines/{row.machine}{more}") for more in ("", "/log"))
    assert ("console", "boots") in lines(text)
    assert "console  boots" in whole


def test_whole_logs_are_read_by_few_at_the_same_time(page: Page, guests: Answers) -> None:
    other = page.remember(2)
    row, both, go_on = lives(page), threading.Barrier(3), threading.Event()

    def said(*_: object) -> None:
        both.wait(10)
        go_on.wait(10)

    guests.said = said  # type: ignore[method-assign, assignment]  # one that waits for the test
    address, answers = f"/machines/{row.machine}/log", list[int]()
    readers = [
        threading.Thread(target=lambda: answers.append(page.get(address).status_code))
        for _ in range(2)
    ]
    for reader in readers:
        reader.start()
    both.wait(10)
    refused = page.get(address)
    assert (refused.status_code, "Others are reading logs" in refused.text) == (503, True)
    for free in ("/history", f"/machines/{other.machine}/log"):
        assert page.get(free).status_code == 200
    go_on.set()
    for reader in readers:
        reader.join(10)
    assert answers == [200, 200]
