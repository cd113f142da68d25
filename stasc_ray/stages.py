"""The stages that Algorithm 1 consists of, each: if committed, skip; else compute, write, commit, log one line of metrics.

Reads and writes the run folder (store.py) and nothing else; moves rows between Ray Data, Ray Train and Parquet, decides nothing.
"""

import json
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stasc_ray import config, passes
from stasc_ray.generation import rollouts, unit_files
from stasc_ray.learning import examples, finetune
from stasc_ray.runtime.display import Bar, Display
from stasc_ray.store import RunFolder, files, iteration_name, now, tracking
from stasc_ray.tasks import questions

SPLITS = ("train", "dev", "test")


class NothingKeptError(RuntimeError):
    """The filter kept no correction; the message says which transitions occurred and what to change."""


@dataclass(frozen=True)
class Run:
    """What every stage needs."""

    folder: RunFolder
    settings: config.Config
    on_cuda: bool
    display: Display
    track: tracking.Sink

    def model(self, iteration: int) -> str:
        """Path (or Hub id) of the model after `iteration`; 0 is M0."""
        if iteration > 0:
            return str(self.folder.stage(iteration, "model"))
        return passes.base_model(self.settings)


def prepare_questions(run: Run) -> None:
    """Load, check and split the questions once; from then on the run reads its own copy.

    Raises:
        ValueError: unusable rows, an empty split, references that can never match.
    """
    folder = run.folder.questions
    if run.folder.committed(folder):
        return
    loaded = questions.load_questions(run.settings.questions, run.settings.seed)
    rows = passes.gradable(loaded.rows, run.settings)
    run.folder.fresh_stage(folder)
    by_split = {split: [row for row in rows if row["split"] == split] for split in SPLITS}
    for split, split_rows in by_split.items():
        unit_files.write_questions(split_rows, folder / f"{split}.parquet", run.settings.engine.batch_size)
    counts = {split: len(split_rows) for split, split_rows in by_split.items()}
    skipped = loaded.skipped_bad_rows + len(loaded.rows) - len(rows)
    dropped = {"dropped_duplicates": loaded.dropped_duplicates, "skipped_bad_rows": skipped}
    _commit(run, folder, "questions", 0, {**counts, **dropped})
    run.display.note(
        f"questions: {counts['train']} train, {counts['dev']} dev, {counts['test']} test; "
        f"{loaded.dropped_duplicates} duplicates dropped, {skipped} bad rows skipped"
    )


def answer_and_correct(run: Run, iteration: int, *, learn: bool) -> None:
    """Algorithm 1, steps 1 and 2, for M_iteration: initial answers and corrections of train (if `learn`), dev and test in one pass.

    With Fixed initialization the train questions keep M0's initial answers; dev and test are measured both ways.

    Raises:
        RuntimeError: more rows failed than `engine.max_error_fraction` allows.
    """
    folder = run.folder.stage(iteration, "rollouts")
    if run.folder.committed(folder):
        return
    run.folder.check_lease()
    units = _units(run, iteration, learn)
    job = rollouts.Job(
        model=run.model(iteration),
        model_version=iteration_name(iteration),
        settings=run.settings,
        turns=passes.turns(run.settings),
        destination=str(folder),
        on_cuda=run.on_cuda,
        lease=run.folder.lease,
    )
    summary = passes.collect(run.display, job, units, f"{iteration_name(iteration)}: answers and corrections")
    passes.check_errors(summary, run.settings.engine.max_error_fraction, str(folder))
    del summary["messages"]
    _commit(run, folder, "rollouts", iteration, summary)


def keep_improvements(run: Run, iteration: int) -> None:
    """Algorithm 1, step 3: filter the train rollouts of M_{iteration-1} into this iteration's examples.

    Raises:
        NothingKeptError: the filter kept no correction.
    """
    folder = run.folder.stage(iteration, "examples")
    if run.folder.committed(folder):
        return
    started = time.monotonic()
    run.folder.fresh_stage(folder)
    source = "base" if run.settings.algorithm.initial_answers_from == "base" and iteration > 1 else "current"
    files = unit_files.of_split(
        run.folder.files(run.folder.stage(iteration - 1, "rollouts")), "train", source
    )
    summary = examples.write_examples(files, folder, run.settings, iteration)
    seen = ", ".join(
        f"{name.replace('_to_', '->')} {summary[name]}" for name in ("c_to_c", "c_to_i", "i_to_c", "i_to_i")
    )
    if summary["kept"] == 0:
        raise NothingKeptError(_nothing_kept(run.settings, iteration, seen))
    _commit(run, folder, "examples", iteration, {**summary, "duration_s": time.monotonic() - started})
    run.display.note(
        f"{iteration_name(iteration)}: kept {summary['kept']} of {summary['attempts']} corrections ({seen})"
    )


