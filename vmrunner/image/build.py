"""Building a golden image from a recipe: bootstrap, a disk from the tree, a manifest, and an atomic rename. No loop mounts."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import httpx

from vmrunner import __version__
from vmrunner.errors import ImageError
from vmrunner.image import containers, lock, packages, workshop
from vmrunner.image.packages import Package
from vmrunner.image.recipe import Recipe, RunnerSource
from vmrunner.image.store import DISK, LOCK, MANIFEST, Golden, Input, Manifest, Runner, digest

_PROGRAMS = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "qemu-img": "qemu-utils"}
_ARCHIVE = "https://snapshot.debian.org/archive"
_RUNNER_PATH = "/usr/local/bin/{kind}"
Say = Callable[[str], None]


def build(recipe: Recipe, images: Path, say: Say, *, promote: bool = True) -> Golden:
    """Build the recipe and, with `promote`, make it its image's current version. `say` is told each step as it begins.

    Nothing of an image can be seen in the store before all of it is there. Raises ImageError, with the end of the failed program's output.
    """
    for program, package in _PROGRAMS.items():
        if not shutil.which(program):
            raise ImageError(f"Building images needs {program}.", f"apt-get install {package}")
    if os.geteuid() != 0:
        raise ImageError("Building images needs root: the files of the image belong to root.", "Run it with sudo.")
    locked = lock.read(recipe.lock) if recipe.lock else ""
    wanted = lock.parse(locked, str(recipe.lock))
    recipe_digest = recipe.digest()  # once: it reads every file that the recipe names
    version = f"{datetime.now(UTC):%Y%m%d%H%M%S}-{recipe_digest[:8]}"
    with workshop.opened(images) as work:
        tree, out = work / "tree", work / "out"
        out.mkdir()
        say(f"bootstrapping {recipe.suite} with {len(recipe.packages)} packages")
        _bootstrap(recipe, tree, work)
        found = _packages(tree)
        if recipe.lock:
            _compare(recipe, wanted, found)
        runner = _install_runner(recipe.runner, tree, work, say) if recipe.runner else None
        inputs = _add_files(recipe, tree, runner)
        archives = containers.lay(recipe.containers, tree, _download, say)
        inputs |= {path: Input(mode="0644", sha256=sha256) for path, sha256 in archives.items()}
        kernel = _take_kernel(tree, out)
        say(f"writing a disk of {recipe.size} MiB")
        _write_disk(tree, out / DISK, work, recipe.size)
        files = {path.name: digest(path) for path in sorted(out.iterdir())}
        if recipe.lock:
            (out / LOCK).write_text(locked, encoding="utf-8")
        manifest = Manifest(
            name=recipe.name,
            version=version,
            recipe_digest=recipe_digest,
            files=files,
            packages=found,
            suite=recipe.suite,
            inputs=inputs,
            lock=digest(out / LOCK) if recipe.lock else "",
            kernel=kernel,
            kernel_arguments=recipe.kernel_arguments,
            runner=runner,
            built_at=datetime.now(UTC).isoformat(timespec="seconds"),
            vmrunner_version=__version__,
        )
        (out / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return workshop.publish(out, images, manifest, say, promote=promote)


def _run(what: str, *command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode:
        last = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()][-8:]
        hint = "Free some space." if "No space left" in done.stderr else "\n".join(last)
        raise ImageError(f"{what} failed (exit {done.returncode}).", hint)
    return done.stdout


def _sources(recipe: Recipe) -> str:
    """The recipe's snapshot or mirror, or the mirrors that this host's apt uses, with the recipe's suite."""
    if recipe.snapshot:
        # What was signed to be valid for a week has expired there. The signature itself is checked as ever.
        archive, suite, option = (recipe.mirror or _ARCHIVE).rstrip("/"), recipe.suite, "[check-valid-until=no]"
        parts = (("debian", suite), ("debian", f"{suite}-updates"), ("debian-security", f"{suite}-security"))
        return "".join(f"deb {option} {archive}/{folder}/{recipe.snapshot} {each} main\n" for folder, each in parts)
    if recipe.mirror:
        return f"deb {recipe.mirror} {recipe.suite} main\n"
    lists = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*.*"))]
    text = "\n".join(path.read_text(errors="replace") for path in lists if path.is_file())
    uris = re.findall(r"https?://\S+", re.sub(r"(?m)^\s*#.*$", "", text))
    main = next((uri for uri in uris if uri.rstrip("/").endswith("/debian")), "http://deb.debian.org/debian")
    security = next((uri for uri in uris if "debian-security" in uri), "http://deb.debian.org/debian-security")
    suite = recipe.suite
    return f"deb {main} {suite} main\ndeb {main} {suite}-updates main\ndeb {security} {suite}-security main\n"


def _bootstrap(recipe: Recipe, tree: Path, work: Path) -> None:
    sources = work / "sources.list"
    sources.write_text(_sources(recipe), encoding="utf-8")
    settings = [f"--aptopt={path}" for path in sorted(Path("/etc/apt/apt.conf.d").glob("99*"))]
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("man", "doc", "locale")]
    included = f"--include={','.join(recipe.packages)}"
    options = ["--mode=root", "--variant=minbase", "--format=directory", "--dpkgopt=force-unsafe-io", *excluded, *settings, included]
    # apt's lists stay until _packages has read them.
    _run("The bootstrap", "mmdebstrap", *options, "--skip=cleanup/apt/lists", recipe.suite, tree, sources)


