"""Starts the forge's runner for one job, says how it ended, and powers the machine off. Written by vmrunner.

cloud-init, or our image's seed reader, runs it as it is; a machine that waits for its job has it in itself (user-data-wait.py), so that
nothing has to begin when the job comes. What to do is in JOB, which the host has written.
"""

import ctypes
import json
import os
import pwd
import resource
import select
import shlex
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

EVENTS = Path("/dev/virtio-ports/org.vmrunner.events")
CONSOLE = "/dev/console"
WORK = Path("/job")
JOB_FOLDER = Path("/var/lib/vmrunner-job")  # on the disk: /run is a small tmpfs that nothing may be executed on
IMAGE = Path("/etc/vmrunner/image")
ENVIRONMENT = Path("/etc/vmrunner/environment")  # of the recipe
BEFORE_READY, BEFORE_JOB = Path("/usr/lib/vmrunner/before-ready.d"), Path("/usr/lib/vmrunner/before-job.d")
IS_READY = Path("/run/vmrunner-ready")
SYSTEM_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
FORGE_CERTIFICATE = Path("/usr/local/share/ca-certificates/vmrunner-forge.crt")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OPEN_FILES = 1024, 524288  # as systemd gives them to a login; our own unit has more
AGAIN = 1.0  # seconds until a runner that the forge refused at its start tries again
REFUSED = 1  # the exit code of a runner that the forge did not answer, or not take, at its start; after a job it is 0, failed or not
LONGEST = 2**31 - 1  # milliseconds that poll(2) waits
CONFIG, REGISTRATION = "config.yaml", ".runner"
POWER_OFF = 0x4321FEDC  # of reboot(2)
libc = ctypes.CDLL(None, use_errno=True)


def say(kind: str, text: object = "") -> None:
    """A line for the host."""
    EVENTS.write_text(f"{kind} {time.time():.6f} {text}\n")


def power_off() -> None:
    """At once: nothing in here is worth an orderly end, and a runner that were told to end might call its job a success."""
    os.sync()
    libc.reboot(POWER_OFF)
    subprocess.run(["systemctl", "poweroff", "--force", "--force"], check=False)
    signal.pause()


def end(code: object) -> None:
    """The last word. Nothing runs behind it."""
    say("exit", code)
    power_off()


def image() -> dict[str, str]:
    """What the image says of itself, such as where its runner is."""
    return dict(line.split("=", 1) for line in IMAGE.read_text().splitlines()) if IMAGE.exists() else {}


def environment(user: str) -> dict[str, str]:
    """What a login of this user has, and what the recipe says. Nothing of systemd's own."""
    who = pwd.getpwnam(user)
    found = {"PATH": PATH, "LANG": os.environ.get("LANG", "C.UTF-8")}
    found |= {"HOME": who.pw_dir, "USER": user, "LOGNAME": user, "SHELL": who.pw_shell}
    for line in ENVIRONMENT.read_text().splitlines() if ENVIRONMENT.exists() else ():
        name, _, value = line.removeprefix("export ").partition("=")
        found[name] = "".join(shlex.split(value))
    return found


def limits() -> None:
    """For a child: what a login has."""
    soft, hard = OPEN_FILES
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, min(hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))


def begin(command: list[str], user: str, around: dict[str, str], folder: Path, output: int) -> "subprocess.Popen[bytes]":
    """A program as this user, as if they had logged in: in a session of its own, with a login's umask and bounds."""
    who = pwd.getpwnam(user)
    return subprocess.Popen(
        command,
        cwd=folder,
        env=around,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        user=who.pw_uid,
        group=who.pw_gid,
        extra_groups=os.getgrouplist(user, who.pw_gid),
        umask=0o022,
        start_new_session=True,
        preexec_fn=limits,
    )


