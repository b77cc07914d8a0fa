"""Plots as plain shapes, for templates: where each line, bar and label of an SVG is. Pure.

Colours, fonts and dashes are the style sheet's: an SVG with styles of its own would need a weaker
Content-Security-Policy, and could not go dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

WIDTH, HEIGHT = 640, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 8, 10, 24
_ROWS = 4  # lines of the grid, at least
_MOST_TICKS = 6
SERIES = 5  # that can be told apart


@dataclass(frozen=True)
class Line:
    """A series: one value for each time, None where there is none."""

    name: str
    values: tuple[float | None, ...]

    @property
    def last(self) -> float | None:
        """The newest value."""
        return next((value for value in reversed(self.values) if value is not None), None)


@dataclass(frozen=True)
class Label:
    """A text beside an axis, and where its tick is."""

    at: float
    text: str


@dataclass(frozen=True)
class Path:
    """A series' line in pieces, or its bars: `index` chooses its colour."""

    index: int
    name: str
    pieces: tuple[str, ...]  # points of a polyline
    dots: tuple[tuple[float, float], ...]  # values without neighbours
    bars: tuple[tuple[float, float, float, float], ...]  # x, y, width, height


@dataclass(frozen=True)
class Chart:
    """One plot, with its numbers as a table."""

    id: str
    title: str
    said: str  # in a sentence, for who does not see it
    paths: tuple[Path, ...]
    rows: tuple[Label, ...]
    columns: tuple[Label, ...]
    table: tuple[tuple[str, ...], ...]  # one row for each time
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    bottom: int = HEIGHT - _BOTTOM

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to see."""
        return not any(path.pieces or path.dots or path.bars for path in self.paths)


@dataclass(frozen=True)
class Bar:
    """One of a list of bars."""

    name: str
    value: str
    width: float  # of the longest, in percent


@dataclass(frozen=True)
class Bars:
    """A list of bars, the longest first, with what the rest comes to."""

    id: str
    title: str
    bars: tuple[Bar, ...]


def chart(
    name: str,
    title: str,
    times: Sequence[str],
    lines: Sequence[Line],
    say: Callable[[float], str],
    *,
    stacked: bool = False,
) -> Chart:
    """A plot of these lines, or of bars that stand on each other; `times` names each place, `say`
    a value.
    """
    places = len(times)
    tops = [
        sum(value or 0.0 for value in column)
        if stacked
        else max((value for value in column if value is not None), default=0.0)
        for column in zip(*(line.values for line in lines), strict=True)
    ]
    step = _nice(max(tops, default=0.0) / _ROWS)
    rows = max(_ROWS, math.ceil(max(tops, default=0.0) / step))
    wide, high = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
    top = rows * step

    def x(place: float) -> float:
        return round(_LEFT + wide * (place + 0.5) / max(1, places), 1)

    def y(value: float) -> float:
        return round(_TOP + high * (1 - value / top), 1)

    below = [0.0] * places
    paths = []
    for index, line in enumerate(lines):
        if stacked:
            paths.append(_bars(index, line, below, x, y, wide / max(1, places)))
        else:
            paths.append(_line(index, line, x, y))
    every = math.ceil(places / _MOST_TICKS)
    latest = ", ".join(f"{line.name} {say(line.last)}" for line in lines if line.last is not None)
    return Chart(
        id=name,
        title=title,
        said=f"{title}, the newest values: {latest}" if latest else f"{title}: nothing yet",
        paths=tuple(paths),
        rows=tuple(Label(y(row * step), say(row * step)) for row in range(rows + 1)),
        columns=tuple(Label(x(place), times[place]) for place in range(0, places, every)),
        table=tuple(
            (time, *("–" if value is None else say(value) for value in column))  # noqa: RUF001
            for time, column in zip(
                times, zip(*(line.values for line in lines), strict=True), strict=True
            )
            if any(column)
        )
        if lines
        else (),
    )


def _line(index: int, line: Line, x: Callable[[float], float], y: Callable[[float], float]) -> Path:
    """Broken where there is no value."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for place, value in enumerate(line.values):
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append((x(place), y(value)))
    return Path(
        index,
        line.name,
        tuple(" ".join(f"{a},{b}" for a, b in piece) for piece in pieces if len(piece) > 1),
        tuple(piece[0] for piece in pieces if len(piece) == 1),
        (),
    )


def _bars(
    index: int,
    line: Line,
    below: list[float],
    x: Callable[[float], float],
    y: Callable[[float], float],
    wide: float,
) -> Path:
    """On what is below, which grows."""
    found = []
    for place, value in enumerate(line.values):
        if value:
            bottom, below[place] = y(below[place]), below[place] + value
            top = y(below[place])
            found.append(
                (round(x(place) - wide * 0.4, 1), top, round(wide * 0.8, 1), round(bottom - top, 1))
            )
    return Path(index, line.name, (), (), tuple(found))


def bars(
    name: str, title: str, values: dict[str, float], say: Callable[[float], str], most: int
) -> Bars:
    """The greatest of these, and the others together."""
    ordered = sorted(values.items(), key=lambda each: (-each[1], each[0]))
    shown, rest = ordered[:most], ordered[most:]
    if rest:
        shown.append((f"{len(rest)} more", sum(value for _, value in rest)))
    longest = max((value for _, value in shown), default=0.0)
    return Bars(
        name,
        title,
        tuple(
            Bar(each or "(no job)", say(value), round(100 * value / longest, 1) if longest else 0.0)
            for each, value in shown
        ),
    )


def _nice(step: float) -> float:
    """The next of 1, 2 and 5 times a power of ten; 1 for nothing, so that an empty plot has an
    axis.
    """
    if step <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.9999)


@dataclass(frozen=True)
class Piece:
    """A part of a machine's life."""

    name: str
    began: float  # unix seconds
    seconds: float
    left: float  # percent of the whole life
    width: float


def timeline(moments: Sequence[tuple[str, float]]) -> tuple[Piece, ...]:
    """A life in pieces: each goes from its moment to the next one that is known (0: it is not); the
    last moment is the end. Moments are of several clocks, so one may seem to be before the one
    before it: then it lasts nothing.
    """
    known: list[tuple[str, float]] = []
    for name, at in moments:
        if at > 0:
            known.append((name, max(at, known[-1][1] if known else at)))
    if len(known) < 2:
        return ()
    begin, whole = known[0][1], max(known[-1][1] - known[0][1], 1e-9)
    return tuple(
        Piece(
            name,
            at,
            after - at,
            round(100 * (at - begin) / whole, 2),
            round(100 * (after - at) / whole, 2),
        )
        for (name, at), (_, after) in pairwise(known)
    )
