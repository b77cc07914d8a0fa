"""The configured forge's client."""

from __future__ import annotations

from vmrunner.config import ForgeConfig
from vmrunner.forge.forgejo import Forgejo
from vmrunner.forge.gitea import Gitea
from vmrunner.forge.http import Http
from vmrunner.forge.seam import Forge
from vmrunner.model.secret import Secret

_KINDS: dict[str, type[Forgejo | Gitea]] = {"forgejo": Forgejo, "gitea": Gitea}


def connect(config: ForgeConfig, token: Secret) -> Forge:
    """Nothing is sent yet: whether the forge answers shows with the first call."""
    http = Http(config.url, token, config.ca_file)
    return _KINDS[config.kind](http)
