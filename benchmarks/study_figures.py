"""What a study's cells say: which iteration, which metric, means with 95% intervals, differences by seed.

An interval is Student's t over the seeds. A difference is taken within each seed: both sides of a seed have
the same questions.
"""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Student's t, 97.5%, by degrees of freedom (any table of it)."""
Cell = dict[str, Any]
Iteration = dict[str, Any]
Cells = dict[str, dict[str, list[Cell]]]
"""part -> label -> one cell per seed"""
Pick = Callable[[Cell], Iteration]
BySeed = Mapping[int, float]


def lines(file: Path) -> list[Cell]:
    """The cells of a study's cells.jsonl, by name; none if there is no such file yet."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def read(file: Path) -> Cells:
    """All cells of a study."""
    found: Cells = defaultdict(lambda: defaultdict(list))
    for cell in lines(file):
        found[cell["part"]][cell["label"]].append(cell)
    return found


# --- which iteration ----------------------------------------------------------------------------------------


def first(cell: Cell) -> Iteration:
    """M0."""
    return cell["iterations"][0]


def last(cell: Cell) -> Iteration:
    """The last iteration."""
    return cell["iterations"][-1]


def nth(number: int) -> Pick:
    """That iteration, or the last where a run ended before."""
    return lambda cell: cell["iterations"][min(number, len(cell["iterations"]) - 1)]


def chosen(cell: Cell) -> Iteration:
    """The iteration with the best r(Y2) on dev, the earliest of equals: what a run publishes."""
    return max(cell["iterations"], key=lambda one: (one["dev"]["r_y2"], -one["iteration"]))


def chosen_first(cell: Cell) -> Iteration:
    """The iteration with the best first answers on dev: the choice if a model is not asked to correct."""
    return max(cell["iterations"], key=lambda one: (one["dev"]["r_y1"], -one["iteration"]))


def best_on_test(cell: Cell) -> Iteration:
    """What no one can choose: the paper's maximum over iterations on test."""
    return max(cell["iterations"], key=lambda one: one["test"]["r_y2"])


def on_base_answers(pick: Pick) -> Pick:
    """The same choice by corrections of M0's answers, which F variants are trained for."""

    def picked(cell: Cell) -> Iteration:
        return pick({**cell, "iterations": [{**one, **one.get("fixed", {})} for one in cell["iterations"]]})

    return picked


# --- values -------------------------------------------------------------------------------------------------


def by_seed(cells: Sequence[Cell], pick: Pick, metric: str = "r_y2", split: str = "test") -> dict[int, float]:
    """A metric of one split; those that are not defined left out."""
    values = {cell["seed"]: pick(cell)[split].get(metric) for cell in cells}
    return {seed: value for seed, value in values.items() if value is not None}


def mean(cells: Sequence[Cell], pick: Pick, metric: str = "r_y2", split: str = "test") -> str:
    """Over the seeds, with its interval."""
    return told(list(by_seed(cells, pick, metric, split).values()), len(cells))


def votes(cells: Sequence[Cell], pick: Pick, voters: int, of: str = "votes") -> dict[int, float]:
    """The share that the commonest of so many first (`corrected_votes`: last) answers gets right."""
    return {cell["seed"]: found[of][str(voters)] for cell in cells if of in (found := pick(cell))}


def trained_behind(cell: Cell, iteration: Iteration) -> int:
    """Tokens that a version was trained on, from M0 on; if fine-tunes start from M0, the last one's."""
    from_base = cell["part"] == "variants" and cell["label"].endswith("F")
    return iteration.get("trained_tokens", 0) if from_base else spent_behind(cell, iteration)


def spent_behind(cell: Cell, iteration: Iteration) -> int:
    """Tokens that were trained on until there was this version, whatever each fine-tune started from."""
    number = iteration["iteration"]
    return sum(one.get("trained_tokens", 0) for one in cell["iterations"] if one["iteration"] <= number)


def generated_behind(cell: Cell, iteration: Iteration) -> int:
    """Tokens that were generated to learn from (on train questions) until there was this version."""
    earlier = [one for one in cell["iterations"] if one["iteration"] < iteration["iteration"]]
    return sum(sum(one["generated"].get("train", {}).values()) for one in earlier)


def at_tokens(cell: Cell, tokens: int) -> float:
    """r(Y2) on test with that many tokens behind a version, interpolated between iterations.

    Evolving fine-tuning adds the tokens up.
    """
    behind = [trained_behind(cell, one) for one in cell["iterations"]]
    return float(np.interp(tokens, behind, [one["test"]["r_y2"] for one in cell["iterations"]]))


# --- means and differences ----------------------------------------------------------------------------------


def interval(sample: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95% interval; not a number for fewer than two."""
    if len(sample) < 2:
        return (sample[0] if sample else math.nan), math.nan
    half = T_975[min(len(sample) - 1, max(T_975))] * statistics.stdev(sample) / math.sqrt(len(sample))
    return statistics.mean(sample), half


def told(sample: Sequence[float], of: int | None = None) -> str:
    """`0.712 ± 0.031`; with the number of seeds where only some of them have a value."""
    mean, half = interval(sample)
    if math.isnan(mean):
        return "-"
    fewer = f" (n = {len(sample)})" if of and len(sample) < of else ""
    return (f"{mean:.3f}" if math.isnan(half) else f"{mean:.3f} ± {half:.3f}") + fewer


def difference(one: BySeed, other: BySeed) -> list[float]:
    """Seed by seed, of those that both have."""
    return [one[seed] - other[seed] for seed in sorted(one) if seed in other]


def told_difference(one: BySeed, other: BySeed) -> str:
    """`+0.012 ± 0.031 (5 seeds)`."""
    mean, half = interval(difference(one, other))
    if math.isnan(mean):
        return "-"
    return (
        f"{mean:+.3f}" if math.isnan(half) else f"{mean:+.3f} ± {half:.3f}"
    ) + f" ({len(difference(one, other))} seeds)"


def verdict(one: BySeed, other: BySeed) -> str:
    """Better, worse, or not told apart."""
    mean, half = interval(difference(one, other))
    return (
        "too few seeds"
        if math.isnan(half)
        else "better"
        if mean > half
        else "worse"
        if -mean > half
        else "not told apart"
    )
