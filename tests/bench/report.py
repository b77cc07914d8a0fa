"""The figures as a table and as a picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench import caches, load, steps
from tests.bench.path import STEPS

WAYS = {
    "snapshot": "clone of a snapshot",
    "parked": "parked clone (warm = 1)",
    "boot": "booted",
    "idle": "idle clone (register_idle = 1)",
    "snapshot-as-runner": "clone, job as runner",
    "parked-as-runner": "parked clone, job as runner",
}


def tables(figures: dict[str, Any]) -> list[Table]:
    """One for each part that was measured."""
    found = []
    if queue := figures.get("queue"):
        table = _table(
            "From queued to the first step, seconds (real Gitea, `serve`, one job at a time)",
            "start",
            "median",
            "p95",
            "jobs",
        )
        for mode, each in queue.items():
            table.add_row(
                WAYS[mode], f"{each['median']:.2f}", f"{each['p95']:.2f}", str(each["runs"])
            )
        found.append(table)
        table = _table(
            "… and when each phase was reached (medians, seconds since the job was queued)",
            "phase",
            *map(WAYS.get, queue),
        )
        for phase in next(iter(queue.values()))["phases"]:
            table.add_row(phase, *(f"{each['phases'][phase]:.2f}" for each in queue.values()))
        found.append(table)
    if costs := figures.get("caches"):
        table = _table(
            "… without caches and tools, and with all of them (medians, seconds, in turns)",
            *("start", "without", "with", "times as long", "jobs on each side"),
        )
        for mode, each in costs.items():
            seconds = (f"{each[side]:.2f}" for side in (caches.WITHOUT, caches.WITH))
            table.add_row(WAYS[mode], *seconds, f"{each['ratio']:.3f}", str(each["runs"]))
        found.append(table)
    for mode, sides in figures.get("steps", {}).items():
        table = _table(
            f"… and in steps: {WAYS[mode]} (medians, ms)", "", "vmrunner", "raw QEMU", "what ends"
        )
        table.columns[3].justify = "left"
        for step, what in steps.STEPS.items():
            shown = [f"{1000 * side[step]:.0f}" if step in side else "" for side in sides.values()]
            if any(shown):
                table.add_row(step, *shown, what)
        table.add_row("sum", *(f"{1000 * sum(side.values()):.0f}" for side in sides.values()), "")
        found.append(table)
    if life := figures.get("life"):
        table = _table(
            "A whole life that runs `true`, destroyed and swept, seconds",
            "",
            "median",
            "p95",
            "runs",
        )
        for name, each in life.items():
            table.add_row(name, f"{each['median']:.2f}", f"{each['p95']:.2f}", str(each["runs"]))
        found.append(table)
    if measured := figures.get("load"):
        table = _table(
            "A download, and writes with fsync (medians)",
            "",
            load.RULES,
            load.PLAIN,
            "ratio",
            "aim",
        )
        for what, aim in load.AIMS.items():
            sides = (f"{measured[side][what]:.1f}" for side in (load.RULES, load.PLAIN))
            table.add_row(what, *sides, f"{measured['ratio'][what]:.2f}", f"≥ {aim}")
        found.append(table)
    if memory := figures.get("memory"):
        table = _table("Idle machines of 1 GiB, MiB", "", *(WAYS[start] for start in memory))
        for name in next(iter(memory.values())):
            what = name.replace("pss_mib_of_one_of_", "one of ").replace(
                "host_mib_for_", "the host's memory for "
            )
            table.add_row(what, *(str(each[name]) for each in memory.values()))
        found.append(table)
    if path := figures.get("path"):
        table = _table(
            "`exec -- true`, cloned, step by step (medians, s)",
            "step",
            "vmrunner",
            "raw QEMU",
            "what",
        )
        table.columns[3].justify = "left"
        for step, what in STEPS.items():
            table.add_row(
                step,
                *(
                    f"{path[who][step]:.2f}" if step in path[who] else ""
                    for who in ("vmrunner", "raw QEMU")
                ),
                what,
            )
        table.add_row(
            "sum", *(f"{sum(path[who].values()):.2f}" for who in ("vmrunner", "raw QEMU")), ""
        )
        found.append(table)
    if throughput := figures.get("throughput"):
        table = _table(
            "Short jobs, two machines at once",
            "start",
            "jobs per minute",
            "manager's processor seconds per job",
            "jobs",
        )
        for start, each in throughput.items():
            table.add_row(
                WAYS[start],
                str(each["jobs_per_minute"]),
                str(each["manager_seconds_per_job"]),
                str(each["jobs"]),
            )
        found.append(table)
    if clones := figures.get("clones"):
        table = _table(
            "Clones of one snapshot in a row",
            "clones",
            "failed",
            "different identities",
            "snapshot intact",
        )
        different = min(clones["different"].values())
        table.add_row(
            str(clones["clones"]),
            str(len(clones["failures"])),
            str(different),
            "yes" if clones["snapshot_intact"] else "NO",
        )
        found.append(table)
    if resolver := figures.get("resolver"):
        kinds = [kind for kind in resolver["usual"] if kind != "unanswered"]
        table = _table(
            "A neighbour's DNS beside a machine that asks for a dead zone, ms (stand-ins)",
            "the other machine asks",
            *(f"{kind}, {which}" for kind in kinds for which in ("median", "p95")),
            "as long",
            "unanswered",
        )
        for side, each in resolver.items():
            times = [each[kind][which] for kind in kinds for which in ("median", "p95")]
            slower = max(each[kind]["median"] / resolver["usual"][kind]["median"] for kind in kinds)
            table.add_row(
                "nothing" if side == "usual" else side,
                *(f"{value:.2f}" for value in times),
                f"{slower:.2f}",
                str(each["unanswered"]),
            )
        found.append(table)
    return found


def _table(title: str, *columns: str | None) -> Table:
    table = Table(
        *(column or "" for column in columns),
        title=title,
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def save(figures: dict[str, Any], folder: Path) -> None:
    """`benchmarks.txt` and `benchmarks.png`."""
    console = Console(file=io.StringIO(), width=120, highlight=False)
    for table in tables(figures):
        console.print(table)
        console.print()
    text = console.file.getvalue()  # type: ignore[attr-defined]
    (folder / "benchmarks.txt").write_text(
        "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
    )
    _draw(figures, folder / "benchmarks.png")


def _draw(figures: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels: list[tuple[str, list[str], list[float], list[float]]] = []
    if queue := figures.get("queue"):
        each = list(queue.values())
        panels.append(
            (
                "queued → first step, s",
                [WAYS[mode] for mode in queue],
                [one["median"] for one in each],
                [one["p95"] for one in each],
            )
        )
    if life := figures.get("life"):
        each = list(life.values())
        panels.append(
            (
                "whole life of `exec -- true`, s",
                list(life),
                [one["median"] for one in each],
                [one["p95"] for one in each],
            )
        )
    if memory := figures.get("memory"):
        values = [float(one["host_mib_for_8"]) for one in memory.values()]
        panels.append(
            (
                "host memory for 8 idle machines, MiB",
                [WAYS[start] for start in memory],
                values,
                values,
            )
        )
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(9, 1 + 1.5 * len(panels)), squeeze=False, layout="constrained"
    )
    for axis, (title, names, middles, tops) in zip(axes[:, 0], panels, strict=True):
        spread = [
            [0.0] * len(names),
            [max(0.0, top - middle) for top, middle in zip(tops, middles, strict=True)],
        ]
        bars = axis.barh(names, middles, xerr=spread, color="#4878a8", ecolor="#999999")
        axis.bar_label(bars, labels=[f" {middle:g}" for middle in middles], padding=3)
        axis.set_title(title, loc="left", fontsize=10)
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
