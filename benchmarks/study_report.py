"""docs/results.md from the study's cells.jsonl alone.

The words are results_page.md's; here are its tables and differences. Figures are study_figures.py's, plots
study_plots.py's, and the section on recipes study_recipes.py's.
"""

import itertools
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks import study_recipes
from benchmarks.study_figures import (
    BySeed,
    Cell,
    Cells,
    Pick,
    at_tokens,
    best_on_test,
    by_seed,
    chosen,
    chosen_first,
    difference,
    first,
    last,
    mean,
    nth,
    on_base_answers,
    read,
    told,
    told_difference,
    trained_behind,
    verdict,
    votes,
)
from benchmarks.study_plots import plot_all
from stasc_ray.comparing import contest
from stasc_ray.report import compared_page

PAGE = Path(__file__).with_name("results_page.md")
NOT_RUN = "Not run yet."
METRICS = {
    "r(Y1)": "r_y1",
    "r(Y2)": "r_y2",
    "delta": "delta",
    "i->c": "i_to_c",
    "c->i": "c_to_i",
    "CL": "cl",
    "CS": "cs",
    "RSS": "rss",
    "changed": "changed",
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
ONE_TURN = {
    "rft": "RFT: fine-tuned on its own right first answers",
    "gold": "fine-tuned on the gold answers alone",
    "worked": "fine-tuned on worked solutions, which the others never see",
}
Group = Mapping[str, Sequence[Cell]]
"""label -> its cells"""
Rows = Mapping[str, tuple[Sequence[Cell], Pick]]


def write(file: Path, output: Path, expected: Mapping[str, int]) -> None:
    """Write the page, and its plots beside it; `expected`: how many cells each part has when it is whole."""
    found = read(file)
    variants = found["variants"]
    if not variants:
        raise SystemExit(
            f"{file}: expected cells of the variants (variants-ENE-0 ...), found none; "
            "`python -m benchmarks.study run` makes them"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    plot_all(variants, output)
    lists = {**sections(found), "strategies": strategies(file.with_name(contest.FILE))}
    parts = {name: "\n".join(lines) or NOT_RUN for name, lines in lists.items()}
    output.write_text(
        PAGE.read_text(encoding="utf-8").format(**facts(found, expected), **parts), encoding="utf-8"
    )


def facts(found: Cells, expected: Mapping[str, int]) -> dict[str, str]:
    """What stands within sentences."""
    variants = found["variants"]
    some, every = (
        widest(variants),
        [cell for part in found.values() for cells in part.values() for cell in cells],
    )
    seconds = [cell["seconds"] for cells in variants.values() for cell in cells]
    there = {part: sum(map(len, found[part].values())) for part in expected}
    fewer = [f"{part} {there[part]} of {number}" for part, number in expected.items() if there[part] < number]
    return {
        "sizes": ", ".join(some[0]["sizes"]) or "as it is",
        "seeds": str(len(some)),
        "minutes": f"{statistics.median(seconds) / 60:.1f}",
        "hours": f"{sum(cell['seconds'] for cell in every) / 3600:.1f}",
        "commits": ", ".join(sorted({cell["commit"] for cell in every})),
        "unfinished": f"**Not whole yet**, cells that are there: {', '.join(fewer)}." if fewer else "",
        "ended_early": ended_early(variants),
        "natural_share": natural_share(variants.get("ENE", [])),
        "gold_last": mean(found["baselines"].get("gold", []), last, "r_y1"),
    }


def strategies(file: Path) -> Iterator[str]:
    """The table of a `stasc compare`, if there is one."""
    if file.exists():
        table = compared_page.table(json.loads(file.read_text(encoding="utf-8")))
        yield f"| {' | '.join(table.header)} |"
        yield "|---" * len(table.header) + "|"
        yield from (f"| {' | '.join(row)} |" for row in table.rows)


def sections(found: Cells) -> dict[str, Iterator[str]]:
    """The tables and lists of the page."""
    variants, filters, samples = found["variants"], found["filters"], found["samples"]
    return {
        "headline": headline(variants, found["baselines"]),
        "recipes": study_recipes.table(found["recipes"]),
        "recipes_differences": study_recipes.differences(found["recipes"]),
        "recipes_verdicts": study_recipes.verdicts(found["recipes"]),
        "recipes_learnt": study_recipes.learnt(found["recipes"]),
        "recipes_enough": study_recipes.enough(found["recipes"]),
        "chosen": score_table({"M0": (widest(variants), first), **both_ways(variants, chosen)}),
        "last": score_table(both_ways(variants, last)),
        "in_words": in_words(variants, found["baselines"]),
        "filters": pairs(variants, 1, "N", "I"),
        "matched": matched(variants),
        "initial": pairs(variants, 0, "E", "F"),
        "initial_on_base": pairs(variants, 0, "E", "F", on_base_answers(chosen)),
        "starts": pairs(variants, 2, "E", "F"),
        "other_filters": other_filters(filters, variants),
        "samples_pairs": sample_pairs(samples),
        "samples_best": best_samples(samples),
        "samples": score_table({label: (cells, chosen) for label, cells in sorted(samples.items())}),
        "collapse": collapse({**variants, **found["rates"]}),
        "budget": budget(variants, found["baselines"]),
        "turns": turns(variants.get("ENE", []), found["baselines"].get("rft", [])),
        "verdicts": verdicts(variants, found["baselines"]),
        "paper": paper(variants),
    }


def widest(variants: Group) -> Sequence[Cell]:
    """The variant with the most seeds."""
    return max(variants.values(), key=len)


def headline(variants: Group, baselines: Group) -> Iterator[str]:
    """What the README shows: a version as dev would choose it, answering, correcting that, and voting."""
    yield "| reward on test | first answer | corrected answer | vote of three |"
    yield "|---|---|---|---|"
    voting = [baselines.get(label, []) for label in ("consistency", "ENE")]
    rows: Sequence[tuple[str, Sequence[Cell], Sequence[Cell], Pick]] = (
        ("M0, before any training", widest(variants), voting[0], first),
        ("STaSC, variant ENE", variants.get("ENE", []), voting[1], chosen),
        ("STaSC, variant EIE", variants.get("EIE", []), [], chosen),
        ("STaSC, variant FNE, correcting M0's answers", variants.get("FNE", []), [], on_base_answers(chosen)),
        *(
            (name, baselines.get(kind, []), baselines.get(kind, []), chosen_first)
            for kind, name in ONE_TURN.items()
        ),
    )
    for name, cells, voters, pick in rows:
        if cells:
            kept = (
                " (dev keeps M0)"
                if pick is not first and not any(pick(cell)["iteration"] for cell in cells)
                else ""
            )
            rewards = f"{mean(cells, pick, 'r_y1')} | {mean(cells, pick)}"
            yield f"| {name}{kept} | {rewards} | {told(list(votes(voters, pick, 3).values()))} |"


# --- the variants -------------------------------------------------------------------------------------------


def both_ways(variants: Group, pick: Pick) -> dict[str, tuple[Sequence[Cell], Pick]]:
    """Rows of the variants; two for those with Fixed initialization."""
    rows: dict[str, tuple[Sequence[Cell], Pick]] = {}
    for label, cells in sorted(variants.items()):
        rows[label] = (cells, pick)
        if label.startswith("F"):
            rows[f"{label} on M0's"] = (cells, on_base_answers(pick))
    return rows


def score_table(rows: Rows) -> Iterator[str]:
    """One row per label: which iterations, what they were trained on, one column per metric."""
    if rows:
        yield "| | seeds | iterations | trained on | " + " | ".join(METRICS) + " |"
        yield "|---" * (len(METRICS) + 4) + "|"
    for label, (cells, pick) in rows.items():
        scores = (mean(cells, pick, metric) for metric in METRICS.values())
        yield (
            f"| {label} | {len(cells)} | {iterations(cells, pick)} | {behind(cells, pick)} | "
            + " | ".join(scores)
            + " |"
        )


def iterations(cells: Sequence[Cell], pick: Pick) -> str:
    """Seed by seed."""
    return " ".join(str(pick(cell)["iteration"]) for cell in cells)


def behind(cells: Sequence[Cell], pick: Pick) -> str:
    """Mean of the trained tokens."""
    return f"{statistics.mean(trained_behind(cell, pick(cell)) for cell in cells):,.0f}"


def ended_early(variants: Group) -> str:
    """Runs whose filter kept nothing."""
    most = max(len(cell["iterations"]) for cells in variants.values() for cell in cells)
    ended = [
        f"{label} with seed {cell['seed']}"
        for label, cells in variants.items()
        for cell in cells
        if len(cell["iterations"]) < most
    ]
    return (
        f" Earlier than the others ended, because the filter kept nothing: {', '.join(ended)}."
        if ended
        else ""
    )


# --- the paper's questions ----------------------------------------------------------------------------------


def pairs(variants: Group, place: int, one: str, other: str, pick_other: Pick = chosen) -> Iterator[str]:
    """Each variant with this letter against the one that differs in it alone."""
    for label in sorted(variants):
        against = label[:place] + other + label[place + 1 :]
        if label[place] == one and against in variants:
            found = told_difference(by_seed(variants[label], chosen), by_seed(variants[against], pick_other))
            yield f"- {label} against {against}: {found}"


def matched(variants: Group) -> Iterator[str]:
    """Non-decreasing at the training tokens of improving's published version."""
    for label, against in (("ENE", "EIE"), ("FNE", "FIE")):
        tokens = {cell["seed"]: trained_behind(cell, chosen(cell)) for cell in variants.get(against, [])}
        ours = {
            cell["seed"]: at_tokens(cell, tokens[cell["seed"]])
            for cell in variants.get(label, [])
            if cell["seed"] in tokens
        }
        if ours:
            yield f"- {label} against {against}: {told_difference(ours, by_seed(variants[against], chosen))}"


def natural_share(cells: Sequence[Cell]) -> str:
    """Of correct-to-correct pairs among the kept, in the first and in the last iteration."""
    kept = [[one["examples"] for one in cell["iterations"] if "examples" in one] for cell in cells]

    def share(place: int) -> str:
        counts = [(of[place]["kept_c_to_c"], of[place]["kept_i_to_c"]) for of in kept]
        return f"{statistics.mean(right / (right + mended) for right, mended in counts):.2f}"

    return f"{share(0)} in the first iteration and {share(-1)} in the last" if kept else "not run yet"


def other_filters(filters: Group, variants: Group) -> Iterator[str]:
    """Against ENE, and both_correct against EIE too."""
    for label, cells in sorted(filters.items()):
        name = (
            f"`keep_correct_share = {label.removeprefix('share-')}`"
            if label.startswith("share-")
            else f"`{label}`"
        )
        for other in ("ENE", "EIE") if label == "both_correct" else ("ENE",):
            if other in variants:
                found = told_difference(by_seed(cells, chosen), by_seed(variants[other], chosen))
                yield f"- {name} against {other}: {found}"
    if filters:
        yield ""
    yield from score_table({label: (cells, chosen) for label, cells in sorted(filters.items())})


def sample_pairs(samples: Group) -> Iterator[str]:
    """N_init and N_corr the other way round."""
    for few, many in ((1, 3), (1, 5), (3, 5)):
        one, other = f"{few}x{many}", f"{many}x{few}"
        if {one, other} <= set(samples):
            found = told_difference(by_seed(samples[one], chosen), by_seed(samples[other], chosen))
            generations = f"{few * (1 + many)} against {many * (1 + few)} generations a question"
            yield f"- {one} against {other}, {generations}: {found}"


def best_samples(samples: Group) -> Iterator[str]:
    """By dev; and which are no worse on test."""
    if samples:
        on_dev = {
            label: statistics.mean(chosen(cell)["dev"]["r_y2"] for cell in cells)
            for label, cells in samples.items()
        }
        best = max(on_dev, key=lambda label: on_dev[label])
        worse = {
            label
            for label in samples
            if verdict(by_seed(samples[best], chosen), by_seed(samples[label], chosen))
            in ("better", "too few seeds")
        }
        alike = ", ".join(sorted(set(samples) - worse - {best})) or "none of the others"
        yield f"The best on dev is {best}; on test it is not told apart from {alike}."


def collapse(rows: Group) -> Iterator[str]:
    """What later iterations lose, and whether choosing on dev catches it."""
    compared = "last less chosen on dev | lost by choosing on dev, not test | last less M0"
    yield f"| | {compared} | CS: M0 | the last |"
    yield "|---|---|---|---|---|---|"
    fallen, below = [], []
    ends, oracles = both_ways(rows, last), both_ways(rows, best_on_test)
    for label, (cells, pick) in both_ways(rows, chosen).items():
        end, oracle = ends[label][1], oracles[label][1]
        published, final, before = by_seed(cells, pick), by_seed(cells, end), by_seed(cells, first)
        lost = statistics.mean(difference(by_seed(cells, oracle), published))
        skill = (mean(cells, one, "cs") for one in (first, end))
        row = f"{told_difference(final, published)} | {lost:.3f} | {told_difference(final, before)}"
        yield f"| {label} | {row} | {' | '.join(skill)} |"
        fallen += [label] if verdict(final, published) == "worse" else []
        below += [label] if verdict(final, before) == "worse" else []
    yield ""
    yield f"Clearly worse at the end than where dev stopped: {', '.join(fallen) or 'none'}."
    yield f"Clearly worse at the end than M0, which is a collapse: {', '.join(below) or 'none'}."


# --- what it costs ------------------------------------------------------------------------------------------


def budget(variants: Group, baselines: Group) -> Iterator[str]:
    """STaSC beside what the same budget buys otherwise."""
    yield "| | iterations | trained on | first answer | corrected answer | tokens generated for an answer |"
    yield "|---|---|---|---|---|---|"
    ours = {
        label: row
        for label, row in both_ways(variants, chosen).items()
        if label in ("ENE", "FNE", "FNE on M0's")
    }
    rows: Rows = {"M0": (widest(variants), first), **ours}
    for label, (cells, pick) in rows.items():
        tokens = [pick(cell)["answer_tokens"] for cell in cells]
        initial, correction = (
            statistics.mean(one[turn] for one in tokens) for turn in ("initial", "correction")
        )
        rewards = f"{mean(cells, pick, 'r_y1')} | {mean(cells, pick)}"
        cost = f"{initial:.0f}, corrected {initial + correction:.0f}"
        yield f"| {label} | {iterations(cells, pick)} | {behind(cells, pick)} | {rewards} | {cost} |"
    for kind, name in ONE_TURN.items():
        for which, pick in (("best first answers on dev", chosen_first), ("last", last)):
            if cells := baselines.get(kind):
                rewards = f"{mean(cells, pick, 'r_y1')} | {mean(cells, pick)}"
                tokens = [one["vote_tokens"] for one in map(pick, cells) if "vote_tokens" in one]
                cost = f"{statistics.mean(tokens):.0f}" if tokens else ""
                row = f"{name}; {which} | {iterations(cells, pick)} | {behind(cells, pick)}"
                yield f"| {row} | {rewards} | {cost} |"
    voting: Rows = {
        "M0": (baselines.get("consistency", []), first),
        "ENE": (baselines.get("ENE", []), chosen),
        "ENE, best first answers on dev": (baselines.get("ENE", []), chosen_first),
        **{ONE_TURN[kind]: (baselines.get(kind, []), chosen_first) for kind in ("rft", "worked")},
    }
    for name, (cells, pick) in voting.items():
        for what, k in itertools.product(("vote", "corrected_vote"), (3, 5, 9)):
            if right := votes(cells, pick, k, f"{what}s"):
                voted = [at for at in map(pick, cells) if f"{what}s" in at]
                cost = f"{k * statistics.mean(at[f'{what}_tokens'] for at in voted):.0f}"
                row = f"{name}: the commonest of {k} | {iterations(cells, pick)} | {behind(cells, pick)}"
                share = told(list(right.values()))
                yield f"| {row} | {f'{share} |' if what == 'vote' else f'| {share}'} | {cost} |"


def turns(ene: Sequence[Cell], rft: Sequence[Cell]) -> Iterator[str]:
    """Iteration by iteration, at as many training tokens: two turns of ENE and one of RFT."""
    if not (ene and rft):
        return
    seeds = {cell["seed"] for cell in ene} & {cell["seed"] for cell in rft}
    ours, theirs = ([cell for cell in cells if cell["seed"] in seeds] for cells in (ene, rft))
    picks = [nth(number) for number in range(max(len(cell["iterations"]) for cell in ours))]
    yield "| iteration | " + " | ".join(map(str, range(len(picks)))) + " |"
    yield "|---" * (len(picks) + 1) + "|"
    yield "| ENE, first answer | " + " | ".join(mean(ours, pick, "r_y1") for pick in picks) + " |"
    yield "| ENE, corrected | " + " | ".join(mean(ours, pick) for pick in picks) + " |"
    yield "| RFT, first answer | " + " | ".join(mean(theirs, pick, "r_y1") for pick in picks) + " |"
    less = (told_difference(by_seed(ours, pick), by_seed(theirs, pick, "r_y1")) for pick in picks)
    yield "| ENE, corrected, less RFT, first | " + " | ".join(less) + " |"


def comparisons(variants: Group, baselines: Group) -> Iterator[tuple[str, str, BySeed, BySeed]]:
    """Correcting against what else the tokens could be spent on; those of which both sides are there."""
    cells, rft = variants.get("ENE", []), baselines.get("rft", [])
    corrected, rft_first, rft_vote = (
        by_seed(cells, chosen),
        by_seed(rft, chosen_first, "r_y1"),
        votes(rft, chosen_first, 3),
    )
    fixed = by_seed(variants.get("FNE", []), on_base_answers(chosen))
    own, untrained = baselines.get("ENE", []), baselines.get("consistency", [])
    everything: Sequence[tuple[str, str, BySeed, BySeed]] = (
        ("ENE's correction", "its own first answer", corrected, by_seed(cells, chosen, "r_y1")),
        ("ENE's correction", "a vote of three by the same version", corrected, votes(own, chosen, 3)),
        (
            "ENE's correction",
            "a vote of three by its best version for that",
            corrected,
            votes(own, chosen_first, 3),
        ),
        ("ENE's correction", "RFT's first answer", corrected, rft_first),
        ("ENE's correction", "RFT's vote of three", corrected, rft_vote),
        ("ENE's correction", "untrained M0's vote of three", corrected, votes(untrained, first, 3)),
        ("ENE's best first answer", "RFT's", by_seed(cells, chosen_first, "r_y1"), rft_first),
        ("FNE's correction of M0's answers", "ENE's correction of its own", fixed, corrected),
        ("FNE's correction of M0's answers", "RFT's first answer", fixed, rft_first),
        ("FNE's correction of M0's answers", "RFT's vote of three", fixed, rft_vote),
    )
    yield from (one for one in everything if one[2] and one[3])


def verdicts(variants: Group, baselines: Group) -> Iterator[str]:
    """Each comparison, with its interval."""
    for what, other, one, against in comparisons(variants, baselines):
        yield f"- {what} against {other}: {told_difference(one, against)}: **{verdict(one, against)}**"


def in_words(variants: Group, baselines: Group) -> Iterator[str]:
    """Does correction pay for its tokens?"""
    found: dict[str, list[str]] = {}
    for what, other, one, against in comparisons(variants, baselines):
        if what == "ENE's correction":
            found.setdefault(verdict(one, against), []).append(other)
    names = {"better": "better than", "not told apart": "not told apart from", "worse": "worse than"}
    parts = [f"**{name}** {', '.join(found[word])}" for word, name in names.items() if word in found]
    if parts:
        yield (
            "Does correction pay for its tokens? Versions chosen on dev: ENE's corrected answer is "
            f"{'; '.join(parts)}."
        )


def paper(variants: Group) -> Iterator[str]:
    """Not ours, but for the last two columns."""
    yield "| | Qwen2.5-1.5B r(Y1) | r(Y2) | Phi-3-mini r(Y1) | r(Y2) | the sandbox, ours: r(Y1) | r(Y2) |"
    yield "|---|---|---|---|---|---|---|"
    for label, (qwen_1, qwen_2, phi_1, phi_2) in PAPER.items():
        cells = widest(variants) if label == "M0" else variants.get(label, [])
        pick = (
            first
            if label == "M0"
            else on_base_answers(best_on_test)
            if label.startswith("F")
            else best_on_test
        )
        ours = f"{mean(cells, pick, 'r_y1')} | {mean(cells, pick)}"
        yield f"| {label} | {qwen_1:.3f} | {qwen_2} | {phi_1:.3f} | {phi_2} | {ours} |"
