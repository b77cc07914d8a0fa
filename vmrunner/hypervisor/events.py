"""libvirt's event loop, in a thread of its own: it delivers the events and the keepalive of every
connection opened after `start`.
"""

from __future__ import annotations

import threading

import libvirt

_started = threading.Lock()


def start() -> None:
    """Start the loop once per process. Call it before the first connection is opened."""
    if not _started.acquire(blocking=False):
        return
    libvirt.virEventRegisterDefaultImpl()

    def run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    # It ends with the process: nothing of it has to be put away.
    threading.Thread(target=run, name="libvirt-events", daemon=True).start()
