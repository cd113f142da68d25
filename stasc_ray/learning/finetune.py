"""One iteration's fine-tune: Ray Data encodes the examples, Ray Train runs the loop, rank 0 exports the model.

Reads a Dataset of Example rows {id, messages} and a base model (Hugging Face folder or Hub id).
Writes a Hugging Face folder (`output`) and Ray Train's own state (`storage`), from which a second call resumes.
The loop itself is in train_loop.py, the export in export.py.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stasc_ray import config, store
from stasc_ray.learning import encoding
from stasc_ray.runtime import capacity, model_folder

if TYPE_CHECKING:
    import pyarrow
    from ray.data import Dataset
    from ray.train import RunConfig, ScalingConfig

RESIZE_INTERVAL_S = 300.0
"""How often elastic workers may become more: each time the group starts anew from its last checkpoint."""
ELASTIC_PLACE_TIMEOUT_S = 30.0
"""How long elastic workers wait for places that Ray had counted: right after a node was lost it still counts those."""
ENCODE_ROWS = 256
ENCODED = ("id", "input_ids", "labels", "trained_tokens", "no_target", "too_long")


def finetune(
    examples: "Dataset",
    *,
    base_model: str,
    output: Path,
    config: config.Config,
    iteration: int,
    storage: Path,
    on_cuda: bool,
    model_card: Mapping[str, Any] | None = None,
    adapter: Path | None = None,
    lease: store.Lease | None = None,
) -> dict[str, Any]:
    """Fine-tune `base_model` on the kept corrections (Algorithm 1, step 4; arXiv 2503.08681, section 2.2).

    The order of the examples follows from (seed, iteration, epoch, id) alone, and a step covers the same
    `batch_size` examples for any number of workers, so the loss curve depends on neither workers nor blocks
    (with `lora.dropout` each worker draws its own masks).
    A call with the `storage` of an interrupted one continues from its last checkpoint; the caller deletes
    `storage` once `output` is committed.

    Args:
        examples: rows {id, messages}; ids are unique, only the last message is trained on.
        base_model: Hugging Face folder or Hub id to start from.
        output: empty or absent folder for the model, seen by every node; overwritten.
        config: the run's configuration; `finetune`, `model` and `seed` are used.
        iteration: 1-based, names the state inside `storage` and seeds the order.
        storage: folder for checkpoints and progress.json, seen by every node.
        on_cuda: one GPU per worker, else CPUs.
        model_card: metrics and facts for the exported README.md.
        adapter: LoRA adapter folder, trained on `base_model`, to continue; None starts a fresh one.
        lease: of the run; workers that find it taken over save no further checkpoint.

    Returns:
        loss_first, loss_last (nats per trained token), losses (per step), steps, trained_tokens, tokens_per_s
        (all tokens through the model), train_s, duration_s, start_s, workers (at the end), resumed_from_step,
        left_out_no_target, left_out_too_long.

    Raises:
        ValueError: no example can be trained on, or `storage` belongs to another fine-tune.
        FloatingPointError: the loss became NaN or infinite.
        RuntimeError: the workers failed more often than `finetune.max_failures` allows.
    """
    started = time.time()
    output, storage = output.resolve(), storage.resolve()
    storage.mkdir(parents=True, exist_ok=True)
    source = model_source(base_model, config)
    encoded = encode_examples(examples, source, config.finetune.max_length_tokens)
    counts = _count(encoded, config.finetune.max_length_tokens)
    settings = {
        "source": source,
        "adapter": str(adapter.resolve()) if adapter else None,
        "output": str(output),
        "storage": str(storage),
        "examples": counts["kept"],
        "seed": config.seed,
        "iteration": iteration,
        "finetune": config.finetune.model_dump(mode="json"),
        "model_card": dict(model_card or {}),
        "lease": lease,
        "on_cuda": on_cuda,
    }
    trained = _fit(settings, encoded, config, on_cuda)
    losses = trained.pop("losses")
    return {
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "losses": losses,
        "steps": len(losses),
        "trained_tokens": counts["trained_tokens"] * config.finetune.epochs,
        "left_out_no_target": counts["no_target"],
        "left_out_too_long": counts["too_long"],
        "start_s": trained.pop("loop_started") - started,
        "duration_s": time.time() - started,
        **trained,
    }


def model_source(base_model: str, config: config.Config) -> dict[str, Any]:
    """Arguments of every `from_pretrained`: the path, and the Hub revision where it is M0 that is loaded."""
    return {
        "pretrained_model_name_or_path": base_model,
        "revision": model_folder.revision(base_model, config.model) or "main",
        "trust_remote_code": config.model.trust_remote_code,
    }


# --- data: encoded on CPUs by Ray Data -----------------------------------------------------------------------


def encode_examples(examples: "Dataset", source: Mapping[str, Any], max_length_tokens: int) -> "Dataset":
    """Encode in map tasks and keep the result in Ray's object store (8 bytes per token).

    Returns:
        rows {id, input_ids: list<int32>, labels: list<int32>, trained_tokens, no_target, too_long}; a row that
        is left out has empty lists and 1 in its reason's column.
    """
    return examples.map_batches(
        _encode_block,  # type: ignore[arg-type]
        batch_size=None,  # a number would bundle many files of examples for one task
        batch_format="pyarrow",
        fn_kwargs={"source": dict(source), "max_length_tokens": max_length_tokens},
    ).materialize()


def _encode_block(
    block: "pyarrow.Table", source: dict[str, Any], max_length_tokens: int
) -> "Iterator[pyarrow.Table]":
    """Some rows at a time, since a block may hold a whole file."""
    import pyarrow as pa

    tokenizer = _tokenizer(tuple(sorted(source.items())))
    integers = pa.list_(pa.int32())  # explicit, or Ray Data would make tensor columns out of equal lengths
    kinds = {"id": pa.string(), "input_ids": integers, "labels": integers}
    for batch in block.to_batches(max_chunksize=ENCODE_ROWS):
        rows = [
            _encode(tokenizer, row["id"], row["messages"], max_length_tokens) for row in batch.to_pylist()
        ]
        yield pa.table(
            {name: pa.array([row[name] for row in rows], kinds.get(name, pa.int64())) for name in ENCODED}
        )


def _encode(
    tokenizer: Any, id: str, messages: list[dict[str, str]], max_length_tokens: int
) -> dict[str, Any]:
    found = encoding.encode(tokenizer, messages, max_length_tokens)
    if isinstance(found, str):
        row = {"id": id, "input_ids": [], "labels": [], "trained_tokens": 0, "no_target": 0, "too_long": 0}
        return {**row, found: 1}
    trained = int((found["labels"] != encoding.IGNORED).sum())
    return {"id": id, **found, "trained_tokens": trained, "no_target": 0, "too_long": 0}


@cache
def _tokenizer(source: tuple[tuple[str, Any], ...]) -> Any:
    """Loaded once per Ray worker process, which runs many batches."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(**dict(source))


