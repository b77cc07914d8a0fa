"""`make reference`: the pages of docs/reference, made of what the program says of itself."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from vmrunner.cache import figures as kept
from vmrunner.cli import config_text, man
from vmrunner.cli.meanings import ENDINGS, WAITS
from vmrunner.config import Duration, Mebibytes, example
from vmrunner.image.recipe import recipe as recipes
from vmrunner.image.recipe import tools
from vmrunner.manager import metrics, webhook
from vmrunner.model.machine import Phase

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
_MADE = "<!-- Made by `make reference`. Do not edit: change the source that it is made of. -->\n"
_UNITS = {
    TypeAdapter(Mebibytes).json_schema()["pattern"]: 'size, like `"2GiB"` (MiB, GiB, TiB)',
    TypeAdapter(Duration).json_schema()["pattern"]: 'duration, like `"90s"` (ms, s, m, h, d)',
}
_FORMATS = {
    "path": "path",
    "ipv4network": "IPv4 network",
    "ipv6network": "IPv6 network",
}


def page(title: str, *parts: str) -> str:
    """A page of these paragraphs and tables."""
    return "\n\n".join([f"# {title}", _MADE.strip(), *(part.strip() for part in parts)]) + "\n"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows as Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(_cell(each) for each in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _code(text: str) -> str:
    return f"`{text}`" if text else "-"


def value(key: Mapping[str, Any], tables: Mapping[str, Any]) -> str:
    """What may be written, of a key in the JSON Schema of the file."""
    if "$ref" in key:
        return value(tables[str(key["$ref"]).rpartition("/")[2]], tables)
    if "anyOf" in key:
        kinds = [each for each in key["anyOf"] if each.get("type") != "null"]
        return ", or ".join(value(each, tables) for each in kinds)
    if "enum" in key:
        return ", ".join(f'`"{word}"`' for word in key["enum"])
    match key.get("type"):
        case "integer" | "number":
            return ("whole number" if key["type"] == "integer" else "number") + _bounds(key)
        case "boolean":
            return "`true`, `false`"
        case "array":
            return f"list of: {value(key['items'], tables)}"
        case "object":
            keys = ", ".join(f"`{name}`" for name in key.get("properties", {}))
            if any_name := list(_patterns(key)):
                return f"table with, by any name: {value(any_name[0], tables)}"
            return f"table of {keys}" if keys else "table"
    return _UNITS.get(str(key.get("pattern"))) or _FORMATS.get(str(key.get("format")), "text")


def _bounds(key: Mapping[str, Any]) -> str:
    if "exclusiveMinimum" in key:
        return f", more than {key['exclusiveMinimum']:,} and at most {key['maximum']:,}"
    return f", {key['minimum']:,} to {key['maximum']:,}" if "maximum" in key else ""


def tables_of(schema: Mapping[str, Any]) -> Iterator[tuple[str, list[list[str]]]]:
    """Each table of the file, by its path as in the file, with the row of each key."""
    tables = schema["$defs"]

    def walk(table: Mapping[str, Any], path: str) -> Iterator[tuple[str, list[list[str]]]]:
        rows, below = [], []
        for name, key in table["properties"].items():
            here = f"{path}.{name}".removeprefix(".")
            inside = tables.get(str(key.get("$ref", "")).rpartition("/")[2], {})
            named = [str(each["$ref"]) for each in _patterns(key) if "$ref" in each]
            pools = [tables[each.rpartition("/")[2]] for each in named]
            if "properties" in inside:
                below.append((inside, here))
            elif pools:
                below += [(each, f"{here}.NAME") for each in pools]
            else:
                needed = name in table.get("required", ())
                default = "needed" if needed else _code(_default(key))
                said = key.get("description", "")
                rows.append([f"`{name}`", value(key, tables), default, said])
        yield path, rows
        for inside, here in below:
            yield from walk(inside, here)

    return walk(schema, "")


def _patterns(key: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    found: Mapping[str, Mapping[str, Any]] = key.get("patternProperties", {})
    return found.values()


def _default(key: Mapping[str, Any]) -> str:
    return config_text.as_toml(key["default"]) if "default" in key else ""


def configuration() -> str:
    """Every key of the file."""
    parts = []
    for path, rows in tables_of(config_text.schema(example())):
        if rows:
            parts += [f"## `[{path}]`" if path else "## Above all tables"]
            parts += [table(["key", "value", "default", "what it is"], rows)]
    return page(
        "The configuration file",
        "`/etc/vmrunner/vmrunner.toml`, in TOML. `vmrunner config example` prints a file with "
        "every key explained, `vmrunner config check` finds all faults of yours, and "
        "`vmrunner config show` prints the values in force.",
        "A key that is *needed* has no default. A dash means: no value, unless you give one.",
        *parts,
    )


_INSIDE = {
    "stock": "[stock]",
    "scripts": "[[scripts]]",
    "users": "[users.NAME]",
    "files": '[files."/PATH"]',
    "runner": "[runner]",
    "runners": "[runners.NAME]",
    "containers": "[[containers]]",
    "tools": "[[tools]]",
}
"""How the tables of a recipe are written, by the key that they are."""
_EXTENDS = (
    "`extends`",
    "text",
    "-",
    "Another recipe, of yours or one that comes along: all that it says holds here, too.",
)


def recipe_tables(
    whole: type[BaseModel] = recipes.Recipe,
) -> Iterator[tuple[str, str, list[list[str]]]]:
    """Each table of a recipe of this kind as it is written, empty for the whole file; what it is;
    the row of each of its keys, none where an earlier one has the same.
    """
    schema = whole.model_json_schema()
    inner = {each.__name__: each for each in _sections(recipes.RecipeTable)}
    found, shown_before = [("", "", whole)], set[type[BaseModel]]()
    for written, what, model in found:
        keys = schema if model is whole else schema["$defs"][model.__name__]
        said, rows = dict(_said(model)), [list(_EXTENDS)] if model is whole else []
        for name, key in () if model in shown_before else keys["properties"].items():
            if below := _table_of(key):
                about = said.get(name) or inspect.getdoc(inner[below]) or ""
                found.append((_INSIDE[name], about, inner[below]))
            elif (model, name) != (whole, "name"):  # its file says that
                default = key.get("default")
                plain = default not in (None, [], {})
                shown = "needed" if name in keys.get("required", ()) else "-"
                shown = _code(config_text.as_toml(default)) if plain else shown
                key = TypeAdapter(Mebibytes).json_schema() if name == "size" else key
                rows.append([f"`{name}`", value(key, schema["$defs"]), shown, said[name]])
        yield written, what, rows
        shown_before.add(model)


def _sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for each in model.__subclasses__():
        yield each
        yield from _sections(each)


def _table_of(key: Mapping[str, Any]) -> str:
    """The name of the table that a key is, or is a list of, or has by names; empty for others."""
    within = [*key.get("anyOf", ()), *_patterns(key), key.get("items", {}), key]
    return next((str(each["$ref"]).rpartition("/")[2] for each in within if "$ref" in each), "")


def _said(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """What the source says of each key of a table: the text under it."""
    ours = {recipes.__name__, tools.__name__}
    for each in (each for each in reversed(model.__mro__) if each.__module__ in ours):
        body = ast.parse(inspect.getsource(each)).body[0]
        assert isinstance(body, ast.ClassDef)
        for key, text in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(key, ast.AnnAssign)
                and isinstance(key.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            ):
                yield key.target.id, inspect.cleandoc(str(text.value.value))


def recipe() -> str:
    """Every key of a recipe."""
    parts = []
    for written, what, rows in recipe_tables():
        parts += [f"## `{written}`", _paragraphs(what)] if written else []
        parts += [table(["key", "value", "default", "what it is"], rows)] if rows else []
    disk = []
    for written, what, rows in recipe_tables(tools.ToolsRecipe):
        disk += [f"### `{written}`", _paragraphs(what)] if written else []
        disk += [table(["key", "value", "default", "what it is"], rows)]
    return page(
        "Recipes",
        "A file in `/etc/vmrunner/recipes` (`recipes_dir`), in TOML: `my-image.toml` is the recipe "
        "of the image `my-image`. [How to make one](../images.md#1-a-recipe), also what becomes of "
        "the keys of the recipe that it extends.",
        "A key that is *needed* has no default, and has to be in the recipe, or in one that it "
        "extends. A dash means: no value, unless you give one.",
        *parts,
        "## A disk of tools",
        "A recipe with `[[tools]]` makes a disk that machines have beside their image's, and has "
        "no other keys: [tools.md](../howto/tools.md).",
        *disk,
    )


def commands() -> str:
    """Every command with its options."""
    whole = man.described()
    parts = []
    for command in whole.inner:
        for each in (command, *command.inner):
            parts += [f"{'##' if each is command else '###'} {each.path}"]
            parts += [f"```text\n{each.path} {each.synopsis}\n```", _paragraphs(each.text)]
            if each.options:
                rows = [[_code(name), said] for name, said in each.options]
                parts.append(table(["option", "what it does"], rows))
    return page(
        "The commands",
        "What `--help` and the man pages say, too. [What all commands share](../commands.md): "
        "JSON, dry runs, completion.",
        table(["option", "what it does"], [[_code(name), said] for name, said in whole.options]),
        table(["variable", "what it does"], [[_code(k), v] for k, v in man.VARIABLES.items()]),
        table(["file or folder", "what it is"], [[_code(k), v] for k, v in man.FILES.items()]),
        *parts,
    )


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(each.split()) for each in text.split("\n\n"))


def waits() -> str:
    """Every reason to wait."""
    rows = [[kind.value, each.says, _linked(each.means)] for kind, each in WAITS.items()]
    return page(
        "Why a job waits",
        "`vmrunner status` gives each waiting job a sentence. `status --json` has its kind, too, "
        "which stays the same when a sentence is improved. "
        "[What to do first](../howto/waiting-job.md).",
        table(["kind", "it says", "it means"], rows),
    )


_LINKS = {
    "docs/jobs.md, Reusable workflows": "[jobs.md](../jobs.md#reusable-workflows)",
    "docs/howto/disk-full.md": "[disk-full.md](../howto/disk-full.md)",
}


def _linked(text: str) -> str:
    for named, link in _LINKS.items():
        text = text.replace(named, link)
    return text


def endings() -> str:
    """Every ending of a machine."""
    return page(
        "How a machine ends",
        "`vmrunner history` shows each machine's ending, and a reason in words. "
        "[Look into a failed machine](../howto/failed-machine.md); "
        "[more about endings](../operations.md#how-machines-end).",
        table(
            ["ending", "what happened", "its job"],
            [[kind.value, each.happened, each.job] for kind, each in ENDINGS.items()],
        ),
        "Of these, `vmrunner history --failed` shows: "
        + ", ".join(kind.value for kind in ENDINGS if kind.is_failure)
        + ".",
    )


def figures() -> str:
    """Every figure for Prometheus."""
    rows = [
        [_code(each.name), each.kind, ", ".join(map(_code, each.labels)), each.text]
        for each in (*metrics.described(), *webhook.FIGURES, *kept.FIGURES)
    ]
    return page(
        "Metrics",
        "For Prometheus. [How to switch them on](../operations.md#prometheus).",
        table(["name", "kind", "labels", "what it is"], rows),
        f"`phase` is one of {', '.join(phase.value for phase in Phase)}. `ending` is one of "
        "[these](endings.md). `verdict` of a request to the webhook is one of "
        f"{', '.join(each.value for each in webhook.Verdict)}.",
    )


def exit_codes() -> str:
    """Every exit code."""
    return page(
        "Exit codes",
        "Every error is one sentence, a hint, and one of these codes.",
        table(["code", "it means"], [[str(k), v] for k, v in man.exit_codes().items()]),
    )


def index() -> str:
    """The list of pages."""
    rows = [
        ("every key of the configuration", "configuration.md"),
        ("every key of a recipe", "recipe.md"),
        ("every command and option", "commands.md"),
        ("every reason to wait", "waits.md"),
        ("every ending of a machine", "endings.md"),
        ("every figure for Prometheus", "metrics.md"),
        ("every exit code", "exit-codes.md"),
    ]
    return page(
        "Reference",
        "These pages are made of the program's own source, and a test sees that they are current.",
        table(["what", "page"], [[said, f"[{name}]({name})"] for said, name in rows]),
    )


def pages() -> dict[str, str]:
    """Every page, by its file's name."""
    return {
        "README.md": index(),
        "configuration.md": configuration(),
        "recipe.md": recipe(),
        "commands.md": commands(),
        "waits.md": waits(),
        "endings.md": endings(),
        "metrics.md": figures(),
        "exit-codes.md": exit_codes(),
    }


def main() -> None:
    """Write the pages."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
