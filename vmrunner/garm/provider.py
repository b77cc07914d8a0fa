"""What GARM asks of a provider, done with the engine that our own pools have."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from vmrunner.config import Config, FlavorConfig
from vmrunner.errors import (
    CallError,
    ConfigError,
    HypervisorError,
    UnknownInstance,
    VmrunnerError,
)
from vmrunner.forge import rpc
from vmrunner.forge.http import Http
from vmrunner.garm.contract import Bootstrap, instance
from vmrunner.garm.handshake import Garm
from vmrunner.hypervisor.seam import Hypervisor
from vmrunner.image.versions import store
from vmrunner.machine import clones, launch, ownership, seed
from vmrunner.machine.clones import Shelf
from vmrunner.machine.identity import host
from vmrunner.machine.instances import Instance, Instances, machine_of, owner
from vmrunner.machine.launch import Launch
from vmrunner.machine.maker import check, pinned, told
from vmrunner.manager.assign import Room
from vmrunner.manager.history import History
from vmrunner.manager.lent import Ender
from vmrunner.manager.logbook import open_logbook
from vmrunner.manager.observed import HostLimits
from vmrunner.model.image import Golden
from vmrunner.model.job import Credentials, Scope, ScopeKind
from vmrunner.model.label import Label
from vmrunner.model.machine import Ending, MachineId, Metadata, Shape
from vmrunner.model.moment import Moment
from vmrunner.model.secret import Secret
from vmrunner.network.addresses import Addresses
from vmrunner.network.forge_url import parse
from vmrunner.network.policy import flavor_policy
from vmrunner.render import guest
from vmrunner.waiting import Deadline

KIND = "gitea"
"""Whose runners GARM's Gitea pools have."""
_WAIT = 120.0  # seconds for another call on the same instance
_ROOM = 120.0  # seconds for room on the host
_LOOK = 1.0  # seconds between two looks for it
_SNAPSHOT = 600.0  # seconds that a snapshot may take which a flavor insists on
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}  # GARM's words for processors, and the kernel's
_NOT_DONE = ("pre_install_scripts", "extra_packages")
"""Extra specs that want something done in the machine before its runner starts."""


