"""The way out of the rig for tests.cached.link: run with the host's network it answers at a socket.
A connection there begins with a line, a name and a port, and goes on to these; `end` ends it.

    rig/rig run --outside -- python -m tests.cached.outside
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

SOCKET = Path("/run/vmrunner-outside")
_BLOCK = 1 << 16
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):  # either side may be gone by now
        while part := await reader.read(_BLOCK):
            writer.write(part)
            await writer.drain()
        writer.write_eof()


async def join(near: Streams, far: Streams) -> None:
    """Both connections are one."""
    try:
        await asyncio.gather(_pour(near[0], far[1]), _pour(far[0], near[1]))
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
