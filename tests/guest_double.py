"""A machine with a door, without a machine: paramiko plays the server that images/guest/door.py
begins, over the same frames.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import paramiko

from vmrunner.errors import HypervisorError


class Speaker:
    """The Talk of the double: bytes that it is fed, and bytes that are said to it."""

    def __init__(self) -> None:
        self.said = bytearray()
        self.is_closed = False
        self._heard: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def feed(self, data: bytes) -> None:
        self._heard.put(data)

    def frame(self, data: bytes) -> None:
        self.feed(struct.pack(">i", len(data)) + data)

    def hear(self, seconds: float) -> bytes | None:
        try:
            return self._heard.get(timeout=max(seconds, 0))
        except queue.Empty:
            return None

    def say(self, data: bytes) -> None:
        if self.is_closed:
            raise HypervisorError("It is closed.", "")
        self.said += data
        self.hears(data)

    def hears(self, data: bytes) -> None:
        """What it does with what is said to it."""

    def close(self) -> None:
        self.is_closed = True
        self.feed(b"")


class _Server(paramiko.ServerInterface):
    def __init__(self, double: GuestDouble, key: str) -> None:
        self._double, self._key = double, key

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self._double.asked.append(username)
        fits = f"{key.get_name()} {key.get_base64()}" == self._key
        return paramiko.AUTH_SUCCESSFUL if fits else paramiko.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_shell_request(self, channel: paramiko.Channel) -> bool:
        return self.check_channel_exec_request(channel, b"")

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        def answer() -> None:
            code = self._double.run(channel, command.decode())
            if code is not None:
                channel.send_exit_status(code)
            channel.close()

        # Not before this thread has said that the command is begun.
        timer = threading.Timer(0.1, answer)
        timer.daemon = True
        timer.start()
        return True


class Folder(paramiko.SFTPServerInterface):
    """A folder of the test's as the machine's files; `lies` are names in each folder of it."""

    root = Path()
    lies: tuple[str, ...] = ()

    def _path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def canonicalize(self, path: str) -> str:
        return path

    def list_folder(self, path: str) -> list[paramiko.SFTPAttributes] | int:
        found = [
            paramiko.SFTPAttributes.from_stat(each.lstat(), each.name)
            for each in sorted(self._path(path).iterdir())
        ]
        for name in self.lies:
            found.append(paramiko.SFTPAttributes.from_stat(self.root.stat(), name))
        return found

    def stat(self, path: str) -> paramiko.SFTPAttributes | int:
        try:
            return paramiko.SFTPAttributes.from_stat(self._path(path).stat())
        except OSError as error:
            return int(paramiko.SFTPServer.convert_errno(error.errno or 0))

    def open(
        self, path: str, flags: int, attr: paramiko.SFTPAttributes
    ) -> paramiko.SFTPHandle | int:
        try:
            mode = "wb" if flags & os.O_WRONLY else "rb"
            file = os.fdopen(os.open(self._path(path), flags, 0o600), mode)
        except OSError as error:
            return int(paramiko.SFTPServer.convert_errno(error.errno or 0))
        handle = paramiko.SFTPHandle(flags)
        handle.readfile = handle.writefile = file
        handle.filename = str(self._path(path))
        handle.chattr = lambda attr: (
            paramiko.SFTPServer.set_file_attr(handle.filename, attr) or paramiko.SFTP_OK
        )
        return handle

    def mkdir(self, path: str, attr: paramiko.SFTPAttributes) -> int:
        self._path(path).mkdir()
        paramiko.SFTPServer.set_file_attr(str(self._path(path)), attr)
        return int(paramiko.SFTP_OK)


def _nothing(_channel: paramiko.Channel, _command: str) -> int | None:
    return 0


@dataclass
class GuestDouble:
    """What answers at the door, each time somebody comes."""

    run: Callable[[paramiko.Channel, str], int | None] = _nothing
    folder: type[Folder] = Folder
    first: bytes = b""  # what is left of a visit before, once
    answer: dict[str, str] = field(default_factory=dict)  # instead of the right one
    host_key: paramiko.PKey = field(default_factory=paramiko.ECDSAKey.generate)
    asked: list[str] = field(default_factory=list)  # whom a key was offered for
    visits: list[Speaker] = field(default_factory=list)

    def __call__(self) -> Speaker:
        made = _Visit(self)
        self.visits.append(made)
        return made


class _Visit(Speaker):
    def __init__(self, double: GuestDouble) -> None:
        super().__init__()
        self._double = double
        self._inside: socket.socket | None = None

    def hears(self, data: bytes) -> None:
        if self._inside:
            self._inside.sendall(data)
            return
        if not self.said.endswith(b"\n"):
            return
        asked = json.loads(self.said)
        if self._double.first:
            self.feed(self._double.first)
            self._double.first = b""
            return
        own = self._double.host_key
        right = {"host_key": f"{own.get_name()} {own.get_base64()}"}
        self.frame(json.dumps({"word": asked["word"]} | (self._double.answer or right)).encode())
        self._inside, there = socket.socketpair()
        server = paramiko.Transport(there)
        server.add_server_key(own)
        server.set_subsystem_handler("sftp", paramiko.SFTPServer, self._double.folder)
        threading.Thread(target=self._pump, args=(self._inside,), daemon=True).start()
        with suppress(paramiko.SSHException):
            server.start_server(event=threading.Event(), server=_Server(self._double, asked["key"]))

    def _pump(self, inside: socket.socket) -> None:
        with suppress(OSError):
            while data := inside.recv(1 << 15):
                self.frame(data)
        self.feed(struct.pack(">i", -1))

    def close(self) -> None:
        super().close()
        if self._inside:
            self._inside.close()
