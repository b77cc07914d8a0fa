"""Runs inside a machine. `leave TOKEN MARK` leaves marks wherever a program can, and then looks for
them; `search` only looks.

Both print an object of booleans: in which places a mark, of whatever token, was found. Stands
alone, with Python's own library.
"""

import ctypes
import glob
import json
import mmap
import os
import re
import struct
import subprocess
import sys

HEAD = b"<residue "
MARK = re.compile(rb"<residue ([a-z]+) [0-9a-f]{32}>")
LONGEST = 64
CHUNK = 1 << 20
PLACES = 64  # of the raw disk, evenly over its last quarter
FILES = ["/residue-file", "/var/residue-file", "/opt/residue-file"]
VOLATILE = ["/dev/shm/residue-file", "/run/residue-file", "/tmp/residue-file"]  # noqa: S108 — the machine is thrown away
CACHED, SWAP = "/residue-cached", "/residue-swap"


def mark(kind: str, token: str) -> bytes:
    """What MARK finds."""
    return f"<residue {kind} {token}>".encode()


def marks(data: bytes) -> "set[str]":
    """The kinds of the marks in it."""
    found, at = set(), data.find(HEAD)
    while at >= 0:
        if whole := MARK.match(data, at):
            found.add(whole[1].decode())
        at = data.find(HEAD, at + 1)
    return found


def marks_of(path: str) -> "set[str]":
    """Those in a whole file or disk; none where it can't be read."""
    found, before = set(), b""
    try:
        with open(path, "rb", buffering=0) as file:
            while chunk := file.read(CHUNK):
                found |= marks(before + chunk)
                before = chunk[-LONGEST:]
    except OSError:
        pass
    return found


def disk() -> str:
    """The whole disk that the root is on."""
    number = os.stat("/").st_dev
    path = os.path.realpath(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    return "/dev/" + path.split("/block/")[1].split("/")[0]


def places(raw: int) -> "list[int]":
    """Offsets, in bytes."""
    size = os.lseek(raw, 0, os.SEEK_END)
    return [
        (size * 3 // 4 + (size // 4 - CHUNK) * number // PLACES) & ~4095 for number in range(PLACES)
    ]


def memory() -> "set[str]":
    """All of the machine's memory, through the kernel's own map of it (an ELF core, see proc(5)). A
    segment without a physical address is no memory.
    """
    found = set()
    with open("/proc/kcore", "rb", buffering=0) as core:
        head = core.read(64)
        first, size, count = (
            struct.unpack_from("<Q", head, 32)[0],
            *struct.unpack_from("<HH", head, 54),
        )
        core.seek(first)
        table = core.read(size * count)
        for number in range(count):
            kind, _, at, _, physical, length, _, _ = struct.unpack_from(
                "<IIQQQQQQ", table, number * size
            )
            if kind != 1 or physical == 2**64 - 1:
                continue
            before = b""
            for start in range(0, length, CHUNK):
                core.seek(at + start)
                try:
                    chunk = core.read(min(CHUNK, length - start))
                except OSError:  # a hole
                    chunk = b""
                found |= marks(before + chunk)
                before = chunk[-LONGEST:]
    return found


def search() -> "dict[str, bool]":
    """Where marks are."""
    seen, root = memory(), disk()
    others = [
        f"/dev/{name}"
        for name in os.listdir("/sys/block")
        if not name.startswith(("loop", "ram")) and f"/dev/{name}" != root
    ]
    page, raw_marks = mmap.mmap(-1, 4096), set()
    raw = os.open(root, os.O_RDONLY | os.O_DIRECT)
    for at in places(raw):
        os.preadv(raw, [page], at)
        raw_marks |= marks(page[:])
    os.close(raw)
    with open("/proc/swaps") as file:
        swaps = [line.split()[0] for line in file.readlines()[1:]]
    return {
        "files": any(map(marks_of, FILES)),
        "files in memory (/dev/shm, /run, /tmp)": any(map(marks_of, VOLATILE)),
        "the raw disk": bool(raw_marks),
        "memory": "memory" in seen,
        "the page cache": "cached" in seen,
        "a process's environment": any(map(marks_of, glob.glob("/proc/[0-9]*/environ"))),
        "swap": any(map(marks_of, swaps)),
        "the seed": any(map(marks_of, others)),
    }


def write(path: str, content: bytes) -> None:
    """To the disk, not only into the page cache."""
    with open(path, "wb") as file:
        file.write(content)
        os.fsync(file.fileno())


def leave(token: str) -> bytes:
    """Marks in every place that `search` looks in; that of the seed is there already: it is in this
    command. Returns the one in memory.
    """
    for path in [*FILES, *VOLATILE]:
        write(path, mark("file", token))
    write(CACHED, mark("cached", token) * 1000)
    with open(CACHED, "rb") as file:
        file.read()
    swap = bytearray(mark("swap", token).ljust(4096, b"\0") * 64)
    swap[:4096] = bytes(1024) + struct.pack("<II", 1, 63) + bytes(4096 - 1032 - 10) + b"SWAPSPACE2"
    write(SWAP, bytes(swap))
    os.chmod(SWAP, 0o600)
    if ctypes.CDLL(None, use_errno=True).swapon(SWAP.encode(), 0):
        raise OSError(ctypes.get_errno(), "swapon")
    subprocess.Popen(["sleep", "infinity"], env={"RESIDUE": mark("environment", token).decode()})
    page = mmap.mmap(-1, 4096)
    page[:] = mark("raw", token).ljust(4096, b"\0")
    raw = os.open(disk(), os.O_RDWR | os.O_DIRECT)
    for at in places(raw):  # over whatever is there: this machine has no future
        os.pwritev(raw, [page], at)
    os.close(raw)
    return mark("memory", token) * 100_000


def main() -> None:
    """The command line."""
    kept = leave(sys.argv[2]) if sys.argv[1] == "leave" else b""
    print(json.dumps(search()))
    del kept


if __name__ == "__main__":
    main()
