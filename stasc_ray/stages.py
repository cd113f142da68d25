"""The stages that Algorithm 1 consists of, each: if committed, skip; else compute, write, commit, log one
line of metrics.

Reads and writes the run folder (store/) and nothing else; moves rows between Ray Data, Ray Train and Parquet,
decides nothing.
"""

import itertools
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stasc_ray import config, rehearsal
from stasc_ray.evaluation import choosing, measuring, metrics
from stasc_ray.evaluation.paired import Paired
from stasc_ray.generation import unit_files
from stasc_ray.generation.collect import collect
from stasc_ray.generation.run_engines import Engines
from stasc_ray.generation.unit_rollout import Job
from stasc_ray.learning import examples, finetune
from stasc_ray.learning.job import FinetuneJob
from stasc_ray.learning.trainer import Trainer
from stasc_ray.recipes import recipe_of
from stasc_ray.report.planned import read_plan
from stasc_ray.runtime import forecast, gguf, model_folder
from stasc_ray.runtime.display import Bar, Display, looking
from stasc_ray.store import RunFolder, fork, iteration_name, now, tracking
from stasc_ray.store.files import move_into_place
from stasc_ray.tasks import questions, rewards, sandbox
from stasc_ray.tasks.questions import SPLITS


class NothingKeptError(RuntimeError):
    """The filter kept no correction; the message says which transitions occurred and what to change."""


@dataclass(frozen=True)
class Run:
    """What every stage needs."""

    folder: RunFolder
    settings: config.Config
    on_cuda: bool
    display: Display
    track: tracking.Track
    engines: Engines
    trainer: Trainer

    def model(self, iteration: int) -> str:
        """Path (or Hub id) of the model after `iteration`; 0 is M0."""
        if iteration > 0:
            return str(self.folder.stage(iteration, "model"))
        return base_model(self.settings, self.folder.path)

    @property
    def splits(self) -> tuple[questions.SplitName, ...]:
        """The splits that are asked: a run without iterations only measures on test."""
        return SPLITS if self.settings.algorithm.iterations else ("test",)


def base_model(settings: config.Config, run_folder: Path | None = None) -> str:
    """Path or Hub id of M0.

    Args:
        run_folder: where a GGUF file is converted to a model folder; None gives the file itself.
    """
    if run_folder and gguf.is_gguf(settings.model.path):
        return str(RunFolder(run_folder).stage(0, "model"))
    return str(sandbox.model_path()) if settings.model.path == "sandbox" else settings.model.path


def prepare_questions(run: Run) -> None:
    """Load, check and split the questions once, and rehearse with some; then the run reads its own copy.

    Raises:
        ValueError: unusable rows, an empty split, references that can never match; what would fail later
            (`rehearsal.rehearse`).
    """
    folder = run.folder.questions
    if run.folder.committed(folder):
        return
    settings = run.settings
    loaded = questions.load_questions(settings.questions, settings.seed, run.splits)
    skip = settings.questions.on_bad_row == "skip"
    rows = rewards.gradable(loaded.rows, settings.reward, settings.prompts.answer_marker, skip=skip)
    by_split = {split: [row for row in rows if row["split"] == split] for split in run.splits}
    _check_by_rehearsal(run, by_split)
    run.folder.fresh_stage(folder)
    for split, split_rows in by_split.items():
        unit_files.write_questions(split_rows, folder / f"{split}.parquet", run.settings.engine.batch_size)
    counts = {split: len(split_rows) for split, split_rows in by_split.items()}
    skipped = loaded.skipped_bad_rows + len(loaded.rows) - len(rows)
    dropped = {"dropped_duplicates": loaded.dropped_duplicates, "skipped_bad_rows": skipped}
    dropped |= {"train_equal": loaded.train_equal, "train_near": loaded.train_near}
    _commit(run, folder, "questions", 0, {**counts, **dropped})
    run.display.note(
        f"questions: {', '.join(f'{count} {split}' for split, count in counts.items())}; "
        f"{loaded.dropped_duplicates} duplicates dropped, {skipped} bad rows skipped"
    )
    for line in loaded.notes():
        run.display.note(f"questions: {line}")


