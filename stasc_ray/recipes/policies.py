"""How a question is answered when asked: policies, by name, for evaluation and serving.

A policy runs a recipe's turns, perhaps several times in a row; `ask` keeps the texts. `ranked` then orders
the answers that the samples ended in.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from stasc_ray.recipes.recipe import Ask, Plan, Question, Recipe
from stasc_ray.recipes.trace import Text, finals, roots
from stasc_ray.tasks import matching, rewards
from stasc_ray.tasks.choices import choice_letter

Policy = Callable[[Recipe, Question, Ask, Plan, Sequence[Text] | None], Awaitable[None]]


async def recipe(
    recipe: Recipe, question: Question, ask: Ask, plan: Plan, given: Sequence[Text] | None = None
) -> None:
    """As trained: `plan.rounds` times the recipe's turns, each round on the answers of the one before.

    A chain that the recipe itself ended (a verdict said right) goes on no further.
    """
    await _in_rounds(recipe, question, ask, plan, given, lambda answer: False)


async def until_unchanged(
    recipe: Recipe, question: Question, ask: Ask, plan: Plan, given: Sequence[Text] | None = None
) -> None:
    """At most `plan.rounds` corrections in a row; a chain ends when its final answer stays the same."""
    choices, marker = question.get("choices") or (), plan.prompts.answer_marker

    def unchanged(answer: Text) -> bool:
        before = [text for text in answer.lineage[:-1] if text.turn in recipe.answers]
        keys = [answer_key(text.answer, choices, marker) for text in (*before[-1:], answer) if text.answered]
        return len(keys) == 2 and keys[0] == keys[1]

    await _in_rounds(recipe, question, ask, plan, given, unchanged)


async def _in_rounds(
    recipe: Recipe,
    question: Question,
    ask: Ask,
    plan: Plan,
    given: Sequence[Text] | None,
    stops: Callable[[Text], bool],
) -> None:
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


POLICIES: Mapping[str, Policy] = {
    "recipe": recipe,
    "until_right": recipe,  # a recipe with verdicts ends a chain when the model says right
    "until_unchanged": until_unchanged,
    "vote": recipe,  # and the commonest answer counts, see `ranked`
}


def policies(of: Recipe) -> dict[str, Policy]:
    """Every policy by which a recipe's models can answer: the shared ones and what the recipe brings."""
    return {**POLICIES, **of.policies}


def policy(name: str | None, of: Recipe) -> Policy:
    """The policy of that name; None: the recipe's.

    Raises:
        ValueError: no such policy.
    """
    known = policies(of)
    if (name or of.policy) not in known:
        raise ValueError(f"policy: expected one of {', '.join(known)}, found {name or of.policy!r}")
    return known[name or of.policy]


async def answer(
    name: str | None,
    of: Recipe,
    question: Question,
    ask: Ask,
    plan: Plan,
    given: Sequence[Text] | None = None,
) -> None:
    """Answer a question by a policy. An error that a recipe's own TaskGroup wrapped is raised as it was."""
    try:
        await policy(name, of)(of, question, ask, plan, given)
    except ExceptionGroup as errors:
        first: Exception = errors
        while isinstance(first, ExceptionGroup):
            first = first.exceptions[0]
        raise first from None


def ranked(ends: Sequence[Text], choices: Sequence[str], answer_marker: str) -> list[tuple[Text, int]]:
    """Answers with their votes, most votes first, the first of equals first; answers count as the same by
    `answer_key`.
    """
    # A text that was cut inside its reasoning votes for nothing, and comes last.
    keys = [answer_key(text.answer, choices, answer_marker) if text.answered else text for text in ends]
    first = dict(zip(reversed(keys), reversed(ends), strict=True))
    # Equal counts stay in the order in which they were met.
    votes = [(first[key], count) for key, count in Counter(keys).most_common()]
    return sorted(votes, key=lambda vote: not vote[0].answered)


def answer_key(answer: str, choices: Sequence[str], answer_marker: str) -> Any:
    """By what answers count as the same: the chosen letter, else `final_answer`, normalized."""
    letter, final = final_answer(answer, choices, answer_marker)
    return letter or matching.normalize(final) or answer.strip()


def final_answer(answer: str, choices: Sequence[str], answer_marker: str) -> tuple[str | None, str]:
    """What an answer comes to: the chosen letter, if it names one of `choices`; and what follows the answer
    marker, all of the answer if it has none.
    """
    letter = choice_letter(answer, choices) if choices else None
    final = rewards.after_marker(answer, answer_marker) if answer_marker.strip() else ""
    return letter or None, final or answer.strip()
