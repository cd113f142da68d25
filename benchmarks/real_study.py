"""What each method does to a real language model on real questions.

python -m benchmarks.real_study prompts --model M --questions xquad_en.jsonl     M0 on train questions, with each
                                                                                 pair of prompts
python -m benchmarks.real_study run --model M --questions xquad_en.jsonl         the cells that have no line yet, one
                                                                                 after another, for some nights
python -m benchmarks.real_study run --model M --questions xquad_en.jsonl --cells rft-0 ENE-0
python -m benchmarks.real_study report                                           docs/results-real.md, of the cells

A cell is one `stasc run` of real_study.toml with overrides, on all cores. It leaves one line in
`--folder`/cells.jsonl (docs/study-real by default): what study.py keeps of a run, and of each question of test what
its answers were worth, so that methods are compared question by question. A cell that was stopped goes on from
its run folder, one that has a line is not run again.
"""

import argparse
import itertools
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import real_report, study, study_figures
from stasc_ray import config, store
from stasc_ray.comparing import sweep
from stasc_ray.evaluation import choosing
from stasc_ray.recipes import section_of
from stasc_ray.recipes.trace import ANSWER, CORRECTION
from stasc_ray.report import transcripts
from stasc_ray.runtime import ray_session
from stasc_ray.store import files

CONFIG = Path(__file__).with_name("real_study.toml")
FEW_WORDS = "{question}\nAnswer with a few words from the text."
CHECK = f"Check your answer against the text. {FEW_WORDS}"
SHOWN = "The ferry to the island was built in 1911 by a cooper named Anna Lind and sank in 1930.\n\nWho built the ferry?"
PROMPTS: dict[str, dict[str, Any]] = {
    "short": {"initial": FEW_WORDS, "correction": CHECK},
    "plain": {"initial": "{question}", "correction": "Is that right? {question}"},
    "exact": {
        "initial": "Question: {question}\nCopy the words of the text that answer it.",
        "correction": "Question: {question}\nYour answer may be wrong. Copy the words of the text that answer it.",
    },
    "again": {"initial": FEW_WORDS, "correction": FEW_WORDS},
    "shown": {
        "initial": FEW_WORDS,
        "correction": CHECK,
        "initial_demonstrations": [{"question": SHOWN, "initial": "Anna Lind"}],
        "correction_demonstrations": [
            {"question": SHOWN, "initial": "in 1911", "correction": "Anna Lind"},
            {"question": SHOWN, "initial": "Anna Lind", "correction": "Anna Lind"},
        ],
    },
}
"""How M0 is asked, of which one is chosen on train questions: fields of `prompts`."""
EVOLVING = "algorithm.finetune_from=current"
TWO_TURNS = ("algorithm.n_initial=1", "algorithm.n_corrections=2", EVOLVING)
ONE_TURN = ("algorithm.n_initial=3", "algorithm.n_corrections=0", EVOLVING)
GIVEN = ("algorithm.n_initial=1", "algorithm.n_corrections=0", EVOLVING)
"""For methods that learn what no model wrote."""
METHODS = {
    "rft": ("algorithm.recipe=rft", *ONE_TURN),
    "ENE": ("algorithm.variant=ENE", *TWO_TURNS),
    "verdict": ("algorithm.recipe=verdict", *TWO_TURNS),
    "FNE": ("algorithm.variant=FNE", *TWO_TURNS),
    "gold": ("algorithm.recipe=benchmarks.supervised:GOLD", *GIVEN),
    "preference": ("algorithm.recipe=preference", *TWO_TURNS),
    "EIE": ("algorithm.variant=EIE", *TWO_TURNS),
    # the form of an answer without its content
    "spans": ("algorithm.recipe=benchmarks.controls:SPANS", *GIVEN),
    # ENE's corrections and RFT's answers in one batch
    "mixed": (
        "algorithm.recipe=benchmarks.controls:MIXED",
        "algorithm.variant=ENE",
        *TWO_TURNS,
        "algorithm.max_examples_per_question=2",
    ),
}
ONCE = ("gold", "spans", "preference", "EIE", "mixed")
"""Methods of one seed."""
SEEDS = 3


@dataclass(frozen=True)
class Where:
    """What the command line gave."""

    folder: Path
    work: Path
    given: tuple[str, ...]
    """Overrides: the model and the questions, which no line keeps."""
    sizes: tuple[str, ...]


def cells() -> Iterator[study.Cell]:
    """In the order in which they tell most, seed after seed for the first three."""
    for seed, label in itertools.product(range(SEEDS), ("rft", "ENE")):
        yield study.Cell("real", label, seed, METHODS[label])
    for label in METHODS:
        seeds = range(0 if label in ("rft", "ENE") else 1 if label in ONCE else SEEDS)
        yield from (study.Cell("real", label, seed, METHODS[label]) for seed in seeds)


def run_cell(cell: study.Cell, where: Where) -> None:
    """Run or continue one cell and keep its line.

    Raises:
        SystemExit: the run failed; its log says why.
    """
    path = where.work / cell.name
    overrides = [*where.given, *where.sizes, f"name={cell.name}", f"seed={cell.seed}", *cell.overrides]
    seconds = stasc_run(overrides, path, path.with_suffix(".log"))
    found = study.line_of(cell, where.sizes, path)
    run, settings = store.RunFolder(path), store.read_config(path, section_of)
    found |= {"chosen": choosing.chosen(run, settings) or 0, "cores": ray_session.cores()}
    found["test"] = {str(one["iteration"]): rewards(run, one["iteration"]) for one in found["iterations"]}
    found["transcripts"] = list(texts(run, max(one["iteration"] for one in found["iterations"])))
    study.keep(where.folder, found)
    shutil.rmtree(path)
    print(f"{cell.name}: {seconds / 60:.0f} min, version {found['chosen']} chosen", flush=True)


