"""A question from arrival to answer: limits, a place in the queue, a version, the policy, the reply. Knows no
HTTP.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, TypeVar

from jinja2 import TemplateError

from stasc_ray import config, store
from stasc_ray.generation.asking import Asker, Generate, OnPiece, PromptTooLongError
from stasc_ray.generation.engines import EngineDiedError
from stasc_ray.generation.samples import (
    NOTHING_MORE,
    Load,
    RefusedError,
    Request,
    Sample,
)
from stasc_ray.recipes import recipe_of
from stasc_ray.recipes.policies import answer
from stasc_ray.recipes.recipe import gather
from stasc_ray.recipes.trace import Text, depth
from stasc_ray.serving.asked import Asked, checked
from stasc_ray.serving.conversation import in_context
from stasc_ray.serving.doors import Admission
from stasc_ray.serving.errors import ApiError, invalid
from stasc_ray.serving.follow import Loaded, Versions
from stasc_ray.serving.keys import KeyRing
from stasc_ray.serving.monitor import Monitor
from stasc_ray.serving.reply import make_reply
from stasc_ray.serving.schemas import CorrectRequest, CorrectResponse
from stasc_ray.tasks.chat import Message

LOG = logging.getLogger("ray.serve")
T = TypeVar("T")
LOAD_S = 1.0
"""For an engine to say how busy it is."""
Charge = Callable[[int], Callable[[int], None]]
"""Gets the most tokens that a request may write, returns what gets those it wrote (`KeyRing.charge`)."""
Emit = Callable[[str, dict[str, Any]], None]
"""Gets (event, data) while a question is answered: `start`, then `token` for each piece of text."""


@dataclass
class Spent:
    """What a request has cost so far."""

    tokens: int = 0
    waited_s: float = 0.0
    """Without an engine: none was up."""


class Service:
    """One replica's work."""

    def __init__(
        self, run: store.RunFolder, settings: config.Config, versions: Versions, monitor: Monitor
    ) -> None:
        self.run, self.settings, self.versions, self.monitor = run, settings, versions, monitor
        self.admission = Admission(settings.serve.max_in_flight, settings.serve.max_queue)
        self.recipe = recipe_of(settings.algorithm.recipe)

    async def correct(
        self, request: CorrectRequest, request_id: str, charge: Charge, emit: Emit | None = None
    ) -> CorrectResponse:
        """Answer one question.

        Args:
            charge: holds tokens for the request, and is told how many it wrote.

        Raises:
            ApiError: 400 a limit of the config or too long, 409 version not loaded, 429 busy, 503 engine
                died, 504 too late.
        """
        asked = checked(request, self.settings, self.recipe)
        arrived = time.monotonic()
        limit_s = self.settings.serve.request_timeout_s
        charged, spent = charge(asked.most_tokens), Spent()
        try:
            async with asyncio.timeout(limit_s), self.admission.place(request.samples):
                self.monitor.queue_s.observe(time.monotonic() - arrived)
                return await self._answer(request, asked, request_id, emit, arrived, spent)
        except TimeoutError:
            # no fault of the request: another may be answered
            if why := self.versions.why_not_ready():
                raise _unavailable(f"no engine is up: {why}") from None
            if spent.waited_s > limit_s / 2:
                message = f"no engine was up for {spent.waited_s:.0f} of the {limit_s:g} s that it may take"
                raise _unavailable(f"{message}; one is now, try again") from None
            raise ApiError(
                504,
                "timeout_error",
                f"not answered within serve.request_timeout_s = {limit_s:g} s; ask for less, or later",
            ) from None
        finally:
            charged(spent.tokens)

    def last_round(self, request: CorrectRequest) -> int | None:
        """The round whose text is the answer, if that is known before it is written."""
        rounds = checked(request, self.settings, self.recipe).final_rounds
        return rounds[0] if len(rounds) == 1 and request.samples == 1 else None

    async def _answer(
        self,
        request: CorrectRequest,
        asked: Asked,
        request_id: str,
        emit: Emit | None,
        arrived: float,
        spent: "Spent",
    ) -> CorrectResponse:
        """On one version; once more, on the next engine, if one died before a token was sent."""
        sent, queued_s = False, time.monotonic() - arrived

        def on_text(text: Text, piece: str) -> None:
            nonlocal sent
            sent = True
            answers = [one for one in text.lineage[len(asked.given) :] if one.turn in self.recipe.answers]
            # what is said about a given answer is for all samples
            sample = answers[0].sample if answers else 0
            place = {"sample": sample, "turn": text.turn, "round": depth(text, self.recipe.answers)}
            assert emit is not None, "only then is on_text passed on"
            emit("token", {**place, "text": piece})

        for last_attempt in (False, True):
            began = time.monotonic()
            async with self.versions.hold(request.version) as loaded:
                spent.waited_s += time.monotonic() - began
                started = {"id": request_id, "question": request.question, "model_version": loaded.version}
                start = cache(partial(emit, "start", started)) if emit else None  # once
                first = self.versions.writes_first(loaded)
                ask = _Asker(
                    request,
                    asked,
                    self.recipe.answers,
                    (first.version, self._generate(first, start)),
                    loaded.engine.chat,
                    self._generate(loaded, start),
                    sampling=asked.sampling,
                    identity=(asked.seed,),
                    writer=loaded.version,
                    max_prompt_tokens=asked.max_prompt_tokens,
                    given=asked.given,
                    on_text=on_text if emit else None,
                )
                ask.scores, broken_off = asked.scores, False
                try:
                    await self._ask(asked, ask, loaded)
                except EngineDiedError:
                    if sent or last_attempt:
                        break
                    self.monitor.retries.inc()
                except asyncio.CancelledError:
                    broken_off = True
                    raise
                except ApiError:  # a later turn: what other samples were writing went to the client
                    broken_off = sent
                    raise
                else:
                    reply = make_reply(
                        request,
                        asked,
                        ask.texts,
                        self.settings,
                        request_id=request_id,
                        version=loaded.version,
                        queued_s=queued_s,
                        total_s=time.monotonic() - arrived,
                    )
                    self._note(asked, ask.texts[len(asked.given) :], reply)
                    return reply
                finally:
                    written = sum(len(text.token_ids) for text in ask.texts[len(asked.given) :])
                    # of a turn that was broken off nobody knows how much was written: the client may have it
                    spent.tokens += asked.most_tokens if broken_off else written
        raise _unavailable("the engine died; another is starting, try again")

    async def _ask(self, asked: Asked, ask: Asker, loaded: Loaded) -> None:
        """All turns; the texts are in `ask`.

        Raises:
            ApiError: 400, the model cannot be asked this.
        """
        try:
            if asked.final != NOTHING_MORE:  # before the first turn, which would be for nothing
                await self._reported(
                    loaded, loaded.engine.check(Request(asked.sampling.correction, 1, 0, final=asked.final))
                )
            await answer(asked.policy, self.recipe, asked.question, ask, asked.plan, asked.given or None)
        except RefusedError as error:
            final = asked.final
            param = "response_format" if final.schema else "logit_bias" if final.logit_bias else None
            raise invalid(param, str(error)[:500]) from None
        except PromptTooLongError as error:
            raise invalid("question", str(error), code="context_length_exceeded") from None
        except TemplateError as error:
            raise invalid("messages", f"the chat template refuses these turns: {error}") from None

    def _generate(self, loaded: Loaded, start: Callable[[], None] | None) -> Generate:
        """`Asker`'s way to a version's engine, which writes one sample a call; `start` is called before."""

        async def generate(token_ids: list[int], request: Request, on_piece: OnPiece | None) -> list[Sample]:
            if start:
                start()
            # vLLM gives the samples of one request the seeds s, s + 1, ...: so do these.
            samples = (
                loaded.engine.generate(
                    token_ids,
                    replace(request, n=1, seed=request.seed + number),
                    on_piece and partial(on_piece, number),
                )
                for number in range(request.n)
            )
            return await self._reported(loaded, gather(samples))

        return generate

    async def _reported(self, loaded: Loaded, work: Awaitable[T]) -> T:
        """What an engine gives; its death is told to whoever replaces it."""
        try:
            return await work
        except EngineDiedError as error:
            self.versions.report_dead(loaded, str(error))
            raise

    def _note(self, asked: Asked, written: Sequence[Text], reply: CorrectResponse) -> None:
        """Count a reply, and log its texts if the config says so."""
        monitor = self.monitor
        for text in written:
            monitor.turns.labels(text.turn).observe(text.seconds)
            if text.first_token_s is not None:
                monitor.first_token_s.labels(text.turn).observe(text.first_token_s)
            if text.token_s is not None:
                monitor.token_s.labels(text.turn).observe(text.token_s)
        if asked.plan.rounds and asked.plan.n_corrections:
            monitor.corrected.labels(str(reply.changed).lower()).inc()
        monitor.tokens.labels("prompt").inc(reply.usage.prompt_tokens)
        monitor.tokens.labels("completion").inc(reply.usage.completion_tokens)
        if self.settings.serve.log_texts:
            answers = [reply.initial_answer, *reply.corrections]
            shown = {"request_id": reply.id, "question": reply.question, "answers": answers}
            LOG.info(
                f"texts {shown}",
                extra={"event": "texts", **{f"stasc_{name}": text for name, text in shown.items()}},
            )

    async def refresh_gauges(self, keys: KeyRing | None) -> None:
        """Bring the gauges up to date, before they are read."""
        monitor, versions = self.monitor, self.versions
        loaded = versions.loaded  # of versions that share an engine the newest stands for it
        engines = [
            one
            for number, one in enumerate(loaded)
            if not any(one.engine.shares_with(before.engine) for before in loaded[:number])
        ]
        loads = await asyncio.gather(*map(_load, engines))
        for gauge in (monitor.engine_running, monitor.engine_waiting, monitor.kv_cache):
            gauge.clear()
        for one, load in zip(engines, loads, strict=True):
            if load:
                monitor.engine_running.labels(one.version).set(load.running)
                monitor.engine_waiting.labels(one.version).set(load.waiting)
                monitor.kv_cache.labels(one.version).set(load.kv_cache_usage)
        monitor.in_flight.set(self.admission.in_flight)
        monitor.queued.set(self.admission.queued)
        monitor.engine_starts.set(versions.engine_starts)
        monitor.keys_unreadable.set(bool(keys and keys.problem))
        monitor.version.clear()
        if versions.active:
            monitor.version.labels(versions.active.version).set(1)


