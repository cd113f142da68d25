"""What each Ray Train worker runs: the optimizer steps of one fine-tune, checkpoints, and rank 0's export.

Reads the encoded examples (blocks in Ray's object store, all of them) and the last checkpoint. Writes
checkpoints and progress.json into the storage folder, and through export.py the model folder.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stasc_ray import config, store
from stasc_ray.learning import batches, checkpoints, encoding, export, packing
from stasc_ray.learning.objectives import OBJECTIVES
from stasc_ray.runtime import ray_session
from stasc_ray.runtime.capacity import trainer_threads

if TYPE_CHECKING:
    import numpy as np
    import torch

    from stasc_ray.learning.job import FinetuneJob

CANARY_PROMPTS = 4
Forward = Callable[[Mapping[str, Any]], "torch.Tensor"]  # packed or stacked examples -> their summed loss


def train_loop(config: dict[str, Any]) -> dict[str, Any]:
    """Run all steps that the last checkpoint has not seen, then export.

    Every worker walks through the same global batches and knows every worker's share, so all agree without
    talking on the token count and on the number of forward passes (collectives never mismatch).

    Args:
        config: {"job": FinetuneJob, "given": handle of a trainer.Given}; Ray Train wants a dictionary.

    Returns:
        losses, workers, packing_note, tokens_per_s, train_s, resumed_from_step, loop_started; or one of
        not_finite, refused with a message; or nothing, if no examples come. Those two are returned, not
        raised, because Ray Train would run a raised error `max_failures` times again.
    """
    import ray
    import torch
    from ray import train
    from ray.train.torch import get_device

    job: FinetuneJob = config["job"]
    context = train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    # a reserved GPU may be one that is only declared
    device = get_device() if job.on_cuda else torch.device("cpu")
    storage = Path(job.storage)
    if not storage.is_dir():  # raised, so that no other worker waits for this one
        raise FileNotFoundError(
            f"storage: expected a folder that every node sees, worker {rank} does not see {storage}"
        )
    if _taken_over(job.lease, rank, world):
        return {"refused": f"{storage}: another attempt has taken this run over"}
    _prepare_process(context.get_local_world_size())
    model, layers = load_model(job)
    given: dict[str, Any] = ray.get(config["given"].take.remote())
    if "cancelled" in given:
        return {}
    job = replace(job, examples=given["examples"], model_card=given["model_card"])
    # every worker sees all rows (in shared memory) and takes its share of each batch
    examples = batches.collect(ray.get(given["blocks"]))
    plan = batches.schedule(examples, job.finetune, f"{job.seed}/{job.iteration}")
    passes = choose_passes(model, layers, job, examples, plan[0], device, world)
    model = place(model, layers, job, device, world)
    optimizer = make_optimizer(model, job.finetune)
    losses, steps_before = checkpoints.resume(model, optimizer, len(plan))
    if steps_before != len(plan):
        found = f"expected a fine-tune of {len(plan)} steps, its checkpoint belongs to one of {steps_before}"
        return {"refused": f"{storage}: {found}; delete the folder"}
    resumed_from, loop_started = len(losses), time.time()
    try:
        tokens = _train(model, optimizer, examples, plan, passes, job, losses, device)
    except FloatingPointError as error:
        return {"not_finite": str(error)}
    train_s = time.time() - loop_started
    state = checkpoints.gather(model)
    del optimizer, model  # frees the GPU for the canary
    if device.type == "cuda":
        torch.cuda.empty_cache()  # which looks at what is free for other processes
    if rank == 0:
        export.export(state, job, [examples.read(index) for index in plan[0][:CANARY_PROMPTS]], device)
    return {
        "losses": losses,
        "trained_tokens": int(sum(examples.trained[batch].sum() for batch in plan)),
        "workers": world,
        "packing_note": passes.note,
        "tokens_per_s": tokens / max(train_s, 1e-9),
        "train_s": train_s,
        "resumed_from_step": resumed_from,
        "loop_started": loop_started,
        "export_s": time.time() - loop_started - train_s,
    }


def _taken_over(lease: store.Lease | None, rank: int, world: int) -> bool:
    """What rank 0 finds: all workers must agree."""
    import torch.distributed as dist

    found = [bool(lease and rank == 0 and lease.lost)]
    if lease and world > 1:
        dist.broadcast_object_list(found)
    return found[0]


def _train(
    model: Any,
    optimizer: Any,
    examples: batches.Examples,
    plan: Sequence["np.ndarray"],
    passes: packing.Passes,
    job: "FinetuneJob",
    losses: list[float],
    device: Any,
) -> int:
    """Run the steps that `losses` does not cover, appending to it; returns the tokens that went through the
    model.

    Raises:
        FloatingPointError: a loss or a gradient is NaN or infinite (on every worker alike).
    """
    import torch
    from ray import train

    finetune, context = job.finetune, train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    forward = make_forward(model, job, device, world)
    steps, tokens = len(plan), 0
    for step in range(len(losses), steps):
        batch = plan[step]
        torch.manual_seed(hash((job.seed, job.iteration, step, rank)))  # dropout; resumes exactly
        rate = finetune.learning_rate * learning_rate_factor(step, steps, finetune)
        shares = batches.deal(batch, examples.lengths, world, passes.capacity, stacked=passes.stacked)
        losses.append(backward(forward, examples, shares, rank, device, stacked=passes.stacked))
        norm = update(model, optimizer, rate, finetune.max_grad_norm)
        if not (math.isfinite(losses[-1]) and math.isfinite(norm)):
            raise FloatingPointError(_not_finite(losses, norm, steps, rate))
        tokens += int(examples.lengths[batch].sum())
        if rank == 0:
            _write_progress(job, step + 1, steps, losses[-1])
        # also after the last step: an export that runs out of memory repeats no training
        if (step + 1) % finetune.checkpoint_every_n_steps == 0 or step + 1 == steps:
            if job.lease:
                job.lease.check()
            checkpoints.report(model, optimizer, losses, steps, rank)
    return tokens


# --- the model and its optimizer
# ---------------------------------------------------------------------------------


def _prepare_process(local_workers: int) -> None:
    """Set the number of threads; silence loading bars."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(trainer_threads(local_workers, ray_session.cores()))
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def load_model(job: "FinetuneJob") -> tuple[Any, set[str]]:
    """M0 or the current model in float32 on the host, with its adapter if LoRA trains; and the class names of
    its layers.

    Each worker loads the whole model into host memory before its shard goes to the device.
    """
    import torch

    finetune = job.finetune
    torch.manual_seed(job.seed)  # a fresh adapter starts alike on every worker
    model: Any = export.load_base(job)
    if finetune.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    layers: set[str] = set(model._no_split_modules or ())
    if finetune.method == "lora":
        model = export.with_adapter(model, job, trainable=True)
    return model.train(), layers


