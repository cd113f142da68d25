"""What `stasc plan` learns from: a run in small, with the real engine, trainer and questions, in a folder
that goes away.

Ask M0 some questions, keep examples, fine-tune for some steps, ask the new model. Whatever the recipe asks
and keeps is counted; where a run spends time, this one does too.
"""

import contextlib
import os
import random
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stasc_ray import config, stages, store
from stasc_ray.generation import run_engines, unit_files
from stasc_ray.learning.examples import Selecting
from stasc_ray.opening import open_run_on
from stasc_ray.planning.found import Found, mean, shape_of
from stasc_ray.recipes import recipe_of
from stasc_ray.recipes.recipe import train_plan
from stasc_ray.recipes.selection import choose
from stasc_ray.recipes.trace import Text, grade, read_texts, roots
from stasc_ray.runtime import capacity, forecast, gguf, ray_session
from stasc_ray.stages import Run
from stasc_ray.store import files
from stasc_ray.store.rows import EXAMPLE_SCHEMA

if TYPE_CHECKING:
    from stasc_ray.recipes.recipe import Example

QUESTIONS = 50
GENERATION_S = 60.0
"""A second pass asks as many questions as would take that long at the first one's rate, if those are at least
twice as many. It takes much less: a small pass is mostly warm-up, with engines that are half empty."""
FEW_STEPS, SOME_STEPS = 2, 40
"""Optimizer steps of the short fine-tune, of a slow and of a fast model."""
Rows = Mapping[str, Sequence[dict[str, Any]]]


def calibrate(settings: config.Config, address: str | None, most: int = QUESTIONS) -> Found:
    """Run in small, and measure.

    Args:
        address: of a cluster to join; None takes RAY_ADDRESS, else starts a local Ray.
        most: train questions at first.

    Raises:
        ValueError, RuntimeError, OSError: what the run itself would raise in its stages.
    """
    started = time.monotonic()
    with _scratch(settings, address) as place, open_run_on(settings, place / "all", address) as whole:
        stages.prepare_questions(whole)
        every = {split: _rows(whole.folder.questions / f"{split}.parquet") for split in whole.splits}
        opening_s = time.monotonic() - started
        with _small_run(whole, place / "first", _some(every, most, settings.seed)) as run:
            passes = [_first_pass(run)]
            wanted = min(int(most * GENERATION_S / passes[0].seconds), len(every[whole.splits[0]]))
            found = _rest(run, every, passes, opening_s) if wanted < 2 * most else None
        if found is None:
            with _small_run(whole, place / "second", _some(every, wanted, settings.seed)) as run:
                found = _rest(run, every, [*passes, _first_pass(run)], opening_s)
        return replace(found, engines=_engines(settings, whole.on_cuda), seconds=time.monotonic() - started)


