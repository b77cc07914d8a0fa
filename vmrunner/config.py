"""The configuration: one TOML file, read here and nowhere else."""

from __future__ import annotations

import os
import re
import socket
import stat
import tomllib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from cronsim import CronSim, CronSimError
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StrictBool,
    StrictInt,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from vmrunner import faults
from vmrunner.errors import ConfigError, NotReadable, VmrunnerError
from vmrunner.faults import Fault
from vmrunner.model.job import Scope
from vmrunner.model.label import Label
from vmrunner.model.machine import DEFAULT_SHAPE, Limits, Shape
from vmrunner.model.notice import Kind
from vmrunner.model.packages import Ecosystem, Mirror
from vmrunner.model.secret import Secret
from vmrunner.network import forge_url, reach
from vmrunner.network.addresses import Addresses, gateway
from vmrunner.network.forge import ForgeAddresses
from vmrunner.network.policy import (
    CLOSED6,
    UNIQUE_LOCAL,
    Bounds,
    Destination,
    Policy,
    Reach,
    flavor_policy,
    pool_policy,
)
from vmrunner.resources import CONFIG, folder
from vmrunner.runner_config import LONGEST, VARIABLE, fault
from vmrunner.text import sentence

DEFAULT_PATH = CONFIG
DEFAULT_TOKEN = Path("/etc/vmrunner/forge-token")

_SHORTEST_TOKEN = 20  # characters of what opens the page

_SIZES = {"MiB": 1, "GiB": 1024, "TiB": 1024 * 1024}
_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def parse_size(value: object) -> int:
    """`"2GiB"` -> 2048, in MiB. Only binary units, so that nobody has to guess."""
    found = re.fullmatch(r"(\d+)\s*(MiB|GiB|TiB)", value) if isinstance(value, str) else None
    if not found:
        raise ValueError('a size is written like "2GiB" or "512MiB"')
    return int(found[1]) * _SIZES[found[2]]


def parse_duration(value: object) -> timedelta:
    """`"500ms"`, `"90s"`, `"15m"`, `"3h"` or `"30d"`."""
    found = re.fullmatch(r"(\d{1,18})\s*(ms|s|m|h|d)", value) if isinstance(value, str) else None
    if not found or not int(found[1]):
        raise ValueError('a duration is written like "90s", "15m" or "3h"')
    milliseconds = int(found[1]) * _MILLISECONDS[found[2]]
    if milliseconds > LONGEST.total_seconds() * 1000:
        raise ValueError(f'a duration is "{LONGEST.days}d" at most')
    return timedelta(milliseconds=milliseconds)


LONGEST_HOLD = timedelta(days=7)
"""For which a machine is kept at most."""


def _hold_time(span: timedelta) -> timedelta:
    if span > LONGEST_HOLD:
        raise ValueError(f'a machine is held for "{LONGEST_HOLD.days}d" at most')
    return span


def parse_hold_time(text: str) -> timedelta:
    """A duration that is not longer than a machine may be held."""
    return _hold_time(parse_duration(text))


def _in_units(number: int, units: Mapping[str, int]) -> str:
    """`2048` -> `"2GiB"`: in the largest unit of which it is a whole number."""
    name = max((unit for unit in units if number % units[unit] == 0), key=lambda unit: units[unit])
    return f"{number // units[name]}{name}"


def _scope(value: object) -> Scope:
    if not isinstance(value, str):
        raise ValueError('a scope is written like "instance" or "organisation:NAME"')
    try:
        return Scope.parse(value)
    except VmrunnerError as error:
        raise ValueError(f"{error.sentence} {error.hint}") from None


def _scopes(value: object) -> tuple[Scope, ...]:
    listed = value if isinstance(value, list) else [value]
    if not listed:
        raise ValueError("a pool needs a scope")
    return tuple(dict.fromkeys(_scope(each) for each in listed))


def _network(value: object) -> str:
    if not isinstance(value, str):  # a number would be an address, too
        raise ValueError('has to be a network in quotes, like "10.87.0.0/24" or "fd87::/64"')
    return value


