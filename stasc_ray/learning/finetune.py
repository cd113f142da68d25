"""One iteration's fine-tune: Ray Data encodes the examples, Ray Train runs the loop, rank 0 exports the
model.

Reads a Dataset of Example rows {id, messages} and a base model (Hugging Face folder or Hub id).
Writes a Hugging Face folder (`output`, with the steps' training.jsonl) and Ray Train's own state (`storage`),
from which a second call resumes. The loop itself is in train_loop.py, the export in export.py.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stasc_ray import config, store
from stasc_ray.learning import encoding
from stasc_ray.runtime import capacity, model_folder
from stasc_ray.tasks.chat import Chat

if TYPE_CHECKING:
    import pyarrow
    from ray.data import Dataset
    from ray.train import RunConfig, ScalingConfig

RESIZE_INTERVAL_S = 300.0
"""Minimum time between scale-ups: each restarts the group from its last checkpoint."""
ELASTIC_PLACE_TIMEOUT_S = 30.0
"""Ray counts a lost node's slots for a while; give up on them after this."""
ENCODE_ROWS = 256
COUNTED = ("trained_tokens", "no_target", "too_long")
ENCODED = ("id", "input_ids", "labels", *COUNTED)


@dataclass(frozen=True)
class FinetuneJob:
    """What one fine-tune is; every worker gets it."""

    source: Mapping[str, Any]
    """Arguments of `from_pretrained` for the model to start from; see `model_source`."""
    output: Path
    """Folder for the model, seen by every node; empty or absent, else overwritten."""
    storage: Path
    """Folder for checkpoints, progress.json and training.jsonl, seen by every node."""
    iteration: int
    """1-based; names the state inside `storage` and seeds the order."""
    seed: int
    finetune: config.Finetune
    on_cuda: bool
    """One GPU per worker, else CPUs."""
    reserve_gpus: bool
    """Whether Ray reserves a GPU per worker."""
    chat: tuple[config.Model, bool | None] = (config.Model(), None)
    """Model section and `keep_reasoning`, by which conversations are rendered (`tasks.chat.Chat`)."""
    objective: str = "sft"
    """Name in `objectives.OBJECTIVES`."""
    adapter: Path | None = None
    """LoRA adapter folder, trained on the same model, to continue; None starts a fresh one."""
    model_card: Mapping[str, Any] = field(default_factory=dict)
    """Metrics and facts for the exported README.md."""
    lease: store.Lease | None = None
    """Of the run; workers that find it taken over save no further checkpoint."""
    examples: int = 0
    """Filled in by `finetune`."""

    @classmethod
    def of(
        cls, settings: config.Config, base_model: str, *, output: Path, storage: Path, **more: Any
    ) -> "FinetuneJob":
        """The job that a run's config describes; `more` are further fields."""
        return cls(
            source=model_source(base_model, settings),
            output=output.resolve(),
            storage=storage.resolve(),
            seed=settings.seed,
            chat=(settings.model, settings.prompts.keep_reasoning),
            finetune=settings.finetune,
            reserve_gpus=capacity.reserved_gpus(settings.engine, more["on_cuda"]) > 0,
            **more,
        )


