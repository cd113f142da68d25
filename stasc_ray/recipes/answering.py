"""What the policies ask: one function each, of the shape `policies.Asks`. Pure but for `ask`.

A chain begins with a first answer and goes on with texts of the turns `correction` (graded as answers),
`verdict`, `critique`, `checks` and `findings`. Texts that ask are in `prompts.policies`.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from stasc_ray.config import Prompts
from stasc_ray.recipes.recipe import Ask, Plan, Question, Recipe, gather
from stasc_ray.recipes.trace import ANSWER, CORRECTION, VERDICT_TURN, Text, finals, roots
from stasc_ray.tasks.chat import Message, content
from stasc_ray.tasks.prompts import assistant, correction_messages, initial_messages, user

CRITIQUE, CHECKS, FINDINGS = "critique", "checks", "findings"
"""Turns whose texts are about an answer."""
VERDICTS = 4
"""By which P(right) is estimated."""
Given = Sequence[Text] | None


async def as_trained(recipe: Recipe, question: Question, ask: Ask, plan: Plan, given: Given = None) -> None:
    """`plan.rounds` times the recipe's turns, each round on the answers of the one before.

    A chain that the recipe itself ended (a verdict said right) goes on no further.
    """
    await in_rounds(recipe, question, ask, plan, given, lambda answer: False)


async def in_rounds(
    recipe: Recipe, question: Question, ask: Ask, plan: Plan, given: Given, stops: Callable[[Text], bool]
) -> None:
    """The recipe's turns in rounds; a chain ends where `stops(answer)` says so."""
    if plan.rounds == 0:
        plan = replace(plan, n_corrections=0)
    await recipe.turns(question, ask, plan, given)
    plan = replace(plan, n_corrections=min(1, plan.n_corrections))  # a chain goes on, and branches no further
    for _ in range(plan.rounds - 1):
        followed = {id(text.parent) for text in ask.texts}
        ends = [text for root in roots(ask.texts) for text in finals(ask.texts, root, recipe.answers)]
        open_ends = [text for text in ends if id(text) not in followed and not stops(text)]
        if not open_ends:
            return
        await recipe.turns(question, ask, plan, open_ends)


async def direct(recipe: Recipe, question: Question, ask: Ask, plan: Plan, given: Given = None) -> None:
    """The recipe's first answers alone."""
    await recipe.turns(question, ask, replace(plan, n_corrections=0), given)


async def chain_of_thought(
    recipe: Recipe, question: Question, ask: Ask, plan: Plan, given: Given = None
) -> None:
    """First answers, asked to think step by step (arXiv 2205.11916)."""
    if not given:
        *before, last = initial_messages(question, plan.prompts)
        asked = f"{content(last)}\n\n{plan.prompts.policies.step_by_step}".strip()
        await ask(ANSWER, [*before, user(asked)], n=plan.n_initial)


async def judged(recipe: Recipe, question: Question, ask: Ask, plan: Plan, given: Given = None) -> None:
    """First answers, and `VERDICTS` verdicts on each."""
    await direct(recipe, question, ask, plan, given)
    await gather(_verdicts(recipe, question, ask, plan, answer, VERDICTS) for answer in roots(ask.texts))


async def until_right(recipe: Recipe, question: Question, ask: Ask, plan: Plan, given: Given = None) -> None:
    """At most `plan.rounds` corrections until a verdict says right, by the recipe's own turns if they end so.
    A verdict that can't be read counts as "wrong".
    """
    if recipe.policy == "until_right":
        return await as_trained(recipe, question, ask, plan, given)

    async def chain(answer: Text) -> None:
        for _ in range(plan.rounds):
            (verdict,) = await _verdicts(recipe, question, ask, plan, answer, 1)
            if reads(recipe, plan.section, plan.prompts, verdict):
                return
            request = correction_messages(question, answer.said, plan.prompts)[-1]
            seen = [*(recipe.judge or _judge)(question, answer, plan), assistant(verdict.said), request]
            (answer,) = await ask(CORRECTION, seen, parent=verdict)

    await _chains(recipe, question, ask, plan, given, chain)


async def _verdicts(
    recipe: Recipe, question: Question, ask: Ask, plan: Plan, answer: Text, count: int
) -> list[Text]:
    messages = (recipe.judge or _judge)(question, answer, plan)
    return await ask(VERDICT_TURN, messages, n=count, parent=answer)


def _judge(question: Question, answer: Text, plan: Plan) -> list[Message]:
    """The conversation that asks for a verdict on an answer, where the recipe has none of its own."""
    return [*_conversation(question, answer, plan), user(plan.prompts.policies.verdict)]


def reads(recipe: Recipe, section: Any, prompts: Prompts, verdict: Text) -> bool | None:
    """What a verdict says, the recipe's or that of `prompts.policies`; None: it can't be read."""
    if verdict.turn in recipe.verdicts:
        return recipe.says_right(section, verdict.answer)
    phrases = {prompts.policies.says_right: True, prompts.policies.says_wrong: False}
    ends = [phrase for phrase in phrases if _ends_in(verdict.answer, phrase)]
    return phrases[max(ends, key=len)] if ends else None


async def rci(recipe: Recipe, question: Question, ask: Ask, plan: Plan, given: Given = None) -> None:
    """Rounds of critique and improvement, each of the answer before alone (arXiv 2303.17491)."""
    texts = plan.prompts.policies

    async def chain(answer: Text) -> None:
        for _ in range(plan.rounds):
            seen = [*_conversation(question, answer, plan), user(texts.critique)]
            (critique,) = await ask(CRITIQUE, seen, parent=answer)
            seen = [*seen, assistant(critique.said), user(texts.improve)]
            (answer,) = await ask(CORRECTION, seen, parent=critique)

    await _chains(recipe, question, ask, plan, given, chain)


