"""What first_gpu.py tries of the sharded fine-tune: torchrun with one process, NCCL, checkpoints."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.first_gpu import Case, Figures, carry_out
from benchmarks.first_gpu_learning import BFLOAT16, FLOAT32, expect_close, gradients, prepare
from benchmarks.gpu_work import SANDBOX
from stasc_ray.learning import batches, checkpoints, export, packing, placing, steps
from stasc_ray.learning.job import FinetuneJob


def sharded(case: Case) -> Iterator[Figures]:
    """`sharded_worker` under torchrun, one process: FSDP2's way through NCCL, which one GPU allows."""
    file = case.work / "sharded.json"
    file.unlink(missing_ok=True)
    launcher = ["torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=1"]
    worker = ["benchmarks.first_gpu_sharded", "sharded_worker", str(file), json.dumps(asdict(case))]
    code = subprocess.run([sys.executable, "-m", *launcher, "-m", *worker], check=False).returncode
    yield json.loads(file.read_text()) if file.exists() else {}
    if code:
        raise RuntimeError(f"sharded_worker: expected torchrun to end with 0, found {code}")


def sharded_worker(case: Case) -> Iterator[Figures]:
    """Full, then LoRA with checkpointing: a sharded step is a whole one; save, load, gather."""
    import torch
    import torch.distributed as dist

    device = torch.device(case.device, 0) if case.on_cuda else torch.device("cpu")
    if case.on_cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if case.on_cuda else "gloo")
    summed = torch.ones(4, device=device)
    dist.all_reduce(summed)
    yield {"backend": dist.get_backend(), "all_reduce": summed.tolist()}
    lora = ["finetune.method=lora", "finetune.gradient_checkpointing=true"]
    for name, values in (("full", []), ("lora", lora)):
        job, examples = prepare(
            case, f"sharded-{name}", SANDBOX, 8, ["prompts.preset=sandbox", *values], (12, 60)
        )
        yield {name: _sharded_step(case, job, examples, device)}
    dist.destroy_process_group()


def _sharded_step(case: Case, job: FinetuneJob, examples: batches.Examples, device: Any) -> Figures:
    import torch

    passes, tolerance = packing.Passes(1024, stacked=False), BFLOAT16 if case.on_cuda else FLOAT32
    whole, layers = placing.load_model(job, device)
    model, _ = placing.load_model(job, device, empty=True)
    dtype = placing.compute_dtype(job.finetune, device)
    model = placing.shard(model, layers, device, 1, dtype, job.finetune.sharding == "hybrid")
    placing._fill(model, whole, device)
    alone = gradients(placing.place(whole, layers, job, device, 1), job, examples, passes, device)
    forward = steps.make_forward(model, job, device, 2, passes)  # 2: FSDP2 casts, as with several workers
    optimizer = steps.make_optimizer(model, job.finetune)

    def step() -> dict[str, float]:
        shares = batches.deal(np.arange(len(examples)), examples.lengths, 1, passes.capacity, stacked=False)
        summed = steps.backward(forward, examples, shares, 0, device, stacked=False)[0].item()
        norm = float(steps.update(model, optimizer, 1e-3, 1.0))
        return {"loss": summed / float(examples.trained.sum()), "norm": norm}

    first = step()
    expect_close("the sharded step", first, alone, tolerance)
    saved, folder = checkpoints.gather(model), str(job.storage / "checkpoint")
    shutil.rmtree(folder, ignore_errors=True)
    started = time.perf_counter()
    checkpoints.save(model, optimizer, folder)
    second = step()
    checkpoints.load(model, optimizer, folder)
    again, loaded_s = checkpoints.gather(model), time.perf_counter() - started
    differ = [name for name, tensor in saved.items() if not torch.equal(tensor, again[name])]
    if differ or not second["loss"] < first["loss"]:
        raise RuntimeError(
            f"expected a loss that falls and a checkpoint that brings all back, found {second}, {differ}"
        )
    expect_close("a step after loading", step(), second, tolerance)
    rounded = checkpoints.gather(model, export.saved_dtype(job))
    return {**first, "whole": alone, "gathered": len(rounded), "save, step, load, gather s": loaded_s}


if __name__ == "__main__":
    carry_out({one.__name__: one for one in (sharded, sharded_worker)})
