"""What can be known before work starts: the nodes see what they must, agree on versions, and have room for engines and trainer."""

import json
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from stasc_ray import cluster, config
from stasc_ray.cluster import versions

FULL_BYTES, LORA_BYTES = 16, 4
"""Per parameter on the trainer's GPUs: float32 weights, gradients and AdamW's two moments; an adapter needs the weights only."""


@dataclass(frozen=True)
class Sight:
    """What one node sees."""

    run_folder: bool
    model: bool
    versions: dict[str, str]
    gpu_gb: float | None
    """Memory of its smallest GPU, in GiB; None where Ray has none."""


def check(
    settings: config.Config, run_folder: Path, model: str, cuda: bool, *, generation: bool = True, training: bool = True
) -> list[str]:
    """Refuse a cluster on which this run cannot work.

    Args:
        model: path or Hub id of M0.

    Returns:
        What there is too little of now, on a cluster whose autoscaler may bring it.

    Raises:
        ValueError: too few CPUs or GPUs, or too little memory, for the engines or the trainer.
        RuntimeError: a node without the run folder or the model, or with other versions of Python, Ray, vLLM or this package.
    """
    lacking = list(lack_of_room(settings, cluster.nodes(), cuda, generation=generation, training=training))
    if lacking and not cluster.may_grow():
        raise ValueError(lacking[0])
    is_folder = Path(model).is_dir()
    token = run_folder / f".seen-by-every-node-{uuid.uuid4().hex}"
    token.touch()
    try:
        seen = _ask_every_node(str(token), model if is_folder else None)
    finally:
        token.unlink()
    for name, sight in seen.items():
        _check_sight(name, sight, run_folder, model)
    sizes = [sight.gpu_gb for sight in seen.values() if sight.gpu_gb]
    if cuda and sizes and is_folder:
        problem = too_small(settings, parameters(Path(model)), min(sizes), generation=generation, training=training)
        if problem:
            raise ValueError(problem)
    notes = [f"{text}. Waiting for the autoscaler (start_timeout_s)" for text in lacking]
    if generation and settings.engine.actors == "all" and cluster.may_grow():
        room = cluster.pool_size(settings.engine, cuda)[0]
        notes.append(f"engine.actors = all: {room} on the nodes that run now; for more as the cluster grows, say [min, max]")
    return notes


def lack_of_room(
    settings: config.Config, nodes: Sequence[Mapping[str, float]], cuda: bool, *, generation: bool, training: bool
) -> Iterator[str]:
    """What these nodes (their resources) are too small for."""
    engine, finetune = settings.engine, settings.finetune
    gpus = cluster.reserved_gpus(engine, cuda)
    on_cpus = f", or set engine.device=cpu{' without engine.reserve_gpus' if engine.reserve_gpus else ''}" if gpus else ""
    room = cluster.room_for_engines(engine, nodes, cuda)
    if generation and engine.least_actors > room:
        each = f"{engine.cpus_per_actor} CPU(s)" + (f" and {gpus} GPU(s)" if gpus else "")
        yield (
            f"engine.actors: expected at most the {room} engine(s) that the cluster's {_amounts(nodes)} have room for ({each} "
            f"each, on one node, and a CPU to read and grade), found {engine.least_actors}; lower it or what each takes, add "
            f"nodes{on_cpus}"
        )
    room = cluster.places(nodes, 1, 1 if gpus else 0)
    if training and finetune.least_workers > room:
        yield (
            f"finetune.workers: expected at most the {room} worker(s) that the cluster's {_amounts(nodes)} have room for, found "
            f"{finetune.least_workers}; lower it, add nodes{on_cpus}"
        )
    memory_gb, actors = sum(node.get("memory", 0) for node in nodes) / 2**30, engine.least_actors
    if generation and not cuda and actors * engine.kv_cache_gb > memory_gb:
        yield (
            f"engine.kv_cache_gb: expected actors x kv_cache_gb below the cluster's {memory_gb:.1f} GiB, found "
            f"{actors} x {engine.kv_cache_gb:g}; lower one of them"
        )