async def self_refine(recipe: Recipe, question: Question, ask: Ask, plan: Plan, given: Given = None) -> None:
    """Rounds of feedback and refinement, each in sight of all before it, until the feedback says that nothing
    is wrong (arXiv 2303.17651).
    """
    texts = plan.prompts.policies

    async def chain(answer: Text) -> None:
        seen = _conversation(question, answer, plan)
        for _ in range(plan.rounds):
            seen = [*seen, user(texts.feedback)]
            (feedback,) = await ask(CRITIQUE, seen, parent=answer)
            if _ends_in(feedback.answer, texts.is_correct):
                return
            seen = [*seen, assistant(feedback.said), user(texts.refine)]
            (answer,) = await ask(CORRECTION, seen, parent=feedback)
            seen = [*seen, assistant(answer.said)]

    await _chains(recipe, question, ask, plan, given, chain)


async def with_history(recipe: Recipe, question: Question, ask: Ask, plan: Plan, given: Given = None) -> None:
    """Rounds of corrections, each of which sees all answers before it (arXiv 2511.09381)."""

    async def chain(answer: Text) -> None:
        asked = correction_messages(question, answer.said, plan.prompts)
        for _ in range(plan.rounds):
            (answer,) = await ask(CORRECTION, asked, parent=answer)
            asked = [*asked, assistant(answer.said), asked[-1]]

    await _chains(recipe, question, ask, plan, given, chain)


async def chain_of_verification(
    recipe: Recipe, question: Question, ask: Ask, plan: Plan, given: Given = None
) -> None:
    """Questions that check the answer, answers to them that don't see it, and a correction (arXiv 2309.11495,
    its two-step form).
    """
    texts = plan.prompts.policies

    async def chain(answer: Text) -> None:
        if plan.rounds == 0:
            return
        seen = [*_conversation(question, answer, plan), user(texts.checks)]
        (checks,) = await ask(CHECKS, seen, parent=answer)
        documents = "".join(f"{one}\n\n" for one in question.get("documents") or ())
        asked = documents + _fill(texts.findings, checks=checks.answer)
        (findings,) = await ask(FINDINGS, [user(asked)], parent=checks)
        told = _fill(texts.verified, checks=checks.answer, findings=findings.answer)
        await ask(CORRECTION, [*_conversation(question, answer, plan), user(told)], parent=findings)

    await _chains(recipe, question, ask, plan, given, chain)


async def debate(recipe: Recipe, question: Question, ask: Ask, plan: Plan, given: Given = None) -> None:
    """Rounds in which each sample sees the others' answers in its own conversation, and updates its own
    (arXiv 2305.14325).
    """
    await direct(recipe, question, ask, plan, given)
    answers = roots(ask.texts)
    seen = [_conversation(question, answer, plan) for answer in answers]
    for _ in range(plan.rounds):
        for place, own in enumerate(answers):
            others = "\n\n".join(text.answer.strip() for text in answers if text is not own)
            seen[place] = [*seen[place], user(_fill(plan.prompts.policies.debate, others=others))]
        updated = await gather(
            ask(CORRECTION, messages, parent=own) for messages, own in zip(seen, answers, strict=True)
        )
        answers = [answer for (answer,) in updated]
        seen = [[*before, assistant(own.said)] for before, own in zip(seen, answers, strict=True)]


async def corrected(recipe: Recipe, question: Question, ask: Ask, plan: Plan, given: Given = None) -> None:
    """`plan.rounds` corrections, each of the answer before, whatever a verdict would say."""

    async def chain(answer: Text) -> None:
        for _ in range(plan.rounds):
            asked = correction_messages(question, answer.said, plan.prompts)
            (answer,) = await ask(CORRECTION, asked, parent=answer)

    await _chains(recipe, question, ask, plan, given, chain)


async def deepening(recipe: Recipe, question: Question, ask: Ask, plan: Plan, given: Given = None) -> None:
    """Answers that are asked to check themselves and go on where their tokens ended; the budget doubles with
    each round, up to all of `max_tokens` (arXiv 2502.05449).
    """
    rounds = plan.rounds

    async def chain(answer: Text) -> None:
        asked = initial_messages(question, plan.prompts)
        for number in range(1, rounds + 1):
            if not answer.cut:
                return
            asked = [*asked, assistant(answer.said), user(plan.prompts.policies.deepen)]
            (answer,) = await ask(CORRECTION, asked, parent=answer, budget=0.5 ** (rounds - number))

    asked, least = initial_messages(question, plan.prompts), 0.5**rounds
    firsts = given or await ask(ANSWER, asked, n=plan.n_initial, budget=least)
    await gather(chain(answer) for answer in firsts)


async def _chains(
    recipe: Recipe,
    question: Question,
    ask: Ask,
    plan: Plan,
    given: Given,
    chain: Callable[[Text], Awaitable[None]],
) -> None:
    """A chain for each first answer; all of them at once."""
    await direct(recipe, question, ask, plan, given)
    await gather(chain(answer) for answer in given or roots(ask.texts))


def _conversation(question: Question, answer: Text, plan: Plan) -> list[Message]:
    """The question and an answer to it."""
    return [*initial_messages(question, plan.prompts), assistant(answer.said)]


def _ends_in(text: str, phrase: str) -> bool:
    return text.strip().casefold().endswith(phrase.strip().casefold())


def _fill(text: str, **fields: str) -> str:
    """Replace the fields in one pass: braces inside an answer stay what they are."""
    return re.sub(r"\{(\w+)\}", lambda match: fields.get(match[1], match[0]), text)
