"""`vmrunner init`."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from vmrunner.cli import names
from vmrunner.cli.app import (
    DEFAULT_PATH,
    ConfigOption,
    app,
    err,
    out,
    report,
    say,
    warn,
)
from vmrunner.errors import (
    ConfigError,
    ForgeDenied,
    ForgeError,
    ForgeTokenUnknown,
    ForgeUnreachable,
    VmrunnerError,
    WrongCommand,
)

if TYPE_CHECKING:
    from vmrunner.cli.first_files import Answers, Places
    from vmrunner.config import Config, ForgeConfig, HostConfig
    from vmrunner.doctor.answers import Met
    from vmrunner.model.job import Scope
    from vmrunner.model.label import Label
    from vmrunner.model.secret import Secret

T = TypeVar("T")
_IMAGE, _SCOPE = "debian-12-full", "instance"


@dataclass(frozen=True)
class _Asker:
    """Asks where somebody can be asked, and again until the answer will do."""

    asks: bool  # else what is missing has its default, where that is wanted
    yes: bool

    def get(
        self,
        question: str,
        given: str | None,
        check: Callable[[str], T],
        default: str = "",
        *,
        hidden: bool = False,
    ) -> T:
        """The answer, checked. What an option gave is not asked for; raises what `check` raises."""
        if given is not None or not self.asks:
            return check(default if given is None else given)
        while True:
            text = self._typed(f"{question}{f' [{default}]' if default else ''}: ", hidden=hidden)
            try:
                return check(text or default)
            except VmrunnerError as why:
                report(why)

    def _typed(self, question: str, *, hidden: bool) -> str:
        try:
            if hidden:
                return getpass.getpass(question, stream=sys.stderr).strip()
            err.print(question, end="")
            line = sys.stdin.readline()
        except EOFError:
            line = ""
        if not line:
            err.print("\nNothing was done.")
            raise typer.Exit(VmrunnerError.exit_code)
        return line.strip()


@app.command("init")
def init(
    url: Annotated[
        str | None, typer.Option("--url", help="The forge's address, as in a browser.")
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind",
            help="forgejo or gitea; needed only where the forge does not tell its version.",
            autocompletion=names.forges,
        ),
    ] = None,
    scope: Annotated[
        str | None,
        typer.Option(
            "--scope",
            help="Whose jobs: instance, user, organisation:NAME or repository:OWNER/NAME; several "
            "with blanks between them.",
            show_default=_SCOPE,
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            help="A file with the forge's access token, which is copied. /dev/stdin works, too.",
        ),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            "--image",
            help="The recipe that machines are made of, or an image that has a runner.",
            show_default=_IMAGE,
            autocompletion=names.recipes,
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            help="What jobs say with runs-on; several with blanks between them.",
            show_default="the image's name",
        ),
    ] = None,
    runner: Annotated[
        str | None,
        typer.Option(
            "--runner",
            metavar="VERSION|FILE",
            help="The forge's runner: a version to fetch, or a file.",
            show_default="a version that is known",
        ),
    ] = None,
    mirror: Annotated[
        str, typer.Option("--mirror", metavar="URL", help="Where to fetch it: see `runner fetch`.")
    ] = "",
    ca_file: Annotated[
        Path | None,
        typer.Option("--ca-file", metavar="FILE", help="Certificates of a forge's private CA."),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Ask nothing: take the defaults of what is missing.")
    ] = False,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """Set up this host: ask for what no option gives, check each answer at once, write the
    configuration, the token's file and an image's recipe, and look at the host as `doctor` does.

    Nothing is overwritten, and nothing is written before all answers are right.
    """
    from vmrunner.cli import first_files
    from vmrunner.cli.doctor_cmd import tell

    places = first_files.Places(config_path.absolute())
    first_files.refuse_old(places.config)
    first_files.refuse_closed(places)
    has_token = places.token.is_file() and token_file in {None, places.token}
    if not has_token:
        first_files.refuse_old(places.token)
    given: dict[str, object] = {
        "--url": url,
        "--token-file": token_file or (has_token or None),
        "--scope": scope,
        "--image": image,
        "--labels": labels,
        "--runner": runner or image,  # one that has a runner needs no other
    }
    asker = _Asker(_can_ask() and not yes, yes)
    if not asker.asks:
        _refuse_gaps([name for name, value in given.items() if value is None], yes=yes)
    host = _host(places)
    met = asker.get("The forge's address", url, lambda text: _meet(text, host, ca_file))
    found_kind = asker.get(
        "Is it forgejo or gitea?", kind or met.kind or None, lambda text: _kind(text, met)
    )
    token, scopes = _token(
        asker,
        token_file or (places.token if has_token else None),
        scope,
        _forge(found_kind, met.url, ca_file),
    )
    answers, recipe = _image(
        asker,
        places,
        host,
        (image, labels, runner, mirror),
        (found_kind, met.url, ca_file, tuple(map(str, scopes))),
    )
    texts = {**recipe}
    if not has_token:
        texts[places.token] = (first_files.token_text(token), 0o600)
    settings = _write(places, answers, texts)
    out.print()
    tell(settings)
    _next(settings, answers, places)


def _can_ask() -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and err.is_terminal


_WANTED = {
    "--url": "the forge's address",
    "--token-file": "a file with its access token",
    "--scope": "whose jobs",
    "--image": "the recipe of the machines' image",
    "--labels": "what jobs say with runs-on",
    "--runner": "the version of the forge's runner, or its file",
}


def _refuse_gaps(missing: list[str], *, yes: bool) -> None:
    """Where nobody is asked. Raises WrongCommand."""
    without = [name for name in missing if name in {"--url", "--token-file"} or not yes]
    if without:
        listed = "".join(f"\n  {name} is missing: {_WANTED[name]}." for name in without)
        raise WrongCommand(
            f"Nobody is asked here, and there are not all answers.{listed}",
            "--yes takes the defaults of the others; `vmrunner init --help` names them.",
        )


def _host(places: Places) -> HostConfig:
    from vmrunner.config import HostConfig

    return HostConfig(recipes_dir=places.recipes)


def _meet(text: str, host: HostConfig, ca_file: Path | None) -> Met:
    from vmrunner.doctor import answers

    found = answers.met(text, host, ca_file)
    say(f"{found.url}: {found.kind or 'a forge'} {found.version or '(which tells no version)'}")
    return found


def _kind(text: str, met: Met) -> str:
    if text not in {"forgejo", "gitea"}:
        raise WrongCommand(
            "The forge does not tell whether it is Forgejo or Gitea."
            if not text
            else f"There is no kind of forge {text!r}.",
            "--kind is forgejo or gitea.",
        )
    if met.kind and met.kind != text:
        raise WrongCommand(
            f"{met.url} is {met.kind} {met.version}, and --kind says {text}.", "Leave --kind out."
        )
    return text


def _forge(kind: str, url: str, ca_file: Path | None) -> ForgeConfig:
    from vmrunner.config import ForgeConfig

    return ForgeConfig.model_validate({"kind": kind, "url": url, "ca_file": ca_file})


def _token(
    asker: _Asker, file: Path | None, scope: str | None, forge: ForgeConfig
) -> tuple[Secret, tuple[Scope, ...]]:
    """The token and the scopes that it is good for: what the forge does not know is asked again,
    the token or the scope.
    """
    from vmrunner.doctor.answers import may

    def ask_scopes(given: str | None, default: str) -> tuple[Scope, ...]:
        return asker.get("Whose jobs", given, _scopes, default)

    def ask_token() -> Secret:
        question = _token_question(scopes)
        given = None if file is None else ""
        return asker.get(question, given, lambda text: _secret(text, file), hidden=True)

    scopes = ask_scopes(scope, _SCOPE)
    token = ask_token()
    while True:
        try:
            waiting = may(forge, token, scopes)
        except ForgeUnreachable:
            raise
        except ForgeError as why:
            other_token = file is None and isinstance(why, ForgeDenied)
            other_scope = scope is None and not isinstance(why, ForgeTokenUnknown)
            if not asker.asks or not (other_token or other_scope):
                raise
            report(why)
            if other_scope:
                scopes = ask_scopes(None, " ".join(map(str, scopes)))
            if other_token:
                token = ask_token()
            continue
        named = ", ".join(map(str, scopes))
        say(f"The token may see jobs and make runners for {named} ({waiting} jobs there now).")
        return token, scopes


def _token_question(scopes: tuple[Scope, ...]) -> str:
    from vmrunner.forge.http import token_scope

    wanted = ", ".join(dict.fromkeys(token_scope(each) for each in scopes))
    return f"An access token with {wanted} (on Gitea with read:repository, too; it is not shown)"


def _scopes(text: str) -> tuple[Scope, ...]:
    from vmrunner.model.job import Scope

    found = tuple(dict.fromkeys(map(Scope.parse, text.replace(",", " ").split())))
    return found or (Scope.parse(text),)


def _secret(text: str, file: Path | None) -> Secret:
    from vmrunner import config
    from vmrunner.model.secret import Secret

    if file is not None:
        return config.token_in(file, warn)
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigError("That is not a token.", "It is one word, which the forge shows once.")
    return Secret(text)


def _image(
    asker: _Asker,
    places: Places,
    host: HostConfig,
    given: tuple[str | None, str | None, str | None, str],
    forge: tuple[str, str, Path | None, tuple[str, ...]],
) -> tuple[Answers, dict[Path, tuple[str, int]]]:
    """The pool's part of the configuration, and the recipe where one has to be written."""
    from vmrunner.cli import first_files
    from vmrunner.config import default_manager
    from vmrunner.doctor import answers

    (image, labels, runner, mirror), (kind, url, ca_file, scopes) = given, forge
    base = asker.get(
        "The recipe of the machines' image",
        image,
        lambda text: answers.base(text, kind, host),
        _IMAGE,
    )

    def right(text: str) -> tuple[Label, ...]:
        found = answers.labels(text.replace(",", " ").split())
        answers.base(base.name, kind, host, found)
        return found

    found = asker.get(
        "Labels that jobs name with runs-on",
        labels,
        right,
        base.name.removesuffix("-full").removesuffix("-runner"),
    )
    name = base.name if base.has_runner else first_files.own_image(base.name)
    texts = {}
    if not base.has_runner:
        first_files.refuse_old(
            places.recipe(name), f"Take it with --image {name}, or move it away."
        )
        if runner is None and not asker.asks:
            _refuse_gaps(["--runner"], yes=asker.yes)
        lines = _runner(asker, host, kind, runner, mirror)
        texts[places.recipe(name)] = (first_files.recipe_text(base.name, lines), 0o644)
    return (
        first_files.Answers(default_manager(), kind, url, ca_file, scopes, found, name),
        texts,
    )


