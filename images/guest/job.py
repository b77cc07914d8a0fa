"""What runs in a machine: it waits for a seed where it has none yet, and starts the forge's runner
for one job. Written by vmrunner.

In front of it stand a few lines that the host has written: CODE, which names this very code, and
JOB or REHEARSAL, which say what to do. Behind it stands a call of `run_job` or `wait`. cloud-init,
or our image's seed reader, runs that as it is.

A machine that waits holds no credentials and has no network. It sleeps until its seed is another
one. Until then it may be paused, or saved and cloned any number of times: what every clone must
have for itself is in the new seed, and is set here before anything else of that seed happens. It
has the code that starts a job in itself, so that nothing has to begin when the job comes.
"""

import ctypes
import fcntl
import io
import json
import mmap
import os
import pwd
import re
import resource
import select
import shlex
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

TYPE_CHECKING = False  # of `typing`, which takes long to import under software emulation
if TYPE_CHECKING:
    from typing import TypedDict

    class Runner(TypedDict):
        """What a runner is begun with; `runner_path` is empty for the image's own."""

        user: str
        runner_path: str
        arguments: list[str]
        files: dict[str, str]
        seconds: float

    class Job(Runner):
        """What the host tells in JOB: see vmrunner/machine/seed.py."""

        runner_kind: str
        environment: dict[str, str]
        settings: dict[str, str]
        packages: dict[str, str]
        tools: bool
        ca: str
        ca_bundle: str
        url: str
        forge_address: str
        forge_host: str
        forge_site: str
        pickup_seconds: float
        stay_seconds: float
        hold_program: str
        hold_longer: float

    class Rehearsal(Runner):
        """What it tells in REHEARSAL."""

        folder: str
        url: str
        rest_seconds: float
        hooks: bool


EVENTS = Path("/dev/virtio-ports/org.vmrunner.events")
# What the runner itself prints; the console has all that else is said in here.
LOG = Path("/dev/virtio-ports/org.vmrunner.log")
CONSOLE = "/dev/console"
MEMORY = Path("/proc/meminfo")
WORK = Path("/job")
# On the disk: /run is a small tmpfs that nothing may be executed on.
JOB_FOLDER = Path("/var/lib/vmrunner-job")
IMAGE = Path("/etc/vmrunner/image")
ENVIRONMENT = Path("/etc/vmrunner/environment")  # of the recipe
BEFORE_READY, BEFORE_JOB = (
    Path("/usr/lib/vmrunner/before-ready.d"),
    Path("/usr/lib/vmrunner/before-job.d"),
)
IS_READY = Path("/run/vmrunner-ready")
SYSTEM_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
FORGE_CERTIFICATE = Path("/usr/local/share/ca-certificates/vmrunner-forge.crt")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What says which disk has tools, and where it, what jobs add to it, and both together are.
BLOCKS, TOOLS = Path("/sys/block"), "vmrunner-tools"
TOOLS_FOLDER, TOOL_CACHE = Path("/var/lib/vmrunner-tools"), Path("/opt/hostedtoolcache")
# What Gitea's runner calls that folder, in its own and as a volume of its containers.
TOOL_LINK, TOOL_VOLUME = "tool_cache", "act-toolcache"
DOCKER, DOCKER_ANSWER = Path("/run/docker.sock"), 30.0  # seconds
OPEN_FILES = 1024, 524288  # as systemd gives them to a login; our own unit has more
AGAIN = 1.0  # seconds until a runner that the forge refused at its start tries again
# The exit code of a runner that the forge did not answer, or not take, at its start; after a job it
# is 0, failed or not.
REFUSED = 1
# Seconds between two looks whether the forge answers, and when it does not; how long it has to be
# silent for a runner to be held, and how long an answer may take.
LOOK, LOOK_AGAIN, SILENT, ANSWER = 10.0, 1.0, 5.0, 5.0
LONGEST_HOLD = 24 * 3600.0  # seconds by which a machine's own deadline moves at most
PING = "/api/actions/ping.v1.PingService/Ping"  # of both forges, without credentials
# What a job has its machine kept with, where it may, and what it writes: for how many seconds.
HOLD_PROGRAM, HOLD_ASKED = Path("/usr/local/bin/vmrunner-hold"), Path("/run/vmrunner-hold")
PORTS, STAY_PORT = Path("/sys/class/virtio-ports"), "org.vmrunner.stay"
# Until its time is over, and as long as the host shows that port.
STAY = f"""\
while [ "$(cut -d. -f1 /proc/uptime)" -lt "$1" ] || grep -qsx {STAY_PORT} {PORTS}/*/name; do
  sleep 5
done
sync
systemctl poweroff --force --force
"""
CONFIG, REGISTRATION = "config.yaml", ".runner"
POWER_OFF = 0x4321FEDC  # of reboot(2)
MARKS: "list[tuple[str, float]]" = []
IN_USE = [0]  # the most MiB of memory that a look has found
LOGS: "list[int]" = []  # where runners write to, once it is open
KEPT = "kept-workspace"  # in the home of the job's user
# See fanotify(7) and inotify(7).
FAN_CLOEXEC, FAN_CLASS_CONTENT, FAN_MARK_ADD, FAN_ALLOW = 1, 4, 1, 1
FAN_OPEN_PERM, FAN_ONDIR, IN_CREATE = 0x10000, 0x40000000, 0x100
FAN_EVENT = struct.Struct("<IBBHQii")  # its length, …, what file it is of, and who opens that
FAN_ANSWER = struct.Struct("<iI")
libc = ctypes.CDLL(None, use_errno=True)
DISK = Path("/dev/disk/by-id/virtio-vmrunner-seed")
SECTOR, SIZE = 2048, 1 << 20
# Of an ISO 9660 image: the primary volume descriptor, with the image's own name.
DESCRIPTOR = 16 * SECTOR
ROOT = DESCRIPTOR + 156  # its directory record of the root
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND = 1, 2, 4, 8, 4096
RNDADDENTROPY, RNDRESEEDCRNG = 0x40085203, 0x5207
IPV6 = Path("/proc/sys/net/ipv6/conf")
SIOCADDRT, SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK, SIOCSIFHWADDR = (
    0x890B,
    0x8914,
    0x8916,
    0x891C,
    0x8924,
)
ARPHRD_ETHER, IFF_UP, RTF_UP, RTF_GATEWAY = 1, 1, 1, 2
SCRIPT = Path("/run/vmrunner-job-script")
GUEST_SEED = Path("/run/vmrunner-guest/user-data")  # of our image's seed reader
CLOUD_INIT = ("user-data*", "scripts/*", "obj.pkl")  # where it keeps the seed
PROC = Path("/run/vmrunner-proc")
REHEARSAL_HOOKS = Path("/usr/lib/vmrunner/rehearsal.d")  # of the image
REHEARSED_JOB = (
    b"on: push\njobs:\n  rehearsal:\n    runs-on: rehearsal\n    steps:\n      - run: date\n"
)
LINKS = Path("/sys/class/net")
# All that can be made ready beforehand is: after the snapshot every instruction is new to QEMU, and
# takes ten times as long.
# A Rock Ridge name, and with it its length plus five.
NAME = re.compile(rb"NM(.)\x01\x00", re.DOTALL)
META = re.compile(r"(?m)^([\w-]+): *(.*)$")
MAC, ADDRESS, GATEWAY, RESOLVER = map(
    re.compile,
    (r"macaddress: (\S+)", r"- (\S+/\d+)", r"via: (\S+)", r"nameservers:\s+addresses:\s+- (\S+)"),
)
# None where machines have no IPv6.
ADDRESS6, GATEWAY6 = re.compile(r'- "(\S+/\d+)"'), re.compile(r'via: "(\S+)"')


