"""A question through both turns: initial answer, then corrections, each of the answer before; and the vote over samples.

Uses the prompt functions that training uses. Knows engines only as a function from token ids to a Sample.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from stasc_ray import config
from stasc_ray.generation.samples import Request, Sample, request_seed
from stasc_ray.serving.errors import invalid
from stasc_ray.tasks import matching, prompts, rewards
from stasc_ray.tasks.choices import choice_letter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turn = Literal["initial", "correction"]


class Generate(Protocol):
    """An engine: token ids and sampling in, one sample out; `on_text` gets it in pieces as it comes."""

    def __call__(
        self, token_ids: list[int], request: Request, on_text: Callable[[str], None] | None
    ) -> Coroutine[Any, Any, Sample]:
        """Generate."""
        ...


@dataclass(frozen=True)
class Plan:
    """What is asked, and how; `seed` belongs to the whole request."""

    row: Mapping[str, Any]
    """question, documents, choices, as in a Question row."""
    initial_answer: str | None
    rounds: int
    samples: int
    sampling: config.SamplingPerTurn
    seed: int
    max_prompt_tokens: int


@dataclass
class Chain:
    """One sample: its texts turn by turn, and what they cost."""

    texts: list[str] = field(default_factory=list)
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    initial_s: float = 0.0
    correction_s: float = 0.0


OnText = Callable[[int, Turn, int, str], None]
"""Gets (sample, turn, round, piece of text); the initial answer is round 0."""


class Asker:
    """Runs the turns of one plan on one engine."""

    def __init__(
        self,
        plan: Plan,
        texts: config.Prompts,
        tokenizer: "PreTrainedTokenizerBase",
        generate: Generate,
        on_text: OnText | None = None,
    ) -> None:
        self.plan, self.texts, self.tokenizer, self.generate, self.on_text = (
            plan,
            texts,
            tokenizer,
            generate,
            on_text,
        )

    def first_prompt(self) -> list[int]:
        """Token ids (T,) of the first turn that is generated.

        Raises:
            ApiError: 413, the prompt is too long.
        """
        return self._render(self.plan.initial_answer)

    async def chains(self) -> list[Chain]:
        """All samples, at the same time; if one fails the others stop.

        Raises:
            ApiError: 413, a correction's prompt is too long.
        """
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._chain(number)) for number in range(self.plan.samples)]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _chain(self, sample: int) -> Chain:
        chain = Chain()
        started = time.monotonic()
        if self.plan.initial_answer is not None:
            chain.texts.append(self.plan.initial_answer)
        else:
            await self._turn(chain, sample, "initial", 0)
        chain.initial_s = time.monotonic() - started
        for number in range(1, self.plan.rounds + 1):
            await self._turn(chain, sample, "correction", number)
        chain.correction_s = time.monotonic() - started - chain.initial_s
        return chain

    async def _turn(self, chain: Chain, sample: int, turn: Turn, number: int) -> None:
        token_ids = self._render(chain.texts[-1] if chain.texts else None)
        sampling = self.plan.sampling.initial if turn == "initial" else self.plan.sampling.correction
        request = Request(sampling, 1, request_seed(self.plan.seed, sample, turn, number))
        on_text = self.on_text
        found = await self.generate(
            token_ids, request, on_text and (lambda piece: on_text(sample, turn, number, piece))
        )
        chain.texts.append(found.text)
        chain.finish_reason = found.finish_reason
        chain.prompt_tokens += len(token_ids)
        chain.completion_tokens += len(found.token_ids)

    def _render(self, answer: str | None) -> list[int]:
        """Prompt that asks for the initial answer (`answer` is None) or for the correction of `answer`."""
        if answer is None:
            messages = prompts.initial_messages(self.plan.row, self.texts)
        else:
            messages = prompts.correction_messages(self.plan.row, answer, self.texts)
        token_ids = prompts.render(self.tokenizer, messages, add_generation_prompt=True)
        if len(token_ids) > self.plan.max_prompt_tokens:
            raise invalid(
                "question",
                f"expected a prompt of at most {self.plan.max_prompt_tokens} tokens (serve.max_prompt_tokens, "
                f"engine.max_model_len_tokens), found {len(token_ids)}; shorten the question, documents or answer",
                status=413,
            )
        return token_ids


def vote(
    chains: Sequence[Chain], choices: Sequence[str], answer_marker: str
) -> tuple[Chain, list[tuple[str, int]]]:
    """The chain whose final answer is the commonest (the first of equals), and [(answer, votes)], most votes first."""
    keys = [vote_key(chain.texts[-1], choices, answer_marker) for chain in chains]
    counts = Counter(keys)
    first = {key: chains[keys.index(key)] for key in counts}
    ranked = counts.most_common()  # equal counts stay in the order in which they were met
    return first[ranked[0][0]], [(first[key].texts[-1], count) for key, count in ranked]


def vote_key(answer: str, choices: Sequence[str], answer_marker: str) -> str:
    """By what answers count as the same: the chosen letter, else the normalized text after the answer marker, if any."""
    if choices and (letter := choice_letter(answer, choices)):
        return letter
    final = rewards.after_marker(answer, answer_marker) if answer_marker.strip() else ""
    return matching.normalize(final or answer) or answer.strip()
