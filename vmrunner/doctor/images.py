"""The pools' images: whole, young enough, the current version a good one, its snapshot made."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from vmrunner.config import Config, PoolConfig
from vmrunner.doctor.findings import Finding, error, failed, good, supported, warning
from vmrunner.errors import ImageError
from vmrunner.hypervisor.seam import Snapshots
from vmrunner.image.recipe import recipe
from vmrunner.image.versions import promotion, proof, store
from vmrunner.machine.clones import Shelf
from vmrunner.model.image import Golden
from vmrunner.model.label import without_docker
from vmrunner.support import least_git, numbers
from vmrunner.text import dotted


def look(settings: Config, snapshots: Snapshots) -> Iterator[Finding]:
    """Each pool's image and snapshot; an image that several pools share is read once."""
    seen: set[str] = set()
    for name, pool in settings.pools.items():
        try:
            golden = store.for_machines(settings.images_dir, pool.image)
            if pool.image not in seen:
                store.verify(golden)
        except ImageError as why:
            yield _unusable(settings, pool.image, why)
            continue
        try:
            golden = store.for_machines(settings.images_dir, pool.image, pool.tools)
            if golden.tools and golden.tools.name not in seen:
                store.verify(golden.tools)
        except ImageError as why:
            yield _unusable(settings, pool.tools or "", why)
            continue
        if pool.image not in seen:
            days = (
                datetime.now(UTC) - datetime.fromisoformat(golden.manifest.built_at)
            ).total_seconds() / 86400
            shown = (
                f"{golden.name} {golden.version} was built {days:.0f} days ago, and is as its "
                "manifest says"
            )
            fix = (
                f"`sudo vmrunner image refresh {golden.name}`; `vmrunner systemd install` has a "
                "timer for that."
            )
            old = warning("image", f"{shown}: nothing in it was updated since.", fix)
            yield (
                old
                if days > settings.images.max_age.total_seconds() / 86400
                else good("image", shown)
            )
            yield from _promotion(settings, golden)
        if golden.tools and golden.tools.name not in seen:
            yield _whole(golden.tools)
        seen.update(part.name for part in golden.parts)
        yield from _runner(name, pool, golden)
        yield from _docker(name, pool, golden)
        if pool.start != "boot":
            yield _snapshot(settings, snapshots, golden, name, pool)
    for tools in dict.fromkeys(each.tools for each in settings.garm.flavors.values()):
        if tools and tools not in seen:
            yield from _tools(settings, tools)


def _tools(settings: Config, name: str) -> Iterator[Finding]:
    """A disk of tools that only flavors have: their image is GARM's affair."""
    try:
        disk = store.find_tools(settings.images_dir, name)
        store.verify(disk)
    except ImageError as why:
        yield _unusable(settings, name, why)
    else:
        yield _whole(disk)


def _whole(disk: Golden) -> Finding:
    has = ", ".join(each.rpartition("/")[0] for each in disk.manifest.tools)
    return good("tools", f"{disk.id} is as its manifest says, and has {has}")


def _unusable(settings: Config, image: str, why: ImageError) -> Finding:
    """An image that was never built needs no other name where there is a recipe of it."""
    if recipe.exists(image, settings.recipes_dir) and not store.versions(
        settings.images_dir, image
    ):
        return error(
            "image", f"The image {image} is not built yet.", f"`sudo vmrunner image build {image}`."
        )
    return failed("image", why)


def _runner(name: str, pool: PoolConfig, golden: Golden) -> Iterator[Finding]:
    """The pool's runner, where the recipe says its version; a missing one is said elsewhere."""
    carried = golden.manifest.runners.get(pool.runner) if pool.runner else golden.manifest.runner
    if carried and carried.version:
        where = f"in {golden.name} is what pool {name} runs jobs with"
        yield supported("runner", carried.kind, carried.version, where)
        yield from _git(golden, carried.kind, carried.version)


def _git(golden: Golden, runner: str, version: str) -> Iterator[Finding]:
    """Whether the runner's git is new enough, as far as the image's packages tell; `image verify`
    asks the program.
    """
    least = least_git(runner, version)
    package = golden.manifest.packages.get("git")
    has = numbers(package.version.rpartition(":")[2]) if package else ()
    if not least or not golden.manifest.packages or has >= least:
        return
    found = f"its git is {dotted(has)}" if has else "it has no package git"
    yield warning(
        "runner",
        f"{runner} {version} fetches actions with git {dotted(least)} or newer, and of "
        f"{golden.name} is known: {found}.",
        f"Build it with a newer one; `vmrunner image verify {golden.name}` asks git itself.",
    )


def _docker(name: str, pool: PoolConfig, golden: Golden) -> Iterator[Finding]:
    if golden.manifest.lacks_docker and (said := without_docker(pool.labels, golden.name)):
        fix = (
            "Use one like debian-13-docker (docs/containers.md). Where a script of the recipe "
            "installs Docker, "
            'say so in its [checks]: docker = "docker version".'
        )
        yield warning("image", f"Pool {name}: {said}.", fix)


def _promotion(settings: Config, golden: Golden) -> Iterator[Finding]:
    """What became of the version, and of the last refresh."""
    last = next(reversed(promotion.history(settings.images_dir, golden.name)), None)
    if last and last.why is promotion.Why.STEPPED_BACK:
        fix = (
            "See why those machines failed with `vmrunner history --failed`; a version that is "
            "promoted by hand is tried anew."
        )
        yield warning(
            "image", f"{golden.name} was rolled back automatically at {last.at}: {last.cause}.", fix
        )
    found = proof.read(golden)
    if last and last.forced and not (found and found.is_good):
        said = f"is not good: {found.said}" if found else "was not verified"
        fix = f"`vmrunner image verify {golden.name}` boots a machine of it."
        yield warning(
            "image", f"{golden.name} {golden.version} was promoted all the same, and {said}.", fix
        )
    if bad := promotion.newest_bad(settings.images_dir, golden.name):
        fix = f"`vmrunner image verify {golden.name}/{bad}` says why; `image prune` removes it."
        yield warning(
            "image",
            f"The newer version {bad} of {golden.name} was found bad, and is not used.",
            fix,
        )


def _snapshot(
    settings: Config, snapshots: Snapshots, golden: Golden, name: str, pool: PoolConfig
) -> Finding:
    if found := snapshots.find(golden, pool.shape):
        return good(
            "snapshot", f"pool {name} starts machines from {found.key}, {found.disk_mib} MiB"
        )
    failure = Shelf(settings.state_dir).failure(snapshots.key(golden, pool.shape))
    if failure is None:
        return good("snapshot", f"pool {name} has none yet; it is made with its first machine")
    fix = f"Mend that, then `vmrunner snapshot create --pool {name}`."
    if failure.denied and _has_apparmor():
        fix = (
            "AppArmor has to permit it: `vmrunner snapshot apparmor "
            ">>/etc/apparmor.d/local/abstractions/libvirt-qemu`."
        )
    return warning("snapshot", f"Machines of pool {name} are booted: {failure.cause}", fix)


def _has_apparmor() -> bool:
    try:
        return (
            Path("/sys/module/apparmor/parameters/enabled").read_text(encoding="ascii").strip()
            == "Y"
        )
    except OSError:
        return False
