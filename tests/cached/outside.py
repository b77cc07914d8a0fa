"""The way out of the rig for tests.cached.link: run with the host's network it answers at a socket.
A connection there begins with a line, a name and a port, and goes on to these; `end` ends it.

    rig/rig run --outside -- python -m tests.cached.outside
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

SOCKET = Path("/run/vmrunner-outside")
_BLOCK = 1 << 16
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _pour(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    wait: Callable[[int], Awaitable[None]],
) -> None:
    with suppress(OSError):  # either side may be gone by now
        while part := await reader.read(_BLOCK):
            await wait(len(part))
            writer.write(part)
            await writer.drain()
        writer.write_eof()


async def _at_once(_: int) -> None:
    pass


async def join(
    near: Streams, far: Streams, wait: Callable[[int], Awaitable[None]] = _at_once
) -> None:
    """Both connections are one; what comes from afar waits as it is told."""
    try:
        await asyncio.gather(_pour(near[0], far[1], _at_once), _pour(far[0], near[1], wait))
    finally:
        near[1].close()
        far[1].close()


async def main() -> None:
    """Until it is told to end."""
    over = asyncio.Event()

    async def reach(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name, _, port = (await reader.readline()).decode().partition(" ")
        if name.strip() == "end":
            over.set()
            return
        try:
            far = await asyncio.open_connection(name, int(port))
        except OSError as error:
            print(f"{name}: {error}", flush=True)
            writer.close()
            return
        await join((reader, writer), far)

    SOCKET.unlink(missing_ok=True)
    async with await asyncio.start_unix_server(reach, SOCKET):
        await over.wait()
    SOCKET.unlink(missing_ok=True)


if __name__ == "__main__":
    asyncio.run(main())
