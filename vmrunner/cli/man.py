"""Man pages, made of what the commands say of themselves: `python -m vmrunner.cli.man FOLDER`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from inspect import cleandoc
from pathlib import Path
from typing import Any

import typer

from vmrunner import __version__
from vmrunner.cli.app import COMMANDS, app
from vmrunner.cli.meanings import ENDINGS, WAITS
from vmrunner.errors import VmrunnerError

_MORE_CODES = {
    0: "It is done; of doctor: all is well.",
    1: "It could not be done for a reason that has no code of its own.",
    10: "vmrunner doctor has warnings.",
    11: "vmrunner doctor has errors.",
    130: "Interrupted, by Ctrl-C.",
    143: "Ended, by SIGTERM.",
}
VARIABLES = {
    "VMRUNNER_CONFIG": "The configuration file, as with --config.",
    "VMRUNNER_LOG_FORMAT": "As --log-format.",
    "VMRUNNER_LOG_LEVEL": "As --log-level.",
    "NO_COLOR": "Set to anything: no colours.",
}
FILES = {
    "/etc/vmrunner/vmrunner.toml": "The configuration.",
    "/etc/vmrunner/forge-token": "The access token of the forge, mode 0600.",
    "/etc/vmrunner/recipes": "Recipes of your own for golden images.",
    "/var/lib/vmrunner": "Golden images and history.",
}


def exit_codes() -> dict[int, str]:
    """Every exit code and what it means."""
    found = dict(_MORE_CODES)

    def add(kind: type[VmrunnerError]) -> None:
        if "exit_code" in vars(kind) and kind.exit_code not in found:
            found[kind.exit_code] = cleandoc(kind.__doc__ or "").partition("\n\n")[0]
        for each in kind.__subclasses__():
            add(each)

    add(VmrunnerError)
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Described:
    """A command as it describes itself; `inner`: those below it."""

    path: str
    synopsis: str
    text: str
    options: tuple[tuple[str, str], ...]
    inner: tuple[Described, ...]


def described() -> Described:
    """All commands, with `vmrunner` as the one above them."""
    for name in COMMANDS:
        import_module(f"vmrunner.cli.{name}_cmd")
    group: Any = typer.main.get_group(app)
    return _describe(group, typer.Context(group, info_name="vmrunner"))


def _describe(command: Any, context: Any) -> Described:
    inner = getattr(command, "commands", {})
    names = [name for name in COMMANDS if name in inner] if context.parent is None else inner
    return Described(
        context.command_path,
        " ".join(command.collect_usage_pieces(context)),
        command.help or "",
        tuple(_option(param) for param in command.params),
        tuple(
            _describe(inner[name], typer.Context(inner[name], info_name=name, parent=context))
            for name in names
        ),
    )


def _option(param: Any) -> tuple[str, str]:
    if param.param_type_name == "argument":
        return param.metavar or param.name.upper(), param.help or ""
    value = "" if param.is_flag else f" {param.metavar or _choices(param) or param.name.upper()}"
    said = f"{param.help or ''}{_default(param)}"
    return f"{', '.join((*param.opts, *param.secondary_opts))}{value}", said


def _choices(param: Any) -> str:
    """The words that it takes; empty where it takes any. Only older versions of typer have them in
    the parameter.
    """
    words = getattr(getattr(param, "type", None), "choices", None)
    kind = type(param.default)
    words = words or ([each.value for each in kind] if issubclass(kind, Enum) else [])
    return "|".join(getattr(each, "value", each) for each in words)


def _default(param: Any) -> str:
    """What holds where the option is not given, as `--help` says it."""
    if param.show_default is False or (param.is_flag and not param.secondary_opts):
        return ""
    shown = param.show_default if isinstance(param.show_default, str) else param.default
    if isinstance(shown, bool):
        shown = (param.opts if shown else param.secondary_opts)[0].removeprefix("--")
    return f" Default: {getattr(shown, 'value', shown)}." if shown else ""


def pages() -> dict[str, str]:
    """Every page, by its file's name."""
    whole = described()
    found = {"vmrunner.1": _page(whole, _whole(whole))}
    for command, (_, line) in zip(whole.inner, COMMANDS.values(), strict=True):
        name = command.path.replace(" ", "-")
        body = [*_body(command), *_MORE.get(name, list)(), *_see([])]
        found[f"{name}.1"] = _page(command, body, line)
    return found


def _page(command: Described, body: Iterable[str], line: str = "") -> str:
    title = command.path.replace(" ", "-")
    lines = [
        f'.TH "{title.upper()}" 1 "" "vmrunner {__version__}" "vmrunner"',
        ".SH NAME",
        _text(f"{title} - {(line or command.text).removesuffix('.')}"),
        ".SH SYNOPSIS",
        *_synopsis(command),
        *body,
    ]
    return "\n".join(lines) + "\n"


def _whole(command: Described) -> Iterator[str]:
    yield from [".SH DESCRIPTION", *_paragraphs(command.text)]
    for heading in dict.fromkeys(heading for heading, _ in COMMANDS.values()):
        yield f".SS {_text(heading)}"
        for name, (of, line) in COMMANDS.items():
            if of == heading:
                yield from [".TP", f".BR vmrunner\\-{name} (1)", _text(line)]
    yield from _options(command)
    yield from [".SH EXIT STATUS", *_list((str(code), said) for code, said in exit_codes().items())]
    yield from [".SH ENVIRONMENT", *_list(VARIABLES.items())]
    yield from [".SH FILES", *_list(FILES.items())]
    yield from _see(list(COMMANDS))


def _body(command: Described) -> Iterator[str]:
    yield from [".SH DESCRIPTION", *_paragraphs(command.text)]
    yield from _options(command)
    for inner in command.inner:
        yield f".SH {_text(inner.path.removeprefix('vmrunner ').upper())}"
        yield from _synopsis(inner)
        yield ".PP"
        yield from _paragraphs(inner.text)
        yield from _options(inner, heading="")


def _waits() -> Iterator[str]:
    yield ".SH REASONS TO WAIT"
    yield from _list((kind.value, f"{each.says}: {each.means}") for kind, each in WAITS.items())


def _endings() -> Iterator[str]:
    yield ".SH ENDINGS"
    yield from _list(
        (kind.value, f"{each.happened} Its job: {each.job}.") for kind, each in ENDINGS.items()
    )


_MORE: dict[str, Callable[[], Iterable[str]]] = {
    "vmrunner-status": _waits,
    "vmrunner-history": _endings,
}


def _synopsis(command: Described) -> list[str]:
    return [f".B {_text(command.path)}", _text(command.synopsis)]


def _options(command: Described, heading: str = ".SH OPTIONS") -> Iterator[str]:
    if command.options:
        yield from [heading] if heading else []
        yield from _list(command.options)


def _list(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    for term, said in rows:
        yield from [".TP", f".B {_text(term)}", _text(said)]


def _paragraphs(text: str) -> Iterator[str]:
    for number, paragraph in enumerate((text or "").split("\n\n")):
        if number:
            yield ".PP"
        yield _text(paragraph)


def _see(names: list[str]) -> list[str]:
    pages = [f"vmrunner\\-{name} (1)" for name in names] or ["vmrunner (1)"]
    return [".SH SEE ALSO", *(f".BR {page}" for page in pages)]


def _text(text: str) -> str:
    """Words in one line that roff takes for nothing but words."""
    line = re.sub(r"\s+", " ", text).strip().replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{line}" if line.startswith((".", "'")) else line


def main() -> None:
    """Write the pages into the folder that the command line names."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in pages().items():
        (folder / name).write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
