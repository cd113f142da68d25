"""The engines of a run: they start once, and take over each iteration's weights in place.

`EnginePool` is a Ray actor that owns the engine actors, and lives as long as the driver. A pass of rollouts
sends it units; each goes to an engine that has room, and to another one if that engine is lost. Between two
passes the trainer runs beside the engines: on CPUs they wait, on their own GPUs too, and on a GPU that the
trainer shares they sleep. Then each reads the new weights from the model's folder and must reproduce the
trainer's log-probabilities (canary.py). If it does not, a fresh engine takes its place.
"""

import asyncio
import contextlib
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stasc_ray.generation import canary, core_output
from stasc_ray.generation.engines import CALLS, EngineActor, last_line
from stasc_ray.generation.spec import EngineSpec
from stasc_ray.generation.unit_rollout import Job
from stasc_ray.runtime import capacity, ray_session

if TYPE_CHECKING:
    import pyarrow as pa

MAX_RESTARTS, MAX_FIRST_RESTARTS = 10, 3
"""Engines that a pass may lose, for each that it wants; without a limit one that always dies never ends. The
second number counts until an engine has finished a unit: before, the model or the machine may be what ends
them."""
LOG_TIMEOUT_S = 20.0
"""Seconds to read a lost engine's log in; its node may be lost too."""
LOOK_S = 5.0
"""Between two looks at what the nodes have room for."""
CLOSE_TIMEOUT_S = 30.0
"""Seconds that an engine may take to end by itself."""


@dataclass
class HandOver:
    """How the engines came to hold a pass's model."""

    reused: int = 0
    """Engines that took the weights over."""
    started: int = 0
    """Engines that started for this pass, those that replaced a lost one included."""
    hand_over_s: float = 0.0
    """Seconds of the slowest exchange, its canary included."""
    start_s: float = 0.0
    """Seconds of the slowest start."""
    canary_difference: float | None = None
    """The largest mean difference of log-probabilities that was found, in nats; None without a canary."""
    notes: list[str] = field(default_factory=list)
    """Why engines were replaced."""


@dataclass(eq=False)
class _Engine:
    actor: Any
    model: str | None = None
    """What it holds; None while it starts or sleeps."""
    up: bool = False
    """Whether it was verified for this pass."""
    node: str = ""
    units: int = 0
    """In flight."""


