"""One engine in a separate process: a Ray actor that belongs to the replica which started it.

An engine per process gives its memory back when it goes, can die alone, and shares no vLLM state with the
next. Ray ends actors whose owner is gone, so the actor ends with its replica.
"""

import asyncio
import copy
import os
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from stasc_ray import config
from stasc_ray.generation.samples import Adapter, Request, Sample
from stasc_ray.runtime import model_folder
from stasc_ray.serving.decoding import TextStream
from stasc_ray.tasks.chat import Chat


class EngineDiedError(RuntimeError):
    """The engine's process is gone; what was in flight on it is lost."""


@dataclass(frozen=True)
class EngineSpec:
    """What is the same for every version of a run."""

    engine: config.Engine
    on_cuda: bool
    gpus: float
    model: config.Model
    lora_rank: int | None
    """Of the run's adapters; None if it trains all weights."""
    threads: int
    """Of an engine on CPUs."""
    seed: int


class EngineActor:
    """The engine's process. A dead engine ends it, so "died" is one case and not two."""

    def __init__(self, model: str, spec: EngineSpec) -> None:
        if not spec.on_cuda:  # else reading log-probabilities starts a C++ compiler, for one sum
            os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        from stasc_ray.generation.engine import Engine

        self._engine = Engine(
            model,
            spec.engine,
            on_cuda=spec.on_cuda,
            revision=model_folder.revision(model, spec.model),
            trust_remote_code=spec.model.trust_remote_code,
            lora_rank=spec.lora_rank,
            threads=spec.threads,
            seed=spec.seed,
        )
        self._tasks: dict[str, asyncio.Task[Any]] = {}

    async def pid(self) -> int:
        """Process id; answers only while the engine is alive."""
        self._check()
        return os.getpid()

    async def generate(
        self, call: str, token_ids: list[int], request: Request, adapter: Adapter | None
    ) -> Sample:
        """One sample; `call` is a name for `abort`."""
        with self._abortable(call):
            (sample,) = await self._finished(self._engine.submit(token_ids, request, adapter))
            return sample

    async def stream(
        self, call: str, token_ids: list[int], request: Request, adapter: Adapter | None
    ) -> AsyncIterator[str | Sample]:
        """Text as it comes, in pieces, and at last the whole sample."""
        loop = asyncio.get_running_loop()
        newest: list[list[int]] = []
        news = asyncio.Event()

        def note(so_far: Any) -> None:  # in the engine's thread
            newest[:] = [list(so_far)]  # only the newest, so a slow reader gets larger pieces
            loop.call_soon_threadsafe(news.set)

        with self._abortable(call):
            future = asyncio.wrap_future(self._engine.submit(token_ids, request, adapter, on_tokens=note))
            future.add_done_callback(lambda _: news.set())
            text = TextStream(self._engine.tokenizer, self._engine.hidden)
            while not future.done():
                await news.wait()
                news.clear()
                if newest and not future.done() and (piece := text.next_piece(newest[0])):
                    yield piece
            (sample,) = await self._finished(future)
            if rest := sample.text[len(text.sent) :]:
                yield rest
            yield sample

    async def abort(self, call: str) -> None:
        """Stop working on a call."""
        if task := self._tasks.get(call):
            task.cancel()

    async def logprobs(self, token_ids: list[int], adapter: Adapter | None) -> list[float]:
        """Log-probabilities (T - 1,) of token_ids[1:]."""
        return await self._finished(self._engine.logprobs(token_ids, adapter))

    async def load_adapter(self, adapter: Adapter) -> None:
        """Read an adapter; see Engine.load_adapter."""
        await self._finished(self._engine.load_adapter(adapter))

    async def reload(self, model: str) -> None:
        """Exchange the weights; see Engine.reload."""
        await self._finished(self._engine.reload(model))

    def _abortable(self, call: str) -> "_Abortable":
        return _Abortable(self._tasks, call)

    async def _finished(self, future: Any) -> Any:
        try:
            return await (future if asyncio.isfuture(future) else asyncio.wrap_future(future))
        except RuntimeError:
            self._check()
            raise

    def _check(self) -> None:
        if not self._engine.alive:
            os._exit(1)  # vLLM cannot be mended in place


class _Abortable:
    """Keeps a call's task under its name for the length of the block."""

    def __init__(self, tasks: dict[str, asyncio.Task[Any]], call: str) -> None:
        self._tasks, self._call = tasks, call

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None, "an async actor runs each call in a task"
        self._tasks[self._call] = task

    def __exit__(self, *_: object) -> None:
        self._tasks.pop(self._call, None)


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
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # On CPU the engine shares the node, and the CPUs, that Ray gave to the replica.
        options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": 10_000, "max_restarts": 0}
        if spec.on_cuda:
            options["num_gpus"] = spec.gpus
        else:
            node = ray.get_runtime_context().get_node_id()
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
        self.model = model
        self.chat = chat
        self.adapter = adapter
        self._actor: Any = ray.remote(EngineActor).options(**options).remote(model, spec)
        self._handles = [self]  # of this engine; the last one to go ends it

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
                return await self._result(self._actor.generate.remote(call, token_ids, request, self.adapter))
            return await self._stream(call, token_ids, request, on_text)
        except asyncio.CancelledError:
            self._actor.abort.remote(call)
            raise

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
            if isinstance(piece, Sample):
                return piece
            on_text(piece)
        raise EngineDiedError("the engine ended its answer too early")

    async def _result(self, reference: Coroutine[Any, Any, Any]) -> Any:
        from ray.exceptions import RayError, RayTaskError

        try:
            return await reference
        except RayTaskError as error:
            if isinstance(error.cause, (ValueError, RuntimeError)):
                raise error.cause from None
            raise
        except RayError as error:  # the actor died, out of memory, its node is gone
            raise EngineDiedError(f"the engine died: {_last_line(error)}") from error


def _last_line(error: BaseException) -> str:
    cause = getattr(error, "cause", None)
    lines = [line for line in str(cause or error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
