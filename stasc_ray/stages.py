"""The stages that Algorithm 1 consists of, each: if committed, skip; else compute, write, commit, log one line of metrics.

Reads and writes the run folder (store.py) and nothing else; moves rows between Ray Data, Ray Train and Parquet, decides nothing.
"""

import collections
import functools
import json
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stasc_ray import config, models, tracking
from stasc_ray.display import Bar, Display
from stasc_ray.evaluation import metrics
from stasc_ray.generation import rollouts
from stasc_ray.learning import examples, finetune
from stasc_ray.store import RunFolder, iteration_name, now
from stasc_ray.tasks import questions, rewards, sandbox

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
        return base_model(self.settings)


def base_model(settings: config.Config) -> str:
    """Path or Hub id of M0."""
    return str(sandbox.model_path()) if settings.model.path == "sandbox" else settings.model.path


def check_config(settings: config.Config) -> None:
    """What is wrong with a config and can be known without Ray: the model folder, the reward.

    Raises:
        ValueError, FileNotFoundError: expected, found, what to do.
    """
    models.check_model(base_model(settings))
    rewards.grader(settings.reward, settings.prompts.answer_marker).close()


def check_models(settings: config.Config) -> None:
    """Load the tokenizer in a worker (the driver stays light).

    Raises:
        ValueError: it has no chat template.
    """
    import ray

    load = ray.remote(num_cpus=1)(_try_tokenizer)
    if problem := ray.get(load.remote(base_model(settings), settings.model.trust_remote_code)):
        raise ValueError(problem)


def prepare_questions(run: Run) -> None:
    """Load, check and split the questions once; from then on the run reads its own copy.

    Raises:
        ValueError: unusable rows, an empty split, references that can never match.
    """
    folder = run.folder.questions
    if run.folder.committed(folder):
        return
    loaded = questions.load_questions(run.settings.questions, run.settings.seed)
    rows = gradable(loaded.rows, run.settings)
    run.folder.fresh_stage(folder)
    by_split = {split: [row for row in rows if row["split"] == split] for split in SPLITS}
    for split, split_rows in by_split.items():
        rollouts.write_questions(split_rows, folder / f"{split}.parquet", run.settings.engine.batch_size)
    counts = {split: len(split_rows) for split, split_rows in by_split.items()}
    skipped = loaded.skipped_bad_rows + len(loaded.rows) - len(rows)
    dropped = {"dropped_duplicates": loaded.dropped_duplicates, "skipped_bad_rows": skipped}
    _commit(run, folder, "questions", 0, {**counts, **dropped})
    run.display.note(
        f"questions: {counts['train']} train, {counts['dev']} dev, {counts['test']} test; "
        f"{loaded.dropped_duplicates} duplicates dropped, {skipped} bad rows skipped"
    )


def gradable(rows: list[dict[str, Any]], settings: config.Config) -> list[dict[str, Any]]:
    """The questions that some answer can score on; one that none can is a bad row (`questions.on_bad_row`).

    Raises:
        ValueError: there are such, and bad rows are not to be skipped.
    """
    marker = settings.prompts.answer_marker
    if settings.questions.on_bad_row == "fail":
        rewards.check_answers(rows, settings.reward, marker)
        return rows
    return [row for row in rows if rewards.unmatchable(row, settings.reward, marker) is None]


def answer_and_correct(run: Run, iteration: int, *, learn: bool) -> None:
    """Algorithm 1, steps 1 and 2, for M_iteration: initial answers and corrections of train (if `learn`), dev and test in one pass.

    With Fixed initialization the train questions keep M0's initial answers; dev and test are measured both ways.

    Raises:
        RuntimeError: more rows failed than `engine.max_error_fraction` allows.
    """
    folder = run.folder.stage(iteration, "rollouts")
    if run.folder.committed(folder):
        return
    units = _units(run, iteration, learn)
    job = rollouts.Job(
        model=run.model(iteration),
        model_version=iteration_name(iteration),
        settings=run.settings,
        turns=turns(run.settings),
        destination=str(folder),
        on_cuda=run.on_cuda,
    )
    summary = collect(run.display, job, units, f"{iteration_name(iteration)}: answers and corrections")
    check_errors(summary, run.settings.engine.max_error_fraction, str(folder))
    del summary["messages"]
    _commit(run, folder, "rollouts", iteration, summary)


def turns(settings: config.Config) -> dict[str, rollouts.Turns]:
    """Samples and sampling values per split."""
    algorithm, evaluation, sampling = settings.algorithm, settings.evaluation, settings.sampling
    train = rollouts.Turns(algorithm.n_initial, algorithm.n_corrections, sampling.initial, sampling.correction)
    greedy = {"temperature": 0.0} if evaluation.greedy else {}
    held_out = rollouts.Turns(
        evaluation.samples, 1, sampling.initial.model_copy(update=greedy), sampling.correction.model_copy(update=greedy)
    )
    return {"train": train, "dev": held_out, "test": held_out}


