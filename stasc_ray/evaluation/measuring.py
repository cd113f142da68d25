"""Metrics over trace files, by Ray Data: traces are scored where they lie, and only a few floats of each come
back.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stasc_ray import config
from stasc_ray.evaluation import metrics
from stasc_ray.recipes import answering, policies, recipe_of
from stasc_ray.recipes.recipe import Recipe
from stasc_ray.recipes.trace import VERDICT_TURN, Text, depth, read_texts
from stasc_ray.store import files
from stasc_ray.store.rows import text_columns

FIELDS = ("turn", "sample", "parent", "writer", "text", "answer_start", "reward")
WEIGHED = ("token_ids", "logprob", "certainty")
"""What policies weigh answers by, besides."""
COSTS = ("turn", "parent", "text", "reward", "token_ids")
COLUMNS = ("id", "choices", *text_columns(*FIELDS))


def scores(
    traces: Sequence[str], settings: config.Config, writer: str | None = None, rounds: int | None = None
) -> list[dict[str, Any]]:
    """`metrics.score_row` of each question of trace files, with its `id`, in any order.

    Args:
        writer: of the first answers that count; None: all.
        rounds: corrections in a row that count; None: all.
    """
    return _of_files(functools.partial(score_file, settings=settings, writer=writer, rounds=rounds), traces)


def scores_and_costs(traces: Sequence[str], settings: config.Config) -> list[dict[str, Any]]:
    """Of each question `metrics.score_row`, its `id`, `by_round` (r(Y2) if 0, 1, ... corrections in a row
    count), `tokens` that were generated and `calls` of the engine. In any order.
    """
    return _of_files(functools.partial(score_and_cost_file, settings=settings), traces)


def _of_files(read: Callable[[str], list[dict[str, Any]]], traces: Sequence[str]) -> list[dict[str, Any]]:
    import ray

    plan = ray.data.from_items([{"file": file} for file in traces], override_num_blocks=len(traces))
    return plan.flat_map(lambda item: read(item["file"])).take_all()


def score_and_cost_file(file: str, settings: config.Config) -> list[dict[str, Any]]:
    """`scores_and_costs` of one file."""
    last = settings.evaluation.rounds
    found = score_file(file, settings)
    rewards = [[one["r_y2"] for one in score_file(file, settings, rounds=k)] for k in range(last + 1)]
    recipe, policy = _ways(settings)
    for number, row in enumerate(files.read(file, ("id", *text_columns(*COSTS))).to_pylist()):
        texts = policies.seen(policy, recipe, read_texts(row), settings.algorithm.threshold)
        # samples that were asked for together are one call
        calls = {(text.turn, id(text.parent)) for text in texts}
        tokens = [
            sum(len(text.token_ids) for text in texts if depth(text, recipe.answers) <= k)
            for k in range(last + 1)
        ]
        found[number] |= {"by_round": [of[number] for of in rewards], "calls": len(calls)}
        found[number] |= {"tokens": sum(len(text.token_ids) for text in texts), "tokens_by_round": tokens}
    return found


def _ways(settings: config.Config) -> tuple[Recipe, policies.Policy]:
    recipe = recipe_of(settings.algorithm.recipe)
    return recipe, policies.policy(settings.evaluation.policy, recipe)


def score_file(
    file: str, settings: config.Config, writer: str | None = None, rounds: int | None = None
) -> list[dict[str, Any]]:
    """`metrics.score_row` of each question of a file, with its `id`; arguments as of `scores`."""
    _, policy = _ways(settings)
    columns = (*COLUMNS, *(text_columns(*WEIGHED) if policy.weigh else ()))
    rows = files.read(file, columns).to_pylist()
    with files.named(file):
        return [
            {"id": row["id"]} | score_texts(row, read_texts(row), settings, writer, rounds) for row in rows
        ]


def score_texts(
    row: Mapping[str, Any],
    texts: Sequence[Text],
    settings: config.Config,
    writer: str | None = None,
    rounds: int | None = None,
) -> dict[str, Any]:
    """`metrics.score_row` of a question's texts as its policy counts them; arguments as of `scores`.

    Args:
        row: the question; of it the `choices` count.
    """
    section, name = settings.algorithm, settings.evaluation.policy
    recipe, policy = _ways(settings)
    texts = policies.seen(policy, recipe, texts, section.threshold)

    def pick(ends: Sequence[Text]) -> Text:
        return policies.votes_of(name, recipe, ends, texts, row["choices"] or (), settings)[0][0]

    return metrics.score_row(
        texts,
        section.threshold,
        answers=recipe.answers,
        writer=writer,
        rounds=rounds,
        judges=(*recipe.verdicts, VERDICT_TURN),
        says_right=functools.partial(answering.reads, recipe, section, settings.prompts),
        pick=pick if policy.weigh else None,
    )