def fine_tune(run: Run, iteration: int) -> None:
    """Algorithm 1, step 4: M_iteration from M0 (Fixed) or M_{iteration-1} (Evolving) on the kept corrections."""
    folder = run.folder.stage(iteration, "model")
    state = run.folder.iteration(iteration) / "training"
    run.folder.check_lease()
    if run.folder.committed(folder):
        shutil.rmtree(state, ignore_errors=True)  # of an attempt that ended right after the mark
        return
    evolving = run.settings.algorithm.finetune_from == "current"
    previous_adapter = run.folder.stage(iteration - 1, "model") / "adapter"
    adapter = previous_adapter if evolving and previous_adapter.is_dir() else None
    # An adapter is continued on M0, which it was made for; full weights start from the current model.
    start = run.model(iteration - 1) if evolving and adapter is None else run.model(0)
    # An attempt that was taken over may still train: it exports into a folder of its own, which only the lease's holder moves.
    built = folder.with_name(f"model.{run.folder.attempt:04d}.partial")
    for old in folder.parent.glob("model.*.partial"):
        shutil.rmtree(old, ignore_errors=True)
    files = [str(file) for file in run.folder.files(run.folder.stage(iteration, "examples"))]
    with _training_progress(run, iteration, state / "progress.json"):
        summary = finetune.finetune(
            examples.read_examples(files),
            base_model=start,
            output=built,
            config=run.settings,
            iteration=iteration,
            storage=state,
            on_cuda=run.on_cuda,
            model_card=_model_card(run, iteration),
            adapter=adapter,
            lease=run.folder.lease,
        )
    run.folder.check_lease()
    shutil.rmtree(folder, ignore_errors=True)
    built.rename(folder)
    _commit(run, folder, "finetune", iteration, summary)
    run.display.note(
        f"{iteration_name(iteration)}: {summary['steps']} steps in {summary['duration_s']:.0f} s, after {summary['start_s']:.0f} s "
        "of encoding and of starting workers in the place of engines"
    )
    shutil.rmtree(state, ignore_errors=True)


def evaluate(run: Run, iteration: int) -> None:
    """Measure M_iteration on dev and test: its own answers corrected and, with Fixed initialization, M0's answers corrected."""
    folder = run.folder.stage(iteration, "evaluation")
    if run.folder.committed(folder):
        return
    run.folder.fresh_stage(folder)
    started = time.monotonic()
    settings = run.settings
    found: dict[str, Any] = {}
    rolled_out = run.folder.files(run.folder.stage(iteration, "rollouts"))
    for split in ("dev", "test"):
        for prefix, source in ((split, "current"), (f"{split}/fixed", "base")):
            files = unit_files.of_split(rolled_out, split, source)
            if files:
                values = passes.measure(files, settings)
                found |= {f"{prefix}/{name}": value for name, value in values.items()}
    _commit(run, folder, "evaluation", iteration, {**found, "duration_s": time.monotonic() - started})


def publish(run: Run, iteration: int) -> None:
    """Write the version's manifest, then move LATEST if the version deserves it (`publish.when`)."""
    folder = run.folder
    version = f"v{iteration:04d}"
    if not any(line["stage"] == "publish" and line["iteration"] == iteration for line in folder.metrics()):
        found = _metrics_of(folder, iteration, "evaluation")
        best = best_on_dev(folder, up_to=iteration)
        moves = run.settings.publish.when == "always" or best == iteration
        model = folder.stage(iteration, "model")
        manifest = {
            "version": version,
            "iteration": iteration,
            "model": str(model.relative_to(folder.path)) if iteration else run.model(0),
            "config_fingerprint": config.fingerprint(run.settings),
            "metrics": {name: value for name, value in found.items() if name.startswith("evaluation/")},
            "created": now(),
            "canary": str((model / "canary.json").relative_to(folder.path))
            if (model / "canary.json").exists()
            else None,
        }
        folder.publish(manifest, move_latest=moves)
        line = {"stage": "publish", "iteration": iteration, "time": time.time()}
        line |= {"publish/version": version, "publish/latest": moves}
        folder.log(line)
        run.track(line)


