#!/usr/bin/python3
"""GARM's own way to a runner, inside the machine: GARM renders its install script for this
instance, and user `runner` runs it, as GARM's scripts expect.

Three words: GARM's metadata URL, the instance's token, and certificates of GARM's as PEM text, or
nothing. What the script starts goes on when it has ended; GARM ends the machine.
"""

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

CONSOLE = "/dev/console"
CERTIFICATE = Path("/usr/local/share/ca-certificates/garm.crt")
SCRIPT = Path("/run/garm-install")
USER = "runner"
TOLD = "RUNNER_TOOL_CACHE,AGENT_TOOLSDIRECTORY"  # where there is a disk of tools
TRIES, PAUSE, ANSWER = 30, 2.0, 20.0  # seconds between two, and for one
FOREVER = 10 * 365 * 86400.0


def fetch(metadata: str, token: str) -> bytes:
    """The script. Exits with a sentence that has no token in it."""
    request = urllib.request.Request(  # noqa: S310 — the provider has checked that it is http(s)
        f"{metadata.rstrip('/')}/install-script/", headers={"Authorization": f"Bearer {token}"}
    )
    said = ""
    for left in reversed(range(TRIES)):
        try:
            with urllib.request.urlopen(request, timeout=ANSWER) as answer:  # noqa: S310
                script: bytes = answer.read()
            return script
        except urllib.error.HTTPError as error:
            said = f"GARM answers {error.code}"
            if error.code < 500:
                break
        except OSError as error:
            said = f"{getattr(error, 'reason', error)}; does the flavor's network reach GARM?"
        if left:
            time.sleep(PAUSE)
    sys.exit(f"vmrunner: GARM's install script can't be fetched: {said}")


def install(metadata: str, token: str, certificates: str) -> None:
    """Run it, and wait for the machine's end."""
    if certificates:
        CERTIFICATE.write_text(certificates)
        subprocess.run(["update-ca-certificates"], check=True, stdout=subprocess.DEVNULL)
    SCRIPT.write_bytes(fetch(metadata, token))
    try:
        shutil.chown(SCRIPT, USER)
    except LookupError:
        sys.exit(f"vmrunner: GARM's install script needs a user {USER} in the image")
    SCRIPT.chmod(0o700)
    code = subprocess.run(
        ["runuser", "--login", f"--whitelist-environment={TOLD}", USER, "-c", f"bash {SCRIPT}"],
        check=False,
    ).returncode
    SCRIPT.unlink()
    if code:
        sys.exit(f"vmrunner: GARM's install script ended with exit code {code}")
    time.sleep(FOREVER)


def main() -> None:
    """What is said belongs to the machine's console."""
    console = os.open(CONSOLE, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(console, stream)
    install(*sys.argv[1:4])


if __name__ == "__main__":
    main()
