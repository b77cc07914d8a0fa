"""The page in Chromium: for everybody (axe-core), by keyboard, on a phone, in the dark, without
scripts; and hostile names in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chromium import AXE, chromium
from tests.browser.demo import DESK, PHONE, Demo, demo, status
from tests.page import TOKEN, with_logs
from tests.unit.page.test_said import HOSTILE
from tests.unit.test_hostile import NASTY
from vmrunner.manager.history import History
from vmrunner.manager.logbook import Logbook
from vmrunner.model import entry

pytestmark = pytest.mark.long

VIEWS = (
    "/",
    "/queue",
    "/machines",
    "/history",
    "/history?text=nothing-has-this-name",
    "/machines/vmr-m-00000a00",
    "/plots?span=day",
    "/plots?span=week",
    "/plots?span=quarter",
    "/images",
    "/nothing",
)
SCRIPTS = (
    "<script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 1'>",
    '" onmouseover="window.hit = 1" autofocus onfocus="window.hit = 1',
    "'><svg onload=window.hit=1>",
    "javascript:window.hit=1",
    "</title></main></table><h1>taken over</h1>",
    "{{ 7 * 7 }}",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def made() -> Iterator[Demo]:
    with demo() as found:
        yield found


def opened(browser: Any, **options: Any) -> Any:
    """A page that remembers what the browser complains of."""
    page = browser.new_page(**({"viewport": DESK} | options))
    page.complaints = []
    page.on("console", lambda line: page.complaints.append(line.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on(
        "requestfailed",
        # Not those that the next page has ended.
        lambda request: "ABORTED" in request.failure or page.complaints.append(request.url),
    )
    return page


@pytest.mark.parametrize(("size", "scheme"), [(DESK, "light"), (PHONE, "dark")])
def test_everybody_can_use_each_view(
    browser: Any, made: Demo, size: dict[str, int], scheme: str
) -> None:
    with closing(browser.new_context(bypass_csp=True, viewport=size, color_scheme=scheme)) as own:
        page = own.new_page()
        for view in VIEWS:
            if "week" in view or "quarter" in view:
                continue  # made like the day's, with far more rows of numbers
            made.see(status())
            page.goto(made.url + view)
            page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
            page.add_script_tag(path=AXE)
            found = page.evaluate("axe.run()")["violations"]
            told = [(each["id"], [node["html"] for node in each["nodes"]][:2]) for each in found]
            assert told == [], view
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= size["width"], view


def test_nothing_comes_from_elsewhere_and_nothing_is_refused(browser: Any, made: Demo) -> None:
    page, asked = opened(browser), []
    page.on("request", lambda request: asked.append(request.url))
    for view in VIEWS[:-1]:
        page.goto(made.url + view)
    assert asked
    assert all(url.startswith(made.url) for url in asked)
    assert page.complaints == []
    page.close()


def test_by_keyboard(browser: Any, made: Demo) -> None:
    page = opened(browser)
    page.goto(made.url)

    def at() -> str:
        found: str = page.evaluate("document.activeElement.textContent.trim()")
        return found

    page.keyboard.press("Tab")
    assert at() == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.goto(made.url)
    for _ in range(5):
        page.keyboard.press("Tab")
    assert at() == "History"
    page.keyboard.press("Enter")
    page.wait_for_url("**/history")
    page.focus("input[name=text]")
    page.keyboard.type("o1/")
    page.keyboard.press("Enter")
    page.wait_for_url("**/history?text=o1%2F*")
    assert page.locator("tbody tr").count() > 0
    assert all("o1/" in row for row in page.locator("tbody tr").all_inner_texts())
    page.locator("tbody th a").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/machines/vmr-m-*")
    assert page.locator("svg.life rect").count() > 3
    page.close()


def test_what_is_new_comes_by_itself_and_can_be_paused(browser: Any, made: Demo) -> None:
    page = opened(browser)
    made.see(status())
    page.goto(made.url)
    assert page.locator("text=No job waits.").count() == 0
    made.see(replace(status(), waiting=()))
    page.wait_for_selector("text=No job waits.", timeout=30_000)
    pause = page.get_by_role("button", name="Pause updates")
    pause.click()
    assert pause.get_attribute("aria-pressed") == "true"
    made.see(status())
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(7000)
    assert asked == []
    assert page.complaints == []
    page.close()


def test_who_is_in_the_middle_of_it_is_not_disturbed(browser: Any, made: Demo) -> None:
    page = opened(browser)
    made.see(status())
    page.goto(made.url)
    page.locator("#live a").first.focus()
    made.see(replace(status(), waiting=()))
    page.wait_for_timeout(7000)
    assert page.locator("text=No job waits.").count() == 0
    page.close()


def test_without_scripts(browser: Any, made: Demo) -> None:
    with closing(browser.new_context(java_script_enabled=False)) as own:
        page = own.new_page()
        made.see(status())
        page.goto(made.url)
        assert page.locator("text=no pool has the label arm64").count() == 1
        assert page.locator("text=Pause").count() == 0
        page.click("text=Plots")
        page.wait_for_load_state()
        assert page.locator("svg.chart").count() == 4


def test_hostile_names_do_nothing(browser: Any, made: Demo) -> None:
    history = History(made.folder / "history.sqlite", print)
    (sample,) = history._read("WHERE machine = ?", "vmr-m-00000a00")
    names = [*NASTY, *SCRIPTS]
    for number, name in enumerate(names):
        text = name.encode("utf-8", "replace").decode()
        history._write(
            replace(
                sample,
                machine=f"vmr-m-h{number:07x}",
                job=text,
                repository=text,
                reason=text,
                labels=text,
                pool=text,
                url=name if number % 2 else "javascript:window.hit=1",
                verdict=text[:50],
                ending=text[:50] or "x",
                destroyed=time.time() + number / 1000,
            )
        )
    history.close()
    normal = status()
    hostile = [
        replace(each, name=name, repository=name, reason=name, url=name, labels=(name,))
        for name in names
        for each in normal.waiting[:1]
    ]
    made.see(replace(normal, waiting=tuple(hostile)))
    page = opened(browser)
    views = ["/", "/queue", "/history", "/plots?span=day"]
    last = range(len(NASTY), len(names))
    for view in [*views, *(f"/machines/vmr-m-h{number:07x}" for number in last)]:
        page.goto(made.url + view)
        page.mouse.move(300, 300)
        assert page.evaluate("window.hit") is None, view
        assert page.locator("h1").count() == 1, view
        assert page.locator("a[href^='javascript:']").count() == 0, view
        assert "49" not in page.locator("main").inner_text().split(), view
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= DESK["width"], view
    assert page.complaints == []
    page.close()


def test_a_machines_log(browser: Any, tmp_path: Path) -> None:
    """For everybody, on a desk and on a phone, whatever a guest has printed; and as text."""
    console = b"\n".join((*HOSTILE, *(each.encode() for each in SCRIPTS)))
    with demo(with_logs(tmp_path), rows=300) as made:
        with closing(History(made.folder / "history.sqlite", print)) as history:
            (sample,) = history._read("LIMIT 1")
        address = f"{made.url}/machines/{sample.machine}"
        said = entry.console(console, sample.created, time.time(), ())
        Logbook(made.folder / "logs").keep(sample.machine, said)
        for size, scheme in ((DESK, "light"), (PHONE, "dark")):
            given = {"username": "anybody", "password": TOKEN}
            options = {"viewport": size, "color_scheme": scheme, "http_credentials": given}
            page = opened(browser, **options)
            page.goto(address)
            assert page.locator("ol.log li").count() > len(SCRIPTS) + 10
            assert page.evaluate("window.hit") is None
            assert page.locator("h1").count() == 1
            assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
            rows = page.evaluate(
                "[...document.querySelectorAll('ol.log li')].map(each => each.clientHeight)"
            )
            assert min(rows) > 0
            page.get_by_role("link", name="All of them, as text").focus()
            page.keyboard.press("Enter")
            page.wait_for_url(f"{address}/log")
            assert page.evaluate("document.contentType") == "text/plain"
            assert "window.hit = 1" in page.locator("body").inner_text()
            assert page.evaluate("window.hit") is None
            assert page.complaints == []
            page.close()
            with closing(browser.new_context(bypass_csp=True, **options)) as own:
                page = own.new_page()
                page.goto(address)
                page.add_script_tag(path=AXE)
                assert [each["id"] for each in page.evaluate("axe.run()")["violations"]] == []


def test_a_machines_page_comes_to_rest_with_its_end(browser: Any, made: Demo) -> None:
    history = History(made.folder / "history.sqlite", print)
    (sample,) = history._read("WHERE machine = ?", "vmr-m-00000a01")
    living = replace(sample, machine="vmr-m-0000ffff", ending="", destroyed=0.0, exit=0.0)
    history._write(living)
    page = opened(browser)
    page.goto(f"{made.url}/machines/{living.machine}")
    assert page.locator("text=it lives").count() == 1
    history._write(replace(living, ending="done", destroyed=time.time()))
    history.close()
    page.wait_for_selector("text=it lives", state="detached", timeout=30_000)
    page.wait_for_selector("text=Pause updates", state="detached", timeout=30_000)
    assert page.locator("text=done").count() >= 1
    assert page.complaints == []
    page.close()


def test_machines_are_found_among_many(browser: Any, made: Demo) -> None:
    """By keyboard, on a phone."""
    page, normal = opened(browser, viewport=PHONE), status()
    (linux, *others), machine = normal.pools, normal.pools[0].machines[0]
    many = tuple(
        replace(machine, name=f"vmr-m-{n:08x}", phase=("ready", "running")[n % 2], age_seconds=n)
        for n in range(300)
    )
    made.see(replace(normal, pools=(replace(linux, machines=many), *others)))
    page.goto(f"{made.url}/machines")
    assert page.locator("tbody tr").count() == 50
    page.get_by_label("Phase").focus()
    page.keyboard.type("running")
    page.get_by_label("Order").focus()
    page.keyboard.type("old")
    page.get_by_role("button", name="Show").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/machines?*phase=running*")
    page.get_by_role("link", name="Next").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**page=2*")
    assert page.locator("tbody th").first.inner_text() == f"vmr-m-{199:08x}"
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert page.complaints == []
    page.close()


def test_the_token_is_a_password_to_the_browser(browser: Any, tmp_path: Path) -> None:
    with demo(with_logs(tmp_path), rows=10) as made:
        for password, code in ((TOKEN, 200), ("wrong", 401)):
            given = {"username": "anybody", "password": password}
            with closing(browser.new_context(http_credentials=given)) as own:
                assert own.new_page().goto(made.url).status == code
