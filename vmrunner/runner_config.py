"""The configuration that the forge's runner starts with: a pool's limits in the runner's own words,
and what an admin adds to them. Pure.

Both runners read YAML and pass over keys that they don't know without a word, so keys are checked
here. Sources: `internal/pkg/config` of Gitea's runner 1.0.8, and the file that forgejo-runner 12
prints with `generate-config`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from enum import Enum
from typing import Any, TypeGuard

from vmrunner.model.label import Label
from vmrunner.support import least, numbers

PATIENCE = timedelta(minutes=5)
"""What a machine's own limits of a job and of its pick-up have beyond the pool's: the host's
deadline comes first, since it can say why.
"""
_ANSWER = timedelta(seconds=60)  # for FetchTask: a job whose answer comes later is lost
_DELIVERY = timedelta(minutes=2)  # one try to deliver a job's end
CACHE_URL = "ACTIONS_CACHE_URL"
"""The variable by which actions find the cache."""
WORK = "/job"
"""Where jobs have their workspaces in the machine, below a folder with a random name that the
runner gives each.
"""


class Kind(Enum):
    """What a key's value has to be."""

    TEXT, FLAG, NUMBER, PORT, DURATION, TEXTS, MAP = (
        "text",
        "true or false",
        "a whole number of at most nine digits",
        "a port, 0 to 65535",
        'a duration like "90s"',
        "a list of texts",
        "a table of texts",
    )


_T, _F, _N, _P, _D, _L, _M = (
    Kind.TEXT,
    Kind.FLAG,
    Kind.NUMBER,
    Kind.PORT,
    Kind.DURATION,
    Kind.TEXTS,
    Kind.MAP,
)
_CONTAINER: dict[str, Kind] = {
    "container.network": _T,
    "container.privileged": _F,
    "container.options": _T,
    "container.workdir_parent": _T,
    "container.valid_volumes": _L,
    "container.docker_host": _T,
    "container.force_pull": _F,
    "container.force_rebuild": _F,
}
_CACHE: dict[str, Kind] = {"cache.enabled": _F, "cache.dir": _T, "cache.host": _T, "cache.port": _P}
_RUNNER: dict[str, Kind] = {
    "log.level": _T,
    "runner.envs": _M,
    "runner.env_file": _T,
    "runner.insecure": _F,
    "host.workdir_parent": _T,
    "runner.fetch_timeout": _D,
    "runner.fetch_interval": _D,
}
KEYS: dict[str, dict[str, Kind]] = {
    "gitea": {
        **_RUNNER,
        **_CONTAINER,
        **_CACHE,
        "runner.fetch_interval_max": _D,
        "runner.workdir_cleanup_age": _D,
        "runner.idle_cleanup_interval": _D,
        "runner.log_report_interval": _D,
        "runner.log_report_max_latency": _D,
        "runner.log_report_batch_size": _N,
        "runner.state_report_interval": _D,
        "runner.report_close_timeout": _D,
        "runner.github_mirror": _T,
        "runner.allocate_pty": _F,
        "cache.offline_mode": _F,
        "container.require_docker": _F,
        "container.docker_timeout": _D,
        "container.bind_workdir": _F,
        "metrics.enabled": _F,
        "metrics.addr": _T,
    },
    "forgejo": {
        **_RUNNER,
        **_CONTAINER,
        **_CACHE,
        "log.job_level": _T,
        "runner.report_interval": _D,
        "runner.report_retry.max_retries": _N,
        "runner.report_retry.initial_delay": _D,
        "runner.report_retry.max_delay": _D,
        "cache.proxy_port": _P,
        "cache.actions_cache_url_override": _T,
        "container.enable_ipv6": _F,
    },
}
"""By the forge's kind: the keys that `runner_config` may have, as `section.key`."""
_OURS = {
    **dict.fromkeys(
        ("runner.file", "runner.capacity"),
        "vmrunner writes it: a machine has one runner, for one job",
    ),
    "runner.labels": "the pool's labels rule",
    **dict.fromkeys(("runner.timeout", "runner.shutdown_timeout"), "the pool's job_timeout rules"),
    **dict.fromkeys(
        ("cache.external_secret", "cache.secret"),
        "it is a secret, and every job can read this file",
    ),
    "cache.external_server": "it takes a secret, and every job could read that",
}
_MOST = 10**9
_LARGEST = 64 << 10  # bytes: the seed takes ten times that, but no program a longer variable
LONGEST = timedelta(days=36500)
"""A duration at most: the runners are written in Go, and can't count to 300 years."""
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_PAIR = re.compile(r"\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}")  # of UTF-16, as JSON has it
KNOWN_FROM = {"gitea": least("gitea-runner"), "forgejo": least("forgejo-runner")}
"""The oldest runner of which it is known that it has all of these keys."""


VARIABLE = (
    "has a $ in it: Gitea's runner 5.0 and newer puts a variable of its own environment there, or "
    "does not start if there is none; a value that needs a $ can be in the workflow's env"
)


def fault(kind: str, more: Mapping[str, Any]) -> str:
    """What is wrong with a pool's `runner_config` for this kind of forge, as the end of a sentence;
    empty where nothing is.
    """
    known = KEYS[kind]
    tables = {key[: dot.start()] for key in known for dot in re.finditer(r"\.", key)}
    for key, value in _flat(more, known):
        if key in tables:
            if isinstance(value, Mapping):  # an empty one
                continue
            return f"{key} has to be a table"
        if kind == "gitea" and _has_variable(value):
            return f"{key} {VARIABLE}"
        if key in _OURS:
            return f"{key} can't be set here: {_OURS[key]}"
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.75)
            return f"the runner of a {kind} forge knows no key {key}" + (
                f"; did you mean {near[0]}?" if near else ""
            )
        if not _fits(value, known[key]):
            return f"{key} has to be {known[key].value}"
    if len(json.dumps(dict(more))) > _LARGEST:
        return f"it is longer than {_LARGEST >> 10} KiB"
    return ""


