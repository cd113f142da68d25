"""Self-rewarding correction (arXiv 2502.19613): answer, say whether it is right, correct it only if it was called wrong.

If the base model can't write verdicts, the first iteration's are constructed from the reward, as SPOC's Pair-SFT does
(arXiv 2506.06923). No loss falls on wrong answers; a verdict is right if it agrees with the reward of what it judges.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from stasc_ray.config import Algorithm
from stasc_ray.recipes.recipe import Ask, Example, Plan, Question, Recipe, gather, learnt, written
from stasc_ray.recipes.trace import ANSWER, CORRECTION, Text, corrections, roots
from stasc_ray.tasks.prompts import assistant, correction_messages, initial_messages, user

VERDICT_TURN = "verdict"


class Verdict(Algorithm):
    """Self-rewarding correction: a verdict stands between an answer and its correction."""

    recipe: str = "verdict"
    """This method."""
    n_corrections: PositiveInt = 4
    """Corrections per initial answer of a train question."""
    n_verdicts: PositiveInt = 4
    """Verdicts per initial answer of a train question, where they are sampled."""
    verdicts: Literal["sampled", "constructed"] = "sampled"
    """Who writes the verdicts that the first iteration learns; `constructed`: they follow from the reward."""
    verdict_prompt: str = (
        "Is your answer right? End with one line: My answer is right. Or: My answer is wrong."
    )
    """User turn that asks for the verdict."""
    says_right: str = "My answer is right."
    """How a verdict ends that calls the answer right."""
    says_wrong: str = "My answer is wrong."
    """How a verdict ends that calls the answer wrong."""
    correction_sees_verdict: bool = True
    """Whether the verdict stays in the conversation that asks for the correction."""
    learn_answers: Literal["none", "right", "all"] = "right"
    """Which first answers are learnt along. `all` breaks the rule that no loss falls on wrong answers: it holds the model
    to the answers that it learns to judge."""
    balance: Annotated[float, Field(gt=0, lt=1)] | None = 0.5
    """Target share of "right" among the verdicts that are learnt, reached by dropping; None leaves it."""


def says_right(section: Verdict, text: str) -> bool | None:
    """Read a verdict by its last words; None if they are neither phrase."""
    said = text.strip().casefold()
    for phrase, meaning in ((section.says_right, True), (section.says_wrong, False)):
        if said.endswith(phrase.strip().casefold()):
            return meaning
    return None


async def turns(question: Question, ask: Ask, plan: Plan, given: Sequence[Text] | None = None) -> None:
    """Answers (unless given); then verdicts and corrections of each."""
    answers = given or await ask(ANSWER, initial_messages(question, plan.prompts), n=plan.n_initial)
    if plan.n_corrections:
        await gather((_explore if plan.learn else _judge)(question, ask, plan, answer) for answer in answers)


async def _judge(question: Question, ask: Ask, plan: Plan, answer: Text) -> None:
    """One verdict; a correction unless it says right. A verdict that can't be read counts as "wrong"."""
    (verdict,) = await ask(VERDICT_TURN, verdict_messages(question, answer, plan), parent=answer)
    if says_right(plan.section, verdict.text) is not True:
        messages = second_messages(question, answer, verdict.text, plan)
        await ask(CORRECTION, messages, n=plan.n_corrections, parent=verdict)


async def _explore(question: Question, ask: Ask, plan: Plan, answer: Text) -> None:
    """To learn from: verdicts, and beside them corrections of every answer, told that it is wrong."""
    told = second_messages(question, answer, plan.section.says_wrong, plan)
    calls = [ask(CORRECTION, told, n=plan.n_corrections, parent=answer)]
    if not _constructs(plan):
        asked = verdict_messages(question, answer, plan)
        calls.append(ask(VERDICT_TURN, asked, n=plan.section.n_verdicts, parent=answer))
    await gather(calls)


def _constructs(plan: Plan) -> bool:
    return plan.section.verdicts == "constructed" and plan.iteration == 0


def verdict_messages(question: Question, answer: Text, plan: Plan) -> list[Any]:
    """The conversation that asks for a verdict on an answer."""
    return [
        *initial_messages(question, plan.prompts),
        assistant(answer.text),
        user(plan.section.verdict_prompt),
    ]


def second_messages(question: Question, answer: Text, verdict: str, plan: Plan) -> list[Any]:
    """The conversation that asks for a correction after a verdict."""
    plain = correction_messages(question, answer.text, plan.prompts)
    if not plan.section.correction_sees_verdict:
        return plain
    return [*verdict_messages(question, answer, plan), assistant(verdict), plain[-1]]


def examples(question: Question, texts: Sequence[Text], plan: Plan, seed: int) -> list[Example]:
    """Right verdicts, right corrections of wrong answers and of right ones that were told to be wrong, and answers.

    These are the data classes of arXiv 2502.19613, section 3; each turn is learnt in the conversation that asked for it.
    """
    found: list[Example] = []
    for j, answer in enumerate(roots(texts)):
        right = (answer.reward or 0.0) >= plan.section.threshold
        asked = verdict_messages(question, answer, plan)
        told = second_messages(question, answer, plan.section.says_wrong, plan)
        good = [text for text in corrections(texts, answer) if (text.reward or 0.0) >= plan.section.threshold]
        classes = [
            ("says right" if right else "says wrong", asked, _right_verdicts(texts, answer, right, plan)),
            ("c->c" if right else "i->c", told, [learnt(correction) for correction in good]),
        ]
        if plan.section.learn_answers == "all" or (right and plan.section.learn_answers == "right"):
            classes.append(("answer", initial_messages(question, plan.prompts), [learnt(answer)]))
        for kind, messages, targets in classes:
            for target in targets:
                found.append(Example(question["id"], (j, len(found)), kind, [*messages, target]))
    return found


def _right_verdicts(texts: Sequence[Text], answer: Text, right: bool, plan: Plan) -> list[dict[str, Any]]:
    """The sampled verdicts that agree with the reward, or as many constructed ones."""
    if _constructs(plan):
        phrase = plan.section.says_right if right else plan.section.says_wrong
        return [written(phrase)] * plan.section.n_verdicts
    said = [text for text in texts if text.turn == VERDICT_TURN and text.parent is answer]
    return [learnt(text) for text in said if says_right(plan.section, text.text) is right]


def shares(section: Verdict) -> Mapping[tuple[str, ...], float]:
    """Verdicts in balance: what decides a verifier's accuracy (arXiv 2502.19613, SPOC)."""
    share = section.balance
    return {} if share is None else {("says right",): share, ("says wrong",): 1 - share}


VERDICT = Recipe(
    section=Verdict,
    turns=turns,
    examples=examples,
    shares=shares,
    keeps=lambda _: "right verdicts and right corrections",
    says_right=says_right,
    policy="until_right",
)
