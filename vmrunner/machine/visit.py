"""A person in a machine: SSH over the port of its door, without a network.

A key of its own is made for each visit. It never leaves this process's memory; its public half is
said at the door (images/guest/door.py), which says the host key that the server has, and no other
one is taken. The machine is its job's, and hostile: nothing is forwarded, nothing that it names is
a path here (`copying.py`).
"""

from __future__ import annotations

import json
import logging
import secrets
import shlex
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vmrunner.errors import MachineError
from vmrunner.hypervisor.seam import Machines, Talk, Way
from vmrunner.model.machine import Machine, MachineId
from vmrunner.text import presentable
from vmrunner.waiting import Deadline

if TYPE_CHECKING:
    from paramiko import Transport

USER = "root"
GONE_HINT = "Does it run still? `vmrunner status` shows it."
_GONE = -1  # as in images/guest/door.py
_LONGEST = 1 << 20  # bytes of a frame
_SILENT = 60.0  # seconds without a sign of life, of which there is one each 5
_SHAKEN = 60.0  # seconds for each step of SSH's beginning, in a guest that may be emulated
_LACKS = {
    "server": (
        "The image of {machine} has no SSH server.",
        'Add "openssh-server" to the packages of its recipe, and build it again; no service of it '
        "is started.",
    ),
    "locked": (
        "In the image of {machine} the user root is locked, and SSH lets it in nowhere.",
        "Let a script of the recipe run `usermod --unlock root`, or give it `*` for a password.",
    ),
}


class Line:
    """A door's port, as paramiko takes a socket: what comes is unpacked out of its frames."""

    def __init__(self, talk: Talk, silent: float = _SILENT) -> None:
        self._talk, self._silent = talk, silent
        self._raw = bytearray()
        self._frames: deque[bytes] = deque()
        self._timeout: float | None = None
        self._lives = Deadline(silent)
        self._is_over = False
        self.fault = ""  # why it ended, where it should not have

    @property
    def _closed(self) -> bool:  # as of a socket: paramiko asks for it when it ends
        return self._is_over

    def settimeout(self, seconds: float | None) -> None:
        """How long `recv` waits."""
        self._timeout = seconds

    def recv(self, most: int) -> bytes:
        """What has come; empty where there is no more to come. Raises TimeoutError."""
        frame = self.frame(self._timeout)
        if rest := frame[most:]:
            self._frames.appendleft(rest)
        return frame[:most]

    def frame(self, seconds: float | None) -> bytes:
        """The next one; empty where there is no more to come. Raises TimeoutError."""
        until = None if seconds is None else Deadline(seconds)
        while not self._frames and not self._is_over:
            self._hear(1.0 if until is None else until.left)
            if until is not None and until.is_over and not self._frames and not self._is_over:
                raise TimeoutError
        return self._frames.popleft() if self._frames else b""

    def _hear(self, seconds: float) -> None:
        chunk = self._talk.hear(seconds)
        if chunk is None:
            if self._lives.is_over:
                self._end(f"gave no sign of life for {self._silent:.0f} s")
            return
        if not chunk:
            self._end("ended, or its door was closed")
            return
        self._lives = Deadline(self._silent)
        self._raw += chunk
        while len(self._raw) >= 4 and not self._is_over:
            (length,) = struct.unpack_from(">i", self._raw)
            if length == _GONE:
                self._end("")
            elif not 0 <= length <= _LONGEST:
                self._end("says at its door what no door says")
            elif len(self._raw) >= 4 + length:
                if length:
                    self._frames.append(bytes(self._raw[4 : 4 + length]))
                del self._raw[: 4 + length]
            else:
                return

    def _end(self, fault: str) -> None:
        if not self._is_over:  # as it is when we leave
            self._is_over, self.fault = True, fault

    def send(self, data: bytes) -> int:
        """Say all of it."""
        self._talk.say(bytes(data))
        return len(data)

    def close(self) -> None:
        """Leave."""
        self._is_over = True
        self._talk.close()