def say(kind: str, text: object = "") -> None:
    """A line for the host."""
    EVENTS.write_text(f"{kind} {time.time():.6f} {text}\n")


def mark(name: str) -> None:
    """Something of this machine's start is done; the host hears of it with the next word."""
    MARKS.append((name, time.monotonic()))


def marks() -> str:
    """How many milliseconds ago each mark was made."""
    now = time.monotonic()
    told = " ".join(f"{name}={(now - at) * 1000:.0f}" for name, at in MARKS)
    MARKS.clear()
    return told


def console() -> "io.FileIO":
    """Where the host reads along.

    Not as our controlling terminal: a login prompt that begins there later would hang us up
    (SIGHUP).
    """
    return io.FileIO(os.open(CONSOLE, os.O_WRONLY | os.O_NOCTTY), "w")


def log() -> int:
    """Where runners write to. The kernel opens the port once only, so all of them share it; a
    machine that an older vmrunner has made has none, and they write to the console.
    """
    if not LOGS:
        try:
            LOGS.append(os.open(LOG, os.O_WRONLY))
        except OSError:
            LOGS.append(os.open(CONSOLE, os.O_WRONLY | os.O_NOCTTY))
    return LOGS[0]


def memory_in_use() -> int:
    """MiB of this machine's memory that can't be had for something else now."""
    told = dict(line.split(":") for line in MEMORY.read_text().splitlines())
    return (int(told["MemTotal"].split()[0]) - int(told["MemAvailable"].split()[0])) >> 10


