"""A question from arrival to answer: limits, a place in the queue, a version, both turns, the reply. Knows no HTTP."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable
from typing import Any

from stasc_ray import config, store
from stasc_ray.generation.samples import SEED_SPACING
from stasc_ray.serving.correcting import Asker, Chain, Plan, Turn, vote
from stasc_ray.serving.doors import Admission
from stasc_ray.serving.engines import EngineDiedError
from stasc_ray.serving.errors import ApiError, invalid
from stasc_ray.serving.follow import Loaded, Versions
from stasc_ray.serving.monitor import Monitor
from stasc_ray.serving.published import read_pin
from stasc_ray.serving.schemas import (
    CorrectRequest,
    CorrectResponse,
    RunSummary,
    RunVersion,
    Timings,
    Usage,
    Vote,
)

LOG = logging.getLogger("ray.serve")
Emit = Callable[[str, dict[str, Any]], None]
"""Gets (event, data) while a question is answered: `start`, then `token` for each piece of text."""


class Service:
    """One replica's work."""

    def __init__(
        self, run: store.RunFolder, settings: config.Config, versions: Versions, monitor: Monitor
    ) -> None:
        self.run, self.settings, self.versions, self.monitor = run, settings, versions, monitor
        self.admission = Admission(settings.serve.max_in_flight, settings.serve.max_queue)

    async def correct(
        self, request: CorrectRequest, request_id: str, emit: Emit | None = None
    ) -> CorrectResponse:
        """Answer one question.

        Raises:
            ApiError: 422 a limit of the config, 413 too long, 409 version not loaded, 429 busy, 503 engine died, 504 too late.
        """
        plan = self._plan(request)
        arrived = time.monotonic()
        limit_s = self.settings.serve.request_timeout_s
        try:
            async with asyncio.timeout(limit_s), self.admission.place():
                self.monitor.queue_s.observe(time.monotonic() - arrived)
                return await self._answer(request, plan, request_id, emit, arrived)
        except TimeoutError:
            raise ApiError(
                504,
                "timeout_error",
                f"not answered within serve.request_timeout_s = {limit_s:g} s; ask for less, or later",
            ) from None

    async def _answer(
        self, request: CorrectRequest, plan: Plan, request_id: str, emit: Emit | None, arrived: float
    ) -> CorrectResponse:
        """On one version; once more, on the next engine, where one died before a token was sent."""
        sent = False

        def on_text(sample: int, turn: Turn, number: int, text: str) -> None:
            nonlocal sent
            sent = True
            assert emit is not None, "only then is on_text passed on"
            emit("token", {"sample": sample, "turn": turn, "round": number, "text": text})

        queued_s = time.monotonic() - arrived
        for last_attempt in (False, True):
            async with self.versions.hold(request.version) as loaded:
                asker = Asker(
                    plan,
                    self.settings.prompts,
                    loaded.engine.tokenizer,
                    loaded.engine.generate,
                    on_text if emit else None,
                )
                asker.first_prompt()  # too long is said before anything is sent
                if emit:
                    emit(
                        "start",
                        {"id": request_id, "question": request.question, "model_version": loaded.version},
                    )
                try:
                    chains = await asker.chains()
                except EngineDiedError:
                    self.versions.report_dead(loaded)
                    if sent or last_attempt:
                        break
                    self.monitor.retries.inc()
                else:
                    return self._reply(
                        request, plan, request_id, loaded, chains, queued_s, time.monotonic() - arrived
                    )
        headers = {"Retry-After": "5"}
        raise ApiError(
            503, "unavailable_error", "the engine died; another is starting, try again", headers=headers
        )

    def _plan(self, request: CorrectRequest) -> Plan:
        serve, sampling = self.settings.serve, self.settings.sampling
        for name, limit in {
            "rounds": serve.max_rounds,
            "samples": serve.max_samples,
            "max_tokens": serve.max_output_tokens,
        }.items():
            value = getattr(request, name)
            if value is not None and value > limit:
                raise invalid(name, f"expected at most {limit}, found {value}")
        if request.rounds == 0 and request.initial_answer is not None:
            raise invalid(
                "rounds", "expected at least 1 with an initial_answer, found 0: nothing would be left to do"
            )
        if len(request.choices) == 1:
            raise invalid("choices", "expected at least 2 choices or none, found 1")
        given = {name: getattr(request, name) for name in ("temperature", "top_p", "max_tokens")}
        update = {name: value for name, value in given.items() if value is not None}
        turns = config.SamplingPerTurn(
            initial=sampling.initial.model_copy(update=update),
            correction=sampling.correction.model_copy(update=update),
        )
        if request.samples > 1 and turns.correction.temperature == 0 and turns.initial.temperature == 0:
            raise invalid(
                "samples",
                "expected a temperature above 0 with several samples: greedy answers are all the same",
            )
        longest = self.settings.engine.max_model_len_tokens - 1
        return Plan(
            row={"question": request.question, "documents": request.documents, "choices": request.choices},
            initial_answer=request.initial_answer,
            rounds=request.rounds,
            samples=request.samples,
            sampling=turns,
            seed=secrets.randbits(62) // SEED_SPACING * SEED_SPACING
            if request.seed is None
            else request.seed,
            max_prompt_tokens=min(serve.max_prompt_tokens or longest, longest),
        )

    def _reply(
        self,
        request: CorrectRequest,
        plan: Plan,
        request_id: str,
        loaded: Loaded,
        chains: list[Chain],
        queued_s: float,
        total_s: float,
    ) -> CorrectResponse:
        chosen, votes = vote(chains, request.choices, self.settings.prompts.answer_marker)
        initial, *corrections = chosen.texts
        changed = chosen.texts[-1].strip() != initial.strip()  # as evaluation.metrics counts it
        prompt_tokens, completion_tokens = (
            sum(getattr(c, n) for c in chains) for n in ("prompt_tokens", "completion_tokens")
        )
        slowest = {
            name: max(getattr(chain, name) for chain in chains) for name in ("initial_s", "correction_s")
        }
        self._count(request, plan, slowest, prompt_tokens, completion_tokens, changed)
        if self.settings.serve.log_texts:
            texts = {"request_id": request_id, "question": request.question, "answers": chosen.texts}
            LOG.info(
                f"texts {texts}",
                extra={"event": "texts", **{f"stasc_{name}": text for name, text in texts.items()}},
            )
        return CorrectResponse(
            id=request_id,
            question=request.question,
            initial_answer=initial,
            corrections=corrections,
            answer=chosen.texts[-1],
            changed=changed,
            finish_reason="length" if chosen.finish_reason == "length" else "stop",
            model_version=loaded.version,
            votes=[Vote(answer=answer, votes=count) for answer, count in votes]
            if request.samples > 1
            else None,
            usage=Usage(
                prompt_tokens=prompt_tokens,
                completion_tokens=completion_tokens,
                total_tokens=prompt_tokens + completion_tokens,
            ),
            timings_ms=Timings(
                queue=round(queued_s * 1000, 1),
                initial=round(slowest["initial_s"] * 1000, 1),
                correction=round(slowest["correction_s"] * 1000, 1),
                total=round(total_s * 1000, 1),
            ),
        )

    def _count(
        self,
        request: CorrectRequest,
        plan: Plan,
        slowest: dict[str, float],
        prompt: int,
        completion: int,
        changed: bool,
    ) -> None:
        monitor = self.monitor
        if plan.initial_answer is None:
            monitor.turns.labels("initial").observe(slowest["initial_s"])
        if request.rounds:
            monitor.turns.labels("correction").observe(slowest["correction_s"] / request.rounds)
            monitor.corrected.labels(str(changed).lower()).inc()
        monitor.tokens.labels("prompt").inc(prompt)
        monitor.tokens.labels("completion").inc(completion)

    def refresh_gauges(self) -> None:
        """Bring the gauges up to date, before they are read."""
        monitor, versions = self.monitor, self.versions
        monitor.in_flight.set(self.admission.in_flight)
        monitor.queued.set(self.admission.queued)
        monitor.engine_starts.set(versions.engine_starts)
        monitor.version.clear()
        if versions.active:
            monitor.version.labels(versions.active.version).set(1)

    def summary(self) -> RunSummary:
        """The run, its versions and what they scored."""
        versions, settings = self.versions, self.settings
        active = versions.active.version if versions.active else None
        loaded, refused, latest = (
            {one.version for one in versions.loaded},
            versions.reasons(),
            self.run.latest(),
        )
        return RunSummary(
            name=settings.name,
            variant=settings.algorithm.variant,
            model=settings.model.path,
            preset=settings.prompts.preset,
            active=active,
            latest=latest,
            pinned=read_pin(self.run.path),
            versions=[
                RunVersion(
                    version=(name := manifest["version"]),
                    iteration=manifest["iteration"],
                    created=manifest["created"],
                    dev=_scores(manifest, "dev"),
                    test=_scores(manifest, "test"),
                    loaded=name in loaded,
                    active=name == active,
                    latest=name == latest,
                    refused=refused.get(name),
                )
                for manifest in self.manifests()
            ],
            limits={
                "max_rounds": settings.serve.max_rounds,
                "max_samples": settings.serve.max_samples,
                "max_output_tokens": settings.serve.max_output_tokens,
                "request_timeout_s": settings.serve.request_timeout_s,
            },
            sampling={
                turn: {
                    "temperature": values.temperature,
                    "top_p": values.top_p,
                    "max_tokens": values.max_tokens,
                }
                for turn, values in (
                    ("initial", settings.sampling.initial),
                    ("correction", settings.sampling.correction),
                )
            },
        )

    def manifests(self) -> list[dict[str, Any]]:
        """Published versions, oldest first; none while a manifest cannot be read."""
        with contextlib.suppress(OSError, ValueError):
            return self.run.versions()
        return []


def _scores(manifest: dict[str, Any], split: str) -> dict[str, float]:
    found = {name: manifest.get("metrics", {}).get(f"evaluation/{split}/{name}") for name in ("r_y1", "r_y2")}
    return {name: value for name, value in found.items() if value is not None}
