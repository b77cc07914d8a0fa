"""`make kvm`: the bench on a host with KVM, and a report of it that can be sent to anybody."""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import libvirt
from rich.console import Console

import vmrunner
from tests.bench import report
from vmrunner.hypervisor.acceleration import lacking
from vmrunner.hypervisor.basis import nested
from vmrunner.hypervisor.connection import dotted

URI, REPORT = "qemu:///system", Path("kvm-report.txt")
PARTS = ("queue", "memory", "throughput", "clones")
_ADDRESS = re.compile(r"(?<![\w.:])[0-9A-Fa-f.:]*[.:][0-9A-Fa-f.:]*(?![\w.:])")
_MAC = re.compile(r"\b(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}\b")


def main() -> None:
    """Say why there is no KVM, or measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only whether there is KVM")
    parser.add_argument("--runs", type=int, default=20, help="how often each thing is measured")
    options = parser.parse_args()
    with closing(libvirt.open(URI)) as connection:
        if why := lacking(connection, URI):
            sys.exit(f"make kvm: there is no KVM here: {why.said}. {why.hint}")
        if options.check:
            return
        known = facts(connection)
    command = [sys.executable, "-m", "tests.bench", "--runs", str(options.runs)]
    for part in PARTS:
        command += ["--only", part]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    REPORT.write_text(compose(known, figures, socket.gethostname()), encoding="utf-8")
    print(f"{REPORT} is written: look through it, and send it.")
    sys.exit(done.returncode)


def facts(connection: Any) -> dict[str, str]:
    """What the host is, without its name."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")

    def first(key: str) -> str:
        found = re.search(rf"^{key}\s*: (.*)$", cpuinfo, re.MULTILINE)
        return found[1] if found else "?"

    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "vmrunner": vmrunner.__version__,
        "libvirt": dotted(connection.getLibVersion()),
        "QEMU": dotted(connection.getVersion()),
        "tree": platform.freedesktop_os_release().get("PRETTY_NAME", "?"),
        "kernel": platform.release(),
        "processor": first("model name"),
        "microcode": first("microcode"),
        "cores": str(os.cpu_count()),
        "memory": f"{pages >> 30} GiB",
        "nested": ", ".join(nested()) or "?",
        "itself a virtual machine": "yes" if " hypervisor" in first("flags") else "no",
    }


def compose(known: Mapping[str, str], figures: dict[str, Any], host: str) -> str:
    """The report; the host's name and addresses are in nothing of it."""
    out = io.StringIO()
    console = Console(file=out, width=120, highlight=False)
    for name, value in known.items():
        console.print(f"{name:25} {nameless(value, host)}", markup=False)
    for table in report.tables(figures):
        console.print()
        console.print(table)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return _without_addresses("\n".join([*lines, "", json.dumps(figures, sort_keys=True)])) + "\n"


def nameless(text: str, host: str) -> str:
    """Without the host's name, whole or the first part of it: a kernel may be named after it."""
    for name in (host, host.partition(".")[0]):
        if name:
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "(host)", text)
    return text


def _without_addresses(text: str) -> str:
    def hidden(found: re.Match[str]) -> str:
        try:
            ip_address(found[0])
        except ValueError:
            return found[0]
        return "(address)"

    return _ADDRESS.sub(hidden, _MAC.sub("(address)", text))


if __name__ == "__main__":
    main()
