"""`make reference`: the pages of docs/reference, made of what the program says of itself."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from vmrunner.cli import config_text, man
from vmrunner.cli.meanings import ENDINGS, WAITS
from vmrunner.config import Duration, Mebibytes, example
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
            pools = [tables[str(each["$ref"]).rpartition("/")[2]] for each in _patterns(key)]
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


def _linked(text: str) -> str:
    return text.replace(
        "docs/jobs.md, Reusable workflows", "[jobs.md](../jobs.md#reusable-workflows)"
    )


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
        for each in (*metrics.described(), *webhook.FIGURES)
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