def finetune(examples: "Dataset", job: FinetuneJob) -> dict[str, Any]:
    """Fine-tune a model on examples (Algorithm 1, step 4; arXiv 2503.08681, section 2.2).

    The order of the examples follows from (seed, iteration, epoch, id) alone, and a step covers the same
    `batch_size` examples for any number of workers, so the loss curve depends on neither workers nor blocks
    (with `lora.dropout` each worker draws its own masks).
    A call with the `storage` of an interrupted one continues from its last checkpoint; the caller deletes
    `storage` once `output` is committed.

    Args:
        examples: rows {id, messages}; ids are unique.
        job: what to train, from what, and where to.

    Returns:
        loss_first, loss_last (nats per trained token), losses (per step), steps, trained_tokens, tokens_per_s
        (all tokens through the model), train_s, duration_s, start_s, workers (at the end), resumed_from_step,
        packing_note (why examples are not packed, if CUDA and the config would), left_out_no_target,
        left_out_too_long.

    Raises:
        ValueError: no example can be trained on, or `storage` belongs to another fine-tune.
        FloatingPointError: the loss became NaN or infinite.
        RuntimeError: the workers failed more often than `finetune.max_failures` allows.
    """
    started = time.time()
    job.storage.mkdir(parents=True, exist_ok=True)
    encoded = encode_examples(examples, job.source, job.finetune.max_length_tokens, job.chat)
    counts = _count(encoded, job.finetune.max_length_tokens)
    trained = _fit(replace(job, examples=counts["kept"]), encoded)
    losses = trained.pop("losses")
    return {
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "losses": losses,
        "steps": len(losses),
        "left_out_no_target": counts["no_target"],
        "left_out_too_long": counts["too_long"],
        "start_s": trained.pop("loop_started") - started,
        "duration_s": time.time() - started,
        **trained,
    }


def model_source(base_model: str, settings: config.Config) -> dict[str, Any]:
    """Arguments of every `from_pretrained`: the path, and the Hub revision if it is M0 that is loaded."""
    return {
        "pretrained_model_name_or_path": base_model,
        "revision": model_folder.revision(base_model, settings.model) or "main",
        "trust_remote_code": settings.model.trust_remote_code,
    }


# --- data: encoded on CPUs by Ray Data
# -----------------------------------------------------------------------


def encode_examples(
    examples: "Dataset",
    source: Mapping[str, Any],
    max_length_tokens: int,
    chat: tuple[config.Model, bool | None],
) -> "Dataset":
    """Encode in map tasks and keep the result in Ray's object store (8 bytes per token).

    Returns:
        rows {id, input_ids: list<int32>, labels: list<int32>, trained_tokens, no_target, too_long}; a row
        that is left out has empty lists and 1 in its reason's column.
    """
    return examples.map_batches(
        _encode_block,  # type: ignore[arg-type]
        batch_size=None,  # a number would bundle many files of examples for one task
        batch_format="pyarrow",
        fn_kwargs={"source": dict(source), "max_length_tokens": max_length_tokens, "chat": chat},
    ).materialize()


def _encode_block(
    block: "pyarrow.Table",
    source: dict[str, Any],
    max_length_tokens: int,
    chat: tuple[config.Model, bool | None],
) -> "Iterator[pyarrow.Table]":
    """Some rows at a time, since a block may hold a whole file."""
    import pyarrow as pa

    renders = Chat(_tokenizer(tuple(sorted(source.items()))), *chat)
    integers = pa.list_(pa.int32())  # explicit, or Ray Data would make tensor columns out of equal lengths
    kinds = {"id": pa.string(), "input_ids": integers, "labels": integers}
    for batch in block.to_batches(max_chunksize=ENCODE_ROWS):
        rows = [
            encoded
            for row in batch.to_pylist()
            for encoded in _encode(renders, row["id"], row["messages"], max_length_tokens)
        ]
        yield pa.table(
            {name: pa.array([row[name] for row in rows], kinds.get(name, pa.int64())) for name in ENCODED}
        )


def _encode(
    chat: Chat, id: str, messages: list[dict[str, Any]], max_length_tokens: int
) -> list[dict[str, Any]]:
    """One row per sequence; a conversation whose turns can't share one has several, the first under the
    example's id.
    """
    if all(message.get("train") is None and not message.get("pieces") for message in messages):
        messages = [
            *messages[:-1],
            {**messages[-1], "train": True},
        ]  # a person's own {role, content}: the last one
    found = encoding.encode(chat, messages, max_length_tokens)
    if isinstance(found, str):
        row = {"id": id, "input_ids": [], "labels": [], "trained_tokens": 0, "no_target": 0, "too_long": 0}
        return [{**row, found: 1}]
    return [
        {
            "id": f"{id}#{number}" if number else id,
            **sequence,
            "trained_tokens": int((sequence["labels"] != encoding.IGNORED).sum()),
            "no_target": 0,
            "too_long": 0,
        }
        for number, sequence in enumerate(found)
    ]