def _cron(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError('a cron expression is written like "0 8 * * 1-5"')
    try:
        CronSim(value, datetime.now(UTC))
    except CronSimError as error:
        raise ValueError(f'{error}; a cron expression is written like "0 8 * * 1-5"') from None
    return value


def _destination(value: object) -> Destination:
    if not isinstance(value, str):
        raise ValueError('a destination is written like "deb.debian.org:443"')
    return Destination.parse(value)


def _label(value: object) -> Label:
    if not isinstance(value, str):
        raise ValueError('a label is written like "debian-13"')
    return Label.parse(value)


def _site(value: object) -> str:
    """The URL of a service that machines use.

    Its host and port become a destination, so they have to have a destination's form.
    """
    url = urlsplit(value) if isinstance(value, str) and re.fullmatch(r"[!-~]+", value) else None
    if url is None or url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError('it is written like "http://proxy.example:3128"')
    if "@" in url.netloc:
        raise ValueError("it has a password in it, which every job could read")
    _destination_of(url.geturl())
    return url.geturl().rstrip("/")


def _destination_of(url: str) -> Destination:
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else parts.hostname
    return Destination.parse(f"{host}:{parts.port or (443 if parts.scheme == 'https' else 80)}")


def _receiver(value: object) -> str:
    """The URL of a web hook. A fault shows nothing of it: its path may be a secret."""
    form = 'it is written like "https://alerts.example/vmrunner"'
    if not isinstance(value, str) or not re.fullmatch(r"https?://[!-~]+", value):
        raise ValueError(form)
    try:
        url = urlsplit(value)
        is_whole = bool(url.hostname) and url.port != 0
    except ValueError:  # a port that is none, a bracket that is not closed
        raise ValueError(form) from None
    if not is_whole or re.search(r"[\\\"<>]", value):
        raise ValueError(form)
    if "@" in url.netloc:
        raise ValueError("it has a user or a password in it; secret_file signs what is sent")
    if "#" in value:
        raise ValueError("nothing after a # is ever sent")
    return value


def _listen(value: object) -> str:
    found = re.fullmatch(r"\S+:(\d{1,5})", value) if isinstance(value, str) else None
    if not found or int(found[1]) > 65535:
        raise ValueError('an address to listen at is written like "192.0.2.5:8484"')
    return found[0]


def _page_listen(value: object) -> str:
    """An address and a port, or a socket's path."""
    if isinstance(value, str) and value.startswith("/") and len(value.encode()) < _LONGEST_SOCKET:
        return value
    try:
        return _listen(value)
    except ValueError:
        raise ValueError(
            'it is written like "127.0.0.1:8480", or is a socket: "/run/vmrunner-page/socket"'
        ) from None


def _is_here(listen: str) -> bool:
    """Whether only this host's own programs reach it."""
    host = listen.rpartition(":")[0].strip("[]")
    try:
        return listen.startswith("/") or host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


_LONGEST_SOCKET = 108  # bytes that Linux has for a socket's path, and its end
_HEADER, _HOST = r"^[A-Za-z][A-Za-z0-9-]{0,63}$", r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$"
_MANAGER, _IMAGE = r"^[a-z0-9]([a-z0-9-]{0,22}[a-z0-9])?$", r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
_RUNNER, _NO_PROXY = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,30}$", r"^[A-Za-z0-9.*:/-]{1,255}$"
_LISTEN = r"^\S+:\d{1,5}$"
_REPOSITORY = r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]*[A-Za-z0-9_-]"
_UPSTREAM = r"https?://[A-Za-z0-9.-]+(:\d{1,5})?(/[A-Za-z0-9._~+-]+)*/?"
_RESOLVER = 53  # the port where machines ask for names
_PATTERNS = {
    _MANAGER: 'a name here has small letters, digits and "-", and 24 of them at most',
    _IMAGE: 'a name here has letters, digits, ".", "_" and "-"',
    _RUNNER: 'a name here has letters, digits, ".", "_" and "-", and 31 of them at most',
    _NO_PROXY: 'has to be a host, a network or a beginning of names, like "packages.example"',
    _LISTEN: 'an address to listen at is written like "127.0.0.1:9750"',
    _HEADER: 'the name of a header is written like "X-Forwarded-User"',
    _HOST: 'the name of a host is written like "ci.example"',
}

# Written back, for `vmrunner config show`, and described, for editors, in the words of the file.
_TEXT = WithJsonSchema({"type": "string"})
Mebibytes = Annotated[
    int,
    BeforeValidator(parse_size),
    PlainSerializer(lambda size: _in_units(size, _SIZES), return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^\d+\s*(MiB|GiB|TiB)$"}),
]
Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(
        lambda span: _in_units(round(span.total_seconds() * 1000), _MILLISECONDS), return_type=str
    ),
    WithJsonSchema({"type": "string", "pattern": r"^\d+\s*(ms|s|m|h|d)$"}),
]
Site = Annotated[str, BeforeValidator(_site)]
LabelText = Annotated[Label, BeforeValidator(_label), PlainSerializer(str, return_type=str), _TEXT]
DestinationText = Annotated[
    Destination, BeforeValidator(_destination), PlainSerializer(str, return_type=str), _TEXT
]
Scopes = Annotated[
    tuple[Scope, ...],
    BeforeValidator(_scopes),
    PlainSerializer(lambda scopes: [str(each) for each in scopes], return_type=list[str]),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "minItems": 1, "items": {"type": "string"}},
            ]
        }
    ),
]
HoldTime = Annotated[Duration, AfterValidator(_hold_time)]
ManagerId = Annotated[str, Field(pattern=_MANAGER)]


