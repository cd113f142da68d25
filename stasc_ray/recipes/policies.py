"""How a question is answered when asked: policies, by name, for evaluation, comparison and serving.

A policy says what is asked (answering.py), and which of the answers that the samples ended in counts: each
has a weight, equal answers add theirs up, and the heaviest is chosen.
"""

import functools
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stasc_ray.config import Config
from stasc_ray.recipes import answering
from stasc_ray.recipes.recipe import Ask, Plan, Question, Recipe
from stasc_ray.recipes.trace import VERDICT_TURN, Text
from stasc_ray.tasks import matching, rewards
from stasc_ray.tasks.choices import choice_letter

Asks = Callable[[Recipe, Question, Ask, Plan, Sequence[Text] | None], Awaitable[None]]
Reads = Callable[[Text], bool | None]
"""Reads a verdict."""
Weigh = Callable[[Sequence[Text], Sequence[Text], Reads], Sequence[float]]
"""`weigh(ends, texts, reads)` gives each of the last answers its weight; `texts`: all of the question's."""


@dataclass(frozen=True)
class Policy:
    """A way to answer a question."""

    asks: Asks
    weigh: Weigh | None = None
    """The answer is the heaviest of all samples'; None: each sample's is one, and the endpoint, which gives
    one, gives the commonest."""
    grows: Literal["samples", "rounds"] | None = None
    """What more tokens buy."""
    ends: Literal["first", "last", "later", "any"] = "last"
    """Which round writes the final answer: the first answer, the last of `rounds`, any after the first,
    any."""
    own_turns: bool = False
    """Whether it corrects by turns of its own, not by the recipe's."""
    beside: int = 0
    """Texts of its own beside the answer in each round (critiques, verdicts)."""
    starts_from_given: bool = True
    """Whether it can go on from an answer that it did not ask for itself."""
    least_samples: int = 1
    scores: Literal["logprob", "certainty"] | None = None
    """What the engine says of every text, besides."""
    needs_reward: bool = False
    """It knows which answer is right: for evaluation alone."""

    def rounds(self, plan: Plan) -> int:
        """Corrections in a row at most."""
        corrects = self.own_turns or plan.n_corrections > 0
        return plan.rounds if corrects and self.ends != "first" else 0

    def final_rounds(self, recipe: Recipe, plan: Plan) -> range:
        """Rounds that may write the final answer, 0 for the first answer."""
        last = self.rounds(plan)
        any_of_them = self.ends == "any" or (recipe.verdicts and not self.own_turns)
        first = {"last": last, "later": min(1, last)}.get(self.ends, 0)
        return range(0 if any_of_them else first, last + 1)

    def texts_beside(self, recipe: Recipe, plan: Plan) -> int:
        """Texts at most that a chain has beside its answers."""
        if self.ends == "first":
            return self.beside
        return self.rounds(plan) * (self.beside if self.own_turns else len(recipe.verdicts))


async def _until_unchanged(
    recipe: Recipe, question: Question, ask: Ask, plan: Plan, given: Sequence[Text] | None = None
) -> None:
    """At most `plan.rounds` corrections in a row; a chain ends when its final answer stays the same."""
    choices, marker = question.get("choices") or (), plan.prompts.answer_marker

    def unchanged(answer: Text) -> bool:
        before = [text for text in answer.lineage[:-1] if text.turn in recipe.answers]
        keys = [answer_key(text.answer, choices, marker) for text in (*before[-1:], answer) if text.answered]
        return len(keys) == 2 and keys[0] == keys[1]

    await answering.in_rounds(recipe, question, ask, plan, given, unchanged)


def one_each(ends: Sequence[Text], texts: Sequence[Text], reads: Reads) -> list[float]:
    """A vote for each (self-consistency, arXiv 2203.11171)."""
    return [1] * len(ends)


def likelihood(ends: Sequence[Text], texts: Sequence[Text], reads: Reads) -> list[float]:
    """The geometric mean of the tokens' probabilities; 0 if it is not known (a text from elsewhere)."""
    return [
        0.0 if text.logprob is None else math.exp(text.logprob / max(1, len(text.token_ids))) for text in ends
    ]


def confidence(ends: Sequence[Text], texts: Sequence[Text], reads: Reads) -> list[float]:
    """P(right): the share of an answer's verdicts that say so; 0.5 without a readable one."""

    def of(end: Text) -> float:
        said = [reads(text) for text in texts if text.parent is end and text.turn == VERDICT_TURN]
        known = [right for right in said if right is not None]
        return sum(known) / len(known) if known else 0.5

    return [of(end) for end in ends]


def likeliest(ends: Sequence[Text], texts: Sequence[Text], reads: Reads) -> list[float]:
    """All for the text of the highest probability (arXiv 2412.01951)."""
    return _best([-math.inf if text.logprob is None else text.logprob for text in ends])


