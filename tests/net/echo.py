"""Listens on TCP and UDP, and answers whatever comes: `python -m tests.net.echo '[["192.0.2.1",
80]]'`.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys


def main() -> None:
    """Until killed."""
    waiting = selectors.DefaultSelector()
    for address, port in json.loads(sys.argv[1]):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, port))
            if kind is socket.SOCK_STREAM:
                listener.listen(64)
            waiting.register(listener, selectors.EVENT_READ)
    print("listening", flush=True)
    while True:
        for key, _ in waiting.select():
            listener = key.fileobj
            assert isinstance(listener, socket.socket)
            if listener.type == socket.SOCK_STREAM:
                listener.accept()[0].close()
            else:
                listener.sendto(b"echo", listener.recvfrom(2048)[1])


if __name__ == "__main__":
    main()