def _amounts(nodes: Sequence[Mapping[str, float]]) -> str:
    cpus, gpus = (int(sum(node.get(name, 0) for node in nodes)) for name in ("CPU", "GPU"))
    return f"{len(nodes)} node(s) with {cpus} CPUs and {gpus} GPUs"


def _ask_every_node(token: str, model: str | None) -> dict[str, Sight]:
    """Each node's view; a node that leaves while it is asked has none, as if it had left before."""
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0)(_look)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    strategies = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    has_gpus = [node["Resources"].get("GPU", 0) > 0 for node in nodes]
    asked = zip(strategies, has_gpus, strict=True)
    views = [look.options(scheduling_strategy=where).remote(token, model, gpus) for where, gpus in asked]
    seen = {}
    for node, view in zip(nodes, views, strict=True):
        try:
            seen[f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})"] = ray.get(view)
        except RayTaskError:
            raise
        except RayError:  # a lost node counts as alive until it has missed its heartbeats
            continue
    return seen


def _look(token: str, model: str | None, gpus: bool) -> Sight:
    """What this node sees."""
    return Sight(Path(token).exists(), model is None or Path(model).is_dir(), versions(), _smallest_gpu_gb() if gpus else None)


def _smallest_gpu_gb() -> float | None:
    """Asked of nvidia-smi, since torch would take GPU memory for a context; None where it does not answer."""
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return min((float(size) / 1024 for size in found if size.isdigit()), default=None)


def _check_sight(name: str, sight: Sight, run_folder: Path, model: str) -> None:
    everywhere = "at the same path on every node"
    if not sight.run_folder:
        raise RuntimeError(
            f"storage: expected node {name} to see the run folder {run_folder}, found nothing there; "
            f"use a folder that is mounted {everywhere} (storage=..., --run-dir or --output)"
        )
    if not sight.model:
        raise RuntimeError(
            f"model.path: expected node {name} to see {model}, found nothing there; "
            f"use a folder that is mounted {everywhere}, or a Hub id"
        )
    ours = versions()
    if sight.versions != ours:
        pairs = {one: (sight.versions.get(one), ours.get(one)) for one in sorted({*ours, *sight.versions})}
        differing = {one: pair for one, pair in pairs.items() if pair[0] != pair[1]}
        raise RuntimeError(
            f"node {name}: expected the driver's versions, found (node, driver) {differing}; use one image for all nodes"
        )


def parameters(model: Path) -> int:
    """Number of weights in a folder's safetensors files, from their headers; 0 where there are none."""
    index = model / "model.safetensors.index.json"
    names = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else {"model.safetensors"}
    return sum(_elements(model / name) for name in names if (model / name).is_file())


def _elements(file: Path) -> int:
    with file.open("rb") as data:
        header = json.loads(data.read(int.from_bytes(data.read(8), "little")))
    return sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def too_small(
    settings: config.Config, weights: int, gpu_gb: float, *, generation: bool = True, training: bool = True
) -> str | None:
    """Why GPUs of that size cannot hold this many weights, or None. Activations and KV cache need room on top of that."""
    engine, finetune = settings.engine, settings.finetune
    bytes_each = 4 if engine.dtype == "float32" else 2
    room_gb, need_gb = gpu_gb * engine.gpu_memory_utilization, weights * bytes_each / engine.tensor_parallel_size / 2**30
    if generation and need_gb >= room_gb:
        return (
            f"engine: expected the weights to fit into {room_gb:.1f} GiB (engine.gpu_memory_utilization of a GPU's {gpu_gb:.1f}), "
            f"found {need_gb:.1f} GiB per GPU; raise engine.tensor_parallel_size or take a smaller model"
        )
    state = LORA_BYTES if finetune.method == "lora" else FULL_BYTES
    need_gb = weights * state / finetune.least_workers / 2**30  # hybrid sharding needs more: a share of a node's workers
    if training and need_gb >= gpu_gb:
        return (
            f"finetune: expected weights, gradients and optimizer state to fit into a GPU's {gpu_gb:.1f} GiB, "
            f"found {need_gb:.1f} GiB "
            "per worker; raise finetune.workers, or set finetune.method=lora"
        )
    return None
