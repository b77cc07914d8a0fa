"""The service at its port, asked from several addresses, each of which is a machine with a job of
its own: what must not be, beside the same request by a machine that may.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from http.client import IncompleteRead
from itertools import count, cycle
from pathlib import Path

import pytest

from tests.caching import API, Answer, Client, Served, path_of, served
from tests.forge.gitea import until
from vmrunner.cache import server
from vmrunner.cache.blobs import BLOCK
from vmrunner.cache.rights import JobFacts, rights
from vmrunner.errors import ConfigError

PUSH = ("push", None, "main", False)
JOBS = {
    "127.0.0.1": JobFacts("org/tool", "refs/heads/main", *PUSH),
    "127.0.0.2": JobFacts("org/tool", "refs/heads/topic", *PUSH),
    "127.0.0.3": JobFacts("evil/tool", "refs/heads/main", *PUSH),
    "127.0.0.4": JobFacts("org/tool", "refs/pull/3/head", "pull_request", "main", "main", True),
    "127.0.0.5": JobFacts("org/tool", "refs/pull/4/head", "pull_request", "main", "main", False),
    "127.0.0.6": JobFacts("org/tool", "refs/heads/main", "pull_request_target", None, "main", True),
    "127.0.0.7": JobFacts("org/library", "refs/heads/main", *PUSH),
    "127.0.0.8": JobFacts("org/tool", "refs/heads/main", *PUSH),
    # Nothing is known of 127.0.0.9: its job is over, or it never had one.
}
GROUPS = {"ours": ("org/friend", "org/library")}
MAIN, TOPIC, STRANGER, FORK, PULL, TARGET, LIBRARY, AGAIN, NOBODY = (
    f"127.0.0.{number}" for number in range(1, 10)
)
FRIEND = "127.0.0.10"
JOBS[FRIEND] = JobFacts("org/friend", "refs/heads/main", *PUSH)
_numbers = count()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("cache") / "cache"
    with served(folder, {at: rights(facts, GROUPS) for at, facts in JOBS.items()}) as running:
        yield running


@pytest.fixture
def key() -> str:
    """One that no other test has."""
    return f"key-{next(_numbers)}-"


@pytest.mark.parametrize(
    ("writer", "reader", "reads"),
    [
        (MAIN, MAIN, True),
        (MAIN, AGAIN, True),
        (MAIN, TOPIC, True),
        (MAIN, FORK, True),
        (MAIN, PULL, True),
        (MAIN, TARGET, True),
        (MAIN, STRANGER, False),
        (MAIN, LIBRARY, False),
        (MAIN, NOBODY, False),
        (TOPIC, TOPIC, True),
        (TOPIC, MAIN, False),
        (TOPIC, PULL, False),
        (TOPIC, FORK, False),
        (FORK, FORK, True),  # its own pull request's next run
        (FORK, MAIN, False),
        (FORK, TOPIC, False),
        (FORK, PULL, False),
        (FORK, TARGET, False),
        (PULL, PULL, True),
        (PULL, MAIN, False),
        (PULL, FORK, False),
        (STRANGER, STRANGER, True),
        (STRANGER, MAIN, False),
        (STRANGER, LIBRARY, False),
        (LIBRARY, FRIEND, True),
        (FRIEND, LIBRARY, True),
        (LIBRARY, MAIN, False),
    ],
)
def test_who_reads_what_who_wrote(
    service: Served, key: str, writer: str, reader: str, reads: bool
) -> None:
    assert service.client(writer).save(f"{key}1", b"written") == 200
    assert service.client(reader).load(f"{key}1", key) == (b"written" if reads else None)
    # And by the archive's own address, which is no secret.
    at = path_of(service.client(writer).lookup(f"{key}1").json["archiveLocation"])
    assert service.client(writer).ask("GET", at).body == b"written"
    answer = service.client(reader).ask("GET", at)
    assert (answer.status == 200, answer.body == b"written") == (reads, reads)


@pytest.mark.parametrize(("who", "status"), [(TARGET, 403), (NOBODY, 403), (MAIN, 201)])
def test_who_may_not_write(service: Served, key: str, who: str, status: int) -> None:
    answer = service.client(who).reserve(key, 1)
    assert answer.status == status
    if status == 403:
        assert answer.json["message"].endswith(".")


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-For": MAIN},
        {"Forwarded": f"for={MAIN}"},
        {"X-Real-IP": MAIN},
        {"Authorization": "Bearer of-another-job"},
        {"Host": "org.example"},
        {"X-Forwarded-For": f"{MAIN}, {MAIN}", "X-Forwarded-Proto": "https"},
    ],
)
def test_forged_headers_change_nothing(service: Served, key: str, headers: dict[str, str]) -> None:
    assert service.client(MAIN).save(key, b"secret") == 200
    for address, body in ((STRANGER, None), (NOBODY, None), (MAIN, b"secret")):
        client = Client(service.port, address, headers)
        assert client.load(key) == body
    # Nor where the archive is.
    found = Client(service.port, MAIN, headers).lookup(key).json
    assert found["archiveLocation"].startswith(f"http://127.0.0.1:{service.port}{API}/artifacts/")


@pytest.mark.parametrize("other", [AGAIN, TOPIC, STRANGER, NOBODY])
def test_an_upload_is_its_machines_own(service: Served, key: str, other: str) -> None:
    client, thief = service.client(MAIN), service.client(other)
    id_ = client.reserve(key, 4).json["cacheId"]
    refused = {thief.part(id_, b"evil").status, thief.commit(id_, 4).status}
    assert refused <= {403, 404}
    assert client.part(id_, b"good").status == 200
    assert thief.commit(id_, 4).status in {403, 404}
    assert client.find(key) is None
    assert client.commit(id_, 4).status == 200
    assert client.load(key) == b"good"


def test_a_replayed_upload(service: Served, key: str) -> None:
    client = service.client(MAIN)
    id_ = client.reserve(key, 4).json["cacheId"]
    assert (client.part(id_, b"good").status, client.commit(id_, 4).status) == (200, 200)
    assert client.part(id_, b"evil").status == 409
    assert client.commit(id_, 4).status == 200  # the answer may have been lost; nothing changes
    assert client.commit(id_, 3).status == 409
    assert client.save(key, b"evil") == 409
    assert client.load(key) == b"good"


def test_two_uploads_of_one_key(service: Served, key: str) -> None:
    first, second = service.client(MAIN), service.client(AGAIN)
    id_ = first.reserve(key, 1).json["cacheId"]
    assert second.reserve(key, 1).status == 409
    assert second.reserve(key, 1, version="another").status == 201
    assert first.part(id_, b"1").status == 200
    assert first.commit(id_, 1).status == 200
    assert second.reserve(key, 1).status == 409
    assert second.load(key) == b"1"


def test_half_an_upload(service: Served, key: str) -> None:
    client = service.client(MAIN)
    id_ = client.reserve(key, 4).json["cacheId"]
    assert client.part(id_, b"go").status == 200
    assert client.find(key) is None
    assert client.commit(id_, 4).status == 400
    assert client.find(key) is None
    assert client.save(key, b"good") == 200
    assert client.load(key) == b"good"


def test_a_machine_after_its_job(service: Served, key: str) -> None:
    client = service.client(MAIN)
    assert client.save(key, b"x") == 200
    at = path_of(client.lookup(key).json["archiveLocation"])
    id_ = client.reserve(f"{key}2", 1).json["cacheId"]
    service.allow({at: rights(facts, GROUPS) for at, facts in JOBS.items() if at != MAIN})
    try:
        for answer in (
            client.lookup(key),
            client.ask("GET", at),
            client.reserve(f"{key}3", 1),
            client.part(id_, b"x"),
            client.commit(id_, 1),
        ):
            assert answer.status == 403
    finally:
        service.allow({at: rights(facts, GROUPS) for at, facts in JOBS.items()})
    assert client.load(key) == b"x"


@pytest.mark.parametrize(
    "name", ["../../../../etc/passwd", "/etc/passwd", "a/../../b", "%2e%2e%2f", "c:\\x", "~", ".."]
)
def test_a_key_never_becomes_a_path(service: Served, key: str, name: str) -> None:
    client, name = service.client(MAIN), f"{name}{key}"
    before = set(service.folder.parent.iterdir())
    assert client.save(name, name.encode()) == 200
    assert client.load(name) == name.encode()
    assert set(service.folder.parent.iterdir()) == before
    assert {each.name for each in service.folder.iterdir()} <= {
        "blobs",
        "uploads",
        "lock",
        *(f"index.sqlite{end}" for end in ("", "-wal", "-shm")),
    }


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", f"{API}/artifacts/../../../etc/passwd", 404),
        ("GET", f"{API}/artifacts/..%2f..%2findex.sqlite", 404),
        ("GET", f"{API}/artifacts/{'9' * 16}", 404),
        ("GET", f"{API}/artifacts/{'9' * 5000}", 404),
        ("GET", f"{API}/artifacts/-1", 404),
        ("GET", f"{API}/cache?keys=&version=v", 400),
        ("GET", f"{API}/cache?keys=k&version=", 400),
        ("GET", f"{API}/cache?keys={'x' * 600}&version=v", 400),
        ("GET", f"{API}/cache?keys={','.join(map(str, range(10_000)))}&version=v", 400),
        ("GET", f"{API}/cache?keys=%ff%00&version=v", 400),
        ("GET", f"{API}/caches?key=k", 405),
        ("POST", f"{API}/caches", 400),
        ("POST", f"{API}/caches/1", 400),
        ("PATCH", f"{API}/caches/1", 400),
        ("DELETE", f"{API}/caches/1", 405),
        ("POST", f"{API}/clean", 200),
        ("GET", "/", 404),
    ],
)
def test_what_is_refused(service: Served, method: str, path: str, status: int) -> None:
    assert service.client(MAIN).ask(method, path).status == status
    assert service.client(MAIN).find("none") is None


def test_ten_thousand_keys_push_out_only_ones_own(tmp_path: Path) -> None:
    jobs = {at: rights(JOBS[at], {}) for at in (MAIN, STRANGER)}
    with served(tmp_path / "cache", jobs, entries_per_repository=20) as running:
        assert running.client(MAIN).save("k", b"mine") == 200
        for number in range(30):
            assert running.client(STRANGER).save(f"k{number}", b"flood") == 200
        assert running.client(STRANGER).find("k9", "k29") == "k29"
        assert running.client(MAIN).load("k") == b"mine"


def test_parts_of_an_archive(service: Served, key: str) -> None:
    client, whole = service.client(MAIN), os.urandom(2 * BLOCK + 5)
    assert client.save(key, whole) == 200
    at = path_of(client.lookup(key).json["archiveLocation"])

    def part(asked: str, method: str = "GET") -> Answer:
        return client.ask(method, at, headers={"Range": asked})

    for asked, begin, end in (
        ("bytes=0-0", 0, 1),
        (f"bytes={BLOCK - 1}-{BLOCK}", BLOCK - 1, BLOCK + 1),
        (f"bytes={2 * BLOCK}-", 2 * BLOCK, len(whole)),
        ("bytes=-7", len(whole) - 7, len(whole)),
    ):
        answer = part(asked)
        assert (answer.status, answer.body) == (206, whole[begin:end])
        assert answer.headers["content-range"] == f"bytes {begin}-{end - 1}/{len(whole)}"
    assert (part("bytes=0-0,5-6").status, part("bytes=0-0,5-6").body) == (200, whole)
    assert (answer := part(f"bytes={len(whole)}-")).status == 416
    assert answer.headers["content-range"] == f"bytes */{len(whole)}"
    answer = client.ask("HEAD", at)
    assert (answer.status, answer.headers["content-length"]) == (200, str(len(whole)))


def test_parts_that_come_at_once_and_in_pieces(service: Served, key: str) -> None:
    client, whole = service.client(MAIN), os.urandom(8 * BLOCK + 3)
    id_ = client.reserve(key, len(whole)).json["cacheId"]
    length, answers = 3 * BLOCK - 1, []

    def send(begin: int) -> None:
        data = whole[begin : begin + length]
        pieces = (data[at : at + 1000] for at in range(0, len(data), 1000))  # as chunks
        headers = {"Content-Range": f"bytes {begin}-{begin + len(data) - 1}/*"}
        answers.append(client.ask("PATCH", f"{API}/caches/{id_}", pieces, headers).status)

    threads = [
        threading.Thread(target=send, args=(begin,))
        for begin in (*range(0, len(whole), length), length)  # one of them is tried again
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * len(threads)
    assert client.commit(id_, len(whole)).status == 200
    assert client.load(key) == whole


@pytest.mark.parametrize("length", [3, 5])
def test_a_part_that_is_not_as_long_as_it_says(service: Served, key: str, length: int) -> None:
    client = service.client(MAIN)
    id_ = client.reserve(key, 9).json["cacheId"]
    answer = client.ask(
        "PATCH", f"{API}/caches/{id_}", b"x" * length, {"Content-Range": "bytes 0-3/*"}
    )
    assert answer.status == 400
    assert client.commit(id_, 4).status == 400
    assert client.find(key) is None


def corrupt(folder: Path, at: int) -> None:
    """The newest content loses a byte."""
    blob = max(folder.glob("blobs/??/*"), key=lambda each: each.stat().st_mtime_ns)
    with blob.open("r+b") as file:
        file.seek(at)
        was = file.read(1)
        file.seek(at)
        file.write(bytes([was[0] ^ 1]))


@pytest.mark.parametrize("at", [0, BLOCK + 1, 3 * BLOCK])
def test_a_corrupt_entry_is_not_served(service: Served, key: str, at: int) -> None:
    client, whole = service.client(MAIN), os.urandom(3 * BLOCK + 1)
    assert client.save(key, whole) == 200
    assert client.load(key) == whole
    corrupt(service.folder, at)
    found = path_of(client.lookup(key).json["archiveLocation"])
    if at < BLOCK:  # before anything was said
        assert client.ask("GET", found).status == 404
    else:  # it is cut off
        with pytest.raises(IncompleteRead) as error:
            client.ask("GET", found)
        assert whole.startswith(error.value.partial)
    assert client.find(key) is None
    log = service.folder.with_suffix(".log").read_text()
    assert f"A cache entry of org/tool is removed, '{key}'" in log
    assert client.save(key, whole) == 200
    assert client.load(key) == whole


def test_connections_that_say_nothing_keep_nobody_out(service: Served, key: str) -> None:
    post = b"POST /_apis/artifactcache/caches HTTP/1.1\r\nHost: x\r\n"
    sent: tuple[bytes, ...] = (
        b"",
        b"G",
        b"GET /_apis/artifactcache/cache?keys=k&version=v HTTP/1.1\r\nHost: x\r\n",
        post + b"Content-Length: 99999999\r\n\r\n{",
        post + b"Transfer-Encoding: chunked\r\n\r\n5",
        b"\0" * 100_000,
        b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000,
    )
    with ExitStack() as stack:
        for number in range(100):
            other = stack.enter_context(socket.socket())
            other.settimeout(10)
            try:
                other.bind((STRANGER, 0))
                other.connect(("127.0.0.1", service.port))
                other.sendall(sent[number % len(sent)])
            except OSError:
                continue  # it is one of too many
        assert service.client(MAIN).save(key, b"x") == 200
        assert service.client(MAIN).load(key) == b"x"


def said(service: Served, sent: bytes, at: str = MAIN) -> bytes:
    """All that is answered to these bytes, after which nothing more is said."""
    answer = b""
    with (
        socket.create_connection(("127.0.0.1", service.port), 20, (at, 0)) as other,
        suppress(ConnectionError),  # of what comes too much not all is read
    ):
        other.sendall(sent)
        with suppress(OSError):  # it may be ended already
            other.shutdown(socket.SHUT_WR)
        while data := other.recv(65536):
            answer += data
    return answer


ASK = b"GET /_apis/artifactcache/cache?keys=none&version=v HTTP/1.1\r\nHost: x\r\n"
RESERVE = b"POST /_apis/artifactcache/caches HTTP/1.1\r\nHost: x\r\n"
CHUNKED = RESERVE + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (ASK + b"\r\n", [204]),
        ((ASK + b"\r\n") * 3, [204, 204, 204]),  # at once
        (ASK + b"Connection: close\r\n\r\n" + ASK + b"\r\n", [204]),
        (RESERVE + b"Content-Length: 2\r\n\r\n{}" + ASK + b"\r\n", [400, 204]),
        (RESERVE + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", [400]),
        (RESERVE + b"Transfer-Encoding: chunked\r\n\r\nno chunk\r\n", [400]),
        (CHUNKED + b"1;x=y\r\n{\r\n01 \r\n}\r\n000\r\nX: y\r\n\r\n" + ASK + b"\r\n", [400, 204]),
        *[
            (CHUNKED + wrong + ASK + b"\r\n", [400])
            for wrong in (
                b"1\r\n{}\r\n0\r\n\r\n",
                b"2\r\n{}0\r\n\r\n",
                b"2\n{}\r\n0\r\n\r\n",
                b"2\r\n{}\r\n\r\n",
                b"0x2\r\n{}\r\n0\r\n\r\n",
                b" 2\r\n{}\r\n0\r\n\r\n",
                b"+2\r\n{}\r\n0\r\n\r\n",
                b"2\r\r\n{}\r\n0\r\n\r\n",
                b"2;" + b"x" * 5000 + b"\r\n{}\r\n0\r\n\r\n",
                b"0\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
                b"2\r\n{}\r\n0\r\n",  # what comes next is none of it
            )
        ],
        # Its body is refused before it is sent: there is none.
        (
            RESERVE.replace(b"caches ", b"other ")
            + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n",
            [404],
        ),
        (
            RESERVE + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
            [400],
        ),  # it has not waited
        (RESERVE + b"Content-Length: 99999\r\n\r\n" + b" " * 99999, [413]),
        (RESERVE + b"Content-Length: 99999\r\n\r\n" + b" " * 99999 + ASK + b"\r\n", [413, 204]),
        (RESERVE + b"Content-Length: 0\r\n\r\n" + ASK + b"\r\n", [400, 204]),
        (ASK + b"Content-Length: 2\r\n\r\n{}" + ASK + b"\r\n", [204, 204]),
        (ASK + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}" + ASK + b"\r\n", [204]),
        # What is no chunk is no second request either, whatever length is said as well.
        (
            RESERVE
            + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
            + ASK
            + b"\r\n",
            [400, 204],
        ),
        (b"nothing\r\n\r\n" + ASK + b"\r\n", [400]),
        (b"GET / HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 0\r\n\r\n", [400]),
        (ASK.replace(b"1.1", b"1.0") + b"\r\n" + ASK + b"\r\n", [204]),
    ],
)
def test_one_request_after_the_other(service: Served, sent: bytes, statuses: list[int]) -> None:
    answers = said(service, sent).split(b"HTTP/1.1 ")[1:]
    assert [int(each[:3]) for each in answers] == statuses


def test_chunks_are_put_together_wherever_they_are_cut(service: Served, key: str) -> None:
    """Bytes come in pieces of any size, which says nothing of where chunks end."""
    data, sizes = os.urandom(3000), cycle((1, 400, 17, 2, 255, 3, 64))
    for most in (1, 2, 3, 7, 100):
        name = f"{key}-{most}"
        id_ = service.client(MAIN).reserve(name, len(data)).json["cacheId"]
        head = f"PATCH {API}/caches/{id_} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
        sent = f"{head}Content-Range: bytes 0-{len(data) - 1}/*\r\n\r\n".encode()
        at = 0
        while at < len(data):
            chunk = data[at : at + next(sizes)]
            sent, at = sent + b"%X\r\n%b\r\n" % (len(chunk), chunk), at + len(chunk)
        sent += b"0\r\n\r\n"
        with socket.create_connection(("127.0.0.1", service.port), 20, (MAIN, 0)) as other:
            other.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while sent:
                other.sendall(sent[:most])
                sent = sent[most:]
            assert other.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert service.client(MAIN).commit(id_, len(data)).status == 200
        assert service.client(MAIN).load(name) == data


def test_who_waits_to_be_asked_for_a_body_is_asked(service: Served) -> None:
    with socket.create_connection(("127.0.0.1", service.port), 20, (MAIN, 0)) as other:
        other.sendall(RESERVE + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert other.recv(65536).startswith(b"HTTP/1.1 100 ")
        other.sendall(b"{}")
        assert other.recv(65536).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\x16\x03\x01\x02\x00",  # another protocol
        b"GET / HTTP/x\r\n\r\n",
        ASK[:-11] + b"\r\n",  # without a Host
        ASK + b"no colon\r\n\r\n",
        ASK + b"X: a\x00b\r\n\r\n",
        ASK + b"X: " + b"x" * 200_000 + b"\r\n\r\n",
        ASK.replace(b"?", b"?" + b"&".join([b"a=1"] * 200) + b"&") + b"\r\n",
        RESERVE + b"Content-Length: -1\r\n\r\n",
        RESERVE + b"Content-Length: " + b"1" * 5000 + b"\r\n\r\n",
        RESERVE + b"Content-Length: 2\r\nTransfer-Encoding: gzip\r\n\r\n{}",
        RESERVE + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
        RESERVE + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 200_000,
        RESERVE + b"Content-Length: 9\r\n\r\n{}",  # and no more
    ],
)
def test_what_is_no_request_is_refused_and_harms_nobody(service: Served, sent: bytes) -> None:
    statuses = [int(each[:3]) for each in said(service, sent).split(b"HTTP/1.1 ")[1:]]
    assert (
        statuses == [] if not sent else len(statuses) <= 1 and set(statuses) <= {400, 431, 501, 505}
    )
    assert service.client(MAIN).find("none") is None


def test_a_chunk_without_end_fills_no_memory(service: Served, key: str) -> None:
    """The size that is said is taken for nothing but a number."""
    id_ = service.client(MAIN).reserve(key).json["cacheId"]
    before = memory(service.process.pid)
    with socket.create_connection(("127.0.0.1", service.port), 20, (MAIN, 0)) as other:
        other.sendall(
            f"PATCH {API}/caches/{id_} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
            "Content-Range: bytes 0-999999999/*\r\n\r\nffffffffff\r\n".encode()
        )
        for _ in range(64):
            other.sendall(bytes(1 << 20))
        assert memory(service.process.pid) - before < 16 << 20


def memory(pid: int) -> int:
    """What a process has of it, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_refusal_is_heard_by_who_is_still_sending(service: Served, key: str) -> None:
    client, data = service.client(MAIN), os.urandom(4 << 20)
    assert client.part(1, data).status == 404
    id_ = client.reserve(key, 4).json["cacheId"]
    assert client.part(id_, data).status == 413
    pieces = (data[at : at + 65536] for at in range(0, len(data), 65536))
    headers = {"Content-Range": f"bytes 0-{len(data) - 1}/*"}
    assert client.ask("PATCH", f"{API}/caches/1", pieces, headers).status == 404


