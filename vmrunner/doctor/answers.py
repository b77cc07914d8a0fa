"""Whether what an admin answers can be: a forge's address, what its token may do, an image. Each
raises a VmrunnerError that says what is wrong.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from vmrunner.config import ForgeConfig, HostConfig
from vmrunner.doctor import address, forge
from vmrunner.errors import ConfigError, ForgeError, ImageError
from vmrunner.forge.connect import connect
from vmrunner.forge.http import Http
from vmrunner.image.recipe import recipe
from vmrunner.image.versions import store
from vmrunner.machine.seed import RUNNERS
from vmrunner.model.job import Scope
from vmrunner.model.label import Label, without_docker
from vmrunner.model.secret import Secret
from vmrunner.network import forge_url, reach
from vmrunner.support import Fit, fit, least
from vmrunner.text import dotted, presentable, sentence


@dataclass(frozen=True)
class Met:
    """A forge that answers; `kind` and `version` are empty where it tells no stranger."""

    url: str
    kind: str
    version: str


def met(text: str, host: HostConfig, ca_file: Path | None) -> Met:
    """The forge at this address, which machines can reach, too."""
    try:
        url = forge_url.parse(text.strip())
    except ValueError as why:
        raise ConfigError(
            sentence(f"the forge's address can't be that: {why}"), "Copy it from a browser."
        ) from None
    ipv6 = host.network.ipv6 is not None
    if wrong := reach.fault(url, host.libvirt.subnet, ipv6=ipv6):
        raise wrong
    with closing(Http(url, Secret(""), ca_file)) as http:
        version = presentable(address.meet(http))
    kind = address.kind_of(version)
    if kind and fit(kind, version) is Fit.OLD:
        raise ForgeError(
            f"{url} is {kind} {version}, which is too old.",
            f"vmrunner needs {dotted(least(kind))} or newer (docs/support.md).",
        )
    return Met(url, kind, version)


def may(settings: ForgeConfig, token: Secret, scopes: tuple[Scope, ...]) -> int:
    """How many jobs there are now in these scopes, where the token may do what a pool needs."""
    with closing(connect(settings, token)) as client:
        return sum(forge.access(client, scope)[0] for scope in scopes)


def labels(texts: list[str]) -> tuple[Label, ...]:
    """A pool's."""
    try:
        found = tuple(dict.fromkeys(map(Label.parse, texts)))
    except ValueError as why:
        raise ConfigError(sentence(str(why)), "Several labels are parted by blanks.") from None
    if not found:
        raise ConfigError("A pool needs a label.", "It is what jobs say with `runs-on`.")
    return found


@dataclass(frozen=True)
class Base:
    """What a pool's image comes from: an image or a recipe with a runner, or a recipe that still
    needs one.
    """

    name: str
    has_runner: bool


def base(name: str, kind: str, host: HostConfig, wanted: tuple[Label, ...] = ()) -> Base:
    """The image or recipe of this name, for a forge of this kind and jobs of these labels."""
    golden = store.current(host.images_dir, name) if Path(name).name == name else None
    if golden and golden.manifest.runner:
        has, program = True, golden.manifest.runner.kind
        packages = tuple(golden.manifest.packages)
    else:
        found = recipe.load(name, host.recipes_dir)
        has, program = found.runner is not None, found.runner.kind if found.runner else ""
        packages = found.all_packages
    if has and program != RUNNERS[kind]:
        raise ImageError(
            f"The image {name} has {program}, and the forge needs {RUNNERS[kind]}.",
            "Name another one: docs/images.md.",
        )
    if not any("docker" in each for each in packages) and (why := without_docker(wanted, name)):
        raise ConfigError(sentence(why), "debian-13-docker-full has it.")
    return Base(name, has)
