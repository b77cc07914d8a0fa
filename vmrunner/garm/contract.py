"""What GARM and an external provider say to each other: a call comes as environment variables and
JSON on stdin, the answer is JSON on stdout and an exit code. Pure.

Interface versions 0.1.0 and 0.1.1 of garm-provider-common 0.1.9.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

from vmrunner.errors import CallError
from vmrunner.text import presentable

VERSIONS = ("v0.1.0", "v0.1.1")


class Command(StrEnum):
    """What GARM wants."""

    CREATE = "CreateInstance"
    DELETE = "DeleteInstance"
    GET = "GetInstance"
    LIST = "ListInstances"
    START = "StartInstance"
    STOP = "StopInstance"
    REMOVE_ALL = "RemoveAllInstances"
    VERSION = "GetVersion"
    VERSIONS = "GetSupportedInterfaceVersions"
    VALIDATE = "ValidatePoolInfo"
    CONFIG_SCHEMA = "GetConfigJSONSchema"
    SPECS_SCHEMA = "GetExtraSpecsJSONSchema"


_OTHER_NAMES = {"Start": Command.START, "Stop": Command.STOP}  # as GARM's documentation has them
_OF_ONE = {Command.DELETE, Command.GET, Command.START, Command.STOP}
_OF_A_POOL = {Command.CREATE, Command.LIST}
_OF_THE_PROGRAM = {
    Command.VERSION,
    Command.VERSIONS,
    Command.CONFIG_SCHEMA,
    Command.SPECS_SCHEMA,
}
"""What is answered whatever the configuration is."""


@dataclass(frozen=True)
class Call:
    """One call. What its command does not need may be empty."""

    command: Command
    config: str
    controller: str
    pool: str = ""
    instance: str = ""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Call:
        """Read what GARM has set. Raises CallError."""

        def word(name: str) -> str:
            found = environment.get(name, "")
            if not found:
                raise CallError(
                    f"{name} is not set for {command}.",
                    "This is called by GARM; docs/garm.md says how.",
                )
            if not found.isprintable() or len(found) > 4096:
                raise CallError(f"{name} is no plain text.", "This is called by GARM.")
            return found

        name = environment.get("GARM_COMMAND", "")
        version = environment.get("GARM_INTERFACE_VERSION", "") or VERSIONS[0]
        try:
            command = _OTHER_NAMES.get(name) or Command(name)
        except ValueError:
            said = f"GARM has no command {presentable(name)!r}" if name else "GARM_COMMAND is empty"
            raise CallError(f"{said}.", "This is called by GARM; docs/garm.md says how.") from None
        if version not in VERSIONS:
            raise CallError(
                f"GARM's interface version {presentable(version)!r} is not known here.",
                f"There are {' and '.join(VERSIONS)}.",
            )
        return cls(
            command,
            word("GARM_PROVIDER_CONFIG_FILE") if command not in _OF_THE_PROGRAM else "",
            word("GARM_CONTROLLER_ID") if command not in _OF_THE_PROGRAM else "",
            word("GARM_POOL_ID") if command in _OF_A_POOL else environment.get("GARM_POOL_ID", ""),
            word("GARM_INSTANCE_ID") if command in _OF_ONE else "",
        )


def _listed(value: object) -> object:
    return [] if value is None else value


def _table(value: object) -> object:
    return {} if value is None else value


def _pem(value: object) -> str:
    # What GARM has written may be anything; what is neither bytes nor text is a TypeError.
    try:
        return base64.b64decode(value, validate=True).decode("ascii") if value else ""  # type: ignore[arg-type]
    except (TypeError, binascii.Error, UnicodeDecodeError):
        raise ValueError("it is not base64 of PEM text") from None


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Tag = Annotated[str, Field(pattern=r"^[!-9;-~]{1,255}$")]
"""What travels into a runner's registration: printable, without a blank and without a colon."""
Address = Annotated[str, Field(pattern=r"^https?://[!-~]{1,2000}$")]


class UserData(BaseModel):
    """What else GARM would have in a machine's user-data."""

    extra_packages: Annotated[list[str], BeforeValidator(_listed)] = []


class Bootstrap(BaseModel):
    """The instance that GARM wants: what CreateInstance has on its stdin. What is not here is for
    GARM's own way of making a runner inside the machine.
    """

    model_config = ConfigDict(frozen=True)

    name: Name
    repo_url: Address
    callback_url: Address = Field(alias="callback-url")
    metadata_url: Address = Field(alias="metadata-url")
    token: SecretStr = Field(alias="instance-token", min_length=1)
    extra_specs: Annotated[dict[str, Any], BeforeValidator(_table)] = {}
    ca: Annotated[str, BeforeValidator(_pem)] = Field(alias="ca-cert-bundle", default="")
    arch: str
    os_type: str
    flavor: str
    image: str
    labels: Annotated[list[Tag], BeforeValidator(_listed)] = []
    pool_id: str
    user_data_options: UserData = UserData()
    jit_config_enabled: bool = False

    @classmethod
    def read(cls, raw: bytes) -> Bootstrap:
        """Read it. Raises CallError, with nothing in it of a value: one of them is a token."""
        hint = "This is called by GARM; docs/garm.md says how."
        if not raw.strip():
            raise CallError("CreateInstance has nothing on its stdin.", hint)
        try:
            return cls.model_validate_json(raw)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            if not key:
                raise CallError("What GARM wrote to CreateInstance is not JSON.", hint) from None
            said = {"missing": "is missing", "string_pattern_mismatch": "has not the right form"}
            what = said.get(first["type"], first["msg"].removeprefix("Value error, "))
            raise CallError(f"{presentable(key)} of the instance: {what}.", hint) from None


def instance(  # what GARM's ProviderInstance is made of
    *,
    name: str,
    status: str,
    os_name: str = "",
    os_version: str = "",
    arch: str = "",
    address: str = "",
) -> dict[str, Any]:
    """An instance as GARM is told of it. Its id is its name, as GARM asks by name where it does not
    know the id yet.
    """
    addresses = [{"address": address, "type": "private"}] if address else []
    return {
        "provider_id": name,
        "name": name,
        "os_type": "linux",
        "os_name": os_name,
        "os_version": os_version,
        "os_arch": arch,
        "addresses": addresses,
        "status": status,
    }


def answer(what: Any) -> str:
    """Text is said as it is, everything else as JSON; None: nothing."""
    if what is None or isinstance(what, str):
        return what or ""
    return json.dumps(what)


_SPECS: Sequence[tuple[str, str, str]] = (
    ("runner_install_template", "string", "GARM's script for machines; vmrunner does not run it."),
    ("extra_context", "object", "What that script is told."),
    ("disable_updates", "boolean", "Always so: machines are as their image is."),
    ("enable_boot_debug", "boolean", "The console is kept anyway."),
)


def specs_schema() -> dict[str, Any]:
    """The JSON schema of a pool's extra specs."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {name: {"type": kind, "description": said} for name, kind, said in _SPECS},
    }


def config_schema() -> dict[str, Any]:
    """The JSON schema of what the provider needs of its configuration; the file is TOML."""
    flavor = {
        "type": "object",
        "properties": {
            "vcpus": {"type": "integer", "minimum": 1},
            "memory": {"type": "string"},
            "disk": {"type": "string"},
        },
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {
            "garm": {
                "type": "object",
                "properties": {
                    "flavors": {"type": "object", "additionalProperties": flavor},
                },
                "required": ["flavors"],
            },
        },
        "required": ["garm"],
    }
