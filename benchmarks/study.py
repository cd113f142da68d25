"""How much the method learns, with error bars: all variants, baselines at equal budget, and the paper's questions, on the sandbox.

python -m benchmarks.study run --folder runs/study                variants and baselines, five seeds; hours on two cores
python -m benchmarks.study run --folder runs/study --parts samples filters rates
python -m benchmarks.study report --folder runs/study --output docs/results.md

A cell is one run (variant, seed, ...). Its figures are one line of cells.jsonl; a cell that has a line is not run again. Each cell
has one core to itself (`taskset`, by affinity), so as many run at once as `--parallel` says. The report is made of that file
alone (study_report.py).
"""

import argparse
import fcntl
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pyarrow.parquet as pq

from benchmarks import speed, study_figures, study_report
from stasc_ray import config, passes, store
from stasc_ray.generation import rollouts, unit_files
from stasc_ray.generation.samples import request_seed
from stasc_ray.learning import finetune
from stasc_ray.recipes import section_of
from stasc_ray.runtime import ray_session
from stasc_ray.runtime.display import Display
from stasc_ray.serving import correcting
from stasc_ray.tasks import prompts, questions, sandbox

CONFIG = Path(__file__).with_name("study.toml")
CELLS = "cells.jsonl"
VARIANTS = ("EIE", "EIF", "ENE", "ENF", "FIE", "FIF", "FNE", "FNF")
VOTERS = (1, 3, 5, 9)
"""How many samples vote in self-consistency; of two that differ the first would win."""
FEWER_SEEDS = 3
PATIENCE_S = 3600
"""For one cell."""


@dataclass(frozen=True)
class Cell:
    """One run of the study."""

    part: str
    label: str
    seed: int
    overrides: tuple[str, ...] = ()
    kind: str = "run"
    """run (`stasc run`); voting: the same, then votes; rft, gold, worked: see `single_turn`; consistency: M0's votes."""

    @property
    def name(self) -> str:
        """Of its line and of its log."""
        return f"{self.part}-{self.label}-{self.seed}"


def cells(part: str, seeds: int) -> Iterator[Cell]:
    """The cells of one part, seed after seed, so that an interrupted study has whole comparisons."""
    for seed in range(seeds):
        if part == "variants":
            yield from (Cell(part, variant, seed, (f"algorithm.variant={variant}",)) for variant in VARIANTS)
        elif part == "baselines":
            yield from (
                Cell(part, kind, seed, kind=kind) for kind in ("rft", "gold", "worked", "consistency")
            )
            yield Cell(part, "ENE", seed, ("algorithm.variant=ENE",), kind="voting")
        elif seed < FEWER_SEEDS and part == "samples":
            for initial, corrections in itertools.product((1, 3, 5), repeat=2):
                counts = (f"algorithm.n_initial={initial}", f"algorithm.n_corrections={corrections}")
                # Two iterations, since these generate up to six times as much as the other cells.
                values = ("algorithm.variant=ENE", "algorithm.iterations=2", *counts)
                yield Cell(part, f"{initial}x{corrections}", seed, values)
        elif seed < FEWER_SEEDS and part == "filters":
            evolving = "algorithm.finetune_from=current"
            yield Cell(part, "both_correct", seed, (evolving, "algorithm.filter=both_correct"))
            for share in (0.2, 0.4):
                values = (
                    evolving,
                    "algorithm.filter=non_decreasing",
                    f"algorithm.keep_correct_share={share}",
                )
                yield Cell(part, f"share-{share}", seed, values)
        elif seed < FEWER_SEEDS and part == "rates":
            for variant in ("ENE", "EIE"):  # ten times the others' learning rate
                values = (f"algorithm.variant={variant}", "finetune.learning_rate=5e-4")
                yield Cell(part, f"{variant}-5e-4", seed, values)


PARTS = ("variants", "baselines", "samples", "filters", "rates")


# --- running -----------------------------------------------------------------------------------------------------


