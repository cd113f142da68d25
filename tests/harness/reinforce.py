"""A recipe of one's own with weights: answers, each with its advantage."""

from collections.abc import Iterator, Sequence

from stasc_ray.config import Algorithm
from stasc_ray.recipes import rft
from stasc_ray.recipes.recipe import Example, Plan, Question, Recipe, advantages, learnt
from stasc_ray.recipes.trace import ANSWER, Text, roots
from stasc_ray.tasks.prompts import initial_messages


class Reinforce(Algorithm):
    recipe: str = "harness.reinforce:REINFORCE"
    """This method."""
    n_initial: int = 4
    """Answers of a question, whose mean reward is the baseline."""


def examples(question: Question, texts: Sequence[Text], plan: Plan, seed: int) -> Iterator[Example]:
    answers, asked = roots(texts), initial_messages(question, plan.prompts)
    for answer, weight in zip(answers, advantages(answers), strict=True):
        kind = "better" if weight > 0 else "worse"
        if weight:
            messages = [*asked, learnt(answer)]
            yield Example(question["id"], (answer.sample,), kind, messages, weight=weight)


REINFORCE = Recipe(
    Reinforce, rft.turns, examples, answers=(ANSWER,), chosen_by="r_y1", objective="weighted_sft"
)
