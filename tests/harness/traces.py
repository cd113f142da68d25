"""Traces made by hand, and settings that read the recipes' sections."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from stasc_ray import config
from stasc_ray.generation.samples import Request, Sample
from stasc_ray.recipes import section_of
from stasc_ray.recipes.recipe import Plan
from stasc_ray.recipes.trace import ANSWER, CORRECTION, Text, write_texts

QUESTION = {"id": "q1", "question": "Which river?", "answers": ["Danube"], "choices": [], "documents": []}


def settings(*overrides: str, **values: Any) -> config.Config:
    """A config of defaults with `section.field=value` overrides or whole sections."""
    if values:
        return config.validate(values, section_of)
    return config.load_config(None, list(overrides), section_of)


def answered(
    rewards: Sequence[float],
    correction_rewards: Sequence[Sequence[float]] = (),
    answers: Sequence[str] | None = None,
    corrections: Sequence[Sequence[str]] | None = None,
    writer: str = "base",
    answers_by: str | None = None,
) -> list[Text]:
    """A graded trace: answers a0, a1, ... and of each its corrections a0c0, a0c1, ...; token ids are made
    up."""
    texts = [
        Text(
            ANSWER,
            answers[j] if answers else f"a{j}",
            j,
            None,
            answers_by or writer,
            reward=float(reward),
            token_ids=(1, 2),
        )
        for j, reward in enumerate(rewards)
    ]
    return texts + [
        Text(
            CORRECTION,
            corrections[j][k] if corrections else f"a{j}c{k}",
            k,
            texts[j],
            writer,
            reward=float(reward),
            token_ids=(3, 2),
        )
        for j, of in enumerate(correction_rewards)
        for k, reward in enumerate(of)
    ]


def row(texts: Sequence[Text], **columns: Any) -> dict[str, Any]:
    """A row of a trace file."""
    return {**QUESTION, "split": "train", "texts": write_texts(texts), "error": None, **columns}


def plan(section: Mapping[str, Any] | None = None, preset: str = "sandbox", **fields: Any) -> Plan:
    """A plan of the recipe that `section` names."""
    given = settings(algorithm=dict(section or {}), prompts={"preset": preset})
    algorithm = given.algorithm
    counts = {"n_initial": algorithm.n_initial, "n_corrections": algorithm.n_corrections}
    return Plan(**{"prompts": given.prompts, "section": algorithm, **counts, "learn": True, **fields})


class ScriptedAsk:
    """An `Ask` that answers with given texts in turn, and keeps what it was asked. No model stands behind
    it.

    Args:
        cut: texts that end at the turn's last token.
    """

    def __init__(self, *texts: str, cut: Collection[str] = ()) -> None:
        self.left, self.cut, self.texts, self.asked, self.budgets = list(texts), cut, [], [], []

    async def __call__(
        self,
        turn: str,
        messages: Sequence[Any],
        *,
        n: int = 1,
        parent: Text | None = None,
        logprob: bool = False,
        budget: float = 1.0,
    ) -> list[Text]:
        if not n:
            return []
        self.asked.append((turn, list(messages), n))
        self.budgets.append(budget)
        found = [Text(turn, self.left.pop(0), number, parent) for number in range(n)]
        for text in found:
            text.finish_reason = "length" if text.text in self.cut else "stop"
        self.texts += found
        return found


class ScriptedGenerate:
    """An engine's `generate` for `Asker`: gives the texts in turn, letter by letter if that is asked for."""

    def __init__(self, *texts: str) -> None:
        self.left, self.asked = list(texts), []

    async def __call__(self, token_ids: list[int], request: Request, on_piece: Any = None) -> list[Sample]:
        self.asked.append((token_ids, request))
        texts = [self.left.pop(0) for _ in range(request.n)]
        for number, text in enumerate(texts):
            for letter in text if on_piece else ():
                on_piece(number, letter)
        return [Sample(text, tuple(range(len(text))), "stop") for text in texts]