def run_all(folder: Path, wanted: Sequence[Cell], parallel: int, sizes: Sequence[str]) -> bool:
    """Run the cells that have no line yet, `parallel` at a time, one to a core; returns whether all have one now."""
    folder.mkdir(parents=True, exist_ok=True)
    done = {cell["name"]: cell for cell in study_figures.lines(folder / CELLS)}
    if other := [cell.name for cell in wanted if done.get(cell.name, {}).get("sizes", [*sizes]) != [*sizes]]:
        raise SystemExit(
            f"{folder}: expected cells of --sizes {' '.join(sizes) or '(none)'}, found others: {', '.join(other)}"
        )
    missing = [cell for cell in wanted if cell.name not in done]
    cores: SimpleQueue[int] = SimpleQueue()
    for core in sorted(os.sched_getaffinity(0))[:parallel]:
        cores.put(core)

    def one(cell: Cell) -> bool:
        core, started = cores.get(), time.monotonic()
        try:
            command = [
                sys.executable,
                "-m",
                "benchmarks.study",
                "cell",
                "--folder",
                str(folder),
                "--name",
                cell.name,
                "--sizes",
                *sizes,
            ]
            own_core = partial(os.sched_setaffinity, 0, {core})
            with (folder / f"{cell.name}.log").open("w") as log:
                status = subprocess.run(
                    command, stdout=log, stderr=log, check=False, preexec_fn=own_core, timeout=PATIENCE_S
                ).returncode
        except subprocess.TimeoutExpired:
            status = f"time-out after {PATIENCE_S} s"
        finally:
            cores.put(core)
        told = (
            f"{time.monotonic() - started:.0f} s"
            if status == 0
            else f"ended with {status}, see {cell.name}.log"
        )
        print(f"{cell.name}: {told}", flush=True)
        return status == 0

    with ThreadPoolExecutor(parallel) as pool:
        return all(pool.map(one, missing))


def run_cell(folder: Path, cell: Cell, sizes: Sequence[str]) -> None:
    """Run one cell and keep its figures; what it wrote otherwise goes away."""
    started, commit = time.monotonic(), speed.commit()
    work = folder / "work" / cell.name
    settings = config.load_config(CONFIG, overrides(cell, sizes), section_of)
    if cell.kind in ("run", "voting"):
        command = [
            sys.executable,
            "-m",
            "stasc_ray.cli",
            "run",
            str(CONFIG),
            "--run-dir",
            str(work),
            *overrides(cell, sizes),
        ]
        status = subprocess.run(command, check=False).returncode
        if status not in (0, 3):  # 3: the filter kept nothing, which is a result
            raise SystemExit(status)
        iterations = harvest(work)
        if cell.kind == "voting":
            with ray_session.connect(None, work / "logs"):
                add_votes(work, settings, iterations)
    else:
        work.mkdir(parents=True, exist_ok=True)
        with ray_session.connect(None, work / "logs"):
            iterations = single_turn(work, settings, cell, folder)
    found = {
        "name": cell.name,
        **vars(cell),
        "sizes": list(sizes),
        "commit": commit,
        "seconds": time.monotonic() - started,
        "iterations": iterations,
    }
    keep(folder, found)
    shutil.rmtree(work, ignore_errors=True)