def borda(ends: Sequence[Text], texts: Sequence[Text], reads: Reads) -> list[float]:
    """(N - rank + 1) ** 0.5 by self-certainty (arXiv 2502.18581; the power as in its code)."""
    certainty = [-math.inf if text.certainty is None else text.certainty for text in ends]
    return [(sum(other <= own for other in certainty)) ** 0.5 for own in certainty]


def _best(values: Sequence[float]) -> list[float]:
    best = values.index(max(values))
    return [float(number == best) for number in range(len(values))]


POLICIES: Mapping[str, Policy] = {
    "recipe": Policy(answering.as_trained),
    "direct": Policy(answering.direct, ends="first"),
    "chain_of_thought": Policy(answering.chain_of_thought, ends="first"),
    "self_consistency": Policy(answering.direct, one_each, "samples", "first"),
    "vote": Policy(answering.as_trained, one_each, "samples"),
    "vote_by_likelihood": Policy(answering.direct, likelihood, "samples", "first", scores="logprob"),
    "vote_by_verdict": Policy(answering.judged, confidence, "samples", "first", beside=answering.VERDICTS),
    "best_by_likelihood": Policy(answering.direct, likeliest, "samples", "first", scores="logprob"),
    "best_by_certainty": Policy(answering.direct, borda, "samples", "first", scores="certainty"),
    "with_history": Policy(answering.with_history, grows="rounds", own_turns=True),
    "until_unchanged": Policy(_until_unchanged, grows="rounds", ends="later"),
    "until_right": Policy(answering.until_right, None, "rounds", "any", own_turns=True, beside=1),
    "self_refine": Policy(answering.self_refine, None, "rounds", "any", own_turns=True, beside=1),
    "rci": Policy(answering.rci, grows="rounds", own_turns=True, beside=1),
    "chain_of_verification": Policy(answering.chain_of_verification, ends="later", own_turns=True, beside=2),
    "debate": Policy(
        answering.debate, one_each, "rounds", own_turns=True, least_samples=2, starts_from_given=False
    ),
    "deepening": Policy(
        answering.deepening, one_each, "samples", "any", own_turns=True, starts_from_given=False
    ),
    "oracle_stop": Policy(answering.corrected, grows="rounds", ends="any", own_turns=True, needs_reward=True),
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
        await policy(name, of).asks(of, question, ask, plan, given)
    except ExceptionGroup as errors:
        first: Exception = errors
        while isinstance(first, ExceptionGroup):
            first = first.exceptions[0]
        raise first from None


def seen(of: Policy, recipe: Recipe, texts: Sequence[Text], threshold: float) -> list[Text]:
    """The texts of a graded trace that the policy asked for: if it needs the reward, no text after a right
    answer. The others are there because nobody knew that while they were written.
    """

    def after_right(text: Text) -> bool:
        before = (one for one in text.lineage[:-1] if one.turn in recipe.answers)
        return any((one.reward or 0.0) >= threshold for one in before)

    return [text for text in texts if not (of.needs_reward and after_right(text))]


def votes_of(
    name: str | None,
    recipe: Recipe,
    ends: Sequence[Text],
    texts: Sequence[Text],
    choices: Sequence[str],
    settings: Config,
) -> list[tuple[Text, float]]:
    """The last answers as the policy ranks them, with their votes (`ranked`).

    Args:
        ends: the last answers of all samples.
        texts: all of the question's.
    """
    reads = functools.partial(answering.reads, recipe, settings.algorithm, settings.prompts)
    weigh = policy(name, recipe).weigh or one_each
    return ranked(ends, choices, settings.prompts.answer_marker, weigh(ends, texts, reads))


def ranked(
    ends: Sequence[Text], choices: Sequence[str], answer_marker: str, weights: Sequence[float] | None = None
) -> list[tuple[Text, float]]:
    """Answers with their weights (a vote each if there are none), heaviest first, the first of equals first.

    Answers count as the same by `answer_key`; the heaviest text stands for them.
    """
    # A text that was cut inside its reasoning votes for nothing, and comes last.
    keys = [answer_key(text.answer, choices, answer_marker) if text.answered else text for text in ends]
    of_key: dict[Any, list[tuple[float, Text]]] = {}  # in the order in which they were met
    for key, weight, text in zip(keys, weights or [1] * len(ends), ends, strict=True):
        of_key.setdefault(key, []).append((weight, text))
    votes = [
        (max(same, key=lambda one: one[0])[1], sum(weight for weight, _ in same)) for same in of_key.values()
    ]
    return sorted(votes, key=lambda vote: (not vote[0].answered, -vote[1]))


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
