"""Which live machine holds which runner's credentials. Pure; machine/bindings.py keeps them."""

from __future__ import annotations

from dataclasses import dataclass, field

from vmrunner.model.job import Credentials, Scope
from vmrunner.model.machine import MachineId


@dataclass(frozen=True)
class Binding:
    """A machine's runner.

    Written before the runner is minted (then `credentials.id` is 0), so that no crash can lose its
    trace.
    """

    machine: MachineId
    pool: str
    scope: Scope  # where the runner is registered
    job_key: str = ""
    credentials: Credentials = field(default=Credentials(0, "", ""))
    # Set before the machine is destroyed, for the pass that has to finish the work.
    ending: str = ""
    reason: str = ""
    worked: bool = False  # by what was seen then its runner had a job
    repository: str = ""  # of the job that it was made for
    bound_at: float = 0.0  # by the steady clock, see Moment; 0 where it is not known

    @property
    def is_minted(self) -> bool:
        """Whether the forge has given the runner."""
        return self.credentials.id != 0
