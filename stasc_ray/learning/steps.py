"""One optimizer step: the gradients of a global batch over all workers, clipping, AdamW, the learning rate.

Reads encoded examples; writes nothing. On CUDA nothing here waits for the GPU: losses and norms are tensors,
which train_loop.py reads in groups.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from stasc_ray import config
from stasc_ray.learning import attention, batches, encoding, packing
from stasc_ray.learning.objectives import objective_of
from stasc_ray.learning.placing import compute_dtype

if TYPE_CHECKING:
    import torch

    from stasc_ray.learning.job import FinetuneJob

Forward = Callable[[Mapping[str, Any]], "torch.Tensor"]
"""What `join` gives -> the summed loss of its examples."""


def make_optimizer(model: Any, finetune: config.Finetune) -> "torch.optim.Optimizer":
    """AdamW; weight decay acts on matrices only (embeddings included), not on norms and biases."""
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": finetune.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=finetune.learning_rate,
        fused=all(parameter.device.type == "cuda" for parameter in trained) or None,
    )


def learning_rate_factor(step: int, steps: int, finetune: config.Finetune) -> float:
    """Share of the peak learning rate at 0-based `step`: linear warm-up, then cosine or linear decay towards
    0.

    The first step of the warm-up already moves (1 / warm-up steps), so no batch is wasted at rate 0.
    """
    warmup = math.ceil(steps * finetune.warmup_fraction)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * progress)) if finetune.schedule == "cosine" else 1 - progress


def make_forward(
    model: Any,
    job: "FinetuneJob",
    device: Any,
    world: int,
    passes: packing.Passes | None = None,
    compute: Callable[..., "torch.Tensor"] | None = None,
) -> Forward:
    """A function of joined examples that returns their summed loss (a scalar), or what `compute` gives, which
    is called as an objective's loss is.
    """
    import torch

    compute, dtype = compute or objective_of(job.objective).loss, compute_dtype(job.finetune, device)
    mixed = world == 1 and dtype != torch.float32  # FSDP2 casts by its own policy
    varlen, chunk = (passes.varlen, passes.chunk_logits) if passes else (False, None)

    def forward(row: Mapping[str, Any]) -> torch.Tensor:
        # (B, T); packed: B = 1
        tensors = {name: to_device(np.atleast_2d(row[name]), device) for name in row}
        learnt = np.atleast_2d(row["labels"])[:, 1:] != encoding.IGNORED
        tensors["predicting"] = to_device(np.flatnonzero(learnt.any(axis=0)), device)
        if varlen:
            tensors["bounds"] = attention.bounds_of(row, device)  # type: ignore[assignment]
        with torch.autocast(device.type, dtype=dtype) if mixed else nullcontext():
            return compute(model, tensors, job.finetune, chunk_logits=chunk)

    return forward


def to_device(array: np.ndarray, device: Any) -> "torch.Tensor":
    """A copy that CUDA makes while the host goes on."""
    import torch

    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def join(examples: batches.Examples, group: list[int], *, stacked: bool) -> dict[str, np.ndarray]:
    """The examples of one forward pass, with what their objective needs: `weights`; of pairs `sides` and
    `reference` (zero before it is known).
    """
    found = [(place, *one) for place, index in enumerate(group) for one in examples.sequences(index)]
    rows = [row for _, row, _ in found]
    joined: dict[str, Any] = {**(encoding.stack(rows) if stacked else encoding.concatenate(rows))}

    def of_tokens(values: list[Any], kind: Any) -> np.ndarray:
        """Each sequence's value at each of its tokens."""
        if stacked:
            return np.repeat(np.array(values, kind)[:, None], joined["labels"].shape[1], axis=1)
        return np.repeat(np.array(values, kind), [len(row["labels"]) for row in rows])

    if examples.pairs[group].all():
        joined["sides"] = of_tokens([2 * place + side for place, _, side in found], np.int64)
        known = examples.reference
        joined["reference"] = np.zeros((len(group), 2), np.float32) if known is None else known[group]
    elif (examples.weights[group] != 1).any():
        joined["weights"] = of_tokens([examples.weights[group[place]] for place, *_ in found], np.float32)
    return joined


def turns(shares: batches.Shares, rank: int) -> Iterator[tuple[list[int], bool]]:
    """This worker's forward passes, each with whether it counts.

    A worker that has run out still takes part in FSDP's collectives, with examples that do not count.
    """
    mine, some = shares[rank], next(group for share in shares for group in share)
    for turn in range(max(len(share) for share in shares)):
        yield (mine[turn], True) if turn < len(mine) else (some[:1], False)


def backward(
    forward: Forward,
    examples: batches.Examples,
    shares: batches.Shares,
    rank: int,
    device: Any,
    *,
    stacked: bool,
    flag: bool = False,
) -> "torch.Tensor":
    """Gradients of the mean loss (over `examples.counts`) of the global batch, whose `shares` are
    `batches.deal`'s.

    Returns:
        (2,): the batch's summed loss, and how many workers raised `flag`; alike on every worker.
    """
    import torch
    import torch.distributed as dist

    world = len(shares)
    everything = [index for share in shares for group in share for index in group]
    count = int(examples.counts[everything].sum())
    summed = torch.zeros(2, device=device)
    if flag:
        summed[1] = 1
    for group, counts in turns(shares, rank):
        loss = forward(join(examples, group, stacked=stacked)) * float(counts)
        (loss * world / count).backward()  # FSDP2 averages gradients over the workers; the loss is a sum
        summed[0] += loss.detach()
    if world > 1:
        dist.all_reduce(summed)
    return summed


def update(model: Any, optimizer: Any, rate: float, max_grad_norm: float) -> "torch.Tensor":
    """Clip and step; returns the gradients' global norm before clipping, a scalar."""
    import torch
    from torch.distributed.tensor import DTensor

    norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], max_grad_norm)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
