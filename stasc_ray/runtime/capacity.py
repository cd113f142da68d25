"""What a cluster has room for: arithmetic over the resources of its nodes. Pure; asks no Ray."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from stasc_ray import config

FULL_BYTES, LORA_BYTES = 16, 2
"""Per parameter on the trainer's GPUs: float32 weights, gradients and AdamW's two moments; under an adapter
the weights only, in bfloat16 (with `finetune.dtype = "float32"` twice that)."""


NOT_FOR_ENGINES = "cpus_not_for_engines"
"""Resource of a local Ray's node: how many of its CPUs engines do not count on."""
ENGINE_SHARE, TRAINER_SHARE = 0.6, 0.4
"""Of a GPU that an engine and a trainer's worker take turns on. Two engines never fit on one; nor do two
workers where every GPU holds an engine."""
EXPORT_BYTES, LOGITS_COPIES = 7, 3
"""Host memory of the export, per parameter (docs/clusters.md); logits, their softmax and gradient."""


SHM_GB = 1.0
"""What NVIDIA advises for NCCL; vLLM's message queues between workers take less."""

KV_BLOCK_TOKENS, MANY_KV_BLOCKS = 16, 250_000
"""Tokens in a block of vLLM's KV cache on CUDA; a number of blocks that still costs well below a second."""
PREFIXES = 4
"""How many times the tokens in use at once a capped KV cache holds; the rest are cached prefixes."""


def reserved_gpus(engine: config.Engine, cuda: bool) -> int:
    """GPUs that Ray reserves for each engine; with none, none for the trainer's workers either."""
    return engine.tensor_parallel_size if cuda or engine.reserve_gpus else 0


def pool_size(engine: config.Engine, nodes: Sequence[Mapping[str, float]], cuda: bool) -> tuple[int, int]:
    """The least and the most engines that generation runs at once; `engine.actors = "all"`: those that the
    nodes hold.
    """
    if engine.actors == "all":
        room = max(1, room_for_engines(engine, nodes, cuda))
        return room, room
    return engine.actors if isinstance(engine.actors, tuple) else (engine.actors, engine.actors)


def room_for_engines(engine: config.Engine, nodes: Sequence[Mapping[str, float]], cuda: bool) -> int:
    """How many engines the nodes hold, each on one node; one CPU of the cluster is left to read and grade."""
    nodes = [{**node, "CPU": node.get("CPU", 0) - node.get(NOT_FOR_ENGINES, 0)} for node in nodes]
    found = places(nodes, engine.cpus_per_actor, reserved_gpus(engine, cuda))
    left = sum(int(node["CPU"]) for node in nodes) - found * engine.cpus_per_actor
    return found if left >= 1 else max(0, found - 1)


def engine_gpus(
    settings: config.Config, nodes: Sequence[Mapping[str, float]], cuda: bool, *, training: bool
) -> float:
    """GPUs that Ray reserves for each engine of a run whose engines outlive its trainers.

    Whole ones if there are enough for the trainer's workers as well. If engines hold every GPU, and one each,
    they share them with the workers. Else engines have them to themselves, and end before each fine-tune.
    """
    engine = settings.engine
    gpus, total = reserved_gpus(engine, cuda), int(sum(node.get("GPU", 0) for node in nodes))
    least, most = pool_size(engine, nodes, cuda)
    beside = most * gpus + settings.finetune.least_workers <= total
    shares = training and engine.keep_alive and gpus == 1 and least == most == total
    if beside or not shares:
        return gpus
    return ENGINE_SHARE


def room_beside(
    engine: config.Engine,
    nodes: Mapping[str, Mapping[str, float]],
    engines: Mapping[str, int],
    engine_gpus: float,
    worker_gpus: float,
) -> int:
    """How many of a trainer's workers, one CPU and `worker_gpus` each, fit beside `engines`, their number by
    node.
    """
    room = 0
    for name, node in nodes.items():
        there = engines.get(name, 0)
        places = [int(node.get("CPU", 0) - there * engine.cpus_per_actor)]
        if worker_gpus:
            # rounded: 1 - 0.6 is a little less than 0.4
            places.append(int(round((node.get("GPU", 0) - there * engine_gpus) / worker_gpus, 6)))
        room += max(0, min(places))
    return room


