"""docs/results.md and its plots from the study's cell files alone: tables with 95% intervals over seeds, and what follows.

An interval is Student's t over the seeds. "A against B" takes the difference seed by seed, since both sides of a seed have the same
questions.
"""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Student's t, 97.5%, by degrees of freedom (any table of it)."""
METRICS = {
    "r(Y1)": "r_y1",
    "r(Y2)": "r_y2",
    "delta": "delta",
    "i->c": "i_to_c",
    "c->i": "c_to_i",
    "CL": "cl",
    "CS": "cs",
    "RSS": "rss",
}
PAPER = {  # arXiv 2503.08681v1, tables 1 and 2: test in-accuracy, the maximum over iterations
    "M0": (0.212, "0.138 to 0.164", 0.294, "0.348 to 0.356"),
    "FIF": (0.212, "0.208", 0.294, "0.354"),
    "FIE": (0.212, "0.212", 0.294, "0.374"),
    "FNF": (0.212, "0.198", 0.294, "0.348"),
    "FNE": (0.212, "0.206", 0.294, "0.374"),
    "EIF": (0.244, "0.232", 0.352, "0.384"),
    "EIE": (0.236, "0.230", 0.392, "0.394"),
    "ENF": (0.240, "0.222", 0.316, "0.356"),
    "ENE": (0.234, "0.228", 0.294, "0.356"),
}
Cell = dict[str, Any]
Cells = dict[str, dict[str, list[Cell]]]
"""part -> label -> one cell per seed"""


