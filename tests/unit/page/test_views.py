"""What the page shows of the last pass, the history and the images."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from tests.goldens import publish
from tests.unit.page.site import NOW, VIEWS, Page
from vmrunner.model.machine import EventKind, MachineId
from vmrunner.page.past import SHOWN


class Outline(HTMLParser):
    """The elements of a page, and what lies between them."""

    VOID = ("meta", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        # A list's <option> may end with the next one, nothing else does.
        while self.open and self.open[-1] == "option" != tag:
            self.open.pop()
        assert self.open.pop() == tag, (tag, self.open)


def busy(page: Page) -> str:
    """A world with a job that runs, and some that wait; the machine's name."""
    world = page.world
    for number in range(1, 8):
        world.forge.queue(number, ("debian-12",), "acme/site")
    world.forge.queue(9, ("arm64",), "acme/<b>app</b>")
    world.manager.reconcile()
    machine = world.machines()[0]
    world.hypervisor.report(machine, EventKind.UP, EventKind.SEED)
    page.look()
    return str(machine)


def all_of(page: Page, address: str) -> list[str]:
    """The machines on this page of the history, and on those that follow it."""
    text = page.text(address)
    names = re.findall(r'href="/machines/(vmr-[^"]+)"', text)
    found = re.search(r'href="([^"]+)" rel="next"', text)
    return names + (all_of(page, f"/history{found[1].replace('&amp;', '&')}") if found else [])


@pytest.mark.parametrize("view", VIEWS)
def test_each_view_is_whole_without_anything_to_show(page: Page, view: str) -> None:
    outline = Outline(page.text(view))
    assert outline.open == []
    assert outline.tags.count("h1") == outline.tags.count("main") == 1
    assert ("aria-current", "page") in outline.attributes


def test_now(page: Page) -> None:
    busy(page)
    text = page.text("/")
    assert Outline(text).open == []
    assert "As of the pass 0 s ago." in text
    assert "<b>0</b> running, 4 of 4 there" in text
    assert "acme/&lt;b&gt;app&lt;/b&gt;: " in text
    assert "no pool has the label arm64" in text


def test_the_queue_is_shown_in_parts(page: Page) -> None:
    busy(page)
    page.seen(lambda plain: plain["status"].update(waiting=plain["status"]["waiting"] * 60))
    text = page.text("/queue?page=2")
    total = len(json.loads(page.seen_file.read_text())["status"]["waiting"])
    assert f"51 to 100 of {total} waiting jobs" in text
    assert 'href="?page=1"' in text
    assert 'href="?page=3"' in text
    assert "Before" not in page.text("/queue")


@pytest.mark.parametrize("asked", ["0", "-1", "x", "1e9", "999999999999999999999", "٣", ""])
def test_a_part_that_is_not_there(page: Page, asked: str) -> None:
    busy(page)
    assert "acme/site" in page.text(f"/queue?page={asked}")


def test_machines_of_a_pool(page: Page) -> None:
    name = busy(page)
    assert f'href="/machines/{name}"' in page.text("/machines?pool=p")
    assert "No machine fits." in page.text("/machines?pool=big")
    assert "No machine fits." in page.text("/machines?pool=<script>")


def test_the_list_of_machines_is_filtered_ordered_and_shown_in_parts(page: Page) -> None:
    busy(page)

    def many(plain: dict[str, Any]) -> None:
        pool = plain["status"]["pools"][0]
        sample = pool["machines"][0]
        pool["machines"] = [
            sample
            | {"name": f"vmr-m-{n:08x}", "age_seconds": n, "phase": ("ready", "running")[n % 2]}
            for n in range(120)
        ]

    page.seen(many)
    text = page.text("/machines?phase=running&order=oldest+first&page=2")
    assert Outline(text).open == []
    assert "51 to 60 of 60 machines" in text
    assert re.findall(r'href="/machines/vmr-m-([^"]+)"', text) == [
        f"{n:08x}" for n in range(19, 0, -2)
    ]
    assert 'href="?phase=running&amp;order=oldest+first&amp;page=1" rel="prev"' in text
    assert "<option selected>running" in text
    assert "<option selected>oldest first" in text
    assert page.text("/machines?order=x&phase=").count('<th scope="row">') == 50


def test_a_machine_that_lives(page: Page) -> None:
    text = page.text(f"/machines/{busy(page)}")
    assert re.search(r"it lives: (started|bound|running)", text), text
    assert 'id="live"' in text


def test_a_machine_that_has_ended(page: Page) -> None:
    row = page.remember(1, url="https://forge.example/acme/site/actions/runs/1")
    text = page.text(f"/machines/{row.machine}")
    assert '<a href="https://forge.example/acme/site/actions/runs/1"' in text
    assert [
        name in text for name in ("waiting in the queue", "being made", "runner at work", "ending")
    ] == [True] * 4
    assert "data-every" not in text
    assert page.get("/machines/vmr-m-ffffffff").status_code == 404


def test_a_pass_that_was_long_ago_is_told(page: Page) -> None:
    assert "No pass of" in page.text("/")
    busy(page)
    page.world.clock.now += 60
    assert "The last pass was 60 s ago" in page.text("/")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"at": 1}', '{"at":1,"waiting":1,"status":7}'])
def test_a_file_of_the_last_pass_that_is_none(page: Page, content: str) -> None:
    page.seen_file.write_text(content)
    assert "No pass of" in page.text("/")


def test_the_history_is_read_from_its_end_in_parts(page: Page) -> None:
    names = [page.remember(number).machine for number in range(2 * SHOWN + 10)]
    assert all_of(page, "/history") == names


