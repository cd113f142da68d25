"""Where a replica and its engines run: one placement group, on one node, with GPUs of its own."""

from collections.abc import Mapping, Sequence

from stasc_ray import config
from stasc_ray.runtime import ray_session


def engine_gpus(settings: config.Config, *, on_cuda: bool) -> float:
    """GPUs that Ray reserves for an engine.

    Raises:
        ValueError: a share that vLLM could not use.
    """
    given, parallel = settings.serve.gpus_per_engine, settings.engine.tensor_parallel_size
    if given and given != parallel and (given > 1 or parallel > 1):
        raise ValueError(
            f"serve.gpus_per_engine: expected engine.tensor_parallel_size = {parallel}"
            f"{', or a share of one GPU' if parallel == 1 else ''}, found {given:g}"
        )
    return (given or parallel) if on_cuda or settings.engine.reserve_gpus else 0.0


def bundles(settings: config.Config, *, on_cuda: bool) -> list[dict[str, float]]:
    """A replica's placement group: its own process, then an engine each, all on one node. The engine of a
    next version has its place from the start, so that no other replica takes it.
    """
    # versions that are adapters share one engine
    engines = 1 if settings.serve.swap == "in_place" or settings.finetune.method == "lora" else 2
    gpus = engine_gpus(settings, on_cuda=on_cuda)
    own = {"CPU": max(settings.serve.cpus_per_replica, 0.001)}  # a bundle has to hold something
    return [own, *([{"GPU": gpus}] * engines if gpus else [])]


def check_room(bundles: list[dict[str, float]], nodes: Sequence[Mapping[str, float]]) -> None:
    """Refuse a replica that no node has room for, unless nodes may come.

    Raises:
        ValueError: what a replica needs, what the largest node has, what to do.
    """
    needs = {name: sum(bundle.get(name, 0) for bundle in bundles) for name in ("CPU", "GPU")}
    fits = any(all(node.get(name, 0) >= value for name, value in needs.items()) for node in nodes)
    if not fits and not ray_session.may_grow():
        most = {name: max((node.get(name, 0) for node in nodes), default=0) for name in needs}
        raise ValueError(
            f"a replica needs a node with {needs['CPU']:g} CPUs and {needs['GPU']:g} GPUs, found at most "
            f"{most['CPU']:g} and {most['GPU']:g}; on one GPU say serve.swap=in_place, or "
            "serve.gpus_per_engine=0.5 engine.gpu_memory_utilization=0.45"
        )
