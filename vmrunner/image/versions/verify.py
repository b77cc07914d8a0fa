"""Whether an image is one that jobs can run on: its files, and a machine of it that is looked at
from inside.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta

from vmrunner import __version__
from vmrunner.config import Config, HostConfig
from vmrunner.errors import (
    DiskFull,
    HypervisorError,
    ImageError,
    MachineError,
    NameClash,
    NotPermitted,
    SnapshotError,
)
from vmrunner.hypervisor.seam import Hypervisor, Output
from vmrunner.image.versions import proof, store
from vmrunner.image.versions.proof import Check, Proof
from vmrunner.log import Say
from vmrunner.machine import oneshot
from vmrunner.machine.identity import fresh
from vmrunner.machine.seed import RUNNERS
from vmrunner.model.image import Golden
from vmrunner.model.machine import DEFAULT_SHAPE, MachineId, Shape
from vmrunner.network.forge import forge_host
from vmrunner.render import guest
from vmrunner.support import least_git

OURS = (
    *(
        "seed",
        "root grows",
        "free space",
        "runner",
        "dns",
        "forge",
        "secrets",
        "ssh host keys",
        "machine-id",
        "listening ports",
    ),
    *("systemd units", "git clone", "build settings", "tools", "job user"),
)
"""What the probe looks at in each image, beside the recipe's own checks."""
_SKEW = 5.0  # seconds
_LONGEST, _LINES = 300, 200  # of what a guest says
_PROBE = timedelta(minutes=15)  # for all checks together
_NO_PYTHON = 127
_PANIC = ("Kernel panic", "Rebooting in ")  # the first and the last that a kernel says then


def shape_for(settings: HostConfig, name: str) -> Shape:
    """The size of the machine: that of the first pool that uses the image."""
    pools = settings.pools.values() if isinstance(settings, Config) else ()
    return next((pool.shape for pool in pools if pool.image == name), DEFAULT_SHAPE)


def verify(hypervisor: Hypervisor, settings: HostConfig, golden: Golden, *, say: Say) -> Proof:
    """Read all files, boot a machine as a job would have it but for the credentials, look at it
    from inside, and write down what was found.

    Of a disk of tools the files are read, and no machine is booted. Raises ImageError for damaged
    files, and what the host is to blame for.
    """
    versions = hypervisor.facts.versions()
    store.verify(golden)
    boot_seconds, checks = 0.0, [_whole(golden)]
    if not golden.manifest.tools:
        say(f"{golden.name} {golden.version}: booting a machine to verify it")
        boot_seconds, checks = _looked_at(hypervisor, settings, golden)
    try:
        manifest = store.identity(golden.directory)
    except (OSError, ValueError):  # removed meanwhile
        raise ImageError(
            f"The manifest of the image {golden.name} {golden.version} can't be read any more.",
            "Try again.",
        ) from None
    found = Proof(
        manifest=manifest,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        vmrunner=__version__,
        qemu=versions["QEMU"],
        libvirt=versions["libvirt"],
        boot_seconds=round(boot_seconds, 1),
        checks=tuple(checks),
    )
    proof.write(golden, found)
    return found


def _whole(golden: Golden) -> Check:
    """That a disk of tools was read, and is as its manifest says."""
    return Check(name="files", passed=True, measured=", ".join(golden.manifest.tools))


def _looked_at(
    hypervisor: Hypervisor, settings: HostConfig, golden: Golden
) -> tuple[float, list[Check]]:
    """A machine of an image: the seconds until it was up, and what was found."""
    listener = _Listener()
    shape, machine = shape_for(settings, golden.name), fresh(settings)
    trouble = _boot(hypervisor, settings, golden, shape, machine, listener)
    return listener.boot_seconds, _judge(settings, golden, listener, trouble)


def _boot(
    hypervisor: Hypervisor,
    settings: HostConfig,
    golden: Golden,
    shape: Shape,
    machine: MachineId,
    listener: _Listener,
) -> str:
    """Run the probe; returns why it could not be run, or ended badly.

    Raises what is not the image's fault.
    """
    asked = json.dumps(_asked(settings, golden, shape, machine))
    probe = [
        "env",
        f"PROBE_PATIENCE={1 if hypervisor.facts.kvm else 4}",
        "python3",
        "-c",
        guest("probe_image.py"),
        asked,
    ]
    guarded = [
        "sh",
        "-c",
        f'command -v python3 >/dev/null || exit {_NO_PYTHON}; exec "$@"',
        "sh",
        *probe,
    ]
    try:
        code = oneshot.run(
            hypervisor,
            settings,
            oneshot.Command(
                golden,
                guarded,
                shape,
                _PROBE,
                boot_timeout=settings.images.boot_timeout,
                snapshot=False,
                machine=machine,
            ),
            write=lambda stream, chunk: listener.hear(chunk) if stream is Output.STDOUT else None,
            say=lambda _: None,
            started=listener.started,
        )
    except (DiskFull, NameClash, NotPermitted, SnapshotError):
        raise
    except MachineError as error:
        cause = "its kernel panicked: " if any(word in error.console for word in _PANIC) else ""
        tail = next(
            (line.strip() for line in reversed(error.console.splitlines()) if line.strip()), ""
        )
        return f"{cause}{error.sentence.rstrip('.')} (its console ended with: {_clip(tail)})"
    except HypervisorError as error:  # QEMU does not even begin with it
        return error.sentence.rstrip(".")
    if code == _NO_PYTHON and not listener.boot_seconds:
        return "the image has no python3, and the checks need it"
    return f"the probe ended with exit code {code}" if code else ""


