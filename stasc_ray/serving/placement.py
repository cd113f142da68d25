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


def base_answers(settings: config.Config) -> bool:
    """Whether M0 writes the initial answers, and the served version corrects them.

    Raises:
        ValueError: it should, and nothing would be left for the version to write.
    """
    section, asked = settings.algorithm, settings.serve.initial_answers_from
    if asked == "base" and not section.n_corrections:
        raise ValueError(
            "serve.initial_answers_from: expected current, since M0 would write all that recipe "
            f"{section.recipe!r}, which corrects nothing, is asked for; found base"
        )
    return bool(section.n_corrections) and (asked or section.initial_answers_from) == "base"


def engines(settings: config.Config) -> int:
    """That a replica runs at once: of the version that answers, of the next one with `beside`, of previous
    ones, and of M0; adapters share one.

    Raises:
        ValueError: previous versions should stay loaded where each takes the engine of the one before.
    """
    serve, base = settings.serve, base_answers(settings)
    if settings.finetune.method == "lora":
        return 1
    if serve.swap == "in_place" and serve.keep_warm:
        raise ValueError(
            "serve.keep_warm: expected 0 with serve.swap=in_place, which exchanges the weights of one "
            f"engine, found {serve.keep_warm}; take serve.swap=beside, or leave it out"
        )
    return 1 + (serve.swap == "beside") + serve.keep_warm + base


def bundles(settings: config.Config, *, on_cuda: bool) -> list[dict[str, float]]:
    """A replica's placement group: its own process, then an engine each, all on one node. The engine of a
    next version has its place from the start, so that no other replica takes it.
    """
    count, gpus = engines(settings), engine_gpus(settings, on_cuda=on_cuda)
    own = {"CPU": max(settings.serve.cpus_per_replica, 0.001)}  # a bundle has to hold something
    return [own, *([{"GPU": gpus}] * count if gpus else [])]


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
            f"{most['CPU']:g} and {most['GPU']:g}{_fewer(len(bundles) - 1)}"
        )


def _fewer(engines: int) -> str:
    """What to do about too little room for them."""
    if engines < 2:
        return ""
    return (
        f"; for fewer than its {engines} engines say serve.swap=in_place, lower serve.keep_warm, or, where "
        "M0 writes the initial answers, serve.initial_answers_from=current; on one GPU say "
        f"serve.gpus_per_engine={100 // engines / 100:g} "
        f"engine.gpu_memory_utilization={90 // engines / 100:g}"
    )
