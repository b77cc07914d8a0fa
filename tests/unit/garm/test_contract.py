"""What GARM says to a provider: read as it is, or refused in one sentence without a token in it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.garm import double
from tests.garm.double import CONTROLLER, INSTANCE, POOL
from vmrunner.errors import CallError
from vmrunner.garm.contract import Bootstrap, Call, Command, config_schema, specs_schema

BASE = {
    "GARM_CONTROLLER_ID": CONTROLLER,
    "GARM_PROVIDER_CONFIG_FILE": "/etc/vmrunner/vmrunner.toml",
}


def call(command: str, **more: str) -> Call:
    return Call.of({"GARM_COMMAND": command, **BASE, **more})


def bootstrap(**more: Any) -> bytes:
    return json.dumps(double.bootstrap("http://forge.example", **more)).encode()


@pytest.mark.parametrize("version", ["", "v0.1.0", "v0.1.1"])
def test_each_command_is_known_in_both_versions(version: str) -> None:
    more = {"GARM_INSTANCE_ID": "i", "GARM_POOL_ID": POOL, "GARM_INTERFACE_VERSION": version}
    for command in Command:
        assert call(command.value, **more).command is command
    assert call("Stop", **more).command is Command.STOP
    assert call("Start", **more).command is Command.START


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({}, "GARM_COMMAND is empty"),
        ({"GARM_COMMAND": "Dance\x1b[2J"}, "no command 'Dance [2J'"),
        ({"GARM_COMMAND": "GetInstance"}, "GARM_PROVIDER_CONFIG_FILE is not set"),
        ({"GARM_COMMAND": "GetInstance", **BASE}, "GARM_INSTANCE_ID is not set"),
        ({"GARM_COMMAND": "ListInstances", **BASE}, "GARM_POOL_ID is not set"),
        ({"GARM_COMMAND": "GetVersion", "GARM_INTERFACE_VERSION": "v9"}, "version 'v9'"),
    ],
)
def test_what_is_no_call_of_garms(environment: dict[str, str], says: str) -> None:
    with pytest.raises(CallError, match=says.replace("[", r"\[")) as caught:
        Call.of(environment)
    assert caught.value.hint


def test_a_bootstrap_is_read_and_its_token_not_shown() -> None:
    found = Bootstrap.read(bootstrap())
    assert (found.name, found.flavor, found.image) == ("garm-aB1", "small", "debian-12")
    assert found.token.get_secret_value() == INSTANCE
    assert INSTANCE not in repr(found)
    # GARM writes null where it has nothing.
    assert Bootstrap.read(bootstrap(labels=None, extra_specs=None)).labels == []


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "nothing on its stdin"),
        (b" \n", "nothing on its stdin"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[]", "is not JSON|of the instance"),
        (bootstrap(name=None), "name of the instance"),
        (bootstrap(name="../../etc"), "name of the instance: has not the right form"),
        (bootstrap(labels=["a b"]), "labels.0 of the instance"),
        (bootstrap(labels=["a:docker://b"]), "labels.0 of the instance"),
        (bootstrap(**{"ca-cert-bundle": "%"}), "ca-cert-bundle of the instance: it is not base64"),
        (bootstrap(**{"callback-url": "file:///etc"}), "callback-url of the instance"),
        (bootstrap(**{"instance-token": ""}), "instance-token of the instance"),
    ],
)
def test_a_bootstrap_that_is_none(raw: bytes, says: str) -> None:
    with pytest.raises(CallError, match=says) as caught:
        Bootstrap.read(raw)
    assert INSTANCE not in f"{caught.value.sentence} {caught.value.hint}"


def test_the_schemas_are_schemas() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    specs, configured = specs_schema(), config_schema()
    for schema in (specs, configured):
        jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate({"disable_updates": True}, specs)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({}, configured)