def choose_passes(
    model: Any,
    layers: set[str],
    job: "FinetuneJob",
    examples: batches.Examples,
    first_batch: "np.ndarray",
    device: Any,
    world: int,
) -> packing.Passes:
    """How examples share forward passes; where they would be packed, two real ones are measured before.

    A resumed fine-tune measures again, with the same weights and examples, so it goes on as it began.
    """
    finetune, on_cuda = job.finetune, job.on_cuda
    leak = None
    if packing.passes(finetune, on_cuda, None).packed:
        rows = [examples.read(index) for index in first_batch[:2].tolist()]
        leak = packing.measure(model, layers, rows, device, world)
    return packing.passes(finetune, on_cuda, leak)


def place(model: Any, layers: set[str], job: "FinetuneJob", device: Any, world: int) -> "torch.nn.Module":
    """The model on its device, sharded with FSDP2 if workers share it."""
    if world == 1:
        return model.to(device)
    dtype = compute_dtype(job.finetune, device)
    return _shard(model, layers, device, world, dtype, job.finetune.sharding == "hybrid")


def _shard(model: Any, layers: set[str], device: Any, world: int, dtype: Any, hybrid: bool) -> Any:
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = _hybrid_mesh(device, world) if hybrid else init_device_mesh(device.type, (world,))
    mixed = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for module in list(model.modules()):
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh, mp_policy=mixed)
    return fully_shard(model, mesh=mesh, mp_policy=mixed)


