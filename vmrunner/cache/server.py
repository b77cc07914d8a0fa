"""The cache's answers: who asks is known by the address alone, and each request is judged anew by
what that job may do.
"""

from __future__ import annotations

import json
import re
import resource
import socket
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from http import HTTPStatus

from vmrunner.cache import protocol
from vmrunner.cache.blobs import BLOCK, Content, Corrupt
from vmrunner.cache.connections import Gone, Request
from vmrunner.cache.refused import Refused, Why
from vmrunner.cache.rights import Rights
from vmrunner.cache.store import Store
from vmrunner.cache.uploads import Uploads
from vmrunner.errors import ConfigError
from vmrunner.log import Log

Act = Callable[[Request, Rights, str], object]
"""Answers a request of a job, with the id in its path."""
_BACKLOG = 1024
_FREEBIND = 15  # IP_FREEBIND, see ip(7); Python has no name for it
_BODY = 64 * 1024  # bytes of a request that is not a part of an upload
_SPOILS = frozenset({Why.NO_ROOM, Why.TOO_LARGE, Why.TOO_MANY})  # an upload, for good


def bind(address: str, port: int) -> socket.socket:
    """Listen; raises ConfigError.

    The address may not be there yet, or go for a moment: that of the machines' network is made by
    the first pass.
    """
    try:
        with ExitStack() as undo:
            listening = undo.enter_context(socket.socket())
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.setsockopt(socket.IPPROTO_IP, _FREEBIND, 1)
            listening.bind((address, port))
            listening.listen(_BACKLOG)
            undo.pop_all()
            return listening
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"The cache can't be served at {address}:{port}: {error}.",
            "Choose another cache.listen_port, or end what listens there.",
        ) from None