class Section(BaseModel):
    """A table of the file: unknown keys are errors, values don't change after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, arbitrary_types_allowed=True, defer_build=True
    )


class ForgeConfig(Section):
    """The forge that the jobs wait at."""

    kind: Literal["forgejo", "gitea"]
    url: Annotated[str, BeforeValidator(forge_url.parse)]
    token_file: Path | None = None
    ca_file: Path | None = None

    def ca(self) -> str:
        """The certificates of `ca_file`, as PEM text for guests; empty without one.

        Raises ConfigError.
        """
        if self.ca_file is None:
            return ""
        try:
            text = self.ca_file.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"The certificates {self.ca_file} can't be read: {error}.",
                "forge.ca_file wants a PEM file.",
            ) from None
        if "PRIVATE KEY-----" in text:
            raise ConfigError(
                f"The file of certificates {self.ca_file} has a private key in it.",
                "Every job could read it: leave the certificates alone in the file.",
            )
        return text


def is_local(uri: str) -> bool:
    """Whether libvirt at this URI is on this host."""
    return "://" in uri and not uri.partition("://")[2].partition("/")[0]


class LibvirtConfig(Section):
    """The libvirt host, and what on it is ours."""

    uri: str = "qemu:///system"
    storage_path: Path = Path("/var/lib/libvirt/vmrunner")
    subnet: Annotated[IPv4Network, BeforeValidator(_network)] = IPv4Network("10.87.0.0/24")
    accelerator: Literal["auto", "kvm", "software"] = "auto"

    @field_validator("subnet")
    @classmethod
    def _room_for_guests(cls, subnet: IPv4Network) -> IPv4Network:
        if subnet.prefixlen > 29:
            raise ValueError("a subnet needs room for machines: /29 or wider")
        return subnet


class NetworkConfig(Section):
    """What guards the machines' network, and whether it has IPv6."""

    ipv6: Annotated[IPv6Network, BeforeValidator(_network)] | None = None
    filter: StrictBool = True
    mtu: Annotated[StrictInt, Field(ge=1280, le=9216)] | None = None
    connections: Annotated[StrictInt, Field(ge=1, le=1_000_000)] = 2048
    new_connections: Annotated[StrictInt, Field(ge=1, le=1_000_000)] = 200
    dns_queries: Annotated[StrictInt, Field(ge=1, le=1_000_000)] = 200
    dns_waiting: Annotated[StrictInt, Field(ge=16, le=10_000)] = 256

    @field_validator("ipv6")
    @classmethod
    def _for_machines(cls, prefix: IPv6Network | None) -> IPv6Network | None:
        if prefix is None:
            return None
        if not 64 <= prefix.prefixlen <= 112:
            raise ValueError("an IPv6 network for machines is a /64 to /112")
        if not prefix.subnet_of(UNIQUE_LOCAL) and any(prefix.overlaps(block) for block in CLOSED6):
            raise ValueError(
                'an IPv6 network for machines is a unique local one, like "fd87::/64", or one of '
                "global addresses"
            )
        return prefix

    @property
    def bounds(self) -> Bounds:
        """Those of one machine."""
        return Bounds(self.connections, self.new_connections, self.dns_queries, self.dns_waiting)


class WarmAt(Section):
    """From this time on (local time), another number of warm machines."""

    cron: Annotated[str, BeforeValidator(_cron)]
    warm: Annotated[StrictInt, Field(ge=0, le=10_000)]


