"""Confidence and critique tuning (arXiv 2412.19513): keep one's right answers, correct one's wrong ones to a
given solution. Also ISC (2401.07301) and reference-answer correction (2410.14655).

No correction is sampled to learn from: its target is the answer itself, or the solution that comes with the
question. That works for a model that never corrects itself, and pulls it towards texts that it did not write.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stasc_ray.config import Algorithm
from stasc_ray.recipes.recipe import Ask, Example, Plan, Question, Recipe, gather, learnt, written
from stasc_ray.recipes.trace import ANSWER, CORRECTION, Text, roots
from stasc_ray.tasks import teacher
from stasc_ray.tasks.prompts import correction_messages, initial_messages


class Cct(Algorithm):
    """Pairs of an answer and its correction: keep what is right, replace what is wrong."""

    recipe: str = "cct"
    """This method."""
    n_corrections: Literal[1] = 1
    """One, when asked; to learn from, none is sampled."""
    solution: str = "reference"
    """Function (question row) -> the target of wrong answers: `reference`, the question's first one;
    `sandbox`, its sum by columns; or a dotted path `package.module:function`."""
    solution_form: str = "{answer_marker} {solution}"
    """How that target is written, so that the reward pays it; `{answer_marker}` is that of `prompts`."""
    keep_correct_share: Annotated[float, Field(ge=0, le=1)] | None = 0.4
    """Target share of right answers to keep among the pairs, reached by dropping; None leaves it."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "{solution}" not in self.solution_form:
            raise ValueError(
                f"algorithm.solution_form: expected {{solution}} in it, found {self.solution_form!r}: every "
                "wrong answer would be corrected to the same text"
            )
        teacher.load("algorithm.solution", self.solution, teacher.SOLUTIONS)
        return self

    def shares(self) -> Mapping[tuple[str, ...], float]:
        """Right answers to keep against wrong ones to correct; 40% was best (arXiv 2412.19513)."""
        share = self.keep_correct_share
        return {} if share is None else {("c->c",): share, ("i->c",): 1 - share}


async def turns(question: Question, ask: Ask, plan: Plan, given: Sequence[Text] | None = None) -> None:
    """Answers (unless given); a correction of each, unless they are to learn from."""
    answers = given or await ask(ANSWER, initial_messages(question, plan.prompts), n=plan.n_initial)
    if plan.n_corrections and not plan.learn:
        asked = [(answer, correction_messages(question, answer.said, plan.prompts)) for answer in answers]
        await gather(ask(CORRECTION, messages, parent=answer) for answer, messages in asked)


def target(question: Question, plan: Plan) -> str:
    """The given solution of a question, as a model should write it."""
    solution = teacher.load("algorithm.solution", plan.section.solution, teacher.SOLUTIONS)(question)
    form = plan.section.solution_form.replace("{answer_marker}", plan.prompts.answer_marker)
    return form.replace("{solution}", solution).strip()


def examples(question: Question, texts: Sequence[Text], plan: Plan, seed: int) -> list[Example]:
    """A right answer is corrected to itself, a wrong one to the given solution; equal answers once."""
    seen, found = set(), []
    for number, answer in enumerate(roots(texts)):
        if answer.text not in seen:
            seen.add(answer.text)
            right = answer.graded >= plan.section.threshold
            last = learnt(answer) if right else written(target(question, plan))
            messages = [*correction_messages(question, answer.said, plan.prompts), last]
            found.append(Example(question["id"], (number,), "c->c" if right else "i->c", messages))
    return found


CCT = Recipe(
    Cct,
    turns,
    examples,
    Cct.shares,
    keeps=lambda _: (
        "answers with their corrections, of right ones themselves, of wrong ones a given solution"
    ),
)