def allow_connections() -> None:
    """As many open files as this process may have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Service:
    """The answers. `who` says what the job on the machine with this address may do."""

    def __init__(
        self, store: Store, uploads: Uploads, who: Callable[[str], Rights | None], log: Log
    ) -> None:
        self._store, self._uploads, self._who, self._log = store, uploads, who, log
        acts: tuple[tuple[str, dict[str, Act]], ...] = (
            ("/cache", {"GET": self._find}),
            ("/caches", {"POST": self._reserve}),
            ("/caches/(?P<id>[^/]+)", {"PATCH": self._take, "POST": self._commit}),
            ("/artifacts/(?P<id>[^/]+)", {"GET": self._give}),
            ("/clean", {"POST": self._clean}),
        )
        self._acts = [(re.compile(re.escape(protocol.API) + path), by) for path, by in acts]

    def answer(self, request: Request) -> None:
        """For `Connections`. Raises Gone, also where an answer has to be cut off."""
        try:
            self._answer(request)
        except (Refused, OSError, sqlite3.Error, Corrupt) as error:
            if request.has_answer:
                raise Gone from None
            self._refuse(request, _refusal(error))

    def _answer(self, request: Request) -> None:
        acts, number = self._route(request.path)
        method = "GET" if request.method == "HEAD" else request.method
        if method not in acts:
            status = HTTPStatus.METHOD_NOT_ALLOWED if acts else HTTPStatus.NOT_FOUND
            request.answer(status)
            return
        rights = self._who(request.address)
        if rights is None:
            raise Refused(Why.MAY_NOT, "No job is known to run on this machine.")
        # What has to be gone before anybody is answered.
        self._store.recognise(rights)
        self._uploads.expire()
        acts[method](request, rights, number)

    def _route(self, path: str) -> tuple[Mapping[str, Act], str]:
        """What can be done there, by method, and the id in the path."""
        for pattern, acts in self._acts:
            if found := pattern.fullmatch(path):
                return acts, found.groupdict().get("id", "")
        return {}, ""

    def _refuse(self, request: Request, refusal: Refused) -> None:
        if refusal.why is Why.NO_ROOM:
            self._log.warning(
                "a job goes on without the cache",
                address=request.address,
                reason=refusal.sentence,
            )
        _say(request, {"message": refusal.sentence}, protocol.STATUS[refusal.why])

    def _find(self, request: Request, rights: Rights, _: str) -> None:
        keys = protocol.keys(request.query.get("keys", ""))
        version = protocol.version(request.query.get("version", ""))
        found = self._store.find(rights, keys, version)
        if found is None:
            request.answer(HTTPStatus.NO_CONTENT)
            return
        # By the address that the machine has reached, whatever the request calls it.
        host, port = request.reached
        where = f"http://{host}:{port}{protocol.API}/artifacts/{found.id}"
        _say(request, {"result": "hit", "archiveLocation": where, "cacheKey": found.key})

    def _reserve(self, request: Request, rights: Rights, _: str) -> None:
        asked = protocol.wanted(_whole(request))
        id_ = self._uploads.reserve(request.address, rights, asked.key, asked.version, asked.size)
        _say(request, {"cacheId": id_}, HTTPStatus.CREATED)

    def _take(self, request: Request, rights: Rights, number: str) -> None:
        begin, end = protocol.content_range(request.headers.get("content-range", ""))
        id_, whose = protocol.number(number), (request.address, rights)
        buffer = bytearray(BLOCK)
        try:
            part = self._uploads.claim(*whose, id_, begin, end)
            while read := request.read(buffer):
                self._uploads.write(part, memoryview(buffer)[:read])
        except (Refused, OSError) as error:
            if isinstance(error, OSError) or error.why in _SPOILS:
                self._uploads.drop(*whose, id_)
            raise
        if part.at < end:
            raise Refused(Why.WRONG, "Fewer bytes came than Content-Range says.")
        _say(request, {})

    def _commit(self, request: Request, rights: Rights, number: str) -> None:
        size = protocol.size(_whole(request))
        self._uploads.commit(request.address, rights, protocol.number(number), size)
        _say(request, {})

    def _give(self, request: Request, rights: Rights, number: str) -> None:
        with closing(self._store.open(rights, protocol.number(number))) as content:
            sent = 0
            try:
                for piece in self._pieces(request, content):
                    request.send(piece)
                    sent += len(piece)
            finally:
                self._store.served(rights.repository, sent)

    def _pieces(self, request: Request, content: Content) -> Iterator[memoryview]:
        """What there is to send of a content, after the answer has begun; each is good until the
        next one.
        """
        asked = protocol.byte_range(request.headers.get("range", ""), content.size)
        if asked is None:
            request.answer(
                HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
                {"content-range": f"bytes */{content.size}"},
            )
            return
        at, end = asked
        status, headers = protocol.archive(at, end, content.size)
        if request.method == "HEAD":
            request.answer(status, headers)
            return
        buffer = bytearray(BLOCK)
        while at < end:
            block = self._block(content, at // BLOCK, buffer)
            # Not before: where the first block is bad, there is no such archive.
            if not request.has_answer:
                request.begin(status, headers)
            piece = block[at % BLOCK : at % BLOCK + end - at]
            at += len(piece)
            yield piece
        request.end()

    def _block(self, content: Content, index: int, buffer: bytearray) -> memoryview:
        try:
            return content.block(index, buffer)
        except Corrupt as error:
            self._store.spoil(content.digest, str(error))
            raise

    def _clean(self, request: Request, _rights: Rights, _id: str) -> None:
        _say(request, {})  # nothing is removed because a job asks for it


def _refusal(error: Exception) -> Refused:
    if isinstance(error, Refused):
        return error
    if isinstance(error, OSError):
        return Refused(Why.NO_ROOM, f"The cache can't write: {error.strerror}.")
    if isinstance(error, sqlite3.Error):
        return Refused(Why.NO_ROOM, f"The cache can't read its index: {error}.")
    return Refused(Why.UNKNOWN, "This archive is no more.")


def _say(request: Request, what: object, status: int = HTTPStatus.OK) -> None:
    body = json.dumps(what).encode()
    request.answer(status, {"content-type": "application/json"}, body)


def _whole(request: Request) -> bytes:
    body, buffer = bytearray(), bytearray(_BODY)
    while read := request.read(buffer):
        body += buffer[:read]
        if len(body) > _BODY:
            raise Refused(Why.TOO_LARGE, "This request is too long.")
    return bytes(body)
