"""The plots of docs/results.md, from the cells of a study's variants."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from study_figures import Cell, interval  # pyright: ignore[reportMissingImports]


def plot_curves(variants: Mapping[str, Sequence[Cell]], file: Path) -> None:
    """r(Y1) and r(Y2) with their intervals, iteration by iteration."""
    figure, panels = grid("Test reward by iteration: mean and 95% interval over seeds")
    lines: dict[str, tuple[str, Callable[[Mapping[str, Any]], float | None]]] = {
        "r(Y1)": ("#8c8c8c", lambda one: one["test"]["r_y1"]),
        "r(Y2)": ("#1f6feb", lambda one: one["test"]["r_y2"]),
        "r(Y2), correcting M0's answers": ("#d4730b", lambda one: one["fixed"]["test"]["r_y2"] if "fixed" in one else None),
    }
    for axes, (label, cells) in zip(panels, sorted(variants.items()), strict=False):
        for name, (color, read) in lines.items():
            xs, means, halves = by_iteration(cells, read)
            if not xs:
                continue
            axes.plot(xs, means, marker="o", markersize=3, color=color, label=name)
            low, high = [m - h for m, h in zip(means, halves, strict=True)], [m + h for m, h in zip(means, halves, strict=True)]
            axes.fill_between(xs, low, high, color=color, alpha=0.2, linewidth=0)
        axes.set_title(label, fontsize=10)
        axes.grid(alpha=0.25)
    handles = {text: handle for axes in panels for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), fontsize=8, loc="outside lower center", ncols=3)
    figure.savefig(file, dpi=100)


def plot_lines(variants: Mapping[str, Sequence[Cell]], file: Path, title: str, group: str, lines: Mapping[str, str]) -> None:
    """Figures of a group (`test`, `examples`) by iteration; `lines` names them in the legend."""
    figure, panels = grid(title)
    for axes, (label, cells) in zip(panels, sorted(variants.items()), strict=False):
        for (metric, name), color in zip(lines.items(), ("#2da44e", "#cf222e"), strict=True):
            xs, means, _ = by_iteration(cells, lambda one, metric=metric: one.get(group, {}).get(metric))
            axes.plot(xs, means, marker="o", markersize=3, color=color, label=name)
        axes.set_title(label, fontsize=10)
        axes.grid(alpha=0.25)
    panels[0].legend(fontsize=8)
    figure.savefig(file, dpi=100)


def grid(title: str) -> Any:
    """A figure with one panel per variant."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    figure.suptitle(title, fontsize=11)
    return figure, figure.subplots(2, 4, sharex=True, sharey=True).ravel()


def by_iteration(
    cells: Sequence[Cell], read: Callable[[Mapping[str, Any]], float | None]
) -> tuple[list[int], list[float], list[float]]:
    """Iterations, means and half intervals of what is there."""
    samples: dict[int, list[float]] = defaultdict(list)
    for cell in cells:
        for one in cell["iterations"]:
            if (value := read(one)) is not None:
                samples[one["iteration"]].append(value)
    xs = sorted(samples)
    pairs = [interval(samples[x]) for x in xs]
    return xs, [mean for mean, _ in pairs], [0.0 if math.isnan(half) else half for _, half in pairs]