def stasc_run(overrides: Sequence[str], path: Path, log: Path) -> float:
    """Seconds of a run, or of what was left of it.

    Raises:
        SystemExit: it failed; its log says why.
    """
    # Ray's workers import the recipes of benchmarks/ too
    paths = [str(CONFIG.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    status, seconds = sweep.run_one(sweep.command(CONFIG, overrides, path), log, environment)
    if status not in (0, sweep.NOTHING_KEPT):
        raise SystemExit(f"{path.name}: exit status {status}, see {log}; the same command goes on with it")
    return seconds


def rewards(run: store.RunFolder, iteration: int) -> dict[str, Any]:
    """Of each test question its columns of choosing.SCORES, rounded: `{id: {"r_y1": ..., "r_y2": ...}}`."""
    rows = files.read(run.stage(iteration, "evaluation") / choosing.SCORES).to_pylist()
    return {
        row["id"]: {name: round(row[name], 4) for name in row if name.endswith(("r_y1", "r_y2"))}
        for row in rows
        if row["split"] == "test"
    }


def texts(run: store.RunFolder, iteration: int) -> Iterator[dict[str, str]]:
    """Two questions of each transition with both answers, for the page."""
    found = transcripts.choose(run.stage(iteration, "rollouts"), "test", 1.0, (ANSWER, CORRECTION))
    for name in transcripts.ORDER:
        for one in [one for one in found if one.transition == name][:2]:
            told = {"transition": name, "question": one.question, "reference": one.references[0]}
            answers = {"initial": one.initial, "correction": one.correction}
            yield told | {key: "".join(piece.text for piece in of) for key, of in answers.items()}


def prompts(name: str) -> list[str]:
    """Overrides that ask by one of PROMPTS."""
    return [f"prompts.{field}={config.as_text(value)}" for field, value in PROMPTS[name].items()]


def try_prompts(where: Where, questions: int) -> None:
    """M0's rewards on train questions with each pair of PROMPTS, to prompts.json."""
    file = where.folder / "prompts.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    for name in PROMPTS:
        asked = [*prompts(name), "algorithm.iterations=0", "evaluation.samples=2"]
        asked += ["questions.test.split=train", f"questions.test.limit={questions}"]
        told = {"overrides": [*where.sizes, *asked]}
        if name in found and found[name]["overrides"] == told["overrides"]:
            continue
        path = where.work / f"prompts-{name}"
        shutil.rmtree(path, ignore_errors=True)  # of other prompts of this name
        stasc_run([*where.given, *where.sizes, f"name={path.name}", *asked], path, path.with_suffix(".log"))
        (line,) = (line for line in store.RunFolder(path).metrics() if line["stage"] == "evaluation")
        names = (
            "r_y1",
            "r_y1_low",
            "r_y1_high",
            "r_y2",
            "r_y2_low",
            "r_y2_high",
            "i_to_c",
            "c_to_i",
            "changed",
        )
        found[name] = told | {one: line[f"evaluation/test/{one}"] for one in names}
        shutil.rmtree(path)
        store.write_atomically(file, json.dumps(found, indent=1) + "\n")
        print(f"{name}: r(Y1) {found[name]['r_y1']:.3f}, r(Y2) {found[name]['r_y2']:.3f}", flush=True)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["prompts", "run", "report"])
    parser.add_argument("--model", help="folder, .gguf file or name on the Hub")
    parser.add_argument("--questions", help="a file in SQuAD's shape with a column `split`")
    parser.add_argument("--folder", type=Path, default=Path("docs/study-real"))
    parser.add_argument("--work", type=Path, default=Path("runs/real-study"), help="run folders and logs")
    parser.add_argument("--cells", nargs="+", metavar="LABEL-SEED", help="default: all")
    parser.add_argument("--hours", type=float, help="begin no further cell after so long")
    parser.add_argument("--train-questions", type=int, default=100, help="for `prompts`")
    parser.add_argument("--sizes", nargs="*", default=[], metavar="section.field=value")
    parser.add_argument("--output", type=Path, default=Path("docs/results-real.md"))
    arguments = parser.parse_args()
    if arguments.what == "report":
        real_report.write(arguments.folder, arguments.output)
        return
    if not arguments.model or not arguments.questions:
        parser.error(f"{arguments.what}: expected --model and --questions")
    given = [f"model.path={arguments.model}"]
    given += [f"questions.{split}.source={arguments.questions}" for split in ("train", "dev", "test")]
    where = Where(arguments.folder, arguments.work.resolve(), tuple(given), tuple(arguments.sizes))
    where.folder.mkdir(parents=True, exist_ok=True)
    if arguments.what == "prompts":
        try_prompts(where, arguments.train_questions)
        return
    known = {cell.name.removeprefix("real-"): cell for cell in cells()}
    if unknown := sorted(set(arguments.cells or ()) - known.keys()):
        sys.exit(f"--cells: expected some of {', '.join(known)}, found {', '.join(unknown)}")
    began, lines = time.monotonic(), study_figures.lines(where.folder / study.CELLS)
    if others := [one["name"] for one in lines if one["sizes"] != [*where.sizes]]:
        sys.exit(f"--sizes: expected those of the cells in {where.folder}, found others: {', '.join(others)}")
    done = {one["name"] for one in lines}
    for name, cell in known.items():
        late = arguments.hours and time.monotonic() - began > arguments.hours * 3600
        if cell.name not in done and name in (arguments.cells or known) and not late:
            run_cell(cell, where)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the run that is going ends in order
    main()
