"""Metrics over trace files, by Ray Data: traces are scored where they lie, and only a few floats of each come
back.
"""

import functools
from collections.abc import Sequence
from typing import Any

from stasc_ray import config
from stasc_ray.evaluation import metrics
from stasc_ray.recipes import policies, recipe_of
from stasc_ray.recipes.trace import read_texts
from stasc_ray.store import files
from stasc_ray.store.rows import text_columns

FIELDS = ("turn", "sample", "parent", "writer", "text", "answer_start", "reward")
COLUMNS = ("id", "choices", *text_columns(*FIELDS))


def measure(
    traces: Sequence[str], settings: config.Config, writer: str | None = None, rounds: int | None = None
) -> dict[str, Any]:
    """`metrics.summarize` over trace files.

    Args:
        writer: of the first answers that count; None: all.
        rounds: corrections in a row that count; None: all.
    """
    import ray

    score = functools.partial(_score_file, settings=settings, writer=writer, rounds=rounds)
    plan = ray.data.from_items([{"file": file} for file in traces], override_num_blocks=len(traces))
    return metrics.summarize(
        plan.flat_map(score).take_all(), settings.evaluation.bootstrap_samples, settings.seed
    )


def _score_file(
    item: dict[str, str], settings: config.Config, writer: str | None, rounds: int | None
) -> list[dict[str, Any]]:
    section, marker = settings.algorithm, settings.prompts.answer_marker
    recipe = recipe_of(section.recipe)
    votes = (settings.evaluation.policy or recipe.policy) == "vote"
    return [
        {"id": row["id"]}
        | metrics.score_row(
            read_texts(row),
            section.threshold,
            answers=recipe.answers,
            writer=writer,
            rounds=rounds,
            judges=recipe.verdicts,
            says_right=functools.partial(recipe.says_right, section),
            pick=(lambda ends, row=row: policies.ranked(ends, row["choices"] or (), marker)[0][0])
            if votes
            else None,
        )
        for row in files.read(item["file"], COLUMNS).to_pylist()
    ]
