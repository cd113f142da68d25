"""The calls that the engine makes of vLLM: making it, sampling values, log-probabilities, exchanging weights,
adapters.
"""

import contextlib
import math
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import InvalidStateError
from typing import TYPE_CHECKING, Any

from stasc_ray.generation.samples import CERTAINTY_TOKENS, Adapter, Load, RefusedError, Request
from stasc_ray.generation.spec import OWNER, EngineSpec
from stasc_ray.runtime import capacity, model_folder, ray_session

if TYPE_CHECKING:
    from vllm import LLMEngine, SamplingParams
    from vllm.outputs import CompletionOutput, RequestOutput

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not know."""
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM makes room for


def make_llm(model: str, spec: EngineSpec) -> "LLMEngine":
    """An engine of vLLM that holds `model`, a folder or Hub id."""
    engine, on_cuda = spec.engine, spec.on_cuda
    _set_environment(on_cuda)
    from vllm import EngineArgs

    from stasc_ray.generation import vllm_config  # it imports vLLM

    if not on_cuda:
        import torch

        torch.set_num_threads(spec.threads or capacity.rollout_threads(engine, ray_session.cores()))
    return vllm_config.engine(
        EngineArgs(
            model=model,
            revision=model_folder.revision(model, spec.model),
            skip_tokenizer_init=not spec.tokenizer,
            trust_remote_code=spec.model.trust_remote_code,
            seed=spec.seed,
            dtype=engine.dtype if engine.dtype != "auto" else "bfloat16" if on_cuda else "float32",
            max_model_len=engine.max_model_len_tokens,
            max_num_seqs=engine.max_num_seqs,
            max_num_batched_tokens=max(engine.max_num_batched_tokens, engine.max_model_len_tokens),
            enable_prefix_caching=True,
            # vLLM 0.29 on CPU dies ("CPU Generator does not use offset") when the prefill of a seeded request
            # is split.
            enable_chunked_prefill=on_cuda,
            tensor_parallel_size=engine.tensor_parallel_size if on_cuda else 1,
            distributed_executor_backend="mp" if on_cuda and engine.tensor_parallel_size > 1 else "uni",
            gpu_memory_utilization=engine.gpu_memory_utilization,
            kv_cache_memory_bytes=None if on_cuda else int(engine.kv_cache_gb * 2**30),
            enforce_eager=engine.enforce_eager
            or not on_cuda,  # on CPU compiling costs more than it brings to small models
            worker_extension_cls="stasc_ray.generation.vllm_worker.WorkerExtension",
            enable_sleep_mode=spec.sleeps and on_cuda,
            **lora_arguments(spec.lora_rank),
            **(tokenizer_arguments(model, spec) if spec.tokenizer else {}),
        ),
        watched=spec.watched,
    )


def _set_environment(on_cuda: bool) -> None:
    """Set what vLLM reads when it is imported; values that the user has set are kept."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "1" if on_cuda else "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # FlashInfer's sampler compiles when an engine starts, and fails without nvcc. Seeded requests, which all
    # of ours are, never use it.
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    os.environ[OWNER] = str(os.getpid())  # vLLM's own processes inherit it
    if not on_cuda:
        # else several engines share the same cores
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        # OpenMP's threads spin by default while they wait for each other. With another process on one of two
        # cores, training steps of the sandbox model took 500 ms so, 186 ms where they sleep, 146 ms with one
        # thread.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def watch_core(llm: "LLMEngine", on_death: Callable[[], None]) -> None:
    """Make whoever waits for vLLM's own process get an error if that process dies, and call `on_death`.

    vLLM 0.29 ends the thread that reads the process's answers without a word, so a step or a call that waits
    for one would wait for ever. Does nothing if the engine lives in this process.
    """
    from vllm.v1.engine.core_client import SyncMPClient
    from vllm.v1.engine.exceptions import EngineDeadError

    client = llm.engine_core
    if not isinstance(client, SyncMPClient):
        return
    manager: Any = client.resources.engine_manager
    sentinels = manager.sentinels()

    def watch() -> None:
        multiprocessing.connection.wait(sentinels)
        client.resources.engine_dead = True
        client.outputs_queue.put_nowait(EngineDeadError())
        for future in list(client.utility_results.values()):
            with contextlib.suppress(InvalidStateError):  # it was answered a moment ago
                future.set_exception(EngineDeadError())
        on_death()

    threading.Thread(target=watch, name="vllm-core-watch", daemon=True).start()


def sampling_params(request: Request, stop_token_ids: list[int], streaming: bool) -> "SamplingParams":
    """What a request is for vLLM; token ids come back at every step where `streaming`, else once."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    sampling, final = request.sampling, request.final
    return SamplingParams(
        n=request.n,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        max_tokens=sampling.max_tokens,
        seed=request.seed,
        # 0: of the sampled token alone. Raw, so temperature plays no part
        logprobs=max(CERTAINTY_TOKENS, final.top_logprobs or 0)
        if request.certainty
        else 0
        if request.logprob and final.top_logprobs is None
        else final.top_logprobs,
        logit_bias=dict(final.logit_bias) or None,
        structured_outputs=StructuredOutputsParams(json=final.schema) if final.schema else None,
        stop=list(final.stop),
        stop_token_ids=stop_token_ids,
        detokenize=bool(final.stop),  # else once, when the text is whole
        output_kind=RequestOutputKind.CUMULATIVE if streaming else RequestOutputKind.FINAL_ONLY,
    )


def check(llm: "LLMEngine", params: "SamplingParams") -> None:
    """Raise RefusedError if vLLM refuses these values; it checks them again when the request comes."""
    with refusing():
        params.verify(llm.model_config, None, llm.vllm_config.structured_outputs_config, llm.tokenizer)


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Make vLLM's errors about a request a RefusedError; not all are ValueErrors."""
    from vllm.exceptions import VLLMClientError

    try:
        yield
    except (ValueError, VLLMClientError) as error:
        raise RefusedError(str(error)) from error