def best_on_dev(folder: RunFolder, up_to: int) -> int:
    """The iteration with the best dev r(Y2) so far; the earliest of equals. Test plays no part."""
    found = {
        line["iteration"]: line["evaluation/dev/r_y2"]
        for line in folder.metrics()
        if line["stage"] == "evaluation" and line["iteration"] <= up_to
    }
    return max(found, key=lambda iteration: (found[iteration], -iteration))


def table_rows(folder: RunFolder) -> list[dict[str, Any]]:
    """One mapping per evaluated iteration, with the metrics of all its stages."""
    rows: dict[int, dict[str, Any]] = {}
    for line in folder.metrics():
        rows.setdefault(line["iteration"], {}).update(line)
    return [row for _, row in sorted(rows.items()) if "evaluation/dev/r_y2" in row]


def _units(run: Run, iteration: int, learn: bool) -> list[unit_files.Unit]:
    settings, questions_folder = run.settings, run.folder.questions
    fixed = settings.algorithm.initial_answers_from == "base" and iteration > 0
    base = run.folder.files(run.folder.stage(0, "rollouts")) if fixed else []
    units = []
    for split in SPLITS if learn else SPLITS[1:]:
        if split != "train" or not fixed:
            units += unit_files.question_units(questions_folder / f"{split}.parquet", split)
        if fixed:
            units += unit_files.given_units(base, split)
    return units


def _commit(run: Run, folder: Path, stage: str, iteration: int, summary: Mapping[str, Any]) -> None:
    line = {"stage": stage, "iteration": iteration, "time": time.time()} | {
        f"{stage}/{name}": v for name, v in summary.items()
    }
    files = [file.name for file in sorted(folder.glob("*.parquet"))]
    run.folder.commit(folder, {"line": line, "files": files})
    run.folder.log(line)
    run.track(line)


def repair_metrics(folder: RunFolder) -> None:
    """Log the stages whose driver died between the commit mark and the line."""
    for mark in sorted(folder.path.glob("*/_COMMITTED.json")) + sorted(
        folder.path.glob("*/*/_COMMITTED.json")
    ):
        if found := folder.committed(mark.parent):
            folder.log(found["line"])


def _metrics_of(folder: RunFolder, iteration: int, stage: str) -> dict[str, Any]:
    return next(line for line in folder.metrics() if (line["stage"], line["iteration"]) == (stage, iteration))


def _nothing_kept(settings: config.Config, iteration: int, seen: str) -> str:
    advice = {
        "improving": "no correction had a higher reward than its initial answer",
        "non_decreasing": "no correction had a higher reward than its initial answer, or kept a correct one correct",
        "both_correct": "no initial answer and its correction were both correct",
    }[settings.algorithm.filter]
    return (
        f"{iteration_name(iteration)}: the filter {settings.algorithm.filter!r} kept nothing: {advice}. Transitions: {seen}. "
        "Look at some rollouts: are right answers graded as right (reward.name, reward.scope, prompts.answer_marker)? Then raise "
        "algorithm.n_corrections, sampling.correction.temperature or the number of train questions, or try another filter or a "
        "stronger model. The run folder keeps what is done"
    )


def _model_card(run: Run, iteration: int) -> dict[str, Any]:
    settings = run.settings
    found = _metrics_of(run.folder, iteration, "examples")
    return {
        "run": settings.name,
        "iteration": iteration,
        "variant": settings.algorithm.variant,
        "base model": settings.model.path,
        "kept corrections": found["examples/kept"],
    }


@contextmanager
def _training_progress(run: Run, iteration: int, file: Path) -> Iterator[None]:
    """Show a bar fed by the progress file that rank 0 writes, while the block trains."""
    stop = threading.Event()
    batch_size, epochs = run.settings.finetune.batch_size, run.settings.finetune.epochs
    examples = sum(
        files.footer(file).num_rows for file in run.folder.files(run.folder.stage(iteration, "examples"))
    )
    steps = -(-examples // batch_size) * epochs
    with run.display.progress(f"{iteration_name(iteration)}: fine-tuning", steps, 0, "steps") as bar:
        watcher = threading.Thread(
            target=_follow, args=(file, bar, stop), name="training-progress", daemon=True
        )
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()


def _follow(file: Path, bar: Bar, stop: threading.Event) -> None:
    seen = 0
    while not stop.wait(0.5):
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            bar.advance(found["step"] - seen, f"loss {found['loss']:.3f}")
            seen = found["step"]