def test_one_machine_has_so_many_connections(service: Served) -> None:
    with ExitStack() as stack:
        held = [
            stack.enter_context(
                socket.create_connection(("127.0.0.1", service.port), 20, (TOPIC, 0))
            )
            for _ in range(40)
        ]
        until(lambda: len(select.select(held, [], [], 0)[0]) == 8, 20, "8 of 40 are ended")
        assert service.client(MAIN).find("none") is None

    def answers() -> bool:
        try:
            return service.client(TOPIC).find("none") is None
        except OSError:
            return False

    until(answers, 20, "they are free again")


def test_it_ends_with_its_standard_input_whoever_is_being_served(tmp_path: Path) -> None:
    with served(tmp_path / "cache", {MAIN: rights(JOBS[MAIN], {})}) as running:
        assert running.client().save("k", os.urandom(64 * BLOCK)) == 200
        at = path_of(running.client().lookup("k").json["archiveLocation"])
        with socket.create_connection(("127.0.0.1", running.port), 20) as other:
            other.sendall(f"GET {at} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            until(lambda: contents_open(running), 20, "it is being answered", every=0.01)
            assert running.process.stdin
            running.process.stdin.close()
            assert running.process.wait(20) == 0
            assert ended(other) < 64 * BLOCK


def test_a_kill_in_the_middle_of_uploads(tmp_path: Path) -> None:
    folder, jobs = tmp_path / "cache", {MAIN: rights(JOBS[MAIN], {})}
    whole = os.urandom(BLOCK)
    with served(folder, jobs, uploads=100) as running:
        client = running.client()
        assert client.save("whole", whole) == 200
        ids = [client.reserve(f"half-{number}", 2 * BLOCK).json["cacheId"] for number in range(50)]
        assert {client.part(id_, whole).status for id_ in ids} == {200}
        running.process.send_signal(signal.SIGKILL)
        running.process.wait()
    assert len(list((folder / "uploads").iterdir())) == 50
    with served(folder, jobs) as running:
        client = running.client()
        assert client.load("whole") == whole
        assert client.find("half-") is None
        assert client.part(ids[0], whole, BLOCK).status == 404
        assert client.commit(ids[0], 2 * BLOCK).status == 404
        assert list((folder / "uploads").iterdir()) == []
        assert client.save("half-0", whole) == 200


def test_a_full_disk_ends_an_upload_and_nothing_else(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], check=True)
    try:
        jobs = {MAIN: rights(JOBS[MAIN], {})}
        # It does not ask beforehand whether there is room, which may be gone a moment later.
        with served(disk / "cache", jobs, keep_free=-(1 << 40)) as running:
            client, small, large = running.client(), os.urandom(BLOCK), os.urandom(24 * BLOCK)
            assert client.save("small", small) == 200
            id_ = client.reserve("large", len(large)).json["cacheId"]
            answer = client.part(id_, large)
            assert answer.status == 507
            assert "No space left" in answer.json["message"]
            assert client.commit(id_, len(large)).status == 409
            assert list((disk / "cache" / "uploads").iterdir()) == []
            assert client.find("large") is None
            assert client.load("small") == small
            assert client.save("other", small[:1000]) == 200
            log = (disk / "cache.log").read_text()
            assert "a job goes on without the cache" in log
        with served(disk / "cache", jobs, keep_free=1 << 20) as running:
            answer = running.client().reserve("large", len(large))
            assert (answer.status, "1.0 MiB of it stay free" in answer.json["message"]) == (
                507,
                True,
            )
            assert running.client().load("small") == small
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_store_that_others_change_meanwhile(service: Served, key: str) -> None:
    client = service.client(MAIN)
    assert client.save(key, b"x") == 200
    with closing(sqlite3.connect(service.folder / "index.sqlite")) as database:
        database.execute("DELETE FROM entries WHERE key = ?", (key,))
        database.commit()
    assert client.find(key) is None


