"""Ray Train's workers of one fine-tune: they start, load the model, and wait for the examples.

So a trainer's start, some ten seconds of imports on a laptop and more with large models, happens while
answers are measured and examples selected and encoded. Each fine-tune has fresh workers: what they held is
surely given back.
"""

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from threading import Thread
from typing import TYPE_CHECKING, Any

from stasc_ray.learning.job import FinetuneJob

if TYPE_CHECKING:
    from ray.train import RunConfig, ScalingConfig

RESIZE_INTERVAL_S = 300.0
"""Minimum time between scale-ups: each restarts the group from its last checkpoint."""
ELASTIC_PLACE_TIMEOUT_S = 30.0
"""Ray counts a lost node's slots for a while; give up on them after this."""


class Given:
    """A Ray actor where workers wait for their examples; workers that start again take them again."""

    def __init__(self) -> None:
        self._there, self._examples = asyncio.Event(), {}

    async def give(self, examples: Mapping[str, Any]) -> None:
        """Hand them over, once."""
        self._examples = examples
        self._there.set()

    async def take(self) -> Mapping[str, Any]:
        """What was given: `blocks`, references to Arrow tables of encoded rows; `examples`, their number;
        `model_card`. Or `cancelled`.
        """
        await self._there.wait()
        return self._examples


END_S = 3.0


class Training:
    """The workers of one fine-tune, which are started by making it."""

    def __init__(self, job: FinetuneJob) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.job = job
        job.storage.mkdir(parents=True, exist_ok=True)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": 1000, "scheduling_strategy": here}
        self._given: Any = ray.remote(Given).options(**options).remote()
        self._result: Future[dict[str, Any]] = Future()
        Thread(target=self._run, name="fine-tune", daemon=True).start()

    def train(self, blocks: Sequence[Any], examples: int, model_card: Mapping[str, Any]) -> dict[str, Any]:
        """Hand the examples over; returns what `train_loop.train_loop` does.

        Args:
            blocks: references to Arrow tables of encoded rows.
            examples: how many are trained on.
            model_card: as of FinetuneJob.

        Raises:
            ValueError, FloatingPointError, RuntimeError: as finetune.finetune.
        """
        given = {"blocks": list(blocks), "examples": examples, "model_card": dict(model_card)}
        self._given.give.remote(given)
        found = self._result.result()
        if "not_finite" in found:
            raise FloatingPointError(found["not_finite"])
        if "refused" in found:
            raise ValueError(found["refused"])
        return found

    def cancel(self, wait_s: float | None = None) -> None:
        """End the workers, unless they have ended; no examples will come.

        Args:
            wait_s: for their end; None: as long as it takes.
        """
        if not self._result.done():
            self._given.give.remote({"cancelled": True})
            with suppress(Exception):  # it is not wanted any more, however it ends
                self._result.result(wait_s)

    def _run(self) -> None:
        try:
            self._result.set_result(_fit(self.job, self._given))
        except BaseException as error:  # whatever it is, `train` waits for it and raises it
            self._result.set_exception(error)


class Trainer:
    """A run's trainer: at most one fine-tune at a time, whose workers may start before its examples."""

    def __init__(self) -> None:
        self._waiting: Training | None = None

    def start(self, job: FinetuneJob) -> None:
        """Start the workers of a fine-tune."""
        self._waiting = Training(job)

    def take(self, job: FinetuneJob) -> Training:
        """The workers that were started for this job, or others."""
        waiting, self._waiting = self._waiting, None
        if waiting and waiting.job == job:
            return waiting
        if waiting:
            waiting.cancel()
        return Training(job)

    def close(self) -> None:
        """End workers that still wait; those that are reading their model end with Ray, since a run that was
        stopped has little time.
        """
        if self._waiting:
            self._waiting.cancel(END_S)
        self._waiting = None


def _fit(job: FinetuneJob, given: Any) -> dict[str, Any]:
    from ray.train import TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    from stasc_ray.learning.train_loop import train_loop

    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"job": job, "given": given},
        scaling_config=_scaling(job),
        torch_config=TorchConfig(backend="nccl" if job.on_cuda else "gloo"),
        run_config=_run_config(job),
    )
    elastic = isinstance(job.finetune.workers, tuple)
    with _train_environment(ELASTIC_PLACE_TIMEOUT_S if elastic else job.finetune.start_timeout_s):
        try:
            result = trainer.fit()
        except TrainingFailedError as error:
            raise RuntimeError(_explain(error, job)) from error
    return result.return_value or {}


def _scaling(job: FinetuneJob) -> "ScalingConfig":
    from ray.train import ScalingConfig

    resources = {"CPU": 1, "GPU": job.gpus} if job.gpus else {"CPU": 1}
    return ScalingConfig(
        num_workers=job.finetune.workers,
        use_gpu=job.gpus > 0,
        resources_per_worker=resources,
        elastic_resize_monitor_interval_s=RESIZE_INTERVAL_S,
    )


def _run_config(job: FinetuneJob) -> "RunConfig":
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig

    failures = job.finetune.max_failures
    return RunConfig(
        name=f"iteration_{job.iteration:02d}",  # the same name and storage resume
        storage_path=str(job.storage),
        checkpoint_config=CheckpointConfig(num_to_keep=2),
        # Without a limit a group that can't start is tried for ever; elastic workers may miss a place at each
        # lost node.
        failure_config=FailureConfig(
            max_failures=failures,
            controller_failure_limit=failures if isinstance(job.finetune.workers, tuple) else 1,
        ),
        logging_config=LoggingConfig(log_level="ERROR"),
    )


@contextmanager
def _train_environment(start_timeout_s: float) -> Iterator[None]:
    """Set what Ray Train reads from the driver's environment at fit()."""
    import ray

    wanted = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(start_timeout_s)}
    # Ray takes one report of the workers, and notices their end, at each check: by default every 2 s, which
    # checkpoints wait for.
    wanted["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
    if len(ray.nodes()) == 1:  # a laptop: start one process less
        wanted["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _explain(error: Exception, job: FinetuneJob) -> str:
    """One message out of Ray Train's nested ones: the last line of each worker's failure, and what to do."""
    failures = getattr(error, "worker_failures", None) or {0: getattr(error, "controller_failure", error)}
    lines = {
        rank: (str(failure).strip().splitlines() or [type(failure).__name__])[-1]
        for rank, failure in failures.items()
    }
    told = "; ".join(f"worker {rank}: {line}" for rank, line in sorted(lines.items()))
    return (
        f"fine-tune of iteration {job.iteration}: expected {job.finetune.least_workers} worker(s) to finish, "
        f"found more failures "
        f"than finetune.max_failures = {job.finetune.max_failures}. Last failure: {told}. Ray's log folder "
        f"has the "
        "traceback (logs/train/); out of memory: lower finetune.batch_size or max_length_tokens, or set "
        "finetune.gradient_checkpointing. The same command continues from the last checkpoint."
    )