class _Asker(Asker):
    """Asks in the context of a conversation; `first` writes the first answers: a version's name, and its
    engine.
    """

    def __init__(
        self,
        asked_for: CorrectRequest,
        asked: Asked,
        answers: Sequence[str],
        first: tuple[str, Generate],
        *arguments: Any,
        **more: Any,
    ) -> None:
        super().__init__(*arguments, **more)
        self._context, self._most = asked_for.context, asked_for.max_answer_tokens
        self._final, self._rounds, self._answers = asked.final, asked.final_rounds, answers
        self._first = first

    def writer_of(self, parent: Text | None) -> tuple[str, Generate]:
        """The version, of what follows a first answer."""
        return super().writer_of(parent) if parent else self._first

    def request(self, turn: str, parent: Text | None, n: int, logprob: bool) -> Request:
        """With what is asked of the final answer, if this turn may write it."""
        found = super().request(turn, parent, n, logprob)
        before = sum(text.turn in self._answers for text in (parent.lineage if parent else ()))
        if turn not in self._answers or before not in self._rounds:
            return found
        bound = {"max_tokens": self._most or found.sampling.max_tokens}
        return replace(found, sampling=found.sampling.model_copy(update=bound), final=self._final)

    async def rendered(self, messages: Sequence[Message]) -> list[int]:
        """In a thread: a long prompt holds nobody else up."""
        return await asyncio.to_thread(self.render, in_context(messages, self._context))


def _unavailable(message: str) -> ApiError:
    return ApiError(503, "unavailable_error", message, headers={"Retry-After": "5"})


async def _load(loaded: Loaded) -> Load | None:
    """How busy a version's engine is; None if it does not say."""
    with contextlib.suppress(EngineDiedError, TimeoutError):
        async with asyncio.timeout(LOAD_S):
            return await loaded.engine.load()
