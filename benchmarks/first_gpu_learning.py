"""What first_gpu.py tries of the fine-tune, without Ray: losses of packed examples, speed, export.

The model's steps are those of stasc_ray.learning; here is only what compares them.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import baselines, gpu_work
from benchmarks.first_gpu import ONLY_CUDA, Case, Figures, carry_out
from benchmarks.gpu_work import QWEN, SANDBOX, TINY
from stasc_ray.generation import canary
from stasc_ray.learning import (
    attention,
    batches,
    checkpoints,
    encoding,
    export,
    flops,
    packing,
    placing,
    steps,
    train_loop,
)
from stasc_ray.learning.job import FinetuneJob

FLOAT32, BFLOAT16 = 1e-4, 2e-2
"""Relative differences of losses and norms that the order of sums explains; in bfloat16, rounding too."""
ONE_EACH = packing.Passes(0, stacked=False)
WARM_UP, TOP = 5, 12
"""Steps before the clock starts; kernels that are shown."""


def prepare(
    case: Case,
    name: str,
    model: str,
    number: int,
    values: Sequence[str],
    lengths: tuple[int, int] = gpu_work.LENGTHS,
) -> tuple[FinetuneJob, batches.Examples]:
    """A fine-tune of a model on some examples, which packs as on CUDA on any device."""
    path = gpu_work.model(model, case.work / "bench", case.device)  # where the benchmark looks, too
    overrides = [f"engine.device={case.device}", *values]
    work = gpu_work.make_work(case.work / name, path, overrides, numbers=(1, number), lengths=lengths)
    found = baselines.read_encoded(work)
    rows = [encoding.as_row(str(number), [one]) for number, one in enumerate(found)]
    settings, folder = baselines.read_config(work), case.work / name
    more: dict[str, Any] = {"iteration": 1, "on_cuda": True}
    job = FinetuneJob.of(settings, path, output=folder / "out", storage=folder / "state", **more)
    return job, batches.collect([pa.Table.from_pylist(rows)])


def gradients(
    model: Any, job: FinetuneJob, examples: batches.Examples, passes: packing.Passes, device: Any
) -> dict[str, float]:
    """Loss per trained token and norm of the gradients over all examples, which are one step's."""
    import torch

    forward = steps.make_forward(model, job, device, 1, passes)
    everything = np.arange(len(examples))
    shares = batches.deal(everything, examples.lengths, 1, passes.capacity, stacked=passes.stacked)
    sums = steps.backward(forward, examples, shares, 0, device, stacked=passes.stacked)
    norm = torch.nn.utils.get_total_norm([one.grad for one in model.parameters() if one.grad is not None])
    model.zero_grad(set_to_none=True)
    return {"loss": sums[0].item() / float(examples.trained.sum()), "norm": float(norm)}


def expect_close(what: str, found: Mapping[str, float], right: Mapping[str, float], tolerance: float) -> None:
    """Raises RuntimeError where a figure is off by more than `tolerance`, relative."""
    for name, value in right.items():
        if not math.isclose(found[name], value, rel_tol=tolerance):
            raise RuntimeError(
                f"{what}: expected {name} {value:.6g} within {tolerance:g}, found {found[name]:.6g}"
            )


# --- the steps
# ------------------------------------------------------------------------------------------------------