def collect(display: Display, job: rollouts.Job, units: Sequence[rollouts.Unit], what: str) -> dict[str, Any]:
    """Run what is missing of a pass and add up its units, those of earlier attempts included."""
    started = time.monotonic()
    destination = Path(job.destination)
    done = rollouts.written(destination, units)
    earlier = [rollouts.read_summary(destination / f"{unit.name}.parquet") for unit in done]
    resumed = sum(summary["questions"] for summary in earlier)
    total = sum(_rows(unit) for unit in units)
    fresh: list[dict[str, Any]] = []
    with display.progress(what, total, resumed, "questions") as bar:
        tokens, first = 0, 0.0
        for summary in rollouts.roll_out(job, units):
            first = first or time.monotonic()
            fresh.append(summary)
            tokens += summary["initial_tokens"] + summary["correction_tokens"]
            bar.advance(summary["questions"], f"{tokens / max(time.monotonic() - first, 1):,.0f} tokens/s")
    duration_s = time.monotonic() - started
    start_s = max((summary["engine_start_s"] for summary in fresh), default=0.0)
    names = ("questions", "errors", "grader_errors", "initial_tokens", "correction_tokens", "prompt_tokens")
    counts = {name: sum(summary[name] for summary in (*earlier, *fresh)) for name in names}
    if counts["questions"] != total:
        raise RuntimeError(f"rollouts in {destination}: expected {total} questions, found {counts['questions']}; delete the folder")
    messages = collections.Counter(text for summary in (*earlier, *fresh) for text in summary["messages"] if text)
    return {
        **counts,
        "generated_tokens": counts["initial_tokens"] + counts["correction_tokens"],
        "tokens_per_s": tokens / duration_s if fresh else None,
        "engine_start_s": start_s,
        "duration_s": duration_s,
        "resumed_questions": resumed,
        "engine_nodes": len({summary["engine_node"] for summary in fresh}),
        "messages": [text for text, _ in messages.most_common(3)],
    }


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
    files = rollouts.unit_files(run.folder.stage(iteration - 1, "rollouts"), "train", source)
    summary = examples.write_examples(files, folder, run.settings, iteration)
    seen = ", ".join(f"{name.replace('_to_', '->')} {summary[name]}" for name in ("c_to_c", "c_to_i", "i_to_c", "i_to_i"))
    if summary["kept"] == 0:
        raise NothingKeptError(_nothing_kept(run.settings, iteration, seen))
    _commit(run, folder, "examples", iteration, {**summary, "duration_s": time.monotonic() - started})
    run.display.note(f"{iteration_name(iteration)}: kept {summary['kept']} of {summary['attempts']} corrections ({seen})")


def fine_tune(run: Run, iteration: int) -> None:
    """Algorithm 1, step 4: M_iteration from M0 (Fixed) or M_{iteration-1} (Evolving) on the kept corrections."""
    import ray

    folder = run.folder.stage(iteration, "model")
    if run.folder.committed(folder):
        return
    run.folder.check_lease()
    state = run.folder.iteration(iteration) / "training"
    evolving = run.settings.algorithm.finetune_from == "current"
    previous_adapter = run.folder.stage(iteration - 1, "model") / "adapter"
    adapter = previous_adapter if evolving and previous_adapter.is_dir() else None
    # An adapter is continued on M0, which it was made for; full weights start from the current model.
    start = run.model(iteration - 1) if evolving and adapter is None else run.model(0)
    # An attempt that was taken over may still train: it exports into a folder of its own, which only the lease's holder moves.
    built = folder.with_name(f"model.{run.folder.attempt:04d}.partial")
    for old in folder.parent.glob("model.*.partial"):
        shutil.rmtree(old, ignore_errors=True)
    files = [str(file) for file in _parquet_files(run.folder.stage(iteration, "examples"))]
    with _training_progress(run, iteration, state / "progress.json"):
        summary = finetune.finetune(
            ray.data.read_parquet(files),
            base_model=start,
            output=built,
            config=run.settings,
            iteration=iteration,
            storage=state,
            on_cuda=run.on_cuda,
            model_card=_model_card(run, iteration),
            adapter=adapter,
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
    for split in ("dev", "test"):
        for prefix, source in ((split, "current"), (f"{split}/fixed", "base")):
            files = rollouts.unit_files(run.folder.stage(iteration, "rollouts"), split, source)
            if files:
                values = measure(files, settings)
                found |= {f"{prefix}/{name}": value for name, value in values.items()}
    _commit(run, folder, "evaluation", iteration, {**found, "duration_s": time.monotonic() - started})


def measure(files: Sequence[str], settings: config.Config, correction_round: int | None = None) -> dict[str, Any]:
    """Metrics over rollout files; rows are scored where they lie, and only a few floats per question come back.

    `correction_round` (from 1) takes that round of chained corrections; None takes every correction as a sample.
    """
    import ray

    score = functools.partial(_score_file, threshold=settings.algorithm.threshold, correction_round=correction_round)
    plan = ray.data.from_items([{"file": file} for file in files], override_num_blocks=len(files))
    return metrics.summarize(plan.flat_map(score).take_all(), settings.evaluation.bootstrap_samples, settings.seed)


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
            "canary": str((model / "canary.json").relative_to(folder.path)) if (model / "canary.json").exists() else None,
        }
        folder.publish(manifest, move_latest=moves)
        folder.log(
            {
                "stage": "publish",
                "iteration": iteration,
                "time": time.time(),
                "publish/version": version,
                "publish/latest": moves,
            }
        )


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


