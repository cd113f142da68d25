"""A question from arrival to answer: limits, a place in the queue, a version, the policy, the reply. Knows no
HTTP.
"""

import asyncio
import contextlib
import logging
import secrets
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
    SEED_SPACING,
    FinalTurn,
    Load,
    RefusedError,
    Request,
    Sample,
)
from stasc_ray.recipes import recipe_of
from stasc_ray.recipes.policies import POLICIES, answer, final_answer, policies, ranked
from stasc_ray.recipes.recipe import Plan, Question, gather
from stasc_ray.recipes.trace import ANSWER, Text, TokenLogprob, depth, finals, roots
from stasc_ray.serving.conversation import in_context
from stasc_ray.serving.doors import Admission
from stasc_ray.serving.errors import ApiError, invalid
from stasc_ray.serving.follow import Loaded, Versions
from stasc_ray.serving.keys import KeyRing
from stasc_ray.serving.monitor import Monitor
from stasc_ray.serving.schemas import (
    CompletionDetails,
    CorrectRequest,
    CorrectResponse,
    End,
    Finish,
    LikelyToken,
    Timings,
    Token,
    Turn,
    Usage,
    Vote,
)
from stasc_ray.tasks import reasoning
from stasc_ray.tasks.chat import Message

LOG = logging.getLogger("ray.serve")
T = TypeVar("T")
LOAD_S = 1.0
"""For an engine to say how busy it is."""
Charge = Callable[[int], Callable[[int], None]]
"""Gets the most tokens that a request may write, returns what gets those it wrote (`KeyRing.charge`)."""
Emit = Callable[[str, dict[str, Any]], None]
"""Gets (event, data) while a question is answered: `start`, then `token` for each piece of text."""


@dataclass(frozen=True)
class Asked:
    """A request whose limits were checked."""

    question: Question
    given: Sequence[Text]
    plan: Plan
    policy: str
    sampling: config.SamplingPerTurn
    seed: int
    max_prompt_tokens: int
    final: FinalTurn
    final_rounds: range
    """Rounds whose text may be the final answer, 0 for the first answer."""

    def most_tokens(self, samples: int) -> int:
        """That the answer, its corrections and what leads to them may have."""
        rounds, sampling = self.plan.rounds if self.plan.n_corrections else 0, self.sampling
        return samples * (sampling.initial.max_tokens + rounds * sampling.correction.max_tokens)