def _count(encoded: "Dataset", max_length_tokens: int) -> dict[str, int]:
    """Sums over the encoded rows, read block by block: no shuffle, hence no further Ray processes to start."""
    import pyarrow.compute as pc

    names = ("trained_tokens", "no_target", "too_long")
    counts: dict[str, int] = dict.fromkeys(("rows", *names), 0)
    tables: Any = encoded.iter_batches(batch_size=None, batch_format="pyarrow")
    for table in tables:
        counts["rows"] += table.num_rows
        for name in names:
            counts[name] += pc.sum(table.column(name)).as_py() or 0  # type: ignore[attr-defined]
    if counts["rows"] == 0:
        raise ValueError(
            "fine-tune: expected at least one example, found none; check the filter and the rewards"
        )
    counts["kept"] = counts["rows"] - counts["no_target"] - counts["too_long"]
    if counts["kept"] == 0:
        raise ValueError(
            f"fine-tune: expected examples that can be trained on, found that all {counts['rows']} are left out: "
            f"{counts['too_long']} longer than finetune.max_length_tokens = {max_length_tokens} (raise it, or lower "
            f"sampling.*.max_tokens), {counts['no_target']} with an empty correction"
        )
    return counts


# --- Ray Train ---------------------------------------------------------------------------------------------------


