"""Creating a machine, and binding a warm one to a job: all of it or nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Interface

from vmrunner.config import HostConfig, MachineConfig, PoolConfig
from vmrunner.errors import ForgeDenied, ForgeNotFound, ImageError
from vmrunner.forge.seam import Forge
from vmrunner.hypervisor.seam import Hypervisor
from vmrunner.machine import launch, packages, seed
from vmrunner.machine.bindings import Bindings
from vmrunner.machine.clones import Shelf
from vmrunner.machine.launch import Launch
from vmrunner.model.binding import Binding
from vmrunner.model.image import Golden
from vmrunner.model.job import Claim, Credentials, Job, Scope
from vmrunner.model.machine import MachineId, Metadata
from vmrunner.model.moment import Moment
from vmrunner.model.packages import Mirror
from vmrunner.network.addresses import Addresses
from vmrunner.network.policy import Reach, pool_policy
from vmrunner.runner_config import KNOWN_FROM, too_old
from vmrunner.text import dotted


@dataclass(frozen=True)
class Maker:
    """Makes machines of one pool. `ca` is PEM text for the guest, `forge_address` what its
    /etc/hosts says of the forge, `cache_url` where jobs find the cache; they may be empty, and so
    may `mirrors`, which fetch packages. `clock` gives the moment.
    """

    hypervisor: Hypervisor
    forge: Forge
    bindings: Bindings
    addresses: Addresses
    shelf: Shelf
    pool_name: str
    pool: PoolConfig
    ca: str
    forge_address: str
    clock: Callable[[], Moment]
    cache_url: str = ""
    mirrors: tuple[Mirror, ...] = ()

    def create(
        self,
        machine: MachineId,
        golden: Golden,
        job: Job | None,
        scopes: tuple[Scope, ...],
        claim: Claim | None = None,
    ) -> Metadata:
        """Clone, mint a runner in the first of the scopes that permits it, write the seed, start.
        Without scopes: a warm machine.

        Whatever fails, what was made before it is undone; a killed process leaves only what carries
        the machine's name, which the next pass sweeps.
        """
        check(golden, self.forge.kind, self.pool)
        now, address = self.clock(), self.addresses.take(machine)
        metadata = Metadata(
            machine,
            self.pool_name,
            golden.id,
            now.now,
            offset=now.offset,
            boot=now.boot,
            address=str(address),
            network=pool_policy(self.pool_name),
            tools=golden.tools_id,
        )
        wanted = Launch(
            metadata,
            golden,
            self.pool.shape,
            self.addresses.beside(address),
            self.pool.limits,
            None if self.pool.start == "boot" else self.shelf,
            lambda: self.clock().steady + now.offset,
        )
        with ExitStack() as revert:
            revert.callback(self.hypervisor.machines.destroy, machine)
            if scopes:
                binding = self._mint(machine, job, scopes, claim, revert)
                script = self._job_script(metadata, binding.credentials, job)
                bound = partial(self._bound, binding=binding, job=job, at=now.now)
                metadata = launch.start(self.hypervisor, wanted, script, bound)
            else:
                rehearsal = seed.rehearsal_script(
                    self.forge.kind, machine, self.pool.job_user, self.pool.runner or ""
                )
                metadata = launch.park(self.hypervisor, wanted, rehearsal)
            revert.pop_all()
        return metadata

    def bind(
        self, metadata: Metadata, job: Job, scopes: tuple[Scope, ...], claim: Claim | None = None
    ) -> Metadata:
        """Give a warm machine the runner for this job.

        If that fails the machine is destroyed: it may have seen credentials.
        """
        with ExitStack() as revert:
            revert.callback(self.hypervisor.machines.destroy, metadata.machine)
            binding = self._mint(metadata.machine, job, scopes, claim, revert)
            script = self._job_script(metadata, binding.credentials, job)
            at = self.clock().steady + metadata.offset
            ipv6 = self.addresses.beside(IPv4Interface(metadata.address))
            metadata = launch.let_go(
                self.hypervisor.machines, self._bound(metadata, binding, job, at), script, ipv6
            )
            revert.pop_all()
        return metadata

    def _mint(
        self,
        machine: MachineId,
        job: Job | None,
        scopes: tuple[Scope, ...],
        claim: Claim | None,
        revert: ExitStack,
    ) -> Binding:
        """An ephemeral runner and its binding.

        The binding is written first, so that the record is found wherever we die.
        """
        for scope in scopes:
            binding = Binding(
                machine,
                self.pool_name,
                scope,
                job.key if job else "",
                repository=job.repository if job else "",
                bound_at=self.clock().steady,
            )
            self.bindings.save(binding)
            revert.callback(self.bindings.drop, machine)
            try:
                credentials = self.forge.create_runner(
                    scope, str(machine), self.pool.label_names, claim
                )
            except (ForgeDenied, ForgeNotFound):
                if scope == scopes[-1]:
                    raise
                continue
            revert.callback(self.forge.delete_runner, scope, credentials.id)
            binding = replace(binding, credentials=credentials)
            self.bindings.save(binding)
            return binding
        raise ValueError("a runner needs a scope")

    def _bound(self, metadata: Metadata, binding: Binding, job: Job | None, at: float) -> Metadata:
        return replace(
            metadata,
            bound_at=at,
            runner_id=binding.credentials.id,
            scope=str(binding.scope),
            job_key=binding.job_key,
            repository=binding.repository,
            queued_at=job.queued_at.timestamp() if job and job.queued_at else 0.0,
            stays=self.pool.stays,
        )

    def _job_script(self, metadata: Metadata, credentials: Credentials, job: Job | None) -> str:
        handle = job.handle if job else ""
        return seed.job_script(
            replace(
                told(
                    self.forge.kind,
                    self.forge.url,
                    metadata.machine,
                    credentials,
                    self.pool,
                    self.mirrors,
                ),
                labels=self.pool.labels,
                ca=self.ca,
                forge_address=self.forge_address,
                handle=handle,
                hold_failed=self.pool.hold_failed,
                job_may_hold=self.pool.job_may_hold,
                cache_url=self.cache_url,
                tools=bool(metadata.tools),
            )
        )


def told(
    kind: str,
    url: str,
    machine: MachineId,
    credentials: Credentials,
    section: MachineConfig,
    mirrors: tuple[Mirror, ...],
) -> seed.Job:
    """What a machine of this kind is told of a job, without labels yet and without what its forge
    needs. Of the mirrors those count that answer.
    """
    there = packages.answering(mirrors)
    return seed.Job(
        kind=kind,
        url=url,
        machine=machine,
        credentials=credentials,
        labels=(),
        job_timeout=section.job_timeout,
        pickup_timeout=section.pickup_timeout,
        user=section.job_user,
        runner=section.runner or "",
        registry_mirror=section.registry_mirror or packages.registry(there),
        proxy=section.proxy or "",
        no_proxy=(*section.no_proxy, *dict.fromkeys(each.address for each in there)),
        runner_config=section.runner_config,
        packages=packages.files(there),
    )


def check(golden: Golden, kind: str, section: MachineConfig) -> None:
    """Raises ImageError where the image lacks the runner for a forge of this kind."""
    wanted = seed.RUNNERS[kind]
    name = section.runner
    found = golden.manifest.runners.get(name) if name else golden.manifest.runner
    if found is None or found.kind != wanted:
        has = found.kind if found else "no runner"
        called = f" called {name}" if name else ""
        raise ImageError(
            f"The image {golden.name} carries {has}{called}; a {kind} forge needs {wanted}.",
            f"Build an image whose recipe has that [{f'runners.{name}' if name else 'runner'}].",
        )
    if section.runner_config and too_old(kind, found.version):
        raise ImageError(
            f"The image {golden.name} carries {wanted} {found.version}, which may pass over "
            "keys of the pool's runner_config.",
            f"Those keys are known of {wanted} {dotted(KNOWN_FROM[kind])} and "
            "newer: build the image with such a one.",
        )


def pinned(settings: HostConfig, reach: Reach) -> str:
    """The forge's address for a machine's /etc/hosts: machines that may not ask DNS, or whose
    answers may differ from ours, are told where the forge is. Empty for others.
    """
    ask = settings.forge_addresses()
    forge = ask() if reach is not Reach.INTERNET else ()
    return str(forge[0].address) if forge else ""
