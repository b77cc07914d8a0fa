"""Words for people: others' text made safe to show, long lists made short, versions."""

from __future__ import annotations

from collections.abc import Iterable


def presentable(text: str, longest: int = 200) -> str:
    """Others' words, such as a job's name: on one line, not too long, and nothing in them that a
    terminal would obey.
    """
    short = text[:longest]
    if short.isprintable():  # as nearly all are, and there may be thousands of lines
        return short
    return "".join(char if char.isprintable() else " " for char in short)


def some(names: list[str], most: int = 4) -> str:
    """The first few of many, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def sentence(words: str) -> str:
    """Words as a sentence: with a capital letter, and a full stop where nothing else ends it."""
    return words[:1].upper() + words[1:] + ("" if words.endswith((".", "?", "!")) else ".")


def dotted(version: Iterable[int]) -> str:
    """A version's numbers as people write it."""
    return ".".join(map(str, version))


def size(number: int) -> str:
    """Bytes, for people: `734 MiB`, `1.2 GiB`; `-` for none."""
    if number < 1:
        return "-"
    value, unit = float(number), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1000 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}"
