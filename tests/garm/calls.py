"""The provider as GARM calls it, on a ground with a flavor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.garm.double import CONTROLLER, POOL
from tests.ground import Ground

PROGRAM = Path(sys.executable).with_name("garm-provider-vmrunner")
FLAVOR = '[garm.flavors.small]\nmemory = "1GiB"\ndisk = "6GiB"\n'


def with_flavor(ground: Ground, more: str = "") -> Ground:
    """The same ground, for GARM as well."""
    with ground.config.open("a") as config:
        config.write(FLAVOR + more)
    return ground


def words(ground: Ground, command: str, **more: str) -> dict[str, str]:
    """All that is in the call's environment."""
    return {
        "GARM_COMMAND": command,
        "GARM_CONTROLLER_ID": CONTROLLER,
        "GARM_POOL_ID": POOL,
        "GARM_PROVIDER_CONFIG_FILE": str(ground.config),
        **more,
    }


def call(
    ground: Ground,
    command: str,
    name: str = "",
    wanted: dict[str, Any] | None = None,
    *,
    code: int = 0,
) -> Any:
    """One call; its answer."""
    more = {"GARM_INSTANCE_ID": name} if name else {}
    done = subprocess.run(
        [PROGRAM],
        env=words(ground, command, **more),
        input=json.dumps(wanted).encode() if wanted else b"",
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, f"{command}: exit {done.returncode}, {done.stderr.decode()}"
    assert code or not done.stderr, done.stderr
    return json.loads(done.stdout) if done.stdout else None
