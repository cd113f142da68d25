"""What can be known before work starts: the nodes see what they must, agree on versions, have builds for the
device, and have room for engines and trainer.
"""

import json
import math
import os
import shutil
import sysconfig
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stasc_ray import config
from stasc_ray.runtime import builds, capacity, model_folder, ray_session
from stasc_ray.runtime.ray_session import versions

NO_COMPILER = (
    "expected gcc and Python.h, with which Triton compiles when an engine starts, found not both; install "
    "gcc and python3-dev (or your Python's headers)"
)


@dataclass(frozen=True)
class Sight:
    """What one node sees."""

    run_folder: bool
    model: bool
    versions: dict[str, str]
    builds: builds.Builds
    gpus: float
    """That Ray counts there."""
    cards_gb: list[float] | None
    """Memory of each GPU, in GiB; None where Ray counts none, or nobody knows."""
    shm_gb: float = math.inf
    """Room in /dev/shm beside Ray's object store, in GiB; infinite without GPUs."""
    compiles: bool = True
    """Whether Triton finds what it compiles with."""


def check(
    settings: config.Config,
    run_folder: Path,
    model: str,
    cuda: bool,
    *,
    generation: bool = True,
    training: bool = True,
) -> list[str]:
    """Refuse a cluster on which this run cannot work.

    Args:
        model: path or Hub id of M0.

    Returns:
        What there is too little of now, on a cluster whose autoscaler may bring it, and what a node with
            GPUs may stop at.

    Raises:
        ValueError: too few CPUs or GPUs, or too little memory, for the engines or the trainer.
        RuntimeError: a node without the run folder or the model, with other versions of Python, Ray, vLLM or
            this package, or with builds for another device.
    """
    is_folder = Path(model).is_dir()
    token = run_folder / f".seen-by-every-node-{uuid.uuid4().hex}"
    token.touch()
    try:
        seen = _ask_every_node(str(token), model if is_folder else None)
    finally:
        token.unlink()
    for name, sight in seen.items():
        _check_sight(name, sight, run_folder, model)
        _check_builds(name, sight, settings.engine, cuda, generation=generation)
    nodes, weights = ray_session.nodes(), parameters(Path(model)) if is_folder else 0
    lacking = list(capacity.lack_of_room(settings, nodes, cuda, generation=generation, training=training))
    host = training and capacity.too_little_host_memory(settings.finetune, weights, nodes, cuda)
    lacking += [host] if host else []
    if lacking and not ray_session.may_grow():
        raise ValueError(lacking[0])
    # NVML shows every card, also those that Ray was not given
    sizes = [
        size
        for sight in seen.values()
        for size in sorted(sight.cards_gb or (), reverse=True)[: math.ceil(sight.gpus)]
    ]
    if cuda and sizes and is_folder:
        problem = capacity.too_small(settings, weights, min(sizes), generation=generation, training=training)
        if problem:
            raise ValueError(problem)
    notes = [f"{text}. Waiting for the autoscaler (start_timeout_s)" for text in lacking]
    for name, sight in seen.items() if cuda else ():
        shm = capacity.tight_shm(settings, sight.shm_gb, generation=generation, training=training)
        found = (shm, None if sight.compiles else NO_COMPILER)
        notes += [f"node {name}: {problem}" for problem in found if problem]
    if generation and settings.engine.actors == "all" and ray_session.may_grow():
        room = capacity.pool_size(settings.engine, nodes, cuda)[0]
        notes.append(
            f"engine.actors = all: {room} on the nodes that run now; for more as the cluster grows, say "
            f"[min, max]"
        )
    return notes


def check_builds(engine: config.Engine, cuda: bool) -> None:
    """Refuse nodes whose builds of torch and vLLM are for another device than engines use.

    Raises:
        RuntimeError: the node, what was expected, what was found.
    """
    for name, sight in _ask_every_node("", None).items():
        _check_builds(name, sight, engine, cuda, generation=True)


def _ask_every_node(token: str, model: str | None) -> dict[str, Sight]:
    """Each node's view; a node that leaves while it is asked has none, as if it had left before."""
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0)(_look)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    strategies = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    asked = zip(strategies, nodes, strict=True)
    views = [
        look.options(scheduling_strategy=where).remote(token, model, one["Resources"]) for where, one in asked
    ]
    seen = {}
    for node, view in zip(nodes, views, strict=True):
        try:
            seen[f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})"] = ray.get(view)
        except RayTaskError:
            raise
        except RayError:  # a lost node counts as alive until it has missed its heartbeats
            continue
    return seen


def _look(token: str, model: str | None, resources: Mapping[str, float]) -> Sight:
    """What this node, of which Ray counts these resources, sees."""
    gpus = resources.get("GPU", 0)
    whole = Path(token).exists(), model is None or Path(model).is_dir(), versions(), builds.installed(), gpus
    if not gpus:
        return Sight(*whole, None)
    return Sight(*whole, builds.cards_gb(), _shm_gb(resources.get("object_store_memory", 0)), _compiles())


def _shm_gb(store_bytes: float) -> float:
    """Room in /dev/shm, in GiB, once Ray's store is full; one that does not fit, Ray puts elsewhere."""
    found = os.statvfs("/dev/shm")
    size, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
    return min(free, size - store_bytes if store_bytes <= size else size) / 2**30


def _compiles() -> bool:
    """Whether there is a C compiler, as Triton looks for it, and Python's headers."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return bool(compiler) and (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file()


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
            f"node {name}: expected the driver's versions, found (node, driver) {differing}; use one image "
            f"for all nodes"
        )


def _check_builds(name: str, sight: Sight, engine: config.Engine, cuda: bool, *, generation: bool) -> None:
    cards = None if sight.cards_gb is None else len(sight.cards_gb)
    problem = builds.problem(engine.device, cuda, sight.builds, sight.gpus, cards, generation=generation)
    if problem:
        raise RuntimeError(f"node {name}: {problem}")


def parameters(model: Path) -> int:
    """Number of weights in a folder's safetensors files, from their headers; 0 if there are none."""
    index = model / "model.safetensors.index.json"
    names = (
        set(json.loads(index.read_text())["weight_map"].values())
        if index.is_file()
        else {"model.safetensors"}
    )
    return sum(model_folder.weights(model / name) for name in names if (model / name).is_file())
