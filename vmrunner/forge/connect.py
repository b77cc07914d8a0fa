"""The configured forge's client."""

from __future__ import annotations

from vmrunner.config import ForgeConfig
from vmrunner.forge.seam import Forge
from vmrunner.model.secret import Secret


def connect(config: ForgeConfig, token: Secret) -> Forge:
    """Nothing is sent yet: whether the forge answers shows with the first call."""
    # here: each takes long to load, and one of the kinds is enough
    from vmrunner.forge.http import Http

    http = Http(config.url, token, config.ca_file)
    if config.kind == "gitea":
        from vmrunner.forge.gitea import Gitea

        return Gitea(http)
    from vmrunner.forge.forgejo import Forgejo

    return Forgejo(http)