class MachineConfig(Section):
    """What machines are like, whoever asks for them."""

    tools: Annotated[str, Field(pattern=_IMAGE)] | None = None
    runner: Annotated[str, Field(pattern=_RUNNER)] | None = None
    runner_config: dict[str, Any] = {}
    job_user: Literal["root", "runner"] = "root"
    vcpus: Annotated[StrictInt, Field(ge=1, le=1024)] = DEFAULT_SHAPE.vcpus
    memory: Mebibytes = DEFAULT_SHAPE.memory_mib
    disk: Mebibytes = DEFAULT_SHAPE.disk_gib * 1024
    nested: StrictBool = False
    cpu_weight: Annotated[StrictInt, Field(ge=1, le=10_000)] = 100
    disk_bandwidth: Annotated[Mebibytes, Field(ge=1)] | None = None
    disk_iops: Annotated[StrictInt, Field(ge=10, le=10_000_000)] | None = None
    start: Literal["auto", "snapshot", "boot"] = "auto"
    network: Reach = Reach.INTERNET
    allow: tuple[DestinationText, ...] = ()
    registry_mirror: Site | None = None
    proxy: Site | None = None
    no_proxy: tuple[Annotated[str, Field(pattern=_NO_PROXY)], ...] = ()
    pickup_timeout: Duration = timedelta(minutes=2)
    job_timeout: Duration = timedelta(hours=3)

    @model_validator(mode="after")
    def _allows_what_it_can(self) -> MachineConfig:
        if self.network is Reach.NONE and self.allow:
            raise ValueError(
                'allow is for network = "allowlist" or "internet"; with "none" only the forge is '
                "reached"
            )
        if self.network is Reach.NONE and (self.registry_mirror or self.proxy):
            raise ValueError(
                'with network = "none" only the forge is reached: no registry_mirror, and no proxy'
            )
        if self.no_proxy and not self.proxy:
            raise ValueError("no_proxy is for pools with a proxy")
        return self

    @property
    def destinations(self) -> tuple[Destination, ...]:
        """What `allow` names, and the mirror and the proxy, which machines are there to reach."""
        return self.allow + tuple(
            _destination_of(url) for url in (self.registry_mirror, self.proxy) if url
        )

    @property
    def shape(self) -> Shape:
        """The machine's size in libvirt's units."""
        return Shape(self.vcpus, self.memory, max(1, self.disk // 1024), self.nested)

    @property
    def limits(self) -> Limits:
        """What its machines may use of the host."""
        return Limits(self.cpu_weight, self.disk_bandwidth or 0, self.disk_iops or 0)


def _one_place_each(labels: tuple[Label, ...]) -> tuple[Label, ...]:
    places: dict[str, str] = {}
    for label in labels:
        if places.setdefault(label.name, label.place) != label.place:
            raise ValueError(
                f"the label {label.name} has two places, {places[label.name]} and {label.place}"
            )
    return tuple(dict.fromkeys(labels))


Labels = Annotated[tuple[LabelText, ...], AfterValidator(_one_place_each)]


class PoolConfig(MachineConfig):
    """One kind of machine, for jobs that wait at the forge."""

    labels: Annotated[Labels, Field(min_length=1)]
    image: Annotated[str, Field(pattern=_IMAGE)]
    takes_unlabelled: StrictBool = False
    scope: Scopes = (Scope.parse("instance"),)
    max: Annotated[StrictInt, Field(ge=1, le=10_000)] = 1
    warm: Annotated[StrictInt, Field(ge=0, le=10_000)] = 0
    schedule: tuple[WarmAt, ...] = ()
    register_idle: Annotated[StrictInt, Field(ge=0, le=10_000)] = 0
    priority: StrictInt = 0
    boot_timeout: Duration = timedelta(minutes=5)
    teardown_timeout: Duration = timedelta(minutes=1)
    hold_failed: HoldTime | None = None
    job_may_hold: HoldTime | None = None

    @property
    def stays(self) -> bool:
        """Whether its machines don't power off by themselves when their job is over."""
        return bool(self.hold_failed or self.job_may_hold)

    @property
    def label_names(self) -> tuple[str, ...]:
        """What the forge knows of the labels."""
        return tuple(label.name for label in self.labels)

    def warm_at(self, now: datetime) -> int:
        """How many warm machines there should be: what the line of the schedule says whose time
        came last, else `warm`.
        """
        last = [
            (next(CronSim(line.cron, now, reverse=True)), -number, line.warm)
            for number, line in enumerate(self.schedule)
        ]
        return max(last)[2] if last else self.warm


class FlavorConfig(MachineConfig):
    """One kind of machine, for the pools of GARM that name it as their flavor; the image is
    theirs.
    """

    labels: Annotated[
        Labels,
        Field(
            description="Where jobs run that ask for these labels of GARM's pool, if not in the "
            "machine itself."
        ),
    ] = ()
    pickup_timeout: Annotated[
        Duration,
        Field(
            description="How long a runner that the forge does not answer, or not take, when it "
            "starts tries again. An idle runner has no end but `lifetime`."
        ),
    ] = timedelta(minutes=2)
    job_timeout: Annotated[
        Duration,
        Field(description="The runner's own limit for a job; the host sees to `lifetime` alone."),
    ] = timedelta(hours=3)
    install: Annotated[
        Literal["host", "machine"],
        Field(
            description='Where GARM\'s runner is made: "host" registers it here, and the machine '
            'gets no token; "machine" runs the install script of GARM\'s pool in the machine.'
        ),
    ] = "host"
    lifetime: Annotated[
        Duration,
        Field(
            description="So long after its creation a machine goes, whatever it does, also in the "
            "middle of a job: GARM knows no longest time."
        ),
    ] = timedelta(days=2)


class GarmConfig(Section):
    """Machines that GARM asks for."""

    flavors: dict[ManagerId, FlavorConfig] = {}


class CapacityConfig(Section):
    """How much of the host the machines may take; one that doesn't fit waits."""

    cpu_overcommit: Annotated[float, Field(gt=0, le=100)] = 4.0
    memory_reserve: Mebibytes = 1024
    disk_floor: Mebibytes = 5 * 1024
    disk_guard: Mebibytes = 2 * 1024

    @property
    def guard(self) -> int:
        """`disk_guard`, in MiB; with a lower floor it is the floor: what may be used is no
        danger.
        """
        return min(self.disk_guard, self.disk_floor)


class WebhookConfig(Section):
    """Where `vmrunner serve` hears from the forge that a job waits."""

    listen: Annotated[str, BeforeValidator(_listen)] | None = None
    secret_file: Path | None = None

    @model_validator(mode="after")
    def _both_or_none(self) -> WebhookConfig:
        if (self.listen is None) != (self.secret_file is None):
            raise ValueError(
                "listen and secret_file go together: a webhook that is not signed could be anyone's"
            )
        return self


class ServeConfig(Section):
    """`vmrunner serve`."""

    poll: Duration = timedelta(milliseconds=500)
    on_stop: Literal["leave", "drain"] = "leave"
    webhook: WebhookConfig = WebhookConfig()


class ImagesConfig(Section):
    """Versions of golden images."""

    boot_timeout: Duration = timedelta(minutes=5)
    rollback_after: Annotated[StrictInt, Field(ge=0, le=100)] = 3
    max_age: Duration = timedelta(days=30)
    keep: Annotated[StrictInt, Field(ge=1, le=1000)] = 3


class HistoryConfig(Section):
    """Finished machines."""

    keep_days: Annotated[StrictInt, Field(ge=1, le=10_000)] = 90
    keep_logs: Mebibytes = 1024


class MetricsConfig(Section):
    """Prometheus."""

    listen: Annotated[str, Field(pattern=_LISTEN)] | None = None
    textfile: Path | None = None


class NotifyConfig(Section):
    """Who is told of what happens, by a web hook."""

    url: Annotated[str, BeforeValidator(_receiver)] | None = None
    secret_file: Path | None = None
    events: Annotated[tuple[Kind, ...], Field(min_length=1)] = tuple(Kind)

    @model_validator(mode="after")
    def _both_or_none(self) -> NotifyConfig:
        if (self.url is None) != (self.secret_file is None):
            raise ValueError("url and secret_file go together: a receiver has to know who calls")
        return self


class PageConfig(Section):
    """A page for browsers, which `vmrunner serve` offers."""

    listen: Annotated[str, BeforeValidator(_page_listen)] | None = None
    token_file: Path | None = None
    user_header: Annotated[str, Field(pattern=_HEADER)] | None = None
    hosts: tuple[Annotated[str, Field(pattern=_HOST)], ...] = ()
    logs: bool = False

    @model_validator(mode="after")
    def _not_for_everybody(self) -> PageConfig:
        if self.listen is None:
            if self.token_file or self.user_header or self.hosts or self.logs:
                raise ValueError("there is no page without listen")
        elif not _is_here(self.listen):
            if self.user_header:
                raise ValueError(
                    "a user_header is believed on this host alone: listen at 127.0.0.1 or at a "
                    "socket, or let the proxy send the token"
                )
            if not self.token_file:
                raise ValueError("whoever reaches it from outside of this host needs a token_file")
        if self.logs and not self._is_closed:
            raise ValueError(
                "logs may show what a job keeps to itself, so not every user of this host may read "
                "them: set a token_file without a user_header, or listen at a socket with either"
            )
        return self

    @property
    def _is_closed(self) -> bool:
        """Whether not every user of this host gets in: at an address each of them can send a
        user_header.
        """
        if self.listen and self.listen.startswith("/"):
            return bool(self.token_file or self.user_header)
        return self.token_file is not None and self.user_header is None


def _repository(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(_REPOSITORY, value):
        raise ValueError('a repository is written like "owner/name"')
    return value


def _upstream(value: object) -> bool | str:
    """Whether packages come through this host, or the URL that they come from; it is written into
    other programs' configuration.
    """
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or not re.fullmatch(_UPSTREAM, value):
        raise ValueError(
            'it is true, or where the packages come from, like "https://packages.example/pypi"'
        )
    return _site(value)


Upstream = Annotated[
    bool | str,
    BeforeValidator(_upstream),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"type": "string"}]}),
]


