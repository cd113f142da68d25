"""Self-correction inside one message: S3c-Math (arXiv 2409.01524), LEMMA (2503.17439), Agent-R (2501.11425),
the monologue of SPOC (2506.06923).

A wrong solution up to its first wrong step, a connecting phrase, and the rest of a right solution of the same
question. Wrong is the first step that no right sibling shares: the two part there. The wrong solution is cut
after it, since uncut ones cost LEMMA 15.5 points.
"""

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

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
    """Whether right answers are learnt along as they are, equal texts once."""


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


def spliced(wrong: str, rights: Sequence[str], section: Splice) -> list[dict[str, Any]] | None:
    """The pieces of one message: shared steps, the wrong one (masked), the phrase and the right rest.

    The right solution is the one that shares most first steps. None: no right one goes on after enough shared
    steps, or the wrong one only stops early.
    """
    failed = steps(wrong, section.step_end)
    siblings = [steps(right, section.step_end) for right in rights]
    best = max(siblings, key=lambda sibling: shared_steps(failed, sibling), default=[])
    at = shared_steps(failed, best)
    if at < section.min_shared_steps or at >= min(len(failed), len(best)):
        return None
    error = failed[at] if section.step_end in failed[at] else failed[at] + section.step_end
    rest = f"{section.connecting_phrase}{section.step_end}{''.join(best[at:])}"
    pieces = [("".join(failed[:at]), True), (error, False), (rest, True)]
    return [{"text": text, "token_ids": None, "train": train, "cut": False} for text, train in pieces if text]


def examples(question: Question, texts: Sequence[Text], plan: Plan, seed: int) -> list[Example]:
    """Each wrong answer spliced with a right sibling; right answers as they are.

    Answers with reasoning, whose marks the template may rewrite, and right ones that were cut give no splice.
    """
    section, asked = plan.section, initial_messages(question, plan.prompts)
    answers, seen, found = roots(texts), set(), []
    plain = [answer for answer in answers if not answer.answer_start and answer.answered]
    rights = [answer.text for answer in plain if answer.graded >= section.threshold and not answer.cut]
    for number, answer in enumerate(answers):
        if answer.text in seen:
            continue
        seen.add(answer.text)
        if answer.graded >= section.threshold:
            if section.learn_answers == "right":
                found.append(Example(question["id"], (number,), "answer", [*asked, learnt(answer)]))
        elif answer in plain and (pieces := spliced(answer.text, rights, section)):
            message = {"role": "assistant", "pieces": pieces}
            found.append(Example(question["id"], (number,), "splice", [*asked, message]))
    return found


SPLICE = Recipe(
    Splice,
    turns,
    examples,
    answers=(ANSWER,),
    chosen_by="r_y1",
    keeps=lambda _: (
        "wrong answers whose first steps a right answer of the question shares, and right answers"
    ),
)
