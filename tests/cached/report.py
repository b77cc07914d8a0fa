"""The figures of tests.cached as a table for docs/performance.md, and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Runs = Mapping[str, Sequence[Mapping[str, Any]]]
SIDES = {
    "cold": "nothing kept",
    "far": "`actions/cache`, over the link",
    "near": "`actions/cache`, on the host",
    "all": "all caches",
    "next": "all caches, another repository",
}
"""What is compared: each name in the table."""
COLORS = ("#999999", "#c9dcef", "#9fbfdf", "#4878a8", "#1f3f5f")


def table(figures: Mapping[str, Runs]) -> str:
    """In Markdown: a line for each workflow and side; of a cold one a single run is known."""
    lines = [
        "| workflow | side | first run, s | second run, s | first, MB | second, MB | as fast |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, sides in figures.items():
        cold = next(iter(sides.values()))[0]
        for side, (first, *later) in sides.items():
            seconds = [f"{first['seconds']:.1f}", *(f"{each['seconds']:.1f}" for each in later[:1])]
            mb = [f"{first['mb']:.1f}", *(f"{each['mb']:.1f}" for each in later[:1])]
            times = [f"{cold['seconds'] / each['seconds']:.1f}" for each in later[:1]]
            cells = [name, SIDES[side], *_two(seconds), *_two(mb), *(times or [""])]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _two(cells: list[str]) -> list[str]:
    return [*cells, ""][:2]


def draw(figures: Mapping[str, Runs], path: Path) -> None:
    """Seconds and megabytes of the second runs, side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = (
        ("fetch and install, second run, s", "seconds"),
        ("over the outside link, second run, MB", "mb"),
    )
    sides = [side for side in SIDES if any(side in runs for runs in figures.values())]
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 1 + 1.1 * len(figures)), layout="constrained")
    for axis, (title, what) in zip(axes, panels, strict=True):
        for number, side in enumerate(sides):
            shift = (number - (len(sides) - 1) / 2) * 0.17
            found = {
                place + shift: runs[side][-1][what]
                for place, runs in enumerate(figures.values())
                if side in runs
            }
            label, color = SIDES[side].replace("`", ""), COLORS[number]
            bars = axis.barh(list(found), list(found.values()), 0.16, color=color, label=label)
            axis.bar_label(bars, labels=[f" {each:.1f}" for each in found.values()], fontsize=8)
        axis.set_yticks(range(len(figures)), list(figures))
        axis.set_title(title, loc="left", fontsize=10)
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    told = axes[0].get_legend_handles_labels()
    figure.legend(*told, fontsize=8, frameon=False, loc="outside lower center", ncols=len(sides))
    figure.savefig(path, dpi=110)
