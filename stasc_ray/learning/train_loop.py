"""What each Ray Train worker runs: the optimizer steps of one fine-tune, checkpoints, and rank 0's export.

Reads the encoded examples (blocks in Ray's object store, all of them) and the last checkpoint. Writes
checkpoints, progress.json and training.jsonl into the storage folder, and through export.py the model folder.
"""

import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stasc_ray import store
from stasc_ray.learning import (
    attention,
    batches,
    checkpoints,
    export,
    flops,
    objectives,
    packing,
    placing,
    reference,
    steps,
)
from stasc_ray.learning.job import FinetuneJob, RefusedError
from stasc_ray.runtime import ray_session
from stasc_ray.runtime.capacity import trainer_threads
from stasc_ray.store import step_log

if TYPE_CHECKING:
    import numpy as np
    import torch

CANARY_PROMPTS = 4
STEPS_PER_READ = 8
"""Steps on CUDA after which the host reads losses and norms; it waits for the GPU each time."""


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
    try:
        return _train(config["job"], config["given"])
    except RefusedError as error:
        return {"refused": str(error)}
    except FloatingPointError as error:
        return {"not_finite": str(error)}


def _train(job: FinetuneJob, waits: Any) -> dict[str, Any]:
    import ray
    import torch
    from ray import train
    from ray.train.torch import get_device

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
        raise RefusedError(f"{storage}: another attempt has taken this run over")
    _prepare_process(context.get_local_world_size())
    whole, layers = placing.load_model(job, device, empty=rank > 0)
    given: dict[str, Any] = ray.get(waits.take.remote())
    if "cancelled" in given:
        return {}
    job = replace(job, examples=given["examples"], model_card=given["model_card"])
    # every worker sees all rows (in shared memory) and takes its share of each batch
    examples = batches.collect(ray.get(given["blocks"]))
    plan = batches.schedule(examples, job.finetune, f"{job.seed}/{job.iteration}")
    passes = choose_passes(whole, layers, job, examples, plan[0], device, rank=rank, world=world)
    weights = flops.of_model(whole, frozen=job.finetune.method == "lora")
    if world == 1:
        model = placing.place(whole, layers, job, device, world)
    else:
        model, _ = placing.load_model(job, device, empty=True)
        model = placing.place(model, layers, job, device, world, None if rank else whole)
    del whole
    if passes.varlen:
        attention.install(model)
    if objectives.objective_of(job.objective).pairs:  # of the weights at the start, which `resume` replaces
        examples = reference.known(model, job, examples, passes, device, rank=rank, world=world)
    optimizer = steps.make_optimizer(model, job.finetune)
    losses, steps_before = checkpoints.resume(model, optimizer, len(plan))
    if steps_before != len(plan):
        found = f"expected a fine-tune of {len(plan)} steps, its checkpoint belongs to one of {steps_before}"
        raise RefusedError(f"{storage}: {found}; delete the folder")
    resumed_from, loop_started = len(losses), time.time()
    tokens = Training(model, optimizer, examples, plan, passes, job, losses, device, weights).run()
    train_s = time.time() - loop_started
    del optimizer  # first: on CPUs its moments are half of all memory
    state = checkpoints.gather(model, export.saved_dtype(job))
    del model  # frees the GPU for the canary
    export.give_back_memory()
    if rank == 0:
        export.export(state, job, [examples.read(index) for index in plan[0][:CANARY_PROMPTS]], device)
        shutil.copyfile(storage / step_log.NAME, Path(job.output) / step_log.NAME)
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


@dataclass
class _Step:
    """An optimizer step whose figures may still be on the GPU."""

    rate: float
    batch: "np.ndarray"
    sums: "torch.Tensor"
    """(2,), of `steps.backward`."""
    norm: "torch.Tensor"


