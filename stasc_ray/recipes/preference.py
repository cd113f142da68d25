"""Preferences out of two-turn rollouts, learnt by DPO (arXiv 2305.18290): a right text over a wrong one.

Pairs of corrections are those of arXiv 2502.19613, stage 2, without its verdicts (recipe
`verdict_preference` has both). Pairs of answers are those of Self-Correction Learning (arXiv 2410.04055),
which never trains to correct.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import PositiveInt

from stasc_ray.config import Algorithm
from stasc_ray.recipes import stasc
from stasc_ray.recipes.recipe import Example, Plan, Question, Recipe, learnt
from stasc_ray.recipes.selection import transition
from stasc_ray.recipes.trace import Text, corrections, roots
from stasc_ray.tasks.prompts import correction_messages, initial_messages

KEEPS = {
    "corrections": "right corrections over wrong ones of the same answer",
    "answers": "right texts over wrong ones, of an answer and its correction",
}


class Preference(Algorithm):
    """Pairs of texts, one right and one wrong; `[finetune.dpo]` has the numbers of their loss."""

    recipe: str = "preference"
    """This method."""
    n_corrections: PositiveInt = 4
    """Corrections per initial answer."""
    pairs: Literal["corrections", "answers", "both"] = "both"
    """`corrections`: a right over a wrong correction of the same answer, in its conversation; `answers`: a
    fix over its wrong answer, or a right answer over its wrong correction, as answers to the question."""


def examples(question: Question, texts: Sequence[Text], plan: Plan, seed: int) -> Iterator[Example]:
    """Each text of a pair is learnt or avoided from its first token on; what was asked carries no loss."""
    section: Preference = plan.section
    bare = initial_messages(question, plan.prompts)
    for j, answer in enumerate(roots(texts)):
        attempts = distinct(corrections(texts, answer))
        right = [text for text in attempts if text.graded >= section.threshold]
        wrong = [text for text in attempts if text.graded < section.threshold]
        is_right = answer.graded >= section.threshold
        found: list[tuple[str, Sequence, Text, Text]] = []
        if section.pairs != "answers":
            asked = correction_messages(question, answer.said, plan.prompts)
            # each text once: the pairs of all with all say little more, and cost their number
            found += [("c over i", asked, *pair) for pair in zip(right, wrong, strict=False)]
        if section.pairs != "corrections":
            pairs = [(answer, one) for one in wrong] if is_right else [(one, answer) for one in right]
            kind = transition(answer.graded, 0.0 if is_right else 1.0, section.threshold)
            found += [(kind, bare, *pair) for pair in pairs]
        for number, (kind, asked, chosen, rejected) in enumerate(found):
            sides = [[*asked, learnt(text)] for text in (chosen, rejected)]
            yield Example(question["id"], (j, number), kind, sides[0], sides[1])


def distinct(texts: Sequence[Text]) -> list[Text]:
    """The first of each text."""
    return list({text.text: text for text in reversed(texts)}.values())[::-1]


def keeps(section: Preference) -> str:
    """What is kept, in words."""
    return " and ".join(words for name, words in KEEPS.items() if section.pairs in (name, "both"))


PREFERENCE = Recipe(Preference, stasc.turns, examples, keeps=keeps, objective="dpo")