def test_where_it_can_not_listen() -> None:
    with (
        closing(server.bind("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match="can't be served at"),
    ):
        server.bind("127.0.0.1", taken.getsockname()[1])
    # The machines' network, and with it this address, may come later.
    server.bind("192.0.2.99", 8485).close()


def test_who_says_nothing_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = {MAIN: rights(JOBS[MAIN], {})}
    with served(tmp_path / "cache", jobs) as running:
        assert running.client().save("k", os.urandom(64 * BLOCK)) == 200
    monkeypatch.setenv("VMRUNNER_TEST_PATIENCE", "1.5")
    with served(tmp_path / "cache", jobs) as running:
        at = path_of(running.client().lookup("k").json["archiveLocation"])
        asked: tuple[bytes, ...] = (
            b"GET / HTTP/1.1\r\nHost",
            b"POST /_apis/artifactcache/caches HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n",
        )
        for text in asked:
            with socket.create_connection(("127.0.0.1", running.port), timeout=20) as other:
                other.sendall(text)
                assert ended(other) < 1000
        # One that never reads what it has asked for.
        with socket.create_connection(("127.0.0.1", running.port), timeout=20) as other:
            other.sendall(f"GET {at} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            until(lambda: contents_open(running), 20, "it is being answered", every=0.01)
            until(lambda: not contents_open(running), 20, "it is given up", every=0.05)


def contents_open(running: Served) -> int:
    """How many contents it reads just now."""
    found = 0
    for each in Path(f"/proc/{running.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it was closed meanwhile
            found += "/blobs/" in os.readlink(each)
    return found


def ended(connection: socket.socket) -> int:
    """How many bytes came until it was ended."""
    read = 0
    try:
        while data := connection.recv(65536):
            read += len(data)
    except ConnectionResetError:
        pass
    return read
