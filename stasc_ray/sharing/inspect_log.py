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
from stasc_ray.sharing import public_names
from stasc_ray.sharing.evaluations import Evaluation, environment
from stasc_ray.sharing.samples import SCORES, Answered, summary, usage
from stasc_ray.store import files

LOG_VERSION = 2
START = "_journal/start.json"
ID_BYTES = 65_000
"""A zip holds names of 65,535 bytes; a sample's is somewhat longer than its id."""
TASK_LENGTH = 100
"""Characters of a task in a log's name, which also holds a time, a version and an id: names have a limit."""


def export(evaluation: Evaluation, output: Path | None = None) -> Path:
    """Write an evaluation's log; returns where.

    Args:
        output: an `.eval` file to write; an old one is replaced if it is of the same evaluation. None: one
            in the run's folder `inspect`.

    Raises:
        ValueError: another kind of file, or one that is there and is no log of this evaluation; a trace
            file that can't be read; a question whose id is there twice, or that no zip can hold.
        OSError: it can't be written.
    """
    file = evaluation.folder.path / "inspect" / _name(evaluation)
    if output is not None:
        file = output
        _check_output(file, evaluation)
    with (
        files.replacing(file) as target,
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as log,
        tempfile.TemporaryFile() as summaries,
    ):
        _write(log, evaluation, summaries)
    return file


def _check_output(file: Path, evaluation: Evaluation) -> None:
    """Refuse what is no name of a log, or would overwrite something else."""
    if file.is_dir():
        raise ValueError(f"--output: expected a file, found the folder {file}; name a file in it (x.eval)")
    if file.suffix != ".eval":
        raise ValueError(
            "--output: expected a file that ends in .eval (x.eval), by which inspect knows it, found "
            f"{str(file)!r}"
        )
    if file.exists() and _eval_id(file) != _id(evaluation, "eval"):
        raise ValueError(
            f"--output: expected a new file, or a log of the same evaluation to replace, found {file}, which "
            "is something else; choose another name, or delete it"
        )


def _eval_id(file: Path) -> str | None:
    """Which evaluation a log is of; None if it is no log."""
    try:
        with zipfile.ZipFile(file) as log:
            return json.loads(log.read(START))["eval"]["eval_id"]
    except (OSError, ValueError, LookupError, TypeError, zipfile.BadZipFile):
        return None


def _write(log: zipfile.ZipFile, evaluation: Evaluation, summaries: IO[bytes]) -> None:
    start = {"version": LOG_VERSION, "eval": _spec(evaluation), "plan": _plan(evaluation)}
    log.writestr(START, _json(start))
    total, ids = _Total(), set[str]()
    for answered in _questions(evaluation):
        _check_id(answered.row["id"], ids)
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


def _check_id(name: str, ids: set[str]) -> None:
    """Refuse a question's id that the zip can't hold as a file's name; keep it in `ids`."""
    size = len(name.encode())
    wrong = {
        "twice": name in ids,
        "with a NUL in it": "\0" in name,
        f"of {size} bytes": size > ID_BYTES,
    }
    if found := [what for what, is_so in wrong.items() if is_so]:
        shown = f"{name[:100]!r}{'...' if len(name) > 100 else ''}"
        raise ValueError(
            f"export-log: expected ids that name files in a zip, each once, without NUL, of {ID_BYTES} bytes "
            f"at most, found {shown} {found[0]}; give that question another id, and measure again"
        )
    ids.add(name)


def _questions(evaluation: Evaluation) -> Iterator[Answered]:
    """The evaluation's questions, a unit of work in memory at a time."""
    for file in evaluation.files:
        for row in files.read(file).to_pylist():
            with files.named(file):
                answered = Answered(evaluation, row)
            yield answered


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
        "packages": {"stasc-ray": "unknown", **environment(evaluation.folder).get("versions", {})},
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
                "options": {
                    "reward": public_names.last_name(settings.reward.name),
                    "scope": settings.reward.scope,
                },
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
        "recipe": public_names.last_name(settings.algorithm.recipe),
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
    return f"{when}_{_task(evaluation)[:TASK_LENGTH]}-{evaluation.version}_{_id(evaluation, 'task')}.eval"


def _id(evaluation: Evaluation, what: str) -> str:
    """The same for the same evaluation, however often it is exported."""
    told = [what, evaluation.settings.name, evaluation.line["config"], str(evaluation.line["time"])]
    if what != "run":
        told += [evaluation.version, evaluation.split, evaluation.writer]
    return hashing.sha256(" ".join(told)).hex()[:22]


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise ValueError(
            f"export-log: expected figures that are numbers, and Unicode texts, found others ({error}); "
            "restore the marks of this evaluation, or measure again"
        ) from error
