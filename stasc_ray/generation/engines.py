"""One engine in a separate process: the Ray actor that rollouts and serving share.

An engine per process gives its memory back when it goes, can die alone, and shares no vLLM state with the
next. Ray ends actors whose owner is gone: the run's pool (pool.py), or a replica of the endpoint.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from stasc_ray.generation.decoding import TextStream
from stasc_ray.generation.samples import Adapter, Load, Request, Sample, cut
from stasc_ray.generation.spec import EngineSpec
from stasc_ray.generation.unit_rollout import Job, UnitRollout
from stasc_ray.tasks.chat import Chat

if TYPE_CHECKING:
    import pyarrow as pa

CALLS = 10_000
"""Calls of one actor that may be in flight at once."""


class EngineDiedError(RuntimeError):
    """The engine's process is gone; what was in flight on it is lost."""


class EngineActor:
    """The engine's process. A dead engine ends it, so "died" is one case and not two."""

    def __init__(self, model: str, spec: EngineSpec) -> None:
        if not spec.on_cuda:  # else reading log-probabilities starts a C++ compiler, for one sum
            os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        from stasc_ray.generation.engine import Engine

        self._engine = Engine(model, spec)
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._rollout: UnitRollout | None = None

    async def pid(self) -> int:
        """Process id; answers only while the engine is alive."""
        self._check()
        return os.getpid()

    async def load(self) -> Load:
        """How busy the engine is."""
        return self._engine.load

    async def begin(self, job: Job) -> str:
        """Get ready for a pass over questions with the model that the engine holds; returns its node."""
        import ray

        if not os.path.isdir(job.destination):
            # this node may have come after the run had looked at all there were
            raise FileNotFoundError(
                f"storage: expected a folder that every node sees, this one does not see {job.destination}"
            )
        node = ray.get_runtime_context().get_node_id()
        self._rollout = UnitRollout(job, Chat.of(self._engine.tokenizer, job.settings), self._ask, node)
        return node

    async def roll_out(self, unit: "pa.Table") -> "pa.Table":
        """Traces of one unit (`unit_files.as_one_row`), ungraded."""
        assert self._rollout is not None, "the pool begins a pass before it sends units"
        try:
            return await self._rollout.unit(unit)
        except RuntimeError:
            self._check()
            raise

    async def progress(self) -> dict[str, int]:
        """What has been generated since the pass began; see `UnitRollout.done`."""
        return dict(self._rollout.done) if self._rollout else {}

    def _ask(self, token_ids: list[int], request: Request, _: object) -> "asyncio.Future[list[Sample]]":
        return asyncio.wrap_future(self._engine.submit(token_ids, request))

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
            text, stop, sent = TextStream(self._engine.tokenizer, self._engine.hidden), request.final.stop, 0
            while not future.done():
                await news.wait()
                news.clear()
                if newest and not future.done() and text.next_piece(newest[0]):
                    safe = before_stop(text.sent, stop)
                    if safe > sent:
                        yield text.sent[sent:safe]
                        sent = safe
            (sample,) = await self._finished(future)
            if rest := sample.text[sent:]:
                yield rest
            yield sample

    async def check(self, request: Request) -> None:
        """Raise RefusedError if a request asks what cannot be done; see Engine.check."""
        await asyncio.to_thread(self._engine.check, request)

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
        """Exchange the weights, and wake up; see Engine.reload."""
        await self._finished(self._engine.reload(model))

    async def forget_prefixes(self) -> None:
        """Empty the prefix cache; see Engine.forget_prefixes."""
        await self._finished(self._engine.forget_prefixes())

    async def sleep(self) -> None:
        """Give the GPU's memory back; see Engine.sleep."""
        await self._finished(self._engine.sleep())

    async def close(self) -> None:
        """End the engine and this process; the caller gets Ray's error of an actor that is gone."""
        from ray.actor import exit_actor

        await asyncio.to_thread(self._engine.close)
        exit_actor()

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


def before_stop(text: str, stop: Sequence[str]) -> int:
    """How much of a growing text can be shown: what comes before a stop string, or before what may become
    one.
    """
    whole, stopped = cut(text, stop)
    return len(whole) if stopped else max(0, len(text) - max((len(one) - 1 for one in stop), default=0))


def last_line(error: BaseException) -> str:
    """The last line of what an error of Ray says."""
    cause = getattr(error, "cause", None)
    lines = [line for line in str(cause or error).strip().splitlines() if line.strip()]
    # what follows is advice for any process on any machine
    return lines[-1].strip().split(" Some common causes")[0] if lines else type(error).__name__
