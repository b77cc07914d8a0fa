"""A content as an answer, or some of its bytes: one that is corrupt ends in the middle, so that no
client takes it for whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import Any

from starlette.responses import StreamingResponse

from vmrunner.cache.blobs import BLOCK, Content

MEDIA_TYPE = "application/octet-stream"


def headers(content: Content, begin: int, end: int) -> dict[str, str]:
    """Of the answer that has the bytes from `begin` up to, without, `end`."""
    some = {"content-length": str(end - begin), "accept-ranges": "bytes"}
    if (begin, end) != (0, content.size):
        some["content-range"] = f"bytes {begin}-{end - 1}/{content.size}"
    return some


class Archive(StreamingResponse):
    """These bytes of a content, whose first block is read already; `read` gives others, `over` is
    called with the number of bytes that went, whatever ends it.
    """

    def __init__(
        self,
        content: Content,
        begin: int,
        end: int,
        first: bytes,
        read: Callable[[Content, int], Awaitable[bytes]],
        over: Callable[[int], object],
    ) -> None:
        self._content, self._end, self._read, self._over = content, end, read, over
        self._begin, self._at = begin, begin
        self._next: asyncio.Future[bytes] | None = None
        some = headers(content, begin, end)
        status = HTTPStatus.PARTIAL_CONTENT if "content-range" in some else HTTPStatus.OK
        super().__init__(self._pieces(first), status, some, MEDIA_TYPE)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See ASGI."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self._next:
                self._next.cancel()
            self._over(self._at - self._begin)

    async def _pieces(self, block: bytes) -> AsyncIterator[bytes]:
        while self._at < self._end:
            skipped = self._at % BLOCK
            piece = block[skipped : skipped + self._end - self._at]
            self._at += len(piece)
            if self._at < self._end:
                # While this one goes the next one is read.
                self._next = asyncio.ensure_future(self._read(self._content, self._at // BLOCK))
                self._next.add_done_callback(_seen)
            yield piece
            if self._at < self._end and self._next:
                block = await self._next


def _seen(read: asyncio.Future[bytes]) -> None:
    """Where nobody waits for it any more, nobody needs to know how it went."""
    if not read.cancelled():
        read.exception()
