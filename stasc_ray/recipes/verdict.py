"""Self-rewarding correction (arXiv 2502.19613): answer, say whether it is right, correct it if not.

If a base model can't write verdicts, the first are constructed from the reward, as in SPOC (2506.06923).
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from stasc_ray.config import Algorithm, Phrase
from stasc_ray.recipes.recipe import Ask, Example, Plan, Question, Recipe, gather, learnt, written
from stasc_ray.recipes.trace import ANSWER, CORRECTION, VERDICT_TURN, Text, roots
from stasc_ray.tasks.prompts import assistant, correction_messages, initial_messages, user


class Verdict(Algorithm):
    """Self-rewarding correction: a verdict stands between an answer and its correction."""

    recipe: str = "verdict"
    """This method."""
    n_corrections: PositiveInt = 4
    """Corrections per initial answer of a train question."""
    n_verdicts: PositiveInt = 4
    """Verdicts per initial answer of a train question."""
    verdicts: Literal["sampled", "constructed"] = "sampled"
    """Who writes the first verdicts that are learnt; `constructed`: they follow from the reward."""
    verdict_prompt: str = "Is your answer right? End with: My answer is right. Or: My answer is wrong."
    """User turn that asks for the verdict."""
    says_right: Phrase = "My answer is right."
    """How a verdict ends that calls the answer right."""
    says_wrong: Phrase = "My answer is wrong."
    """How a verdict ends that calls the answer wrong."""
    correction_sees_verdict: bool = True
    """Whether the verdict stays in the conversation that asks for the correction."""
    learn_answers: Literal["none", "right", "all"] = "right"
    """Which first answers are learnt along; `all`: wrong ones too, so the answers stay as they are judged."""
    balance: Annotated[float, Field(gt=0, lt=1)] | None = 0.5
    """Target share of "right" among the verdicts that are learnt, reached by dropping; None leaves it."""

    def reads(self, text: str) -> bool | None:
        """Whether a verdict's last words say right; None if they are neither phrase."""
        said, phrases = text.strip().casefold(), {self.says_right: True, self.says_wrong: False}
        ends = [phrase for phrase in phrases if said.endswith(phrase.strip().casefold())]
        return phrases[max(ends, key=len)] if ends else None

    def shares(self) -> Mapping[tuple[str, ...], float]:
        """Verdicts in balance: what decides a verifier's accuracy (arXiv 2502.19613, SPOC)."""
        right = self.balance
        return {("says right",): right, ("says wrong",): 1 - right} if right else {}


async def turns(question: Question, ask: Ask, plan: Plan, given: Sequence[Text] | None = None) -> None:
    """Answers (unless given); then verdicts and corrections of each."""
    answers = given or await ask(ANSWER, initial_messages(question, plan.prompts), n=plan.n_initial)
    if plan.n_corrections:
        await gather((_explore if plan.learn else _judge)(question, ask, plan, answer) for answer in answers)


async def _judge(question: Question, ask: Ask, plan: Plan, answer: Text) -> None:
    """One verdict; a correction unless it says right. A verdict that can't be read counts as "wrong"."""
    (verdict,) = await ask(VERDICT_TURN, verdict_messages(question, answer, plan), parent=answer)
    if plan.section.reads(verdict.answer) is not True:
        messages = second_messages(question, answer, verdict.said, plan)
        await ask(CORRECTION, messages, n=plan.n_corrections, parent=verdict)


async def _explore(question: Question, ask: Ask, plan: Plan, answer: Text) -> None:
    """To learn from: verdicts; corrections of every answer, told that it is wrong, best by its verdict."""
    asked, section = verdict_messages(question, answer, plan), plan.section
    sampled = section.n_verdicts if plan.iteration or section.verdicts == "sampled" else 0
    said = await ask(VERDICT_TURN, asked, n=sampled, parent=answer)
    wrong = [one for one in said if section.reads(one.answer) is False and section.correction_sees_verdict]
    told = second_messages(question, answer, wrong[0].said if wrong else "", plan)
    await ask(CORRECTION, told, n=plan.n_corrections, parent=wrong[0] if wrong else answer)


def verdict_messages(question: Question, answer: Text, plan: Plan) -> list[Any]:
    """The conversation that asks for a verdict on an answer."""
    ask = user(plan.section.verdict_prompt)
    return [*initial_messages(question, plan.prompts), assistant(answer.said), ask]


def second_messages(question: Question, answer: Text, verdict: str, plan: Plan) -> list[Any]:
    """The conversation that asks for a correction after a verdict; "": it was told to be wrong."""
    plain = correction_messages(question, answer.said, plan.prompts)
    if not plan.section.correction_sees_verdict:
        return plain
    asked, said = verdict_messages(question, answer, plan), assistant(verdict or plan.section.says_wrong)
    return [*asked, said, plain[-1]]


def examples(question: Question, texts: Sequence[Text], plan: Plan, seed: int) -> list[Example]:
    """Right verdicts; right corrections, also of right answers told to be wrong; answers (section 3)."""
    section, found = plan.section, []
    for j, answer in enumerate(roots(texts)):
        right, below = answer.graded >= section.threshold, [text for text in texts if text.root is answer]
        said = [text for text in below if text.turn == VERDICT_TURN]
        verdicts = [learnt(text) for text in said if section.reads(text.answer) is right]
        if section.verdicts == "constructed" and not plan.iteration:
            phrase = section.says_right if right else section.says_wrong
            verdicts = [written(phrase)] * section.n_verdicts
        asked, kind = verdict_messages(question, answer, plan), "says right" if right else "says wrong"
        pairs = [(kind, [*asked, verdict]) for verdict in verdicts]
        for text in (text for text in below if text.turn == CORRECTION and text.graded >= section.threshold):
            wrong = text.parent.said if text.parent and text.parent is not answer else ""
            told = second_messages(question, answer, wrong, plan)
            pairs.append(("c->c" if right else "i->c", [*told, learnt(text)]))
        if section.learn_answers == "all" or (right and section.learn_answers == "right"):
            pairs.append(("answer", [*initial_messages(question, plan.prompts), learnt(answer)]))
        found += [Example(question["id"], (j, at), *pair) for at, pair in enumerate(pairs)]
    return found


ALONG = {"none": "", "right": ", and right answers", "all": ", and answers, wrong ones too"}


def keeps(section: Verdict) -> str:
    """What is kept, in words."""
    writer = " (the first iteration's made from the reward)" if section.verdicts == "constructed" else ""
    return f"verdicts that agree with the reward{writer}, right corrections{ALONG[section.learn_answers]}"


VERDICT = Recipe(
    Verdict,
    turns,
    examples,
    Verdict.shares,
    "until_right",
    verdicts=(VERDICT_TURN,),
    says_right=Verdict.reads,
    judge=verdict_messages,
    keeps=keeps,
)
