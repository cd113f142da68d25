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


def engine(arguments: EngineArgs) -> LLMEngine:
    """The engine that these arguments describe.

    Raises:
        Exception: whatever kept vLLM from starting, with its cause (core_output.py).
    """
    with core_output.explained():
        return LLMEngine.from_vllm_config(of(arguments), disable_log_stats=True)


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