@dataclass(frozen=True)
class Provider:
    """One controller's machines on this host. `make_snapshot` gets a flavor and an image of which
    the next machines should be clones.
    """

    settings: Config
    hypervisor: Hypervisor
    history: History
    controller: str
    moment: Callable[[], Moment]
    make_snapshot: Callable[[str, str], object]
    processor: str = platform.machine()

    @property
    def _instances(self) -> Instances:
        settings = self.settings
        return Instances(settings.state_dir, settings.runtime_dir, settings.manager)

    @property
    def _addresses(self) -> Addresses:
        return self.settings.addresses()

    @property
    def _ender(self) -> Ender:
        return Ender(
            self.hypervisor,
            self._instances,
            self._addresses,
            self.history,
            asks=bool(self.settings.pools),
            runtime_dir=self.settings.runtime_dir,
            logbook=open_logbook(self.settings),
        )

    def _machine(self, name: str) -> MachineId:
        return machine_of(
            self.settings.manager, host(self.settings.state_dir), self.controller, name
        )

    # ---- create ----

    def create(self, wanted: Bootstrap) -> dict[str, Any]:
        """Make the machine, and tell GARM of its runner; what GARM is answered. Whatever fails,
        what was made before it is undone; of a killed process the next call or pass undoes it.

        One of the same name goes first: GARM comes again with it where it did not hear the answer.
        """
        flavor = self._flavor(wanted)
        golden = store.for_machines(self.settings.images_dir, wanted.image, flavor.tools)
        scope = ""
        if flavor.install == "host":
            self._for_gitea(wanted)
            scope = str(_scope(wanted.repo_url, self.settings.forge.url))
            check(golden, KIND, flavor)
        machine = self._machine(wanted.name)
        with self._instances.held(machine, _WAIT):
            if self._instances.find(machine):
                self._ender.end(machine, self._now, Ending.UNNEEDED, "GARM makes it anew")
            if flavor.start == "auto" and self._lacks_snapshot(golden, flavor):
                self.make_snapshot(wanted.flavor, wanted.image)
            try:
                self._wait_for_room(flavor.shape)
                made = self._make(machine, wanted, flavor, golden, scope)
            except VmrunnerError as error:
                pool = owner(self.controller, wanted.pool_id)
                self.history.start_failed(machine, pool, error.sentence, self._now)
                raise
        return _told(made, "running")

    @property
    def _now(self) -> float:
        return self.moment().now

    def _flavor(self, wanted: Bootstrap) -> FlavorConfig:
        """The flavor that it names. Raises CallError and ConfigError for what can't be made."""
        if wanted.os_type != "linux":
            raise CallError(
                f"GARM's pool wants {wanted.os_type or 'no system'}; here are Linux machines.",
                "Set the pool's os-type to linux.",
            )
        if _MACHINES.get(wanted.arch) != self.processor:
            raise CallError(
                f"GARM's pool wants the processor {wanted.arch}; this host has {self.processor}.",
                "Set the pool's os-arch.",
            )
        asked = [key for key in _NOT_DONE if wanted.extra_specs.get(key)]
        if asked or wanted.user_data_options.extra_packages:
            raise CallError(
                f"GARM's pool has {asked[0] if asked else _NOT_DONE[-1]}, which vmrunner does not "
                "do: a machine is as its image is.",
                "Put it into the image's recipe.",
            )
        flavors = self.settings.garm.flavors
        if wanted.flavor not in flavors:
            known = f"There are: {', '.join(flavors)}." if flavors else "There is none yet."
            raise ConfigError(
                f"There is no flavor {wanted.flavor!r} for GARM. {known}",
                "Add a table [garm.flavors.NAME] to the configuration.",
            )
        return flavors[wanted.flavor]

    def _for_gitea(self, wanted: Bootstrap) -> None:
        """Raises CallError and ConfigError where its runner can't be made on this host."""
        if wanted.jit_config_enabled:
            raise CallError(
                "GARM's pool is for GitHub, whose runner is made in the machine alone.",
                'Name a flavor with install = "machine" in the pool.',
            )
        if self.settings.forge.kind != KIND:
            raise ConfigError(
                f"GARM's pool is Gitea's, and forge.kind is {self.settings.forge.kind}.",
                'Set forge.kind = "gitea" in a configuration for GARM.',
            )

    def _wait_for_room(self, shape: Shape) -> None:
        """For a while: a create that fails is not tried again by GARM. Several that wait at the
        same time may find the same room.
        """
        limits, deadline = self.settings.capacity, Deadline(_ROOM)
        bounds = HostLimits(
            limits.cpu_overcommit, limits.memory_reserve, limits.disk_floor, limits.guard
        )
        while lack := Room(self.hypervisor.facts.capacity(), bounds, ()).lack(shape):
            if deadline.is_over:
                raise HypervisorError(
                    f"There is no room for a machine: {lack.said}.",
                    "Lower the max-runners of GARM's pools, or see [capacity].",
                )
            deadline.pause(_LOOK)

    def _lacks_snapshot(self, golden: Golden, flavor: FlavorConfig) -> bool:
        snapshots = self.hypervisor.snapshots
        if snapshots.find(golden, flavor.shape):
            return False
        return Shelf(self.settings.state_dir).failure(snapshots.key(golden, flavor.shape)) is None

    def _make(
        self,
        machine: MachineId,
        wanted: Bootstrap,
        flavor: FlavorConfig,
        golden: Golden,
        scope: str,
    ) -> Instance:
        settings, moment = self.settings, self.moment()
        noted = Instance(
            machine,
            wanted.name,
            self.controller,
            wanted.pool_id,
            wanted.flavor,
            golden.id,
            os_name=golden.manifest.distribution,
            os_version=golden.manifest.suite,
            arch=wanted.arch,
            scope=scope,
            created_at=moment.now,
            ends_at=moment.steady + flavor.lifetime.total_seconds(),
            boot=moment.boot,
        )
        if flavor.start == "snapshot" and self._lacks_snapshot(golden, flavor):
            clones.make(
                self.hypervisor, settings, golden, flavor.shape, timeout=_SNAPSHOT, say=_quiet
            )
        with ExitStack() as making, ExitStack() as revert:
            with ownership.claiming(
                self.hypervisor, settings, golden, machine, until=making, say=_quiet
            ):
                owned = ownership.owned(settings.manager, settings.runtime_dir)
                self._ender.settle(moment, tuple(owned))
                self._instances.save(noted)
                revert.callback(self._undo, machine)
                address = self._addresses.take(machine)
            noted = replace(noted, address=str(address.ip))
            # From here on its job may end at any time, and GARM takes no end of one that it
            # believes to be in its making: what can be done before is done before.
            if flavor.install == "host":
                credentials = self._register(wanted, noted)
                noted = replace(noted, runner_id=credentials.id)
                script = self._script(machine, credentials, wanted, flavor)
            else:
                script = _install_script(wanted, flavor)
            metadata = Metadata(
                machine,
                noted.owner,
                golden.id,
                moment.now,
                offset=moment.offset,
                boot=moment.boot,
                address=str(address),
                network=flavor_policy(wanted.flavor),
                instance=wanted.name,
                tools=golden.tools_id,
            )
            metadata = launch.start(
                self.hypervisor,
                Launch(
                    metadata,
                    golden,
                    flavor.shape,
                    self._addresses.beside(address),
                    flavor.limits,
                    None if flavor.start == "boot" else Shelf(settings.state_dir),
                    lambda: self.moment().steady + moment.offset,
                ),
                script,
                partial(replace, bound_at=moment.now, runner_id=noted.runner_id, scope=scope),
            )
            noted = replace(noted, is_made=True)
            self._instances.save(noted)
            revert.pop_all()
        self.history.started(metadata, self._now, made_for=wanted.name)
        return noted

    def _undo(self, machine: MachineId) -> None:
        """Nothing is left of one that was not made."""
        self.hypervisor.machines.destroy(machine)
        self._addresses.release(machine, self.hypervisor.vacate)
        self._instances.drop(machine)

    def _register(self, wanted: Bootstrap, noted: Instance) -> Credentials:
        """An ephemeral runner with all of GARM's labels: it knows its runners by two of them. It
        is written down as soon as it is there, and GARM is told.
        """
        section = self.settings.forge
        with closing(Garm(wanted)) as garm:
            garm.installing()
            token = garm.registration_token()
            with closing(Http(section.url, Secret(""), section.ca_file)) as forge:
                made = rpc.register(forge, token, wanted.name, wanted.labels)
            self._instances.save(replace(noted, runner_id=made.id))
            garm.registered(made.id, noted.os_name, noted.os_version)
        return made

    def _script(
        self,
        machine: MachineId,
        credentials: Credentials,
        wanted: Bootstrap,
        flavor: FlavorConfig,
    ) -> str:
        places: Mapping[str, Label] = {label.name: label for label in flavor.labels}
        job = told(
            KIND,
            self.settings.forge.url,
            machine,
            credentials,
            flavor,
            self.settings.mirrors(flavor),
        )
        return seed.job_script(
            replace(
                job,
                labels=[places.get(name) or Label(name) for name in wanted.labels],
                ca=self.settings.forge.ca(),
                forge_address=pinned(self.settings, flavor.network),
                lifetime=flavor.lifetime,
                tools=bool(flavor.tools),
            )
        )

    # ---- and what follows ----

    def delete(self, name: str) -> None:
        """Nothing is left of it; one that never was is fine. One that is being made comes first."""
        machine = self._machine(name)
        with self._instances.held(machine, _WAIT):
            self._ender.end(machine, self._now, Ending.UNNEEDED, "GARM deleted it")

    def get(self, name: str) -> dict[str, Any]:
        """Raises UnknownInstance."""
        return self._told(self._known(name))

    def listed(self, pool: str) -> list[dict[str, Any]]:
        """Those of a pool that are there or are being made: GARM forgets what is missing here. One
        that has powered off is missing, as it comes never again.
        """
        told = [self._told(each) for each in self._mine() if each.pool == pool]
        return [each for each in told if each["status"] == "running"]

    def start(self, name: str) -> None:
        """Nothing: a machine runs once. Raises UnknownInstance."""
        self._known(name)

    def stop(self, name: str) -> None:
        """It powers off, and comes never again. Raises UnknownInstance."""
        known = self._known(name)
        with self._instances.held(known.machine, _WAIT):
            self.hypervisor.machines.destroy(known.machine)

    def remove_all(self) -> None:
        """Nothing is left of all that this controller has here."""
        for each in self._mine():
            self.delete(each.name)

    def _mine(self) -> list[Instance]:
        return [each for each in self._instances.all() if each.controller == self.controller]

    def _known(self, name: str) -> Instance:
        found = self._instances.find(self._machine(name))
        if found is None:
            raise UnknownInstance(f"There is no instance {name!r}.")
        return found

    def _told(self, known: Instance) -> dict[str, Any]:
        owned = ownership.owned(self.settings.manager, self.settings.runtime_dir)
        is_there = known.machine in owned or self.hypervisor.machines.alive(known.machine)
        return _told(known, "running" if is_there else "stopped")


