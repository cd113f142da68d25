"""A run's engines as its driver sees them: they start with the first pass, and make room for the trainer."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from stasc_ray import config
from stasc_ray.generation.engines import CALLS, EngineActor
from stasc_ray.generation.pool import CLOSE_TIMEOUT_S, MAX_RESTARTS, EnginePool, HandOver
from stasc_ray.generation.spec import EngineSpec
from stasc_ray.generation.unit_rollout import Job
from stasc_ray.runtime import capacity, ray_session


@dataclass(frozen=True)
class Room:
    """What a trainer finds beside the engines, or in their place."""

    gpus: float
    """For each of its workers."""
    early: bool
    """Whether its workers leave a CPU, so that they may start before their examples are selected."""


class Engines:
    """A run's engines as the driver sees them; their pool starts with the first pass that has work."""

    def __init__(
        self,
        settings: config.Config,
        on_cuda: bool,
        *,
        training: bool = True,
        actor: type[EngineActor] = EngineActor,
        max_restarts: int = MAX_RESTARTS,
    ) -> None:
        self._settings, self._on_cuda, self._training = settings, on_cuda, training
        self._pool_arguments = (actor, max_restarts)
        self._passes = 0
        self.pool: Any = None

    def begin(self, job: Job, units: int) -> None:
        """Bring as many engines as the config says, but no more than there are units, to the job's model."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        engine, nodes = self._settings.engine, ray_session.nodes()
        if not self.alive():
            gpus = capacity.engine_gpus(self._settings, nodes, self._on_cuda, training=self._training)
            self._gpus = gpus
            spec = EngineSpec(
                engine=engine,
                on_cuda=self._on_cuda,
                gpus=gpus,
                model=self._settings.model,
                lora_rank=None,  # an iteration's folder holds merged weights
                threads=None,
                seed=self._settings.seed,
                sleeps=gpus == capacity.ENGINE_SHARE,
            )
            # on the driver's node, since the run ends with it anyway
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": CALLS, "scheduling_strategy": here}
            self.pool = ray.remote(EnginePool).options(**options).remote(spec, *self._pool_arguments)
            self._passes = 0
        least, most = capacity.pool_size(engine, nodes, self._on_cuda)
        self._passes += 1
        self._ask(self.pool.begin.remote(job, min(least, units), min(most, units)))

    def alive(self) -> bool:
        """Whether there is a pool that answers."""
        from ray.exceptions import RayError

        try:
            return self.pool is not None and self._ask(self.pool.nodes.remote()) is not None
        except RayError:
            return False

    def report(self) -> HandOver:
        """How the engines came to hold the model."""
        return self._ask(self.pool.report.remote())

    def progress(self) -> dict[str, int] | None:
        """As EnginePool.progress; None while a pass has not begun, whatever the last one did."""
        found = self._ask(self.pool.progress.remote()) if self.pool else None
        return found if found and found["pass_"] == self._passes else None

    def make_room(self) -> Room:
        """Let a trainer run: beside the engines, if the cluster has room for both, else in their place."""
        settings, nodes = self._settings, ray_session.nodes_by_id()
        gpus: float = min(capacity.reserved_gpus(settings.engine, self._on_cuda), 1)
        engines: dict[str, int] = {}
        if self.alive():
            share = capacity.TRAINER_SHARE if self._gpus == capacity.ENGINE_SHARE else gpus
            engines = Counter(self._ask(self.pool.nodes.remote()))
            room = capacity.room_beside(settings.engine, nodes, engines, self._gpus, share)
            keep = settings.engine.keep_alive and room >= settings.finetune.least_workers
            self._ask(self.pool.rest.remote(keep=keep))
            gpus, engines = (share, engines) if keep else (gpus, {})
        taken = sum(engines.values()) * settings.engine.cpus_per_actor + settings.finetune.most_workers
        return Room(gpus, early=sum(node.get("CPU", 0) for node in nodes.values()) > taken)

    def close(self) -> None:
        """End all engines."""
        import ray
        from ray.exceptions import RayError

        if self.pool is not None:
            with contextlib.suppress(RayError, TimeoutError):  # Ray ends them with the driver
                ray.get(self.pool.rest.remote(keep=False), timeout=CLOSE_TIMEOUT_S)
            ray.kill(self.pool)
            self.pool = None

    @staticmethod
    def _ask(reference: Any) -> Any:
        import ray
        from ray.exceptions import RayTaskError

        try:
            return ray.get(reference)
        except RayTaskError as error:
            raise (error.cause or error) from None


@contextmanager
def engines(settings: config.Config, on_cuda: bool, **options: Any) -> Iterator[Engines]:
    """A run's engines for the length of the block; options as of Engines."""
    opened = Engines(settings, on_cuda, **options)
    try:
        yield opened
    finally:
        opened.close()