def too_old(kind: str, version: str) -> bool:
    """Whether a runner of this version may pass over keys of `runner_config` without a word.

    Unknown versions are believed.
    """
    found = numbers(version)
    return bool(found) and found < KNOWN_FROM[kind]


def own_cache(more: Mapping[str, Any]) -> str:
    """The key of a pool's `runner_config` by which its jobs use another cache than vmrunner's;
    empty where there is none.
    """
    if more.get("cache", {}).get("enabled"):
        return "cache.enabled"
    envs = more.get("runner", {}).get("envs", {})
    return f"runner.envs.{CACHE_URL}" if CACHE_URL in envs else ""


def runner_config(
    kind: str,
    *,
    job_timeout: timedelta,
    labels: Sequence[Label] = (),
    environment: Mapping[str, str],
    mounts: Sequence[str] = (),
    more: Mapping[str, Any],
) -> str:
    """The file's text, which is JSON and so YAML.

    `environment` is what jobs have in addition, also in their containers, and `mounts` are the
    machine's files that these have, too. `more` is the pool's `runner_config`, and comes on top;
    its volumes and options of containers come beside `mounts`.
    """
    limit = _as_go_writes(job_timeout + PATIENCE)
    runner: dict[str, Any] = {
        "timeout": limit,
        # Without it a runner that is told to end (SIGTERM) calls the unfinished job a success:
        # Gitea's runner 1.0.8.
        "shutdown_timeout": limit,
        "fetch_timeout": _as_go_writes(_ANSWER),
        "fetch_interval": "1s",
        "envs": dict(environment),
    }
    if mounts:
        # The pool's own come beside them: without the forge's authority in a job's container, whose
        # environment names its file, nothing there would trust anybody.
        own = more.get("container", {})
        volumes = " ".join(f"--volume {path}:{path}:ro" for path in mounts)
        both = {
            "valid_volumes": [*mounts, *own.get("valid_volumes", ())],
            "options": f"{volumes} {own.get('options', '')}".rstrip(),
        }
        more = {**more, "container": {**own, **both}}
    if kind == "gitea":
        runner |= {
            "report_close_timeout": _as_go_writes(_DELIVERY),
            "labels": [str(label) for label in labels],
        }
    else:
        runner |= {
            "report_retry": {"max_retries": 20, "initial_delay": "100ms", "max_delay": "15s"}
        }
    # A cache server inside the machine is gone with it: nothing would ever be found again. The
    # host's own is a variable of the environment, which the runner's own would write over.
    plain = {
        "log": {"level": "info"},
        "runner": runner,
        "cache": {"enabled": False},
        "container": {"force_pull": False},
        "host": {"workdir_parent": WORK},
    }
    text = json.dumps(_merged(plain, more), indent=1)
    # JSON writes an emoji as two escapes, and the YAML of both runners takes neither: they would
    # not start.
    text = _PAIR.sub(lambda pair: str(json.loads(f'"{pair[0]}"')), text)
    # A $ that came here in another way (a proxy's address) is written so that only a reader of JSON
    # and YAML sees it, and none that looks for variables in the text.
    return text.replace("$", r"\u0024")


def _flat(
    table: Mapping[str, Any], known: Mapping[str, Kind], head: str = ""
) -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        # A name that was quoted with its dot is no way through tables: the runner would pass over
        # it without a word.
        key = head + (f'"{name}"' if "." in name else name)
        if isinstance(value, Mapping) and known.get(key) is not Kind.MAP:
            yield from _flat(value, known, f"{key}.") if value else iter(((key, value),))
        else:
            yield key, value


def _fits(value: object, kind: Kind) -> bool:
    match kind:
        case Kind.FLAG:
            return isinstance(value, bool)
        case Kind.NUMBER:
            return _is_number(value) and -_MOST < value < _MOST
        case Kind.PORT:
            return _is_number(value) and 0 <= value <= 65535
        case Kind.DURATION:
            return isinstance(value, str) and _is_duration(value)
        case Kind.TEXTS:
            return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)
        case Kind.MAP:
            return isinstance(value, Mapping) and all(
                isinstance(each, str) for each in value.values()
            )
    return isinstance(value, str)


def _is_number(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_duration(text: str) -> bool:
    """As Go reads it, which counts nanoseconds in 64 bits: some 290 years."""
    parts = _PART.findall(text)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    return (
        bool(parts) and "".join(map("".join, parts)) == text and seconds < LONGEST.total_seconds()
    )


def _has_variable(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(_has_variable(each) for each in (*value.keys(), *value.values()))
    if isinstance(value, list | tuple):
        return any(_has_variable(each) for each in value)
    return isinstance(value, str) and "$" in value


def _merged(plain: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(plain)
    for key, value in more.items():
        before = both.get(key)
        both[key] = (
            _merged(before, value)
            if isinstance(before, Mapping) and isinstance(value, Mapping)
            else value
        )
    return both


def _as_go_writes(span: timedelta) -> str:
    """As Go reads it: a number without a unit ends the start."""
    return f"{int(span.total_seconds())}s"
