"""What a configuration says that can be read, but can't be meant."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network

from vmrunner.config import Config, PoolConfig, is_local
from vmrunner.doctor.findings import Finding, error, warning
from vmrunner.image.recipe import recipe
from vmrunner.image.versions import store
from vmrunner.runner_config import own_cache

_LEAST_MEMORY, _LEAST_DISK = 256, 1024  # MiB
_OURS_TO_TAKE = tuple(
    IPv4Network(block)
    for block in (
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
        *("100.64.0.0/10", "198.18.0.0/15", "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"),
    )
)


@dataclass(frozen=True)
class Size:
    """The whole host's, where machines run on this one."""

    cores: int
    memory_mib: int


def this_host(settings: Config) -> Size | None:
    """None where libvirt is on another one."""
    if not is_local(settings.libvirt.uri):
        return None
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Size(os.cpu_count() or 1, memory >> 20)


def look(settings: Config, host: Size | None) -> Iterator[Finding]:
    """What is an error keeps jobs from running; a warning may be mended later."""
    subnet = settings.libvirt.subnet
    if not any(subnet.subnet_of(block) for block in _OURS_TO_TAKE):
        yield _wrong(
            f"libvirt.subnet {subnet} is not one of private addresses",
            "machines could not reach whoever has these; take one in 10.0.0.0/8",
        )
    for name, pool in settings.pools.items():
        if settings.has_cache(pool) and (key := own_cache(pool.runner_config)):
            yield warning(
                "configuration",
                f"pools.{name}.runner_config: by {key} its jobs do not use vmrunner's cache.",
                "Leave that key out to have them use it.",
            )
        yield from _pool(f"pools.{name}", pool)
        if host:
            yield from _fits(f"pools.{name}", pool, settings, host)
        yield from _not_there(f"pools.{name}.image", pool.image, settings)
    for name, kind in settings.kinds.items():
        yield from _not_there(f"{name}.tools", kind.tools, settings)


def _not_there(where: str, wanted: str | None, settings: Config) -> Iterator[Finding]:
    """An image or a disk of tools that was never built."""
    if wanted and not store.current(settings.images_dir, wanted):
        known = recipe.exists(wanted, settings.recipes_dir)
        yield warning(
            "configuration",
            f"{where}: there is no image {wanted} on this host yet.",
            f"`vmrunner image build {wanted}` makes it."
            if known
            else f"Write its recipe, {settings.recipes_dir / wanted}.toml, and build it.",
        )


def _pool(where: str, pool: PoolConfig) -> Iterator[Finding]:
    if pool.memory < _LEAST_MEMORY:
        yield _wrong(f"{where}.memory is less than {_LEAST_MEMORY}MiB", "no image boots with that")
    if pool.disk < _LEAST_DISK:
        yield _wrong(f"{where}.disk is less than {_LEAST_DISK}MiB", "no image is that small")
    for key, number in (
        ("warm", pool.warm),
        ("register_idle", pool.register_idle),
        *(("schedule.warm", line.warm) for line in pool.schedule),
    ):
        if number > pool.max:
            yield _wrong(f"{where}.{key} is {number}, and max is {pool.max}", "raise max")


def _fits(where: str, pool: PoolConfig, settings: Config, host: Size) -> Iterator[Finding]:
    room = host.memory_mib - settings.capacity.memory_reserve
    if pool.memory > room:
        yield _wrong(
            f"{where}.memory is {pool.memory}MiB, and this host has {max(0, room)}MiB for machines",
            "none would ever start",
        )
    cores = int(host.cores * settings.capacity.cpu_overcommit)
    if pool.vcpus > cores:
        yield _wrong(
            f"{where}.vcpus is {pool.vcpus}, and this host has {cores} for machines",
            "none would ever start",
        )


def _wrong(what: str, why: str) -> Finding:
    return error("configuration", f"{what}: {why}.", "See `vmrunner config example`.")
