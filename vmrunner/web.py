"""How a process of ours answers HTTP beside `serve`, which has started it."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

import uvicorn

_IDLE = 5  # seconds until a connection ends on which nothing is asked any more


def serve(app: Any, listening: socket.socket, protocol: type[asyncio.Protocol]) -> None:
    """Answer until this process's standard input ends: whoever has started it holds that, so that
    it does not outlive a killed `serve`.
    """
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=protocol,
            loop="asyncio",
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            log_level="critical",
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_IDLE,
        )
    )

    async def run() -> None:
        loop = asyncio.get_running_loop()

        def heard() -> None:
            if not os.read(0, 1024):
                loop.remove_reader(0)
                # At once: who is being answered asks again.
                server.should_exit = server.force_exit = True

        os.set_blocking(0, False)
        loop.add_reader(0, heard)
        await server.serve(sockets=[listening])

    asyncio.run(run())