def places(nodes: Sequence[Mapping[str, float]], cpus: int, gpus: int) -> int:
    """How many processes with that many CPUs and GPUs the nodes hold."""
    by_cpus = [int(node.get("CPU", 0)) // cpus for node in nodes]
    by_gpus = [int(node.get("GPU", 0)) // gpus for node in nodes] if gpus else by_cpus
    return sum(map(min, by_cpus, by_gpus))


def lack_of_room(
    settings: config.Config,
    nodes: Sequence[Mapping[str, float]],
    cuda: bool,
    *,
    generation: bool,
    training: bool,
) -> Iterator[str]:
    """What these nodes (their resources) are too small for."""
    engine, finetune = settings.engine, settings.finetune
    gpus = reserved_gpus(engine, cuda)
    # with CUDA the builds are for CUDA (builds.py), which do not run on CPUs
    on_cpus = ", or reserve none (engine.reserve_gpus=false)" if gpus and not cuda else ""
    room = room_for_engines(engine, nodes, cuda)
    if generation and engine.least_actors > room:
        each = f"{engine.cpus_per_actor} CPU(s)" + (f" and {gpus} GPU(s)" if gpus else "")
        yield (
            f"engine.actors: expected at most the {room} engine(s) that the cluster's {_amounts(nodes)} have "
            f"room for ({each} "
            f"each, on one node, and a CPU to read and grade), found {engine.least_actors}; lower it or what "
            f"each takes, add "
            f"nodes{on_cpus}"
        )
    room = places(nodes, 1, 1 if gpus else 0)
    if training and finetune.least_workers > room:
        yield (
            f"finetune.workers: expected at most the {room} worker(s) that the cluster's {_amounts(nodes)} "
            f"have room for, found "
            f"{finetune.least_workers}; lower it, add nodes{on_cpus}"
        )
    memory_gb, actors = sum(node.get("memory", 0) for node in nodes) / 2**30, engine.least_actors
    if generation and not cuda and actors * engine.kv_cache_gb > memory_gb:
        yield (
            f"engine.kv_cache_gb: expected actors x kv_cache_gb below the cluster's {memory_gb:.1f} GiB, "
            f"found "
            f"{actors} x {engine.kv_cache_gb:g}; lower one of them"
        )


def _amounts(nodes: Sequence[Mapping[str, float]]) -> str:
    cpus, gpus = (int(sum(node.get(name, 0) for node in nodes)) for name in ("CPU", "GPU"))
    return f"{len(nodes)} node(s) with {cpus} CPUs and {gpus} GPUs"


def too_small(
    settings: config.Config, weights: int, gpu_gb: float, *, generation: bool = True, training: bool = True
) -> str | None:
    """Why GPUs of that size cannot hold this many weights, or None. Activations and KV cache need room on top
    of that.
    """
    engine, finetune = settings.engine, settings.finetune
    bytes_each = 4 if engine.dtype == "float32" else 2
    room_gb, need_gb = (
        gpu_gb * engine.gpu_memory_utilization,
        weights * bytes_each / engine.tensor_parallel_size / 2**30,
    )
    if generation and need_gb >= room_gb:
        return (
            f"engine: expected the weights to fit into {room_gb:.1f} GiB (engine.gpu_memory_utilization of a "
            f"GPU's {gpu_gb:.1f}), "
            f"found {need_gb:.1f} GiB per GPU; raise engine.tensor_parallel_size or take a smaller model"
        )
    frozen = LORA_BYTES * (2 if finetune.dtype == "float32" else 1)
    state = frozen if finetune.method == "lora" else FULL_BYTES
    # hybrid sharding needs more: a share of a node's workers
    need_gb = weights * state / finetune.least_workers / 2**30
    if training and need_gb >= gpu_gb:
        return (
            f"finetune: expected weights, gradients and optimizer state to fit into a GPU's {gpu_gb:.1f} "
            f"GiB, "
            f"found {need_gb:.1f} GiB "
            "per worker; raise finetune.workers, or set finetune.method=lora"
        )
    return None


def too_little_host_memory(
    finetune: config.Finetune, weights: int, nodes: Sequence[Mapping[str, float]], cuda: bool
) -> str | None:
    """Why no node has the host memory that the trainer's first worker takes at least, or None.

    That worker alone reads and writes the model (placing.py, export.py), at EXPORT_BYTES a parameter; on CPUs
    its share of weights, gradients and optimizer state lies there too.
    """
    state = FULL_BYTES / finetune.least_workers if finetune.method == "full" and not cuda else 0
    need_gb = max(EXPORT_BYTES, state) * weights / 2**30
    # all that a node has: what Ray keeps for its object store may be free
    sizes = [node.get("memory", 0) + node.get("object_store_memory", 0) for node in nodes]
    if cuda:
        sizes = [size for size, node in zip(sizes, nodes, strict=True) if node.get("GPU", 0)]
    room_gb = max(sizes, default=math.inf) / 2**30
    if need_gb <= room_gb:
        return None
    on_cpus = ", raise finetune.workers or set finetune.method=lora" if state > EXPORT_BYTES else ""
    return (
        f"finetune: expected {need_gb:.1f} GiB of host memory for the first worker ({weights / 1e9:.2f} "
        f"billion weights), found at most {room_gb:.1f} GiB on a node; take a smaller "
        f"model{on_cpus}, or larger nodes"
    )


def tight_shm(settings: config.Config, room_gb: float, *, generation: bool, training: bool) -> str | None:
    """What `room_gb` of /dev/shm, beside Ray's object store, may be too little for on a node with GPUs."""
    tensor_parallel = generation and settings.engine.tensor_parallel_size > 1
    if room_gb >= SHM_GB or not (tensor_parallel or (training and settings.finetune.most_workers > 1)):
        return None
    return (
        f"expected {SHM_GB:g} GiB of /dev/shm beside Ray's object store, since several GPUs work together "
        f"through it, found {room_gb:.2f} GiB; if NCCL fails, enlarge it (docker --shm-size, Kubernetes: an "
        "emptyDir with medium Memory), or ray start --object-store-memory"
    )


def rollout_threads(engine: config.Engine, cores: int) -> int:
    """Threads of one engine that generates on CPUs: its share of the cores; in a pool that may grow, its
    CPUs.
    """
    share = cores // engine.actors if isinstance(engine.actors, int) else 0
    return max(engine.cpus_per_actor, share)


def replica_threads(serve: config.Serve, cores: int) -> int:
    """Threads of one engine that serves on CPUs: its share of the cores but one, which HTTP needs.

    On two cores, the sandbox model answered about 1.4 times as many questions a second with one thread as
    with two.
    """
    return max(1, int(serve.cpus_per_replica), (cores - 1) // serve.replicas)


def trainer_threads(workers: int, cores: int) -> int:
    """Threads of each of a node's trainer workers on CPUs: its share of the cores, since the engines wait.

    Ray would set one thread per reserved CPU. Measured on two cores, two threads against one: SmolLM2-135M
    134 and 94 tokens/s, the demo's model 26,400 and 22,400 alone, 23,600 and 22,400 in the demo, where other
    processes want the second core too.
    """
    return max(1, cores // workers)


@dataclass(frozen=True)
class Shape:
    """What memory follows from."""

    parameters: int
    layers: int
    kv_heads: int
    head_size: int
    vocabulary: int
    adapter_parameters: int = 0
    """With LoRA: those that are trained."""


def memory_gb(shape: Shape, settings: config.Config, cuda: bool) -> dict[str, dict[str, float]]:
    """Memory by stage, in GiB: of one engine (on one of its GPUs), of one trainer worker, of the export.

    The trainer's activations come on top; its logits are what one sequence of `finetune.max_length_tokens`
    may take at most. On CUDA the KV cache takes what `engine.gpu_memory_utilization` leaves.
    """
    engine, finetune, p = settings.engine, settings.finetune, shape.parameters
    of_weight = 4 if engine.dtype == "float32" or (engine.dtype == "auto" and not cuda) else 2
    of_token = 2 * shape.layers * shape.kv_heads * shape.head_size * of_weight
    lora = finetune.method == "lora"
    state = LORA_BYTES * p + FULL_BYTES * shape.adapter_parameters if lora else FULL_BYTES * p
    workers = finetune.least_workers
    found: dict[str, dict[str, float]] = {
        "engine": {"weights": p * of_weight / engine.tensor_parallel_size},
        "trainer": {
            "weights, gradients, optimizer": state / workers,
            "logits": LOGITS_COPIES * finetune.max_length_tokens * shape.vocabulary * 4,
        },
        "export": {"host": EXPORT_BYTES * p},
    }
    if not cuda:
        found["engine"]["KV cache"] = engine.kv_cache_gb * 2**30
    found["engine"]["KV cache of a longest sequence"] = (
        of_token * engine.max_model_len_tokens / engine.tensor_parallel_size
    )
    return {stage: {name: n / 2**30 for name, n in parts.items()} for stage, parts in found.items()}


def capped_kv_cache_bytes(tokens: int, bytes_per_token: int, room_bytes: int) -> int | None:
    """Size of a KV cache that a tiny model would make too many blocks of; None: take what there is.

    vLLM gives the cache all the memory that it may use. For the demo's model on 80 GB that makes 4.5 million
    blocks, which cost 7 s and 1 GB of host memory at every start.

    Args:
        tokens: that can be in use at once, max_num_seqs x max_model_len.
        room_bytes: what vLLM may use of the GPU.
    """
    if room_bytes // (KV_BLOCK_TOKENS * bytes_per_token) <= MANY_KV_BLOCKS:
        return None
    wanted = PREFIXES * tokens * bytes_per_token
    return wanted if wanted <= room_bytes // 2 else None  # weights and activations need room too
