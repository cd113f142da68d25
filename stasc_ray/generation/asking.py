"""The one `Ask` of recipes: renders a conversation, derives its seed, bounds it, samples, keeps the texts.

It knows an engine only as a function `generate`. Rollouts pass the engine's futures, serving passes its
engine actors.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Literal

from stasc_ray import config
from stasc_ray.generation.samples import Request, Sample, request_seed
from stasc_ray.recipes.trace import ANSWER, Text
from stasc_ray.tasks import reasoning
from stasc_ray.tasks.chat import Chat, Message, content

OnPiece = Callable[[int, str], None]
"""Gets (sample, piece of text) as a text grows."""
Generate = Callable[[list[int], Request, OnPiece | None], Awaitable[list[Sample]]]
"""Gives the `n` samples of a request for a prompt's token ids."""
OnText = Callable[[Text, str], None]
"""Gets (a text that is being written, its next piece)."""


class PromptTooLongError(ValueError):
    """A prompt leaves no room for an answer."""

    def __init__(self, limit: int, found: int | str) -> None:
        super().__init__(
            f"prompt: expected at most {limit} tokens (engine.max_model_len_tokens less one, or "
            f"serve.max_prompt_tokens), found {found}; shorten the question, documents or answer"
        )


class Asker:
    """Asks one model about one question (`recipes.recipe.Ask`).

    Args:
        sampling: of the first answers, and of every other turn.
        identity: seeds every request together with the text's place in the trace.
        writer: name of the model that writes.
        given: answers that are there already; they are part of the trace.
        on_text: gets the texts piece by piece as they come.
    """

    def __init__(
        self,
        chat: Chat,
        generate: Generate,
        *,
        sampling: config.SamplingPerTurn,
        identity: tuple[object, ...],
        writer: str,
        max_prompt_tokens: int,
        given: Sequence[Text] = (),
        on_text: OnText | None = None,
    ) -> None:
        self.chat, self.generate, self.sampling, self.identity = chat, generate, sampling, identity
        self.writer, self.max_prompt_tokens, self.on_text = writer, max_prompt_tokens, on_text
        self.scores: Literal["logprob", "certainty"] | None = None
        """What every text comes with, besides: its log-probability; its self-certainty too."""
        self.texts: list[Text] = list(given)

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
        """The `n` texts of a turn; see `recipes.recipe.Ask`."""
        if not n:
            return []
        token_ids = await self.rendered(messages)
        writer, generate = self.writer_of(parent)
        texts = [Text(turn, "", number, parent, writer) for number in range(n)]
        texts[0].prompt_tokens = len(token_ids)  # the samples share it
        request = self.request(turn, parent, n, logprob)
        if budget < 1:
            bound = {"max_tokens": max(1, round(request.sampling.max_tokens * budget))}
            request = replace(request, sampling=request.sampling.model_copy(update=bound))
        on_text, started = self.on_text, time.monotonic()
        on_piece = on_text and (lambda sample, piece: on_text(texts[sample], piece))
        samples = await generate(token_ids, request, on_piece)
        opened = self.chat.opens(token_ids)
        for text, sample in zip(texts, samples * (n // request.n), strict=True):
            text.text, text.token_ids = sample.text, sample.token_ids
            # what follows a schema has no reasoning in it
            text.answer_start = (
                0 if request.final.schema else reasoning.answer_start(sample.text, opened=opened)
            )
            text.finish_reason = sample.finish_reason
            text.logprob, text.certainty = sample.logprob, sample.certainty
            text.tokens = sample.tokens
            text.seconds = time.monotonic() - started
            text.first_token_s, text.token_s = sample.first_token_s, sample.token_s
        self.texts += texts
        return texts

    def writer_of(self, parent: Text | None) -> tuple[str, Generate]:
        """Who writes what follows `parent` (None: a first answer): the model's name, and its engine."""
        return self.writer, self.generate

    def request(self, turn: str, parent: Text | None, n: int, logprob: bool) -> Request:
        """What the engine is asked for a turn's texts."""
        sampling = self.sampling.initial if turn == ANSWER else self.sampling.correction
        seed = request_seed(*self.identity, place(turn, parent))
        # Greedy texts are all the same: one is generated and stands for all.
        count = n if sampling.temperature > 0 else 1
        return Request(sampling, count, seed, logprob or self.scores is not None, self.scores == "certainty")

    async def rendered(self, messages: Sequence[Message]) -> list[int]:
        """`render`, where and when it suits."""
        return self.render(messages)

    def render(self, messages: Sequence[Message]) -> list[int]:
        """Token ids (T,) of a prompt.

        Raises:
            PromptTooLongError: more than `max_prompt_tokens`; seen by the number of characters where that
                is enough, since tokenizing takes a while.
        """
        limit = self.max_prompt_tokens
        characters = sum(len(content(message)) for message in messages)
        if characters > limit * self.chat.longest_token:
            raise PromptTooLongError(limit, f"at least {characters // self.chat.longest_token}")
        token_ids = self.chat.render(messages, add_generation_prompt=True)
        if len(token_ids) > limit:
            raise PromptTooLongError(limit, len(token_ids))
        return token_ids


def place(turn: str, parent: Text | None) -> str:
    """Where in a trace a request stands: `initial`, `correction/{i}`, `correction/{i}/round/{k}`, ...

    These strings seed requests, so they stay as they are. A chain of several turns names each of them.
    """
    if parent is None:
        return "initial" if turn == ANSWER else turn
    root, *between = parent.lineage
    if any(text.turn != turn or text.sample for text in between):
        return f"{turn}/{root.sample}" + "".join(f"/{text.turn}/{text.sample}" for text in between)
    return f"{turn}/{root.sample}" + (f"/round/{len(between)}" if between else "")


def empty(texts: Sequence[Text]) -> str | None:
    """An error text that counts empty generations, or None."""
    found = sum(not text.text.strip() for text in texts)
    return f"empty generation: {found} of this question's texts" if found else None
