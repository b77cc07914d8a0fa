"""An archive of packages like Debian's or Ubuntu's, of a test's own: what is needed of each
package, signed by a key that nobody else has.

The programs that a bootstrap runs inside are copies of this host's.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from pysequoia import SignatureMode, Tsk, sign

ARCHITECTURE = "amd64"
_PROGRAMS = (
    "sh chmod chroot diff dpkg dpkg-deb dpkg-query dpkg-split env ldconfig mount rm "
    "start-stop-daemon systemctl tar true"
)
"""What dpkg wants to find, what the packages' scripts run, and what a build runs in a tree."""
_MERGED = ("bin", "sbin", "lib", "lib64")


@dataclass(frozen=True)
class Package:
    """One, with its files by their paths and its scripts by their names."""

    name: str
    version: str = "1"
    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes | Path] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    scripts: dict[str, str] = field(default_factory=dict)

    def control(self) -> str:
        """The stanza that is in it, and in the lists."""
        own = {
            "Package": self.name,
            "Version": self.version,
            "Architecture": "all",
            "Maintainer": "nobody <nobody@example>",
        }
        return "".join(
            f"{key}: {value}\n"
            for key, value in (own | {"Description": "a test's"} | self.fields).items()
        )

    def build(self, target: Path) -> None:
        """Make the .deb."""
        root = target.with_suffix(".tree")
        (root / "DEBIAN").mkdir(parents=True)
        (root / "DEBIAN" / "control").write_text(self.control())
        for name, text in self.scripts.items():
            (root / "DEBIAN" / name).write_text(f"#!/bin/sh -e\n{text}\n")
            (root / "DEBIAN" / name).chmod(0o755)
        self.lay(root)
        command = ["dpkg-deb", "--build", "--root-owner-group", "-Znone", root, target]
        subprocess.run(command, check=True, capture_output=True)
        shutil.rmtree(root)

    def lay(self, root: Path) -> None:
        """Its files, in this folder, as if it were installed there."""
        for path, content in self.files.items():
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                shutil.copyfile(content, file)
                file.chmod(0o755)
            else:
                file.write_bytes(content)
        for path in self.folders:
            (root / path).mkdir(parents=True, exist_ok=True)
        for path, where in self.links.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).symlink_to(where)


def publish(
    root: Path,
    owner: Tsk,
    components: dict[str, list[Package]],
    *,
    suite: str,
    codename: str = "",
    day: str = "Wed, 01 Jan 2025",
    until: str = "",
) -> None:
    """Add a suite to the archive in the folder `root`, signed by `owner` on that day; its codename
    is its name unless there is another.
    """
    dists, lines = root / "dists" / suite, list[str]()
    (root / "pool").mkdir(parents=True, exist_ok=True)
    for component, packages in components.items():
        listed = ""
        for package in packages:
            deb = root / "pool" / f"{package.name}_{package.version}.deb"
            package.build(deb)
            digest = hashlib.sha256(deb.read_bytes()).hexdigest()
            listed += f"{package.control()}Filename: pool/{deb.name}\n"
            listed += f"Size: {deb.stat().st_size}\nSHA256: {digest}\n\n"
        path = dists / component / f"binary-{ARCHITECTURE}" / "Packages"
        path.parent.mkdir(parents=True)
        path.write_text(listed)
        lines.append(
            f" {hashlib.sha256(listed.encode()).hexdigest()} {len(listed)} "
            f"{path.relative_to(dists)}\n"
        )
    head = {
        "Suite": suite,
        "Codename": codename or suite,
        "Components": " ".join(components),
        "Architectures": ARCHITECTURE,
        "Date": f"{day} 00:00:00 UTC",
    } | ({"Valid-Until": f"{until} 00:00:00 UTC"} if until else {})
    text = (
        "".join(f"{key}: {value}\n" for key, value in head.items()) + f"SHA256:\n{''.join(lines)}"
    )
    (dists / "InRelease").write_bytes(sign(owner.signer(), text.encode(), mode=SignatureMode.CLEAR))


def base(*more: str) -> Package:
    """A system that dpkg, systemctl and scripts run in; with more programs."""
    files: dict[str, bytes | Path] = {
        "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n",
        "etc/group": b"root:x:0:\n",
    }
    for name in (*_PROGRAMS.split(), *more):
        program = Path(str(shutil.which(name)))
        files[_unmerged(program)] = program.resolve()
        # A script has no libraries.
        told = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
        files |= {
            _unmerged(Path(path)): Path(path).resolve() for path in re.findall(r"(/\S+) \(0x", told)
        }
    links = {name: f"usr/{name}" for name in _MERGED}
    fields = {"Essential": "yes", "Priority": "required"}
    return Package(
        "base-files",
        fields=fields,
        files=files,
        links=links,
        folders=("dev", "proc", "root", "run", "sys", "tmp"),
    )


def _unmerged(path: Path) -> str:
    """Below /usr, wherever the loader or PATH says that it is."""
    plain = str(path).lstrip("/")
    return f"usr/{plain}" if plain.split("/")[0] in _MERGED else plain


class Site(ThreadingHTTPServer):
    """Serves a folder. `cuts` says how often the sending of a file whose name begins with `cut` is
    reset in its middle; with `is_last` the whole server is gone then.
    """

    cut = ""
    cuts = 0
    is_last = False

    def __init__(self, folder: Path, port: int) -> None:
        super().__init__(("127.0.0.1", port), partial(_Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[str] = []


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None: ...

    def do_GET(self) -> None:
        assert isinstance(self.server, Site)
        self.server.asked.append(self.path)
        super().do_GET()

    def copyfile(self, source, outputfile) -> None:  # type: ignore[no-untyped-def]  # as its ancestor's
        site = self.server
        assert isinstance(site, Site)
        if not site.cuts or not Path(self.path).name.startswith(site.cut):
            super().copyfile(source, outputfile)
            return
        site.cuts -= 1
        content = source.read()
        outputfile.write(content[: len(content) // 2])
        outputfile.flush()
        if site.is_last:
            site.shutdown()
            site.socket.close()
        # Without lingering what follows is a reset, not an end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


@contextlib.contextmanager
def served(folder: Path, port: int = 0) -> Iterator[Site]:
    """The folder on loopback, over HTTP."""
    with Site(folder, port) as site:
        serving = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.02})
        serving.start()
        try:
            yield site
        finally:
            site.shutdown()
            serving.join()