def _told(known: Instance, status: str) -> dict[str, Any]:
    return instance(
        name=known.name,
        status=status,
        os_name=known.os_name,
        os_version=known.os_version,
        arch=known.arch,
        address=known.address,
    )


def _install_script(wanted: Bootstrap, flavor: FlavorConfig) -> str:
    """The user-data of a machine that makes its runner itself."""
    token = wanted.token.get_secret_value()
    words = ["python3", "-c", guest("garm_install.py"), wanted.metadata_url, token, wanted.ca]
    return seed.exec_script(words, flavor.lifetime, tools=bool(flavor.tools))


def _quiet(_sentence: str) -> None:
    """Nobody reads along."""


def _scope(repo_url: str, forge_url: str) -> Scope:
    """Whose runner it will be: GARM names the repository's page, or its organisation's. Raises
    ConfigError where that is at another forge than ours, which machines could not reach.
    """
    try:
        asked = parse(repo_url)
    except ValueError as error:
        raise CallError(f"repo_url of the instance: {error}.", "It is GARM's.") from None
    if asked != forge_url and not asked.startswith(f"{forge_url}/"):
        where = urlsplit(asked)
        raise ConfigError(
            f"GARM's pool is for {where.scheme}://{where.netloc}, and forge.url is {forge_url}.",
            "Make both the same: machines reach the forge of the configuration.",
        )
    parts = [part for part in asked.removeprefix(forge_url).split("/") if part]
    if len(parts) > 2:
        raise CallError(f"repo_url of the instance is {asked}.", "It names no repository.")
    kind = (ScopeKind.INSTANCE, ScopeKind.ORGANISATION, ScopeKind.REPOSITORY)[len(parts)]
    return Scope.parse(f"{kind}:{'/'.join(parts)}" if parts else str(kind))
