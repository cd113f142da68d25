"""A vLLM engine from its arguments, and two things that they cannot say: a key of the compile cache that
holds no path, and a KV cache that is no larger than a tiny model can use.

Import it only once the environment is set (vllm_calls.py): it imports vLLM, whose config it subclasses.
"""
# ruff: noqa: TID253

import copy

from vllm import EngineArgs, LLMEngine
from vllm.config import ModelConfig, VllmConfig
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext
from vllm.v1.metrics.loggers import StatLoggerManager
from vllm.v1.metrics.stats import SchedulerStats

from stasc_ray.generation import core_output
from stasc_ray.runtime import capacity


class PathlessModelConfig(ModelConfig):
    """A model config whose hash, the key of vLLM's compile cache, leaves the model's path out.

    Two versions of a run differ in their weights and their folder alone, and so compile to the same graph.
    vLLM's hash holds the folder, so that each would compile again. All that shapes the graph stays in the
    hash: the Hugging Face config, dtype, lengths. A model's own code vLLM compares file by file. A class and
    not a function, so that it comes along when vLLM sends the config to its own processes.
    """

    def compute_hash(self) -> str:
        """As vLLM's, for any path and Hub revision of a model with this config."""
        pathless = copy.copy(self)
        pathless.model = ""
        pathless.revision = None
        return ModelConfig.compute_hash(pathless)


class Watch(StatLoggerManager):
    """Keeps the scheduler's newest figures, in place of vLLM's own page of metrics, which costs more at each
    step.
    """

    def __init__(self) -> None:
        self.stat_loggers = []
        self.newest = SchedulerStats()

    def record(self, scheduler_stats: SchedulerStats | None, *_: object, **__: object) -> None:
        """The engine calls this after each step."""
        self.newest = scheduler_stats or self.newest


def engine(arguments: EngineArgs, *, watched: bool) -> LLMEngine:
    """The engine that these arguments describe.

    Args:
        watched: it keeps requests' times, and has a `Watch`.

    Raises:
        Exception: whatever kept vLLM from starting, with its cause (core_output.py).
    """
    with core_output.explained():
        found = LLMEngine.from_vllm_config(of(arguments), disable_log_stats=not watched)
    found.logger_manager = Watch() if watched else None
    return found


def of(arguments: EngineArgs) -> VllmConfig:
    """The config that vLLM makes of these arguments."""
    found = arguments.create_engine_config(UsageContext.ENGINE_CONTEXT)
    # vLLM makes the object itself and takes no class for it
    found.model_config.__class__ = PathlessModelConfig
    if current_platform.is_cuda() and found.cache_config.kv_cache_memory_bytes is None:
        found.cache_config.kv_cache_memory_bytes = _kv_cache_bytes(found)
    return found


def _kv_cache_bytes(found: VllmConfig) -> int | None:
    if found.model_config.is_hybrid or found.model_config.is_attention_free:
        return None  # their state is not counted in tokens
    room = current_platform.get_device_total_memory() * found.cache_config.gpu_memory_utilization
    tokens = found.scheduler_config.max_num_seqs * found.model_config.max_model_len
    return capacity.capped_kv_cache_bytes(tokens, kv_bytes_per_token(found), int(room))


def kv_bytes_per_token(found: VllmConfig) -> int:
    """Of the KV cache on each GPU, over all layers; bytes."""
    model, parallel = found.model_config, found.parallel_config
    width = model.get_num_kv_heads(parallel) * model.get_head_size()
    # an fp8 cache takes half of this; too much is safe here
    return 2 * model.get_num_layers(parallel) * width * model.dtype.itemsize  # keys and values