class PackagesConfig(Section):
    """Packages that machines fetch through this host, which keeps them for all machines."""

    apt: Upstream = False
    npm: Upstream = False
    pypi: Upstream = False
    go: Upstream = False
    oci: Upstream = False
    crates: Upstream = False
    maven: Upstream = False
    first_port: Annotated[StrictInt, Field(ge=1, le=65535 - len(Ecosystem) + 1)] = 8490
    max: Annotated[Mebibytes, Field(ge=100)] = 20 * 1024

    @model_validator(mode="after")
    def _can_be_kept(self) -> PackagesConfig:
        if isinstance(self.apt, str) and not self.apt.startswith("http://"):
            raise ValueError(
                "apt: what apt fetches by https goes past any cache; write the http:// address "
                "that the machines' apt sources have"
            )
        if isinstance(self.oci, str) and urlsplit(self.oci).path:
            raise ValueError("oci: it is a registry's address, without a path")
        if _RESOLVER in range(self.first_port, self.first_port + len(Ecosystem)):
            raise ValueError(f"first_port: at {_RESOLVER} the machines' resolver listens")
        return self

    @property
    def upstreams(self) -> dict[Ecosystem, str]:
        """Where each kind comes from that goes through this host."""
        configured = {each: getattr(self, each) for each in Ecosystem}
        return {
            each: each.public if value is True else value
            for each, value in configured.items()
            if value is not False
        }

    def port(self, of: Ecosystem) -> int:
        """Where machines fetch this kind."""
        return self.first_port + list(Ecosystem).index(of)