def lora_request(adapter: Adapter | None) -> Any:
    """The adapter as vLLM names it."""
    from vllm.lora.request import LoRARequest

    return adapter and LoRARequest(adapter.name, adapter.number, adapter.folder)


def lora_arguments(rank: int | None) -> dict[str, Any]:
    """Room to compute with two adapters at once, the one that answers and the one before it, and to keep some
    more.
    """
    if rank is None:
        return {}
    size = next(size for size in LORA_RANKS if size >= rank)
    return {"enable_lora": True, "max_loras": 2, "max_cpu_loras": 8, "max_lora_rank": size}


def tokenizer_arguments(model: str, spec: EngineSpec) -> dict[str, Any]:
    """The tokenizer beside the model, and what follows schemas by it.

    vLLM keeps to one backend for all requests. This one refuses what it can't do and what is too large, where
    xgrammar passes over `not`, `uniqueItems` and more, and compiles an enum of 50,000 values for minutes.
    Without whitespace, since a small model that may write it writes nothing else.
    """
    from vllm.config import StructuredOutputsConfig

    return {
        "tokenizer_revision": model_folder.revision(model, spec.model),
        "structured_outputs_config": StructuredOutputsConfig(backend="guidance", disable_any_whitespace=True),
    }


def scoring_params() -> "SamplingParams":
    """Score the prompt; generate one token and discard it."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        prompt_logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def prompt_logprobs(output: "RequestOutput") -> list[float]:
    """Log-probabilities (T - 1,) of the prompt's tokens after the first."""
    assert output.prompt_token_ids is not None and output.prompt_logprobs is not None, "they were asked for"
    pairs = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
    return [place[token_id].logprob for token_id, place in pairs if place is not None]


def certainty(completion: "CompletionOutput") -> float | None:
    """`Sample.certainty` of a text whose request asked for it; None if it has no token."""
    assert completion.logprobs is not None, "they were asked for"
    found = [
        math.log(CERTAINTY_TOKENS) + max(value.logprob, LEAST_LOGPROB)
        for place in completion.logprobs
        for value in place.values()
        if value.rank is not None and value.rank <= CERTAINTY_TOKENS  # the sampled token may be another
    ]
    return -sum(found) / len(found) if found else None


def times(output: "RequestOutput") -> dict[str, float]:
    """`Sample.first_token_s` and `Sample.token_s` of a finished request; nothing of an engine that is not
    watched.
    """
    stats: Any = output.metrics
    if stats is None or not stats.num_generation_tokens:
        return {}
    found = {"first_token_s": max(0.0, stats.first_token_latency)}  # between two looks at the wall clock
    if (gaps := stats.num_generation_tokens - 1) > 0:
        found["token_s"] = (stats.last_token_ts - stats.first_token_ts) / gaps
    return found


def load(watch: Any) -> Load:
    """What a `vllm_config.Watch` saw last; zeros where there is none."""
    if watch is None:
        return Load()
    newest = watch.newest
    waiting = newest.num_waiting_reqs + newest.num_skipped_waiting_reqs
    return Load(newest.num_running_reqs, waiting, newest.kv_cache_usage)


def reload_weights(llm: "LLMEngine", model: str) -> None:
    """Exchange the weights and forget cached prefixes; RuntimeError where that failed, and the engine is
    unusable.
    """
    try:
        asleep = llm.is_sleeping()
        if asleep:
            llm.wake_up(["weights"])
        llm.collective_rpc("reload_weights", kwargs={"weights_path": model})
        llm.collective_rpc("repack_heads")
        if asleep:  # only now, so that the old weights' room and the cache are never there together
            llm.wake_up(["kv_cache"])
        reset_prefix_cache(llm)  # it would keep the old weights' prefixes
    except Exception as error:
        # of any type: vLLM promises none, and whoever asked must know that this engine is unusable
        raise RuntimeError(f"weights could not be exchanged: {error}") from error


def reset_prefix_cache(llm: "LLMEngine") -> None:
    """Forget cached prefixes; RuntimeError while a request holds some."""
    if not llm.reset_prefix_cache():
        raise RuntimeError("the prefix cache could not be emptied: a request still holds blocks")


def sleep(llm: "LLMEngine") -> None:
    """Free the GPU's memory: weights, which `reload_weights` brings back, and KV cache."""
    llm.sleep(level=2)


def load_adapter(llm: "LLMEngine", adapter: Adapter) -> None:
    """Read an adapter; ValueError where vLLM cannot, and the engine goes on without it."""
    try:
        llm.add_lora(lora_request(adapter))
    except OSError:  # storage in trouble says nothing about the adapter
        raise
    except Exception as error:  # of any type: vLLM promises none, and a broken adapter is its own failure
        raise ValueError(f"the adapter in {adapter.folder} could not be loaded: {error}") from error