@dataclass
class Training:
    """The steps that `losses` does not cover."""

    model: Any
    optimizer: Any
    examples: batches.Examples
    plan: Sequence["np.ndarray"]
    passes: packing.Passes
    job: FinetuneJob
    losses: list[float]
    """Grows by each step's."""
    device: Any
    weights: flops.Weights | None
    """From which the utilization is computed."""

    def __post_init__(self) -> None:
        """Ask Ray Train who this worker is; go on with the steps' file."""
        import torch
        from ray import train

        context = train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        on_cuda = self.device.type == "cuda"
        self.peak = flops.peak_flops(torch.cuda.get_device_name(self.device)) if on_cuda else None
        self.group = STEPS_PER_READ if on_cuda else 1
        self.saved = self.read_at = time.monotonic()
        path = Path(self.job.storage) / step_log.NAME
        self.log = step_log.StepLog(path, self.job.lease, len(self.losses)) if self.rank == 0 else None

    def run(self) -> int:
        """Train; returns the tokens that went through the model.

        Raises:
            FloatingPointError: a loss or a gradient is NaN or infinite (on every worker alike).
        """
        first = len(self.losses)
        forward = steps.make_forward(self.model, self.job, self.device, self.world, self.passes)
        waiting: list[_Step] = []
        for step in range(first, len(self.plan)):
            waiting.append(self._step(step, forward))
            last = step + 1 == len(self.plan)
            if last or len(waiting) == self.group:
                due = self._read(waiting)
                waiting = []
                # also after the last step: an export that runs out of memory repeats no training
                if due or last:
                    self._save()
        return int(sum(self.examples.lengths[batch].sum() for batch in self.plan[first:]))

    def _step(self, step: int, forward: steps.Forward) -> _Step:
        import torch

        job, batch, passes = self.job, self.plan[step], self.passes
        # dropout; resumes exactly
        torch.manual_seed(hash((job.seed, job.iteration, step, self.rank)))
        rate = job.finetune.learning_rate * steps.learning_rate_factor(step, len(self.plan), job.finetune)
        shares = batches.deal(
            batch,
            self.examples.room(stacked=passes.stacked),
            self.world,
            passes.capacity,
            stacked=passes.stacked,
        )
        # The first worker's clock decides; the others learn it with the loss, at no cost.
        due = self.rank == 0 and time.monotonic() - self.saved >= job.finetune.checkpoint_every_s
        sums = steps.backward(
            forward, self.examples, shares, self.rank, self.device, stacked=passes.stacked, flag=due
        )
        norm = steps.update(self.model, self.optimizer, rate, job.finetune.max_grad_norm)
        return _Step(rate, batch, sums, norm)

    def _read(self, waiting: list[_Step]) -> bool:
        """Wait for these steps' figures, check and write them; returns whether a checkpoint is due.

        Raises:
            FloatingPointError: as `run`.
        """
        import torch

        figures = torch.stack([torch.cat([one.sums, one.norm.reshape(1)]) for one in waiting]).tolist()
        lines = []
        for one, (summed, _, norm) in zip(waiting, figures, strict=True):
            self.losses.append(summed / int(self.examples.counts[one.batch].sum()))
            if not (math.isfinite(self.losses[-1]) and math.isfinite(norm)):
                raise FloatingPointError(_not_finite(self.losses, norm, len(self.plan), one.rate))
            line = {"step": len(self.losses), "time": time.time(), "loss": self.losses[-1]}
            lines.append({**line, "grad_norm": norm, "learning_rate": one.rate})
        if self.log:
            speed = self._speed(waiting)
            self.log.add([line | speed for line in lines], last=len(self.losses) == len(self.plan))
            _write_progress(self.job, len(self.losses), len(self.plan), self.losses[-1])
        return any(due for _, due, _ in figures)

    def _speed(self, waiting: list[_Step]) -> dict[str, float | None]:
        """Of these steps together: they were waited for together."""
        now = time.monotonic()
        seconds, self.read_at = max(now - self.read_at, 1e-9), now
        batch = [index for one in waiting for index in one.batch]
        tokens, squares = (float(of[batch].sum()) for of in (self.examples.lengths, self.examples.squares))
        mfu = None
        if self.weights and self.peak:
            trained = float(self.examples.trained[batch].sum())
            done = flops.training_flops(self.weights, tokens, squares, trained)
            mfu = float(done / seconds / self.peak / self.world)
        return {"tokens_per_s": tokens / seconds, "mfu": mfu}

    def _save(self) -> None:
        if self.job.lease:
            self.job.lease.check()
        if self.log:
            self.log.add([], last=True)  # what a resumed fine-tune does not take again
        checkpoints.report(self.model, self.optimizer, self.losses, len(self.plan), self.rank)
        self.saved = self.read_at = time.monotonic()


def _prepare_process(local_workers: int) -> None:
    """Set the number of threads; silence loading bars."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(trainer_threads(local_workers, ray_session.cores()))
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def choose_passes(
    model: Any,
    layers: set[str],
    job: FinetuneJob,
    examples: batches.Examples,
    first_batch: "np.ndarray",
    device: Any,
    *,
    rank: int = 0,
    world: int = 1,
) -> packing.Passes:
    """How examples share forward passes; rank 0, which has the model, measures two real ones before, if
    something depends on it.

    A resumed fine-tune measures again, with the same weights and examples, so it goes on as it began.
    """
    import torch.distributed as dist

    finetune, on_cuda = job.finetune, job.on_cuda
    longest = int(max(examples.lengths.max(), examples.stacked.max()))
    pack = packing.passes(finetune, on_cuda, packing.Measured()).packed
    varlen = pack and device.type == "cuda" and placing.compute_dtype(finetune, device).itemsize == 2
    found = [packing.Measured()]
    if rank == 0:
        rows = [examples.read(index) for index in first_batch[:2].tolist()]
        chunk = _most_logits(model, job, examples) > objectives.CHUNK_LOGITS
        if pack or chunk:
            found = [packing.measure(model, layers, rows, device, pack=pack, varlen=varlen, chunk=chunk)]
    if world > 1:
        dist.broadcast_object_list(found)
    return packing.passes(finetune, on_cuda, found[0], longest)


def _most_logits(model: Any, job: FinetuneJob, examples: batches.Examples) -> int:
    """That a forward pass can have."""
    values = job.finetune
    capacity = (
        max(values.pack_tokens, values.max_length_tokens) if job.on_cuda else packing.CPU_CAPACITY_TOKENS
    )
    tokens = max(capacity if values.packing else 0, int(examples.lengths.max()))
    return tokens * int(attention.base_of(model).config.get_text_config().vocab_size)


def _not_finite(losses: Sequence[float], norm: float, steps: int, rate: float) -> str:
    last = f"{losses[-2]:.4f}" if len(losses) > 1 else "none"
    return (
        f"fine-tune: expected a finite loss, found {losses[-1]} (gradient norm {norm}) at step "
        f"{len(losses)} of {steps} (learning rate {rate:.2e}, "
        f"loss before: {last}); lower finetune.learning_rate, raise warmup_fraction, or check the base "
        f"model's weights"
    )


def _write_progress(job: FinetuneJob, step: int, steps: int, loss: float) -> None:
    path, lease = Path(job.storage) / "progress.json", job.lease
    if step < steps and path.exists() and time.time() - path.stat().st_mtime < 0.5:
        return
    if lease is None or not lease.lost:
        store.write_atomically(path, json.dumps({"step": step, "steps": steps, "loss": loss}))