class CacheConfig(Section):
    """What jobs keep for later jobs of their repository: `actions/cache`."""

    listen_port: Annotated[StrictInt, Field(ge=1, le=65535)] | None = None
    max: Mebibytes = 20 * 1024
    max_per_repository: Mebibytes = 5 * 1024
    groups: dict[ManagerId, tuple[Annotated[str, BeforeValidator(_repository)], ...]] = {}
    packages: PackagesConfig = PackagesConfig()

    @model_validator(mode="after")
    def _can_be_meant(self) -> CacheConfig:
        if self.listen_port == _RESOLVER:
            raise ValueError(f"listen_port: at {_RESOLVER} the machines' resolver listens")
        if self.listen_port is None and self.groups:
            raise ValueError("there is no cache without listen_port")
        if self.max_per_repository > self.max:
            raise ValueError("max_per_repository is more than max")
        used = {self.packages.port(each): each for each in self.packages.upstreams}
        if self.listen_port in used:
            raise ValueError(
                f"listen_port is where machines fetch {used[self.listen_port]} packages, too: "
                "choose another one, or another packages.first_port"
            )
        places: dict[str, str] = {}
        for name, repositories in self.groups.items():
            for each in repositories:
                if places.setdefault(each.lower(), name) != name:
                    raise ValueError(f"{each} is in two groups, {places[each.lower()]} and {name}")
        return self


class HostConfig(Section):
    """What concerns this host alone: enough to build images and for `vmrunner exec`."""

    libvirt: LibvirtConfig = LibvirtConfig()
    network: NetworkConfig = NetworkConfig()
    images: ImagesConfig = ImagesConfig()
    manager: ManagerId = Field(default_factory=lambda: default_manager())
    state_dir: Path = Path("/var/lib/vmrunner")
    runtime_dir: Path = Path("/run/vmrunner")
    recipes_dir: Path = Path("/etc/vmrunner/recipes")

    @model_validator(mode="after")
    def _room_in_both(self) -> HostConfig:
        prefix, subnet = self.network.ipv6, self.libvirt.subnet
        if prefix and prefix.num_addresses < subnet.num_addresses:
            raise ValueError(
                f"network.ipv6 needs as many addresses as libvirt.subnet, which is {subnet}"
            )
        return self

    @property
    def images_dir(self) -> Path:
        """Where `vmrunner image build` publishes golden images."""
        return self.state_dir / "images"

    @property
    def history_file(self) -> Path:
        """The machines that were, and their jobs."""
        return self.state_dir / "history.sqlite"

    @property
    def policies(self) -> tuple[Policy, ...]:
        """What machines may reach: those of `vmrunner exec`, which has two, and those of each
        pool.
        """
        return tuple(Policy(reach, reach) for reach in (Reach.INTERNET, Reach.NONE))

    @property
    def forge_url(self) -> str:
        """Empty where there is none."""
        return ""

    def addresses(self) -> Addresses:
        """Which machine has which address."""
        return Addresses(self.runtime_dir, self.libvirt.subnet, self.network.ipv6)

    def forge_addresses(self) -> ForgeAddresses:
        """Where the forge is, for machines and for what lets them through to it."""
        return ForgeAddresses(self.forge_url, self.runtime_dir, ipv6=self.network.ipv6 is not None)