@dataclass
class Spent:
    """Tokens that a request has cost so far."""

    tokens: int = 0


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
        asked = self._asked(request)
        arrived = time.monotonic()
        limit_s = self.settings.serve.request_timeout_s
        charged, spent = charge(asked.most_tokens(request.samples)), Spent()
        try:
            async with asyncio.timeout(limit_s), self.admission.place(request.samples):
                self.monitor.queue_s.observe(time.monotonic() - arrived)
                return await self._answer(request, asked, request_id, emit, arrived, spent)
        except TimeoutError:
            raise ApiError(
                504,
                "timeout_error",
                f"not answered within serve.request_timeout_s = {limit_s:g} s; ask for less, or later",
            ) from None
        finally:
            charged(spent.tokens)

    def last_round(self, request: CorrectRequest) -> int | None:
        """The round whose text is the answer, if that is known before it is written."""
        rounds = self._asked(request).final_rounds
        return rounds[0] if len(rounds) == 1 and request.samples == 1 else None

    def _final_rounds(self, policy: str, plan: Plan) -> range:
        last = plan.rounds if plan.n_corrections else 0
        if policy not in POLICIES or self.recipe.verdicts:  # it may end with any answer
            return range(last + 1)
        return range(min(1, last) if policy == "until_unchanged" else last, last + 1)

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
            async with self.versions.hold(request.version) as loaded:
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
                broken_off = False
                try:
                    await self._ask(asked, ask, loaded)
                except EngineDiedError:
                    if sent or last_attempt:
                        break
                    self.monitor.retries.inc()
                except asyncio.CancelledError:
                    broken_off = True
                    raise
                else:
                    total_s = time.monotonic() - arrived
                    return self._reply(
                        request, asked, request_id, loaded.version, ask.texts, queued_s, total_s
                    )
                finally:
                    written = sum(len(text.token_ids) for text in ask.texts[len(asked.given) :])
                    # of a turn that was broken off nobody knows how much was written: the client may have it
                    spent.tokens += asked.most_tokens(request.samples) if broken_off else written
        headers = {"Retry-After": "5"}
        raise ApiError(
            503, "unavailable_error", "the engine died; another is starting, try again", headers=headers
        )

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
            param = "response_format" if asked.final.schema else "logit_bias"
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

    def _asked(self, request: CorrectRequest) -> Asked:
        serve, evaluation = self.settings.serve, self.settings.evaluation
        for name, limit in {
            "rounds": serve.max_rounds,
            "samples": serve.max_samples,
            "max_tokens": serve.max_output_tokens,
            "max_answer_tokens": serve.max_output_tokens,
        }.items():
            value = getattr(request, name)
            if value is not None and value > limit:
                raise invalid(name, f"expected at most {limit}, found {value}")
        known = policies(self.recipe)
        if request.policy not in (None, *known):
            raise invalid("policy", f"expected one of {', '.join(known)}, found {request.policy!r}")
        rounds = evaluation.rounds if request.rounds is None else request.rounds
        corrects = self.settings.algorithm.n_corrections > 0
        if request.initial_answer is not None and not (rounds and corrects):
            what = (
                "0 rounds"
                if corrects
                else f"recipe {self.settings.algorithm.recipe!r}, which corrects nothing"
            )
            raise invalid(
                "rounds",
                f"expected at least 1 with an initial_answer, found {what}: nothing would be left to do",
            )
        if request.top_logprobs and not request.logprobs:
            raise invalid("top_logprobs", "expected logprobs = true with it")
        if len(request.choices) == 1:
            raise invalid("choices", "expected at least 2 choices or none, found 1")
        sampling = self._sampling(request)
        branches = sampling.initial if request.initial_answer is None else sampling.correction
        if request.samples > 1 and branches.temperature == 0:
            raise invalid(
                "samples",
                "expected a temperature above 0 with several samples: greedy answers are all the same",
            )
        said = request.initial_answer
        start = reasoning.answer_start(said or "")
        given = () if said is None else (Text(ANSWER, said, writer="user", answer_start=start),)
        longest = self.settings.engine.max_model_len_tokens - 1
        plan = Plan(
            prompts=self.settings.prompts,
            section=self.settings.algorithm,
            n_initial=request.samples,
            n_corrections=(request.samples if given else 1) if corrects else 0,
            rounds=rounds,
        )
        policy = request.policy or evaluation.policy or self.recipe.policy
        return Asked(
            question={
                "question": request.question,
                "documents": request.documents,
                "choices": request.choices,
            },
            given=given,
            plan=plan,
            policy=policy,
            sampling=sampling,
            seed=secrets.randbits(62) // SEED_SPACING * SEED_SPACING
            if request.seed is None
            else request.seed,
            max_prompt_tokens=min(serve.max_prompt_tokens or longest, longest),
            final=FinalTurn(
                stop=tuple(filter(None, request.stop)),  # an empty one stops nothing
                schema=request.response_format and request.response_format.as_schema(),
                logit_bias=request.logit_bias,
                top_logprobs=request.top_logprobs if request.logprobs else None,
            ),
            final_rounds=self._final_rounds(policy, plan),
        )

    def _sampling(self, request: CorrectRequest) -> config.SamplingPerTurn:
        names = config.Sampling.model_fields.keys() & CorrectRequest.model_fields.keys()
        update = {name: value for name in names if (value := getattr(request, name)) is not None}
        turns = {
            turn: values.model_copy(update=update)
            for turn, values in (
                ("initial", self.settings.sampling.initial),
                ("correction", self.settings.sampling.correction),
            )
        }
        return config.SamplingPerTurn(**turns)

    def _reply(
        self,
        request: CorrectRequest,
        asked: Asked,
        request_id: str,
        version: str,
        texts: Sequence[Text],
        queued_s: float,
        total_s: float,
    ) -> CorrectResponse:
        answers = self.recipe.answers
        finished = [text for root in roots(texts) for text in finals(texts, root, answers)]
        votes = ranked(finished, request.choices, self.settings.prompts.answer_marker)
        ends = {text: self._end(request, text) for text in finished}
        chosen = votes[0][0]
        first, *corrections = (text for text in chosen.lineage if text.turn in answers)
        written = [text for text in texts if text not in asked.given]
        usage = sum(text.prompt_tokens for text in written), sum(len(text.token_ids) for text in written)
        final = sum(len(text.token_ids) for text in ends)
        seconds = {
            "initial": max(text.root.seconds for text in texts),
            "correction": max(sum(text.seconds for text in one.lineage[1:]) for one in texts),
        }
        self._count(asked, written, usage, ends[chosen].changed)
        if self.settings.serve.log_texts:
            shown = {
                "request_id": request_id,
                "question": request.question,
                "answers": [first.text, *(text.text for text in corrections)],
            }
            LOG.info(
                f"texts {shown}",
                extra={"event": "texts", **{f"stasc_{name}": text for name, text in shown.items()}},
            )
        after = [text for text in texts if text.parent is chosen]  # a verdict that ended the chain
        return CorrectResponse(
            id=request_id,
            question=request.question,
            initial_answer=first.text,
            corrections=[text.text for text in corrections],
            answer=chosen.text,
            final_answer=ends[chosen].final_answer,
            changed=ends[chosen].changed,
            turns=[self._turn(text, given=text in asked.given) for text in (*chosen.lineage, *after)],
            finish_reason=ends[chosen].finish_reason,
            model_version=version,
            initial_version=None if asked.given else first.writer,
            votes=[
                Vote(answer=text.text, final_answer=ends[text].final_answer, votes=count)
                for text, count in votes
            ]
            if request.samples > 1
            else None,
            ends=list(ends.values()),
            usage=Usage(
                prompt_tokens=usage[0],
                completion_tokens=usage[1],
                total_tokens=sum(usage),
                completion_tokens_details=CompletionDetails(reasoning_tokens=max(0, usage[1] - final)),
            ),
            timings_ms=Timings(
                queue=round(queued_s * 1000, 1),
                initial=round(seconds["initial"] * 1000, 1),
                correction=round(seconds["correction"] * 1000, 1),
                total=round(total_s * 1000, 1),
            ),
        )

    def _end(self, request: CorrectRequest, text: Text) -> End:
        first = next(one for one in text.lineage if one.turn in self.recipe.answers)
        letter, final = final_answer(text.answer, request.choices, self.settings.prompts.answer_marker)
        return End(
            answer=text.text,
            final_answer=letter or final,
            changed=text.answer.strip() != first.answer.strip(),  # as evaluation.metrics counts it
            finish_reason=_finish_reason(text),
            logprobs=[_token(token) for token in text.tokens] if request.logprobs else None,
        )

    def _turn(self, text: Text, *, given: bool) -> Turn:
        verdict = text.turn in self.recipe.verdicts
        return Turn(
            turn=text.turn,
            text=text.text,
            finish_reason=None if given else _finish_reason(text),
            says_right=self.recipe.says_right(self.settings.algorithm, text.answer) if verdict else None,
        )

    def _count(self, asked: Asked, written: Sequence[Text], usage: tuple[int, int], changed: bool) -> None:
        monitor = self.monitor
        for text in written:
            monitor.turns.labels(text.turn).observe(text.seconds)
            if text.first_token_s is not None:
                monitor.first_token_s.labels(text.turn).observe(text.first_token_s)
            if text.token_s is not None:
                monitor.token_s.labels(text.turn).observe(text.token_s)
        if asked.plan.rounds and asked.plan.n_corrections:
            monitor.corrected.labels(str(changed).lower()).inc()
        for kind, count in zip(("prompt", "completion"), usage, strict=True):
            monitor.tokens.labels(kind).inc(count)

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


def _finish_reason(text: Text) -> Finish:
    return "length" if text.finish_reason == "length" else "stop"


def _token(token: TokenLogprob) -> Token:
    likeliest = [LikelyToken(token=one, logprob=logprob) for one, logprob in token.likeliest]
    return Token(token=token.token, logprob=token.logprob, top_logprobs=likeliest)


async def _load(loaded: Loaded) -> Load | None:
    """How busy a version's engine is; None if it does not say."""
    with contextlib.suppress(EngineDiedError, TimeoutError):
        async with asyncio.timeout(LOAD_S):
            return await loaded.engine.load()