@contextmanager
def entered(
    machines: Machines, machine: Machine, patience: float = 30.0
) -> Iterator[tuple[Transport, Line]]:
    """A session with a machine as root. `patience`: seconds until its door has to answer.

    Raises MachineError, Occupied.
    """
    import paramiko  # here: other commands need it not

    if machine.is_paused:
        raise MachineError(
            f"{machine.id} is paused: it waits for a job, and nothing in it runs.",
            "It can be entered when it has its job.",
        )
    key = paramiko.ECDSAKey.generate()
    line, host_key = _knock(
        machines, machine.id, f"{key.get_name()} {key.get_base64()}", Deadline(patience)
    )
    transport = None
    try:
        transport = _transport(line)
        _shake(transport, line, machine.id, key, host_key)
        yield transport, line
    except (paramiko.SSHException, EOFError) as error:
        why = line.fault or f"ended the session: {presentable(str(error)) or 'it is gone'}"
        raise MachineError(f"{machine.id} {why}.", GONE_HINT) from None
    finally:
        if transport:
            transport.close()
        line.close()


def _knock(
    machines: Machines, machine: MachineId, key: str, deadline: Deadline
) -> tuple[Line, str]:
    """The port of a machine that let this key in, and the server's host key.

    What is left there of a visit before may come first: then it is tried again.
    """
    while True:
        word = secrets.token_hex(8)
        line = Line(machines.talk(machine, Way.DOOR))
        try:
            line.send(json.dumps({"key": key, "word": word}).encode() + b"\n")
            answer = _answer(line, word, deadline)
        except BaseException:
            line.close()
            raise
        if host_key := answer.get("host_key"):
            return line, host_key
        line.close()
        if lack := answer.get("lack"):
            sentence, hint = _LACKS.get(lack, ("The door of {machine} was not opened.", ""))
            raise MachineError(sentence.format(machine=machine), hint)
        if deadline.is_over:
            raise MachineError(
                f"Nobody answers at the door of {machine}.",
                "Is it still booting? One that `vmrunner exec` has booted has no door; nor has one "
                "whose job ended what vmrunner runs in there.",
            )
        deadline.pause(0.5)


def _answer(line: Line, word: str, deadline: Deadline) -> dict[str, str]:
    """What the door answers to this word; empty where it says nothing, or something else."""
    try:
        found: Any = json.loads(line.frame(deadline.left))
    except (TimeoutError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict) or found.get("word") != word:
        return {}
    return {str(name): str(value) for name, value in found.items()}


def _transport(line: Line) -> Transport:
    import paramiko

    # What a session is broken off by is told as an error of ours, not by paramiko on stderr.
    logging.getLogger("paramiko").addHandler(logging.NullHandler())
    transport = paramiko.Transport(line)
    transport.banner_timeout = transport.auth_timeout = transport.handshake_timeout = _SHAKEN
    transport.daemon = True
    return transport


def _shake(transport: Transport, line: Line, machine: MachineId, key: Any, host_key: str) -> None:
    """SSH's beginning, with the server that the door spoke of."""
    import paramiko

    try:
        transport.start_client(timeout=_SHAKEN)
        found = transport.get_remote_server_key()
        if f"{found.get_name()} {found.get_base64()}" != host_key:
            raise MachineError(
                f"{machine} answers with another host key than its door said.",
                "Its job may play a game with you; nothing was said to it.",
            )
        transport.auth_publickey(USER, key)
    except (paramiko.SSHException, EOFError, OSError) as error:
        why = line.fault or presentable(str(error)) or type(error).__name__
        raise MachineError(
            f"{machine} does not let us in: {why}.",
            "`vmrunner console` needs no server in the machine.",
        ) from None


def command_line(words: Sequence[str]) -> str:
    """For the machine's shell: the words as they are."""
    return shlex.join(words)
