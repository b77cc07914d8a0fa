"""The programs that build an image. Each ends with the build, also when that is killed; those that
mount something or start others run in namespaces of their own, so that neither is left.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmrunner.errors import ImageError
from vmrunner.image.build import cause
from vmrunner.image.build.build_log import BuildLog
from vmrunner.log import Say

# The kernel kills the program when the build dies.
_DIE_WITH_BUILD = ("setpriv", "--pdeathsig", "KILL")
_STARTED = "vmrunner: the program starts"
# A build may die before setpriv has asked for that; then no signal comes. So the last shell before
# the program writes a line to the build's pipe, and starts nothing where that fails: the kernel
# closes the files of a dying process before it signals its children, so nobody reads the pipe of a
# dead build. Asking for the parent's id would not do: in the new PID namespace it is always 0.
_START = ("sh", "-c", 'echo "$0" || exit 1; exec "$@"', _STARTED)
_NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
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
# Added to the environment of the build's own process.
_ENVIRONMENT = {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", "SYSTEMD_OFFLINE": "1"}
_UMASK = 0o022
_SHOWN = 8  # last lines of a failed program's output, in the error


@dataclass(frozen=True)
class Programs:
    """Runs the programs of one build, one at a time. The log gets each command, as a line that runs
    it again in a shell, and then its output.
    """

    log: BuildLog

    def run(
        self,
        what: str,
        *command: str | Path,
        in_namespaces: bool = False,
        logged: bool = True,
        on_line: Say = lambda _: None,
    ) -> str:
        """Run a program to its end, without input, and return its output; where that is `logged` it
        goes into the log, and to `on_line` line by line.

        `in_namespaces` is for a program that mounts, or starts others: nobody else sees its mounts,
        and all of it ends with it. Raises ImageError, which begins with `what`, where the program
        fails: with the cause if it is a usual one, else with its last lines.
        """
        around, words = (_NAMESPACES if in_namespaces else ()), [str(each) for each in command]
        self.log.write(f"$ {_shell_line([*around, *words])}\n")
        lines: list[str] = []
        with subprocess.Popen(
            [*_DIE_WITH_BUILD, *around, *_START, *words],
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
                    if not lines and line == f"{_STARTED}\n":
                        continue
                    lines.append(line)
                    if logged:
                        self.log.write(line)
                        on_line(line.rstrip())
            except BaseException:
                running.kill()
                raise
        if running.returncode:
            raise self._failure(what, running.returncode, lines)
        return "".join(lines)

    def run_in_tree(self, what: str, tree: Path, *command: str, logged: bool = True) -> str:
        """Run a program of the tree in a chroot, in namespaces, with /proc, a /dev without disks,
        /sys and an empty /run. Otherwise like `run`.
        """
        return self.run(
            what, "sh", "-c", _IN_TREE, tree, *command, in_namespaces=True, logged=logged
        )

    def _failure(self, what: str, code: int, lines: Sequence[str]) -> ImageError:
        where = f"All that was printed is in {self.log.path}."
        if known := cause.recognise(lines):
            return ImageError(f"{what} failed: {known.reason}.", f"{known.hint}\n{where}")
        last = [line.rstrip() for line in lines if line.strip()][-_SHOWN:]
        return ImageError(f"{what} failed (exit {code}).", "\n".join([*last, where]))


def _shell_line(command: Sequence[str]) -> str:
    """A line for bash that runs the command as the build does: same folder, umask and settings,
    whatever folder it is typed in. Only that it does not end with the build.
    """
    settings = [f"{name}={shlex.quote(value)}" for name, value in _ENVIRONMENT.items()]
    return (
        f"(cd {_quoted(os.getcwd())} && umask {_UMASK:03o} && "
        f"{' '.join([*settings, *map(_quoted, command)])})"
    )


def _quoted(word: str) -> str:
    """Like shlex.quote, but a word of several lines, as a script is, stays on one."""
    if word.isprintable():
        return shlex.quote(word)
    escaped = word.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"$'{escaped}'"