def write(folder: Path, output: Path, expected: Mapping[str, int]) -> None:
    """Write the page, and its plots beside it; `expected`: how many cells each part has when it is whole."""
    found: Cells = defaultdict(lambda: defaultdict(list))
    for file in sorted(folder.glob("*.json")):
        cell = json.loads(file.read_text())
        found[cell["part"]][cell["label"]].append(cell)
    if not found["variants"]:
        raise SystemExit(
            f"{folder}: expected cells of the variants (variants-ENE-0.json ...), found none; `study.py run` makes them"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    plots = {name: output.with_name(f"results-{name}.png") for name in ("curves", "transitions", "kept")}
    plot_curves(found["variants"], plots["curves"])
    title = "Transitions on test by iteration: mean over seeds"
    plot_lines(found["variants"], plots["transitions"], title, "test", {"i_to_c": "i->c", "c_to_i": "c->i"})
    title = "Kept corrections by iteration: mean over seeds"
    plot_lines(found["variants"], plots["kept"], title, "examples", {"kept_i_to_c": "i->c", "kept_c_to_c": "c->c"})
    lines = page(found, {name: file.name for name, file in plots.items()}, expected)
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")


# --- figures -----------------------------------------------------------------------------------------------------


def chosen(cell: Cell) -> Mapping[str, Any]:
    """The iteration with the best r(Y2) on dev, the earliest of equals: what a run publishes."""
    return max(cell["iterations"], key=lambda one: (one["dev"]["r_y2"], -one["iteration"]))


def last(cell: Cell) -> Mapping[str, Any]:
    """The last iteration."""
    return cell["iterations"][-1]


def first(cell: Cell) -> Mapping[str, Any]:
    """M0."""
    return cell["iterations"][0]


Pick = Callable[[Cell], Mapping[str, Any]]


def fixed(pick: Pick) -> Pick:
    """The same iteration, measured as the paper measures the F variants: M0's answers corrected."""
    return lambda cell: {**pick(cell), **({"test": found["test"]} if (found := pick(cell).get("fixed")) else {})}


def values(cells: Sequence[Cell], pick: Pick, metric: str) -> list[float]:
    """A test metric, seed by seed; those that are not defined left out."""
    return [value for cell in cells if (value := pick(cell)["test"][metric]) is not None]


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


def difference(one: Sequence[Cell], other: Sequence[Cell], pick: Pick, metric: str = "r_y2") -> str:
    """Seed by seed, in words."""
    by_seed = {cell["seed"]: pick(cell)["test"][metric] for cell in other}
    pairs = [pick(cell)["test"][metric] - by_seed[cell["seed"]] for cell in one if cell["seed"] in by_seed]
    mean, half = interval(pairs)
    if math.isnan(half):
        return f"{len(pairs)} seed(s), too few to tell"
    return f"{mean:+.3f} ± {half:.3f} ({len(pairs)} seeds; {'not clear from this many' if abs(mean) <= half else 'clear'})"


# --- the page ----------------------------------------------------------------------------------------------------


def page(found: Cells, plots: Mapping[str, str], expected: Mapping[str, int]) -> Iterator[str]:
    """The lines of results.md."""
    variants, baselines = found["variants"], found["baselines"]
    some = max(variants.values(), key=len)
    most = max(len(cell["iterations"]) for cells in variants.values() for cell in cells)
    yield "# Results on the sandbox task"
    yield ""
    yield "Made by `python benchmarks/study.py report` from the study's cell files; only words on this page were typed in."
    yield (
        f"Every run: `benchmarks/study.toml` ({', '.join(some[0]['sizes']) or 'as it is'}), {len(some)} seeds (each with its own "
        f"questions, sampling and order), mean ± 95% interval over seeds (Student's t). A run took "
        f"{minutes(found)} on one CPU core, all of them {hours(found):.1f} core-hours. {commits(found)}"
    )
    there = {part: sum(map(len, found[part].values())) for part in expected}
    if fewer := [f"{part} {there[part]} of {number}" for part, number in expected.items() if there[part] < number]:
        yield f"**Not whole yet**, cells that are there: {', '.join(fewer)}."
    yield "r(Y1): reward of the first answer, r(Y2): of the corrected one, both on test; the other names as in the README."
    yield ""
    yield "## The eight variants"
    yield ""
    yield "**The version a run publishes**, chosen on dev:"
    yield ""
    yield from variant_table({"M0": (some, first), **both_ways(variants, chosen)})
    yield ""
    yield (
        "F rows are measured twice: as all others, the model's own first answers corrected, and *on M0's*, M0's answers corrected, "
        "as they are trained and as the paper measures them."
    )
    yield ""
    ended = [
        f"{label} with seed {cell['seed']}" for label, cells in variants.items() for cell in cells if len(cell["iterations"]) < most
    ]
    early = f" Earlier than the others ended, because the filter kept nothing: {', '.join(ended)}." if ended else ""
    yield f"**The last iteration**, whatever dev says.{early}"
    yield ""
    yield from variant_table(both_ways(variants, last))
    yield ""
    yield f"![r(Y1) and r(Y2) by iteration]({plots['curves']})"
    yield ""
    yield f"![Transitions by iteration]({plots['transitions']})"
    yield ""
    yield f"![Examples kept by iteration]({plots['kept']})"
    yield ""
    yield "## The paper's questions, answered here"
    yield ""
    yield from answers(found)
    yield ""
    yield "Each comparison has its own 95% interval; of twenty that are nothing, one looks clear by chance."
    yield ""
    yield "## Does correction pay for its tokens?"
    yield ""
    if baselines:
        yield from against_baselines(found)
    else:
        yield "Not run yet."
    for part, title in (("samples", "N_init x N_corr, variant ENE"), ("filters", "Other filters, from the current model")):
        yield ""
        yield f"## {title}"
        yield ""
        if found[part]:
            yield from variant_table({label: (cells, chosen) for label, cells in found[part].items()})
        else:
            yield "Not run yet."
    yield ""
    yield "## The paper's own figures"
    yield ""
    yield from papers_table()


def both_ways(variants: Mapping[str, Sequence[Cell]], pick: Pick) -> dict[str, tuple[Sequence[Cell], Pick]]:
    """Rows of the variants; two for those with Fixed initialization."""
    rows: dict[str, tuple[Sequence[Cell], Pick]] = {}
    for label, cells in variants.items():
        rows[label] = (cells, pick)
        if label.startswith("F") and any("fixed" in one for cell in cells for one in cell["iterations"]):
            rows[f"{label} on M0's"] = (cells, fixed(pick))
    return rows


def hours(found: Cells) -> float:
    """Of all cells."""
    return sum(cell["seconds"] for part in found.values() for cells in part.values() for cell in cells) / 3600


def commits(found: Cells) -> str:
    """What the cells were measured at."""
    names = sorted({cell.get("commit", "unknown") for part in found.values() for cells in part.values() for cell in cells})
    return f"Commit{'s' if len(names) > 1 else ''} {', '.join(names)}."


def minutes(found: Cells) -> str:
    """Of the variants' runs."""
    seconds = [cell["seconds"] for cells in found["variants"].values() for cell in cells]
    return f"{statistics.median(seconds) / 60:.1f} minutes (median)"


def variant_table(rows: Mapping[str, tuple[Sequence[Cell], Pick]]) -> Iterator[str]:
    """One row per label, one column per metric."""
    yield "| | seeds | " + " | ".join(METRICS) + " |"
    yield "|---" * (len(METRICS) + 2) + "|"
    for label, (cells, pick) in rows.items():
        yield (
            f"| {label} | {len(cells)} | "
            + " | ".join(told(values(cells, pick, metric), len(cells)) for metric in METRICS.values())
            + " |"
        )


def answers(found: Cells) -> Iterator[str]:
    """One sentence per question, computed."""
    variants = found["variants"]
    every = sorted(variants)

    def across(place: int, one: str, other: str) -> str:
        pairs = [(label, label[:place] + other + label[place + 1 :]) for label in every if label[place] == one]
        parts = [
            f"{mine} against {others}: {difference(variants[mine], variants[others], chosen)}"
            for mine, others in pairs
            if others in variants
        ]
        return "; ".join(parts) or "not run"

    yield f"- **Non-decreasing or improving** (the paper's definitions)? r(Y2), chosen on dev: {across(1, 'N', 'I')}."
    if found["filters"].get("both_correct") and "ENE" in variants:
        yield (
            "- **The reference's `both_correct`** against the paper's non-decreasing (ENE): "
            f"{difference(found['filters']['both_correct'], variants['ENE'], chosen)}."
        )
    yield f"- **Evolving or fixed initial answers?** {across(0, 'E', 'F')}."
    yield f"- **Fine-tuning from the current model or from M0?** {across(2, 'E', 'F')}."
    fallen = {
        label: [chosen(cell)["test"]["r_y2"] - last(cell)["test"]["r_y2"] for cell in cells] for label, cells in variants.items()
    }
    worst = max(fallen, key=lambda label: statistics.mean(fallen[label]))
    yield (
        f"- **Where does it collapse?** The largest fall of r(Y2) from the chosen to the last iteration is {worst}'s, "
        f"{told(fallen[worst])}; the first table is what choosing on dev keeps, the second what it would have cost not to."
    )
    broken = {label: statistics.mean(values(cells, last, "c_to_i")) for label, cells in variants.items()}
    most, least = max(broken, key=lambda label: broken[label]), min(broken, key=lambda label: broken[label])
    yield (
        f"- **Who breaks right answers?** c->i in the last iteration is largest for {most} ({broken[most]:.3f}) "
        f"and smallest for {least} ({broken[least]:.3f})."
    )
    if (samples := found["samples"]) and {"1x5", "3x1"} <= set(samples):
        best = max(samples, key=lambda label: statistics.mean(values(samples[label], chosen, "r_y2")))
        yield (
            f"- **More initial answers or more corrections?** With six generated answers a question, 1 x 5 against 3 x 1: "
            f"{difference(samples['1x5'], samples['3x1'], chosen)}. The highest mean of all is {best}'s (N_init x N_corr)."
        )
    for label, cells in found["filters"].items():
        if label.startswith("share-") and "ENE" in variants:
            share = label.removeprefix("share-")
            yield f"- **`keep_correct_share = {share}`** against ENE without it: {difference(cells, variants['ENE'], chosen)}."


def against_baselines(found: Cells) -> Iterator[str]:
    """STaSC beside what the same budget buys otherwise."""
    variants, baselines = found["variants"], found["baselines"]
    best = max(variants, key=lambda label: statistics.mean(chosen(cell)["dev"]["r_y2"] for cell in variants[label]))
    yield "| | first answer, test | corrected answer, test | generated tokens an answer takes | trained on, tokens in all |"
    yield "|---|---|---|---|---|"
    rows = {"M0": (variants[best], first)}
    rows |= {f"{label}, chosen on dev": (variants[label], chosen) for label in dict.fromkeys((best, "ENE")) if label in variants}
    for label, (cells, pick) in rows.items():
        tokens = [pick(cell)["answer_tokens"] for cell in cells]
        initial, correction = (statistics.mean(one[turn] for one in tokens) for turn in ("initial", "correction"))
        cost = f"{initial:.0f}, corrected {initial + correction:.0f}"
        learnt = [sum(one.get("trained_tokens", 0) for one in cell["iterations"]) for cell in cells] if pick is chosen else [0]
        answers_of = f"{told(values(cells, pick, 'r_y1'))} | {told(values(cells, pick, 'r_y2'))}"
        yield f"| {label} | {answers_of} | {cost} | {statistics.mean(learnt):,.0f} |"
    names = {"rft": "RFT: fine-tuned on right first answers", "gold": "fine-tuned on gold answers (no reasoning)"}
    for kind, name in names.items():
        if cells := baselines.get(kind):
            learnt = statistics.mean(sum(one.get("next_trained_tokens", 0) for one in cell["iterations"]) for cell in cells)
            answers_of = f"{told(values(cells, chosen_first, 'r_y1'))} | {told(values(cells, chosen_first, 'r_y2'))}"
            yield f"| {name} | {answers_of} | one turn is asked for | {learnt:,.0f} |"
    if cells := baselines.get("consistency"):
        for k in cells[0]["iterations"][0]["votes"]:
            accuracy = [cell["iterations"][0]["votes"][k] for cell in cells]
            tokens = int(k) * statistics.mean(cell["iterations"][0]["answer_tokens"]["initial"] for cell in cells)
            yield f"| M0, the commonest of {k} first answers | {told(accuracy)} | | {tokens:.0f} | 0 |"
    yield ""
    yield (
        "RFT generates as many first answers per question and iteration as ENE generates answers and corrections. RFT and gold "
        "may train on as many tokens an iteration as ENE of that seed (what they found to train on is in the table); their version "
        "is the one whose *first* answer is best on dev."
    )
    ours = variants.get("ENE", [])
    others: dict[str, tuple[Sequence[Cell], Callable[[Cell], float]]] = {
        "RFT's first answer (one turn)": (baselines.get("rft", []), lambda cell: chosen_first(cell)["test"]["r_y1"]),
        "the first answer after gold answers (one turn)": (
            baselines.get("gold", []),
            lambda cell: chosen_first(cell)["test"]["r_y1"],
        ),
        "M0's vote of three (three first answers)": (
            baselines.get("consistency", []),
            lambda cell: cell["iterations"][0]["votes"]["3"],
        ),
    }
    for name, (cells, read) in others.items():
        by_seed = {cell["seed"]: read(cell) for cell in cells}
        for metric, what in (("r_y2", "corrected answer (two turns)"), ("r_y1", "first answer (one turn)")):
            pairs = [chosen(cell)["test"][metric] - by_seed[cell["seed"]] for cell in ours if cell["seed"] in by_seed]
            mean, half = interval(pairs)
            if not math.isnan(half):
                verdict = "better" if mean > half else "worse" if -mean > half else "not told apart from it"
                yield ""
                yield f"ENE's {what} against {name}: {mean:+.3f} ± {half:.3f}: **{verdict}**."


def chosen_first(cell: Cell) -> Mapping[str, Any]:
    """The iteration with the best first answers on dev: how one would choose a model that is not asked to correct."""
    return max(cell["iterations"], key=lambda one: (one["dev"]["r_y1"], -one["iteration"]))


def papers_table() -> Iterator[str]:
    """Not ours."""
    yield (
        "**These are the paper's** (arXiv 2503.08681v1): in-accuracy on 500 questions of Natural Questions, the *maximum over "
        "iterations on test*, one run each. What differs: their models are 1.5B and 3.8B parameters and ours 0.3M; their N rows "
        "were made with a filter that keeps both-correct pairs only; we choose on dev and give intervals."
    )
    yield ""
    yield "| | Qwen2.5-1.5B r(Y1) | r(Y2) | Phi-3-mini r(Y1) | r(Y2) |"
    yield "|---|---|---|---|---|"
    for label, (qwen_1, qwen_2, phi_1, phi_2) in PAPER.items():
        yield f"| {label} | {qwen_1:.3f} | {qwen_2} | {phi_1:.3f} | {phi_2} |"


# --- plots -------------------------------------------------------------------------------------------------------


def grid(title: str) -> Any:
    """A figure with one panel per variant."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    figure.suptitle(title, fontsize=11)
    return figure, figure.subplots(2, 4, sharex=True, sharey=True).ravel()


def plot_curves(variants: Mapping[str, Sequence[Cell]], file: Path) -> None:
    """r(Y1) and r(Y2) with their intervals, iteration by iteration."""
    figure, panels = grid("Test reward by iteration: mean and 95% interval over seeds")
    for axes, (label, cells) in zip(panels, sorted(variants.items()), strict=False):
        for metric, name, color in (("r_y1", "r(Y1)", "#8c8c8c"), ("r_y2", "r(Y2)", "#1f6feb")):
            xs, means, halves = by_iteration(cells, lambda one, metric=metric: one["test"][metric])
            axes.plot(xs, means, marker="o", markersize=3, color=color, label=name)
            low, high = [m - h for m, h in zip(means, halves, strict=True)], [m + h for m, h in zip(means, halves, strict=True)]
            axes.fill_between(xs, low, high, color=color, alpha=0.2, linewidth=0)
        axes.set_title(label, fontsize=10)
        axes.grid(alpha=0.25)
    panels[0].legend(fontsize=8, loc="upper left")
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


def by_iteration(cells: Sequence[Cell], read: Callable[[Cell], float | None]) -> tuple[list[int], list[float], list[float]]:
    """Iterations, means and half intervals of what is there."""
    samples: dict[int, list[float]] = defaultdict(list)
    for cell in cells:
        for one in cell["iterations"]:
            if (value := read(one)) is not None:
                samples[one["iteration"]].append(value)
    xs = sorted(samples)
    pairs = [interval(samples[x]) for x in xs]
    return xs, [mean for mean, _ in pairs], [0.0 if math.isnan(half) else half for _, half in pairs]
