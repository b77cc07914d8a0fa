"""What is wrong with a TOML file, in words that need no library: which line, which key, and what it
should be.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from vmrunner.lines import line_of

Key = tuple[str | int, ...]

_KINDS = {
    "missing": "is missing",
    "too_short": "is empty",
    "tuple_type": 'has to be a list, like ["a", "b"]',
    "model_type": "has to be a table, not a value",
    "model_attributes_type": "has to be a table, not a value",
    "dict_type": "has to be a table, not a value",
    "string_type": 'has to be a text in quotes, like "this"',
    "path_type": 'has to be a path in quotes, like "/srv/vmrunner"',
    "bool_type": "has to be true or false, without quotes",
    "bool_parsing": "has to be true or false, without quotes",
    "int_type": "has to be a whole number, without quotes",
    "int_parsing": "has to be a whole number, without quotes",
    "int_parsing_size": "is too large a number",
    "int_from_float": "has to be a whole number, without quotes",
    "float_type": "has to be a number, without quotes",
    "float_parsing": "has to be a number, without quotes",
    "finite_number": "has to be a number, without quotes",
    "ip_v4_network": 'has to be an IPv4 network, like "10.87.0.0/24"',
    "ip_v6_network": 'has to be an IPv6 network, like "fd87::/64"',
}
_BOUNDS = {
    "greater_than_equal": ("ge", "has to be {} or more"),
    "less_than_equal": ("le", "has to be {} at most"),
    "greater_than": ("gt", "has to be more than {}"),
    "less_than": ("lt", "has to be less than {}"),
    "multiple_of": ("multiple_of", "has to be a multiple of {}"),
}
_ELSEWHERE = "[key]"  # pydantic's mark of a table's name, in place of what is in the table


@dataclass(frozen=True)
class Fault:
    """One of a file's faults; `line` is 0 where the file as a whole lacks something."""

    line: int
    key: str
    said: str

    def __str__(self) -> str:
        where = ", ".join(
            part for part in (f"line {self.line}" if self.line else "", self.key) if part
        )
        return f"{where}: {self.said}" if where else self.said


def found(
    error: ValidationError,
    model: type[BaseModel],
    text: str,
    data: Mapping[str, Any],
    patterns: Mapping[str, str],
) -> list[Fault]:
    """All faults of a valid TOML text, in the order of its lines. `patterns`: the model's regular
    expressions in words.
    """
    faults = [
        Fault(line_of(text, key) if key and key[0] in data else 0, ".".join(map(str, key)), said)
        for key, said in named(error, model, patterns)
    ]
    return sorted(faults, key=lambda fault: fault.line)


def named(
    error: ValidationError, model: type[BaseModel], patterns: Mapping[str, str]
) -> Iterator[tuple[Key, str]]:
    """Each key that is wrong, and what is wrong with it; `patterns` as for `found`."""
    all_keys = [each["loc"] for each in error.errors()]
    for each in error.errors():
        key = each["loc"]
        if each["type"] == "too_short" and any(key == of[: len(key)] != of for of in all_keys):
            continue  # what would be in the list is what is wrong
        said = words(each, model, patterns).removesuffix(".")
        yield tuple(part for part in key if part != _ELSEWHERE), said


def listed(what: str, faults: Sequence[str]) -> str:
    """The faults of what is called so, as one sentence or each in a line of its own."""
    return "\n  ".join([f"{what} has {len(faults)} faults:", *faults])


def words(fault: Mapping[str, Any], model: type[BaseModel], patterns: Mapping[str, str]) -> str:
    """What is wrong with a key, as the rest of a sentence that begins with it."""
    kind, context = fault["type"], fault.get("ctx", {})
    match kind:
        case "extra_forbidden":
            known = _keys(model, fault["loc"][:-1])
            return "is not a key that vmrunner knows" + near(str(fault["loc"][-1]), known)
        case "literal_error" | "enum":
            return f"has to be {context['expected']}" + near(
                str(fault["input"]), [word.strip("'") for word in context["expected"].split(" ")]
            )
        case "string_pattern_mismatch":
            return patterns.get(context["pattern"], "is not written as it has to be")
        case _ if kind in _BOUNDS:
            name, said = _BOUNDS[kind]
            return said.format(context[name])
    return _KINDS.get(kind) or str(fault["msg"]).removeprefix("Value error, ")


def near(written: str, known: Iterable[str]) -> str:
    """`; did you mean labels?` where one of the known names is close; else nothing."""
    close = difflib.get_close_matches(written.lower(), list(known), 1, 0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _keys(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The keys of the table at this place."""
    table: type[BaseModel] | None = model
    for part in path:
        if table is None:
            return []
        field = table.model_fields.get(str(part))
        if field is None:
            continue  # the name of a pool, or a number in a list: the table is the one before
        inside = _models(field.annotation)
        table = inside[0] if inside else None
    return list(table.model_fields) if table else []


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models in an annotation such as `dict[str, PoolConfig]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]