class EnginePool:
    """Owns engines; an async Ray actor.

    Args:
        actor: the class of the engines' actors.
        max_restarts: as MAX_RESTARTS.
    """

    def __init__(
        self, spec: EngineSpec, actor: type[EngineActor] = EngineActor, max_restarts: int = MAX_RESTARTS
    ) -> None:
        self._spec, self._actor, self._max_restarts = spec, actor, max_restarts
        self._engines: list[_Engine] = []
        self._passes = 0
        self._proven = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()

    async def begin(self, job: Job, least: int, most: int) -> None:
        """Start a pass: bring `most` engines to the job's model; returns once `least` are ready.

        Engines that find no place yet are waited for while the others work: they join as nodes come.

        Raises:
            RuntimeError: an engine cannot start or computes something else than the trainer, or too few were
                ready within `engine.start_timeout_s`.
        """
        await self._end_those_that_start()
        self._job, self._most = job, most
        self._passes += 1
        self._canary = canary.of_model(job.model)
        self._lost, self._failure, self._report = 0, None, HandOver()
        for engine in self._engines:
            engine.up = False
            self._spawn(self._take_over(engine))
        for _ in range(most - len(self._engines)):
            self._spawn(self._start())
        self._spawn(self._keep_room())
        await self._until_up(least)

    async def roll_out(self, unit: "pa.Table") -> "pa.Table":
        """Traces of one unit, ungraded; see EngineActor.roll_out.

        Raises:
            RuntimeError: the engines keep dying.
            Exception: what the unit itself raised.
        """
        from ray.exceptions import RayError, RayTaskError

        while True:
            engine = await self._free()
            engine.units += 1
            try:
                traces = await engine.actor.roll_out.remote(unit)
                self._proven = True
                return traces
            except RayTaskError as error:
                raise (error.cause or error) from None
            except RayError as error:  # its process or its node is gone; another one does the unit
                await self._replace(engine, error)
            finally:
                engine.units -= 1
                await self._notify()

    async def progress(self) -> dict[str, int]:
        """engines_up, engines_starting; questions, texts and tokens that they finished in this pass; `pass_`,
        how many passes have begun.
        """
        from ray.exceptions import RayError

        total: Counter[str] = Counter()
        up = [engine for engine in self._engines if engine.up]
        for found in await asyncio.gather(
            *(engine.actor.progress.remote() for engine in up), return_exceptions=True
        ):
            if not isinstance(found, BaseException):
                total.update(found)
            elif not isinstance(found, RayError):  # a lost engine has no progress
                raise found
        counts = {name: total[name] for name in ("questions", "texts", "tokens")}
        starting = len(self._engines) - len(up)
        return {"engines_up": len(up), "engines_starting": starting, **counts, "pass_": self._passes}

    async def report(self) -> HandOver:
        """How the engines came to this pass's model, so far."""
        return self._report

    async def nodes(self) -> list[str]:
        """The node of each engine that is up."""
        return [engine.node for engine in self._engines if engine.up]

    async def rest(self, *, keep: bool) -> None:
        """End a pass. Engines that still start end, so that none starts beside a trainer; so do all unless
        `keep`. On a GPU that a trainer shares, those that are kept sleep.
        """
        await self._end_those_that_start()
        if not keep:
            await asyncio.gather(*(self._end(engine) for engine in list(self._engines)))
        if self._spec.sleeps:
            await asyncio.gather(*(self._sleep(engine) for engine in list(self._engines)))

    async def _end_those_that_start(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(self._end(engine) for engine in list(self._engines) if not engine.up))

    # --- one engine ----------------------------------------------------------------------------------------

    async def _start(self) -> None:
        """A fresh engine."""
        from ray.exceptions import RayError

        spec = self._spec
        # Without room it would get the last CPU, and nothing would be read: it needs another beside it.
        cpus = spec.engine.cpus_per_actor + (len(self._engines) >= self._room())
        options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": spec.gpus}
        engine = _Engine(_remote(self._actor, options).remote(self._job.model, self._spec))
        self._engines.append(engine)
        started = time.monotonic()
        try:
            await self._ready(engine, None)
        except canary.CanaryError as error:  # another one would compute the same
            await self._fail(engine, f"engine: {error}; its model is {self._job.model}")
        except RayError as error:
            cause = getattr(error, "cause", None)
            if "creation task" in str(error) or cause:  # Python's error, not a lost process
                await self._fail(engine, f"engine: expected it to start, found: {last_line(error)}")
            else:
                await self._replace(engine, error)
        else:
            self._report.started += 1
            self._report.start_s = max(self._report.start_s, time.monotonic() - started)
            await self._up(engine)

    async def _keep_room(self) -> None:
        """End an engine that holds the last CPU, as one may once a node has gone; it waits for another."""
        while True:
            await asyncio.sleep(LOOK_S)
            up = [engine for engine in self._engines if engine.up]
            if len(up) > max(1, self._room()):
                await self._end(min(up, key=lambda engine: engine.units))
                self._spawn(self._start())

    def _room(self) -> int:
        return capacity.room_for_engines(self._spec.engine, ray_session.nodes(), self._spec.on_cuda)

    async def _take_over(self, engine: _Engine) -> None:
        """Bring an engine of an earlier pass to this pass's model; if it cannot, a fresh one replaces it."""
        from ray.exceptions import RayError

        started, before = time.monotonic(), None
        try:
            if engine.model != self._job.model:
                if engine.model and self._canary:
                    before = await canary.difference(_logprobs(engine), self._canary)
                engine.model = None
                await engine.actor.reload.remote(self._job.model)
            await self._ready(engine, before)
        except (RayError, canary.CanaryError) as error:
            await self._replace(engine, error)
        else:
            self._report.reused += 1
            self._report.hand_over_s = max(self._report.hand_over_s, time.monotonic() - started)
            await self._up(engine)

    async def _ready(self, engine: _Engine, before: float | None) -> None:
        """Begin the pass on an engine, and compare it with the trainer."""
        engine.node = await engine.actor.begin.remote(self._job)
        if self._canary:
            found = await canary.difference(_logprobs(engine), self._canary)
            self._report.canary_difference = max(found, self._report.canary_difference or 0.0)
            canary.check(found, _tolerance(self._job), before)
            await engine.actor.forget_prefixes.remote()
        engine.model = self._job.model

    async def _sleep(self, engine: _Engine) -> None:
        from ray.exceptions import RayError

        try:
            engine.model = None
            await engine.actor.sleep.remote()
        except RayError:  # the next pass starts another
            await self._end(engine)

    async def _end(self, engine: _Engine) -> None:
        """End an engine's process; returns when it is gone, and its GPU free."""
        import ray
        from ray.exceptions import RayError

        if engine in self._engines:
            self._engines.remove(engine)
        engine.up = False
        with contextlib.suppress(RayError, TimeoutError):  # it is gone, as it should be; or hangs
            async with asyncio.timeout(CLOSE_TIMEOUT_S if engine.node else 0.1):
                await engine.actor.close.remote()
        ray.kill(engine.actor)

    async def _replace(self, engine: _Engine, why: Exception) -> None:
        """Start another engine in the place of one that is lost, once."""
        if engine not in self._engines:
            return
        self._lost += 1
        await self._end(engine)
        each = self._max_restarts if self._proven else min(self._max_restarts, MAX_FIRST_RESTARTS)
        if self._lost > each * self._most:
            found = f"{self._lost} dead{'' if self._proven else ' before one had finished a unit'}"
            words = await _last_words(why)
            await self._fail(engine, f"engine: expected it to stay alive, found {found}; last: {words}")
        else:
            self._report.notes.append(last_line(why))
            self._spawn(self._start())

    async def _fail(self, engine: _Engine, message: str) -> None:
        """End the pass: whoever waits gets this message."""
        self._failure = RuntimeError(message)
        await self._end(engine)
        await self._notify()

    # --- who waits -----------------------------------------------------------------------------------------

    async def _free(self) -> _Engine:
        """The engine with the fewest units that has room for another; waits for one."""
        async with self._changed:
            while True:
                if self._failure:
                    raise self._failure
                room = [e for e in self._engines if e.up and e.units < self._spec.engine.concurrent_batches]
                if room:
                    return min(room, key=lambda engine: engine.units)
                await self._changed.wait()

    async def _until_up(self, least: int) -> None:
        limit_s = self._spec.engine.start_timeout_s
        try:
            async with asyncio.timeout(limit_s), self._changed:
                await self._changed.wait_for(lambda: self._failure or self._count_up() >= least)
        except TimeoutError:
            raise RuntimeError(
                f"engine: expected {least} up within engine.start_timeout_s = {limit_s:g} s, found "
                f"{self._count_up()}; is the cluster busy, or the model slow to load?"
            ) from None
        if self._failure:
            raise self._failure

    def _count_up(self) -> int:
        return sum(engine.up for engine in self._engines)

    async def _up(self, engine: _Engine) -> None:
        engine.up = True
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _remote(actor: type, options: dict[str, Any]) -> Any:
    import ray

    return ray.remote(actor).options(
        max_concurrency=CALLS, max_restarts=0, scheduling_strategy="SPREAD", **options
    )


async def _last_words(error: Exception) -> str:
    """Why an engine's process died: what its log says, on its node; else what Ray says."""
    import ray
    from ray.exceptions import ActorDiedError, RayError

    died = re.search(r"\tpid: (\d+)\n.*?\tip: (\S+)", str(error), re.DOTALL)
    if isinstance(error, ActorDiedError) and died:
        there = {"num_cpus": 0, "resources": {f"node:{died[2]}": 0.001}}
        look = ray.remote(core_output.last_words).options(**there).remote(int(died[1]))
        with contextlib.suppress(RayError, TimeoutError):
            async with asyncio.timeout(LOG_TIMEOUT_S):
                return await look or last_line(error)
    return last_line(error)


def _logprobs(engine: _Engine) -> canary.Logprobs:
    async def logprobs(token_ids: list[int]) -> list[float]:
        return await engine.actor.logprobs.remote(token_ids, None)

    return logprobs


def _tolerance(job: Job) -> float:
    engine, serve = job.settings.engine, job.settings.serve
    full = engine.dtype == "float32" or (engine.dtype == "auto" and not job.on_cuda)
    return serve.canary_tolerance or canary.tolerance(full)
