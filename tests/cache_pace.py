"""`make cache`: a gigabyte into the cache and out of it over loopback, as actions/cache does it
(four parts of 32 MiB at the same time, in chunks; one connection down), beside the same bytes
through a bare connection; twenty machines at once; and what the service takes: memory, and seconds
of a processor for each gigabyte.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.caching import Served, path_of, served
from vmrunner.cache.rights import Rights

MIB = 1 << 20
SIZE, PART, AT_ONCE = 1024 * MIB, 32 * MIB, 4
CALL = (sys.executable, "-m", "tests.cache_client")
MACHINES, SMALL = 20, 64 * MIB
MOST_MEMORY = 100 * MIB
MAIN, HOME = "refs/heads/main", "127.0.0.1"


def at_once(calls: Sequence[tuple[Any, ...]]) -> None:
    """Each call of a function here in a process of its own, as a client's would be."""
    processes = [subprocess.Popen([*CALL, json.dumps(call)]) for call in calls]
    for process in processes:
        assert process.wait() == 0


def up(running: Served, key: str, size: int, file: str, address: str = HOME) -> float:
    """Seconds that it takes."""
    client = running.client(address)
    began = time.perf_counter()
    id_ = client.reserve(key, size).json["cacheId"]
    parts = [(begin, min(begin + PART, size)) for begin in range(0, size, PART)]
    at_once(
        [
            ("send", address, running.port, id_, parts[each::AT_ONCE], file)
            for each in range(AT_ONCE)
        ]
    )
    assert client.commit(id_, size).status == 200
    return time.perf_counter() - began


def archive(running: Served, address: str, key: str) -> str:
    """Where it is."""
    return path_of(running.client(address).lookup(key).json["archiveLocation"])


def down(running: Served, key: str) -> float:
    """Seconds that it takes."""
    began = time.perf_counter()
    at_once([("receive", HOME, running.port, archive(running, HOME, key))])
    return time.perf_counter() - began


def bare(size: int) -> float:
    """Seconds that so many bytes take through a connection of loopback, from process to process."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        began = time.perf_counter()
        process = subprocess.Popen([*CALL, json.dumps(("pour", listening.getsockname()[1], size))])
        connection, _ = listening.accept()
        into = bytearray(MIB)
        with connection:
            while connection.recv_into(into):
                pass
        process.wait()
        return time.perf_counter() - began


def memory(running: Served) -> int:
    """The most that the service has had, in bytes."""
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    assert found
    return int(found[1]) * 1024


def work(running: Served) -> float:
    """Seconds of a processor that the service has taken."""
    return processor_seconds(running.process.pid)


def processor_seconds(pid: int) -> float:
    """What a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def many(running: Served, file: str) -> float:
    """Seconds in which twenty machines save and load at the same time."""
    addresses = [f"127.0.1.{number}" for number in range(MACHINES)]
    began = time.perf_counter()
    ids = {at: running.client(at).reserve(at, SMALL).json["cacheId"] for at in addresses}
    half = ((0, SMALL // 2), (SMALL // 2, SMALL))
    at_once(
        [("send", at, running.port, ids[at], [part], file) for at in addresses for part in half]
    )
    for at in addresses:
        assert running.client(at).commit(ids[at], SMALL).status == 200
    at_once(
        [
            (
                "receive",
                at,
                running.port,
                path_of(running.client(at).lookup(at).json["archiveLocation"]),
            )
            for at in addresses
        ]
    )
    return time.perf_counter() - began


def main() -> None:
    """Measure; the last line is the figures as JSON; exits non-zero where it takes too much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=SIZE // MIB, help="how much, in MiB")
    options = parser.parse_args()
    size, folder = options.mib * MIB, Path(tempfile.mkdtemp(prefix="vmrunner-cache-", dir="/cache"))
    jobs = {
        at: Rights(f"org/{at}", MAIN, (MAIN,))
        for at in ("127.0.0.1", *(f"127.0.1.{number}" for number in range(MACHINES)))
    }
    try:
        file = folder / "content"
        with file.open("wb") as content:
            for _ in range(max(size, SMALL) // MIB):
                content.write(os.urandom(MIB))
        with served(folder / "cache", jobs) as running:
            idle, marks = memory(running), [work(running)]
            times = {"bare": bare(size), "up": up(running, "k", size, str(file))}
            marks.append(work(running))
            times |= {"down": down(running, "k")}
            marks.append(work(running))
            times |= {"bare again": bare(size)}
            one = memory(running)
            together = many(running, str(file))
            most = memory(running)
    finally:
        shutil.rmtree(folder)
    rates = {name: round(size / MIB / seconds) for name, seconds in times.items()}
    rates["20 machines"] = round(2 * MACHINES * SMALL / MIB / together)
    for name, rate in rates.items():
        print(f"{name:12} {rate:6} MiB/s")
    cpu = {
        name: round((after - before) * SIZE / size, 2)
        for name, before, after in zip(("up", "down"), marks, marks[1:], strict=False)
    }
    print(f"seconds of a processor for a gigabyte: {cpu['up']} up, {cpu['down']} down")
    print(f"memory: {idle // MIB} MiB idle, {one // MIB} with one, {most // MIB} with {MACHINES}")
    print(
        json.dumps(
            {
                "mib": size // MIB,
                "mib_per_second": rates,
                "cpu_seconds_per_gib": cpu,
                "memory_mib": {"idle": idle // MIB, "one": one // MIB, "many": most // MIB},
            }
        )
    )
    if most > MOST_MEMORY:
        sys.exit(1)


if __name__ == "__main__":
    main()