def packed(case: Case) -> Iterator[Figures]:
    """The sandbox in float32: packed and stacked examples give the loss of examples alone. In bfloat16 the
    kernel for unequal lengths does, too.
    """
    import torch

    device = torch.device(case.device)
    values = ["prompts.preset=sandbox", "finetune.dtype=float32", "finetune.max_length_tokens=512"]
    job, examples = prepare(case, "packed", SANDBOX, 4, [*values, "finetune.pack_tokens=1024"], (12, 60))
    model, layers = placing.load_model(job, device)
    chosen = train_loop.choose_passes(model, layers, job, examples, np.arange(2), device)
    yield {"examples": len(examples), "tokens": int(examples.lengths.sum()), "float32": asdict(chosen)}
    half = replace(job, finetune=job.finetune.model_copy(update={"dtype": "bfloat16"}))
    chosen_half = train_loop.choose_passes(model, layers, half, examples, np.arange(2), device)
    yield {"bfloat16": asdict(chosen_half)}

    placed = placing.place(model, layers, job, device, 1)
    alone = gradients(placed, job, examples, ONE_EACH, device)
    yield {"alone": alone}
    for name, stacked in (("packed", False), ("stacked", True)):
        found = gradients(placed, job, examples, packing.Passes(1024, stacked=stacked), device)
        yield {name: found}
        expect_close(name, found, alone, FLOAT32)

    first, alone = alone, gradients(placed, half, examples, ONE_EACH, device)
    yield {"bfloat16 alone": alone}
    kernel = None if case.on_cuda else attention.reference
    if not case.on_cuda:
        yield {"skipped torch's varlen kernel": f"{ONLY_CUDA}; plain attention in its place"}
    varlen = packing.Passes(1024, stacked=False, varlen=True)
    with attention.compared(placed, kernel) as errors:  # whose results are plain attention's
        expect_close("compared", gradients(placed, job, examples, varlen, device), first, FLOAT32)
    yield {"kernel against plain attention, greatest relative error": max(errors)}
    attention.install(placed, kernel)
    found = gradients(placed, half, examples, varlen, device)
    yield {"bfloat16 varlen": found}
    expect_close("bfloat16 varlen", found, alone, BFLOAT16)
    if max(errors) > packing.KERNEL_TOLERANCE:
        raise RuntimeError(
            f"kernel: expected errors up to {packing.KERNEL_TOLERANCE:g}, found {max(errors):.2g}"
        )
    if case.on_cuda and not chosen_half.varlen:
        raise RuntimeError(f"expected the train loop to choose variable lengths, found {chosen_half.note!r}")