@pytest.mark.parametrize(
    ("asked", "numbers"),
    [
        ("pool=big", {2}),
        ("verdict=failure", {3}),
        ("ending=boot-timeout", {4}),
        ("failed=1", {4}),
        ("text=ACME%2FAPP", {5}),
        ("text=vmr-m-00000006", {6}),
        ("text=%25", set()),
        ("pool=p&text=job+7", {7}),
        ("before=nan,x", set()),
        ("before=x", set(range(1, 8))),
        (f"before={NOW - 400!r},~", {7}),
    ],
)
def test_filters_of_the_history(page: Page, asked: str, numbers: set[int]) -> None:
    special = {
        2: {"pool": "big"},
        3: {"verdict": "failure"},
        4: {"ending": "boot-timeout", "job": "", "made_for": "x"},
        5: {"repository": "acme/app"},
    }
    names = {
        page.remember(number, **special.get(number, {})).machine: number for number in range(1, 8)
    }
    found = re.findall(r'href="/machines/(vmr-[^"]+)"', page.text(f"/history?{asked}"))
    assert {names[name] for name in found} == numbers


def test_a_rare_one_is_found_by_looking_further_back(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmrunner.page.past._LOOKED_THROUGH", 10)
    for number in range(25):
        page.remember(number, destroyed=NOW - number // 7)  # some of them together
    page.remember(25, repository="acme/rare")
    address, pages = "/history?text=rare", 0
    assert len(set(all_of(page, "/history"))) == len(all_of(page, "/history")) == 26
    while "vmr-m-00000019" not in (text := page.text(address)):
        assert "No machine since" in text
        found = re.search(r'href="([^"]+)" rel="next"', text)
        assert found
        address, pages = f"/history{found[1].replace('&amp;', '&')}", pages + 1
    assert pages == 2


def test_plots_come_when_they_are_drawn(page: Page) -> None:
    for number in range(20):
        page.remember(number, verdict="failure" if number % 4 == 0 else "success")
    page.remember(21, ending="boot-timeout", job="", ran="no", repository="acme/other")
    assert "being summed up" in page.text("/plots")
    page.summary.look()
    for span in ("day", "week", "quarter"):
        text = page.text(f"/plots?span={span}")
        assert Outline(text).open == []
        assert "20 jobs ended" in text
        assert "boot-timeout" in text
        assert "acme/other" in text
        assert "style=" not in text
    assert page.text("/plots?span=century") == page.text("/plots")


def test_images(page: Page) -> None:
    folder = page.world.settings.images_dir / "debian-12"
    line = {
        "at": "2026-01-02T00:00:00+00:00",
        "from": "2",
        "to": "1",
        "why": "rolled back automatically",
        "by": "vmrunner",
        "cause": "boot-timeout <i>",
    }
    (folder / "promotions.jsonl").write_text(json.dumps(line) + "\n")
    (folder / "0").mkdir()
    (folder / "0" / "manifest.json").write_text("{")
    text = page.text("/images")
    assert Outline(text).open == []
    assert "rolled back automatically: boot-timeout &lt;i&gt;" in text
    assert "damaged" in text
    assert "<b>current</b>" in text


def test_a_disk_of_tools_shows_its_tools(page: Page) -> None:
    images = page.world.settings.images_dir
    publish(images, "1", name="tools", tools={"go/1.26.0/x64": "0" * 64, "node/22.1.0/x64": "1"})
    (images / "tools" / "0").mkdir()
    (images / "tools" / "0" / "manifest.json").write_text("{")
    text = page.text("/images")
    assert Outline(text).open == []
    ours = text.partition("<h2>tools, a disk of tools</h2>")[2]
    assert "<td>go 1.26.0, node 22.1.0</td>" in ours
    assert "Packages" not in ours
    assert "damaged" in ours
    assert "Packages" in text, "of images"


def test_a_history_that_is_none(page: Page) -> None:
    page.world.history.close()
    file = page.world.settings.state_dir / "history.sqlite"
    file.write_bytes(b"no database" * 1000)
    answer = page.get("/history")
    assert (answer.status_code, "can&#39;t be read" in answer.text) == (500, True)
    assert ("the page could not show this", "/history") in [
        (event, fields.get("path")) for event, fields in page.log.lines
    ]
    assert page.get("/").status_code == 200


def test_what_a_machine_took_is_shown_with_hints(page: Page) -> None:
    took = {"vcpus": 2, "memory_mib": 2048, "memory_peak_mib": 1900, "guest_peak_mib": 2040}
    page.remember(1, **took, cpu_seconds=33.0, waited_seconds=400.0, written_bytes=5 << 20)
    page.remember(2)
    with_figures, without = (page.text(f"/machines/vmr-m-0000000{number}") for number in (1, 2))
    assert "1.9 GiB of the host" in with_figures
    assert "33 s of the host" in with_figures
    assert "5.0 MiB written" in with_figures
    record = page.world.history.find(MachineId("m", "00000001"))
    assert record
    assert record.lacks
    assert all(hint in html.unescape(with_figures) for hint in record.lacks)
    assert "What it took" not in without


def test_a_held_machine_says_why_and_for_how_long(page: Page) -> None:
    busy(page)

    def hold(plain: dict[str, Any]) -> None:
        machine = plain["status"]["pools"][0]["machines"][0]
        machine["phase"] = "held"
        machine["held"] = {"why": "its <job> failed", "seconds": 5.0, "left_seconds": 600.0}

    page.seen(hold)
    assert "held for 10 min more: its &lt;job&gt; failed" in page.text("/machines")
