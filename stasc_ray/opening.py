"""What every command that works on a run does first: check the config, take the lease, connect to Ray, look
at every node.

`stasc run`, `stasc evaluate` and the jobs open the same way, so what can be known before work starts is said
by all.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stasc_ray import config, store
from stasc_ray.generation import run_engines
from stasc_ray.learning.trainer import Trainer
from stasc_ray.recipes import recipe_of
from stasc_ray.recipes.policies import policy
from stasc_ray.report import planned
from stasc_ray.runtime import gguf, model_folder, preflight, ray_session
from stasc_ray.runtime.display import Display
from stasc_ray.stages import Run, base_model
from stasc_ray.store import fork, tracking
from stasc_ray.tasks import rewards


def check_config(settings: config.Config) -> None:
    """What is wrong with a config and can be known without Ray: the model folder, the reward, the policy.

    Raises:
        ValueError, FileNotFoundError: expected, found, what to do.
    """
    model_folder.check_model(base_model(settings))
    name, samples = settings.evaluation.policy, settings.evaluation.samples
    if samples < (least := policy(name, recipe_of(settings.algorithm.recipe)).least_samples):
        raise ValueError(
            f"evaluation.samples: expected at least {least} with evaluation.policy = {name!r}, found "
            f"{samples}"
        )
    rewards.grader(settings.reward, settings.prompts.answer_marker).close()


@contextmanager
def open_run_on(
    settings: config.Config,
    folder: Path,
    address: str | None,
    *,
    fresh: bool = False,
    training: bool = True,
) -> Iterator[Run]:
    """A run on a Ray cluster for the length of the block: its lease is held, its nodes and models were looked
    at.

    Args:
        address: of a cluster to join; None takes RAY_ADDRESS, else starts a local Ray.
        fresh: delete what the folder holds and begin again.
        training: whether a model will be trained, which needs room too.

    Raises:
        ValueError, RuntimeError, OSError: what `store.open_run`, `ray_session.connect` and `preflight.check`
            raise.
        ImportError: as `tracking.check`.
    """
    check_config(settings)
    tracking.check(settings.tracking)
    display, started = Display(), time.monotonic()
    with (
        store.open_run(folder, settings, fresh=fresh) as opened,
        ray_session.naming_logs(opened.logs),
        ray_session.connect(address, opened.logs),
        tracking.trackers(settings.tracking, folder, display.note) as track,
    ):
        cuda = ray_session.on_cuda(settings.engine)
        display.note(describe(settings, folder, cuda, time.monotonic() - started))
        for line in fork.in_words(opened.fork()):
            display.note(line)
        look_at_cluster(settings, folder, cuda, display, training=training)
        opened.write_environment(ray_session.environment())
        planned.take_plan(folder, settings)
        with run_engines.engines(settings, cuda, training=training) as engines:
            trainer = Trainer()
            try:
                yield Run(opened, settings, cuda, display, track, engines, trainer)
            finally:
                trainer.close()


@contextmanager
def open_finetune_on(
    settings: config.Config, state: Path, address: str | None, display: Display
) -> Iterator[tuple[store.Lease, bool]]:
    """A lease in `state` and a Ray cluster for one fine-tune without a run; gives the lease, and whether CUDA
    is used.

    Raises:
        ValueError, RuntimeError, OSError: as `open_run_on`.
    """
    check_config(settings)
    logs = state / "logs"
    with (
        store.hold_lease(state / "lease") as lease,
        ray_session.naming_logs(logs),
        ray_session.connect(address, logs),
    ):
        cuda = ray_session.on_cuda(settings.engine)
        look_at_cluster(settings, state, cuda, display, generation=False)
        yield lease, cuda


def look_at_cluster(
    settings: config.Config,
    folder: Path,
    cuda: bool,
    display: Display,
    *,
    generation: bool = True,
    training: bool = True,
) -> None:
    """Refuse a cluster or a model that can't work; note what is waited for.

    Raises:
        ValueError, RuntimeError: as `preflight.check` and `gguf.convert`; or the tokenizer has no chat
            template; or as `model_folder.check_context`, `check_head_size` and `check_trainable`.
    """
    import ray

    model = base_model(settings, folder)
    convert_gguf(settings.model.path, Path(model), display)
    for lack in preflight.check(settings, folder, model, cuda, generation=generation, training=training):
        display.note(lack)
    load = ray.remote(num_cpus=1)(_try_model)  # in a worker: the driver stays light
    context = settings.engine.max_model_len_tokens if generation else None
    on_cpus = generation and not cuda
    if problem := ray.get(load.remote(model, settings.model, training, context, on_cpus)):
        raise ValueError(problem)


def convert_gguf(source: str, folder: Path, display: Display) -> None:
    """Convert a model that is a GGUF file, unless an earlier attempt did.

    Raises:
        ValueError: as `gguf.convert`.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not gguf.is_gguf(source) or folder.is_dir():
        return
    display.note(f"{source}: converting {Path(source).stat().st_size / 2**30:.1f} GiB once to {folder}")
    # In a worker, since the driver stays light; on the driver's node, where the file was found.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    convert = ray.remote(num_cpus=0)(_try_convert).options(scheduling_strategy=here)
    note, problem = ray.get(convert.remote(str(Path(source).resolve()), str(folder)))
    if problem:
        raise ValueError(problem)
    display.note(note)


def _try_convert(source: str, folder: str) -> tuple[str, str | None]:
    try:
        return gguf.convert(Path(source), Path(folder)), None
    except ValueError as error:
        return "", str(error)


def describe(settings: config.Config, folder: Path, cuda: bool, start_s: float) -> str:
    """The run in one line."""
    actors, section = settings.engine.actors, settings.algorithm
    actors = "{} to {}".format(*actors) if isinstance(actors, tuple) else actors
    return (
        f"{settings.name}: {section.recipe} {section.variant}, {section.iterations} iterations of "
        f"{settings.model.path} on {actors} "
        f"{'CUDA' if cuda else 'CPU'} engine(s); Ray was up in {start_s:.0f} s; run folder {folder}"
    )


def _try_model(
    path: str, model: config.Model, training: bool, context: int | None, engines_on_cpus: bool
) -> str | None:
    revision, trust = model_folder.revision(path, model), model.trust_remote_code
    try:
        model_folder.load_tokenizer(path, revision=revision, trust_remote_code=trust)
        if context:
            model_folder.check_context(path, context, revision=revision, trust_remote_code=trust)
        if engines_on_cpus:
            model_folder.check_head_size(path, revision=revision, trust_remote_code=trust)
        if training:
            model_folder.check_trainable(path, revision=revision, trust_remote_code=trust)
    except (ValueError, OSError) as error:
        return str(error)
    return None
