"""The plots of docs/results.md, from the cells of the variants: means over seeds, 95% intervals."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.study_figures import Cell, Iteration, interval

Lines = Mapping[str, tuple[str, Callable[[Iteration], float | None]]]
"""name in the legend -> colour, and what is drawn; None where an iteration has no such value"""


def plot_all(variants: Mapping[str, Sequence[Cell]], page: Path) -> None:
    """Write `<page>-curves.png`, `-transitions.png` and `-kept.png`."""
    rewards: Lines = {
        "r(Y1)": ("#8c8c8c", lambda one: one["test"]["r_y1"]),
        "r(Y2)": ("#1f6feb", lambda one: one["test"]["r_y2"]),
        "r(Y2), correcting M0's answers (F variants)": (
            "#d4730b",
            lambda one: one.get("fixed", {}).get("test", {}).get("r_y2"),
        ),
    }
    plot(variants, page.with_name(f"{page.stem}-curves.png"), "Reward on test", rewards)
    transitions: Lines = {
        "i->c": ("#2da44e", lambda one: one["test"]["i_to_c"]),
        "c->i": ("#cf222e", lambda one: one["test"]["c_to_i"]),
    }
    title = "Shares of the test questions, own answers corrected"
    plot(variants, page.with_name(f"{page.stem}-transitions.png"), title, transitions)
    kept: Lines = {
        "i->c": ("#2da44e", lambda one: one.get("examples", {}).get("kept_i_to_c")),
        "c->c": ("#8250df", lambda one: one.get("examples", {}).get("kept_c_to_c")),
    }
    plot(variants, page.with_name(f"{page.stem}-kept.png"), "Corrections kept for training", kept)


def plot(variants: Mapping[str, Sequence[Cell]], file: Path, title: str, lines: Lines) -> None:
    """One panel per variant."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.5), layout="constrained")
    figure.suptitle(f"{title}: mean and 95% interval over seeds", fontsize=11)
    panels = figure.subplots(2, 4, sharex=True, sharey=True).ravel()
    for axes, (label, cells) in zip(panels, sorted(variants.items()), strict=False):
        for name, (color, read) in lines.items():
            xs, means, halves = by_iteration(cells, read)
            if not xs:
                continue
            axes.plot(xs, means, marker="o", markersize=3, color=color, label=name)
            low, high = (
                [m - h for m, h in zip(means, halves, strict=True)],
                [m + h for m, h in zip(means, halves, strict=True)],
            )
            axes.fill_between(xs, low, high, color=color, alpha=0.2, linewidth=0)
        axes.set_title(label, fontsize=10)
        axes.grid(alpha=0.25)
    handles = {
        text: handle
        for axes in panels
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    for axes in panels[4:]:
        axes.set_xlabel("iteration", fontsize=9)
    figure.legend(handles.values(), handles.keys(), fontsize=8, loc="outside lower center", ncols=3)
    figure.savefig(file, dpi=100)


def by_iteration(
    cells: Sequence[Cell], read: Callable[[Iteration], float | None]
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