class Waiting:
    """A runner that was started before there was a job. What it reads first, its configuration and then its registration, are pipes that
    nobody writes to yet. So what a program of its size does before that is done, and is in the snapshot that machines are cloned from.
    """

    def __init__(self, program: str, user: str) -> None:
        self.user, self.command, self._folder = user, [program, "daemon", "--once", "--config", CONFIG], folder_of(user)
        lay(self._folder, {}, user)
        for name in (CONFIG, REGISTRATION):
            (self._folder / name).unlink(missing_ok=True)
            os.mkfifo(self._folder / name, 0o600)
            own(self._folder / name, user)
        with open(CONSOLE, "wb", buffering=0) as console:
            self.process = begin(self.command, user, environment(user), self._folder, console.fileno())

    def tell(self, name: str, content: str) -> bool:
        """Let it read one of the two; false where it has gone."""
        while self.process.poll() is None:
            try:
                pipe = os.open(self._folder / name, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:  # it does not read this one yet
                time.sleep(0.002)
                continue
            os.set_blocking(pipe, True)
            with suppress(BrokenPipeError), os.fdopen(pipe, "w") as into:
                into.write(content)
            return True
        return False

    def drop(self) -> None:
        """It is not needed."""
        for name in (CONFIG, REGISTRATION):
            (self._folder / name).unlink(missing_ok=True)
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def chosen(job: dict, waiting: list[Waiting]) -> "Waiting | None":
    """The runner that waits and is as this job needs it, if there is one. It reads its configuration meanwhile; the others go."""
    here = image()
    command = [job["runner_path"] or here.get("RUNNER_PATH", ""), *job["arguments"]]
    found = None
    for each in waiting:
        if (each.user, each.command) == (job["user"], command) and not job["environment"] and each.tell(CONFIG, job["files"][CONFIG]):
            found = each
    return found


def folder_of(user: str) -> Path:
    """Where this user's runner has its files, and is begun."""
    return JOB_FOLDER / user


def own(path: Path, user: str) -> None:
    """Make it this user's."""
    who = pwd.getpwnam(user)
    os.chown(path, who.pw_uid, who.pw_gid)


def lay(folder: Path, files: dict[str, str], user: str) -> None:
    """The job's own folder, and files for the runner alone."""
    JOB_FOLDER.mkdir(mode=0o755, exist_ok=True)
    if not folder.exists():
        folder.mkdir(mode=0o700)
        own(folder, user)
    for name, content in files.items():
        path = folder / name
        path.touch(mode=0o600)
        path.write_text(content)
        own(path, user)


def trust(job: dict) -> None:
    """The forge's own certificate authority, for all that asks the system, OpenSSL, Node.js, Python or Docker."""
    FORGE_CERTIFICATE.parent.mkdir(parents=True, exist_ok=True)
    FORGE_CERTIFICATE.write_text(job["ca"] + "\n")
    subprocess.run(["update-ca-certificates"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    bundle = Path(job["ca_bundle"])
    bundle.parent.mkdir(parents=True, exist_ok=True)
    known = SYSTEM_CERTIFICATES.read_text() if SYSTEM_CERTIFICATES.exists() else ""
    bundle.write_text(known if job["ca"] in known else f"{known}\n{job['ca']}\n")
    # Docker may have read the system's before; this it reads whenever it asks such a registry.
    if Path("/etc/docker").is_dir():
        folder = Path("/etc/docker/certs.d") / job["forge_site"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ca.crt").write_text(job["ca"] + "\n")


def run_hooks(folder: Path, words: list[str], around: dict[str, str], what: str) -> None:
    """What an image has to be run at such a moment; one that fails ends the machine."""
    for hook in sorted(folder.iterdir()) if folder.is_dir() else ():
        if os.access(hook, os.X_OK):
            with open(CONSOLE, "wb") as console:
                if subprocess.run([hook, *words], env=around, stdin=subprocess.DEVNULL, stdout=console, stderr=console, check=False).returncode:
                    end(f"{hook}, which {what}, failed")


def run_job(job: dict, runner: "Waiting | None" = None, others: "list[Waiting] | None" = None) -> None:
    """From here to the end of the machine. `runner` has read its configuration; `others` are not needed."""
    began = time.monotonic()
    os.umask(0o022)
    # Told to end, by the host or from inside, a machine ends at once: no runner of it gets the time to report a success.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: power_off())
    prepare(job)
    if runner and runner.tell(REGISTRATION, job["files"][REGISTRATION]):
        process = runner.process
    else:
        process = start(job)
    say("runner")
    for other in others or ():
        other.drop()
    while (code := exit_code(process, job["seconds"] - (time.monotonic() - began))) == REFUSED:
        # The forge was away when its runner started: it is asked again, as long as the host waits for that.
        if time.monotonic() - began > job["pickup_seconds"]:
            break
        time.sleep(AGAIN)
        process = start(job)
    end(code)


def prepare(job: dict) -> None:
    """The machine, for this job."""
    here = image()
    if not job["runner_path"] and here.get("RUNNER_KIND") != job["runner_kind"]:
        end(f"the image carries {here.get('RUNNER_KIND', 'no runner')}, the forge needs {job['runner_kind']}")
    if job["forge_address"]:
        with open("/etc/hosts", "a") as hosts:
            hosts.write(f"{job['forge_address']} {job['forge_host']}\n")
    try:
        pwd.getpwnam(job["user"])
    except KeyError:
        end(f"the image has no user {job['user']}, which its pool's job_user asks for")
    if job["ca"]:
        trust(job)
    if not IS_READY.exists():  # the machine was booted for this very job
        run_hooks(BEFORE_READY, ["boots"], environment(job["user"]), "comes before a machine is ready")
    if job["settings"]:
        around = environment(job["user"]) | job["environment"] | job["settings"]
        run_hooks(BEFORE_JOB, [], around, "sets up the pool's registry mirror and proxy")
    make_work()


def make_work() -> None:
    """Where jobs have their workspaces: anybody's, as the users of a job are its own affair."""
    if not WORK.exists():
        WORK.mkdir()
        WORK.chmod(0o1777)


def start(job: dict) -> "subprocess.Popen[bytes]":
    """The runner, with its files."""
    command, user = [job["runner_path"] or image()["RUNNER_PATH"], *job["arguments"]], job["user"]
    folder = folder_of(user)
    for name in job["files"]:
        (folder / name).unlink(missing_ok=True)  # may be a pipe
    lay(folder, job["files"], user)
    with open(CONSOLE, "wb", buffering=0) as console:
        try:
            return begin(command, user, environment(user) | job["environment"], folder, console.fileno())
        except OSError as error:
            end(f"{command[0]} does not start: {error.strerror}")
            raise


def exit_code(process: "subprocess.Popen[bytes]", seconds: float) -> int:
    """As a shell tells it. After so many seconds the machine goes: the host, which has an earlier deadline, must be gone."""
    handle, poll = os.pidfd_open(process.pid), select.poll()
    poll.register(handle, select.POLLIN)
    if not poll.poll(min(max(0.0, seconds) * 1000, LONGEST)):
        power_off()
    os.close(handle)
    code = process.wait()
    return code if code >= 0 else 128 - code
