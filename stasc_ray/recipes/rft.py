"""Rejection-sampling fine-tuning (Yuan et al. 2023, arXiv 2308.01825): learn one's own right answers, in one
turn.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import PositiveInt

from stasc_ray.config import Algorithm
from stasc_ray.recipes.recipe import Ask, Example, Plan, Question, Recipe, learnt
from stasc_ray.recipes.trace import ANSWER, Text, roots
from stasc_ray.tasks.prompts import initial_messages


class Rft(Algorithm):
    """Rejection-sampling fine-tuning: sample answers, keep the right ones, equal texts of a question once."""

    recipe: str = "rft"
    """This method."""
    n_initial: PositiveInt = 4
    """Answers sampled per train question."""
    n_corrections: Literal[0] = 0
    """Nothing is corrected."""


async def turns(question: Question, ask: Ask, plan: Plan, given: Sequence[Text] | None = None) -> None:
    """Answers, unless given."""
    if not given:
        await ask(ANSWER, initial_messages(question, plan.prompts), n=plan.n_initial)


def examples(question: Question, texts: Sequence[Text], plan: Plan, seed: int) -> list[Example]:
    """The right answers, each as the answer to the bare question."""
    messages, seen, kept = initial_messages(question, plan.prompts), set(), []
    for number, answer in enumerate(roots(texts)):
        if answer.graded >= plan.section.threshold and answer.text not in seen:
            seen.add(answer.text)
            kept.append(Example(question["id"], (number,), "c", [*messages, learnt(answer)]))
    return kept


RFT = Recipe(Rft, turns, examples, chosen_by="r_y1", keeps=lambda _: "right answers")
