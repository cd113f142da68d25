"""Preferences out of two-turn rollouts, learnt by DPO (arXiv 2305.18290): a right text over a wrong one.

Pairs of corrections are those of arXiv 2502.19613, stage 2. Pairs of answers are those of Self-Correction
Learning (arXiv 2410.04055), which never trains to correct. Pairs of verdicts are as ReVISE (arXiv 2502.14565)
learns when to go on; both of a pair are constructed.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import PositiveInt

from stasc_ray.config import Algorithm
from stasc_ray.recipes import answering, stasc
from stasc_ray.recipes.recipe import Example, Plan, Question, Recipe, learnt, written
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
    verdict_pairs: bool = False
    """Whether also `prompts.policies.says_right` stands over `says_wrong` after a right answer, and below it
    after a wrong one, where the policies `until_right` and `vote_by_verdict` ask for a verdict."""


def examples(question: Question, texts: Sequence[Text], plan: Plan, seed: int) -> Iterator[Example]:
    """Each text of a pair is learnt or avoided from its first token on; what was asked carries no loss."""
    section: Preference = plan.section
    bare = initial_messages(question, plan.prompts)
    for j, answer in enumerate(roots(texts)):
        attempts = distinct(corrections(texts, answer))
        right = [text for text in attempts if text.graded >= section.threshold]
        wrong = [text for text in attempts if text.graded < section.threshold]
        is_right = answer.graded >= section.threshold
        found: list[tuple[str, Sequence, Any, Any]] = []
        if section.pairs != "answers":
            asked = correction_messages(question, answer.said, plan.prompts)
            # each text once: the pairs of all with all say little more, and cost their number
            found += [("c over i", asked, learnt(c), learnt(i)) for c, i in zip(right, wrong, strict=False)]
        if section.pairs != "corrections":
            pairs = [(answer, one) for one in wrong] if is_right else [(one, answer) for one in right]
            kind = transition(answer.graded, 0.0 if is_right else 1.0, section.threshold)
            found += [(kind, bare, learnt(chosen), learnt(rejected)) for chosen, rejected in pairs]
        if section.verdict_pairs:
            words = (plan.prompts.policies.says_right, plan.prompts.policies.says_wrong)
            said = [written(phrase) for phrase in (words if is_right else words[::-1])]
            kind = "says right" if is_right else "says wrong"
            found.append((kind, answering.judge(question, answer, plan), *said))
        for number, (kind, asked, chosen, rejected) in enumerate(found):
            yield Example(question["id"], (j, number), kind, [*asked, chosen], [*asked, rejected])


def distinct(texts: Sequence[Text]) -> list[Text]:
    """The first of each text."""
    return list({text.text: text for text in reversed(texts)}.values())[::-1]


def keeps(section: Preference) -> str:
    """What is kept, in words."""
    found = [words for name, words in KEEPS.items() if section.pairs in (name, "both")]
    return " and ".join([*found, *(["right verdicts over wrong ones"] if section.verdict_pairs else [])])


PREFERENCE = Recipe(Preference, stasc.turns, examples, keeps=keeps, objective="dpo")
