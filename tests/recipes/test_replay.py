"""The prompts of a trace, found again: every recipe by every policy, against what was really asked."""

import asyncio
from typing import Any

import pytest
from harness.traces import QUESTION, answered, settings

from stasc_ray.recipes import RECIPES, policies, recipe_of
from stasc_ray.recipes.recipe import plan_for
from stasc_ray.recipes.replay import conversations
from stasc_ray.recipes.trace import Text, read_texts, roots, write_texts
from stasc_ray.tasks.chat import content
from stasc_ray.tasks.prompts import initial_messages

PAIRS = [(recipe, policy) for recipe in RECIPES for policy in policies.policies(recipe_of(recipe))]


class Writing:
    """An `Ask` whose every text is another one; keeps what each was asked for, by its words."""

    def __init__(self, given: list[Text]) -> None:
        self.texts, self.asked = list(given), {}

    async def __call__(self, turn: str, messages: Any, *, n: int = 1, parent: Any = None, **_: Any) -> Any:
        await asyncio.sleep(0)  # others come in between, as on an engine
        number = len(self.asked)
        found = [Text(turn, f"text {number + k}. My answer is wrong.", k, parent) for k in range(n)]
        for text in found:
            text.finish_reason, text.logprob, text.reward = "length", -1.0, 0.0
            self.asked[text.text] = [(message["role"], content(message)) for message in messages]
        self.texts += found
        return found


def traced(recipe: str, policy: str, given: list[Text]) -> tuple[Any, Writing, list[Text], Any]:
    of = recipe_of(recipe)
    several = max(2, policies.policy(policy, of).least_samples)
    told = settings(
        f"algorithm.recipe={recipe}",
        f"evaluation.policy={policy}",
        f"evaluation.samples={several}",
        "evaluation.rounds=3",
    )
    plan, ask = plan_for(told, 1, "test"), Writing(given)
    asyncio.run(policies.answer(policy, of, QUESTION, ask, plan, given or None))
    rows = write_texts(ask.texts)
    return of, ask, read_texts({"texts": rows}), plan


@pytest.mark.parametrize(("recipe", "policy"), PAIRS)
def test_each_text_is_found_with_what_it_was_asked_for(recipe: str, policy: str):
    of, ask, texts, plan = traced(recipe, policy, [])
    found = conversations(policy, of, QUESTION, plan, texts)
    shown = {text.text: [(one["role"], content(one)) for one in messages] for text, messages in found.items()}
    assert shown == ask.asked and len(shown) == len(texts)


def test_answers_that_were_given_count_as_asked_for():
    of, ask, texts, plan = traced("stasc", "recipe", answered([0, 1]))
    found = conversations("recipe", of, QUESTION, plan, texts)
    assert {text.text for text in found} == {"a0", "a1", *ask.asked}
    assert all(found[text] == initial_messages(QUESTION, plan.prompts) for text in roots(texts))


@pytest.mark.parametrize("other", ["rci", "direct", "until_right"])
def test_texts_of_another_policy_are_refused(other: str):
    of, _, texts, plan = traced("stasc", "recipe", [])
    with pytest.raises(ValueError, match="expected"):
        conversations(other, of, QUESTION, plan, texts)
