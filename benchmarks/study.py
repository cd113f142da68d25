"""How much the methods learn, with error bars: variants, baselines, recipes, the paper's questions.

python -m benchmarks.study run --folder runs/study     variants, baselines, recipes; hours on two cores
python -m benchmarks.study run --folder runs/study --parts samples filters rates
python -m benchmarks.study harvest --folder docs/study RUN...     finished runs, each named after its cell
python -m benchmarks.study report --folder docs/study --output docs/results.md

A cell is one `stasc run` of study.toml with overrides, on the sandbox. Its figures are one line of
cells.jsonl; a cell that has a line is not run again. Each cell has one core to itself (by affinity), so as
many run at once as `--parallel` says. The report is made of that file alone (study_report.py).
"""

import argparse
import collections
import fcntl
import itertools
import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from benchmarks import study_figures, study_report
from stasc_ray import config, store
from stasc_ray.comparing import sweep
from stasc_ray.generation import rollouts, unit_files
from stasc_ray.recipes import section_of
from stasc_ray.recipes.policies import ranked
from stasc_ray.recipes.trace import ANSWER, CORRECTION, Text, finals, read_texts, roots
from stasc_ray.runtime import ray_session
from stasc_ray.store import files
from stasc_ray.store.rows import text_columns

CONFIG = Path(__file__).with_name("study.toml")
CELLS = "cells.jsonl"
VARIANTS = ("EIE", "EIF", "ENE", "ENF", "FIE", "FIF", "FNE", "FNF")
VOTERS = (1, 3, 5, 9)
"""How many samples vote in self-consistency; of two that differ the first wins."""
FEWER_SEEDS = 3
PATIENCE_S = 3600
"""For one run."""
FIGURES = ("r_y1", "r_y2", "delta", "i_to_c", "c_to_i", "c_to_c", "i_to_i", "cl", "cs", "rss", "changed")

VOTING = ("algorithm.iterations=0", f"evaluation.samples={max(VOTERS)}")
"""A run that learns nothing and answers often enough for a vote."""
ONE_TURN = ("algorithm.n_corrections=0", "algorithm.finetune_from=current")
AS_ENE = "finetune.trained_tokens=26000"
"""What ENE trains on in an iteration, on average."""
BASELINES = {
    # As many answers as a correcting run has answers and corrections.
    "rft": ("algorithm.recipe=rft", "algorithm.n_initial=5", *ONE_TURN, AS_ENE),
    "gold": ("algorithm.recipe=benchmarks.supervised:GOLD", *ONE_TURN, AS_ENE),
    "worked": ("algorithm.recipe=benchmarks.supervised:WORKED", *ONE_TURN, AS_ENE),
    "ENE": ("algorithm.variant=ENE",),
}
EQUAL_COST = ("questions.train.limit=1000", "algorithm.iterations=1", "finetune.trained_tokens=120000")
JUDGING = (
    "algorithm.verdicts=constructed",
    'algorithm.verdict_prompt="Is it right?"',
    'algorithm.says_right="="',
    'algorithm.says_wrong="+1"',
    "algorithm.correction_sees_verdict=false",
)
RECIPES = {
    "stasc": ("algorithm.variant=ENE", "algorithm.n_initial=1", "algorithm.n_corrections=2"),
    "rft": ("algorithm.recipe=rft", "algorithm.n_initial=3", *ONE_TURN),
    "verdict": (
        "algorithm.recipe=verdict",
        "algorithm.n_initial=1",
        "algorithm.n_corrections=2",
        "algorithm.n_verdicts=4",
        *JUDGING,
        "algorithm.learn_answers=all",
        "finetune.learning_rate=3e-4",
    ),
}
PAIRS = ("algorithm.recipe=preference", "algorithm.n_initial=1", "algorithm.n_corrections=2")
OTHER_RECIPES = {
    "preference": (*PAIRS, "finetune.dpo.sft_weight=5"),
    "preference-sft_0.1": (*PAIRS, "finetune.dpo.sft_weight=0.1"),
    # As good as no preference: the supervised loss of the chosen sides is left.
    "preference-beta_0": (*PAIRS, "finetune.dpo.sft_weight=5", "finetune.dpo.beta=1e-6"),
    "verdict_preference": (
        "algorithm.recipe=verdict_preference",
        "algorithm.n_initial=1",
        "algorithm.n_corrections=2",
        *JUDGING,
        "finetune.dpo.sft_weight=5",
        "finetune.learning_rate=1e-4",
    ),
    "critique": (
        "algorithm.recipe=critique",
        "algorithm.n_initial=1",
        "algorithm.n_critiques=1",
        "algorithm.n_corrections=2",
        "algorithm.critiques=constructed",
        "algorithm.critic=sandbox",
        "algorithm.corrections_see_constructed=false",
        'algorithm.critique_prompt="What is wrong?"',
        'algorithm.says_right="="',
        "algorithm.learn_answers=all",
        "finetune.learning_rate=1e-3",
    ),
    "sharpening": (
        "algorithm.recipe=sharpening",
        "algorithm.n_initial=3",
        *ONE_TURN,
        "algorithm.by=majority",
        "algorithm.min_votes=2",
    ),
    "splice": (
        "algorithm.recipe=splice",
        "algorithm.n_initial=3",
        *ONE_TURN,
        'algorithm.connecting_phrase="?"',
        "sampling.initial.max_tokens=96",
        "finetune.learning_rate=1e-3",
    ),
    "cct": (
        "algorithm.recipe=cct",
        "algorithm.n_initial=3",
        "algorithm.n_corrections=1",
        "algorithm.solution=sandbox",
        'algorithm.solution_form="{solution}"',
    ),
}


