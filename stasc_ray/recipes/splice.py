"""Self-correction inside one message: S3c-Math (arXiv 2409.01524), LEMMA (2503.17439), Agent-R (2501.11425),
the monologue of SPOC (2506.06923).

A wrong solution up to its first wrong step, a connecting phrase, and the rest of a right solution of the same
question. Wrong is the first step that no right sibling shares: the two part there. The wrong solution is cut
after it, since uncut ones cost LEMMA 15.5 points.
"""

import re
from collections.abc import Sequence
from itertools import groupby, takewhile
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from stasc_ray.config import Algorithm
from stasc_ray.recipes.recipe import Ask, Example, Plan, Question, Recipe, learnt
from stasc_ray.recipes.trace import ANSWER, Text, roots
from stasc_ray.tasks.prompts import initial_messages


class Splice(Algorithm):
    """Wrong and right solutions of a question, spliced into one that notices its error."""

    recipe: str = "splice"
    """This method."""
    n_initial: PositiveInt = 8
    """Answers sampled per train question: splicing needs a wrong and a right one."""
    n_corrections: Literal[0] = 0
    """Nothing is asked after the answer: it corrects itself."""
    step_end: Annotated[str, Field(min_length=1)] = "\n"
    """The characters that end a step of a solution."""
    connecting_phrase: Annotated[str, Field(pattern=r"\S")] = "Wait, that step is wrong. Once more:"
    """What stands between the wrong step and the right ones, as a step of its own."""
    min_shared_steps: Annotated[int, Field(ge=0)] = 1
    """First steps that both solutions share at least; with fewer they differ in words rather than in an
    error."""
    learn_answers: Literal["none", "right"] = "right"
    """Whether right answers are learnt along, equal texts once."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.step_end in self.connecting_phrase:
            raise ValueError(
                f"algorithm.connecting_phrase: expected one step, found {self.connecting_phrase!r} with "
                f"step_end = {self.step_end!r} in it: the wrong step before it could not be told; change one"
            )
        return self


async def turns(question: Question, ask: Ask, plan: Plan, given: Sequence[Text] | None = None) -> None:
    """Answers, unless given; a model that learnt to splice corrects itself inside them."""
    if not given:
        await ask(ANSWER, initial_messages(question, plan.prompts), n=plan.n_initial)


def steps(text: str, end: str) -> list[str]:
    """The steps of a solution, each with what ends it and the white space after that; joined they are the
    text.
    """
    return [step for step in re.findall(rf".*?(?:{re.escape(end)}\s*|\Z)", text, re.DOTALL) if step]


def shared_steps(left: Sequence[str], right: Sequence[str]) -> int:
    """How many first steps two solutions share; white space does not count."""
    pairs = zip(left, right, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0].split() == pair[1].split(), pairs))


def spliced(wrong: str, rights: Sequence[str], section: Splice) -> str | None:
    """The wrong solution up to its first wrong step, the phrase, and the rest of a right one: that which
    shares most first steps.

    None: no right one goes on after enough shared steps, or the wrong one only stops early.
    """
    end, failed = section.step_end, steps(wrong, section.step_end)
    siblings = [steps(right, end) for right in rights]
    best = max(siblings, key=lambda sibling: shared_steps(failed, sibling), default=[])
    at = shared_steps(failed, best)
    if at < section.min_shared_steps or at >= min(len(failed), len(best)):
        return None
    tried = "".join(failed[: at + 1])
    return (
        f"{tried if end in failed[at] else tried + end}{section.connecting_phrase}{end}{''.join(best[at:])}"
    )


def masked(text: str, section: Splice) -> list[dict[str, Any]]:
    """The pieces of a message: no loss falls on a step that the connecting phrase follows."""
    found, phrase = steps(text, section.step_end), (section.connecting_phrase + section.step_end).split()
    wrong = [following.split() == phrase for following in (*found[1:], "")]
    runs = groupby(zip(found, wrong, strict=True), key=lambda pair: pair[1])
    texts = [(not bad, "".join(step for step, _ in run)) for bad, run in runs]
    return [{"text": text, "token_ids": None, "train": train, "cut": False} for train, text in texts]


def examples(question: Question, texts: Sequence[Text], plan: Plan, seed: int) -> list[Example]:
    """Each wrong answer spliced with a right sibling; right answers, with a splice of theirs masked as well.
    Equal texts once.

    Answers with reasoning, whose marks the template may rewrite, and right ones that were cut give no splice.
    """
    section, asked = plan.section, initial_messages(question, plan.prompts)
    plain = [one for one in roots(texts) if not one.answer_start and one.answered]
    rights = [one for one in plain if one.graded >= section.threshold and not one.cut]
    seen, found = set(), []
    for number, answer in enumerate(roots(texts)):
        right, text = answer.graded >= section.threshold, None
        if right and section.learn_answers == "right":
            text = answer.text
        elif not right and answer in plain:
            text = spliced(answer.text, [one.text for one in rights], section)
        if text and text not in seen:
            seen.add(text)
            as_it_is = right and (section.connecting_phrase not in text or answer not in rights)
            message = learnt(answer) if as_it_is else {"role": "assistant", "pieces": masked(text, section)}
            found.append(
                Example(question["id"], (number,), "answer" if right else "splice", [*asked, message])
            )
    return found


SPLICE = Recipe(
    Splice,
    turns,
    examples,
    chosen_by="r_y1",
    keeps=lambda section: (
        "wrong answers that begin like a right one of their question, continued by the rest of it"
        + (", and right answers" if section.learn_answers == "right" else "")
    ),
)
