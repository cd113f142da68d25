"""docs/results-real.md from the cells of real_study.py alone; the words are real_page.md's.

Methods are compared question by question: of each test question the mean over a method's seeds, and over the
questions a paired bootstrap.
"""

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import study_figures
from benchmarks.study_figures import Cell
from stasc_ray import store
from stasc_ray.evaluation.paired import Paired, paired

PAGE = Path(__file__).with_name("real_page.md")
NOT_RUN = "Not run yet."
SAMPLES = 10_000
"""Of the bootstrap."""
Pick = Callable[[Cell], int]
ByQuestion = Mapping[str, float]
TRANSITIONS = {"i->c": "i_to_c", "c->i": "c_to_i", "changed": "changed"}


def write(folder: Path, page: Path) -> None:
    """Fill the page's `{{ name }}` with tables."""
    cells = study_figures.read(folder / "cells.jsonl")["real"]
    prompts = folder / "prompts.json"
    tables = {
        "prompts": prompt_table(json.loads(prompts.read_text()) if prompts.exists() else {}),
        "chosen": method_table(cells, chosen),
        "last": method_table(cells, last),
        "transitions": transition_table(cells),
        "smallest": smallest(cells),
        "cost": cost(cells),
        "transcripts": transcripts(cells),
    }
    text = PAGE.read_text(encoding="utf-8")
    for name, lines in tables.items():
        text = text.replace(f"{{{{ {name} }}}}", "\n".join(lines) or NOT_RUN)
    store.write_atomically(page, text)


# --- which iteration, and what its questions were worth -----------------------------------------------------


def chosen(cell: Cell) -> int:
    """The version that LATEST names."""
    return cell["chosen"]


def last(cell: Cell) -> int:
    """The last iteration, chosen or not."""
    return cell["iterations"][-1]["iteration"]


def base(_: Cell) -> int:
    """M0."""
    return 0


def worth(cells: Sequence[Cell], pick: Pick, measure: str = "r_y2") -> ByQuestion:
    """Of each test question the mean over the seeds; of an F variant's `r_y2` that of M0's answers corrected."""
    found: dict[str, list[float]] = defaultdict(list)
    for cell in cells:
        for name, of in cell["test"][str(pick(cell))].items():
            found[name].append(of.get(f"base/{measure}", of[measure]))
    return {name: statistics.mean(values) for name, values in found.items()}


def less(one: ByQuestion, other: ByQuestion) -> Paired | None:
    """The first less the second, over the questions that both have."""
    shared = sorted(one.keys() & other.keys())
    if not shared:
        return None
    return paired([other[name] for name in shared], [one[name] for name in shared], 1.0, SAMPLES, 0)


def told(found: Paired | None) -> str:
    """`+0.031 [-0.010, +0.072]`, bold where the interval leaves 0 out."""
    if found is None:
        return "-"
    mark = "**" if found.low > 0 or found.high < 0 else ""
    return f"{mark}{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]{mark}"


# --- tables -------------------------------------------------------------------------------------------------


def prompt_table(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """M0 on train questions by each pair of prompts."""
    if found:
        yield "| prompts | r(Y1) | r(Y2) | i->c | c->i | changed |"
        yield "|---" * 6 + "|"
    for name, one in found.items():
        rewards = [
            f"{one[of]:.3f} [{one[f'{of}_low']:.3f}, {one[f'{of}_high']:.3f}]" for of in ("r_y1", "r_y2")
        ]
        shares = [f"{one[of]:.3f}" for of in TRANSITIONS.values()]
        yield f"| {name} | {' | '.join([*rewards, *shares])} |"


def method_table(methods: Mapping[str, Sequence[Cell]], pick: Pick) -> Iterator[str]:
    """A row for each method: what its version is worth, and less what."""
    if not methods:
        return
    names = (
        "seeds",
        "iterations",
        "r(Y1)",
        "r(Y2)",
        "less M0, asked alike",
        "less M0's first answer",
        "less RFT",
    )
    yield f"| | {' | '.join((*names, 'trained tokens', 'core-hours a seed'))} |"
    yield "|---" * (len(names) + 3) + "|"
    rft = worth(methods["rft"], pick) if "rft" in methods else {}
    for label, cells in methods.items():
        ours = worth(cells, pick)
        values = [
            str(len(cells)),
            " ".join(str(pick(cell)) for cell in cells),
            f"{statistics.mean(worth(cells, pick, 'r_y1').values()):.3f}",
            f"{statistics.mean(ours.values()):.3f}",
            told(less(ours, worth(cells, base))) if any(map(pick, cells)) else "it is M0",
            told(less(ours, worth(cells, base, "r_y1"))),
            "" if label == "rft" else told(less(ours, rft)),
            f"{statistics.mean(trained(cell, pick(cell)) for cell in cells):,.0f}",
            f"{statistics.mean(map(core_hours, cells)):.2f}",
        ]
        yield f"| `{label}` | {' | '.join(values)} |"


def transition_table(methods: Mapping[str, Sequence[Cell]]) -> Iterator[str]:
    """What a correction does to an answer, by M0 and by the last version."""
    two_turns = {
        label: cells for label, cells in methods.items() if cells[0]["iterations"][0]["test"]["changed"]
    }
    if two_turns:
        yield f"| | {' | '.join(f'{name}, {of}' for name in TRANSITIONS for of in ('M0', 'last'))} |"
        yield "|---" * (1 + 2 * len(TRANSITIONS)) + "|"
    for label, cells in two_turns.items():
        values = [
            statistics.mean(cell["iterations"][at]["test"][key] for cell in cells)
            for key in TRANSITIONS.values()
            for at in (0, -1)
        ]
        yield f"| `{label}` | {' | '.join(f'{value:.3f}' for value in values)} |"


def smallest(methods: Mapping[str, Sequence[Cell]]) -> Iterator[str]:
    """The gain that these questions would show four times in five (a two-sided test at 5%)."""
    for label in ("ENE", "rft"):
        if cells := methods.get(label):
            found = less(worth(cells, last), worth(cells, base))
            assert found
            error = (found.high - found.low) / (2 * 1.96)
            yield (
                f"- `{label}` against M0, {found.questions} questions and {len(cells)} seeds: standard error "
                f"{error:.3f}, so a difference of {2.8 * error:.3f} would be found four times in five"
            )


def cost(methods: Mapping[str, Sequence[Cell]]) -> Iterator[str]:
    """Core-hours of all cells, and their commits."""
    everything = [cell for cells in methods.values() for cell in cells]
    if everything:
        commits = ", ".join(sorted({cell["commit"] for cell in everything}))
        total = sum(map(core_hours, everything))
        yield f"{len(everything)} cells, {total:.1f} core-hours in all. Commits: {commits}."


def transcripts(methods: Mapping[str, Sequence[Cell]]) -> Iterator[str]:
    """One of each transition, by ENE's last version."""
    for one in methods.get("ENE", [{}])[0].get("transcripts", []):
        yield f"- **{one['transition']}** {one['question']} (reference: {one['reference']})"
        yield f"  first answer: “{one['initial']}”; correction: “{one['correction']}”"


def trained(cell: Cell, iteration: int) -> int:
    """Tokens behind a version."""
    return study_figures.spent_behind(cell, {"iteration": iteration})


def core_hours(cell: Cell) -> float:
    """Of its stages."""
    return cell["seconds"] * cell["cores"] / 3600
