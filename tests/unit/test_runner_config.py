"""The runner's configuration: what it has of its own, and what an admin may add."""

import json
import re
from datetime import timedelta
from typing import Any

import pytest
import yaml

from vmrunner.runner_config import KEYS, Kind, fault, runner_config, too_old

VALUES = {
    Kind.TEXT: ("x", 1),
    Kind.FLAG: (True, "true"),
    Kind.NUMBER: (3, True),
    Kind.PORT: (65535, 65536),
    Kind.DURATION: ("1h30m", 60),
    Kind.TEXTS: (["a"], "a"),
    Kind.MAP: ({"A": "b"}, {"A": 1}),
}


def table(key: str, value: object) -> dict[str, Any]:
    """As TOML has it."""
    first, _, rest = key.partition(".")
    return {first: table(rest, value) if rest else value}


@pytest.mark.parametrize(
    ("forge", "key"), [(forge, key) for forge, keys in KEYS.items() for key in keys]
)
def test_every_key_takes_what_it_is_for(forge: str, key: str) -> None:
    good, bad = VALUES[KEYS[forge][key]]
    assert fault(forge, table(key, good)) == ""
    assert fault(forge, table(key, bad)).startswith(f"{key} has to be ")
    merged = json.loads(
        runner_config(forge, job_timeout=timedelta(1), environment={}, more=table(key, good))
    )
    for part in key.split("."):
        merged = merged[part]
    assert merged == good


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"runner": {"shutdown_timeout": "0s"}},
            "runner.shutdown_timeout can't be set here: the pool's job_timeout rules",
        ),
        ({"runner": {"labels": ["a"]}}, "runner.labels can't be set here: the pool's labels rule"),
        (
            {"cache": {"external_server": "http://c"}},
            "cache.external_server can't be set here: it takes a secret",
        ),
        (
            {"cache": {"external_secret": "x"}},
            "cache.external_secret can't be set here: it is a secret, and every job can read this "
            "file",
        ),
        (
            {"runner": {"fetch_interal": "1s"}},
            "the runner of a gitea forge knows no key runner.fetch_interal; did you mean "
            "runner.fetch_interval?",
        ),
        (
            {"runner": {"report_interval": "1s"}},
            "the runner of a gitea forge knows no key runner.report_interval",
        ),
        (
            {"runner": {"envs": {"PRICE": "5$"}}},
            "runner.envs has a $ in it: Gitea's runner 5.0 and newer puts a variable of its own "
            "environment there, or does not start if there is none",
        ),
        ({"runner": {"envs": {"$NAME": "x"}}}, "runner.envs has a $ in it"),
        ({"container": {"options": "--env A=${HOME}"}}, "container.options has a $ in it"),
        ({"container": {"valid_volumes": ["/a", "/$b"]}}, "container.valid_volumes has a $ in it"),
        ({"zzz": {}}, "the runner of a gitea forge knows no key zzz"),
        ({"runner": {"envs": {"A": "x" * 70_000}}}, "it is longer than 64 KiB"),
        ({"container": "x"}, "container has to be a table"),
        ({"runner": [1]}, "runner has to be a table"),
        # The runner would pass over it, as it looks for `envs` in a table `runner`.
        (
            {"runner.envs": {"A": "b"}},
            'the runner of a gitea forge knows no key "runner.envs".A; did you mean runner.envs?',
        ),
        ({"runner": {"envs": {"A": 1}}}, "runner.envs has to be a table of texts"),
        # What Go can't read ends the runner's start.
        ({"runner": {"fetch_interval": "3000000h"}}, "runner.fetch_interval has to be a duration"),
        ({"runner": {"fetch_interval": "\u0663s"}}, "runner.fetch_interval has to be a duration"),
        ({"runner": {"fetch_interval": "1h 30m"}}, "runner.fetch_interval has to be a duration"),
        ({"runner": {"log_report_batch_size": 10**30}}, "runner.log_report_batch_size has to be"),
    ],
)
def test_what_can_not_be_set(more: dict[str, Any], said: str) -> None:
    assert fault("gitea", more).startswith(said)


def test_forgejos_runner_may_be_told_of_a_dollar() -> None:
    assert fault("forgejo", {"runner": {"envs": {"PRICE": "5$"}}}) == ""


@pytest.mark.parametrize("forge", KEYS)
def test_what_changes_nothing_may_be_there(forge: str) -> None:
    assert fault(forge, {"runner": {}, "container": {}}) == ""


@pytest.mark.parametrize("forge", KEYS)
def test_letters_beyond_16_bits_are_no_pair_of_escapes(forge: str) -> None:
    """Gitea's runner 1.0.8 does not start with one: "found invalid Unicode character escape
    code".
    """
    values = {"GREETING": "hé\u4f60\U0001f600", "TEXT": r"\ud83d\ude00", "\U0001f600": "\x7f"}
    more = {"runner": {"envs": values}}
    text = runner_config(forge, job_timeout=timedelta(1), environment={}, more=more)
    assert json.loads(text)["runner"]["envs"] == values
    assert not re.search(r"(?<!\\)\\ud[89a-f]", text)
    assert text.replace("\U0001f600", "").isascii(), "and nothing else is as it is"


@pytest.mark.parametrize("forge", KEYS)
def test_the_text_has_nothing_to_expand(forge: str) -> None:
    """Whatever came into it, and in which way."""
    values = {"PRICE": "$5", "ALL": "${HOME} $$ $"}
    text = runner_config(
        forge,
        job_timeout=timedelta(1),
        environment=values,
        mounts=["/opt/$x"],
        more={"log": {"level": "$LEVEL"}},
    )
    assert "$" not in text
    read = json.loads(text)
    assert (read["runner"]["envs"], read["log"]["level"]) == (values, "$LEVEL")
    assert read["container"]["valid_volumes"] == ["/opt/$x"]
    assert yaml.safe_load(text) == read


@pytest.mark.parametrize(
    ("forge", "version", "is_old"),
    [
        *(
            ("gitea", "0.3.1", True),
            ("gitea", "v1.0.7", True),
            ("gitea", "1.0.8", False),
            ("gitea", "1.0.8-3-gabc", False),
        ),
        *(
            ("gitea", "5.0.0", False),
            ("gitea", "", False),
            ("forgejo", "12.7.3", True),
            ("forgejo", "12.8.0", False),
        ),
    ],
)
def test_a_runner_may_be_too_old(forge: str, version: str, is_old: bool) -> None:
    assert too_old(forge, version) is is_old
