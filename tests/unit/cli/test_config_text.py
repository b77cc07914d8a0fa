"""`vmrunner config show` and `schema`: what is printed means what the file means."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import jsonschema
import pytest

from tests.unit.cli.test_config_cmd import FAULTY, GOOD
from vmrunner.cli import config_text
from vmrunner.config import Config, example, load

FULL = "\n".join(  # every key of the example, written out
    line.removeprefix("# ") if re.match(r"# [a-z_0-9]+ = ", line) else line
    for line in example().splitlines()
)
ODD = (
    GOOD
    + r"""scope = ["organization:a", "user"]
schedule = [{ cron = "0 8 * * 1-5", warm = 1 }]
allow = ["[2001:db8::7]:443", "192.0.2.0/24:123/udp", "deb.debian.org:443,80"]
runner_config = { runner = { envs = { "A B" = "quoted \" and \u007f \\" } } }
memory = "1536MiB"
job_timeout = "90m"
boot_timeout = "1500ms"
[network]
ipv6 = "fd87::/64"
"""
)


def read(folder: Path, text: str) -> Config:
    path = folder / "vmrunner.toml"
    path.write_text(text)
    return load(path)


@pytest.mark.parametrize("text", [GOOD, FULL, ODD, example()])
def test_what_is_shown_means_the_same(tmp_path: Path, text: str) -> None:
    settings = read(tmp_path, text)
    shown = config_text.toml(settings)
    assert read(tmp_path, shown) == settings
    assert tomllib.loads(shown) == config_text.plain(settings)
    jsonschema.validate(config_text.plain(settings), config_text.schema(example()))


def test_defaults_are_shown_and_marked(tmp_path: Path) -> None:
    lines = config_text.toml(read(tmp_path, ODD)).splitlines()
    for line in (
        'subnet = "10.87.0.0/24"  # default',
        'kind = "forgejo"',
        'memory = "1536MiB"',
        'disk = "20GiB"  # default',
        'job_timeout = "90m"',
        'poll = "500ms"  # default',
    ):
        assert line in lines


def test_the_schema_knows_what_editors_ask_for() -> None:
    schema = config_text.schema(example())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(tomllib.loads(FULL), schema)
    jsonschema.validate(tomllib.loads(ODD), schema)
    faults = jsonschema.Draft202012Validator(schema).iter_errors(tomllib.loads(FAULTY))
    assert {".".join(map(str, fault.path)) for fault in faults} >= {
        "manager",
        "forge.kind",
        "libvirt.uri",
        "pools.p",
        "pools.p.image",
        "pools.p.max",
        "pools.p.schedule.1.warm",
    }
    pool = schema["$defs"]["PoolConfig"]["properties"]
    assert pool["labels"]["description"].startswith("A job whose runs-on is within these labels")
    flavor = schema["$defs"]["FlavorConfig"]["properties"]
    assert flavor["labels"]["description"].startswith("Where jobs run that ask for these labels")
    assert flavor["vcpus"]["description"] == pool["vcpus"]["description"]
    assert (flavor["vcpus"]["default"], flavor["lifetime"]["default"]) == (2, "2d")
    assert "description" not in schema["properties"]["network"], "a table, not a pool's key"
    assert pool["network"]["$ref"].endswith("Reach")
    said = json.dumps(schema)
    assert "Our storage pool's folder on the libvirt host" in said, "of a table's key, too"
