"""An evaluation as a log that `inspect view` opens (inspect_ai's `.eval`, log version 2).

A zip of JSON: `_journal/start.json`, `samples/ID_epoch_N.json`, `summaries.json`, `header.json`. Written
without inspect_ai, whose pins conflict with ours, and question by question: no evaluation is ever in memory.
"""

import json
import math
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from stasc_ray import config
from stasc_ray.config import hashing
from stasc_ray.recipes import recipe_of
from stasc_ray.recipes.policies import policy
from stasc_ray.sharing.evaluations import Evaluation
from stasc_ray.sharing.samples import SCORES, Answered, summary, usage
from stasc_ray.store import files

LOG_VERSION = 2
ENVIRONMENT = "environment.json"


def export(evaluation: Evaluation, output: Path | None = None) -> Path:
    """Write an evaluation's log; returns where.

    Args:
        output: an `.eval` file to write; None: one in the run's folder `inspect`.

    Raises:
        ValueError: another kind of file; a trace file that can't be read.
        OSError: it can't be written.
    """
    file = output or evaluation.folder.path / "inspect" / _name(evaluation)
    if file.suffix != ".eval":
        raise ValueError(
            f"--output: expected a file that ends in .eval, by which inspect knows it, found {file}"
        )
    with (
        files.replacing(file) as target,
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as log,
        tempfile.TemporaryFile() as summaries,
    ):
        _write(log, evaluation, summaries)
    return file


def _write(log: zipfile.ZipFile, evaluation: Evaluation, summaries: IO[bytes]) -> None:
    start = {"version": LOG_VERSION, "eval": _spec(evaluation), "plan": _plan(evaluation)}
    log.writestr("_journal/start.json", _json(start))
    total = _Total()
    for answered in _questions(evaluation):
        total.add(answered.scores)
        for sample in answered.samples():
            log.writestr(f"samples/{sample['id']}_epoch_{sample['epoch']}.json", _json(sample))
            # One list at the end of the zip: no two of its files can be written at once.
            summaries.write(b"," if total.samples else b"[")
            summaries.write(_json(summary(sample)))
            total.count(sample)
    summaries.write(b"]" if total.samples else b"[]")
    summaries.seek(0)
    with log.open("summaries.json", "w") as member:
        shutil.copyfileobj(summaries, member)
    log.writestr("header.json", _json(start | _outcome(evaluation, total)))


def _questions(evaluation: Evaluation) -> Iterator[Answered]:
    """The evaluation's questions, a unit of work in memory at a time."""
    for file in evaluation.files:
        for row in files.read(file).to_pylist():
            yield Answered(evaluation, row)


