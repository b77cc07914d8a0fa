"""The programs that build an image: each alone in namespaces of its own, so that none outlives a
build that is killed, nor its mounts.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from vmrunner.errors import ImageError
from vmrunner.image.build import cause

Hear = Callable[[str], object]
_WITH_US = ("setpriv", "--pdeathsig", "KILL")
_BEGUN = "vmrunner: it begins"
# The kernel ends a program with its parent only from the moment on that it was told to. Of a build
# that was killed before, nobody reads the pipe any more (the kernel closes files first, and tells
# of the death then), so that the echo fails. This is the last of the chain, in the namespace, where
# no other parent could be asked for: it is 0 there, dead or alive.
_BEGIN = ("sh", "-c", 'echo "$0" || exit 1; exec "$@"', _BEGUN)
_APART = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
_IN_TREE = """set -e
mount -t proc proc "$0/proc"
mount -t tmpfs -o mode=755 tmpfs "$0/dev"
mkdir "$0/dev/pts" "$0/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$0/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$0/dev/shm"
for device in full null random tty urandom zero; do
  [ -e "/dev/$device" ] || continue
  touch "$0/dev/$device"
  mount --bind "/dev/$device" "$0/dev/$device"
done
ln -s pts/ptmx "$0/dev/ptmx"
ln -s /proc/self/fd "$0/dev/fd"
for number in 0:stdin 1:stdout 2:stderr; do ln -s "fd/${number%:*}" "$0/dev/${number#*:}"; done
mount -t sysfs -o ro sysfs "$0/sys"
mount -t tmpfs tmpfs "$0/run"
exec chroot "$0" "$@"
"""
# Beside this process's own.
_ENVIRONMENT = {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", "SYSTEMD_OFFLINE": "1"}
_UMASK = 0o022
_LAST = 8  # lines of a program that failed to show


class Log:
    """What the programs of one build print, in a file, each after the line that runs it again.
    `say` is told each step as it begins, and hears how the longer ones come along.
    """

    def __init__(self, path: Path, say: Hear) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._say = path, say

    def step(self, text: str) -> None:
        """One begins."""
        self._say(text)
        self._write(f"== {text}\n")

    def run(
        self,
        what: str,
        *command: str | Path,
        hear: Hear = lambda _: None,
        said: bool = True,
        within: tuple[str, ...] = (),
    ) -> str:
        """Run a program to its end, without input, and return what it printed; `hear` gets each
        line, the log too if it is `said`.

        `within` is a program that runs it. Raises ImageError where it fails: with the cause if it
        is a usual one, else with its last lines.
        """
        words = [*_WITH_US, *within, *_BEGIN, *(str(word) for word in command)]
        self._write(f"$ {_again([*within, *map(str, command)])}\n")
        lines: list[str] = []
        with subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | _ENVIRONMENT,
            umask=_UMASK,
            text=True,
            errors="replace",
        ) as running:
            try:
                assert running.stdout  # noqa: S101 — a pipe was asked for
                for line in running.stdout:
                    if not lines and line == f"{_BEGUN}\n":
                        continue
                    lines.append(line)
                    if said:
                        self._write(line)
                        hear(line.rstrip())
            except BaseException:
                running.kill()
                raise
        if running.returncode:
            told, found = f"All that was printed is in {self.path}.", cause.of(lines)
            if found:
                raise ImageError(f"{what} failed: {found.is_that}.", f"{found.hint}\n{told}")
            last = [line.rstrip() for line in lines if line.strip()][-_LAST:]
            raise ImageError(
                f"{what} failed (exit {running.returncode}).", "\n".join([*last, told])
            )
        return "".join(lines)

    def apart(self, what: str, *command: str | Path, hear: Hear = lambda _: None) -> str:
        """Run a program that mounts, and starts others: what it mounts nobody else sees, and all of
        it ends with it.
        """
        return self.run(what, *command, hear=hear, within=_APART)

    def inside(self, what: str, tree: Path, *command: str, said: bool = True) -> str:
        """Run a program of the tree in there, with /proc, a /dev without disks, /sys and an empty
        /run.
        """
        return self.run(what, "sh", "-c", _IN_TREE, tree, *command, said=said, within=_APART)

    def _write(self, text: str) -> None:
        try:
            with self.path.open("a", encoding="utf-8", errors="surrogateescape") as log:
                log.write(text)
        except OSError:
            pass  # a disk that is full is told by what the image needs of it


def _again(command: Sequence[str]) -> str:
    """A line for bash that runs the command as a build does, from wherever it is typed in; only
    that it does not end with the build.
    """
    settings = [f"{name}={shlex.quote(value)}" for name, value in _ENVIRONMENT.items()]
    return (
        f"(cd {_quoted(os.getcwd())} && umask {_UMASK:03o} && "
        f"{' '.join([*settings, *map(_quoted, command)])})"
    )


def _quoted(word: str) -> str:
    if word.isprintable():
        return shlex.quote(word)
    # The whole script stays on this line.
    escaped = word.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"$'{escaped}'"
