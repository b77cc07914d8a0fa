#!/usr/bin/python3
"""Before Docker starts: its networks have no bigger packets than the machine's own, which the host
has told its network card.
"""

import json
from pathlib import Path

DAEMON, LINKS, USUAL = Path("/etc/docker/daemon.json"), Path("/sys/class/net"), 1500


def main() -> None:
    """Once; where it is the usual size nothing is changed."""
    cards = [link for link in sorted(LINKS.iterdir()) if (link / "device").exists()]
    smallest = min((int((link / "mtu").read_text()) for link in cards), default=USUAL)
    if smallest == USUAL:
        return
    settings = json.loads(DAEMON.read_text()) if DAEMON.exists() else {}
    # Of its own network, and of those that jobs and Compose make.
    settings["mtu"] = smallest
    networks = settings.setdefault("default-network-opts", {})
    networks.setdefault("bridge", {})["com.docker.network.driver.mtu"] = str(smallest)
    DAEMON.write_text(json.dumps(settings, indent=1) + "\n")


if __name__ == "__main__":
    main()
