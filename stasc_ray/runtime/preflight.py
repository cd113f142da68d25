"""What can be known before work starts: the nodes see what they must, agree on versions, and have room for
engines and trainer.
"""

import json
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path

from stasc_ray import config
from stasc_ray.runtime import capacity, model_folder, ray_session
from stasc_ray.runtime.ray_session import versions


@dataclass(frozen=True)
class Sight:
    """What one node sees."""

    run_folder: bool
    model: bool
    versions: dict[str, str]
    gpu_gb: float | None
    """Memory of its smallest GPU, in GiB; None where Ray has none."""


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
        What there is too little of now, on a cluster whose autoscaler may bring it.

    Raises:
        ValueError: too few CPUs or GPUs, or too little memory, for the engines or the trainer.
        RuntimeError: a node without the run folder or the model, or with other versions of Python, Ray, vLLM
            or this package.
    """
    lacking = list(
        capacity.lack_of_room(settings, ray_session.nodes(), cuda, generation=generation, training=training)
    )
    if lacking and not ray_session.may_grow():
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
        problem = capacity.too_small(
            settings, parameters(Path(model)), min(sizes), generation=generation, training=training
        )
        if problem:
            raise ValueError(problem)
    notes = [f"{text}. Waiting for the autoscaler (start_timeout_s)" for text in lacking]
    if generation and settings.engine.actors == "all" and ray_session.may_grow():
        room = capacity.pool_size(settings.engine, ray_session.nodes(), cuda)[0]
        notes.append(
            f"engine.actors = all: {room} on the nodes that run now; for more as the cluster grows, say "
            f"[min, max]"
        )
    return notes


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
    return Sight(
        Path(token).exists(),
        model is None or Path(model).is_dir(),
        versions(),
        _smallest_gpu_gb() if gpus else None,
    )


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
            f"node {name}: expected the driver's versions, found (node, driver) {differing}; use one image "
            f"for all nodes"
        )


def parameters(model: Path) -> int:
    """Number of weights in a folder's safetensors files, from their headers; 0 if there are none."""
    index = model / "model.safetensors.index.json"
    names = (
        set(json.loads(index.read_text())["weight_map"].values())
        if index.is_file()
        else {"model.safetensors"}
    )
    return sum(model_folder.weights(model / name) for name in names if (model / name).is_file())