@dataclass(frozen=True)
class Cell:
    """One run of the study."""

    part: str
    label: str
    seed: int
    overrides: tuple[str, ...] = ()
    votes: bool = False
    """Whether its best versions then answer again, as often as `VOTING` says, and vote."""

    @property
    def name(self) -> str:
        """Of its line, of its log and of its run folder."""
        return f"{self.part}-{self.label}-{self.seed}"


def cells(part: str, seeds: int) -> Iterator[Cell]:
    """The cells of one part, seed after seed, so that an interrupted study has whole comparisons."""
    for seed in range(seeds):
        if part == "variants":
            yield from (Cell(part, variant, seed, (f"algorithm.variant={variant}",)) for variant in VARIANTS)
        elif part == "baselines":
            yield from (Cell(part, label, seed, values, votes=True) for label, values in BASELINES.items())
            yield Cell(part, "consistency", seed, VOTING)
        elif part == "recipes":
            ours = RECIPES | (OTHER_RECIPES if seed < FEWER_SEEDS else {})
            yield from (Cell(part, label, seed, (*EQUAL_COST, *own)) for label, own in ours.items())
        elif seed < FEWER_SEEDS:
            yield from (Cell(part, label, seed, values) for label, values in _of_fewer_seeds(part))


def _of_fewer_seeds(part: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    if part == "samples":
        for initial, corrections in itertools.product((1, 3, 5), repeat=2):
            counts = (f"algorithm.n_initial={initial}", f"algorithm.n_corrections={corrections}")
            # Two iterations, since these generate up to six times as much as the other cells.
            yield f"{initial}x{corrections}", ("algorithm.variant=ENE", "algorithm.iterations=2", *counts)
    elif part == "filters":
        evolving = "algorithm.finetune_from=current"
        yield "both_correct", (evolving, "algorithm.filter=both_correct")
        for share in (0.2, 0.4):
            kept = ("algorithm.filter=non_decreasing", f"algorithm.keep_correct_share={share}")
            yield f"share-{share}", (evolving, *kept)
    elif part == "rates":
        for variant in ("ENE", "EIE"):  # ten times the others' learning rate
            yield f"{variant}-5e-4", (f"algorithm.variant={variant}", "finetune.learning_rate=5e-4")


PARTS = ("variants", "baselines", "recipes", "samples", "filters", "rates")


def overrides(cell: Cell, sizes: Sequence[str]) -> list[str]:
    """For `stasc run`."""
    return [*sizes, f"seed={cell.seed}", *cell.overrides]


# --- running ------------------------------------------------------------------------------------------------


def run_all(folder: Path, wanted: Sequence[Cell], parallel: int, sizes: Sequence[str]) -> bool:
    """Run the cells that have no line yet, `parallel` at a time, one to a core.

    Returns:
        Whether all have one now.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = {cell["name"]: cell for cell in study_figures.lines(folder / CELLS)}
    if other := [cell.name for cell in wanted if done.get(cell.name, {}).get("sizes", [*sizes]) != [*sizes]]:
        raise SystemExit(
            f"{folder}: expected cells of --sizes {' '.join(sizes) or '(none)'}, "
            f"found others: {', '.join(other)}"
        )
    cores: SimpleQueue[int] = SimpleQueue()
    for core in sorted(os.sched_getaffinity(0))[:parallel]:
        cores.put(core)

    def one(cell: Cell) -> bool:
        core, started = cores.get(), time.monotonic()
        try:
            run_cell(folder, cell, sizes, core)
        except subprocess.SubprocessError as error:
            print(f"{cell.name}: {error}, see {cell.name}.log", flush=True)
            return False
        finally:
            cores.put(core)
        print(f"{cell.name}: {time.monotonic() - started:.0f} s", flush=True)
        return True

    with ThreadPoolExecutor(parallel) as pool:
        return all(list(pool.map(one, [cell for cell in wanted if cell.name not in done])))


def run_cell(folder: Path, cell: Cell, sizes: Sequence[str], core: int) -> None:
    """Run one cell and keep its figures; what it wrote otherwise goes away.

    Raises:
        subprocess.SubprocessError: a run failed, or took longer than PATIENCE_S.
    """
    work = folder / "work" / cell.name
    log = folder / f"{cell.name}.log"
    stasc_run(work, overrides(cell, sizes), core, log)
    found = line_of(cell, sizes, work)
    for at in best_versions(found) if cell.votes else ():
        model = store.RunFolder(work).stage(at["iteration"], "model")
        voting = Cell(cell.part, cell.label, cell.seed, (f"model.path={model}",) if at["iteration"] else ())
        asked = work.with_name(f"{cell.name}-votes-{at['iteration']}")
        stasc_run(asked, [*overrides(voting, sizes), *VOTING], core, log)
        at |= {name: value for name, value in harvest(asked)[0].items() if "vote" in name}
        shutil.rmtree(asked)
    keep(folder, found)
    shutil.rmtree(work)


def stasc_run(run_folder: Path, values: Sequence[str], core: int, log: Path) -> None:
    """`stasc run` of the study's config, on one core, as a run of `stasc sweep`."""
    command = sweep.command(CONFIG, values, run_folder)
    # Ray's workers import the recipes of benchmarks/ too.
    paths = [str(CONFIG.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.sched_setaffinity(0, {core})  # of this thread, and so of what it starts
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    status, _ = sweep.run_one(command, log, environment, PATIENCE_S)
    if status not in (0, sweep.NOTHING_KEPT):
        raise subprocess.CalledProcessError(status, command)


def best_versions(found: study_figures.Cell) -> list[study_figures.Iteration]:
    """The version that a run publishes, and the one with the best first answers on dev."""
    picks = (study_figures.chosen, study_figures.chosen_first)
    return list({at["iteration"]: at for at in (pick(found) for pick in picks)}.values())


def keep(folder: Path, cell: study_figures.Cell) -> None:
    """Give a cell its line among the study's, sorted by name; one process or thread writes at a time."""
    with (folder / f"{CELLS}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = {one["name"]: one for one in study_figures.lines(folder / CELLS)} | {cell["name"]: cell}
        lines = [json.dumps(found[name]) + "\n" for name in sorted(found)]
        store.write_atomically(folder / CELLS, "".join(lines))


# --- what a run folder says ---------------------------------------------------------------------------------


def add(folder: Path, cell: Cell, sizes: Sequence[str], run_folder: Path) -> None:
    """Keep the line of a run that was made by hand.

    Raises:
        SystemExit: the run has another config than the cell, or is not finished.
    """
    expected = config.load_config(CONFIG, overrides(cell, sizes), section_of)
    found = store.read_config(run_folder, section_of)
    differing = set(config.differing_fields(expected, found)) - config.operational_fields(found)
    if differing:
        raise SystemExit(
            f"{run_folder}: expected a run of {cell.name}, found other {', '.join(sorted(differing))}"
        )
    line = line_of(cell, sizes, run_folder)
    reached = max((one["iteration"] for one in line["iterations"]), default=None)
    if reached != expected.algorithm.iterations:
        raise SystemExit(
            f"{run_folder}: expected a finished run of {expected.algorithm.iterations} iterations, found the "
            f"last measured one to be {reached}; the same `stasc run` continues it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    keep(folder, line)


def line_of(cell: Cell, sizes: Sequence[str], run_folder: Path) -> study_figures.Cell:
    """A cell's line, from its run folder. `seconds` are those of its stages."""
    environment = files.read_json(run_folder / "environment.json", "git_commit")
    lines = store.RunFolder(run_folder).metrics()
    seconds = [line.get(f"{line['stage']}/duration_s", 0.0) for line in lines]
    return {
        "name": cell.name,
        "part": cell.part,
        "label": cell.label,
        "seed": cell.seed,
        "overrides": list(cell.overrides),
        "sizes": list(sizes),
        "commit": str(environment["git_commit"])[:7],
        "seconds": sum(seconds),
        "iterations": harvest(run_folder),
    }


def harvest(run_folder: Path) -> list[study_figures.Iteration]:
    """One dictionary per measured iteration, from the run's metrics.jsonl and traces."""
    run, settings = store.RunFolder(run_folder), store.read_config(run_folder, section_of)
    found: dict[int, dict[str, Any]] = {}
    for line in run.metrics():
        names = {key.partition("/")[2]: value for key, value in line.items() if "/" in key}
        at = found.setdefault(line["iteration"], {"iteration": line["iteration"]})
        if line["stage"] == "evaluation":
            at |= {split: of_split(names, split) for split in ("dev", "test") if f"{split}/r_y2" in names}
            if "test/base/r_y2" in names:  # M0's answers corrected, as the paper measures the F variants
                at["fixed"] = {split: of_split(names, f"{split}/base") for split in ("dev", "test")}
            at |= of_traces(run, line["iteration"], settings)
        elif line["stage"] == "examples":
            at["examples"] = names
        elif line["stage"] == "finetune":
            at |= {name: names[name] for name in ("trained_tokens", "steps")}
        elif line["stage"] == "rollouts":
            at["generated_tokens"] = names["generated_tokens"]
    return [found[number] for number in sorted(found) if "test" in found[number]]


def of_split(names: Mapping[str, Any], split: str) -> dict[str, Any]:
    """A split's figures, those of its verdicts included."""
    given = {
        name.removeprefix(f"{split}/"): value for name, value in names.items() if name.startswith(f"{split}/")
    }
    return {name: value for name, value in given.items() if name in FIGURES or name.startswith("verdict_")}


def of_traces(run: store.RunFolder, iteration: int, settings: config.Config) -> dict[str, Any]:
    """What the metrics don't say.

    Returns:
        generated: {split: {turn: tokens}}; answer_tokens: mean tokens of a first answer and of a correction,
        on test. Of runs that answer often enough for a vote: what `count_votes` returns, and what an answer
        of these votes costs.
    """
    traces, writer = run.files(run.stage(iteration, "rollouts")), store.iteration_name(iteration)
    columns = ("choices", *text_columns("turn", "sample", "parent", "writer", "text", "token_ids", "reward"))
    on_test = unit_files.of_split(traces, "test")
    rows = [row for file in on_test for row in files.read(file, columns).to_pylist()]
    asked = [(read_texts(row), row["choices"] or ()) for row in rows]
    splits = {split: unit_files.of_split(traces, split) for split in ("train", "dev", "test")}
    found: dict[str, Any] = {
        "generated": {split: generated(of, writer) for split, of in splits.items() if of},
        "answer_tokens": {
            name: statistics.mean(mean_tokens(texts, turn, writer) for texts, _ in asked)
            for name, turn in (("initial", ANSWER), ("correction", CORRECTION))
        },
    }
    if settings.evaluation.samples >= max(VOTERS):
        found |= count_votes(asked, settings.prompts.answer_marker)
        found["vote_tokens"] = found["answer_tokens"]["initial"]
        found["corrected_vote_tokens"] = sum(found["answer_tokens"].values())
    return found


def generated(traces: Sequence[str], writer: str) -> dict[str, int]:
    """Tokens that a model wrote, by turn."""
    counts: collections.Counter[str] = collections.Counter()
    for file in traces:
        counts.update(json.loads(rollouts.read_summary(Path(file), writer)["tokens"]))
    return dict(counts)


def mean_tokens(texts: Sequence[Text], turn: str, writer: str) -> float:
    """Mean tokens of the texts of a turn, in chains that this model began; 0 if there is none."""
    return statistics.mean(
        [len(text.token_ids) for text in texts if (text.turn, text.root.writer) == (turn, writer)] or [0]
    )


def count_votes(
    asked: Sequence[tuple[Sequence[Text], Sequence[str]]], answer_marker: str
) -> dict[str, dict[str, float]]:
    """Self-consistency: the commonest of k answers, over questions with their texts and choices.

    Returns:
        votes and corrected_votes: {k: mean reward of the commonest of the first k first, or last, answers}.
    """

    def reward(ends: Sequence[Text], choices: Sequence[str]) -> float:
        # A failed question is a wrong one, as in a run.
        return ranked(ends, choices, answer_marker)[0][0].reward or 0.0 if ends else 0.0

    def last(texts: Sequence[Text]) -> list[Text]:
        return [text for root in roots(texts) for text in finals(texts, root, (ANSWER, CORRECTION))]

    return {
        name: {
            str(k): statistics.mean(reward(ends(texts)[:k], choices) for texts, choices in asked)
            for k in VOTERS
        }
        for name, ends in (("votes", roots), ("corrected_votes", last))
    }


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["run", "harvest", "report"])
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN_FOLDER", help="to harvest")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["variants", "baselines", "recipes"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--parallel", type=int, default=ray_session.cores())
    parser.add_argument("--sizes", nargs="*", default=[], metavar="section.field=value")
    parser.add_argument("--output", type=Path, default=Path("docs/results.md"))
    arguments = parser.parse_intermixed_args()
    folder, started = arguments.folder.resolve(), time.monotonic()
    known = {cell.name: cell for part in PARTS for cell in cells(part, arguments.seeds)}
    if arguments.what == "report":
        study_report.write(
            folder / CELLS, arguments.output, collections.Counter(cell.part for cell in known.values())
        )
    elif arguments.what == "harvest":
        for run in map(Path.resolve, arguments.runs):
            if run.name not in known:
                raise SystemExit(
                    f"{run}: expected a folder named after a cell (recipes-rft-0), found {run.name}"
                )
            add(folder, known[run.name], arguments.sizes, run)
            print(f"{run.name}: kept")
    else:
        wanted = [cell for cell in known.values() if cell.part in arguments.parts]
        whole = run_all(folder, wanted, arguments.parallel, arguments.sizes)
        print(f"took {(time.monotonic() - started) / 60:.0f} min")
        if not whole:
            raise SystemExit("some cells failed; the same command runs them again")


if __name__ == "__main__":
    main()