@dataclass
class _Total:
    """What the samples add up to."""

    samples: int = 0
    failed: int = 0
    sums: dict[str, tuple[float, float]] = field(default_factory=lambda: dict.fromkeys(SCORES, (0.0, 0.0)))
    """Of each score the sum over the questions, and that of its squares."""
    questions: int = 0
    tokens: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Read and written, by model."""

    def add(self, scores: dict[str, Any]) -> None:
        self.questions += 1
        for name, (first, second) in self.sums.items():
            self.sums[name] = first + scores[name], second + scores[name] ** 2

    def count(self, sample: dict[str, Any]) -> None:
        self.samples += 1
        self.failed += "error" in sample
        for model, used in sample["model_usage"].items():
            read, written = self.tokens.get(model, (0, 0))
            self.tokens[model] = read + used["input_tokens"], written + used["output_tokens"]

    def mean(self, name: str) -> float:
        return self.sums[name][0] / max(1, self.questions)

    def stderr(self, name: str) -> float:
        """Of the mean over questions, from the sample variance."""
        count, second = self.questions, self.sums[name][1]
        variance = max(0.0, second - count * self.mean(name) ** 2) / max(1, count - 1)
        return math.sqrt(variance / max(1, count))


def _spec(evaluation: Evaluation) -> dict[str, Any]:
    """What was evaluated (inspect_ai's `EvalSpec`)."""
    settings, recipe = evaluation.settings, recipe_of(evaluation.settings.algorithm.recipe)
    task, questions = _task(evaluation), settings.questions
    votes = policy(settings.evaluation.policy, recipe).weigh is not None
    epochs = 1 if votes else settings.evaluation.samples
    sampled = settings.sampling.initial
    greedy = {"temperature": 0.0} if settings.evaluation.greedy else {}
    rows = sum(files.footer(file).num_rows for file in evaluation.files)
    return {
        "eval_id": _id(evaluation, "eval"),
        "run_id": _id(evaluation, "run"),
        "created": _created(evaluation),
        "task": task,
        "task_id": _id(evaluation, "task"),
        "task_version": 0,
        "task_display_name": task,
        "task_attribs": {},
        "task_args": {},
        "dataset": {
            "name": evaluation.source if questions.preset == "canonical" else questions.preset,
            "location": evaluation.source,
            "samples": rows,
            "shuffled": False,
        },
        "model": evaluation.model,
        "model_generate_config": {
            "temperature": sampled.temperature,
            "top_p": sampled.top_p,
            "max_tokens": sampled.max_tokens,
            "seed": settings.seed,
            **greedy,
        },
        "model_args": {},
        "config": {"epochs": epochs, "epochs_reducer": ["mean"]},
        "packages": {"stasc-ray": "unknown", **_environment(evaluation).get("versions", {})},
        "metadata": {
            "version": evaluation.version,
            "iteration": evaluation.iteration,
            "split": evaluation.split,
            "first answers by": evaluation.model_of(evaluation.writer),
            "config_fingerprint": config.fingerprint(settings),
            "times": "of the whole evaluation: single texts have none",
        },
        "scorers": [
            {
                "name": name,
                "options": {"reward": settings.reward.name, "scope": settings.reward.scope},
                "metrics": [{"name": "mean", "options": {}}, {"name": "stderr", "options": {}}],
                "metadata": {"right from": settings.algorithm.threshold, "of": what},
            }
            for name, what in zip(SCORES, ("the last answer", "the first answer"), strict=True)
        ],
    }


def _plan(evaluation: Evaluation) -> dict[str, Any]:
    """How questions were answered."""
    settings = evaluation.settings
    params = {
        "recipe": settings.algorithm.recipe,
        "variant": settings.algorithm.variant,
        "samples": settings.evaluation.samples,
        "rounds": settings.evaluation.rounds,
    }
    name = settings.evaluation.policy or recipe_of(settings.algorithm.recipe).policy
    return {"name": "plan", "steps": [{"solver": name, "params": params}], "config": {}}


def _outcome(evaluation: Evaluation, total: _Total) -> dict[str, Any]:
    """Status, results and statistics; the intervals are those that the run measured."""
    figures, samples = evaluation.figures, evaluation.settings.evaluation.bootstrap_samples
    scores = []
    for name in SCORES:
        measured = {"mean": total.mean(name), "stderr": total.stderr(name)}
        ends = {f"{end}_95": figures.get(f"{name}_{end}") for end in ("low", "high")}
        measured |= {end: value for end, value in ends.items() if value is not None}
        scores.append(
            {
                "name": name,
                "scorer": name,
                "reducer": "mean",
                "scored_samples": total.questions,
                "unscored_samples": 0,
                "params": {},
                "metrics": {
                    metric: {"name": metric, "value": value, "params": _params(metric, samples)}
                    for metric, value in measured.items()
                },
            }
        )
    line = evaluation.line
    ended = datetime.fromtimestamp(line["time"], UTC)
    by_model = {model: usage(read, written) for model, (read, written) in total.tokens.items()}
    return {
        "status": "success",
        "results": {
            "total_samples": total.samples,
            "completed_samples": total.samples - total.failed,
            "scores": scores,
            "headline": {"scorer": "r_y2", "score": "r_y2", "metric": "mean"},
            "metadata": figures,
        },
        "stats": {
            "started_at": _created(evaluation),
            "completed_at": ended.isoformat(timespec="seconds"),
            "model_usage": by_model,
        },
        "invalidated": False,
    }


def _params(metric: str, samples: int) -> dict[str, int]:
    return {"bootstrap_samples": samples} if metric.endswith("_95") else {}


def _task(evaluation: Evaluation) -> str:
    of = "-own-answers" if evaluation.own_answers else ""
    return f"{evaluation.settings.name}-{evaluation.split}{of}"


def _created(evaluation: Evaluation) -> str:
    return datetime.fromtimestamp(evaluation.line["time"], UTC).isoformat(timespec="seconds")


def _name(evaluation: Evaluation) -> str:
    """As inspect names its logs: time, task, id."""
    when = _created(evaluation).replace(":", "-").replace("+", "-")
    return f"{when}_{_task(evaluation)}-{evaluation.version}_{_id(evaluation, 'task')}.eval"


def _id(evaluation: Evaluation, what: str) -> str:
    """The same for the same evaluation, however often it is exported."""
    told = [what, evaluation.settings.name, evaluation.line["config"], str(evaluation.line["time"])]
    if what != "run":
        told += [evaluation.version, evaluation.split, evaluation.writer]
    return hashing.sha256(" ".join(told)).hex()[:22]


def _environment(evaluation: Evaluation) -> dict[str, Any]:
    file = evaluation.folder.path / ENVIRONMENT
    return files.read_json(file) if file.is_file() else {}


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