def _fit(
    settings: dict[str, Any], encoded: "Dataset", config: config.Config, on_cuda: bool
) -> dict[str, Any]:
    from ray.data import ExecutionOptions
    from ray.train import DataConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    from stasc_ray.learning.train_loop import train_loop

    trainer = TorchTrainer(
        train_loop,
        train_loop_config=settings,
        scaling_config=_scaling(config, on_cuda),
        torch_config=TorchConfig(backend="nccl" if on_cuda else "gloo"),
        run_config=_run_config(settings, config.finetune),
        datasets={"examples": encoded},
        # Not split: every worker sees all rows (in shared memory) and takes its share of each batch.
        dataset_config=DataConfig(
            datasets_to_split=[], execution_options=ExecutionOptions(preserve_order=True)
        ),
    )
    elastic = isinstance(config.finetune.workers, tuple)
    with _train_environment(ELASTIC_PLACE_TIMEOUT_S if elastic else config.finetune.start_timeout_s):
        try:
            result = trainer.fit()
        except TrainingFailedError as error:
            raise RuntimeError(_explain(error, settings["iteration"], config.finetune)) from error
    found: dict[str, Any] = result.return_value or {}
    if "not_finite" in found:
        raise FloatingPointError(found["not_finite"])
    if "refused" in found:
        raise ValueError(found["refused"])
    return found


def _scaling(config: config.Config, on_cuda: bool) -> "ScalingConfig":
    from ray.train import ScalingConfig

    by_gpu = capacity.reserved_gpus(config.engine, on_cuda) > 0
    resources = {"CPU": 1, "GPU": 1} if by_gpu else {"CPU": 1}
    return ScalingConfig(
        num_workers=config.finetune.workers,
        use_gpu=by_gpu,
        resources_per_worker=resources,
        elastic_resize_monitor_interval_s=RESIZE_INTERVAL_S,
    )


def _run_config(settings: Mapping[str, Any], finetune: config.Finetune) -> "RunConfig":
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig

    return RunConfig(
        name=f"iteration_{settings['iteration']:02d}",  # the same name and storage resume
        storage_path=settings["storage"],
        checkpoint_config=CheckpointConfig(num_to_keep=2),
        # Without a limit a group that cannot start is tried for ever; elastic workers may miss a place at each lost node.
        failure_config=FailureConfig(
            max_failures=finetune.max_failures,
            controller_failure_limit=finetune.max_failures if isinstance(finetune.workers, tuple) else 1,
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
    # Ray takes one report of the workers, and notices their end, at each check: by default every 2 s, which checkpoints wait for.
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


def _explain(error: Exception, iteration: int, finetune: config.Finetune) -> str:
    """One message out of Ray Train's nested ones: the last line of each worker's failure, and what to do."""
    failures = getattr(error, "worker_failures", None) or {0: getattr(error, "controller_failure", error)}
    lines = {
        rank: (str(failure).strip().splitlines() or [type(failure).__name__])[-1]
        for rank, failure in failures.items()
    }
    told = "; ".join(f"worker {rank}: {line}" for rank, line in sorted(lines.items()))
    return (
        f"fine-tune of iteration {iteration}: expected {finetune.least_workers} worker(s) to finish, found more failures "
        f"than finetune.max_failures = {finetune.max_failures}. Last failure: {told}. Ray's log folder has the "
        "traceback (logs/train/); out of memory: lower finetune.batch_size or max_length_tokens, or set "
        "finetune.gradient_checkpointing. The same command continues from the last checkpoint."
    )
