"""Man pages, made of what the commands say of themselves: `python -m vmrunner.cli.man FOLDER`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from inspect import cleandoc
from pathlib import Path
from typing import Any

import typer

from vmrunner import __version__
from vmrunner.cli.app import COMMANDS, app
from vmrunner.errors import VmrunnerError

_MORE_CODES = {
    0: "It is done; of doctor: all is well.",
    1: "It could not be done for a reason that has no code of its own.",
    10: "vmrunner doctor has warnings.",
    11: "vmrunner doctor has errors.",
    130: "Interrupted, by Ctrl-C.",
    143: "Ended, by SIGTERM.",
}
_VARIABLES = {
    "VMRUNNER_CONFIG": "The configuration file, as with --config.",
    "VMRUNNER_LOG_FORMAT": "As --log-format.",
    "VMRUNNER_LOG_LEVEL": "As --log-level.",
    "NO_COLOR": "Set to anything: no colours.",
}
_FILES = {
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


def pages() -> dict[str, str]:
    """Every page, by its file's name."""
    for name in COMMANDS:
        import_module(f"vmrunner.cli.{name}_cmd")
    group: Any = typer.main.get_group(app)
    context = typer.Context(group, info_name="vmrunner")
    found = {"vmrunner.1": _page(["vmrunner"], group, context, _whole(group))}
    for name, (_, line) in COMMANDS.items():
        command = group.commands[name]
        inner = typer.Context(command, info_name=name, parent=context)
        body = [*_body(command, inner), *_see([])]
        found[f"vmrunner-{name}.1"] = _page(["vmrunner", name], command, inner, body, line)
    return found


def _page(words: list[str], command: Any, context: Any, body: Iterable[str], line: str = "") -> str:
    title = "-".join(words)
    lines = [
        f'.TH "{title.upper()}" 1 "" "vmrunner {__version__}" "vmrunner"',
        ".SH NAME",
        _text(f"{title} - {(line or command.help).removesuffix('.')}"),
        ".SH SYNOPSIS",
        *_synopsis(command, context),
        *body,
    ]
    return "\n".join(lines) + "\n"


def _whole(group: Any) -> Iterator[str]:
    yield from [".SH DESCRIPTION", *_paragraphs(group.help)]
    for heading in dict.fromkeys(heading for heading, _ in COMMANDS.values()):
        yield f".SS {_text(heading)}"
        for name, (of, line) in COMMANDS.items():
            if of == heading:
                yield from [".TP", f".BR vmrunner\\-{name} (1)", _text(line)]
    yield from _options(group)
    yield from [".SH EXIT STATUS", *_list((str(code), said) for code, said in exit_codes().items())]
    yield from [".SH ENVIRONMENT", *_list(_VARIABLES.items())]
    yield from [".SH FILES", *_list(_FILES.items())]
    yield from _see(list(COMMANDS))


def _body(command: Any, context: Any) -> Iterator[str]:
    yield from [".SH DESCRIPTION", *_paragraphs(command.help)]
    yield from _options(command)
    for name, inner in getattr(command, "commands", {}).items():
        inside = typer.Context(inner, info_name=name, parent=context)
        yield f".SH {_text(f'{context.info_name} {name}'.upper())}"
        yield from _synopsis(inner, inside)
        yield ".PP"
        yield from _paragraphs(inner.help)
        yield from _options(inner, heading="")


def _synopsis(command: Any, context: Any) -> list[str]:
    return [
        f".B {_text(context.command_path)}",
        _text(" ".join(command.collect_usage_pieces(context))),
    ]


def _options(command: Any, heading: str = ".SH OPTIONS") -> Iterator[str]:
    rows = []
    for param in command.params:
        if param.param_type_name == "argument":
            rows.append((param.metavar or param.name.upper(), param.help or ""))
        else:
            value = "" if param.is_flag else f" {(param.metavar or param.name).upper()}"
            names = ", ".join((*param.opts, *param.secondary_opts))
            rows.append((f"{names}{value}", param.help or ""))
    if rows:
        yield from [heading] if heading else []
        yield from _list(rows)


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
