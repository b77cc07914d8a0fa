"""Every error that a user can meet, in one tree.

An error is a sentence, a hint and an exit code. Tracebacks are for bugs only: `main()` prints a
`VmrunnerError` as two lines and exits with its code, and lets everything else through.
"""

from __future__ import annotations

from typing import ClassVar

_CONSOLE_TAIL = 12  # lines of a failed machine's console to show


class VmrunnerError(Exception):
    """The root of the tree: `sentence` says what is wrong, `hint` what to do about it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, sentence: str, hint: str = "") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.hint = hint


class WrongCommand(VmrunnerError):
    """The command line: an option's value that can't be, or options that exclude each other."""

    exit_code = 2


class ConfigError(VmrunnerError):
    """The configuration file, or a file that it names, is missing or wrong."""

    exit_code = 3


class NotReadable(ConfigError):
    """A file with a secret is closed to this user."""


class ForgeError(VmrunnerError):
    """The forge could not be reached, or refused, or answered with something unusable."""

    exit_code = 4


class ForgeUnreachable(ForgeError):
    """No usable answer: connection refused, name unknown, timeout, TLS failure, 5xx, an answer that
    is not JSON.
    """


class ForgeDenied(ForgeError):
    """403: the token lacks a scope (the hint names it); also what is derived from it."""


class ForgeTokenUnknown(ForgeDenied):
    """401: the token is not, or not any more, one of the forge's.

    A new one in its file mends it.
    """


class ForgeNotFound(ForgeError):
    """404: the scope does not exist or has Actions switched off, or the record is gone."""


class HypervisorError(VmrunnerError):
    """libvirt is not running, not permitted, or refused a request."""

    exit_code = 5


class DiskFull(HypervisorError):
    """The storage pool has no room."""


class NotPermitted(HypervisorError):
    """This user may not see or change the rules of the machines' network."""


class Denied(HypervisorError):
    """The host's kernel, or what guards it, does not let libvirt or QEMU do it."""


class NameClash(HypervisorError):
    """An object with the wanted name exists and is not ours."""


class Occupied(HypervisorError):
    """Somebody else speaks with the machine there."""


class SnapshotError(HypervisorError):
    """A snapshot could not be made, or a machine could not be cloned from it.

    `denied`: because of what guards the host, such as AppArmor.
    """

    def __init__(self, sentence: str, hint: str = "", *, denied: bool = False) -> None:
        super().__init__(sentence, hint)
        self.denied = denied


class ImageError(VmrunnerError):
    """A recipe or a golden image is unknown, incomplete, corrupt, or could not be built."""

    exit_code = 6


class ToolsError(ImageError):
    """A disk of tools is not there, is none, or is damaged: the image beside it is not to blame."""


class NotFetched(ImageError):
    """A URL gave no file; `status` is what its server answered, 0 where none did."""

    def __init__(self, sentence: str, hint: str = "", *, status: int = 0) -> None:
        super().__init__(sentence, hint)
        self.status = status


class MachineError(VmrunnerError):
    """A machine did not do what it was made for within its deadline.

    `console` is all that it said there; its end is the hint. It is the guest's word, which explains
    and decides nothing.
    """

    exit_code = 7

    def __init__(self, sentence: str, hint: str = "", *, console: str | None = None) -> None:
        super().__init__(sentence, hint if console is None else _console_end(console))
        self.console = console or ""

    @property
    def last_lines(self) -> str:
        """The console's end."""
        return "\n".join(_tail(self.console))


def _tail(console: str) -> list[str]:
    return console.splitlines()[-_CONSOLE_TAIL:]


def _console_end(console: str) -> str:
    tail = _tail(console)
    if not tail:
        return "Its console is empty."
    return "\n".join(["Its console ended with:", *(f"  {line}" for line in tail)])


class UnknownMachine(VmrunnerError):
    """No machine, or more than one, is called so."""


class Busy(VmrunnerError):
    """Another vmrunner with the same manager id holds the lock."""

    exit_code = 8


class CallError(VmrunnerError):
    """GARM's call is not one that a provider understands, or can do."""


class GarmError(VmrunnerError):
    """GARM did not answer its instance as it should."""


class UnknownInstance(VmrunnerError):
    """GARM asked for an instance that is not there (any more)."""

    exit_code = 30