@cache
def _tokenizer(source: tuple[tuple[str, Any], ...]) -> Any:
    """Loaded once per Ray worker process, which runs many batches."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(**dict(source))


def _count(encoded: "Dataset", max_length_tokens: int) -> dict[str, int]:
    """Sums over the encoded rows, by a task beside each block: no token comes to the driver, nothing is
    shuffled, and the processes are those that have encoded.
    """
    import ray

    count = ray.remote(_count_block)
    by_block = ray.get([count.remote(block) for block in encoded.to_arrow_refs()])
    counts = {name: sum(found[name] for found in by_block) for name in ("rows", *COUNTED)}
    if counts["rows"] == 0:
        raise ValueError(
            "fine-tune: expected at least one example, found none; check the filter and the rewards"
        )
    counts["kept"] = counts["rows"] - counts["no_target"] - counts["too_long"]
    if counts["kept"] == 0:
        raise ValueError(
            f"fine-tune: expected examples that can be trained on, found that all {counts['rows']} are left "
            f"out: {counts['too_long']} longer than finetune.max_length_tokens = {max_length_tokens} (raise "
            f"it, or lower sampling.*.max_tokens), {counts['no_target']} with no text to train on"
        )
    return counts


def _count_block(block: "pyarrow.Table") -> dict[str, int]:
    import pyarrow.compute as pc

    sums = {name: pc.sum(block.column(name)).as_py() or 0 for name in COUNTED if block.num_rows}  # type: ignore[attr-defined]
    return {"rows": block.num_rows, **dict.fromkeys(COUNTED, 0), **sums}


# --- Ray Train
# ---------------------------------------------------------------------------------------------------


def _fit(job: FinetuneJob, encoded: "Dataset") -> dict[str, Any]:
    from ray.data import ExecutionOptions
    from ray.train import DataConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    from stasc_ray.learning.train_loop import train_loop

    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"job": job},
        scaling_config=_scaling(job),
        torch_config=TorchConfig(backend="nccl" if job.on_cuda else "gloo"),
        run_config=_run_config(job),
        datasets={"examples": encoded},
        # Not split: every worker sees all rows (in shared memory) and takes its share of each batch.
        dataset_config=DataConfig(
            datasets_to_split=[], execution_options=ExecutionOptions(preserve_order=True)
        ),
    )
    elastic = isinstance(job.finetune.workers, tuple)
    with _train_environment(ELASTIC_PLACE_TIMEOUT_S if elastic else job.finetune.start_timeout_s):
        try:
            result = trainer.fit()
        except TrainingFailedError as error:
            raise RuntimeError(_explain(error, job)) from error
    found: dict[str, Any] = result.return_value or {}
    if "not_finite" in found:
        raise FloatingPointError(found["not_finite"])
    if "refused" in found:
        raise ValueError(found["refused"])
    return found


def _scaling(job: FinetuneJob) -> "ScalingConfig":
    from ray.train import ScalingConfig

    resources = {"CPU": 1, "GPU": 1} if job.reserve_gpus else {"CPU": 1}
    return ScalingConfig(
        num_workers=job.finetune.workers,
        use_gpu=job.reserve_gpus,
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
    """Set what Ray Train reads from the driver's environment at fit(), and undo what fit() leaves behind.

    fit() replaces the SIGINT handler and keeps it, so Ctrl-C would abort a trainer that has ended.
    """
    import ray

    wanted = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(start_timeout_s)}
    # Ray takes one report of the workers, and notices their end, at each check: by default every 2 s, which
    # checkpoints wait for.
    wanted["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
    if len(ray.nodes()) == 1:  # a laptop: start one process less
        wanted["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    before = {name: os.environ.get(name) for name in wanted}
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if in_main_thread and handler is not None:
            signal.signal(signal.SIGINT, handler)


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
