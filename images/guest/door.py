"""The way into a machine for who may use its host's libvirt: one port, and no network. Written by
vmrunner; job.py begins it.

Whoever comes says a public key in a line of JSON. For that key alone a server of SSH is begun, with
a host key of its own, whose public half is the answer; then the port carries what both say. When
the caller goes, also when it was killed, the server ends, and nothing of both keys is left. There
is no server, and no key, while nobody is here.

What goes to the caller is in frames of a length and so many bytes: by them it knows that this end
lives (no bytes), and that there is no more to come (GONE).
"""

import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import time
from contextlib import suppress
from pathlib import Path


class Door:
    """The port, from inside."""

    PORT = "/dev/virtio-ports/org.vmrunner.door"
    SSHD, KEYGEN, SHADOW = "/usr/sbin/sshd", "/usr/bin/ssh-keygen", "/etc/shadow"
    USER = "root"
    FOLDER = Path("/run/vmrunner-door")  # while somebody is here
    APART = Path("/run/sshd")  # where the server locks up the half of it that has no privileges
    PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    GONE = -1
    ALIVE, HELLO, END = 5.0, 20.0, 5.0  # seconds between two signs; for the first line; for the end
    LONGEST, FULL = 4096, 1 << 16  # bytes of that line, and of what waits for a slow reader
    # The image's own settings have no part in it, and nothing is forwarded.
    SETTINGS = (
        "AllowAgentForwarding=no",
        "AllowStreamLocalForwarding=no",
        "AllowTcpForwarding=no",
        "AuthenticationMethods=publickey",
        "KbdInteractiveAuthentication=no",
        "LoginGraceTime=60",
        "PasswordAuthentication=no",
        "PermitRootLogin=prohibit-password",
        "PermitTunnel=no",
        "PermitUserRC=no",
        "PidFile=none",
        "PrintMotd=no",
        "StrictModes=no",
        "Subsystem=sftp internal-sftp",
        "UseDNS=no",
        "UsePAM=no",
        "X11Forwarding=no",
        f"SetEnv=LANG=C.UTF-8 PATH={PATH}",
    )

    def __init__(self, port: int) -> None:
        self._port = port

    @classmethod
    def opened(cls, seconds: float = 60.0) -> "Door | None":
        """As soon as the port is there; None where this machine has none, or another process
        stands at it.
        """
        until = time.monotonic() + seconds
        while not os.path.exists(cls.PORT):  # udev may be a moment behind us
            if time.monotonic() > until:
                return None
            time.sleep(0.2)
        try:
            return cls(os.open(cls.PORT, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError:
            return None

    def stand(self) -> None:
        """Let in one after the other, for ever."""
        while True:
            self.await_somebody()
            with suppress(OSError, subprocess.SubprocessError):
                self.let_in()
            self.await_nobody()

    @property
    def has_somebody(self) -> bool:
        """Whether the host's end is open."""
        look = select.poll()
        look.register(self._port, 0)
        return not look.poll(0)

    def await_somebody(self) -> None:
        """Without looking again and again: the kernel tells when the host's end changes."""
        with select.epoll() as change:
            change.register(self._port, select.EPOLLOUT | select.EPOLLET)
            while not self.has_somebody:
                change.poll()

    def await_nobody(self) -> None:
        """What a caller still says is thrown away, until it has gone."""
        look = select.poll()
        look.register(self._port, select.POLLIN)
        while not any(event & select.POLLHUP for _, event in look.poll()) and self._read():
            pass
        while self._read():  # so that the next one is not taken for this one
            pass

    def let_in(self) -> None:
        """Whoever is there, until they go or their server ends."""
        try:
            said = json.loads(self._line())
            key, word = str(said["key"]), str(said["word"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return  # nobody of ours; or what is left of one that was here before
        lack = self.lack()
        if lack or not key.isprintable():
            self._tell({"word": word, "lack": lack or "key"})
            return
        try:
            shutil.rmtree(self.FOLDER, ignore_errors=True)
            self.FOLDER.mkdir(mode=0o700)
            own = self._make_keys(key)
            here, there = socket.socketpair()
            with here:
                with there:
                    server = self._serve(there.fileno())
                try:
                    self._tell({"word": word, "host_key": own})
                    self._carry(here)
                finally:
                    self._end(server, here)
        finally:
            shutil.rmtree(self.FOLDER, ignore_errors=True)

    def lack(self) -> str:
        """Why nobody can be let in, in a word; empty where they can."""
        if not all(os.access(each, os.X_OK) for each in (self.SSHD, self.KEYGEN)):
            return "server"
        with suppress(OSError):
            for line in Path(self.SHADOW).read_text().splitlines():
                if line.startswith(f"{self.USER}:!"):  # without PAM the server takes it at its word
                    return "locked"
        return ""

    def _make_keys(self, key: str) -> str:
        """The caller's, to be let in by, and one of the server's own, whose public half this is."""
        (self.FOLDER / "authorized_keys").write_text(f"restrict,pty {key}\n")
        file = self.FOLDER / "host_key"
        make = [self.KEYGEN, "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(file)]
        subprocess.run(make, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
        return " ".join(file.with_suffix(".pub").read_text().split()[:2])

    def _serve(self, connection: int) -> "subprocess.Popen[bytes]":
        """The server, for this one connection."""
        self.APART.mkdir(mode=0o755, exist_ok=True)
        settings = (
            f"AuthorizedKeysFile={self.FOLDER}/authorized_keys",
            f"HostKey={self.FOLDER}/host_key",
            *self.SETTINGS,
        )
        options = [word for setting in settings for word in ("-o", setting)]
        return subprocess.Popen(
            [self.SSHD, "-i", "-f", "/dev/null", *options],
            stdin=connection,
            stdout=connection,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={"PATH": self.PATH, "LANG": "C.UTF-8"},
            umask=0o022,
            start_new_session=True,
        )

    def _end(self, server: "subprocess.Popen[bytes]", connection: socket.socket) -> None:
        """It ends when nobody speaks to it any more, and what it has begun on a terminal with it;
        if not, it is made to.
        """
        connection.close()
        try:
            server.wait(self.END)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()

    def _carry(self, server: socket.socket) -> None:
        """What both say, until either goes."""
        server.setblocking(False)
        inwards, outwards, is_over = bytearray(), bytearray(), False
        look, last = select.poll(), time.monotonic()
        while True:
            hears = 0 if is_over or len(inwards) >= self.FULL else select.POLLIN
            look.register(self._port, hears | (select.POLLOUT if outwards else 0))
            if not is_over:
                room = len(outwards) < self.FULL
                look.register(
                    server, (room and select.POLLIN) | ((inwards and select.POLLOUT) or 0)
                )
            seen = dict(look.poll(self.ALIVE * 1000))
            port = seen.get(self._port, 0)
            if port & select.POLLHUP:
                return
            if port & select.POLLIN:
                inwards += self._read()
            if seen.get(server.fileno(), 0) & ~select.POLLOUT:
                said = b""
                with suppress(ConnectionError):
                    said = server.recv(self.FULL)
                outwards += struct.pack(">i", len(said) or self.GONE) + said
                if not said:
                    is_over = True
                    look.unregister(server)
            if not is_over and inwards:
                with suppress(BlockingIOError, ConnectionError):
                    del inwards[: server.send(inwards)]
            if not outwards and not is_over and time.monotonic() - last > self.ALIVE:
                outwards += struct.pack(">i", 0)
            if outwards:
                last = time.monotonic()
                with suppress(BlockingIOError):
                    del outwards[: os.write(self._port, outwards[: self.FULL])]

    def _tell(self, answer: "dict[str, str]") -> None:
        raw = json.dumps(answer).encode()
        os.write(self._port, struct.pack(">i", len(raw)) + raw)

    def _line(self) -> bytes:
        """What the caller says first. Raises ValueError where that is no line, or none comes."""
        found, until = b"", time.monotonic() + self.HELLO
        look = select.poll()
        look.register(self._port, select.POLLIN)
        while not found.endswith(b"\n"):
            left = until - time.monotonic()
            said = self._read(1) if left > 0 and look.poll(left * 1000) else b""
            if not said or len(found) > self.LONGEST:
                raise ValueError("not a line")
            found += said
        return found

    def _read(self, most: int = 1 << 15) -> bytes:
        """What is there; empty where that is nothing."""
        try:
            return os.read(self._port, most)
        except BlockingIOError:
            return b""


def main() -> None:
    """As long as the machine is there."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)  # who began us was in no hurry
    if door := Door.opened():
        door.stand()


if __name__ == "__main__":
    main()
