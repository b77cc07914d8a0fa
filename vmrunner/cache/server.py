"""The cache's web server: who asks is known by the address alone, and each request is judged anew
by what that job may do.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from http import HTTPStatus
from typing import Any, ParamSpec, TypeVar

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from vmrunner.cache import archive, protocol
from vmrunner.cache.blobs import BLOCK, Content, Corrupt
from vmrunner.cache.refused import Refused, Why
from vmrunner.cache.rights import Rights
from vmrunner.cache.store import Store
from vmrunner.cache.uploads import Uploads
from vmrunner.errors import ConfigError
from vmrunner.log import Log

P = ParamSpec("P")
T = TypeVar("T")
_CONNECTIONS = 32  # of one machine at the same time
_PATIENCE = 60.0  # seconds in which a connection has to get on
_LONGEST = 7200.0  # seconds that one lasts at most
_BACKLOG = 1024
_FREEBIND = 15  # IP_FREEBIND, see ip(7); Python has no name for it
# Threads: for blocks; for who asks, which may wait for the forge; for complete uploads.
_WORKERS, _ASKERS, _ENDERS = 16, 128, 2
_BODY = 64 * 1024  # bytes of a request that is not a part of an upload
_DRAINED = 128 * 1024 * 1024  # bytes of a refused part that are read, so that the answer is heard
_SPOILS = frozenset({Why.NO_ROOM, Why.TOO_LARGE, Why.TOO_MANY})  # an upload, for good


class Bounded(H11Protocol):
    """A connection that gets on, or is ended: it may be one that says its request byte by byte, or
    never reads the answer. One machine keeps no other one out.
    """

    def connection_made(self, transport: Any) -> None:
        """See asyncio."""
        super().connection_made(transport)
        self._loop_ = asyncio.get_running_loop()
        self._received, self._resumed, self._last = 0, 0, (-1, -1, -1)
        self._ends = self._loop_.time() + _LONGEST
        self._look = self._loop_.call_later(_PATIENCE, self._check)
        same = [
            each
            for each in self.connections
            if isinstance(each, Bounded) and each.client and self.client
            if each.client[0] == self.client[0]
        ]
        if len(same) > _CONNECTIONS:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        self._received += len(data)
        super().data_received(data)

    def resume_writing(self) -> None:
        """See asyncio."""
        self._resumed += 1
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._look.cancel()
        super().connection_lost(exc)

    def _check(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        state = (self._received, self._resumed, unsent)
        ours = self.cycle and not self.cycle.more_body and not self.cycle.response_complete
        is_stuck = state == self._last and not (ours and not unsent)
        if is_stuck or self._loop_.time() >= self._ends:
            self.transport.abort()
        else:
            self._last = state
            self._look = self._loop_.call_later(_PATIENCE, self._check)


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
        self._workers, self._askers, self._enders = (
            ThreadPoolExecutor(number) for number in (_WORKERS, _ASKERS, _ENDERS)
        )

    def application(self) -> Starlette:
        """What a web server runs."""
        routes = [
            ("/cache", "GET", self._find),
            ("/caches", "POST", self._reserve),
            ("/caches/{id}", "PATCH", self._take),
            ("/caches/{id}", "POST", self._commit),
            ("/artifacts/{id}", "GET", self._give),
            ("/clean", "POST", self._clean),
        ]
        return Starlette(
            routes=[
                Route(protocol.API + path, partial(self._answer, act), methods=[method])
                for path, method, act in routes
            ]
        )

    async def _in(
        self, pool: ThreadPoolExecutor, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, partial(do, *args, **kwargs))

    async def _answer(
        self, act: Callable[[Request, str, Rights], Awaitable[Response]], request: Request
    ) -> Response:
        address = request.client.host if request.client else ""
        try:
            rights = await self._in(self._askers, self._who, address)
            if rights is None:
                raise Refused(Why.MAY_NOT, "No job is known to run on this machine.")
            await self._in(self._workers, self._tidy, rights)
            return await act(request, address, rights)
        except Refused as refusal:
            return self._refuse(refusal, address)
        except OSError as error:
            return self._refuse(
                Refused(Why.NO_ROOM, f"The cache can't write: {error.strerror}."), address
            )
        except sqlite3.Error as error:
            return self._refuse(
                Refused(Why.NO_ROOM, f"The cache can't read its index: {error}."), address
            )
        except Corrupt:
            return self._refuse(Refused(Why.UNKNOWN, "This archive is no more."), address)
        except ClientDisconnect:
            return Response(status_code=HTTPStatus.BAD_REQUEST)  # nobody hears it

    def _tidy(self, rights: Rights) -> None:
        """What has to be gone before anybody is answered."""
        self._store.recognise(rights)
        self._uploads.expire()

    def _refuse(self, refusal: Refused, address: str) -> Response:
        if refusal.why is Why.NO_ROOM:
            self._log.warning(
                "a job goes on without the cache", address=address, reason=refusal.sentence
            )
        return JSONResponse({"message": refusal.sentence}, protocol.STATUS[refusal.why])

    async def _find(self, request: Request, _: str, rights: Rights) -> Response:
        query = request.query_params
        keys = protocol.keys(query.get("keys", ""))
        version = protocol.version(query.get("version", ""))
        found = await self._in(self._workers, self._store.find, rights, keys, version)
        if found is None:
            return Response(status_code=HTTPStatus.NO_CONTENT)
        # By the address that the machine has reached, whatever the request calls it.
        host, port = request.scope["server"]
        return JSONResponse(
            {
                "result": "hit",
                "archiveLocation": f"http://{host}:{port}{protocol.API}/artifacts/{found.id}",
                "cacheKey": found.key,
            }
        )

    async def _reserve(self, request: Request, address: str, rights: Rights) -> Response:
        asked = protocol.wanted(await _whole(request))
        id_ = await self._in(
            self._workers,
            self._uploads.reserve,
            *(address, rights, asked.key, asked.version, asked.size),
        )
        return JSONResponse({"cacheId": id_}, HTTPStatus.CREATED)

    async def _take(self, request: Request, address: str, rights: Rights) -> Response:
        body = aiter(request.stream())
        try:
            await self._store_part(request, address, rights, body)
        except (Refused, OSError):
            read = 0
            async for data in body:
                read += len(data)
                if read > _DRAINED:
                    break
            raise
        return JSONResponse({})

    async def _store_part(
        self, request: Request, address: str, rights: Rights, body: AsyncIterator[bytes]
    ) -> None:
        begin, end = protocol.content_range(request.headers.get("content-range", ""))
        id_ = protocol.number(request.path_params["id"])
        try:
            part = await self._in(
                self._workers, self._uploads.claim, address, rights, id_, begin, end
            )
            async for data in body:
                if data:
                    await self._in(self._workers, self._uploads.write, part, data)
        except (Refused, OSError) as error:
            if isinstance(error, OSError) or error.why in _SPOILS:
                await self._in(self._workers, self._uploads.drop, address, rights, id_)
            raise
        if part.at < end:
            raise Refused(Why.WRONG, "Fewer bytes came than Content-Range says.")

    async def _commit(self, request: Request, address: str, rights: Rights) -> Response:
        size = protocol.size(await _whole(request))
        id_ = protocol.number(request.path_params["id"])
        await self._in(self._enders, self._uploads.commit, address, rights, id_, size)
        return JSONResponse({})

    async def _give(self, request: Request, _: str, rights: Rights) -> Response:
        id_ = protocol.number(request.path_params["id"])
        content = await self._in(self._workers, self._store.open, rights, id_)

        def over(size: int) -> None:
            self._workers.submit(self._over, content, rights.repository, size)

        asked = protocol.byte_range(request.headers.get("range", ""), content.size)
        if asked is None:
            over(0)
            return Response(
                status_code=HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
                headers={"content-range": f"bytes */{content.size}"},
            )
        begin, end = asked
        if request.method == "HEAD":
            over(0)
            return Response(
                headers=archive.headers(content, begin, end), media_type=archive.MEDIA_TYPE
            )
        try:
            # Before anything is said: where the first block is bad, there is no such archive.
            first = await self._block(content, begin // BLOCK) if begin < end else b""
        except BaseException:
            over(0)
            raise
        return archive.Archive(content, begin, end, first, self._block, over)

    def _over(self, content: Content, repository: str, size: int) -> None:
        content.close()
        self._store.served(repository, size)

    async def _block(self, content: Content, index: int) -> bytes:
        try:
            return await self._in(self._workers, content.block, index)
        except Corrupt as error:
            await self._in(self._workers, self._store.spoil, content.digest, str(error))
            raise

    async def _clean(self, _request: Request, _address: str, _rights: Rights) -> Response:
        return JSONResponse({})  # nothing is removed because a job asks for it


async def _whole(request: Request) -> bytes:
    body = bytearray()
    async for data in request.stream():
        body += data
        if len(body) > _BODY:
            raise Refused(Why.TOO_LARGE, "This request is too long.")
    return bytes(body)
