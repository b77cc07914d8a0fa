"""Listens on one interface: `python -m tests.net.sniff INTERFACE SECONDS` prints "listening", then a JSON list of the marks that it saw."""

from __future__ import annotations

import json
import re
import socket
import sys
import time

MARK = re.compile(rb"<mark ([a-z0-9 -]+)>")


def main() -> None:
    """Until the time is over."""
    interface, seconds = sys.argv[1], float(sys.argv[2])
    seen: dict[str, None] = {}
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as raw:  # ETH_P_ALL
        raw.bind((interface, 0))
        print("listening", flush=True)
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            raw.settimeout(left)
            try:
                content, (_, _, kind, *_) = raw.recvfrom(65536)
            except TimeoutError:
                break
            if kind != socket.PACKET_OUTGOING:
                seen |= {found.decode(): None for found in MARK.findall(content)}
    print(json.dumps(list(seen)))


if __name__ == "__main__":
    main()
