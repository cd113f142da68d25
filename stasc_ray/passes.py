"""One pass of rollouts and what it is worth: what a run's stages and `stasc evaluate` share.

Moves rows between Ray Data and Parquet files; knows nothing of run folders and commit marks.
"""

import collections
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stasc_ray import config
from stasc_ray.evaluation import metrics
from stasc_ray.generation import rollouts, unit_files
from stasc_ray.runtime import model_folder
from stasc_ray.runtime.display import Display
from stasc_ray.store import files
from stasc_ray.tasks import rewards, sandbox


def base_model(settings: config.Config) -> str:
    """Path or Hub id of M0."""
    return str(sandbox.model_path()) if settings.model.path == "sandbox" else settings.model.path


def check_config(settings: config.Config) -> None:
    """What is wrong with a config and can be known without Ray: the model folder, the reward.

    Raises:
        ValueError, FileNotFoundError: expected, found, what to do.
    """
    model_folder.check_model(base_model(settings))
    rewards.grader(settings.reward, settings.prompts.answer_marker).close()


def check_models(settings: config.Config) -> None:
    """Load the tokenizer in a worker (the driver stays light).

    Raises:
        ValueError: it has no chat template.
    """
    import ray

    load = ray.remote(num_cpus=1)(_try_tokenizer)
    if problem := ray.get(load.remote(base_model(settings), settings.model)):
        raise ValueError(problem)


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


def turns(settings: config.Config) -> dict[str, rollouts.Turns]:
    """Samples and sampling values per split."""
    algorithm, evaluation, sampling = settings.algorithm, settings.evaluation, settings.sampling
    train = rollouts.Turns(
        algorithm.n_initial, algorithm.n_corrections, sampling.initial, sampling.correction
    )
    greedy = {"temperature": 0.0} if evaluation.greedy else {}
    held_out = rollouts.Turns(
        evaluation.samples,
        1,
        sampling.initial.model_copy(update=greedy),
        sampling.correction.model_copy(update=greedy),
    )
    return {"train": train, "dev": held_out, "test": held_out}


def collect(
    display: Display, job: rollouts.Job, units: Sequence[unit_files.Unit], what: str
) -> dict[str, Any]:
    """Run what is missing of a pass and add up its units, those of earlier attempts included."""
    started = time.monotonic()
    destination = Path(job.destination)
    done = unit_files.written(destination, units)
    earlier = [rollouts.read_summary(destination / f"{unit.name}.parquet") for unit in done]
    resumed = sum(summary["questions"] for summary in earlier)
    total = _count_rows(units)
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
        raise RuntimeError(
            f"rollouts in {destination}: expected {total} questions, found {counts['questions']}; delete the folder"
        )
    if fresh:
        seconds = f"{duration_s:.0f} s, of which the engines took {start_s:.0f} s to start"
        display.note(f"{what}: {total - resumed} questions in {seconds}")
    again = rollouts.done_again(destination, units)
    if again:
        display.note(
            f"{what}: {again} of {len(units)} units were begun again, since a process or node was lost"
        )
    messages = collections.Counter(
        text for summary in (*earlier, *fresh) for text in summary["messages"] if text
    )
    return {
        **counts,
        "generated_tokens": counts["initial_tokens"] + counts["correction_tokens"],
        "tokens_per_s": tokens / duration_s if fresh else None,
        "engine_start_s": start_s,
        "duration_s": duration_s,
        "resumed_questions": resumed,
        "units_done_again": again,
        "engine_nodes": len({summary["engine_node"] for summary in fresh}),
        "messages": [text for text, _ in messages.most_common(3)],
    }


def check_errors(summary: Mapping[str, Any], limit: float, folder: str) -> None:
    """Raises RuntimeError with the commonest messages when more than `limit` of a pass's rows failed."""
    if summary["errors"] > limit * summary["questions"]:
        lines = "\n".join(f"  {text[:300]}" for text in summary["messages"])
        raise RuntimeError(
            f"rollouts: expected at most engine.max_error_fraction = {limit:g} of the rows to fail, found {summary['errors']} of "
            f"{summary['questions']}. The commonest messages:\n{lines}\nThe rows are in {folder} (column `error`); delete that "
            "folder to generate them again, or start again with a larger engine.max_error_fraction"
        )


def measure(
    files: Sequence[str], settings: config.Config, correction_round: int | None = None
) -> dict[str, Any]:
    """Metrics over rollout files; rows are scored where they lie, and only a few floats per question come back.

    `correction_round` (from 1) takes that round of chained corrections; None takes every correction as a sample.
    """
    import ray

    score = functools.partial(
        _score_file, threshold=settings.algorithm.threshold, correction_round=correction_round
    )
    plan = ray.data.from_items([{"file": file} for file in files], override_num_blocks=len(files))
    return metrics.summarize(
        plan.flat_map(score).take_all(), settings.evaluation.bootstrap_samples, settings.seed
    )


def _count_rows(units: Sequence[unit_files.Unit]) -> int:
    """Each file's footer is read once: it grows with its units."""
    metadata = functools.cache(files.footer)
    groups = (
        metadata(unit.source) if unit.row_group is None else metadata(unit.source).row_group(unit.row_group)
        for unit in units
    )
    return sum(group.num_rows for group in groups)


def _score_file(item: dict[str, str], threshold: float, correction_round: int | None) -> list[dict[str, Any]]:
    rows = files.read(item["file"]).to_pylist()
    if correction_round is not None:
        taken = slice(correction_round - 1, correction_round)
        rows = [
            row
            | {name: [part[taken] for part in row[name]] for name in ("corrections", "correction_rewards")}
            for row in rows
        ]
    return [metrics.score_row(row, threshold) for row in rows]


def _try_tokenizer(path: str, model: config.Model) -> str | None:
    try:
        model_folder.load_tokenizer(
            path, revision=model_folder.revision(path, model), trust_remote_code=model.trust_remote_code
        )
    except (ValueError, OSError) as error:
        return str(error)
    return None
