"""The section "The recipes at equal cost" of docs/results.md, from the cells of the part `recipes`."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence

from benchmarks.study_figures import (
    Cell,
    Iteration,
    Pick,
    by_seed,
    chosen,
    difference,
    first,
    generated_behind,
    interval,
    last,
    mean,
    nth,
    spent_behind,
    told_difference,
    verdict,
)

Group = Mapping[str, Sequence[Cell]]
"""label -> its cells"""
ORDER = (
    "stasc",
    "rft",
    "verdict",
    "preference",
    "preference-sft_0.1",
    "preference-beta_0",
    "verdict_preference",
    "critique",
    "cct",
    "splice",
    "sharpening",
)
OTHERS = ("stasc", "rft", "verdict")
"""Beside which each recipe is set."""
COLUMNS = {"r(Y1)": "r_y1", "r(Y2)": "r_y2", "i->c": "i_to_c", "c->i": "c_to_i"}
OF_VERDICTS = {
    "balanced accuracy": "verdict_balanced_accuracy",
    "accuracy": "verdict_accuracy",
    'precision of "wrong"': "verdict_precision",
    'recall of "wrong"': "verdict_recall",
    "readable": "verdict_read",
}
KINDS = {
    "verdicts": ("says_right", "says_wrong"),
    "answers": ("answer",),
    "corrections": ("c_to_c", "i_to_c"),
}
"""Classes of the examples that `verdict` learns."""
BATCH = 32
"""Examples per optimizer step, study.toml's."""
ENOUGH = 0.6
"""Balanced accuracy on dev that a verifier should exceed; 0.5 is chance."""


def table(recipes: Group) -> Iterator[str]:
    """M0 and the version of each recipe that dev chose: what it cost (M0, if it was chosen: what was spent on
    the version that was not), what it is worth on test.
    """
    rows: list[tuple[str, Sequence[Cell], Pick]] = [
        (f"`{label}`", recipes[label], chosen) for label in ORDER if recipes.get(label)
    ]
    if recipes.get("stasc"):
        rows.insert(0, ("M0, corrected as `stasc` asks", recipes["stasc"], first))
    if rows:
        names = (
            "seeds",
            "iterations",
            "generated tokens",
            "trained tokens",
            "steps",
            *COLUMNS,
            "r(Y2) if trained",
        )
        yield f"| | {' | '.join(names)} |"
        yield "|---" * (1 + len(names)) + "|"
    for name, cells, pick in rows:
        chose = " ".join(str(pick(cell)["iteration"]) for cell in cells)
        # of M0's row nothing; where dev chose M0, what the version cost that it did not choose
        spent = [first(cell) if pick is first else nth(pick(cell)["iteration"] or 1)(cell) for cell in cells]
        costs = [
            statistics.mean(cost(cell, at) for cell, at in zip(cells, spent, strict=True))
            for cost in (generated_behind, spent_behind, steps_behind)
        ]
        scores = [mean(cells, pick, metric) for metric in COLUMNS.values()]
        scores.append("" if pick is first else mean(cells, last))
        told = [name, len(cells), chose, *(f"{cost:,.0f}" for cost in costs), *scores]
        yield f"| {' | '.join(map(str, told))} |"


def steps_behind(cell: Cell, iteration: Iteration) -> int:
    """Optimizer steps until there was this version."""
    number = iteration["iteration"]
    return sum(one.get("steps", 0) for one in cell["iterations"] if one["iteration"] <= number)


def differences(recipes: Group) -> Iterator[str]:
    """Each recipe's final answer against M0's and against OTHERS', seed by seed."""
    found = {label: by_seed(recipes.get(label, []), chosen) for label in ORDER}
    base = by_seed(recipes.get("stasc", []), first)
    if not base:
        return
    yield "| r(Y2) of | less M0's | " + " | ".join(f"less `{other}`'s" for other in OTHERS) + " |"
    yield "|---" * (2 + len(OTHERS)) + "|"
    for label, ours in found.items():
        learnt = any(
            chosen(cell)["iteration"] for cell in recipes.get(label, [])
        )  # else it is M0 all the same
        against = [base if learnt else {}, *(found[other] if other != label else {} for other in OTHERS)]
        cells = [
            f"{told_difference(ours, theirs)}: **{verdict(ours, theirs)}**"
            if difference(ours, theirs)
            else ""
            for theirs in against
        ]
        if ours:
            yield f"| `{label}` | " + " | ".join(cells) + " |"


def verdicts(recipes: Group) -> Iterator[str]:
    """What the verdicts are worth, by iteration."""
    cells = recipes.get("verdict", [])
    if not cells:
        return
    yield "| iteration | split | seeds | " + " | ".join(OF_VERDICTS) + " |"
    yield "|---" * (3 + len(OF_VERDICTS)) + "|"
    for number in range(max(len(cell["iterations"]) for cell in cells)):
        there = [cell for cell in cells if len(cell["iterations"]) > number]
        for split in ("dev", "test"):
            scores = " | ".join(mean(there, nth(number), metric, split) for metric in OF_VERDICTS.values())
            yield f"| {number} | {split} | {len(there)} | {scores} |"


def enough(recipes: Group) -> Iterator[str]:
    """Whether verdicts on dev are better than ENOUGH: of the chosen version, and after each iteration."""
    cells = recipes.get("verdict", [])
    numbers = range(1, max((len(cell["iterations"]) for cell in cells), default=0))
    picks = {
        "the version chosen on dev": chosen,
        **{f"iteration {number}": nth(number) for number in numbers},
    }
    for name, pick in picks.items():
        found = list(by_seed(cells, pick, "verdict_balanced_accuracy", "dev").values())
        if not found:
            continue
        middle, half = interval(found)
        below = ", but its interval reaches below" if middle > ENOUGH >= middle - half else ""
        lacking = ", from one seed" if math.isnan(half) else ""
        word = "above" if middle > ENOUGH else "not above"
        value = mean(cells, pick, "verdict_balanced_accuracy", "dev")
        yield f"- {name}, balanced accuracy on dev: {value}{lacking}: **{word} {ENOUGH}**{below}"


def learnt(recipes: Group) -> Iterator[str]:
    """What the recipe with verdicts learnt in each iteration, and how often."""
    cells = recipes.get("verdict", [])
    for number in range(1, max((len(cell["iterations"]) for cell in cells), default=0)):
        there = [cell["iterations"][number] for cell in cells if len(cell["iterations"]) > number]
        kept = {
            name: statistics.mean(
                sum(at["examples"].get(f"kept_{kind}", 0) for kind in kinds) for at in there
            )
            for name, kinds in KINDS.items()
        }
        passes = statistics.mean(at["steps"] * BATCH / at["examples"]["kept"] for at in there)
        counts = ", ".join(f"{count:,.0f} {name}" for name, count in kept.items())
        yield f"- iteration {number}: {counts}; {passes:.2f} passes over them"
