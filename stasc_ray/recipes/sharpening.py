"""Sharpening (arXiv 2412.01951): of N answers learn the one that the model itself thinks best. No references.

`by` is the self-reward: the model's likelihood of the answer, the majority of its answers (self-consistency,
2210.11610), or its own verdicts.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from stasc_ray.config import Algorithm
from stasc_ray.recipes.policies import answer_key
from stasc_ray.recipes.recipe import Ask, Example, Plan, Question, Recipe, gather, learnt
from stasc_ray.recipes.trace import ANSWER, VERDICT_TURN, Text, roots
from stasc_ray.tasks.chat import Message
from stasc_ray.tasks.prompts import assistant, initial_messages, user


class Sharpening(Algorithm):
    """Best of N by the model's own judgement, then fine-tuning on it; rewards are only measured."""

    recipe: str = "sharpening"
    """This method."""
    n_initial: PositiveInt = 8
    """N: answers sampled per train question."""
    n_corrections: Literal[0] = 0
    """Nothing is corrected."""
    by: Literal["likelihood", "majority", "verdict"] = "likelihood"
    """What makes an answer the best: its likelihood, how many others come to the same, or how often the model
    calls it right. The likeliest of equals."""
    length_normalized: bool = False
    """Whether likelihood is per token; in sum it prefers short answers."""
    min_votes: PositiveInt = 1
    """Answers that come to the same, itself included, or verdicts that say right, which the best needs; else
    nothing of the question is learnt."""
    n_verdicts: PositiveInt = 1
    """Verdicts per answer, with by = `verdict`."""
    verdict_prompt: str = "Is your answer right? End with: My answer is right. Or: My answer is wrong."
    """User turn that asks for the verdict."""
    says_right: Annotated[str, Field(pattern=r"\S")] = "My answer is right."
    """How a verdict ends that calls the answer right."""

    def reads(self, text: str) -> bool:
        """Whether a verdict's last words say right."""
        return text.strip().casefold().endswith(self.says_right.strip().casefold())


async def turns(question: Question, ask: Ask, plan: Plan, given: Sequence[Text] | None = None) -> None:
    """Answers with their log-probabilities (unless given); to learn, the model's verdicts if they decide."""
    section, asked = plan.section, initial_messages(question, plan.prompts)
    answers = given or await ask(ANSWER, asked, n=plan.n_initial, logprob=plan.learn)
    if plan.learn and section.by == "verdict":
        await gather(
            ask(VERDICT_TURN, verdict_messages(question, answer, plan), n=section.n_verdicts, parent=answer)
            for answer in answers
        )


def verdict_messages(question: Question, answer: Text, plan: Plan) -> list[Message]:
    """The conversation that asks for a verdict on an answer."""
    asked = initial_messages(question, plan.prompts)
    return [*asked, assistant(answer.said), user(plan.section.verdict_prompt)]


def likelihood(answer: Text, section: Sharpening) -> float:
    """Log-probability of an answer under the model that wrote it, or its mean per token.

    Raises:
        ValueError: the trace holds none.
    """
    if answer.logprob is None:
        raise ValueError(
            "sharpening: expected answers with log-probabilities, found one without: they were written by "
            "another recipe; generate them again"
        )
    return answer.logprob / max(1, len(answer.token_ids)) if section.length_normalized else answer.logprob


def agreeing(answers: Sequence[Text], texts: Sequence[Text], question: Question, plan: Plan) -> list[float]:
    """Of each answer, how many come to the same final answer, itself included."""
    choices, marker = question.get("choices") or (), plan.prompts.answer_marker
    keys = [answer_key(answer.answer, choices, marker) for answer in answers]
    return [float(Counter(keys)[key]) for key in keys]


def called_right(
    answers: Sequence[Text], texts: Sequence[Text], question: Question, plan: Plan
) -> list[float]:
    """Of each answer, how many of its verdicts say right."""
    verdicts = [text for text in texts if text.turn == VERDICT_TURN and plan.section.reads(text.answer)]
    return [float(sum(verdict.parent is answer for verdict in verdicts)) for answer in answers]


VOTES: Mapping[str, Callable[[Sequence[Text], Sequence[Text], Question, Plan], list[float]]] = {
    "majority": agreeing,
    "verdict": called_right,
}


def examples(question: Question, texts: Sequence[Text], plan: Plan, seed: int) -> list[Example]:
    """The best answer of the question; only finished ones take part."""
    section, answers = plan.section, roots(texts)
    finished = [one for one in answers if one.answered and one.answer.strip() and not one.cut]
    votes = VOTES[section.by](finished, texts, question, plan) if section.by in VOTES else None
    standing = [
        (votes[place] if votes else 0.0, likelihood(one, section), -place, one)
        for place, one in enumerate(finished)
        if not votes or votes[place] >= section.min_votes
    ]
    if not standing:
        return []
    best = max(standing)[-1]
    messages = [*initial_messages(question, plan.prompts), learnt(best)]
    return [Example(question["id"], (answers.index(best),), "best", messages)]


SHARPENING = Recipe(
    Sharpening,
    turns,
    examples,
    verdicts=(VERDICT_TURN,),
    says_right=Sharpening.reads,
    judge=verdict_messages,
    chosen_by="r_y1",
    keeps=lambda section: f"of each question the best answer by the model's own {section.by}",
)
