"""The replica's side of an engine (generation/engines.py): its actor belongs to the replica that started it.

An engine per process gives its memory back when it goes, can die alone, and shares no vLLM state with the
next. Ray ends actors whose owner is gone, so the actor ends with its replica.
"""

import asyncio
import copy
import time
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from stasc_ray import config
from stasc_ray.generation import canary
from stasc_ray.generation.engines import EngineActor, EngineDiedError, last_line
from stasc_ray.generation.samples import Adapter, Load, Request, Sample
from stasc_ray.generation.spec import EngineSpec
from stasc_ray.tasks.chat import Chat

PROBE = Request(config.Sampling(temperature=0.0, max_tokens=1), 1, 0)


@dataclass
class Pulse:
    """What shows that an engine lives, the same for all its handles (monotonic seconds)."""

    moved_at: float = field(default_factory=time.monotonic)
    """When it last gave a token."""
    asked_at: float | None = None
    """Since when a probe waits for one."""


class EngineHandle:
    """The replica's side of an engine: same calls, with cancellation passed on and death as one error.

    Versions that are adapters on one model share an engine: `with_adapter` gives each its handle.
    """

    def __init__(
        self,
        model: str,
        spec: EngineSpec,
        chat: Chat,
        adapter: Adapter | None = None,
    ) -> None:
        import ray
        from ray.util import get_current_placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        # The replica's CPUs are the engine's too.
        options: dict[str, Any] = {"num_cpus": 0, "num_gpus": spec.gpus}
        options |= {"max_concurrency": 10_000, "max_restarts": 0}
        if group := get_current_placement_group():  # the replica's own, on its node
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group)
        self.model = model
        self.chat = chat
        self.adapter = adapter
        self._actor: Any = ray.remote(EngineActor).options(**options).remote(model, spec)
        self._handles = [self]  # of this engine; the last one to go ends it
        self.pulse = Pulse()

    def with_adapter(self, adapter: Adapter | None) -> "EngineHandle":
        """A further handle of the same engine, whose requests name `adapter`."""
        other = copy.copy(self)
        other.adapter = adapter
        self._handles.append(other)
        return other

    async def load_adapter(self) -> None:
        """Read this handle's adapter, if it has one; ValueError if vLLM cannot."""
        if self.adapter:
            await self._result(self._actor.load_adapter.remote(self.adapter))

    async def pid(self) -> int:
        """Process id of the engine, once it is up.

        Raises (as all the others):
            EngineDiedError: it is gone, or never started; the message says why.
        """
        return await self._result(self._actor.pid.remote())

    async def generate(
        self, token_ids: list[int], request: Request, on_text: Callable[[str], None] | None = None
    ) -> Sample:
        """One sample; `on_text` gets it in pieces as it comes."""
        call = uuid.uuid4().hex
        try:
            if on_text is None:
                found = await self._result(
                    self._actor.generate.remote(call, token_ids, request, self.adapter)
                )
                self.pulse.moved_at = time.monotonic()
                return found
            return await self._stream(call, token_ids, request, on_text)
        except asyncio.CancelledError:
            self._actor.abort.remote(call)
            raise

    async def check(self, request: Request) -> None:
        """Raise RefusedError if a request asks what the engine cannot do."""
        await self._result(self._actor.check.remote(request))

    async def load(self) -> Load:
        """How busy the engine is, for all its handles together."""
        return await self._result(self._actor.load.remote())

    def shares_with(self, other: "EngineHandle") -> bool:
        """Whether both are handles of one engine."""
        return self._handles is other._handles

    async def probe(self) -> None:
        """Ask for one token; `pulse` shows whether it came."""
        self.pulse.asked_at = time.monotonic()
        try:
            token_ids = list(self.chat.tokenizer.encode("probe", add_special_tokens=False))
            await self.generate(token_ids, PROBE)
        except (EngineDiedError, ValueError, RuntimeError):
            pass  # whoever minds the engine sees what became of it
        finally:
            self.pulse.asked_at = None

    async def logprobs(self, token_ids: list[int]) -> list[float]:
        """Log-probabilities (T - 1,) of token_ids[1:]."""
        return await self._result(self._actor.logprobs.remote(token_ids, self.adapter))

    async def reload(self, model: str) -> None:
        """Exchange the weights; see Engine.reload."""
        await self._result(self._actor.reload.remote(model))
        self.model = model

    def release(self) -> None:
        """Give this handle up, once; with the last one the process ends, and its memory is free."""
        import ray

        if self in self._handles:
            self._handles.remove(self)
            if not self._handles:
                ray.kill(self._actor)

    @property
    def alone(self) -> bool:
        """Whether this is the engine's only handle, and names no adapter: its weights may be exchanged."""
        return self._handles == [self] and self.adapter is None

    async def _stream(
        self, call: str, token_ids: list[int], request: Request, on_text: Callable[[str], None]
    ) -> Sample:
        pieces = self._actor.stream.options(num_returns="streaming").remote(
            call, token_ids, request, self.adapter
        )
        async for reference in pieces:
            piece = await self._result(reference)
            self.pulse.moved_at = time.monotonic()
            if isinstance(piece, Sample):
                return piece
            on_text(piece)
        raise EngineDiedError("the engine ended its answer too early")

    async def _result(self, reference: Coroutine[Any, Any, Any]) -> Any:
        from ray.exceptions import RayError, RayTaskError

        try:
            return await reference
        except RayTaskError as error:
            if isinstance(error.cause, (ValueError, RuntimeError, OSError)):
                raise error.cause from None
            raise
        except RayError as error:  # the actor died, out of memory, its node is gone
            raise EngineDiedError(f"the engine died: {last_line(error)}") from error


async def verify(
    engine: EngineHandle, expected: canary.Canary | None, tolerance: float, before: float | None = None
) -> str:
    """How the engine was verified, in words; `tolerance` and `before` as of `canary.check`.

    Raises:
        CanaryError: its log-probabilities are not those that the trainer computed.
    """
    if expected is None:
        await engine.generate(list(engine.chat.tokenizer.encode("probe", add_special_tokens=False)), PROBE)
        return "answered a probe (this version has no canary)"
    found = await canary.difference(engine.logprobs, expected)
    canary.check(found, tolerance, before)
    await engine.generate(expected["prompts"][0]["token_ids"], PROBE)
    return f"canary: mean difference of log-probabilities {found:.2g}, tolerance {tolerance:g}"