class Config(HostConfig):
    """The whole file."""

    forge: ForgeConfig
    capacity: CapacityConfig = CapacityConfig()
    serve: ServeConfig = ServeConfig()
    history: HistoryConfig = HistoryConfig()
    metrics: MetricsConfig = MetricsConfig()
    notify: NotifyConfig = NotifyConfig()
    page: PageConfig = PageConfig()
    cache: CacheConfig = CacheConfig()
    garm: GarmConfig = GarmConfig()
    pools: dict[ManagerId, PoolConfig]

    @model_validator(mode="before")
    @classmethod
    def _for_garm_alone(cls, data: Any) -> Any:
        """Where there are flavors nobody needs pools."""
        if isinstance(data, dict) and data.get("garm") and "pools" not in data:
            return data | {"pools": {}}
        return data

    def pool(self, name: str) -> PoolConfig:
        """The pool of this name. Raises ConfigError."""
        if name not in self.pools:
            known = ", ".join(self.pools) or "none"
            raise ConfigError(f"There is no pool {name!r}.", f"The configuration has: {known}.")
        return self.pools[name]

    @property
    def kinds(self) -> dict[str, MachineConfig]:
        """Every kind of machine, by the name of its table."""
        return {
            **{f"pools.{name}": pool for name, pool in self.pools.items()},
            **{f"garm.flavors.{name}": flavor for name, flavor in self.garm.flavors.items()},
        }

    @model_validator(mode="after")
    def _makes_machines(self) -> Config:
        if not self.kinds:
            raise ValueError("pools is empty; only a host with flavors for GARM needs none")
        return self

    @model_validator(mode="after")
    def _configures_its_runner(self) -> Config:
        for name, kind in self.kinds.items():
            if wrong := fault(self.forge.kind, kind.runner_config):
                raise ValueError(f"{name}.runner_config: {wrong}")
            if self.forge.kind == "gitea" and "$" in (kind.proxy or ""):
                # It is in the environment that the runner's configuration gives to jobs.
                raise ValueError(f"{name}.proxy {VARIABLE}; in an address it is %24")
        return self

    @model_validator(mode="after")
    def _caches_for_somebody(self) -> Config:
        if self.cache.listen_port is None:
            return self
        if not self.network.filter:
            raise ValueError(
                "cache.listen_port: without network.filter a machine could take another one's "
                "address, and with it that one's cache"
            )
        if not any(self.has_cache(pool) for pool in self.pools.values()):
            raise ValueError(
                'cache.listen_port: no pool may reach a cache, each has network = "none"'
                if self.pools
                else "cache.listen_port: machines for GARM have no cache, and there are no pools"
            )
        return self

    @model_validator(mode="after")
    def _fetches_here(self) -> Config:
        if self.cache.packages.upstreams and not is_local(self.libvirt.uri):
            raise ValueError(
                "cache.packages: machines at another host's libvirt do not reach this host"
            )
        return self

    @model_validator(mode="after")
    def _allows_what_there_is(self) -> Config:
        if self.network.ipv6 is None:
            for name, kind in self.kinds.items():
                if any(isinstance(to.host, IPv6Network) for to in kind.destinations):
                    raise ValueError(
                        f"{name} names an IPv6 address, and machines have none without network.ipv6"
                    )
        return self

    def has_cache(self, pool: PoolConfig) -> bool:
        """Whether jobs of this pool are offered the cache, and reach it."""
        return self.cache.listen_port is not None and pool.network is not Reach.NONE

    def cache_url(self, pool: PoolConfig) -> str:
        """Where jobs of this pool find the cache; empty where they have none."""
        at = f"{gateway(self.libvirt.subnet)}:{self.cache.listen_port}"
        return f"http://{at}/" if self.has_cache(pool) else ""

    @property
    def cache_dir(self) -> Path:
        """What the cache keeps."""
        return self.state_dir / "cache"

    @property
    def cache_jobs_file(self) -> Path:
        """Which jobs run on which machines, for the cache."""
        return self.runtime_dir / f"{self.manager}.jobs.json"

    @property
    def cache_lab_file(self) -> Path:
        """The same of machines of `doctor --isolation`, whose jobs no forge has."""
        return self.runtime_dir / f"{self.manager}.isolation.json"

    @property
    def logs_dir(self) -> Path:
        """Where the lines about each machine are kept."""
        return self.state_dir / "logs"

    @property
    def notices_dir(self) -> Path:
        """Where notices wait that were not sent yet."""
        return self.state_dir / "notices"

    @property
    def seen_file(self) -> Path:
        """What the last pass of `vmrunner serve` saw, for the page."""
        return self.runtime_dir / f"{self.manager}.seen.json"

    @property
    def webhook_heard(self) -> Path:
        """The file whose time is when the forge's webhook was heard last."""
        return self.runtime_dir / f"{self.manager}.webhook"

    @property
    def policies(self) -> tuple[Policy, ...]:
        """See HostConfig."""
        pools = tuple(
            Policy(pool_policy(name), pool.network, pool.destinations, self._host_ports(pool))
            for name, pool in self.pools.items()
        )
        flavors = tuple(
            Policy(
                flavor_policy(name),
                flavor.network,
                flavor.destinations,
                self._package_ports(flavor),
            )
            for name, flavor in self.garm.flavors.items()
        )
        return super().policies + pools + flavors

    def _host_ports(self, pool: PoolConfig) -> tuple[int, ...]:
        """What the host itself offers to this pool's machines."""
        cache = self.cache.listen_port
        own = (cache,) if cache and self.has_cache(pool) else ()
        return own + self._package_ports(pool)

    def _package_ports(self, section: MachineConfig) -> tuple[int, ...]:
        return tuple(each.port for each in self.mirrors(section))

    def mirrors(self, section: MachineConfig) -> tuple[Mirror, ...]:
        """What fetches packages for machines of this kind."""
        return () if section.network is Reach.NONE else self.all_mirrors

    @property
    def all_mirrors(self) -> tuple[Mirror, ...]:
        """What fetches packages for machines, one for each kind of them."""
        return tuple(self.mirror(each, url) for each, url in self.cache.packages.upstreams.items())

    def mirror(self, of: Ecosystem, upstream: str = "") -> Mirror:
        """What fetches this kind for machines, from where everybody has it unless said."""
        address = str(gateway(self.libvirt.subnet))
        # Two managers on one host have names of their own; the only one has usually none.
        manager = "" if self.manager == default_manager() else self.manager
        return Mirror(of, upstream or of.public, address, self.cache.packages.port(of), manager)

    @property
    def forge_url(self) -> str:
        """See HostConfig."""
        return self.forge.url

    def forge_fault(self, url: str = "") -> VmrunnerError | None:
        """Why no machine could reach the forge, at its own URL or another; None where one may.

        Resolves the name.
        """
        return reach.fault(
            url or self.forge.url, self.libvirt.subnet, ipv6=self.network.ipv6 is not None
        )


