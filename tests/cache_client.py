"""The clients of `make cache`, each in a process that loads nothing else."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Sequence
from http.client import HTTPConnection

API, MIB, CHUNK = "/_apis/artifactcache", 1 << 20, 64 * 1024


def send(address: str, port: int, id_: int, parts: Sequence[tuple[int, int]], file: str) -> None:
    """Some parts of an upload, one after the other, as one of its client's connections does."""
    with open(file, "rb") as content:
        for begin, end in parts:
            connection = HTTPConnection("127.0.0.1", port, source_address=(address, 0))
            connection.putrequest("PATCH", f"{API}/caches/{id_}")
            connection.putheader("Content-Range", f"bytes {begin}-{end - 1}/*")
            connection.putheader("Transfer-Encoding", "chunked")
            connection.endheaders()
            content.seek(begin)
            left = end - begin
            while left:
                data = content.read(min(CHUNK, left))
                left -= len(data)
                connection.send(b"%x\r\n%b\r\n" % (len(data), data))
            connection.send(b"0\r\n\r\n")
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            connection.close()


def receive(address: str, port: int, path: str) -> None:
    """An archive, all of it, into nothing."""
    connection = HTTPConnection("127.0.0.1", port, source_address=(address, 0))
    connection.request("GET", path)
    answer = connection.getresponse()
    assert answer.status == 200
    into, read = bytearray(MIB), 0
    while count := answer.readinto(into):
        read += count
    assert read == int(answer.headers["content-length"])
    connection.close()


def pour(port: int, size: int) -> None:
    """So many bytes into a connection."""
    data = os.urandom(MIB)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(size // MIB):
            connection.sendall(data)


CALLS: dict[str, Callable[..., None]] = {"send": send, "receive": receive, "pour": pour}

if __name__ == "__main__":
    _name, *_args = json.loads(sys.argv[1])
    CALLS[_name](*_args)
