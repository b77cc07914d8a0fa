"""What `top` draws, as lines. Pure."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from vmrunner.cli.app import lasted
from vmrunner.cli.shown import Pool, Status
from vmrunner.cli.top_state import Log, Row, Seen, State, Today, choice, rows
from vmrunner.model.pace import Pace, between
from vmrunner.text import presentable, size

_WIDE, _MIDDLE, _NARROW = 120, 76, 50  # columns of a terminal that has room for so much
_SHORT = 8  # characters of a name's end, by which commands know it
_LONGEST = 300  # characters of others' words
_KEYS = "j/k choose  l log  h hold  r release  d destroy  p pause  q quit"
_FEW_KEYS = "j k  l log  h r d  p  q quit"
_SAID = 4  # lines of what came of a key
_STALE = 10.0  # seconds


@dataclass(frozen=True)
class _Column:
    title: str
    cells: list[str]
    is_number: bool = False


def whole(seen: Seen, width: int) -> list[Text]:
    """All there is; `width` is 0 where nothing is cut."""
    status, shown = seen.status, rows(seen.status)
    lines = _top(seen, State(), width) + _pools(status, width)
    if shown:
        lines += _machines(seen, shown, "", width)
    return [_cut(line, width) for line in lines + _queue(status, width)]


def picture(seen: Seen, log: Log, state: State, width: int, height: int) -> list[Text]:
    """As many lines as the terminal has, at most."""
    status, shown = seen.status, rows(seen.status)
    chosen = choice(state, [row.name for row in shown])
    top, bottom = _top(seen, state, width), _bottom(shown, chosen, state, width)
    room = max(0, height - len(top) - len(bottom))
    pools = _some(_pools(status, width), max(1, room // 4))
    room = max(0, room - len(pools))
    below = _log(log, state.log_of) if state.log_of else _queue(status, width)
    machines = _machines(seen, shown, chosen, width) if shown else [Text("no machines", "dim")]
    least = room // 2 if state.log_of else room // 3
    share = min(len(below), max(least, room - len(machines)))
    above = _around(machines, [row.name for row in shown], chosen, room - share)
    below = [*below[:1], *below[1:][-(share - 1) :]] if state.log_of else _some(below, share)
    body = (top + pools + above + below[:share])[: max(0, height - len(bottom))]
    body += [Text()] * (height - len(bottom) - len(body))
    return [_cut(line, width) for line in (body + bottom)[-height:]]


def _top(seen: Seen, state: State, width: int) -> list[Text]:
    status = seen.status
    said = f"manager {presentable(status.manager)} on {presentable(status.host)}"
    clock = time.strftime("%H:%M:%S", time.localtime(seen.at)) if seen.at else ""
    if state.is_paused:
        clock = f"paused at {clock}"
    gap = max(1, width - cell_len(said) - len(clock))
    lines = [Text(said + " " * gap + clock, "bold")]
    if seen.problem:
        lines.append(Text(presentable(seen.problem, _LONGEST), "red"))
    elif status.seen_seconds_ago > _STALE:
        ago = lasted(status.seen_seconds_ago)
        lines.append(Text(f"as it was {ago} ago: the pass since then is not over", "yellow"))
    problems = dict.fromkeys(queue.problem for queue in status.forge if queue.problem)
    lines += [Text(presentable(each, _LONGEST), "red") for each in list(problems)[:2]]
    lines.append(Text(_today(seen.today), "dim"))
    return lines


def _today(today: Today | None) -> str:
    if today is None:
        return "today: the history can't be read"
    if not today.jobs:
        return "today: no job is over yet"
    mean = today.waiting_seconds / today.jobs
    return (
        f"today: {today.jobs} jobs, {today.failed} failed, in the queue {mean:.1f} s on average, "
        f"{today.longest_wait_seconds:.1f} s at most"
    )


def _pools(status: Status, width: int) -> list[Text]:
    found = []
    for pool in status.pools:
        waiting = sum(wait.pool == pool.name for wait in status.waiting)
        found.append(Text(_pool(pool, waiting, is_narrow=0 < width < _MIDDLE)))
        if (backoff := pool.backoff) and backoff.seconds:
            line = f"  backed off for {backoff.seconds:.0f} s: {backoff.last}"
            found.append(Text(presentable(line, _LONGEST), "red"))
    return found


def _pool(pool: Pool, waiting: int, *, is_narrow: bool) -> str:
    name, drained = presentable(pool.name), ", drained" if pool.drained else ""
    held = f", {pool.held} held" if pool.held else ""
    if is_narrow:
        return f"{name}: {len(pool.machines)} of {pool.max}, {waiting} waiting{held}{drained}"
    idle = f", {pool.idle} idle" if pool.register_idle else ""
    return (
        f"{name}: {len(pool.machines)} of {pool.max} machines, {pool.running} running, "
        f"{pool.ready} warm{idle}{held}, {waiting} waiting{drained}"
    )


def _machines(seen: Seen, shown: list[Row], chosen: str, width: int) -> list[Text]:
    """A line of titles, and one for each."""
    is_wide, has_figures = width == 0 or width >= _WIDE, width == 0 or width >= _MIDDLE
    paces = [_pace(seen, row) for row in shown]
    names = [row.name if is_wide else row.name[-_SHORT:] for row in shown]
    columns = [
        _Column("", [">" if row.name == chosen else "" for row in shown]),
        _Column("machine", names),
        *([_Column("pool", [row.pool for row in shown])] if is_wide else []),
        _Column("phase", [row.phase for row in shown]),
        _Column("age", [lasted(row.age_seconds) for row in shown], is_number=True),
        _Column("cpu", [_cpu(*each) for each in paces], is_number=True),
    ]
    if width == 0 or width >= _NARROW:
        memory = [_memory(seen, row, is_wide=is_wide) for row in shown]
        columns.append(_Column("memory", memory, is_number=True))
    if has_figures:
        for title, which in (("disk/s", "written"), ("in/s", "received"), ("out/s", "sent")):
            cells = [_bytes(pace, which, is_mean=is_mean) for pace, is_mean in paces]
            columns.append(_Column(title, cells, is_number=True))
    columns.append(_Column("job", [row.job for row in shown]))
    lines = _table(columns)
    for row, line in zip(shown, lines[1:], strict=True):
        if row.name == chosen:
            line.stylize("reverse")
        elif row.is_in_trouble:
            line.stylize("red")
        elif row.is_held:
            line.stylize("yellow")
    return lines


def _queue(status: Status, width: int) -> list[Text]:
    more = sum(queue.unread for queue in status.forge)
    if not status.waiting:
        return [Text(f"{more} jobs wait, and were not looked at yet" if more else "no job waits")]
    titles = [
        f"{each.repository}: {each.name}" if each.repository else each.name
        for each in status.waiting
    ]
    widest = width // 3
    columns = [
        _Column("waiting job", [presentable(each)[: widest or None] for each in titles]),
        _Column("age", [lasted(each.age_seconds) for each in status.waiting], is_number=True),
        _Column("why", [each.reason for each in status.waiting]),
    ]
    rest = [Text(f"and {more} more that were not looked at yet", "yellow")] if more else []
    return _table(columns) + rest


def _log(log: Log, machine: str) -> list[Text]:
    lines = [Text(f"log of {machine[-_SHORT:]} (l closes it)", "bold")]
    if log.machine != machine:
        return lines  # it is being read
    if log.problem:
        lines.append(Text(presentable(log.problem, _LONGEST), "red"))
    return lines + [
        Text(
            f"{time.strftime('%H:%M:%S', time.localtime(entry.at))} {entry.source:8} "
            f"{presentable(entry.text, _LONGEST)}"
        )
        for entry in log.entries
    ]


def _bottom(shown: Iterable[Row], chosen: str, state: State, width: int) -> list[Text]:
    if state.asked_of:
        long = f"Destroy {state.asked_of}? A job that runs on it fails. [y/n]"
        short = f"Destroy {state.asked_of[-_SHORT:]}? Its job fails. [y/n]"
        return [Text(long if width >= len(long) else short, "red")]
    if state.said:
        lines = textwrap.wrap(presentable(state.said, _LONGEST), max(1, width))
        return [Text(line, "yellow") for line in lines[:_SAID]]
    keys = Text(_KEYS if width >= len(_KEYS) else _FEW_KEYS, "dim")
    mine = [row for row in shown if row.name == chosen and row.job and width < _WIDE]
    return [*(Text(f"{row.name}: {presentable(row.job)}", "dim") for row in mine), keys]


def _around(lines: list[Text], names: list[str], chosen: str, room: int) -> list[Text]:
    """The titles, and those lines around the chosen one that have room."""
    if len(lines) <= room or not names:
        return lines[: max(0, room)]
    shown = max(1, room - 1)
    first = min(max(0, names.index(chosen) - shown // 2), len(names) - shown)
    return [lines[0], *lines[1 + first : 1 + first + shown]] if room > 1 else lines[:room]


def _some(lines: list[Text], most: int) -> list[Text]:
    if len(lines) <= most:
        return lines
    kept = lines[: max(0, most - 1)]
    return [*kept, Text(f"and {len(lines) - len(kept)} more", "dim")][:most]


def _table(columns: Sequence[_Column]) -> list[Text]:
    """All but the last column as wide as they have to be."""
    cells = [[column.title, *map(presentable, column.cells)] for column in columns]
    widths = [max(map(cell_len, each)) for each in cells]
    lines = []
    for number, row in enumerate(zip(*cells, strict=True)):
        padded = [
            " " * (width - cell_len(cell)) + cell
            if column.is_number
            else set_cell_size(cell, width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ]
        lines.append(Text(" ".join(padded).rstrip(), "dim" if number == 0 else ""))
    return lines


def _cut(line: Text, width: int) -> Text:
    """Never on two lines of the terminal, whatever is in it."""
    line.no_wrap = True
    if width:
        line.truncate(width, overflow="crop")
    return line


def _pace(seen: Seen, row: Row) -> tuple[Pace | None, bool]:
    """Its pace just now, or (True) on average until now."""
    if pace := seen.paces.get(row.name):
        return pace, False
    used, seconds = seen.used.get(row.name), row.age_seconds
    return (between(type(used)(), used, seconds), True) if used and seconds else (None, True)


def _cpu(pace: Pace | None, is_mean: bool) -> str:
    return f"{'~' if is_mean else ''}{pace.cpu:.0%}" if pace else "-"


def _bytes(pace: Pace | None, which: str, *, is_mean: bool) -> str:
    said = size(int(getattr(pace, which))) if pace else "-"
    return f"~{said}" if is_mean and said != "-" else said


def _memory(seen: Seen, row: Row, *, is_wide: bool) -> str:
    used = seen.used.get(row.name)
    if not used or not used.memory_peak_mib:
        return "-"
    took = size(used.memory_peak_mib << 20)
    return f"{took} of {size(used.memory_mib << 20)}" if is_wide else took
