"""What a preference objective compares with: log-probabilities of both sides of each pair under the weights
that the fine-tune starts from (M0, or the current model; an adapter that is continued stays on).

They are computed once, before step 1, by all workers. They rest beside the checkpoints, from which a resumed
fine-tune reads them: its weights are others by then.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stasc_ray.learning import batches, objectives, packing, steps
from stasc_ray.learning.job import FinetuneJob, RefusedError
from stasc_ray.store import files

NAME = "reference.parquet"
"""In the storage folder: rows {id, chosen, rejected}, nats over the trained tokens of each side."""


def known(
    model: Any,
    job: FinetuneJob,
    examples: batches.Examples,
    passes: packing.Passes,
    device: Any,
    *,
    rank: int,
    world: int,
) -> batches.Examples:
    """The examples with their `reference`, read or computed. All workers call it, before a checkpoint is
    loaded into the model.

    Raises:
        RefusedError: the storage folder has those of other examples (on every worker alike).
    """
    import torch.distributed as dist

    path = Path(job.storage) / NAME
    read: list[Any] = [_read(path) if rank == 0 else None]
    if world > 1:
        dist.broadcast_object_list(read)
    (found,) = read
    if found is None:
        computed = compute(model, job, examples, passes, device, rank=rank, world=world)
        if job.lease:
            job.lease.check()
        if rank == 0:
            _write(path, examples.ids, computed)
        return replace(examples, reference=computed)
    if found.keys() != set(examples.ids):
        raise RefusedError(
            f"{path}: expected log-probabilities of this fine-tune's {len(examples)} pairs, found "
            f"{len(found)} of others; delete the folder, and the fine-tune begins again"
        )
    return replace(examples, reference=np.array([found[id] for id in examples.ids], np.float32))


def compute(
    model: Any,
    job: FinetuneJob,
    examples: batches.Examples,
    passes: packing.Passes,
    device: Any,
    *,
    rank: int = 0,
    world: int = 1,
) -> np.ndarray:
    """(N, 2) float32 log-probabilities of both sides of all pairs, without dropout; alike on every worker."""
    import torch
    import torch.distributed as dist

    forward = steps.make_forward(model, job, device, world, passes, objectives.side_logprobs)
    room, stacked = examples.room(stacked=passes.stacked), passes.stacked
    shares = batches.deal(np.arange(len(examples)), room, world, passes.capacity, stacked=stacked)
    found = torch.zeros(len(examples), 2, device=device)
    model.eval()
    with torch.no_grad():
        for group, counts in steps.turns(shares, rank):
            sums = forward(steps.join(examples, group, stacked=stacked))[..., 0]
            if counts:
                found[group] = sums
    model.train()
    _reshard(model)
    if world > 1:
        dist.all_reduce(found)
    return found.cpu().numpy()


def _reshard(model: Any) -> None:
    """Give gathered weights back: FSDP2 keeps some for a backward pass, which does not come."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _read(path: Path) -> dict[str, tuple[float, float]] | None:
    if not path.is_file():
        return None
    columns = files.read(path).to_pydict()
    pairs = zip(columns["chosen"], columns["rejected"], strict=True)
    return dict(zip(columns["id"], pairs, strict=True))


def _write(path: Path, ids: Any, found: np.ndarray) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(pa.table({"id": list(ids), "chosen": found[:, 0], "rejected": found[:, 1]}), partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)