# --- the run in small
# -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _scratch(settings: config.Config, address: str | None) -> Iterator[Path]:
    """A folder for the length of the block: on a cluster below `storage`, which every node sees."""
    if not (address or os.environ.get("RAY_ADDRESS")):
        with tempfile.TemporaryDirectory(prefix="stasc-plan-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
        return
    storage = ray_session.run_folder(settings, None).parent
    made = not storage.exists()
    folder = storage / f".plan-{settings.name}-{uuid.uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if made:
            with contextlib.suppress(OSError):  # another run has begun there
                storage.rmdir()


@contextlib.contextmanager
def _small_run(whole: Run, folder: Path, rows: Rows) -> Iterator[Run]:
    """A run of these questions on the same Ray, of one iteration."""
    settings = _small(whole, sum(map(len, rows.values())))
    with store.open_run(folder, settings) as opened:
        for split, some in rows.items():
            unit_files.write_questions(
                some, opened.questions / f"{split}.parquet", settings.engine.batch_size
            )
        line = {"stage": "questions", "iteration": 0}
        opened.commit(opened.questions, {"line": line, "files": [f"{split}.parquet" for split in rows]})
        with run_engines.engines(settings, whole.on_cuda) as engines:
            yield replace(whole, folder=opened, settings=settings, engines=engines)


def _small(whole: Run, count: int) -> config.Config:
    """The settings of a run in small. On GPUs one engine stands for all; on CPUs all share the cores, so all
    are there, with a unit or more for each.
    """
    settings = whole.settings
    engine = settings.engine
    actors = 1 if whole.on_cuda else _engines(settings, whole.on_cuda)
    units = actors * engine.concurrent_batches
    engine = engine.model_copy(
        update={"actors": actors, "batch_size": min(engine.batch_size, -(-count // units))}
    )
    section = settings.algorithm.model_copy(update={"iterations": min(1, settings.algorithm.iterations)})
    model = settings.model.model_copy(update={"path": _path(whole)})
    return settings.model_copy(
        update={"engine": engine, "algorithm": section, "model": model, "tracking": config.Tracking()}
    )


def _path(whole: Run) -> str:
    """Of M0; a GGUF file was converted into the folder of the whole."""
    return whole.model(0) if gguf.is_gguf(whole.settings.model.path) else whole.settings.model.path


def _engines(settings: config.Config, cuda: bool) -> int:
    """That a run has while it generates."""
    return capacity.pool_size(settings.engine, ray_session.nodes(), cuda)[0]


def _rows(file: Path) -> list[dict[str, Any]]:
    return files.read(file).to_pylist()


def _some(every: Rows, most: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    """`most` train questions and a fifth as many of dev and test; of test alone, if there is nothing else."""
    wanted = {split: most if split == "train" or len(every) == 1 else max(1, most // 5) for split in every}
    draw = random.Random(seed)
    return {split: draw.sample(list(rows), min(wanted[split], len(rows))) for split, rows in every.items()}


@dataclass(frozen=True)
class _Pass:
    """What a pass took."""

    tokens: float
    """Of prompts and generated."""
    seconds: float
    """Of generation, from the first engine that was up."""
    start_s: float


def _first_pass(run: Run) -> _Pass:
    """M0's."""
    stages.answer_and_correct(run, 0, learn=bool(run.settings.algorithm.iterations))
    return _pass(run, 0)


def _pass(run: Run, iteration: int) -> _Pass:
    line = _line(run, "rollouts", iteration)
    tokens = line["rollouts/prompt_tokens"] + line["rollouts/generated_tokens"]
    seconds = line["rollouts/generation_s"]
    return _Pass(tokens, max(seconds, 0.1), max(0.0, line["rollouts/duration_s"] - seconds))


def _rest(run: Run, every: Rows, passes: Sequence[_Pass], opening_s: float) -> Found:
    """Evaluate, choose examples, fine-tune, ask the new model; and what all of it showed."""
    stages.evaluate(run, 0)
    base = _asked(run, 0)
    learnt, trains = forecast.Learnt(0.0, 0.0, 0.0, 0.0), bool(run.settings.algorithm.iterations)
    tuned: dict[str, Any] = {}
    later = base
    if trains:
        learnt, tuned = _learn(run, few=len(passes) == 1)
        stages.answer_and_correct(run, 1, learn=False)
        later = {**_asked(run, 1), "train": _asked_again(run)}
    besides, rate = forecast.engine_speed([(one.tokens, one.seconds) for one in passes])
    speeds = forecast.Speeds(
        opening_s=opening_s,
        first_start_s=passes[0].start_s,  # a second pass may find its engines up
        later_start_s=_pass(run, 1 if trains else 0).start_s,
        pass_s=besides,
        tokens_per_s=rate,
        engines=run.settings.engine.least_actors,
        finetune_s=max(0.0, tuned.get("duration_s", 0.0) - tuned.get("train_s", 0.0)),
        trained_per_s=tuned.get("tokens_per_s", 1.0),
        examples_s=tuned.get("examples_s", 0.0),
        evaluation_s=_line(run, "evaluation", 0)["evaluation/duration_s"],
    )
    return Found(
        sizes=forecast.Sizes({split: len(rows) for split, rows in every.items()}, base, later, learnt),
        shape=shape_of(run.settings, run.model(0)),
        cuda=run.on_cuda,
        engines=run.settings.engine.least_actors,
        speeds=speeds,
        questions=len(_rows(run.folder.questions / f"{run.splits[0]}.parquet")),
    )


def _line(run: Run, stage: str, iteration: int) -> dict[str, Any]:
    return next(
        line for line in run.folder.metrics() if (line["stage"], line["iteration"]) == (stage, iteration)
    )


# --- what is asked
# --------------------------------------------------------------------------------------------------------


def _asked(run: Run, iteration: int) -> dict[str, forecast.Asked]:
    """What the questions of each split cost M_iteration."""
    found = {}
    traces = run.folder.files(run.folder.stage(iteration, "rollouts"))
    for split in run.splits:
        rows = [row for file in unit_files.of_split(traces, split) for row in _rows(Path(file))]
        writer = store.iteration_name(iteration)
        found[split] = mean([_cost(t for t in read_texts(row) if t.writer == writer) for row in rows])
    return found


def _asked_again(run: Run) -> forecast.Asked:
    """What train questions will cost a later model: with Fixed initialization M0's answers are there."""
    texts = _train_texts(run)
    fixed = run.settings.algorithm.initial_answers_from == "base"
    return mean([_cost(t for t in found if t.parent or not fixed) for _, found in texts])


def _train_texts(run: Run) -> list[tuple[dict[str, Any], list[Text]]]:
    traces = unit_files.of_split(run.folder.files(run.folder.stage(0, "rollouts")), "train")
    return [(row, read_texts(row)) for file in traces for row in _rows(Path(file))]


def _cost(texts: Iterator[Text]) -> forecast.Asked:
    every = list(texts)
    prompt = sum(text.prompt_tokens for text in every)
    return forecast.Asked(prompt, sum(len(text.token_ids) for text in every), len(every))


# --- what is learnt
# -------------------------------------------------------------------------------------------------------


def _learn(run: Run, *, few: bool) -> tuple[forecast.Learnt, dict[str, Any]]:
    """Keep examples, learn some of them; what is kept, and the fine-tune's figures."""
    asked = max(1, len(_train_texts(run)))
    if_right = kept_if_right(run.settings, _train_texts(run))
    with contextlib.suppress(stages.NothingKeptError):
        stages.keep_improvements(run, 1)
    folder = run.folder.stage(1, "examples")
    kept = [row for file in folder.glob("*.parquet") for row in _rows(file)]
    chosen = kept or [one.as_row() for one in if_right]
    if not chosen:
        raise ValueError(
            f"stasc plan: expected examples to learn from {asked} train questions, found that recipe "
            f"{run.settings.algorithm.recipe!r} keeps none, even if all answers were right; take another "
            "filter, or --no-calibration for bounds"
        )
    examples_s = _line(run, "examples", 1)["examples/duration_s"] if kept else 0.0
    most = run.settings.finetune.batch_size * (FEW_STEPS if few else SOME_STEPS)
    _write_examples(run, chosen[:most])
    stages.fine_tune(run, 1)
    line = _line(run, "finetune", 1)
    tuned = {name.removeprefix("finetune/"): value for name, value in line.items()} | {
        "examples_s": examples_s
    }
    learnt = max(1, min(most, len(chosen)) - tuned["left_out_no_target"] - tuned["left_out_too_long"])
    passes = tuned["trained_tokens"] / learnt / run.settings.finetune.epochs
    through = tuned["tokens_per_s"] * tuned["train_s"] / learnt / run.settings.finetune.epochs
    return forecast.Learnt(len(kept) / asked, len(if_right) / asked, through, passes), tuned


def kept_if_right(
    settings: config.Config, traces: Sequence[tuple[Mapping[str, Any], list[Text]]]
) -> "list[Example]":
    """What the recipe would learn of traces if every answer were right; M0's own answers stay as they are
    where Fixed initialization gives them to every model.
    """
    section, recipe, found = settings.algorithm, recipe_of(settings.algorithm.recipe), []
    says: Callable[[str], bool | None] = lambda text: recipe.says_right(section, text)  # noqa: E731
    for row, texts in traces:
        given = (
            [(root, root.reward) for root in roots(texts)] if section.initial_answers_from == "base" else []
        )
        grade(texts, recipe.answers, lambda _: (1.0, None), recipe.verdicts, says, section.threshold)
        for root, reward in given:
            root.reward = reward
        seed = Selecting(settings, 1).seed
        found += choose(recipe, row, texts, train_plan(settings, 0), seed).kept
    return found


def _write_examples(run: Run, rows: Sequence[Mapping[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = run.folder.fresh_stage(run.folder.stage(1, "examples"))
    pq.write_table(pa.Table.from_pylist(list(rows), schema=EXAMPLE_SCHEMA), folder / "train-000000.parquet")
    line = {"stage": "examples", "iteration": 1, "examples/kept": len(rows)}
    run.folder.commit(folder, {"line": line, "files": ["train-000000.parquet"]})
    run.folder.log(line)
