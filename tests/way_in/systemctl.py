#!/usr/bin/python3
"""In systemd's place, where it is not the first process: starts and stops what a unit says, as the
user and with the folders, the credential and the capabilities that it says. Its sandbox is left
out.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

FOLDERS = [Path("/etc/systemd/system"), Path("/usr/lib/systemd/system")]
STATE = Path("/run/stand-in-systemd")
PATIENCE = 60.0  # seconds for a service to say that it is ready, or to end


def settings(unit: str) -> dict[str, list[str]]:
    """What the unit's file says: each key with all its values."""
    path = next((each / unit for each in FOLDERS if (each / unit).exists()), None)
    if path is None:
        sys.exit(f"systemctl: there is no unit {unit}")
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"(?m)^([A-Za-z]+)=(.*)$", path.read_text(encoding="utf-8")):
        found.setdefault(key, []).append(value)
    return found


def start(unit: str) -> None:
    """Until it is ready. A timer does nothing here."""
    if not unit.endswith(".service") or running(unit):
        return
    said = settings(unit)
    user = pwd.getpwnam(said["User"][0])
    for kind, base in (("State", "/var/lib"), ("Runtime", "/run")):
        for name in said.get(f"{kind}Directory", []):
            folder = Path(base, name)
            folder.mkdir(exist_ok=True)
            folder.chmod(int(said[f"{kind}DirectoryMode"][0], 8))
            if folder.stat().st_uid != user.pw_uid:  # then systemd takes all below it along
                for path in (folder, *folder.rglob("*")):
                    os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
    notify = STATE / f"{unit}.notify"
    notify.unlink(missing_ok=True)
    environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "NOTIFY_SOCKET": str(notify)}
    for line in said.get("LoadCredential", []):
        name, _, source = line.partition(":")
        copy = Path("/run/credentials", unit, name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
        for path, mode in ((copy.parent, 0o500), (copy, 0o400)):
            path.chmod(mode)
            os.chown(path, user.pw_uid, user.pw_gid)
        environment["CREDENTIALS_DIRECTORY"] = str(copy.parent)
    capabilities = [each.removeprefix("CAP_").lower() for each in said["AmbientCapabilities"]]
    held = ",".join(f"+{each}" for each in capabilities)
    command = ["setpriv", f"--reuid={user.pw_name}", f"--regid={user.pw_gid}", "--init-groups"]
    command += [f"--inh-caps={held}", f"--ambient-caps={held}", f"--bounding-set=-all,{held}"]
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told,
        (STATE / f"{unit}.log").open("ab") as log,
    ):
        told.bind(str(notify))
        notify.chmod(0o666)
        told.settimeout(PATIENCE)
        process = subprocess.Popen(
            [*command, *said["ExecStart"][0].split()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            umask=int(said["UMask"][0], 8),
            start_new_session=True,
            cwd="/",
        )
        (STATE / f"{unit}.pid").write_text(str(process.pid), encoding="utf-8")
        while b"READY=1" not in told.recv(4096):
            pass


def running(unit: str) -> int:
    """Its process; 0 where there is none."""
    with suppress(OSError, ValueError):
        pid = int((STATE / f"{unit}.pid").read_text(encoding="utf-8"))
        if b"\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    return 0


def stop(unit: str) -> None:
    """And wait for its end."""
    pid, until = running(unit), time.monotonic() + PATIENCE
    if pid:
        os.kill(pid, signal.SIGTERM)
    while running(unit):
        if time.monotonic() > until:
            sys.exit(f"systemctl: {unit} does not end")
        time.sleep(0.1)


def main() -> None:
    """The words of systemctl that the docs use."""
    STATE.mkdir(exist_ok=True)
    word, *rest = sys.argv[1:]
    units = [
        each if "." in each else f"{each}.service" for each in rest if not each.startswith("-")
    ]
    for unit in units:
        if word in ("enable", "disable", "start", "restart", "stop"):
            settings(unit)
        if word in ("restart", "stop") or (word == "disable" and "--now" in rest):
            stop(unit)
        if word in ("restart", "start") or (word == "enable" and "--now" in rest):
            start(unit)
    if word not in ("enable", "disable", "start", "restart", "stop", "daemon-reload"):
        sys.exit(f"systemctl: {word} is not done here")


main()
