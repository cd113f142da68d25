"""What each text of a trace was asked for. A trace keeps no prompts, but what asks is a function of the
question, the plan and the texts: it runs again, and the trace's own texts answer it. Pure.
"""

import asyncio
from collections.abc import Mapping, Sequence

from stasc_ray.recipes.policies import answer
from stasc_ray.recipes.recipe import Plan, Question, Recipe
from stasc_ray.recipes.trace import Text
from stasc_ray.tasks.chat import Message


def conversations(
    name: str | None,
    of: Recipe,
    question: Question,
    plan: Plan,
    texts: Sequence[Text],
) -> Mapping[Text, list[Message]]:
    """The messages that each text was written after, as the policy gave them to the chat template.

    Args:
        name: of the policy.
        plan: by which it was asked.
        texts: one tree of a question's trace: the first answers of one writer, and all that follows them.
            Answers that another model gave were asked for by the same policy, so they count as its own.

    Raises:
        ValueError: the policy asks for other texts than these. One that asks for as many of the same turns
            can't be told from the one that wrote them.
    """
    ask = _Recorded(texts)
    asyncio.run(answer(name, of, question, ask, plan))
    if left := [text for text in texts if text not in ask.asked]:
        raise ValueError(
            f"expected the policy to ask for all texts of question {question['id']!r}, found that it asks "
            f"for no {left[0].turn!r} there"
        )
    return ask.asked


class _Recorded:
    """An `Ask` that answers with the texts that are there."""

    def __init__(self, recorded: Sequence[Text]) -> None:
        self.recorded, self.texts = recorded, list[Text]()
        self.asked: dict[Text, list[Message]] = {}

    async def __call__(
        self,
        turn: str,
        messages: Sequence[Message],
        *,
        n: int = 1,
        parent: Text | None = None,
        logprob: bool = False,
        budget: float = 1.0,
    ) -> list[Text]:
        if not n:
            return []
        here = (text for text in self.recorded if text.turn == turn and text.parent is parent)
        found = [text for text in here if text not in self.texts]
        # Two requests for the same turn after the same text can't be told apart: refused here as well.
        if [text.sample for text in found] != list(range(n)):
            raise ValueError(f"expected {n} texts of turn {turn!r} in the trace, found {len(found)}")
        self.texts += found
        self.asked |= {text: list(messages) for text in found}
        return found
