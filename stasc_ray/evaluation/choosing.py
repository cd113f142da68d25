"""Which iteration's model LATEST names (`publish.when`), by how it does on dev; and by how much it is better.

Models are compared question by question, by the measure that their recipe is chosen by: each evaluation keeps
what every question's answers were worth.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stasc_ray.config import Config
from stasc_ray.evaluation import metrics
from stasc_ray.evaluation.paired import Paired, paired
from stasc_ray.recipes import chosen_by
from stasc_ray.store import RunFolder, files, iteration_name

SCORES = "scores.parquet"
"""In an evaluation's folder: a row per question of dev and test, with `split`, `id` and its measures."""


@dataclass(frozen=True)
class Choice:
    """Whether a new version becomes LATEST, and what that rests on."""

    moves: bool
    against: int | None = None
    """Iteration of the version that LATEST names so far, where it was compared with that one."""
    gain: Paired | None = None
    """On dev, against that one."""


def check(settings: Config) -> None:
    """Before a run begins.

    Raises:
        ValueError: a gain must be sure, and the recipe is chosen by a measure that no question has.
    """
    if settings.publish.when == "dev_improves_surely" and not is_paired(settings):
        measure = chosen_by(settings.algorithm)[-1]
        raise ValueError(
            f"publish.when = 'dev_improves_surely': expected a recipe that is chosen by one of "
            f"{', '.join(metrics.MEANS)}, found {measure!r}, which is no mean over questions; use "
            "'dev_improves'"
        )


def is_paired(settings: Config) -> bool:
    """Whether the recipe is chosen by a measure that each question has."""
    return chosen_by(settings.algorithm)[-1] in metrics.MEANS


def chosen(folder: RunFolder, settings: Config, up_to: int | None = None) -> int | None:
    """The iteration whose model dev has chosen, of those up to one (None: all): the best on dev, the earliest
    of equals; where a gain must be sure, the last that LATEST moved to. None if none was.
    """
    if settings.publish.when != "dev_improves_surely":
        return folder.best_on_dev(chosen_by(settings.algorithm), up_to)
    since = folder.fork().get("compares_from", 0)
    moved = [
        line["iteration"]
        for line in folder.metrics()
        if line["stage"] == "publish" and line["publish/latest"] and line["iteration"] >= since
    ]
    return max((one for one in moved if up_to is None or one <= up_to), default=None)


def choose(folder: RunFolder, settings: Config, iteration: int) -> Choice:
    """Whether the model of an iteration, measured last, becomes LATEST.

    Raises:
        FileNotFoundError: a gain must be sure, and an evaluation kept no scores.
    """
    if settings.publish.when == "always":
        return Choice(True)
    if settings.publish.when == "dev_improves":
        return Choice(chosen(folder, settings, iteration) in (iteration, None))
    against = chosen(folder, settings, iteration - 1)
    if against is None:  # the first that compares
        return Choice(True)
    found = gain(folder, settings, "dev", against, iteration)
    return Choice(found.probability >= settings.publish.min_probability, against, found)


def write_scores(folder: Path, scored: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> None:
    """Keep what the questions' answers were worth.

    Args:
        scored: rows of `measuring.scores` by split and by the prefix of their measures (`base/` for
            corrections of M0's answers).
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for (split, of), scores in scored.items():
        for score in scores:
            row = rows.setdefault((split, score["id"]), {"split": split, "id": score["id"]})
            row |= {f"{of}{name}": float(score[name]) for name in metrics.MEANS}
    pq.write_table(pa.Table.from_pylist([rows[key] for key in sorted(rows)]), folder / SCORES)


def gain(folder: RunFolder, settings: Config, split: str, first: int, second: int) -> Paired:
    """What the second iteration's model has over the first's on a split, by the measure it is chosen by.

    Raises:
        FileNotFoundError: one of the evaluations kept no scores.
    """
    one, other = (_scores(folder, settings, split, iteration) for iteration in (first, second))
    ids = sorted(one)
    before, after = ([of[name] for name in ids] for of in (one, other))
    samples = settings.evaluation.bootstrap_samples
    return paired(before, after, settings.algorithm.threshold, samples, settings.seed)


def has_scores(folder: RunFolder, iteration: int) -> bool:
    """Whether the evaluation of an iteration kept scores that compare with the newest's."""
    compares = iteration >= folder.fork().get("compares_from", 0)
    return compares and (folder.stage(iteration, "evaluation") / SCORES).is_file()


def _scores(folder: RunFolder, settings: Config, split: str, iteration: int) -> dict[str, float]:
    """By question."""
    file = folder.stage(iteration, "evaluation") / SCORES
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: expected what each question scored in {iteration_name(iteration)}, found none (made "
            "by an older stasc_ray); delete the _COMMITTED.json beside it and in the evaluations after it, "
            "and the same command measures them again"
        )
    there = files.names(file)
    name = next(one for one in chosen_by(settings.algorithm) if one in there)
    rows = files.read(file, ("split", "id", name)).to_pylist()
    return {row["id"]: row[name] for row in rows if row["split"] == split}
