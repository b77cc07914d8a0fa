"""Creating a machine, and binding a warm one to a job: all of it or nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Interface

from vmrunner.config import PoolConfig
from vmrunner.errors import ForgeDenied, ForgeNotFound, ImageError
from vmrunner.forge.seam import Forge
from vmrunner.hypervisor.seam import Hypervisor
from vmrunner.machine import launch, seed
from vmrunner.machine.bindings import Bindings
from vmrunner.machine.clones import Shelf
from vmrunner.machine.launch import Launch
from vmrunner.model.binding import Binding
from vmrunner.model.image import Golden
from vmrunner.model.job import Claim, Credentials, Job, Scope
from vmrunner.model.machine import MachineId, Metadata
from vmrunner.model.moment import Moment
from vmrunner.network.addresses import Addresses
from vmrunner.network.policy import pool_policy
from vmrunner.runner_config import KNOWN_FROM, too_old
from vmrunner.text import dotted


@dataclass(frozen=True)
class Maker:
    """Makes machines of one pool. `ca` is PEM text for the guest, `forge_address` what its
    /etc/hosts says of the forge; both may be empty. `clock` gives the moment.
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
        self._check(golden)
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
                script = self._job_script(machine, binding.credentials, job)
                bound = partial(_bound, binding=binding, job=job, at=now.now)
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
            script = self._job_script(metadata.machine, binding.credentials, job)
            at = self.clock().steady + metadata.offset
            ipv6 = self.addresses.beside(IPv4Interface(metadata.address))
            metadata = launch.let_go(
                self.hypervisor.machines, _bound(metadata, binding, job, at), script, ipv6
            )
            revert.pop_all()
        return metadata

    def _check(self, golden: Golden) -> None:
        wanted = seed.RUNNERS[self.forge.kind]
        name = self.pool.runner
        found = golden.manifest.runners.get(name) if name else golden.manifest.runner
        if found is None or found.kind != wanted:
            has = found.kind if found else "no runner"
            called = f" called {name}" if name else ""
            raise ImageError(
                f"The image {golden.name} carries {has}{called}; a {self.forge.kind} forge needs "
                f"{wanted}.",
                "Build an image whose recipe has that "
                f"[{f'runners.{name}' if name else 'runner'}].",
            )
        if self.pool.runner_config and too_old(self.forge.kind, found.version):
            raise ImageError(
                f"The image {golden.name} carries {wanted} {found.version}, which may pass over "
                "keys of the pool's runner_config.",
                f"Those keys are known of {wanted} {dotted(KNOWN_FROM[self.forge.kind])} and "
                "newer: build the image with such a one.",
            )

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

    def _job_script(self, machine: MachineId, credentials: Credentials, job: Job | None) -> str:
        return seed.job_script(
            seed.Job(
                kind=self.forge.kind,
                url=self.forge.url,
                machine=machine,
                credentials=credentials,
                labels=self.pool.labels,
                job_timeout=self.pool.job_timeout,
                pickup_timeout=self.pool.pickup_timeout,
                ca=self.ca,
                forge_address=self.forge_address,
                handle=job.handle if job else "",
                user=self.pool.job_user,
                runner=self.pool.runner or "",
                registry_mirror=self.pool.registry_mirror or "",
                proxy=self.pool.proxy or "",
                no_proxy=self.pool.no_proxy,
                runner_config=self.pool.runner_config,
            )
        )


def _bound(metadata: Metadata, binding: Binding, job: Job | None, at: float) -> Metadata:
    return replace(
        metadata,
        bound_at=at,
        runner_id=binding.credentials.id,
        scope=str(binding.scope),
        job_key=binding.job_key,
        repository=binding.repository,
        queued_at=job.queued_at.timestamp() if job and job.queued_at else 0.0,
    )