def _check_by_rehearsal(run: Run, by_split: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """One question of each split through everything with made-up texts, before anything is committed.

    Raises:
        ValueError: what would fail later (`rehearsal.rehearse`).
    """
    import ray

    rows = {split: list(found[: rehearsal.ROWS]) for split, found in by_split.items() if found}
    # in a worker, which has loaded the tokenizer before: the driver stays light
    task = ray.remote(num_cpus=1)(_rehearse)
    problem, notes = ray.get(task.remote(run.settings, run.model(0), rows))
    if problem:
        raise ValueError(problem)
    for note in notes:
        run.display.note(f"  {note}")


def _rehearse(
    settings: config.Config, model: str, rows: Mapping[str, Sequence[Mapping[str, Any]]]
) -> tuple[str | None, list[str]]:
    """What is wrong, and what a person should know."""
    tokenizer = model_folder.load_tokenizer(
        model,
        revision=model_folder.revision(model, settings.model),
        trust_remote_code=settings.model.trust_remote_code,
    )
    try:
        return None, rehearsal.rehearse(settings, tokenizer, rows)
    except ValueError as error:
        return str(error), []


def answer_and_correct(run: Run, iteration: int, *, learn: bool) -> None:
    """Algorithm 1, steps 1 and 2, for M_iteration: the recipe's turns on train (if `learn`), dev and test in
    one pass.

    With Fixed initialization the train questions keep M0's initial answers; dev and test are measured both
    ways. A run's last pass asks no train questions; if the run has more iterations now, they are asked then,
    and the pass's mark and line are replaced. Until then the old mark stays true: its files stay.

    Raises:
        RuntimeError: more rows failed than `engine.max_error_fraction` allows.
    """
    folder = run.folder.stage(iteration, "rollouts")
    units = _units(run, iteration, learn)
    files = sorted(f"{unit.name}.parquet" for unit in units)
    mark = run.folder.committed(folder)
    if mark and set(files) <= set(mark["files"]):
        return
    run.folder.check_lease()
    job = Job(
        model=run.model(iteration),
        iteration=iteration,
        settings=run.settings,
        destination=str(folder),
        on_cuda=run.on_cuda,
        lease=run.folder.lease,
    )
    what = f"{iteration_name(iteration)}: answers and corrections"
    run.display.after_s = _seconds_after(run, "rollouts", iteration)
    summary = collect(run.display, job, units, what, run.engines)
    # Not all files there: an attempt that wanted more iterations may have left some of train.
    _commit(run, folder, "rollouts", iteration, summary, files)


def keep_improvements(run: Run, iteration: int) -> None:
    """Algorithm 1, step 3: select this iteration's examples from the train traces of M_{iteration-1}.

    Raises:
        NothingKeptError: the filter kept no correction.
    """
    folder = run.folder.stage(iteration, "examples")
    if run.folder.committed(folder):
        return
    started = time.monotonic()
    run.folder.fresh_stage(folder)
    traces = unit_files.of_split(run.folder.files(run.folder.stage(iteration - 1, "rollouts")), "train")
    summary = examples.write_examples(traces, folder, run.settings, iteration)
    seen = ", ".join(
        f"{name.replace('_to_', '->')} {summary[name]}" for name in ("c_to_c", "c_to_i", "i_to_c", "i_to_i")
    )
    if summary["kept"] == 0:
        text = _nothing_kept(run.settings, iteration, seen, summary["left_out_truncated"])
        ways = _forked_with_more(run, iteration, truncated=bool(summary["left_out_truncated"]))
        raise NothingKeptError(f"{text}. The run folder keeps what is done; to go on from there: {ways}")
    _commit(run, folder, "examples", iteration, {**summary, "duration_s": time.monotonic() - started})
    left_out = f"; {summary['left_out_truncated']} left out, cut" if summary["left_out_truncated"] else ""
    run.display.note(
        f"{iteration_name(iteration)}: kept {summary['kept']} examples of {summary['attempts']} attempts "
        f"({seen}){left_out}"
    )


def start_trainer(run: Run, iteration: int) -> None:
    """Let the engines rest, and start the fine-tune's workers if they leave a CPU to select and encode with:
    they load the model while answers are measured and examples selected.
    """
    if run.folder.committed(run.folder.stage(iteration, "model")):
        return
    room = run.engines.make_room()
    if room.early:
        run.trainer.start(_finetune_job(run, iteration, room.gpus))


def fine_tune(run: Run, iteration: int) -> None:
    """Algorithm 1, step 4: M_iteration from M0 (Fixed) or M_{iteration-1} (Evolving) on the kept
    corrections.

    Raises:
        FloatingPointError: the loss became NaN or infinite.
    """
    folder = run.folder.stage(iteration, "model")
    state = run.folder.iteration(iteration) / "training"
    run.folder.check_lease()
    if run.folder.committed(folder):
        shutil.rmtree(state, ignore_errors=True)  # of an attempt that ended right after the mark
        return
    files = [str(file) for file in run.folder.files(run.folder.stage(iteration, "examples"))]
    run.display.after_s = _seconds_after(run, "finetune", iteration)
    with _training_progress(run, iteration, state / "progress.json"):
        job = _finetune_job(run, iteration, run.engines.make_room().gpus)
        try:
            summary = finetune.finetune(
                examples.read_examples(files), job, run.trainer, _model_card(run, iteration)
            )
        except FloatingPointError as error:
            slower = [f"finetune.learning_rate={run.settings.finetune.learning_rate / 10:g}"]
            ways = fork.ways_on(run.folder.path, run.settings.name, iteration - 1, slower)
            raise FloatingPointError(
                f"{error}. The run folder keeps what is done; to go on: {ways}"
            ) from None
    run.folder.check_lease()
    move_into_place(job.output, folder)
    _commit(run, folder, "finetune", iteration, summary)
    run.display.note(
        f"{iteration_name(iteration)}: {summary['steps']} steps in {summary['duration_s']:.0f} s, of which "
        f"{summary['start_s']:.0f} s went by before the first one"
    )
    if summary["packing_note"]:
        run.display.note(f"{iteration_name(iteration)}: {summary['packing_note']}")
    shutil.rmtree(state, ignore_errors=True)


def _finetune_job(run: Run, iteration: int, gpus: float) -> FinetuneJob:
    folder, evolving = run.folder, run.settings.algorithm.finetune_from == "current"
    previous_adapter = folder.stage(iteration - 1, "model") / "adapter"
    adapter = previous_adapter if evolving and previous_adapter.is_dir() else None
    # An attempt that was taken over may still train: it exports into a folder of its own, which only the
    # lease's holder moves.
    built = folder.iteration(iteration) / f"model.{folder.attempt:04d}.partial"
    for old in built.parent.glob("model.*.partial"):
        if old != built:
            shutil.rmtree(old, ignore_errors=True)
    return FinetuneJob.of(
        run.settings,
        # An adapter is continued on M0, which it was made for; full weights start from the current model.
        run.model(iteration - 1) if evolving and adapter is None else run.model(0),
        output=built,
        storage=folder.iteration(iteration) / "training",
        iteration=iteration,
        on_cuda=run.on_cuda,
        gpus=gpus,
        adapter=adapter,
        lease=folder.lease,
    )


def evaluate(run: Run, iteration: int) -> None:
    """Measure M_iteration on dev and test: its own answers corrected and, with Fixed initialization, M0's
    (`base/`); and its gain over M0.
    """
    folder = run.folder.stage(iteration, "evaluation")
    if run.folder.committed(folder):
        return
    run.folder.fresh_stage(folder)
    started = time.monotonic()
    settings = run.settings
    writers = {"": iteration_name(iteration)}
    if settings.algorithm.initial_answers_from == "base" and iteration:
        writers["base/"] = iteration_name(0)
    rounds = {
        "": None,
        **{f"round_{k}/": k for k in range(1, settings.evaluation.rounds)},
    }
    traces = run.folder.files(run.folder.stage(iteration, "rollouts"))
    found, scored = {}, {}
    splits = [split for split in run.splits if split != "train"]
    for split, (of, writer), (at, most) in itertools.product(splits, writers.items(), rounds.items()):
        scores = measuring.scores(unit_files.of_split(traces, split), settings, writer, most)
        summary = metrics.summarize(scores, settings.evaluation.bootstrap_samples, settings.seed)
        found |= {f"{split}/{of}{at}{name}": value for name, value in summary.items()}
        if most is None:
            scored[split, of] = scores
    choosing.write_scores(folder, scored)
    if iteration and choosing.has_scores(run.folder, 0) and choosing.is_paired(settings):
        for split in splits:
            over_base = choosing.gain(run.folder, settings, split, 0, iteration)
            found |= {f"{split}/{name}": value for name, value in _as_gain(over_base).items()}
    _commit(run, folder, "evaluation", iteration, {**found, "duration_s": time.monotonic() - started})


def publish(run: Run, iteration: int) -> None:
    """Write the version's manifest, then move LATEST if the version deserves it (`publish.when`)."""
    folder = run.folder
    version = f"v{iteration:04d}"
    if not any(line["stage"] == "publish" and line["iteration"] == iteration for line in folder.metrics()):
        found = _metrics_of(folder, iteration, "evaluation")
        choice = choosing.choose(folder, run.settings, iteration)
        fixed = run.settings.algorithm.initial_answers_from == "base"
        model = folder.stage(iteration, "model")
        manifest = {
            "version": version,
            "iteration": iteration,
            "model": str(model.relative_to(folder.path)) if iteration or model.is_dir() else run.model(0),
            "recipe": run.settings.algorithm.recipe,
            # Who wrote what was measured and chosen by; the endpoint asks the same (serving/placement.py).
            "answers": iteration_name(0 if fixed else iteration),
            "corrections": iteration_name(iteration),
            "config_fingerprint": config.fingerprint(run.settings),
            "metrics": {name: value for name, value in found.items() if name.startswith("evaluation/")},
            "created": now(),
            "canary": str((model / "canary.json").relative_to(folder.path))
            if (model / "canary.json").exists()
            else None,
        }
        folder.publish(manifest, move_latest=choice.moves)
        line = _line(run, "publish", iteration) | {"publish/version": version, "publish/latest": choice.moves}
        if choice.gain:
            found = _as_gain(choice.gain) | {"against": f"v{choice.against:04d}"}
            line |= {f"publish/{name}": value for name, value in found.items()}
            run.display.note(_why(run, version, choice))
        folder.log(line)
        run.track()


def _as_gain(found: Paired) -> dict[str, float]:
    return {
        "gain": found.difference,
        "gain_low": found.low,
        "gain_high": found.high,
        "gain_probability": found.probability,
    }


def _why(run: Run, version: str, choice: choosing.Choice) -> str:
    """Why LATEST moves to a version, or stays."""
    found, old = choice.gain, f"v{choice.against:04d}"
    assert found
    interval = f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
    least = run.settings.publish.min_probability
    return (
        f"{version} against {old} on {found.questions} dev questions: {interval}, better with probability "
        f"{found.probability:.2f} (at least {least:g} is wanted): LATEST "
        f"{'moves' if choice.moves else f'stays at {old}'}"
    )


def table_rows(folder: RunFolder) -> list[dict[str, Any]]:
    """One mapping per evaluated iteration, with the metrics of all its stages."""
    rows: dict[int, dict[str, Any]] = {}
    for line in folder.metrics():
        rows.setdefault(line["iteration"], {}).update(line)
    return [row for _, row in sorted(rows.items()) if "evaluation/test/r_y2" in row]


def _units(run: Run, iteration: int, learn: bool) -> list[unit_files.Unit]:
    fixed = run.settings.algorithm.initial_answers_from == "base" and iteration > 0
    splits = [split for split in run.splits if learn or split != "train"]
    if fixed:
        base = run.folder.files(run.folder.stage(0, "rollouts"))
        return [unit for split in splits for unit in unit_files.given_units(base, split)]
    folder = run.folder.questions
    return [
        unit for split in splits for unit in unit_files.question_units(folder / f"{split}.parquet", split)
    ]


def _seconds_after(run: Run, stage: str, iteration: int) -> float | None:
    """What the run still takes after a stage, by the stages that are done and the plan if there was one."""
    planned = forecast.planned_seconds(read_plan(run.folder.path))
    lines, iterations = run.folder.metrics(), run.settings.algorithm.iterations
    return forecast.seconds_after(stage, iteration, iterations, lines, planned)


def _commit(
    run: Run,
    folder: Path,
    stage: str,
    iteration: int,
    summary: Mapping[str, Any],
    files: Sequence[str] | None = None,
) -> None:
    """Commit a stage's files (None: all Parquet files of its folder) and log its line."""
    line = _line(run, stage, iteration) | {f"{stage}/{name}": value for name, value in summary.items()}
    if files is None:
        files = [file.name for file in sorted(folder.glob("*.parquet"))]
    run.folder.commit(folder, {"line": line, "files": files})
    run.folder.log(line)
    run.track()


def _line(run: Run, stage: str, iteration: int) -> dict[str, Any]:
    """How a line of metrics.jsonl begins; `config` is the fingerprint of the attempt's."""
    fingerprint = config.fingerprint(run.settings)
    return {"stage": stage, "iteration": iteration, "time": time.time(), "config": fingerprint}


def repair_metrics(folder: RunFolder) -> None:
    """Log the stages whose driver died between the commit mark and the line."""
    for mark in sorted(folder.path.glob("*/_COMMITTED.json")) + sorted(
        folder.path.glob("*/*/_COMMITTED.json")
    ):
        if found := folder.committed(mark.parent):
            folder.log(found["line"])


def _metrics_of(folder: RunFolder, iteration: int, stage: str) -> dict[str, Any]:
    return next(line for line in folder.metrics() if (line["stage"], line["iteration"]) == (stage, iteration))


def _nothing_kept(settings: config.Config, iteration: int, seen: str, truncated: int) -> str:
    section = settings.algorithm
    if truncated:
        return (
            f"{iteration_name(iteration)}: nothing was kept; {truncated} examples would have been, but learn "
            f"texts that were cut at max_tokens. Transitions: {seen}. Raise sampling.initial.max_tokens and "
            "sampling.correction.max_tokens, ask for shorter texts, or learn them without an end of turn "
            "(algorithm.keep_truncated = true)"
        )
    return (
        f"{iteration_name(iteration)}: algorithm.recipe {section.recipe!r} kept nothing; it keeps "
        f"{recipe_of(section.recipe).keeps(section)}. Transitions: {seen}. Look at some rollouts: are right "
        f"answers graded "
        "as right (reward.name, reward.scope, prompts.answer_marker)? Then raise algorithm.n_corrections, "
        "sampling.correction.temperature or the number of train questions, or try another filter or a "
        "stronger model"
    )


def _forked_with_more(run: Run, iteration: int, *, truncated: bool) -> str:
    """The commands that ask for more, or longer, texts than those of which nothing was kept."""
    settings, since = run.settings, iteration - 1
    section, sampling = settings.algorithm, settings.sampling
    # M0's first answers are shared, unless the fork begins with M0
    given = section.initial_answers_from == "base" and since > 0
    if truncated:
        changes = {"sampling.correction.max_tokens": 2 * sampling.correction.max_tokens}
        changes |= {} if given else {"sampling.initial.max_tokens": 2 * sampling.initial.max_tokens}
    elif section.n_corrections:
        changes = {"algorithm.n_corrections": 2 * section.n_corrections}
    else:
        changes, since = {"algorithm.n_initial": 2 * section.n_initial}, 0 if given else since
    overrides = [f"{name}={value}" for name, value in changes.items()]
    return fork.ways_on(run.folder.path, settings.name, since, overrides)


def _model_card(run: Run, iteration: int) -> dict[str, Any]:
    settings = run.settings
    found = _metrics_of(run.folder, iteration, "examples")
    return {
        "run": settings.name,
        "iteration": iteration,
        "recipe": f"{settings.algorithm.recipe} {settings.algorithm.variant}",
        "base model": settings.model.path,
        "kept examples": found["examples/kept"],
    }


@contextmanager
def _training_progress(run: Run, iteration: int, file: Path) -> Iterator[None]:
    """Show a bar fed by the progress file that rank 0 writes, while the block trains."""
    with (
        run.display.progress(f"{iteration_name(iteration)}: fine-tuning", 0, 0, "steps") as bar,
        looking(lambda: _show_step(file, bar), 0.5),
    ):
        yield


def _show_step(file: Path, bar: Bar) -> None:
    if not file.is_file():
        bar.wait("starting the trainer")
        return
    found = json.loads(file.read_text(encoding="utf-8"))  # it is replaced, never half written
    if found["step"] >= found["steps"]:
        bar.wait("writing the model")
    else:
        bar.set(found["step"], total=found["steps"], detail=f"loss {found['loss']:.3f}")