def power_off() -> None:
    """At once: nothing in here is worth an orderly end, and a runner that were told to end might
    call its job a success.
    """
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
    return (
        dict(line.split("=", 1) for line in IMAGE.read_text().splitlines())
        if IMAGE.exists()
        else {}
    )


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
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (soft, min(hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    )


def begin(
    command: list[str], user: str, around: dict[str, str], folder: Path, output: int
) -> "subprocess.Popen[bytes]":
    """A program as this user, as if they had logged in: in a session of its own, with a login's
    umask and bounds.
    """
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
    """A runner that was started before there was a job. What it reads first, its configuration and
    then its registration, are pipes that nobody writes to yet. So what a program of its size does
    before that is done, and is in the snapshot that machines are cloned from.
    """

    def __init__(self, program: str, user: str) -> None:
        self.user, self.command, self._folder = (
            user,
            [program, "daemon", "--once", "--config", CONFIG],
            folder_of(user),
        )
        lay(self._folder, {}, user)
        for name in (CONFIG, REGISTRATION):
            (self._folder / name).unlink(missing_ok=True)
            os.mkfifo(self._folder / name, 0o600)
            own(self._folder / name, user)
        self.process = begin(self.command, user, environment(user), self._folder, log())

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
            (self._folder / name).unlink()  # who looks there later would wait for ever
            return True
        return False

    def drop(self) -> None:
        """It is not needed."""
        for name in (CONFIG, REGISTRATION):
            (self._folder / name).unlink(missing_ok=True)
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def chosen(job: "Job", waiting: list[Waiting]) -> "Waiting | None":
    """The runner that waits and is as this job needs it, if there is one.

    It has been told its configuration, and reads it meanwhile.
    """
    here = image()
    command = [job["runner_path"] or here.get("RUNNER_PATH", ""), *job["arguments"]]
    found = None
    for each in waiting:
        if (
            (each.user, each.command) == (job["user"], command)
            and not job["environment"]
            and each.tell(CONFIG, job["files"][CONFIG])
        ):
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


def trust(job: "Job") -> None:
    """The forge's own certificate authority, for all that asks the system, OpenSSL, Node.js, Python
    or Docker.
    """
    FORGE_CERTIFICATE.parent.mkdir(parents=True, exist_ok=True)
    FORGE_CERTIFICATE.write_text(job["ca"] + "\n")
    subprocess.run(
        ["update-ca-certificates"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
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
        if not os.access(hook, os.X_OK):
            continue
        with console() as output:
            done = subprocess.run(
                [hook, *words],
                env=around,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=False,
            )
        if done.returncode:
            end(f"{hook}, which {what}, failed")


def run_job(
    job: "Job", runner: "Waiting | None" = None, others: "list[Waiting] | None" = None
) -> None:
    """From here to the end of the machine.

    `runner` has read its configuration; `others` are not needed.
    """
    began = time.monotonic()
    os.umask(0o022)
    # Told to end, by the host or from inside, a machine ends at once: no runner of it gets the time
    # to report a success.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: power_off())
    prepare(job)
    mark("prepared")
    if runner and runner.tell(REGISTRATION, job["files"][REGISTRATION]):
        process = runner.process
    else:
        process = start(job)
    say("runner", marks())
    say("clock", f"{time.monotonic():.3f}")  # what the kernel's own lines go by
    for other in others or ():
        other.drop()
    while (code := exit_code(process, job["seconds"] - (time.monotonic() - began), job)) == REFUSED:
        # The forge was away when its runner started: it is asked again, as long as the host waits
        # for that.
        if time.monotonic() - began > job["pickup_seconds"]:
            break
        time.sleep(AGAIN)
        process = start(job)
    say("used", IN_USE[0])
    seconds = stays(job) if code != REFUSED else 0.0
    if not seconds:
        end(code)
    with suppress(OSError):
        wipe(job)
    say("exit", code)
    until = time.clock_gettime(time.CLOCK_BOOTTIME) + seconds
    # In another program's place: nothing of the credentials is in memory then.
    os.execv("/bin/sh", ["sh", "-c", STAY, "sh", f"{until:.0f}"])  # noqa: S606 — our own lines


def stays(job: "Job") -> float:
    """For how many seconds the machine is there after its runner, so that the host can keep it for
    a person; 0.0 where it goes at once.
    """
    told = HOLD_ASKED.read_text().strip() if job["hold_program"] and HOLD_ASKED.exists() else ""
    asked = int(told) if told.isascii() and told.isdigit() and len(told) < 8 else 0
    if asked:
        say("hold", asked)
    if asked or is_told_to_stay():
        return max(job["stay_seconds"], asked + job["hold_longer"])
    return job["stay_seconds"]


def is_told_to_stay() -> bool:
    """Whether the host shows the port that says so."""
    names = [port / "name" for port in PORTS.iterdir()] if PORTS.is_dir() else []
    return any(name.read_text().strip() == STAY_PORT for name in names)


def wipe(job: "Job") -> None:
    """The runner's credentials, wherever they were written."""
    cloud_init = Path("/var/lib/cloud/instances")
    secret = [
        *(folder_of(job["user"]) / name for name in job["files"]),
        SCRIPT,
        GUEST_SEED,
        Path("/run/cloud-init/instance-data-sensitive.json"),
        *(path for name in CLOUD_INIT for path in cloud_init.glob(f"*/{name}")),
    ]
    for path in secret:
        if path.is_file():
            path.write_bytes(bytes(path.stat().st_size))
            path.unlink()
    os.sync()


def prepare(job: "Job") -> None:
    """The machine, for this job."""
    here = image()
    if not job["runner_path"] and here.get("RUNNER_KIND") != job["runner_kind"]:
        end(
            f"the image carries {here.get('RUNNER_KIND', 'no runner')}, the forge needs "
            f"{job['runner_kind']}"
        )
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
        run_hooks(
            BEFORE_READY, ["boots"], environment(job["user"]), "comes before a machine is ready"
        )
    if job["tools"]:
        mount_tools()
    for name, content in job["packages"].items():
        told_of_packages(name, content, job["user"])
    if job["settings"]:
        around = environment(job["user"]) | job["environment"] | job["settings"]
        run_hooks(BEFORE_JOB, [], around, "sets up the pool's registry mirror and proxy")
    make_work()
    if job["hold_program"]:
        HOLD_ASKED.touch()
        HOLD_ASKED.chmod(0o666)  # whoever the job's steps run as
        HOLD_PROGRAM.parent.mkdir(parents=True, exist_ok=True)
        HOLD_PROGRAM.write_text(job["hold_program"])
        HOLD_PROGRAM.chmod(0o755)


def told_of_packages(name: str, content: str, user: str) -> None:
    """A file that says where packages come from; what the image has there says it already."""
    if not name.startswith("~/"):
        lay_new("", name, content, "root")
        return
    for each in {"root", user}:
        lay_new(pwd.getpwnam(each).pw_dir, name[1:], content, each)


def lay_new(home: str, name: str, content: str, user: str) -> None:
    """A file that everybody may read, of this user's, with the folders below their home; where
    there is one already it stays. Without a Path: the job waits for this, and each has much to do.
    """
    made = []
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        file = os.open(home + name, flags, 0o644)
    except FileExistsError:
        return
    except FileNotFoundError:
        for at, letter in enumerate(name):
            if letter == "/" and at and not os.path.isdir(home + name[:at]):
                os.mkdir(home + name[:at])
                made.append(home + name[:at])
        file = os.open(home + name, flags, 0o644)
    os.write(file, content.encode())
    os.close(file)
    if user != "root":
        for path in (*made, home + name):
            own(Path(path), user)


def mount_tools() -> None:
    """Where there is a disk of tools: its content, with what jobs add to it, in a folder that they
    find, in containers, too. What they add is on the machine's own disk; nobody can write on that
    one. A job goes on without.
    """
    if os.path.ismount(TOOL_CACHE):
        return
    disk = next((each.name for each in BLOCKS.glob("vd*") if serial(each) == TOOLS), "")
    if not disk:
        return
    lower, upper, work = (TOOLS_FOLDER / each for each in ("disk", "added", "work"))
    try:
        for folder in (lower, upper, work, TOOL_CACHE):
            folder.mkdir(parents=True, exist_ok=True)
        for folder in (upper, TOOL_CACHE):
            folder.chmod(0o777)  # whoever the job's steps run as
        flags = MS_NOSUID | MS_NODEV
        mount(Path("/dev") / disk, lower, "ext4", flags | MS_RDONLY)
        # With redirect_dir a folder of the disk can be renamed, which pip does.
        layers = f"lowerdir={lower / 'tools'},upperdir={upper},workdir={work}"
        mount(Path("overlay"), TOOL_CACHE, "overlay", flags, f"{layers},redirect_dir=on")
    except OSError as error:
        os.write(log(), f"vmrunner: there are no tools here: {error}\n".encode())
        return
    try:
        give_tools_to_containers()
    except OSError as error:
        os.write(log(), f"vmrunner: containers have no tools: {error}\n".encode())


def serial(block: Path) -> str:
    """What a disk is called; empty where it has no name."""
    with suppress(OSError):
        return (block / "serial").read_text().strip()
    return ""


def give_tools_to_containers() -> None:
    """Where there is Docker: the volume that the runner gives to its containers is that folder.

    By Docker's own socket: its command line takes long to begin.
    """
    if not DOCKER.exists():
        return
    options = {"type": "none", "o": "bind", "device": str(TOOL_CACHE)}
    body = json.dumps({"Name": TOOL_VOLUME, "Driver": "local", "DriverOpts": options})
    head = "POST /volumes/create HTTP/1.0\r\nHost: docker\r\nContent-Type: application/json"
    with socket.socket(socket.AF_UNIX) as docker:
        docker.settimeout(DOCKER_ANSWER)
        docker.connect(str(DOCKER))
        docker.sendall(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        answer = docker.recv(4096).partition(b"\r\n")[0]
    if b" 201" not in answer:
        raise OSError(f"Docker answers {answer.decode(errors='replace')}")


def make_work() -> None:
    """Where jobs have their workspaces: anybody's, as the users of a job are its own affair."""
    if not WORK.exists():
        WORK.mkdir()
        WORK.chmod(0o1777)
    if os.path.ismount(TOOL_CACHE) and not (WORK / TOOL_LINK).is_symlink():
        (WORK / TOOL_LINK).symlink_to(TOOL_CACHE)


def start(job: "Job") -> "subprocess.Popen[bytes]":
    """The runner, with its files."""
    command, user = [job["runner_path"] or image()["RUNNER_PATH"], *job["arguments"]], job["user"]
    folder = folder_of(user)
    for name in job["files"]:
        (folder / name).unlink(missing_ok=True)  # may be a pipe
    lay(folder, job["files"], user)
    try:
        return begin(command, user, environment(user) | job["environment"], folder, log())
    except OSError as error:
        end(f"{command[0]} does not start: {error.strerror}")
        raise


def exit_code(process: "subprocess.Popen[bytes]", seconds: float, job: "Job") -> int:
    """As a shell tells it.

    After so many seconds the machine goes: the host, which has an earlier deadline, must be gone.
    While the runner is held that time does not run.
    """
    handle, poll, hold = os.pidfd_open(process.pid), select.poll(), Hold(process.pid, watched(job))
    keeps = Workspace(process.pid, Path(pwd.getpwnam(job["user"]).pw_dir) / KEPT)
    if job["stay_seconds"]:
        keeps.begin()
    poll.register(handle, select.POLLIN)
    until = time.monotonic() + seconds
    while True:
        IN_USE[0] = max(IN_USE[0], memory_in_use())
        left = until + min(hold.seconds, LONGEST_HOLD) - time.monotonic()
        if poll.poll(min(max(0.0, left), hold.rest) * 1000):
            break
        if left <= 0 and not is_told_to_stay():
            power_off()
        if left <= 0:
            # The host has ended its job at the forge, and keeps the machine to be looked into.
            process.kill()
            break
        if is_told_to_stay():
            keeps.begin()
        hold.look()
    os.close(handle)
    IN_USE[0] = max(IN_USE[0], memory_in_use())
    code = process.wait()
    return code if code >= 0 else 128 - code


class Workspace:
    """Has a job's workspace, which the forges' runners delete when the job is over, stay.

    A runner opens the folder that it has made for its job when it is about to delete that, and not
    before. The kernel asks us first (fanotify), and meanwhile the workspace is moved out of there.
    """

    NAME = "hostexecutor"  # in that folder; the runners' name for it

    def __init__(self, runner: int, kept: Path) -> None:
        """`kept` is where it is afterwards; it has to be on the same file system."""
        self._runner, self._kept = runner, kept
        self._begun = False

    def begin(self) -> None:
        """Keep it, from now on; a second call changes nothing. A kernel that can't has none kept,
        and says so.
        """
        if self._begun:
            return
        self._begun = True
        asked = libc.fanotify_init(FAN_CLASS_CONTENT | FAN_CLOEXEC, os.O_RDONLY | os.O_CLOEXEC)
        made = libc.inotify_init1(os.O_CLOEXEC)
        if asked < 0 or made < 0:
            fault = os.strerror(ctypes.get_errno())
            os.write(log(), f"vmrunner: no workspace is kept here: {fault}\n".encode())
            return
        libc.inotify_add_watch(made, bytes(WORK), IN_CREATE)
        threading.Thread(target=self._keep, args=(asked, made), daemon=True).start()

    def _keep(self, asked: int, made: int) -> None:
        poll = select.poll()
        for file in (asked, made):
            poll.register(file, select.POLLIN)
        try:
            self._mark(asked)
            while True:
                for file, _ in poll.poll():
                    if file == made:
                        os.read(made, 4096)
                        self._mark(asked)
                    else:
                        self._answer(asked, os.read(asked, 4096))
        finally:
            os.close(asked)  # who waits for an answer goes on

    def _mark(self, asked: int) -> None:
        """Of each folder of a job, we are asked before it is opened. We never open one."""
        for folder in WORK.iterdir():
            libc.fanotify_mark(
                asked,
                FAN_MARK_ADD,
                ctypes.c_uint64(FAN_OPEN_PERM | FAN_ONDIR),
                -1,
                bytes(folder),
            )

    def _answer(self, asked: int, events: bytes) -> None:
        while events:
            length, _, _, _, _, file, who = FAN_EVENT.unpack_from(events)
            events = events[length:]
            try:
                if who == self._runner:
                    self._move(Path(os.readlink(f"/proc/self/fd/{file}")))
            finally:
                os.write(asked, FAN_ANSWER.pack(file, FAN_ALLOW))
                os.close(file)

    def _move(self, folder: Path) -> None:
        with suppress(OSError):
            if (folder / self.NAME).is_dir():
                with suppress(FileNotFoundError):  # what a step has had kept goes with the rest
                    self._kept.rename(folder / KEPT)
                (folder / self.NAME).rename(self._kept)


class Hold:
    """Stops a runner that has nothing to do but to report, while the forge does not answer.

    Runners try to deliver a job's end some ten times and then leave it, so that an outage of some
    minutes makes a failure of a success. A stopped runner does not count: what is due then is tried
    when the forge is back. While a step of the job is a child of the runner it is left alone.
    """

    def __init__(self, runner: int, url: str) -> None:
        """Without a URL it is never stopped."""
        self._runner, self._url = runner, url
        self._silent_since = self._held_since = 0.0
        self._seconds = 0.0

    @property
    def rest(self) -> float:
        """Seconds until the next look."""
        return LOOK_AGAIN if self._silent_since else LOOK

    @property
    def seconds(self) -> float:
        """For how many it has been held, in all."""
        return self._seconds + (time.monotonic() - self._held_since if self._held_since else 0.0)

    def look(self) -> None:
        """Whether the forge answers; the runner is stopped, or goes on, accordingly."""
        began = time.monotonic()
        if not self._url or answers(self._url):
            self._silent_since = 0.0
            if self._held_since:
                self._seconds, self._held_since = self.seconds, 0.0
                self._signal(signal.SIGCONT)
            return
        self._silent_since = self._silent_since or began
        silent = time.monotonic() - self._silent_since
        if silent >= SILENT and not self._held_since and not has_children(self._runner):
            self._signal(signal.SIGSTOP)
            self._held_since = time.monotonic()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._runner, number)


def watched(job: "Job") -> str:
    """The forge's URL; empty where the runner asks it through a proxy, which may get further than
    we do.
    """
    url, around = urlsplit(job["url"]), environment(job["user"]) | job["environment"]
    proxy, direct = (
        around.get(name) or around.get(name.upper(), "")
        for name in (f"{url.scheme}_proxy", "no_proxy")
    )
    return "" if proxy and url.hostname not in direct.split(",") else job["url"]


def answers(url: str) -> bool:
    """Whether the forge, or what stands before it, does more than refuse or fail.

    Any certificate will do: the runner may have been told to take it, nothing secret is said, and
    the system's certificates take a guest long to load.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    forge: HTTPConnection
    if parts.scheme == "https":
        unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
        forge = HTTPSConnection(host, parts.port, timeout=ANSWER, context=unverified)
    else:
        forge = HTTPConnection(host, parts.port, timeout=ANSWER)
    try:
        with closing(forge):
            path = parts.path.rstrip("/") + PING
            forge.request("POST", path, "{}", {"Content-Type": "application/json"})
            return forge.getresponse().status < 500
    except ssl.SSLError:  # it wants a certificate of the runner's, say
        return True
    except (OSError, HTTPException):
        return False


def has_children(process: int) -> bool:
    """Whether a program that it has begun still runs."""
    for thread in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):  # it has ended meanwhile
            if thread.read_text().strip():
                return True
    return False


# ---- the way in ----


def keep_door(program: str, *, alone: bool) -> None:
    """Begin the process that stands at the machine's door: door.py, as it is in DOOR.

    With `alone` it is a Python of its own, since ours has a job's credentials in its memory. That
    takes longer to begin, so it is in no hurry.
    """
    if os.fork():
        return
    try:
        os.setsid()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(nowhere, number)
        if alone:
            os.nice(19)
            file = os.memfd_create("vmrunner-door", 0)
            os.write(file, program.encode())
            command = [sys.executable, "-IS", f"/proc/self/fd/{file}"]
            os.execve(command[0], command, {"PATH": PATH, "LANG": "C.UTF-8"})  # noqa: S606 — ours
        exec(program, {"__name__": "__main__"})  # noqa: S102 — what the host has written, as all
    finally:
        os._exit(0)


# ---- waiting ----


def mount(source: Path, target: Path, kind: str, flags: int, options: str = "") -> None:
    words = (str(source).encode(), str(target).encode(), kind.encode())
    if libc.mount(*words, flags, options.encode() or None):
        raise OSError(ctypes.get_errno(), f"mounting {target}")


def read(into: mmap.mmap, at: int) -> None:
    """The seed's bytes from there on, past the page cache: the host writes behind the kernel's
    back.
    """
    disk = os.open(DISK, os.O_RDONLY | os.O_DIRECT)
    try:
        os.preadv(disk, [into], at)
    finally:
        os.close(disk)


def read_seed(seed: mmap.mmap) -> dict[str, str]:
    """The text of each file. Without mounting it: that takes longer than everything else here."""

    def content(record: bytes) -> bytes:
        first, size = struct.unpack_from("<I4xI", record, 2)
        return seed[first * SECTOR : first * SECTOR + size]

    read(seed, 0)
    files, records = {}, content(seed[ROOT : ROOT + 34])
    while records and records[0]:
        record, records = records[: records[0]], records[records[0] :]
        if name := NAME.search(record):
            files[record[name.end() : name.end() + name[1][0] - 5].decode()] = content(
                record
            ).decode()
    return files


def stir(meta: dict[str, str]) -> None:
    """Clock and random numbers of this machine alone."""
    time.clock_settime(time.CLOCK_REALTIME, max(float(meta["vmrunner-time"]), time.time()))
    entropy = bytes.fromhex(meta["vmrunner-entropy"])
    with open("/dev/random", "wb") as random:
        fcntl.ioctl(
            random, RNDADDENTROPY, struct.pack("ii", 8 * len(entropy), len(entropy)) + entropy
        )
        fcntl.ioctl(random, RNDRESEEDCRNG)


def identify(meta: dict[str, str]) -> None:
    """Name and ids of this machine alone."""
    name = meta["local-hostname"]
    libc.sethostname(name.encode(), len(name))
    Path("/etc/hostname").write_text(f"{name}\n")
    hosts, ours = Path("/etc/hosts"), " # vmrunner"
    # What the image has in there stays; only our own lines of the machine that this is a clone of
    # go.
    kept = (
        [line for line in hosts.read_bytes().splitlines() if not line.endswith(ours.encode())]
        if hosts.exists()
        else []
    )
    names = {
        (words[0], word)
        for line in kept
        if (words := line.partition(b"#")[0].split())
        for word in words[1:]
    }
    wanted = [("127.0.0.1", "localhost"), ("127.0.1.1", name), ("::1", "localhost")]
    own = [
        f"{address} {each}{ours}".encode()
        for address, each in wanted
        if (address.encode(), each.encode()) not in names
    ]
    hosts.write_bytes(b"".join(line + b"\n" for line in own + kept))
    machine_id = Path("/etc/machine-id")
    machine_id.chmod(0o644)
    machine_id.write_text(meta["vmrunner-machine-id"] + "\n")
    machine_id.chmod(0o444)
    boot_id = Path("/run/vmrunner-boot-id")
    raw = os.urandom(16).hex()
    boot_id.write_text(f"{raw[:8]}-{raw[8:12]}-4{raw[13:16]}-a{raw[17:20]}-{raw[20:]}\n")
    mount(boot_id, Path("/proc/sys/kernel/random/boot_id"), "", MS_BIND)


def internet(address: str) -> bytes:
    """As a struct sockaddr_in."""
    return struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))


def the(pattern: "re.Pattern[str]", config: str) -> str:
    """What network-config says there.

    Raises ValueError where it says nothing.
    """
    if found := pattern.search(config):
        return found[1]
    raise ValueError(f"network-config has no {pattern.pattern}")


def read_network(config: str) -> "tuple[str, str, str, str, str, str]":
    """MAC, address with its length, gateway and resolver of network-config; then address and
    gateway of IPv6, empty where machines have none.
    """
    mac, address, gateway, resolver = (
        the(pattern, config) for pattern in (MAC, ADDRESS, GATEWAY, RESOLVER)
    )
    six = [the(each, config) if ADDRESS6.search(config) else "" for each in (ADDRESS6, GATEWAY6)]
    return mac, address, gateway, resolver, six[0], six[1]


def connect(config: str, link: str) -> None:
    """The address that network-config names, on the one network interface."""
    mac, address, gateway, resolver, address6, gateway6 = read_network(config)
    # By hand: under software emulation a program as small as `ip` takes as long to begin as all the
    # rest of this.
    here, length = address.split("/")
    name, mask = link.encode(), socket.inet_ntoa(struct.pack("!I", 2**32 - 2 ** (32 - int(length))))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as kernel:
        fcntl.ioctl(
            kernel,
            SIOCSIFHWADDR,
            struct.pack("16sH14s", name, ARPHRD_ETHER, bytes.fromhex(mac.replace(":", ""))),
        )
        fcntl.ioctl(kernel, SIOCSIFADDR, struct.pack("16s16s", name, internet(here)))
        fcntl.ioctl(kernel, SIOCSIFNETMASK, struct.pack("16s16s", name, internet(mask)))
        everywhere = internet("0.0.0.0")  # noqa: S104 — a route's
        route = struct.pack(
            "@L16s16s16sH", 0, everywhere, internet(gateway), everywhere, RTF_UP | RTF_GATEWAY
        )
        fcntl.ioctl(kernel, SIOCADDRT, route.ljust(120, b"\0"))
    if address6:
        here, length = address6.split("/")
        connect6(here, int(length), gateway6, link)
    file = Path("/etc/resolv.conf")
    file.unlink(missing_ok=True)
    file.write_text(f"nameserver {resolver}\n")


def connect6(address: str, length: int, gateway: str, link: str) -> None:
    """This address, which nobody else is asked for, and none of the kernel's own making."""
    for key, value in (
        ("addr_gen_mode", "1"),
        ("accept_ra", "0"),
        ("accept_dad", "0"),
        ("disable_ipv6", "0"),
    ):
        (IPV6 / link / key).write_text(value)
    number, everywhere = socket.if_nametoindex(link), bytes(16)
    here, there = (socket.inet_pton(socket.AF_INET6, each) for each in (address, gateway))
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as kernel:
        # A struct in6_ifreq.
        fcntl.ioctl(kernel, SIOCSIFADDR, struct.pack("16sIi", here, length, number))
        route = struct.pack(
            "16s16s16sIHHILIi",
            everywhere,
            everywhere,
            there,
            0,
            0,
            0,
            1024,
            0,
            RTF_UP | RTF_GATEWAY,
            number,
        )
        fcntl.ioctl(kernel, SIOCADDRT, route)  # a struct in6_rtmsg


def warm_up(told: int, link: str) -> None:
    """What the image wants to be up is, what every job reads first comes into memory, what nobody
    needs goes from the journal, and the network interface is up but mute. Hooks know `told` as a
    file: what they leave running can wait for its end, which comes in a clone.
    """
    (IPV6 / link / "disable_ipv6").write_text("1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as kernel:
        fcntl.ioctl(kernel, SIOCSIFFLAGS, struct.pack("16sH", link.encode(), IFF_UP))
    for program in (
        image().get("RUNNER_PATH", ""),
        "/bin/sh",
        "/bin/bash",
        "/usr/bin/git",
        "/usr/sbin/ip",
    ):
        if os.path.isfile(program):
            Path(program).read_bytes()
    around = environment("root") | {"VMRUNNER_CLONED": f"/dev/fd/{told}"}
    for hook in sorted(BEFORE_READY.iterdir()) if BEFORE_READY.is_dir() else ():
        if not os.access(hook, os.X_OK):
            continue
        if code := subprocess.run(
            [hook, "waits"], env=around, pass_fds=[told], check=False
        ).returncode:
            sys.exit(
                f"vmrunner: {hook}, which comes before a machine is ready, failed (exit {code})"
            )
    mount_tools()
    IS_READY.touch()  # the job need not do it again
    # Once the boot id lies over one of /proc's files the kernel permits no user namespace a /proc,
    # which containers without root need, unless there is another one that nothing lies over.
    PROC.mkdir(mode=0o700, exist_ok=True)
    mount(Path("proc"), PROC, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    subprocess.run(["ip", "link"], stdout=subprocess.DEVNULL, check=False)
    subprocess.run(
        ["journalctl", "--quiet", "--rotate", "--vacuum-time=1s"],
        stderr=subprocess.DEVNULL,
        check=False,
    )
    os.sync()


def runners() -> list[Waiting]:
    """The image's runner, for each user that jobs may have, where it is one that can wait."""
    here = image()
    if here.get("RUNNER_KIND") != "gitea-runner" or not os.access(here["RUNNER_PATH"], os.X_OK):
        return []
    users = {each.pw_name for each in pwd.getpwall()}
    return [Waiting(here["RUNNER_PATH"], user) for user in ("root", "runner") if user in users]


def job_in(script: str, code: str) -> "Job | None":
    """What a seed's script would do, where this program can do it itself: the script is the same
    code.
    """
    lines = script.split("\n", 3)
    if len(lines) < 4 or lines[2] != f"CODE = {code!r}" or not lines[1].startswith("JOB = "):
        return None
    found: Job = json.loads(json.loads(lines[1].removeprefix("JOB = ")))
    return found


def varint(number: int) -> bytes:
    """As Protocol Buffers write a number."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def field(number: int, content: bytes) -> bytes:
    """A field of text, or of fields."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def fields(raw: bytes) -> "list[tuple[int, int]]":
    """The numbers of a message's fields, with the value of those that are a number."""
    found, at = [], 0

    def take() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = raw[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(raw):
        tag = take()
        value = take()
        found.append((tag >> 3, value))
        if tag & 7 == 2:
            at += value
    return found


class RehearsalForge(BaseHTTPRequestHandler):
    """A forge that hands out one job of one step: the four calls of the runner's service, which
    speaks Protocol Buffers.

    Source: runner.v1 of code.gitea.io/actions-proto-go 0.4.1.
    """

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = b""
        match self.path.rpartition("/")[2]:
            case "Declare":
                answer = field(1, b"")
            case "FetchTask":
                about = {
                    b"repository": b"vmrunner/rehearsal",
                    b"job": b"rehearsal",
                    b"event_name": b"push",
                }
                context = b"".join(
                    field(1, field(1, name) + field(2, field(3, value)))
                    for name, value in about.items()
                )
                answer = field(1, b"\x08\x01" + field(2, REHEARSED_JOB) + field(3, context))
            case "UpdateLog":
                seen = fields(asked)
                rows = sum(value for number, value in seen if number == 2) + sum(
                    number == 3 for number, _ in seen
                )
                answer = b"\x08" + varint(rows)
        self.send_response(200)
        self.send_header("Content-Type", "application/proto")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


def rehearse(job: "Rehearsal") -> None:
    """A whole job is gone through once, from a forge that this program plays. Under software
    emulation what runs for the second time takes half as long or less; and what it reads is in
    memory then. Nothing of it is left.
    """
    shutil.rmtree(job["folder"], ignore_errors=True)
    folder, nowhere = Path(job["folder"]), os.open(os.devnull, os.O_WRONLY)
    forge = ThreadingHTTPServer(("127.0.0.1", 0), RehearsalForge)
    threading.Thread(target=forge.serve_forever, daemon=True).start()
    process = None
    try:
        folder.mkdir(mode=0o711)
        (folder / "work").mkdir()
        own(folder / "work", job["user"])
        lay_new(job["folder"], "/packages/told", "", job["user"])
        for name, content in job["files"].items():
            lay(
                folder / "runner",
                {name: content.replace(job["url"], f"http://127.0.0.1:{forge.server_port}")},
                job["user"],
            )
        around = environment(job["user"]) | {"HOME": job["folder"]}
        subprocess.run(
            ["git", "--version"],
            stdin=subprocess.DEVNULL,
            stdout=nowhere,
            stderr=nowhere,
            check=False,
        )
        command = [job["runner_path"] or image().get("RUNNER_PATH", ""), *job["arguments"]]
        process = begin(command, job["user"], around, folder / "runner", nowhere)
        with suppress(subprocess.TimeoutExpired):
            process.wait(job["seconds"])
        for hook in (
            sorted(REHEARSAL_HOOKS.iterdir()) if job["hooks"] and REHEARSAL_HOOKS.is_dir() else ()
        ):
            if os.access(hook, os.X_OK):
                subprocess.run(
                    [hook],
                    env=around,
                    stdin=subprocess.DEVNULL,
                    stdout=nowhere,
                    stderr=nowhere,
                    check=False,
                )
    except (OSError, KeyError):
        pass  # a rehearsal is not owed
    finally:
        if process and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        forge.shutdown()
        forge.server_close()
        os.close(nowhere)
        shutil.rmtree(folder, ignore_errors=True)


def apart(job: "Rehearsal") -> int:
    """Rehearse beside the looking: should the job come meanwhile it waits for nothing.

    Returns the process, which heads a group.
    """
    if not (child := os.fork()):
        try:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit())
            os.setpgid(0, 0)
            time.sleep(job["rest_seconds"])
            rehearse(job)
        finally:
            os._exit(0)
    with suppress(OSError):  # it may have done so itself, and be over
        os.setpgid(child, child)
    return child


def wait(code: str, rehearsal_told: str) -> None:
    """Until there is the seed that has the job."""
    told, teller = os.pipe()
    link = next(name for name in sorted(os.listdir(LINKS)) if name != "lo")
    warm_up(told, link)
    make_work()
    if waiting := runners():
        rehearse(json.loads(rehearsal_told))
    rehearsal = 0
    own_page, page, seed = mmap.mmap(-1, SECTOR), mmap.mmap(-1, SECTOR), mmap.mmap(-1, SIZE)
    read(own_page, DESCRIPTOR)
    read(seed, 0)
    say("ready")
    while True:
        read(page, DESCRIPTOR)
        if page[:] != own_page[:]:
            if teller >= 0:
                os.close(teller)
                teller = -1
            MARKS.clear()  # of a rehearsal
            mark("seen")
            files = read_seed(seed)
            meta = dict(META.findall(files["meta-data"]))
            mark("read")
            stir(meta)
            mark("stirred")
            if "vmrunner-rehearsal" not in meta:
                break
            rehearsal = apart(json.loads(files["user-data"]))
            own_page[:] = page[:]
        if rehearsal and os.waitpid(rehearsal, os.WNOHANG)[0]:
            rehearsal = 0
            say("rehearsed")
        time.sleep(0.02)
    if rehearsal:
        os.killpg(rehearsal, signal.SIGTERM)
    job = job_in(files["user-data"], code)
    runner = chosen(job, waiting) if job else None  # it has something to do beside what follows
    mark("chosen")
    identify(meta)
    say("seed", marks())
    connect(files["network-config"], link)
    mark("connected")
    if job:
        run_job(job, runner, [each for each in waiting if each is not runner])
    for each in waiting:
        each.drop()
    SCRIPT.touch(mode=0o600)
    SCRIPT.write_text(files["user-data"])
    interpreter = files["user-data"].partition("\n")[0].removeprefix("#!").split()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.execv(interpreter[0], [*interpreter, str(SCRIPT)])  # noqa: S606 — it is what the seed says
