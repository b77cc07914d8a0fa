"""What a machine of `make cache CACHE=--machine` does, in turns: the same bytes through bare
connections and through the cache. It prints whose turn it is, and goes on when that one answers.

Run with `python3 -c`, with the place, the bytes and the number of turns.
"""

import json
import os
import socket
import sys
import threading
import time

host, port, size, runs = sys.argv[1], *map(int, sys.argv[2:])
MIB, PART, CHUNK, AT_ONCE, API = 1 << 20, 32 << 20, 64 << 10, 4, "/_apis/artifactcache"
LAST = b"0\r\n\r\n"
chunks = b"".join(b"%x\r\n%b\r\n" % (CHUNK, os.urandom(CHUNK)) for _ in range(MIB // CHUNK))
into = bytearray(MIB)


def connected():
    return socket.create_connection((host, port), timeout=300)


def line(connection):
    text = b""
    while not text.endswith(b"\n"):
        text += connection.recv(1) or sys.exit("it ended early")
    return text


def answer(connection):
    status, length = int(line(connection).split()[1]), 0
    while (header := line(connection)) != b"\r\n":
        if header.lower().startswith(b"content-length:"):
            length = int(header.split(b":")[1])
    return status, length


def exact(connection, left):
    with memoryview(into) as view:
        while left:
            left -= connection.recv_into(view[:left]) or sys.exit("it ended early")


def pour(connection, left):
    """As Node.js sends a file, what actions/cache does: in chunks of 64 KiB."""
    for _ in range(left // MIB):
        connection.sendall(chunks)
    connection.sendall(LAST)


def framed(left):
    """How many bytes that is."""
    return left // MIB * len(chunks) + len(LAST)


def ask(head, body=b""):
    with connected() as connection:
        head += f" HTTP/1.1\r\nhost: cache\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        _, length = answer(connection)
        text = b""
        while len(text) < length:
            text += connection.recv(length - len(text)) or sys.exit("it ended early")
        return json.loads(text) if text else {}


def bare_up(parts):
    for begin, end in parts:
        with connected() as connection:
            connection.sendall(b"up   %20d\n" % framed(end - begin))
            pour(connection, end - begin)
            line(connection)


def bare_down():
    with connected() as connection:
        connection.sendall(b"down %20d\n" % size)
        exact(connection, size)


def cache_up(id_):
    def send(parts):
        for begin, end in parts:
            with connected() as connection:
                head = f"PATCH {API}/caches/{id_} HTTP/1.1\r\nhost: cache\r\n"
                head += "transfer-encoding: chunked\r\n"
                head += f"content-range: bytes {begin}-{end - 1}/*\r\n\r\n"
                connection.sendall(head.encode())
                pour(connection, end - begin)
                assert answer(connection)[0] == 200

    return send


def at_once(send):
    parts = [(begin, min(begin + PART, size)) for begin in range(0, size, PART)]
    shares = [parts[each::AT_ONCE] for each in range(AT_ONCE)]
    threads = [threading.Thread(target=send, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def turn(whose):
    print(whose, flush=True)
    while True:
        try:
            with connected() as connection:
                connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
                if (b"bare" in line(connection)) == (whose == "bare"):
                    return
        except (OSError, SystemExit):
            pass
        time.sleep(0.5)


def took(do):
    began = time.monotonic()
    do()
    return time.monotonic() - began


def cache_save(key):
    asked = json.dumps({"key": key, "version": "v", "cacheSize": size})
    id_ = ask(f"POST {API}/caches", asked.encode())["cacheId"]
    at_once(cache_up(id_))
    ask(f"POST {API}/caches/{id_}", json.dumps({"size": size}).encode())


def cache_down(at):
    with connected() as connection:
        connection.sendall(f"GET {at} HTTP/1.1\r\nhost: cache\r\n\r\n".encode())
        assert answer(connection) == (200, size)
        exact(connection, size)


turn("bare")
at_once(bare_up)  # while the machine is still busy with its own start
bare_down()
for number in range(runs):
    turn("bare")
    seconds = {"bare up": took(lambda: at_once(bare_up)), "bare down": took(bare_down)}
    turn("cache")
    print("begin", flush=True)
    key = f"key-{number}"
    seconds["cache up"] = took(lambda: cache_save(key))  # noqa: B023 — it is called at once
    print("up", flush=True)
    where = ask(f"GET {API}/cache?keys={key}&version=v")["archiveLocation"]
    at = where[where.index(API) :]
    seconds["cache down"] = took(lambda: cache_down(at))  # noqa: B023 — so is this
    print("down", flush=True)
    print(json.dumps(seconds), flush=True)
