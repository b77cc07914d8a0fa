"""Runs a command on a terminal of its own, and answers what it asks as a person does.

usage: answers.py COMMAND… <ANSWERS    (lines of QUESTION<tab>ANSWER, in the order of the questions)
"""

from __future__ import annotations

import os
import pty
import sys


def main() -> None:
    """The exit code is the command's; a question that nobody expected is an error."""
    answers = [line.rstrip("\n").partition("\t")[::2] for line in sys.stdin]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 — as given
    seen = ""
    while True:
        try:
            piece = os.read(terminal, 4096).decode(errors="replace")
        except OSError:  # it has ended
            break
        print(piece, end="", flush=True)
        seen += piece
        if answers and answers[0][0] in seen and seen.endswith(": "):
            os.write(terminal, f"{answers.pop(0)[1]}\n".encode())
            seen = ""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if answers:
        sys.exit(f"never asked: {answers[0][0]}")
    sys.exit(code)


main()
