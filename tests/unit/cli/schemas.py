"""Whether what a command printed is as its schema says, and holds nothing that the schema lacks."""

from __future__ import annotations

import json
from typing import Any

import jsonschema

from vmrunner.cli.shown import SCHEMAS


def _strict(schema: Any) -> Any:
    """With no fields beyond those that it names."""
    if isinstance(schema, dict):
        named = {"additionalProperties": False} if "properties" in schema else {}
        return named | {key: _strict(value) for key, value in schema.items()}
    return [_strict(each) for each in schema] if isinstance(schema, list) else schema


def checked(command: str, text: str) -> Any:
    """The one JSON document, which the command's schema describes in full."""
    found = json.loads(text)
    jsonschema.validate(found, _strict(SCHEMAS[command]()))
    return found