def speed(case: Case) -> Iterator[Figures]:
    """The 1.5B shape: tokens/s, utilization and memory for passes of several sizes; the kernels of one."""
    import torch

    device, cuda = torch.device(case.device), case.on_cuda
    sizes = {4096: 20, 8192: 8, 16384: 8} if cuda else {1024: 2}  # tokens of a pass: steps
    job, examples = prepare(case, "speed", QWEN if cuda else TINY, max(sizes) // 400, [])
    model, layers = placing.load_model(job, device)
    chosen = train_loop.choose_passes(model, layers, job, examples, np.arange(2), device)
    yield {"passes": asdict(chosen)}
    weights = flops.of_model(model, frozen=False)
    placed = placing.place(model, layers, job, device, 1)
    if chosen.varlen:
        attention.install(placed)
    optimizer = steps.make_optimizer(placed, job.finetune)

    def step(batch: np.ndarray, passes: packing.Passes) -> None:
        forward = steps.make_forward(placed, job, device, 1, passes)
        shares = batches.deal(batch, examples.lengths, 1, passes.capacity, stacked=passes.stacked)
        steps.backward(forward, examples, shares, 0, device, stacked=passes.stacked)
        steps.update(placed, optimizer, 1e-5, 1.0)

    for capacity, times in sizes.items():
        batch = np.arange(len(examples))[np.cumsum(examples.lengths) <= capacity]
        passes = replace(chosen, capacity=capacity)
        try:
            seconds = _timed(lambda b=batch, p=passes: step(b, p), times, cuda)
        except torch.OutOfMemoryError as error:  # worth knowing, and no failure: the next run packs less
            optimizer.zero_grad(set_to_none=True)
            yield {f"{capacity} tokens": str(error).split(". ")[0]}
            continue
        yield {f"{capacity} tokens": _rates(examples, batch, seconds, weights, cuda)}
    batch = np.arange(len(examples))[np.cumsum(examples.lengths) <= min(sizes)]
    yield from _kernels(lambda: step(batch, replace(chosen, capacity=min(sizes))), cuda)
    if cuda and not chosen.varlen:
        raise RuntimeError(f"expected the train loop to choose variable lengths, found {chosen.note!r}")


def _timed(step: Any, times: int, cuda: bool) -> float:
    """Seconds of a step, warm; the peak of the memory begins anew."""
    import torch

    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for number in range(WARM_UP + times if cuda else times):
        if number == (WARM_UP if cuda else 0):
            started = time.perf_counter()
        step()
        if cuda and number == WARM_UP - 1:
            torch.cuda.synchronize()
    if cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / times


def _rates(
    examples: batches.Examples, batch: np.ndarray, seconds: float, weights: Any, cuda: bool
) -> Figures:
    import torch

    lengths = examples.lengths[batch].astype(float)
    found: Figures = {"tokens_a_step": float(lengths.sum()), "tokens_per_s": float(lengths.sum()) / seconds}
    if cuda:
        peak, trained = flops.peak_flops(torch.cuda.get_device_name()), float(examples.trained[batch].sum())
        done = flops.training_flops(weights, lengths.sum(), (lengths**2).sum(), trained)
        found["mfu"] = float(done / seconds / peak) if peak else "this GPU's peak is not in flops.PEAK_FLOPS"
        found["allocated_peak_gb"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def _kernels(step: Any, cuda: bool) -> Iterator[Figures]:
    """Where a step's time goes, by kernel on CUDA, by operator on a CPU."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiled:
        started = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        wall_ms = 1e3 * (time.perf_counter() - started)
    key = "self_device_time_total" if cuda else "self_cpu_time_total"
    events = sorted(profiled.key_averages(), key=lambda event: -getattr(event, key))
    kernels = [one for one in events if not cuda or "CUDA" in str(one.device_type)]
    ms = [getattr(one, key) / 1e3 for one in kernels]
    top = [
        f"{time_ms:8.2f} ms  {one.count:5}x  {one.key[:90]}" for time_ms, one in zip(ms, kernels, strict=True)
    ]
    yield {"profiled_step_ms": wall_ms, "of it in kernels": sum(ms) / wall_ms, "kernels": top[:TOP]}


def exported(case: Case) -> Iterator[Figures]:
    """A step of the 1.5B shape, then what the train loop does at its end: GPU memory that is given back, the
    model's folder, its canary.
    """
    import torch

    device, cuda = torch.device(case.device), case.on_cuda
    job, examples = prepare(case, "exported", QWEN if cuda else TINY, 4, [])
    whole, layers = placing.load_model(job, device)
    model = placing.place(whole, layers, job, device, 1)
    del whole
    yield gradients(model, job, examples, packing.Passes(2048, stacked=False), device)
    started = time.perf_counter()
    state = checkpoints.gather(model, export.saved_dtype(job))
    yield {"gather_s": time.perf_counter() - started}
    before = torch.cuda.memory_allocated() / 2**30 if cuda else 0.0
    del model
    export.give_back_memory()
    if cuda:
        after, free = torch.cuda.memory_reserved() / 2**30, torch.cuda.mem_get_info()[0] / 2**30
        yield {"allocated_gb": before, "reserved_gb_after_del": after, "free_gb_after_del": free}
        if after > 0.5:
            raise RuntimeError(
                f"expected the model's memory back before the canary, found {after:.2f} GiB reserved"
            )
    else:
        yield {"skipped GPU memory after `del`": ONLY_CUDA}
    rows = [examples.read(number) for number in range(len(examples))]
    started = time.perf_counter()
    export.export(state, job, rows, device)
    written = canary.read(Path(job.output) / canary.FILE)
    yield {"export_s": time.perf_counter() - started, "dtype": written["dtype"]}
    host = export.canary(Path(job.output), rows[:1], "cpu")["prompts"][0]["logprobs"]
    apart = float(np.abs(np.subtract(host, written["prompts"][0]["logprobs"])).max())
    yield {"canary on the device against the CPU, nats": apart}
    if not apart <= 1e-3:
        raise RuntimeError(
            f"canary: expected the CPU's log-probabilities within 0.001, found {apart:.2g} apart"
        )


if __name__ == "__main__":
    carry_out({one.__name__: one for one in (packed, speed, exported)})