def _try_tokenizer(path: str, trust_remote_code: bool) -> str | None:
    try:
        models.load_tokenizer(path, trust_remote_code=trust_remote_code)
    except (ValueError, OSError) as error:
        return str(error)
    return None


def _units(run: Run, iteration: int, learn: bool) -> list[rollouts.Unit]:
    settings, questions_folder = run.settings, run.folder.questions
    fixed = settings.algorithm.initial_answers_from == "base" and iteration > 0
    base = run.folder.stage(0, "rollouts")
    units = []
    for split in SPLITS if learn else SPLITS[1:]:
        if split != "train" or not fixed:
            units += rollouts.question_units(questions_folder / f"{split}.parquet", split)
        if fixed:
            units += rollouts.given_units(base, split)
    return units


def _rows(unit: rollouts.Unit) -> int:
    data = pq.read_metadata(unit.source)
    return data.num_rows if unit.row_group is None else data.row_group(unit.row_group).num_rows


def check_errors(summary: Mapping[str, Any], limit: float, folder: str) -> None:
    """Raises RuntimeError with the commonest messages when more than `limit` of a pass's rows failed."""
    if summary["errors"] > limit * summary["questions"]:
        lines = "\n".join(f"  {text[:300]}" for text in summary["messages"])
        raise RuntimeError(
            f"rollouts: expected at most engine.max_error_fraction = {limit:g} of the rows to fail, found {summary['errors']} of "
            f"{summary['questions']}. The commonest messages:\n{lines}\nThe rows are in {folder} (column `error`); delete that "
            "folder to generate them again, or start again with a larger engine.max_error_fraction"
        )


def _commit(run: Run, folder: Path, stage: str, iteration: int, summary: Mapping[str, Any]) -> None:
    line = {"stage": stage, "iteration": iteration, "time": time.time()} | {f"{stage}/{name}": v for name, v in summary.items()}
    files = [file.name for file in _parquet_files(folder)]
    run.folder.commit(folder, {"line": line, "files": files})
    run.folder.log(line)
    run.track(line)


def repair_metrics(folder: RunFolder) -> None:
    """Log the stages whose driver died between the commit mark and the line."""
    for mark in sorted(folder.path.glob("*/_COMMITTED.json")) + sorted(folder.path.glob("*/*/_COMMITTED.json")):
        folder.log((folder.committed(mark.parent) or {})["line"])


def _metrics_of(folder: RunFolder, iteration: int, stage: str) -> dict[str, Any]:
    return next(line for line in folder.metrics() if (line["stage"], line["iteration"]) == (stage, iteration))


def _parquet_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


def _count_rows(folder: Path) -> int:
    return sum(pq.read_metadata(file).num_rows for file in _parquet_files(folder))


def _score_file(item: dict[str, str], threshold: float, correction_round: int | None) -> list[dict[str, Any]]:
    rows = pq.read_table(item["file"]).to_pylist()
    if correction_round is not None:
        taken = slice(correction_round - 1, correction_round)
        rows = [row | {name: [part[taken] for part in row[name]] for name in ("corrections", "correction_rewards")} for row in rows]
    return [metrics.score_row(row, threshold) for row in rows]


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
    steps = -(-_count_rows(run.folder.stage(iteration, "examples")) // batch_size) * epochs
    with run.display.progress(f"{iteration_name(iteration)}: fine-tuning", steps, 0, "steps") as bar:
        watcher = threading.Thread(target=_follow, args=(file, bar, stop), name="training-progress", daemon=True)
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
