"""What a recipe is: a self-correction method as plain values. `RECIPES` in the package's __init__ lists those
that ship.

A recipe decides what is asked (`turns`) and what is learnt (`examples`). Everything else is shared: engines,
grading, training, evaluation, resume, report, serving. One's own is a file with a `Recipe`, named by
`package.module:NAME`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from stasc_ray.config import Algorithm, Config, Prompts
from stasc_ray.recipes.trace import ANSWER, CORRECTION, Text
from stasc_ray.tasks.prompts import Message

Question = Mapping[str, Any]
"""A row with the columns of `store.rows.QUESTION_SCHEMA`."""


@dataclass(frozen=True)
class Plan:
    """What `turns` and `examples` may depend on, besides the question."""

    prompts: Prompts
    section: Any
    """The recipe's section of the config (`[algorithm]`)."""
    n_initial: int
    """Answers per question."""
    n_corrections: int
    """Corrections per answer."""
    rounds: int = 1
    """Corrections in a row, each of the answer before; 0 only answers."""
    learn: bool = False
    """Whether the texts are to learn from (train questions), not to measure or to serve."""
    iteration: int = 0
    """Of the model that writes; 0 is M0."""


def train_plan(settings: Config, iteration: int) -> Plan:
    """What M_iteration is asked about train questions; `turns` writes by it and `examples` reads by it."""
    section = settings.algorithm
    counts = {"n_initial": section.n_initial, "n_corrections": section.n_corrections}
    return Plan(settings.prompts, section, **counts, learn=True, iteration=iteration)


def plan_for(settings: Config, iteration: int, split: str) -> Plan:
    """What M_iteration is asked about the questions of a split."""
    plan, evaluation = train_plan(settings, iteration), settings.evaluation
    if split == "train":
        return plan
    counts = {"n_initial": evaluation.samples, "n_corrections": min(1, plan.n_corrections)}
    return replace(plan, **counts, rounds=evaluation.rounds, learn=False)


class Ask(Protocol):
    """Asks the model for `n` texts of a turn; hides rendering, seeds, limits, streaming and cancellation.

    It also keeps every text that it gives in `texts`.
    """

    texts: list[Text]

    def __call__(
        self,
        turn: str,
        messages: Sequence[Message],
        *,
        n: int = 1,
        parent: Text | None = None,
        logprob: bool = False,
        budget: float = 1.0,
    ) -> Awaitable[list[Text]]:
        """Gives the texts, with samples counted from 0; with `logprob` each has its log-probability. `budget`
        is the share of the turn's `max_tokens` that a text may have.

        Raises:
            PromptTooLongError: the prompt leaves no room for an answer.
        """
        ...


Turns = Callable[[Question, Ask, Plan, Sequence[Text] | None], Awaitable[None]]
"""`turns(question, ask, plan, given)`: all that is asked about a question; `given`: answers to go on from."""


@dataclass(frozen=True)
class Example:
    """One conversation to learn from, or a pair of them."""

    question: str
    """The question's id."""
    place: tuple[int, ...]
    """Tells the examples of a question apart, the same on every machine; for STaSC (j, j * N_corr + k)."""
    kind: str
    """Name of its class, counted in the metrics and balanced by `Recipe.shares`."""
    messages: Sequence[Mapping[str, Any]]
    """As `store.rows.EXAMPLE_SCHEMA`; `learnt(text)` makes a message that carries loss."""
    rejected: Sequence[Mapping[str, Any]] | None = None
    """For an objective that learns pairs: the conversation that `messages` is preferred to, marked alike."""
    weight: float = 1.0
    """For an objective that knows weights: of its loss; negative: it becomes less likely."""

    @property
    def id(self) -> str:
        """`question/place/...`: names it in files and orders it in training."""
        return "/".join(map(str, (self.question, *self.place)))

    @property
    def sides(self) -> list[Sequence[Mapping[str, Any]]]:
        """Its conversations: one, or the chosen and the rejected one."""
        return [self.messages] if self.rejected is None else [self.messages, self.rejected]

    def as_row(self) -> dict[str, Any]:
        """As `store.rows.EXAMPLE_SCHEMA`."""
        rejected = None if self.rejected is None else list(self.rejected)
        row = {"id": self.id, "class": self.kind, "messages": list(self.messages)}
        return {**row, "rejected": rejected, "weight": self.weight}


@dataclass(frozen=True)
class Recipe:
    """A self-correction method."""

    section: type[Algorithm]
    """Its section of the config; the default of `recipe` in it is the recipe's name."""
    turns: Turns
    examples: Callable[[Question, Sequence[Text], Plan, int], Iterable[Example]]
    """`examples(question, texts, plan, seed)`: what is learnt from one graded trace. Pure."""
    shares: Callable[[Any], Mapping[tuple[str, ...], float]] = lambda section: {}
    """Target shares of groups of classes, by section; they add up to 1. Classes in no group all stay."""
    policy: str = "recipe"
    """How questions are answered when asked (recipes/policies.py)."""
    answers: tuple[str, ...] = (ANSWER, CORRECTION)
    """Turns whose texts are answers: graded by the reward, and what a question ends in."""
    verdicts: tuple[str, ...] = ()
    """Turns whose texts judge the answer that they follow."""
    says_right: Callable[[Any, str], bool | None] = lambda section, text: None
    """`says_right(section, text)` reads a verdict; None: it can't be read."""
    judge: "Callable[[Question, Text, Plan], list[Message]] | None" = None
    """`judge(question, answer, plan)` asks for a verdict; None: as `prompts.policies.verdict` does."""
    keeps: Callable[[Any], str] = lambda section: "what its `examples` gives"
    """What `examples` keeps, in words, for the message if it kept nothing; by section."""
    objective: str = "sft"
    """Name in `learning.objectives.OBJECTIVES`."""
    chosen_by: str = "r_y2"
    """The measure on dev by which a version is chosen."""
    policies: Mapping[str, Any] = field(default_factory=dict)
    """Policies that the recipe brings, by name; see `policies.Policy`."""


def learnt(*texts: Text, train: bool = True) -> dict[str, Any]:
    """An assistant's message made of generated texts; loss falls on it if `train`. Targets are the generated
    ids: the text's own list, by which `look` tells it from an equal text.
    """
    pieces = [
        {"text": text.text, "token_ids": _as_list(text.token_ids), "train": train, "cut": text.cut}
        for text in texts
    ]
    return {"role": "assistant", "pieces": pieces}


def advantages(texts: Sequence[Text]) -> list[float]:
    """Reward minus the mean of these texts', which answer one prompt: weights for `weighted_sft`
    (REINFORCE with a group baseline). Where all rewards are equal there is nothing to learn.
    """
    mean = sum(text.graded for text in texts) / max(1, len(texts))
    return [text.graded - mean for text in texts]


def _as_list(ids: Sequence[int]) -> list[int]:
    return ids if isinstance(ids, list) else list(ids)


def written(text: str) -> dict[str, Any]:
    """An assistant's message to learn that no model generated, such as a constructed verdict."""
    return {"role": "assistant", "content": text, "train": True}


async def gather(calls: Iterable[Awaitable[Any]]) -> list[Any]:
    """All results; if one call fails, the others are cancelled and its own exception is raised."""

    async def one(call: Awaitable[Any]) -> Any:
        return await call

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(call)) for call in calls]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