def _asked(
    settings: HostConfig, golden: Golden, shape: Shape, machine: MachineId
) -> dict[str, object]:
    manifest = golden.manifest
    runners = [*([manifest.runner] if manifest.runner else []), *manifest.runners.values()]
    return {
        "machine": str(machine),
        "disk_gib": shape.disk_gib,
        "runners": [{"path": each.path, "version": each.version} for each in runners],
        "forge_url": settings.forge_url,
        "forge_host": forge_host(settings.forge_url),
        "has_git": "git" in manifest.packages,
        "least_git": max((least_git(each.kind, each.version) for each in runners), default=()),
        "listens": list(manifest.listens),
        "checks": manifest.checks,
        "files": sorted(manifest.inputs or ()),
    }


def _judge(settings: HostConfig, golden: Golden, listener: _Listener, trouble: str) -> list[Check]:
    """Every check that there should be; one that the guest did not answer has failed."""
    if not listener.boot_seconds:
        return [Check(name="boot", passed=False, measured=trouble or "the probe said nothing")]
    limit = settings.images.boot_timeout.total_seconds()
    checks = [
        Check(
            name="boot",
            passed=listener.boot_seconds <= limit,
            measured=f"{listener.boot_seconds:.1f} s",
        )
    ]
    checks.append(
        Check(
            name="clock",
            passed=abs(listener.skew) <= _SKEW,
            measured=f"{abs(listener.skew):.1f} s from the host's",
        )
    )
    for name in (*OURS, *(f"recipe: {each}" for each in golden.manifest.checks)):
        answer = listener.answers.get(name) or Check(
            name=name, passed=False, measured=trouble or "no answer"
        )
        checks.append(
            _usable_runner(settings, golden)
            if name == "runner" and answer.passed and _is_unusable(settings, golden)
            else answer
        )
    return checks


def _is_unusable(settings: HostConfig, golden: Golden) -> bool:
    """Whether a pool uses the image, and the image has not the runner that its forge needs."""
    if not isinstance(settings, Config) or golden.name not in {
        pool.image for pool in settings.pools.values()
    }:
        return False
    return (
        golden.manifest.runner is None
        or golden.manifest.runner.kind != RUNNERS[settings.forge.kind]
    )


def _usable_runner(settings: HostConfig, golden: Golden) -> Check:
    has = golden.manifest.runner.kind if golden.manifest.runner else "no runner"
    needs = RUNNERS[settings.forge.kind] if isinstance(settings, Config) else ""
    return Check(
        name="runner",
        passed=False,
        measured=f"{has}, and the pools that use the image need {needs}",
    )


def _clip(text: object) -> str:
    """A guest's words: short, and nothing in them that a terminal would obey."""
    return "".join(c for c in str(text)[:_LONGEST] if c.isprintable())


class _Listener:
    """What the probe says, as it comes."""

    def __init__(self) -> None:
        self.answers: dict[str, Check] = {}
        self.boot_seconds = self.skew = 0.0
        self._began = time.monotonic()
        self._rest, self._lines = b"", 0

    def started(self, _: MachineId) -> None:
        """The machine's domain is there."""
        self._began = time.monotonic()

    def hear(self, chunk: bytes) -> None:
        """Some of its output."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        self._rest = self._rest[-65536:]
        for line in lines:
            self._lines += 1
            if self._lines <= _LINES:
                self._line(line)

    def _line(self, line: bytes) -> None:
        try:
            said = json.loads(line)
            if "now" in said and not self.boot_seconds:
                self.skew = float(said["now"]) - time.time()
                self.boot_seconds = max(0.1, time.monotonic() - self._began)
            else:
                name = _clip(said["check"])
                passed, noted = said["passed"] is True, said.get("noted") is True
                self.answers.setdefault(
                    name,
                    Check(name=name, passed=passed, measured=_clip(said["measured"]), noted=noted),
                )
        except (ValueError, TypeError, KeyError):
            return  # not the probe's
