#!/usr/bin/python3
"""systemd's socket activation, where there is no systemd, for one of libvirt's separate daemons.

usage: rig/activate.py DAEMON SECONDS GROUP

Holds the daemon's sockets for the members of GROUP. Starts it at the first connection, and again at
the next one after it has ended, which it does by itself after so many SECONDS without a client and
without a machine or network that is active.
"""

import os
import select
import shutil
import socket
import sys
import time

_SOCKETS = {  # and what systemd calls each
    "{}-sock": "{}.socket",
    "{}-sock-ro": "{}-ro.socket",
    "{}-admin-sock": "{}-admin.socket",
}
_FIRST = 3  # where sd_listen_fds(3) looks for them


def listen(path: str, group: str) -> socket.socket:
    """A socket for root and the group."""
    made = socket.socket(socket.AF_UNIX)
    made.bind(path)
    os.chmod(path, 0o660)
    shutil.chown(path, group=group)
    made.listen(128)
    return made


def become(daemon: str, seconds: str, sockets: list[socket.socket]) -> None:
    """Never returns."""
    aside = [os.dup2(each.fileno(), 100 + place) for place, each in enumerate(sockets)]
    for place, descriptor in enumerate(aside):
        os.dup2(descriptor, _FIRST + place)
        os.close(descriptor)
    names = ":".join(name.format(daemon) for name in _SOCKETS.values())
    told = {
        "LISTEN_PID": str(os.getpid()),
        "LISTEN_FDS": str(len(sockets)),
        "LISTEN_FDNAMES": names,
    }
    os.execvpe(daemon, [daemon, "--timeout", seconds], os.environ | told)  # noqa: S606 — no shell is wanted


def main() -> None:
    """Until it is killed."""
    daemon, seconds, group = sys.argv[1:]
    os.makedirs("/run/libvirt", exist_ok=True)
    sockets = [listen(f"/run/libvirt/{name.format(daemon)}", group) for name in _SOCKETS]
    while True:
        select.select(sockets, [], [])
        pid = os.fork()
        if not pid:
            become(daemon, seconds, sockets)
        os.waitpid(pid, 0)
        time.sleep(0.1)  # a daemon that can't start is not to take a processor


main()
