"""What doctor says of the forge's webhook."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vmrunner.config import Config
from vmrunner.doctor import forge
from vmrunner.doctor.findings import Level


def test_the_webhook(tmp_path: Path) -> None:
    def told(kind: str = "gitea", webhook: dict[str, Any] | None = None) -> list[tuple[Level, str]]:
        table = (
            {"listen": "192.0.2.5:8484", "secret_file": str(secret)} if webhook is None else webhook
        )
        section = {"kind": kind, "url": "https://forge.example"}
        pools = {"p": {"labels": ["a"], "image": "a"}}
        settings = {
            "manager": "m",
            "runtime_dir": str(tmp_path),
            "forge": section,
            "pools": pools,
            "serve": {"webhook": table},
        }
        return [(each.level, each.said) for each in forge.webhook(Config.model_validate(settings))]

    secret = tmp_path / "secret"
    assert told(webhook={}) == []
    assert told() == [(Level.ERROR, f"The secret file {secret} does not exist.")]
    secret.write_text("s3cret")
    secret.chmod(0o644)
    (readable, never) = told()
    assert (readable[0], "chmod 600" in readable[1]) == (Level.WARNING, True)
    assert never == (
        Level.WARNING,
        "The forge's webhook was never heard at 192.0.2.5:8484: jobs wait for the poll.",
    )
    secret.chmod(0o600)
    (tmp_path / "m.webhook").touch()
    os.utime(tmp_path / "m.webhook", (1_767_225_600, 1_767_225_600))
    ((level, said),) = told()
    assert (level, said.startswith("heard last at 202")) == (Level.GOOD, True)
    assert told("forgejo") == [
        (Level.WARNING, "Forgejo has no webhook for jobs that wait, so nothing will be heard.")
    ]
