"""docs/reference is current, and has all that there is."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from tests import reference
from tests.world import POOL, World
from vmrunner.cli import config_text, man
from vmrunner.config import example
from vmrunner.errors import VmrunnerError
from vmrunner.image.recipe.recipe import Recipe
from vmrunner.image.recipe.tools import ToolsRecipe
from vmrunner.manager import metrics
from vmrunner.manager.metrics import Figures


@pytest.mark.parametrize("name", reference.pages())
def test_a_page_is_what_the_source_says(name: str) -> None:
    assert (reference.FOLDER / name).read_text() == reference.pages()[name], (
        "`make reference` makes docs/reference anew"
    )


def test_there_is_no_other_page() -> None:
    assert {each.name for each in reference.FOLDER.iterdir()} == set(reference.pages())


def test_every_key_says_what_it_is_and_what_may_be_written() -> None:
    for path, rows in reference.tables_of(config_text.schema(example())):
        for key, value, default, said in rows:
            assert all((said, value, default)), f"{path}: {key}"


@pytest.mark.parametrize(
    ("key", "row"),
    [
        ("memory", '| `memory` | size, like `"2GiB"` (MiB, GiB, TiB) | `"2GiB"` |'),
        ("poll", '| `poll` | duration, like `"90s"` (ms, s, m, h, d) | `"500ms"` |'),
        ("url", "| `url` | text | needed |"),
        ("start", '| `start` | `"auto"`, `"snapshot"`, `"boot"` | `"auto"` |'),
        ("network", '| `network` | `"internet"`, `"allowlist"`, `"none"` | `"internet"` |'),
        ("mtu", "| `mtu` | whole number, 1,280 to 9,216 | - |"),
        ("cpu_overcommit", "number, more than 0 and at most 100 | `4.0` |"),
        ("scope", '| `scope` | text, or list of: text | `["instance"]` |'),
        ("schedule", "| `schedule` | list of: table of `cron`, `warm` | `[]` |"),
    ],
)
def test_a_key_of_each_kind(key: str, row: str) -> None:
    assert row in reference.configuration(), key


def test_every_key_of_a_recipe_is_there() -> None:
    keys = {
        (written, row[0].strip("`"))
        for kind in (Recipe, ToolsRecipe)
        for written, _, rows in reference.recipe_tables(kind)
        for row in rows
    }
    tables = reference._INSIDE
    assert {key for written, key in keys if not written} == (
        set(Recipe.model_fields) - tables.keys() - {"name"} | {"extends"}
    )
    assert {written for written, _ in keys} == {"", *tables.values()} - {tables["runners"]}
    assert ('[files."/PATH"]', "mode") in keys


@pytest.mark.parametrize(
    "row",
    [
        '| `size` | size, like `"2GiB"` (MiB, GiB, TiB) | needed |',
        '| `components` | list of: text | `["main"]` |',
        '| `mode` | text | `"0644"` |',
        '| `kind` | `"forgejo-runner"`, `"gitea-runner"` | needed |',
        "| `uid` | whole number, 1 to 59,999 | - | Its number.",
    ],
)
def test_a_key_of_each_kind_of_a_recipe(row: str) -> None:
    assert row in reference.recipe()


def test_what_would_end_a_cell_or_begin_a_tag_is_escaped() -> None:
    assert reference.table(["a"], [["x | y\n<b>"]]).splitlines()[2] == "| x \\| y &lt;b> |"


def test_every_figure_that_prometheus_reads_is_described(tmp_path: Any) -> None:
    world = World(tmp_path, pools={"p": POOL})
    figures = Figures(world.history)
    figures.saw(world.manager.survey(), 1.0)
    registry = CollectorRegistry()
    registry.register(figures)
    said = {
        tuple(line.split()[2:4])
        for line in generate_latest(registry).decode().splitlines()
        if line.startswith("# TYPE")
    }
    described = {(each.name, each.kind) for each in metrics.described()}
    histograms = {each for each in described if each[1] == "histogram"}
    assert described - histograms <= said <= described | {("", "")}


def test_every_command_and_every_exit_code_is_there() -> None:
    text = reference.commands()
    for command in man.described().inner:
        assert f"\n## {command.path}\n" in text
        for inner in command.inner:
            assert f"\n### {inner.path}\n" in text
    for each in VmrunnerError.__subclasses__():
        assert f"\n| {each.exit_code} | " in reference.exit_codes()