def _install_runner(source: RunnerSource, tree: Path, work: Path, say: Say) -> Runner:
    program = source.path
    if program is None:
        program = work / "runner"
        say(f"fetching {source.url}")
        _download("The runner", str(source.url), program)
    try:
        content = program.read_bytes()  # once: what is checked is what gets in
    except OSError as error:
        raise ImageError(f"The runner {program} can't be read: {error.strerror}.", "Its path is relative to the recipe.") from None
    found = hashlib.sha256(content).hexdigest()
    if source.sha256 not in (None, found):
        raise ImageError(f"The runner has the sha256 {found}, the recipe wants {source.sha256}.", "Check where it comes from.")
    path = _RUNNER_PATH.format(kind=source.kind)
    _place(tree, path, content, 0o755)
    return Runner(kind=source.kind, path=path, sha256=found)


def _download(what: str, url: str, target: Path) -> None:
    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=60) as answer, target.open("wb") as out:
            answer.raise_for_status()
            for chunk in answer.iter_bytes():
                out.write(chunk)
    except httpx.HTTPError as error:
        raise ImageError(f"{what} can't be fetched from {url}: {error}.", "Fetch it by hand and name its path in the recipe.") from None


def _place(tree: Path, path: str, content: bytes, mode: int) -> None:
    target = tree / path.lstrip("/")
    # An absolute symlink of the tree would lead out of it, into this host.
    if not target.parent.resolve().is_relative_to(tree.resolve()):
        raise ImageError(f"The path {path} leads out of the image.", "A folder on the way is a symlink.")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    target.write_bytes(content)
    target.chmod(mode)


def _add_files(recipe: Recipe, tree: Path, runner: Runner | None) -> dict[str, Input]:
    """The recipe's files, whose digests it returns, and what makes every machine boot quickly and be its own."""
    inputs: dict[str, Input] = {}
    for path, file in sorted(recipe.files.items()):
        content = file.content()
        _place(tree, path, content, int(file.mode, 8))
        inputs[path] = Input(mode=file.mode, sha256=hashlib.sha256(content).hexdigest())
    kind, where = (runner.kind, runner.path) if runner else ("none", "/bin/false")
    _place(tree, "/etc/vmrunner/image", f"RUNNER_KIND={kind}\nRUNNER_PATH={where}\n".encode(), 0o644)
    _place(tree, "/etc/fstab", b"/dev/vda / ext4 defaults,noatime 0 1\n", 0o644)
    # Empty, so that systemd makes a new one at each boot: two machines must not share it.
    _place(tree, "/etc/machine-id", b"", 0o444)
    for unit in ("vmrunner-guest.service", "systemd-networkd.service", "systemd-resolved.service"):
        if any((tree / folder / unit).exists() for folder in ("etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")):
            _run(f"Enabling {unit}", "chroot", tree, "systemctl", "enable", unit)
    # Nothing is fetched, upgraded or tidied up while a job waits.
    slow = (
        "apt-daily.timer",
        "apt-daily-upgrade.timer",
        "e2scrub_all.timer",
        "fstrim.timer",
        "dpkg-db-backup.timer",
        "e2scrub_reap.service",
    )
    late = ["systemd-timesyncd.service", "systemd-firstboot.service"]
    if (tree / "etc/systemd/system/vmrunner-guest.service").exists():
        # Our reader sets the network up itself; cloud-init's scripts rely on it to be up before them.
        late.append("systemd-networkd-wait-online.service")
    _run("Masking units", "chroot", tree, "systemctl", "mask", *slow, *late)
    for host_key in (tree / "etc/ssh").glob("ssh_host_*"):
        host_key.unlink()
    resolver = tree / "etc/resolv.conf"
    resolver.unlink(missing_ok=True)
    resolver.symlink_to("../run/systemd/resolve/resolv.conf")
    return inputs


def _packages(tree: Path) -> dict[str, Package]:
    """The installed packages with their digests. apt's lists, which know them, are gone from the tree afterwards."""
    lists = tree / "var/lib/apt/lists"
    found = packages.installed(_run("Listing packages", "chroot", tree, "dpkg-query", "-W", "-f", packages.FORMAT), lists)
    for path in lists.iterdir():
        if path.is_file():
            path.unlink()
    return found


def _compare(recipe: Recipe, wanted: dict[str, Package], found: dict[str, Package]) -> None:
    different = lock.differences(wanted, found)
    if different:
        raise ImageError(
            f"The packages are not those of the lock {recipe.lock}: {'; '.join(different)}.",
            f"A `snapshot` in the recipe gives old ones; `vmrunner image build {recipe.name} --ignore-lock`, "
            f"then `vmrunner image lock {recipe.name}` take the new ones.",
        )


def _take_kernel(tree: Path, out: Path) -> str:
    """Copy kernel and initrd out for a direct boot; returns the kernel's version."""
    kernels = sorted((tree / "boot").glob("vmlinuz-*"))
    if not kernels:
        raise ImageError("The image has no kernel.", "Add a linux-image package to the recipe.")
    version = kernels[-1].name.removeprefix("vmlinuz-")
    shutil.copyfile(kernels[-1], out / "vmlinuz")
    shutil.copyfile(tree / "boot" / f"initrd.img-{version}", out / "initrd")
    for path in out.iterdir():
        path.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
    return version


def _write_disk(tree: Path, disk: Path, work: Path, size_mib: int) -> None:
    raw = work / "disk.raw"
    with raw.open("wb") as out:
        out.truncate(size_mib << 20)
    # No journal start-up work, and no lazy initialisation that would write in the background of every machine.
    _run("Making the file system", "mke2fs", "-q", "-t", "ext4", "-E", "lazy_itable_init=0", "-L", "root", "-d", tree, raw)
    _run("Making the disk", "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "compat=1.1", raw, disk)
    disk.chmod(0o444)
