"""The project's own schema of Forgejo's answers, held against Forgejo's published API description
wherever that is there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.forge import schema

NAME = "forges/forgejo-15.0.3-runners.swagger.json"


@pytest.fixture(scope="module")
def description() -> dict[str, Any]:
    for folder in (Path("/shared"), Path(__file__).parents[3] / "shared"):
        if (folder / NAME).is_file():
            found: dict[str, Any] = json.loads((folder / NAME).read_text())
            return found
    pytest.skip(f"Forgejo's API description ({NAME}) is not beside this checkout")


def resolve(description: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in part:
        _, section, name = part["$ref"].split("/")
        part = description[section][name]
    return part


def fits(
    description: dict[str, Any], ours: dict[str, Any], theirs: dict[str, Any], where: str
) -> None:
    """Every word of ours means the same there."""
    theirs = resolve(description, theirs)
    if "anyOf" in ours:  # null besides what is described
        ours = next(kind for kind in ours["anyOf"] if kind["type"] != "null")
    assert ours["type"] == theirs["type"], where
    assert ours.get("enum", theirs.get("enum")) == theirs.get("enum"), where
    for name, part in ours.get("properties", {}).items():
        assert name in theirs["properties"], f"{where}: {name}"
        fits(description, part, theirs["properties"][name], f"{where}.{name}")
    if "items" in ours:
        fits(description, ours["items"], theirs["items"], f"{where}[]")


@pytest.mark.parametrize("key", schema.ANSWERS, ids=lambda key: " ".join(map(str, key)))
def test_an_answer_of_the_double_is_one_that_forgejo_describes(
    description: dict[str, Any], key: tuple[str, str, int]
) -> None:
    method, path, status = key
    answer = resolve(description, description["paths"][path][method]["responses"][str(status)])
    ours = schema.ANSWERS[key]
    assert (ours is None) == ("schema" not in answer)
    if ours is not None:
        fits(description, ours, answer["schema"], " ".join(map(str, key)))


def test_runners_jobs_and_tasks_are_complete(description: dict[str, Any]) -> None:
    complete = {
        "ActionRunner": schema.RUNNER,
        "ActionRunJob": schema.JOB,
        "RegisterRunnerResponse": schema.REGISTERED,
        "ActionTask": schema.TASK,
    }
    for name, ours in complete.items():
        assert set(ours["properties"]) == set(description["definitions"][name]["properties"])
