"""Recipe `verdict` learnt from pairs, by DPO (arXiv 2305.18290): right over wrong verdicts and corrections.

Both sides of a pair stand in the conversation in which `verdict` asks for them. Pairs of verdicts teach when
to go on, as in ReVISE (arXiv 2502.14565); pairs of corrections follow a verdict that says wrong, as in
self-rewarding correction, stage 2 (arXiv 2502.19613), whose other pairs differ in both turns at once.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from stasc_ray.recipes.preference import distinct
from stasc_ray.recipes.recipe import Example, Plan, Question, Recipe, learnt, written
from stasc_ray.recipes.trace import CORRECTION, VERDICT_TURN, Text, roots
from stasc_ray.recipes.verdict import Verdict, second_messages, turns, verdict_messages

Pair = tuple[Any, Any]
"""Two assistant's messages, the preferred one first."""


class VerdictPreference(Verdict):
    """Pairs of verdicts and pairs of corrections; `[finetune.dpo]` has the numbers of their loss."""

    recipe: str = "verdict_preference"
    """This method."""
    verdicts: Literal["sampled", "constructed"] = "constructed"
    """Pairs of verdicts: `constructed`, in every iteration the phrase that agrees with the reward over the
    other; `sampled`, a verdict that agrees over one of the same answer that says the opposite, if there are
    both."""
    learn_answers: Literal["none"] = "none"
    """First answers are in no pair."""


def examples(question: Question, texts: Sequence[Text], plan: Plan, seed: int) -> Iterator[Example]:
    """Of each answer one pair of verdicts, and pairs of corrections; equal answers count as one."""
    section: VerdictPreference = plan.section
    for j, answer in enumerate(distinct(roots(texts))):
        # whole texts first: one that was cut is not preferred
        below = sorted((text for text in texts if text.root.text == answer.text), key=lambda text: text.cut)
        right, asked = answer.graded >= section.threshold, verdict_messages(question, answer, plan)
        kind, said = "says right" if right else "says wrong", verdict_pairs(section, below, right=right)
        found = [(kind, asked, *pair) for pair in said]
        told: dict[str, list[Text]] = {}
        for text in (text for text in below if text.turn == CORRECTION):
            seen = text.parent.said if text.parent and text.parent.turn == VERDICT_TURN else ""
            told.setdefault(seen or section.says_wrong, []).append(text)
        for verdict, attempts in told.items():
            asked = second_messages(question, answer, verdict, plan)
            found += [("c over i", asked, *pair) for pair in correction_pairs(section, attempts)]
        for number, (kind, asked, chosen, rejected) in enumerate(found):
            yield Example(question["id"], (j, number), kind, [*asked, chosen], [*asked, rejected])


def verdict_pairs(section: VerdictPreference, below: Sequence[Text], *, right: bool) -> list[Pair]:
    """At most one pair, so that every answer counts alike."""
    if section.verdicts == "constructed":
        phrases = section.says_right, section.says_wrong
        chosen, rejected = phrases if right else phrases[::-1]
        return [(written(chosen), written(rejected))]
    said = [(section.reads(text.answer), text) for text in below if text.turn == VERDICT_TURN]
    agree, oppose = ([learnt(text) for it, text in said if it is which] for which in (right, not right))
    return list(zip(agree[:1], oppose[:1], strict=False))


def correction_pairs(section: VerdictPreference, attempts: Sequence[Text]) -> list[Pair]:
    """Right over wrong ones of the same conversation, each text once."""
    texts = distinct(attempts)
    right = [learnt(text) for text in texts if text.graded >= section.threshold]
    wrong = [learnt(text) for text in texts if text.graded < section.threshold]
    return list(zip(right, wrong, strict=False))


VERDICT_PREFERENCE = Recipe(
    VerdictPreference,
    turns,
    examples,
    VerdictPreference.shares,
    "until_right",
    verdicts=(VERDICT_TURN,),
    says_right=VerdictPreference.reads,
    judge=verdict_messages,
    keeps=lambda section: "right verdicts and corrections over wrong ones of the same answer",
    objective="dpo",
)
