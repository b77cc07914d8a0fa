"""The files that `vmrunner init` writes: what is in them, and that none is there before."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vmrunner.config import DEFAULT_PATH
from vmrunner.errors import ConfigError
from vmrunner.files import write_new
from vmrunner.model.label import HOST, Label
from vmrunner.model.secret import Secret

_POOL = "debian-12"  # as the example calls its own


@dataclass(frozen=True)
class Places:
    """Where they go."""

    config: Path

    @property
    def token(self) -> Path:
        """The access token's file."""
        return self.config.parent / "forge-token"

    @property
    def recipes(self) -> Path:
        """The folder of recipes."""
        return self.config.parent / "recipes"

    def recipe(self, name: str) -> Path:
        """That of one image."""
        return self.recipes / f"{name}.toml"


@dataclass(frozen=True)
class Answers:
    """What the configuration is made of."""

    manager: str
    kind: str
    url: str
    ca_file: Path | None
    scopes: tuple[str, ...]
    labels: tuple[Label, ...]
    image: str


def own_image(base: str) -> str:
    """The name of the image that extends this one by a runner."""
    return f"{base.removesuffix('-full')}-runner"


def config_text(example: str, places: Places, answers: Answers) -> str:
    """The commented example with these answers in it."""
    pool = _pool(answers.image)
    values = {
        ("", "manager"): json.dumps(answers.manager),
        ("forge", "kind"): json.dumps(answers.kind),
        ("forge", "url"): json.dumps(answers.url),
        (f"pools.{_POOL}", "labels"): json.dumps([_short(each) for each in answers.labels]),
        (f"pools.{_POOL}", "image"): json.dumps(answers.image),
        (f"pools.{_POOL}", "scope"): json.dumps(
            answers.scopes[0] if len(answers.scopes) == 1 else list(answers.scopes)
        ),
    }
    if answers.ca_file:
        values["forge", "ca_file"] = json.dumps(str(answers.ca_file.absolute()))
    if places.config != DEFAULT_PATH:  # what stands beside it is not found by itself
        values["forge", "token_file"] = json.dumps(str(places.token))
        values["", "recipes_dir"] = json.dumps(str(places.recipes))
    return _filled(example, values).replace(f"[pools.{_POOL}]", f"[pools.{pool}]")


def _filled(example: str, values: Mapping[tuple[str, str], str]) -> str:
    table, lines = "", []
    for line in example.splitlines():
        if head := re.fullmatch(r"\[([\w.-]+)\]", line):
            table = head[1]
        key = re.match(r"(?:# )?([a-z_0-9]+) = ", line)
        value = values.get((table, key[1])) if key else None
        lines.append(f"{key[1]} = {value}" if key and value else line)
    return "\n".join(lines) + "\n"


def _pool(image: str) -> str:
    """A pool's name, after its image."""
    name = re.sub(r"[^a-z0-9-]", "-", image.removesuffix("-runner").lower())
    return name[:24].strip("-") or "pool"


def _short(label: Label) -> str:
    return label.name if label.place == HOST else str(label)


def recipe_text(base: str, runner: str) -> str:
    """A recipe that adds a runner (its lines) to another one."""
    return (
        f"# Everything of {base}, and the forge's runner.\nextends = {json.dumps(base)}\n\n{runner}"
    )


def refuse_old(path: Path, hint: str = "Change it by hand, or move it away.") -> None:
    """Raises ConfigError where there is something already."""
    if path.is_symlink() or path.exists():
        raise ConfigError(f"{path} exists, and `vmrunner init` overwrites nothing.", hint)


def refuse_closed(places: Places) -> None:
    """Raises ConfigError where this user can't write there."""
    folder = next(each for each in places.config.parents if each.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(
            f"This user can't write {places.config}: {folder} is closed.",
            "Run it as root, or name another place with --config.",
        )


def write(texts: Mapping[Path, tuple[str, int]]) -> None:
    """Write all of them, each with its mode, or none. Raises ConfigError."""
    for path in texts:
        refuse_old(path)
    lay(texts, "Run it as root, or name another place with --config.")


def lay(texts: Mapping[Path, tuple[str, int]], hint: str) -> None:
    """The same for files that are known not to be there."""
    path = Path()
    try:
        with ExitStack() as stack:
            for path, (text, mode) in texts.items():
                _open_folder(path.parent)
                write_new(path, text, mode)
                stack.callback(path.unlink, missing_ok=True)
            stack.pop_all()
    except OSError as error:
        raise ConfigError(f"{path} can't be written: {error.strerror}.", hint) from None


def _open_folder(path: Path) -> None:
    """Whatever root's umask: the service's user reads the configuration there."""
    if not path.is_dir():
        path.mkdir(parents=True)
        path.chmod(0o755)


def token_text(token: Secret) -> str:
    """The token's file."""
    return f"{token.value}\n"