def keep(folder: Path, cell: study_figures.Cell) -> None:
    """Give a cell its line among the study's, sorted by name; cells that end together write one after another."""
    with (folder / f"{CELLS}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = {one["name"]: one for one in study_figures.lines(folder / CELLS)} | {cell["name"]: cell}
        lines = [json.dumps(found[name]) + "\n" for name in sorted(found)]
        store.write_atomically(folder / CELLS, "".join(lines))


def overrides(cell: Cell, sizes: Sequence[str]) -> list[str]:
    """For `stasc run`."""
    return [*sizes, f"seed={cell.seed}", *cell.overrides]


def harvest(run_folder: Path) -> list[dict[str, Any]]:
    """One dictionary per iteration, from the run's metrics.jsonl."""
    run = store.RunFolder(run_folder)
    found: dict[int, dict[str, Any]] = {}
    for line in run.metrics():
        names = {key.partition("/")[2]: value for key, value in line.items() if "/" in key}
        at = found.setdefault(line["iteration"], {"iteration": line["iteration"]})
        if line["stage"] == "evaluation":
            at |= {split: _of_split(names, split) for split in ("dev", "test")}
            if "test/fixed/r_y2" in names:  # M0's answers corrected, as the paper measures the F variants
                at["fixed"] = {split: _of_split(names, f"{split}/fixed") for split in ("dev", "test")}
            at["answer_tokens"] = answer_tokens(run, line["iteration"])
        elif line["stage"] == "examples":
            at["examples"] = names
        elif line["stage"] == "finetune":
            at["trained_tokens"] = names["trained_tokens"]
        elif line["stage"] == "rollouts":
            at["generated_tokens"] = names["generated_tokens"]
    return [found[number] for number in sorted(found) if "test" in found[number]]


def answer_tokens(run: store.RunFolder, iteration: int) -> dict[str, float]:
    """Mean tokens of an initial answer and of a correction, over the test questions."""
    files = unit_files.of_split(run.files(run.stage(iteration, "rollouts")), "test")
    rows = [
        row
        for file in files
        for row in pq.read_table(file, columns=["initial_tokens", "correction_tokens"]).to_pylist()
    ]
    initial = [sum(row["initial_tokens"]) / max(len(row["initial_tokens"]), 1) for row in rows]
    correction = [
        statistics.mean([count for counts in row["correction_tokens"] for count in counts] or [0])
        for row in rows
    ]
    return {"initial": statistics.mean(initial), "correction": statistics.mean(correction)}


def _of_split(names: Mapping[str, Any], split: str) -> dict[str, Any]:
    kept = ("r_y1", "r_y2", "delta", "i_to_c", "c_to_i", "c_to_c", "i_to_i", "cl", "cs", "rss", "changed")
    return {name: names[f"{split}/{name}"] for name in kept}


# --- baselines, by the same passes and the same trainer ------------------------------------------------------------


def single_turn(work: Path, settings: config.Config, cell: Cell, folder: Path) -> list[dict[str, Any]]:
    """One-turn learning, iteration after iteration, each from the model before; then the votes of the best on dev.

    rft learns from its own right first answers, of which it generates as many per train question and iteration as a correcting run
    generates answers and corrections; gold from the reference answers; worked from whole sums written out by the sandbox;
    consistency does not learn. An iteration trains on as many tokens as ENE of the same seed did: examples come again where they
    are few (gold answers are short, and right answers alike).
    """
    import ray

    files = write_questions(work, settings)
    rows = {row["id"]: row for row in pq.read_table(files["train"]).to_pylist()}
    budgets = {} if cell.kind == "consistency" else trained_tokens_of(folder, cell.seed)
    model, found, learnt = passes.base_model(settings), [], {}
    for number in range(settings.algorithm.iterations + 1):
        learn = (
            number + 1 in budgets and number < settings.algorithm.iterations
        )  # not where ENE's filter kept nothing
        answered, generated_tokens = generate(
            work, settings, model, files, number, train=learn and cell.kind == "rft"
        )
        scores = {split: measured(answered, settings, split) for split in ("dev", "test")}
        found.append({"iteration": number, **scores, "generated_tokens": generated_tokens, **learnt})
        if not learn:
            break
        if cell.kind == "rft":
            texts = right_answers(answered, settings.algorithm.threshold)
        else:
            texts = [
                (id, gold_answer(row, settings, worked=cell.kind == "worked")) for id, row in rows.items()
            ]
        examples = [
            {
                "id": f"{id}/{place}",
                "messages": [*prompts.initial_messages(rows[id], settings.prompts), assistant(text)],
            }
            for place, (id, text) in enumerate(texts)
        ]
        examples = within(examples, budgets[number + 1], settings)
        summary = finetune.finetune(
            ray.data.from_items(examples),
            base_model=model,
            output=work / f"model_{number + 1}",
            config=settings,
            iteration=number + 1,
            storage=work / f"training_{number + 1}",
            on_cuda=False,
        )
        model = str(work / f"model_{number + 1}")
        learnt = {"trained_tokens": summary["trained_tokens"], "examples": {"kept": len(examples)}}
    best = study_figures.chosen_first({"iterations": found})
    of_best = str(work / f"model_{best['iteration']}") if best["iteration"] else passes.base_model(settings)
    best |= vote(work / "votes", settings, of_best, files["test"])
    return found


def add_votes(work: Path, settings: config.Config, iterations: list[dict[str, Any]]) -> None:
    """To the published version of a run, and to the one with the best first answers on dev."""
    run, cell = store.RunFolder(work), {"iterations": iterations}
    for number in {pick(cell)["iteration"] for pick in (study_figures.chosen, study_figures.chosen_first)}:
        model = str(run.stage(number, "model")) if number else passes.base_model(settings)
        one = next(one for one in iterations if one["iteration"] == number)
        one |= vote(work / f"votes_{number}", settings, model, run.questions / "test.parquet")


def gold_answer(row: dict[str, Any], settings: config.Config, *, worked: bool) -> str:
    """The reference answer alone, or the whole sum by columns."""
    if worked:
        return sandbox.column_addition([int(number) for number in re.findall(r"\d+", row["question"])])
    return f"{settings.prompts.answer_marker}{row['answers'][0]}"


def assistant(text: str) -> prompts.Message:
    """The answer as a message."""
    return {"role": "assistant", "content": text}


def right_answers(files: Sequence[str], threshold: float) -> list[tuple[str, str]]:
    """(id, text) of the train answers that were right, equal texts of a question once."""
    kept: dict[tuple[str, str], None] = {}
    for file in unit_files.of_split(map(Path, files), "train"):
        for row in pq.read_table(file).to_pylist():
            kept |= {
                (row["id"], text): None
                for text, r in zip(row["initial"], row["initial_rewards"], strict=True)
                if r >= threshold
            }
    return list(kept)


def within(examples: list[dict[str, Any]], tokens: int, settings: config.Config) -> list[dict[str, Any]]:
    """So many of the examples, in an order given by their ids alone, as make that many tokens to train on."""
    from stasc_ray.learning import encoding
    from stasc_ray.runtime import model_folder

    tokenizer = model_folder.load_tokenizer(passes.base_model(settings))
    ordered = sorted(examples, key=lambda one: request_seed(settings.seed, one["id"]))
    encoded = [
        encoding.encode(tokenizer, one["messages"], settings.finetune.max_length_tokens) for one in ordered
    ]
    counts = [
        0 if isinstance(one, str) else int((one["labels"] != encoding.IGNORED).sum()) for one in encoded
    ]
    kept, left, place = [], tokens / settings.finetune.epochs, 0
    while left > 0 and any(counts):
        repeat, at = divmod(place, len(ordered))
        place, left = place + 1, left - counts[at]
        if counts[at]:
            kept.append({**ordered[at], "id": f"{ordered[at]['id']}/{repeat}"})
    return kept


def trained_tokens_of(folder: Path, seed: int) -> dict[int, int]:
    """What ENE of that seed trained on, by iteration; an iteration that it did not reach is not there."""
    name = f"variants-ENE-{seed}"
    found = [cell for cell in study_figures.lines(folder / CELLS) if cell["name"] == name]
    if not found:
        raise SystemExit(
            f"{folder / CELLS}: expected the cell {name}, whose training tokens are the baselines' budget, found none; "
            "run the variants"
        )
    iterations = found[0]["iterations"]
    return {one["iteration"]: one["trained_tokens"] for one in iterations if "trained_tokens" in one}


def vote(destination: Path, settings: config.Config, model: str, file: Path) -> dict[str, Any]:
    """Self-consistency: the model answers each test question max(VOTERS) times.

    Returns:
        votes: {k: share of the questions that the commonest of the first k answers gets right}; vote_tokens: mean of one answer.
    """
    most = rollouts.Turns(max(VOTERS), 0, settings.sampling.initial, settings.sampling.correction)
    answered, _ = roll_out(destination, settings, model, {"test": file}, {"test": most})
    rows = [row for file in answered for row in pq.read_table(file).to_pylist()]
    marker = settings.prompts.answer_marker

    def right(row: dict[str, Any], k: int) -> float:
        if not row["initial"]:  # a failed question is a wrong one, as in a run
            return 0.0
        keys = [correcting.vote_key(text, row["choices"], marker) for text in row["initial"][:k]]
        commonest = Counter(keys).most_common(1)[0][0]
        return row["initial_rewards"][keys.index(commonest)]

    accuracy = {str(k): statistics.mean(right(row, k) for row in rows) for k in VOTERS}
    tokens = statistics.mean(statistics.mean(row["initial_tokens"]) for row in rows if row["initial"])
    return {"votes": accuracy, "vote_tokens": tokens}


def write_questions(work: Path, settings: config.Config) -> dict[str, Path]:
    """The questions that a run with this config has."""
    rows = questions.load_questions(settings.questions, settings.seed).rows
    files = {split: work / f"{split}.parquet" for split in ("train", "dev", "test")}
    for split, file in files.items():
        unit_files.write_questions(
            [row for row in rows if row["split"] == split], file, settings.engine.batch_size
        )
    return files


def generate(
    work: Path, settings: config.Config, model: str, files: Mapping[str, Path], number: int, *, train: bool
) -> tuple[list[str], int]:
    """Dev and test as a run measures them and, if asked, the train questions' first answers; rollout files, generated tokens."""
    algorithm, turns = settings.algorithm, passes.turns(settings)
    as_many = algorithm.n_initial * (1 + algorithm.n_corrections)
    turns["train"] = rollouts.Turns(as_many, 0, settings.sampling.initial, settings.sampling.correction)
    wanted = {split: file for split, file in files.items() if train or split != "train"}
    return roll_out(work / f"rollouts_{number}", settings, model, wanted, turns)


def roll_out(
    destination: Path,
    settings: config.Config,
    model: str,
    files: Mapping[str, Path],
    turns: Mapping[str, rollouts.Turns],
) -> tuple[list[str], int]:
    """One pass; returns its files and its generated tokens."""
    job = rollouts.Job(model, destination.name, settings, turns, str(destination), on_cuda=False)
    units = [unit for split, file in files.items() for unit in unit_files.question_units(file, split)]
    summary = passes.collect(Display(), job, units, destination.name)
    passes.check_errors(summary, settings.engine.max_error_fraction, str(destination))
    return [str(destination / f"{unit.name}.parquet") for unit in units], summary["generated_tokens"]


def measured(files: Sequence[str], settings: config.Config, split: str) -> dict[str, Any]:
    """Metrics of one split."""
    found = passes.measure(unit_files.of_split(map(Path, files), split), settings)
    return _of_split({f"{split}/{name}": value for name, value in found.items()}, split)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["run", "report", "cell"])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["variants", "baselines"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--parallel", type=int, default=ray_session.cores())
    parser.add_argument("--sizes", nargs="*", default=[], metavar="section.field=value")
    parser.add_argument("--output", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--name", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    if arguments.what == "report":
        expected = Counter(cell.part for part in PARTS for cell in cells(part, arguments.seeds))
        study_report.write(folder / CELLS, arguments.output, expected)
        return
    everything = {cell.name: cell for part in PARTS for cell in cells(part, max(arguments.seeds, 100))}
    if arguments.what == "cell":
        run_cell(folder, everything[arguments.name], arguments.sizes)
        return
    started = time.monotonic()
    # One after another: a baseline's budget is what a variant spent.
    parts = [
        run_all(folder, list(cells(part, arguments.seeds)), arguments.parallel, arguments.sizes)
        for part in arguments.parts
    ]
    print(f"took {(time.monotonic() - started) / 60:.0f} min")
    if not all(parts):
        raise SystemExit("some cells failed; the same command runs them again")


if __name__ == "__main__":
    main()
