"""On which line of a TOML text a key stands: the parser does not tell."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

Path = tuple[str | int, ...]


def line_of(text: str, wanted: Sequence[str | int]) -> int:
    """The line, from 1, of the longest beginning of `wanted` that the text has: `("files",
    "/etc/x", "mode")`; 1 where there is none.

    Elements of an array of tables are counted from 0. The text must be valid TOML.
    """
    found, longest = 1, 0
    for line, path in _keys(text):
        common = 0
        while common < min(len(path), len(wanted)) and path[common] == wanted[common]:
            common += 1
        if common > longest and common in (len(path), len(wanted)):
            found, longest = line, common
    return found


def _keys(text: str) -> Iterator[tuple[int, Path]]:
    """Every table and every key of one, with the line that it begins on."""
    table: Path = ()
    elements: Counter[Path] = Counter()
    statement, began = "", 1
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        began = began if statement else number
        statement += line
        try:
            parsed: Any = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue  # an array or a text that goes on
        is_table, is_array = statement.lstrip().startswith("["), statement.lstrip().startswith("[[")
        statement = ""
        path: list[str | int] = []
        while isinstance(parsed, dict) and len(parsed) == 1:
            [(key, parsed)] = parsed.items()
            path.append(key)
        if not path:
            continue  # a comment, or nothing
        if is_array:
            name = tuple(path)
            table = (*name, elements[name])
            elements[name] += 1
        elif is_table:
            table = tuple(path)
        yield began, table if is_table else (*table, *path)