def _hybrid_mesh(device: Any, world: int) -> Any:
    """(replicas, shards): shards of one node's workers; one group over all where nodes have unequal numbers
    or one worker each.
    """
    import torch.distributed as dist
    from ray import train
    from torch.distributed.device_mesh import init_device_mesh

    local: list[Any] = [None] * world
    dist.all_gather_object(local, train.get_context().get_local_world_size())
    if len(set(local)) > 1 or local[0] in (1, world):
        return init_device_mesh(device.type, (world,))
    return init_device_mesh(device.type, (world // local[0], local[0]), mesh_dim_names=("replicas", "shards"))


def compute_dtype(finetune: config.Finetune, device: Any) -> Any:
    """The type of the matrix products; weights, gradients and optimizer state stay float32."""
    import torch

    name = finetune.dtype
    return getattr(torch, name if name != "auto" else ("bfloat16" if device.type == "cuda" else "float32"))


def make_optimizer(model: Any, finetune: config.Finetune) -> "torch.optim.Optimizer":
    """AdamW; weight decay acts on matrices only (embeddings included), not on norms and biases."""
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": finetune.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=finetune.learning_rate)


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


# --- one step
# ----------------------------------------------------------------------------------------------------


def backward(
    forward: Forward,
    examples: batches.Examples,
    shares: list[list[list[int]]],
    rank: int,
    device: Any,
    *,
    stacked: bool,
) -> float:
    """Gradients of the global batch, whose `shares` are `batches.deal`'s; returns its mean loss per trained
    token, in nats.
    """
    import torch
    import torch.distributed as dist

    world, mine = len(shares), shares[rank]
    everything = [index for share in shares for group in share for index in group]
    trained = int(examples.trained[everything].sum())
    summed = torch.zeros((), device=device)
    for turn in range(max(len(share) for share in shares)):
        # A worker that has run out still takes part in FSDP's collectives, with a loss of zero.
        group, weight = (mine[turn], 1.0) if turn < len(mine) else (everything[:1], 0.0)
        rows = [examples.read(index) for index in group]
        joined = encoding.stack(rows) if stacked else encoding.concatenate(rows)
        loss = forward(joined) * weight
        (loss * world / trained).backward()  # FSDP2 averages gradients over the workers; the loss is a sum
        summed += loss.detach()
    if world > 1:
        dist.all_reduce(summed)
    return summed.item() / trained


def update(model: Any, optimizer: Any, rate: float, max_grad_norm: float) -> float:
    """Clip and step; returns the gradients' global norm before clipping."""
    import torch
    from torch.distributed.tensor import DTensor

    norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], max_grad_norm)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def make_forward(model: Any, job: "FinetuneJob", device: Any, world: int) -> Forward:
    """A function of packed or stacked examples that returns the summed cross-entropy of their trained tokens
    (a scalar).
    """
    import torch

    objective, dtype = OBJECTIVES[job.objective], compute_dtype(job.finetune, device)
    mixed = world == 1 and dtype != torch.float32  # FSDP2 casts by its own policy

    def forward(row: Mapping[str, Any]) -> torch.Tensor:
        # (B, T); packed: B = 1
        tensors = {name: torch.atleast_2d(torch.as_tensor(row[name], device=device)) for name in row}
        with torch.autocast(device.type, dtype=dtype) if mixed else nullcontext():
            return objective(model, tensors)

    return forward


def _not_finite(losses: Sequence[float], norm: float, steps: int, rate: float) -> str:
    last = f"{losses[-2]:.4f}" if len(losses) > 1 else "none"
    return (
        f"fine-tune: expected a finite loss, found {losses[-1]} (gradient norm {norm}) at step "
        f"{len(losses)} of {steps} (learning rate {rate:.2e}, "
        f"loss before: {last}); lower finetune.learning_rate, raise warmup_fraction, or check the base "
        f"model's weights"
    )


def _write_progress(job: "FinetuneJob", step: int, steps: int, loss: float) -> None:
    path, lease = Path(job.storage) / "progress.json", job.lease
    if step < steps and path.exists() and time.time() - path.stat().st_mtime < 0.5:
        return
    if lease is None or not lease.lost:
        store.write_atomically(path, json.dumps({"step": step, "steps": steps, "loss": loss}))