def default_manager() -> str:
    """The host's short name, reduced to what libvirt, DNS and both forges accept in a name."""
    short = (
        re.sub(r"[^a-z0-9-]", "-", socket.gethostname().partition(".")[0].lower())
        .strip("-")[:24]
        .strip("-")
    )
    return short or "host"


def example() -> str:
    """The commented example that `vmrunner config example` prints."""
    return (folder("templates") / "vmrunner.toml").read_text(encoding="utf-8")


def load(path: Path) -> Config:
    """Read and check the file; its faults are one ConfigError, which names each line and key."""
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"There is no configuration at {path}.",
            "`vmrunner init` makes one; or name a file with --config.",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The configuration {path} can't be read: {error}.",
            "It must be a UTF-8 file that this user may read.",
        ) from None
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise ConfigError(
            f"{path} is not valid TOML: {error}.", "Compare with `vmrunner config example`."
        ) from None
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(
            listed(path, [str(fault) for fault in _faults(error, text, data)]),
            "Every key is described in `vmrunner config example`.",
        ) from None


def _faults(error: ValidationError, text: str, data: Mapping[str, Any]) -> list[Fault]:
    return faults.found(error, Config, text, data, _PATTERNS)


def listed(path: Path, found: Sequence[str]) -> str:
    """The faults of a file as one sentence, or each in its own line."""
    if len(found) == 1:
        return sentence(f"{path}: {found[0]}")
    return faults.listed(str(path), found)


def load_host(path: Path) -> HostConfig:
    """The configuration for commands that need no forge: the defaults where there is no file at the
    default place.
    """
    return HostConfig() if path == DEFAULT_PATH and not path.exists() else load(path)


def forge_token(config: ForgeConfig, warn: Callable[[str], None]) -> Secret:
    """The forge token, from `token_file`, else from systemd's `$CREDENTIALS_DIRECTORY/forge-token`,
    else from the default place.

    `warn` is called with one sentence where others on this host can read the file.
    """
    hint = (
        f"Put the token into {DEFAULT_TOKEN}, mode 0600, or name another file as forge.token_file."
    )
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    path = config.token_file or (
        Path(credentials) / "forge-token" if credentials else DEFAULT_TOKEN
    )
    # systemd's copy is guarded by an ACL, which shows as a readable group.
    return _secret(
        "token", path, hint, warn if config.token_file or not credentials else lambda _: None
    )


def token_in(path: Path, warn: Callable[[str], None]) -> Secret:
    """A forge's access token in any file; `warn` as for `forge_token`."""
    return _secret("token", path, "It is one word, which the forge shows once.", warn)


def webhook_secret(path: Path, warn: Callable[[str], None]) -> Secret:
    """What the forge signs its webhook with, from serve.webhook.secret_file.

    `warn` as for `forge_token`.
    """
    return _secret(
        "secret",
        path,
        f"Put what the webhook has as its secret at the forge into {path}, mode 0600.",
        warn,
    )


def notify_secret(path: Path, warn: Callable[[str], None]) -> Secret:
    """What notices are signed with, from notify.secret_file. `warn` as for `forge_token`."""
    hint = f"Put the secret that the receiver checks with into {path}, mode 0600."
    return _secret("secret", path, hint, warn)


def page_token(path: Path, warn: Callable[[str], None]) -> Secret:
    """What opens the page, from page.token_file. `warn` as for `forge_token`."""
    hint = f"`(umask 077; openssl rand -hex 32 > {path})` makes one."
    found = _secret("token", path, hint, warn)
    if len(found.value) < _SHORTEST_TOKEN:
        raise ConfigError(
            f"The token in {path} is too short: it could be guessed. It needs "
            f"{_SHORTEST_TOKEN} characters.",
            hint,
        )
    return found


def _secret(what: str, path: Path, hint: str, warn: Callable[[str], None]) -> Secret:
    """The one word in a file."""
    try:
        value = path.read_text(encoding="ascii").strip()
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ConfigError(f"The {what} file {path} does not exist.", hint) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not plain text"
        sentence = f"The {what} file {path} can't be read: {reason}."
        if isinstance(error, PermissionError):
            hint = "Run it with sudo, or as the user that may read it."
            raise NotReadable(sentence, hint) from None
        raise ConfigError(sentence, hint) from None
    if not value or any(c.isspace() or not c.isprintable() for c in value):
        raise ConfigError(f"The {what} file {path} does not hold one {what}.", hint)
    if value[0] in "\"'" and value[0] == value[-1]:
        raise ConfigError(f"The {what} in the file {path} has quotes around it.", hint)
    if mode & (stat.S_IROTH | stat.S_IRGRP):
        warn(f"The {what} file {path} can be read by others; run `chmod 600 {path}`.")
    return Secret(value)
