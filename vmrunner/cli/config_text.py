"""The configuration as text: what is in force, for people, and what may be written, for editors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from vmrunner.config import Config, FlavorConfig

Table = dict[str, Any]
_LEAST = Config.model_validate(
    {
        "forge": {"kind": "gitea", "url": "https://forge.example"},
        "pools": {"p": {"labels": ["a"], "image": "a"}},
    }
)
"""Nothing but what has no default."""
_NAMED = {
    "pools": _LEAST.pools["p"].model_dump(mode="json", exclude_none=True),
    "garm.flavors": FlavorConfig().model_dump(mode="json", exclude_none=True),
}
"""The defaults in tables whose names are the admin's."""
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def plain(settings: Config) -> Table:
    """The values in the words of the file, defaults and all, without keys that have none."""
    shown: Table = settings.model_dump(mode="json", exclude_none=True)
    return shown


def toml(settings: Config) -> str:
    """The same as a file that says the same; what is a default is marked."""
    return "".join(_table((), plain(settings), settings)).lstrip("\n")


def _table(path: tuple[str, ...], values: Mapping[str, Any], model: Any) -> list[str]:
    """A table and those below it; `model` tells which keys the file has set."""
    written = getattr(model, "model_fields_set", set(values))
    lines, below = [], []
    for name, value in values.items():
        inside = model.get(name) if isinstance(model, Mapping) else getattr(model, name, None)
        if (
            isinstance(value, dict)
            and isinstance(inside, BaseModel | Mapping)
            and (isinstance(inside, BaseModel) or name == "pools")
        ):
            below += _table((*path, name), value, inside)
        else:
            default = "" if name in written else "  # default"
            lines.append(f"{_key(name)} = {as_toml(value)}{default}\n")
    head = [f"\n[{'.'.join(map(_key, path))}]\n"] if path and (lines or not below) else []
    return [*head, *lines, *below]


def as_toml(value: Any) -> str:
    """A value as the file has it."""
    if isinstance(value, dict):
        inside = ", ".join(f"{_key(name)} = {as_toml(each)}" for name, each in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(as_toml, value))}]"
    # TOML's texts and numbers are JSON's, but for a character that JSON leaves as it is.
    return json.dumps(value).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else json.dumps(name)


def schema(example: str) -> Table:
    """JSON Schema of the file, with the comments of its example as descriptions."""
    found, said, shown = Config.model_json_schema(), comments(example), plain(_LEAST)
    found |= {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "vmrunner.toml"}
    tables = found["$defs"]

    def explain(table: Table, path: str, values: Mapping[str, Any]) -> None:
        for name, key in table.get("properties", {}).items():
            here, value = f"{path}.{name}".removeprefix("."), values.get(name)
            if path == "garm.flavors.*":  # its keys are a pool's, but for those of its own
                key.setdefault("description", said.get(f"pools.*.{name}", ""))
            elif here in said:
                key["description"] = said[here]
            if "default" in key:  # pydantic's is a number of MiB or seconds
                key.pop("default")
                key |= {} if value is None else {"default": value}
            if inside := _referred(key, tables):
                explain(inside, here, value or {})
            for each in key.get("patternProperties", {}).values():
                if inside := _referred(each, tables):
                    explain(inside, f"{here}.*", _NAMED[here])

    explain(found, "", shown)
    return found


def _referred(key: Table, tables: Mapping[str, Table]) -> Table | None:
    return tables.get(str(key.get("$ref", "")).rpartition("/")[2])


def comments(example: str) -> dict[str, str]:
    """What the commented example says of each key, by its path; a pool's name is `*`."""
    found: dict[str, str] = {}
    path, said = "", list[str]()
    for line in example.splitlines():
        if table := re.fullmatch(r"\[([\w.-]+)\]", line):
            path, said = re.sub(r"^pools\..*", "pools.*", table[1]), []
        elif key := re.match(r"(?:# )?([a-z_0-9]+) = ", line):
            if said:
                found[f"{path}.{key[1]}".removeprefix(".")] = " ".join(said)
            said = []
        elif line.startswith("# "):
            said.append(line.removeprefix("# "))
        else:
            said = []
    return found
