"""What differs between two images, as their manifests tell it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from vmrunner.model.image import Golden, Manifest, Package, Runner

_ENOUGH = 12  # of a digest, to tell two apart


@dataclass(frozen=True)
class Change:
    """A thing in the first image and in the second; empty where it is not there."""

    first: str
    second: str


@dataclass(frozen=True)
class Difference:
    """Two images, and all that is not the same in both."""

    first: str  # name/version
    second: str
    recipe_digest: Change | None
    kernel: Change | None
    kernel_arguments: Change | None
    runner: Change | None
    packages: dict[str, Change]
    runners: dict[str, Change]  # the further ones
    tools: dict[str, Change]  # of disks of them, with the digests of their archives
    # The recipes', and archives of container images; None: one of the images is of a vmrunner that
    # did not note them.
    files: dict[str, Change] | None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known to differ."""
        changes = (self.recipe_digest, self.kernel, self.kernel_arguments, self.runner)
        parts = (self.packages, self.runners, self.tools, self.files)
        return not any(changes) and not any(parts)


def content(manifest: Manifest) -> str:
    """A digest of all that `between` compares: two versions with the same one do not differ."""
    packages = {
        name: (package.version, package.sha256) for name, package in manifest.packages.items()
    }
    files = _files(manifest, manifest.containers)
    what: list[object] = [
        manifest.recipe_digest,
        manifest.kernel,
        manifest.kernel_arguments,
        _runner(manifest.runner),
        packages,
        files,
    ]
    if manifest.runners:  # where there are none it is the digest that an older vmrunner wrote down
        what.append(_runners(manifest))
    if manifest.tools:
        what.append(manifest.tools)
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def between(first: Golden, second: Golden) -> Difference:
    """Compare two images."""
    one, other = first.manifest, second.manifest
    known = one.inputs is not None and other.inputs is not None
    both_named = one.containers is not None and other.containers is not None
    files = [_files(each, each.containers if both_named else None) for each in (one, other)]
    return Difference(
        first=first.id,
        second=second.id,
        recipe_digest=_change(one.recipe_digest, other.recipe_digest),
        kernel=_change(one.kernel, other.kernel),
        kernel_arguments=_change(one.kernel_arguments, other.kernel_arguments),
        runner=_change(_runner(one.runner), _runner(other.runner)),
        packages=_packages(one.packages, other.packages),
        runners=_changes(_runners(one), _runners(other)),
        tools=_changes(one.tools, other.tools),
        files=_changes(*files) if known else None,
    )


def _change(first: str, second: str) -> Change | None:
    return Change(first, second) if first != second else None


def _changes(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, Change]:
    pairs = (
        (name, _change(first.get(name, ""), second.get(name, "")))
        for name in sorted(first.keys() | second.keys())
    )
    return {name: change for name, change in pairs if change}


def _packages(first: Mapping[str, Package], second: Mapping[str, Package]) -> dict[str, Change]:
    """By version; by digest, too, where one version has two contents."""

    def texts(packages: Mapping[str, Package], others: Mapping[str, Package]) -> dict[str, str]:
        return {name: _package(package, others.get(name)) for name, package in packages.items()}

    return _changes(texts(first, second), texts(second, first))


def _package(package: Package, other: Package | None) -> str:
    if (
        other
        and other.version == package.version
        and package.sha256
        and other.sha256
        and other.sha256 != package.sha256
    ):
        return f"{package.version} ({package.sha256[:_ENOUGH]})"
    return package.version


def _runner(runner: Runner | None) -> str:
    return f"{runner.kind} {runner.sha256}" if runner else ""


def _runners(manifest: Manifest) -> dict[str, str]:
    return {name: _runner(runner) for name, runner in manifest.runners.items()}


def _files(manifest: Manifest, containers: Mapping[str, str] | None) -> dict[str, str]:
    """The archives of container images with what jobs call them, as far as that is known."""
    inputs, names = manifest.inputs or {}, containers or {}
    return {path: f"{names.get(path, file.mode)} {file.sha256}" for path, file in inputs.items()}
