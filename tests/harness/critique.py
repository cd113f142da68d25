"""A recipe of one's own: answer, criticise the answer, correct it with the critique in sight; learn both in
one conversation.

Everything a user writes for another method. `critique:CRITIQUE` names it if this folder is on the Python
path.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import PositiveInt

from stasc_ray.config import Algorithm
from stasc_ray.recipes.recipe import Ask, Example, Plan, Question, Recipe, gather, learnt
from stasc_ray.recipes.selection import transition
from stasc_ray.recipes.trace import ANSWER, CORRECTION, Text
from stasc_ray.tasks.prompts import Message, assistant, correction_messages, initial_messages, user


class Critique(Algorithm):
    recipe: str = "critique:CRITIQUE"
    n_corrections: PositiveInt = 2
    critique_prompt: str = "What is wrong with your answer?"
    keep: Literal["improving", "not_worse"] = "improving"


def critique_messages(question: Question, answer: Text, plan: Plan) -> list[Message]:
    asked = initial_messages(question, plan.prompts)
    return [*asked, assistant(answer.text), user(plan.section.critique_prompt)]


async def turns(question: Question, ask: Ask, plan: Plan, given: Sequence[Text] | None = None) -> None:
    answers = given or await ask(ANSWER, initial_messages(question, plan.prompts), n=plan.n_initial)

    async def correct(answer: Text) -> None:
        asked = critique_messages(question, answer, plan)
        (critique,) = await ask("critique", asked, parent=answer)
        request = correction_messages(question, answer.text, plan.prompts)[-1]
        messages = [*asked, assistant(critique.text), request]
        await ask(CORRECTION, messages, n=plan.n_corrections, parent=critique)

    if plan.n_corrections:
        await gather(correct(answer) for answer in answers)


def examples(question: Question, texts: Sequence[Text], plan: Plan, seed: int) -> list[Example]:
    found = []
    for correction in (text for text in texts if text.turn == CORRECTION):
        answer, critique, _ = correction.lineage
        r1, r2 = answer.reward or 0.0, correction.reward or 0.0
        if r2 > r1 or (plan.section.keep == "not_worse" and r2 == r1):
            request = correction_messages(question, answer.text, plan.prompts)[-1]
            asked = critique_messages(question, answer, plan)
            place = (answer.sample, correction.sample)
            messages = [*asked, learnt(critique), request, learnt(correction)]
            found.append(Example(question["id"], place, transition(r1, r2, plan.section.threshold), messages))
    return found


CRITIQUE = Recipe(section=Critique, turns=turns, examples=examples, keeps=lambda _: "critiques that helped")
