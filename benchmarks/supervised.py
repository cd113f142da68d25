"""Two recipes that learn what no model wrote: the reference answer, or the whole sum by columns.

The study (study.py) compares with them, on the sandbox, and names them by dotted path.
"""

import re
from collections.abc import Sequence
from typing import Literal

from stasc_ray.config import Algorithm
from stasc_ray.recipes.recipe import Ask, Example, Plan, Question, Recipe, written
from stasc_ray.recipes.trace import ANSWER, Text
from stasc_ray.tasks import sandbox
from stasc_ray.tasks.prompts import initial_messages


class Gold(Algorithm):
    """Supervised fine-tuning on the reference answers alone."""

    recipe: str = "benchmarks.supervised:GOLD"
    n_corrections: Literal[0] = 0
    """Nothing is corrected."""


class Worked(Gold):
    """Supervised fine-tuning on sums worked out by the task's own solver."""

    recipe: str = "benchmarks.supervised:WORKED"


async def turns(question: Question, ask: Ask, plan: Plan, given: Sequence[Text] | None = None) -> None:
    """One kind of text, answers; none of train questions, whose answers are given."""
    if not given and not plan.learn:
        await ask(ANSWER, initial_messages(question, plan.prompts), n=plan.n_initial)


def gold(question: Question, texts: Sequence[Text], plan: Plan, seed: int) -> list[Example]:
    """The first reference answer, after the marker."""
    return _learnt(question, plan, f"{plan.prompts.answer_marker}{question['answers'][0]}")


def worked(question: Question, texts: Sequence[Text], plan: Plan, seed: int) -> list[Example]:
    """The sum, column by column."""
    addends = [int(number) for number in re.findall(r"\d+", question["question"])]
    return _learnt(question, plan, sandbox.column_addition(addends))


def _learnt(question: Question, plan: Plan, text: str) -> list[Example]:
    return [Example(question["id"], (0,), "c", [*initial_messages(question, plan.prompts), written(text)])]


GOLD = Recipe(
    section=Gold,
    turns=turns,
    examples=gold,
    answers=(ANSWER,),
    chosen_by="r_y1",
    keeps=lambda _: "reference answers",
)
WORKED = Recipe(
    section=Worked,
    turns=turns,
    examples=worked,
    answers=(ANSWER,),
    chosen_by="r_y1",
    keeps=lambda _: "sums worked out by the task's own solver",
)
