"""What a reason to wait and a machine's ending mean, for the man pages and docs/reference."""

from __future__ import annotations

from dataclasses import dataclass

from vmrunner.manager.actions import WaitKind
from vmrunner.model.machine import Ending


@dataclass(frozen=True)
class Waiting:
    """Of a reason to wait: how its sentence begins (… is a name or a number), what it means and
    what to do.
    """

    says: str
    means: str


@dataclass(frozen=True)
class Ended:
    """Of an ending: what happened to the machine, and what becomes of its job."""

    happened: str
    job: str


_NOTHING = "nothing to do"
_FAILED = "failed at once, with a line in its log"
_NEXT = "waits for the next machine"
_NO_JOB = "The pool is backed off: its next machine starts later."

WAITS = {
    WaitKind.BOOTING: Waiting("machine … is booting (12 s of ~20 s)", _NOTHING),
    WaitKind.RUNNER_STARTS: Waiting("machine … is starting its runner", _NOTHING),
    WaitKind.BOUND: Waiting("a warm machine gets it now", _NOTHING),
    WaitKind.STARTED: Waiting("a machine is started for it now", _NOTHING),
    WaitKind.ROOM_IS_MADE: Waiting(
        "an idle machine makes room for it now", "a warm machine of another pool is destroyed first"
    ),
    WaitKind.OTHER_HOST: Waiting(
        "the host … makes a machine for it · it is the turn of the host …, and this one's in 1.6 s",
        "another host on this forge has it; if that host does not take it, this one does",
    ),
    WaitKind.BLOCKED: Waiting(
        "blocked at the forge, by `needs` or a concurrency group",
        "Gitea says so itself; the job goes on when what it waits for has ended",
    ),
    WaitKind.HELD: Waiting(
        "the forge has not handed it to its runner … yet · held it back",
        "Forgejo lists jobs of a busy concurrency group as waiting; the job goes on when that "
        "group is free",
    ),
    WaitKind.CALLER: Waiting(
        "it looks like the call of a reusable workflow, which needs no machine",
        "nothing to do on Gitea 1.27 and newer; see docs/jobs.md, Reusable workflows",
    ),
    WaitKind.UNLABELLED: Waiting(
        "it has no runs-on, and no pool has takes_unlabelled",
        "write `runs-on`; or `takes_unlabelled = true` in the pool that is for such jobs",
    ),
    WaitKind.NO_LABEL: Waiting(
        "no pool has the label … (nearest: …)", "a typing error in `runs-on`, or a pool is missing"
    ),
    WaitKind.NO_POOL_WITH_ALL_LABELS: Waiting(
        "no single pool has all of its labels …",
        "a typing error in `runs-on`, or one pool needs more labels",
    ),
    WaitKind.NO_SCOPE: Waiting(
        "no pool with its labels has its scope",
        "the job's repository is outside the `scope` of each pool that fits: add its scope to one; "
        "the token has to reach it, too",
    ),
    WaitKind.DRAINED: Waiting(
        "pool … is drained", "somebody ran `vmrunner down`; `vmrunner up POOL` ends that"
    ),
    WaitKind.BACKED_OFF: Waiting(
        "pool … is backed off for … after … failures (last: …)",
        "its last machines failed: the cause is in the sentence, and `vmrunner history --failed` "
        "has more. Another version of its image ends the back-off at once: `image build`, "
        "`image promote` or `image rollback`",
    ),
    WaitKind.AT_MAX: Waiting("pool … is at its max of …", "raise `max`, or wait"),
    WaitKind.AT_MAX_HELD: Waiting(
        "pool … is at its max of …, and … of its machines are held",
        "somebody looks into them, or their time is soon over: `vmrunner release MACHINE` lets one "
        "go; or raise `max`",
    ),
    WaitKind.NO_SNAPSHOT: Waiting(
        "pool … has no snapshot to start from yet: …",
        'the pool has `start = "snapshot"`; the rest says whether one is being made, or why it '
        "can't be",
    ),
    WaitKind.NO_DISK: Waiting(
        "the storage pool is … MiB below the floor of free space",
        "free some space, see docs/howto/disk-full.md; the floor is `capacity.disk_floor`",
    ),
    WaitKind.NO_MEMORY: Waiting(
        "the host lacks … MiB of memory",
        "wait until a job ends, or lower the `memory` of pools or `capacity.memory_reserve`; warm "
        "machines make room by themselves, machines that are not vmrunner's don't",
    ),
    WaitKind.NO_VCPUS: Waiting(
        "the host lacks … vCPUs",
        "wait until a job ends, or lower the `vcpus` of pools, or raise `capacity.cpu_overcommit`; "
        "warm machines make room by themselves, machines that are not vmrunner's don't",
    ),
}

ENDINGS = {
    Ending.DONE: Ended("The job ended, and the machine powered off.", "has its own verdict"),
    Ending.HELD: Ended(
        "The job ended, and the machine was kept for a person until its time was over, or somebody "
        "let it go.",
        "has its own verdict",
    ),
    Ending.CANCELLED: Ended(
        "The forge ended the job. The guest never hears of it, and gets 15 s.", "cancelled"
    ),
    Ending.UNNEEDED: Ended(
        "It was an idle machine too many, or one whose job another runner has.", "it had none"
    ),
    Ending.STOPPED: Ended("`vmrunner down --now`, or `--timeout`, or the host shut down.", _FAILED),
    Ending.ABANDONED: Ended("vmrunner was killed while it made the machine.", "it had none"),
    Ending.HELD_BACK: Ended(
        "The forge did not hand the job to its runner, which was connected.",
        "waits, and is tried again later",
    ),
    Ending.DIED: Ended(
        "While the job ran: QEMU was killed; or the machine panicked, was powered off or restarted "
        "(by the job, or by somebody on the host), or could not write to a full disk; or its "
        "runner told the forge nothing of the job for five minutes.",
        _FAILED,
    ),
    Ending.FORGE_AWAY: Ended(
        "Its runner gave up or got no job, and the forge had been silent meanwhile. Nobody is "
        "blamed.",
        _NEXT,
    ),
    Ending.NO_ROOM: Ended(
        "The storage had less free space than `capacity.disk_guard`, and this machine was the "
        "newest. Held machines go before it, and end as `held`.",
        _FAILED,
    ),
    Ending.EARLY: Ended(f"It powered off before a job ran on it. {_NO_JOB}", _NEXT),
    Ending.START_FAILED: Ended(f"It could not be started. {_NO_JOB}", _NEXT),
    Ending.BOOT_TIMEOUT: Ended(
        f"Its guest was not up within the pool's `boot_timeout`. {_NO_JOB}", _NEXT
    ),
    Ending.PICKUP_TIMEOUT: Ended(
        f"The forge showed no job on its runner within the pool's `pickup_timeout`. {_NO_JOB}",
        _NEXT,
    ),
    Ending.JOB_TIMEOUT: Ended("The job ran longer than the pool's `job_timeout`.", _FAILED),
    Ending.TEARDOWN_TIMEOUT: Ended(
        "Its runner had ended, and the machine did not power off within the pool's "
        "`teardown_timeout`.",
        "has its own verdict",
    ),
}