def _runner(asker: _Asker, host: HostConfig, kind: str, given: str | None, mirror: str) -> str:
    """The recipe's lines for the runner, which is on this host then."""
    from vmrunner import files
    from vmrunner.image.build import release
    from vmrunner.machine.seed import RUNNERS
    from vmrunner.support import FIRST

    program = RUNNERS[kind]

    def have(text: str) -> str:
        if "/" in text:
            path = Path(text).absolute()
            try:
                return release.recipe(program, path, files.digest(path))
            except OSError as error:
                raise ConfigError(
                    f"The runner {path} can't be read: {error.strerror}.",
                    "Name the program's file, or a version to fetch.",
                ) from None
        wanted = release.release(kind, text, release.this_arch(), mirror)
        if wanted.untried:
            warn(wanted.untried)
        say(f"fetching {wanted.url}")
        return wanted.fetch(host.state_dir / "runners").recipe

    return asker.get(f"Version of {program} to fetch, or its file", given, have, FIRST[program])


def _write(places: Places, answers: Answers, texts: dict[Path, tuple[str, int]]) -> Config:
    """All files, the configuration last; what it says then, as every command reads it."""
    from vmrunner import config
    from vmrunner.cli import first_files

    text = first_files.config_text(config.example(), places, answers)
    texts = {**texts, places.config: (text, 0o644)}
    first_files.write(texts)
    for path in texts:
        out.print(f"wrote {path}")
    return config.load(places.config)


def _next(settings: Config, answers: Answers, places: Places) -> None:
    from vmrunner.image.versions import store

    more = "" if places.config == DEFAULT_PATH else f" -c {places.config}"
    steps = [f"vmrunner doctor{more}", f"vmrunner systemd install{more}   # and what it prints"]
    if not store.current(settings.images_dir, answers.image):
        steps.insert(0, f"vmrunner image build {answers.image}{more}")
    out.print("\nNext, as root:")
    for step in steps:
        out.print(f"  {step}")
    label = answers.labels[0].name
    out.print(f"\nThen a job with `runs-on: {label}` runs in a machine of its own.")
