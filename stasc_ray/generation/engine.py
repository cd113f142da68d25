"""One vLLM engine behind `submit(prompt_token_ids, sampling) -> Future`.

A thread makes the engine and steps it for as long as requests are there; requests may come in at any time, so a question's
corrections start the moment its initial answers end. On CPU the engine lives in this process; on CUDA in vLLM's own.
The engine is made in the thread that steps it because vLLM binds its OpenMP team to the thread that made it.
Cancelling a future stops the engine's work on it. Serving also watches tokens as they come, reads the log-probabilities of
a text, and exchanges the weights.
"""

import contextlib
import functools
import hashlib
import itertools
import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stasc_ray import config, models

if TYPE_CHECKING:
    from vllm import LLMEngine, SamplingParams
    from vllm.outputs import CompletionOutput, RequestOutput

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM makes room for
SEED_SPACING = 1 << 12  # vLLM gives the children of `n` the seeds s, s + 1, ...


@dataclass(frozen=True)
class Sample:
    """One generated text."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    """`stop` (end-of-turn token) or `length` (max_tokens or the context was full)."""


@dataclass(frozen=True)
class Request:
    """Sampling of one prompt: `n` samples with the values of `sampling`; `seed` is spaced by `SEED_SPACING`."""

    sampling: config.Sampling
    n: int
    seed: int


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter on the engine's model. Name, number and folder are its own for ever: vLLM's caches go by them."""

    name: str
    number: int
    """1 or more."""
    folder: str


@dataclass(frozen=True)
class _Submission:
    """A prompt; `read` turns the finished output into the future's result."""

    prompt_token_ids: list[int]
    params: "Callable[[], SamplingParams]"
    read: "Callable[[RequestOutput], Any]"
    future: "Future[Any]"
    adapter: Adapter | None = None
    on_tokens: Callable[[Sequence[int]], None] | None = None


@dataclass(frozen=True)
class _Abort:
    """The future was cancelled."""

    future: "Future[Any]"


@dataclass(frozen=True)
class _Command:
    """Something else to do with vLLM between two steps."""

    carry_out: "Callable[[LLMEngine], None]"
    future: "Future[None]"


def request_seed(*parts: object) -> int:
    """Seed in [0, 2**62) from whatever identifies a request, a multiple of SEED_SPACING so that children never collide."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 2 & ~(SEED_SPACING - 1)


class Engine:
    """A vLLM engine that keeps stepping while requests come in.

    Args:
        lora_rank: the largest rank of the adapters that requests will name; None where they name none.
        threads: of the CPU engine.

    Raises:
        Exception: whatever kept vLLM from starting (unreadable model, too little memory, no GPU).
    """

    def __init__(
        self,
        model: str,
        engine: config.Engine,
        *,
        on_cuda: bool,
        revision: str | None = None,
        trust_remote_code: bool = False,
        lora_rank: int | None = None,
        threads: int = 1,
        seed: int = 0,
    ) -> None:
        self.tokenizer = models.load_tokenizer(model, revision=revision, trust_remote_code=trust_remote_code)
        self.max_model_len_tokens = engine.max_model_len_tokens
        self._stop_token_ids = models.stop_token_ids(model, self.tokenizer, revision=revision)
        self._inbox: queue.SimpleQueue[_Submission | _Abort | _Command | None] = queue.SimpleQueue()
        self._pending: dict[str, _Submission] = {}
        self._failure: Exception | None = None
        started: Future[None] = Future()
        lora = _lora_arguments(lora_rank)
        make = functools.partial(_make_llm, model, revision, engine, on_cuda, trust_remote_code, threads, seed, lora)
        self._thread = threading.Thread(target=self._run, args=(make, started), name="vllm-engine", daemon=True)
        self._thread.start()
        started.result()

    @property
    def alive(self) -> bool:
        """Whether requests are still answered."""
        return self._failure is None and self._thread.is_alive()

    def submit(
        self,
        prompt_token_ids: Sequence[int],
        request: Request,
        adapter: Adapter | None = None,
        on_tokens: Callable[[Sequence[int]], None] | None = None,
    ) -> "Future[list[Sample]]":
        """Queue one prompt; the future gives `request.n` samples, and cancelling it stops the work.

        `on_tokens` is called in the engine's thread after each step with all token ids so far; it needs `request.n = 1`.

        Raises (in the future):
            ValueError: the prompt leaves no room for an answer in the context, or vLLM refused the request.
            RuntimeError: the engine is closed or died.
        """
        params = functools.partial(self._sampling_params, request, streaming=on_tokens is not None)
        return self._put(prompt_token_ids, params, self._samples, adapter, on_tokens)

    def logprobs(self, token_ids: Sequence[int], adapter: Adapter | None = None) -> "Future[list[float]]":
        """Log-probabilities (T - 1,) of token_ids[1:], each given all tokens before it, at temperature 1; as `submit`."""
        return self._put(token_ids, _scoring_params, _prompt_logprobs, adapter)

    def reload(self, model: str) -> "Future[None]":
        """Exchange the weights for those in the folder `model`, of the same architecture, and forget cached prefixes.

        Nothing may be in flight. vLLM does not always notice that a weight was not loaded (tied embeddings on CPU), so
        whoever calls this compares log-probabilities afterwards.
        """
        return self._command(functools.partial(_reload, model=model))

    def load_adapter(self, adapter: Adapter) -> "Future[None]":
        """Read an adapter, so that a broken one is found here and not by the requests that name it.

        Raises (in the future):
            ValueError: vLLM cannot load it.
        """
        return self._command(functools.partial(_load_adapter, adapter=adapter))

    def _command(self, carry_out: "Callable[[LLMEngine], None]") -> "Future[None]":
        future: Future[None] = Future()
        self._inbox.put(_Command(carry_out, future))
        if not self.alive:  # it may have stopped meanwhile and missed this one
            _settle(future, RuntimeError(f"the engine is not running: {self._failure}"))
        return future

    def _put(
        self,
        prompt_token_ids: Sequence[int],
        params: "Callable[[], SamplingParams]",
        read: "Callable[[RequestOutput], Any]",
        adapter: Adapter | None,
        on_tokens: Callable[[Sequence[int]], None] | None = None,
    ) -> "Future[Any]":
        future: Future[Any] = Future()
        if len(prompt_token_ids) >= self.max_model_len_tokens:
            future.set_exception(
                ValueError(
                    f"prompt: expected fewer than engine.max_model_len_tokens = {self.max_model_len_tokens} tokens, "
                    f"found {len(prompt_token_ids)}"
                )
            )
        elif not self.alive:
            future.set_exception(RuntimeError(f"the engine is not running: {self._failure or 'it was closed'}"))
        else:
            self._inbox.put(_Submission(list(prompt_token_ids), params, read, future, adapter, on_tokens))
            future.add_done_callback(self._abort_if_cancelled)
            if not self.alive:  # it stopped meanwhile and may have missed this one
                _settle(future, RuntimeError(f"the engine is not running: {self._failure}"))
        return future

    def _abort_if_cancelled(self, future: "Future[Any]") -> None:
        if future.cancelled():
            self._inbox.put(_Abort(future))

    def close(self) -> None:
        """Stop stepping; unfinished requests fail. GPU memory is free once this process ends."""
        self._inbox.put(None)
        self._thread.join(timeout=60)

    def _run(self, make: "Callable[[], LLMEngine]", started: "Future[None]") -> None:
        try:
            llm = make()
        except Exception as error:  # whatever it is, the maker of this object waits for it and raises it
            started.set_exception(error)
            return
        started.set_result(None)
        try:
            self._serve(llm)
        except Exception as error:  # a dead engine must not leave anybody waiting for ever
            self._failure = error
        self._failure = self._failure or RuntimeError("it was closed")
        self._fail_all(RuntimeError(f"the engine stopped: {self._failure or 'it was closed'}"))

    def _serve(self, llm: "LLMEngine") -> None:
        ids = itertools.count()
        while True:
            while not self._inbox.empty() or not llm.has_unfinished_requests():
                item = self._inbox.get()  # waits only where there is nothing to step
                match item:
                    case None:
                        return
                    case _Submission():
                        self._add(llm, str(next(ids)), item)
                    case _Abort(future):
                        self._abort(llm, future)
                    case _Command(carry_out, future):
                        _settle(future, _outcome(carry_out, llm))
            for output in llm.step():
                self._deliver(output)

    def _add(self, llm: "LLMEngine", request_id: str, submission: _Submission) -> None:
        if submission.future.cancelled():
            return
        try:
            prompt: Any = {"prompt_token_ids": submission.prompt_token_ids}
            llm.add_request(request_id, prompt, submission.params(), lora_request=_lora_request(submission.adapter))
        except ValueError as error:  # one refused prompt is that prompt's failure
            _settle(submission.future, error)
        else:
            self._pending[request_id] = submission

    def _abort(self, llm: "LLMEngine", future: "Future[Any]") -> None:
        for request_id in [name for name, submission in self._pending.items() if submission.future is future]:
            del self._pending[request_id]
            llm.abort_request([request_id])

    def _deliver(self, output: Any) -> None:
        submission = self._pending.get(output.request_id)
        if submission is None:
            return
        if submission.on_tokens:
            submission.on_tokens(output.outputs[0].token_ids)
        if output.finished:
            del self._pending[output.request_id]
            _settle(submission.future, submission.read(output))

    def _sampling_params(self, request: Request, streaming: bool) -> "SamplingParams":
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = request.sampling
        return SamplingParams(
            n=request.n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=0.0,
            frequency_penalty=0.0,
            max_tokens=sampling.max_tokens,
            seed=request.seed,
            stop_token_ids=self._stop_token_ids,
            detokenize=False,  # once, when the text is whole
            output_kind=RequestOutputKind.CUMULATIVE if streaming else RequestOutputKind.FINAL_ONLY,
        )

    def _samples(self, output: "RequestOutput") -> list[Sample]:
        return [self._sample(completion) for completion in output.outputs]

    def _sample(self, completion: "CompletionOutput") -> Sample:
        text = self.tokenizer.decode(list(completion.token_ids), skip_special_tokens=True)
        return Sample(str(text), tuple(completion.token_ids), completion.finish_reason or "unknown")

    def _fail_all(self, error: Exception) -> None:
        for submission in self._pending.values():
            _settle(submission.future, error)
        self._pending.clear()
        while not self._inbox.empty():
            if (item := self._inbox.get_nowait()) is not None:
                _settle(item.future, error)


def _settle(future: "Future[Any]", result: Any) -> None:
    with contextlib.suppress(InvalidStateError):  # cancelled a moment ago: nobody waits
        future.set_exception(result) if isinstance(result, Exception) else future.set_result(result)


def _lora_request(adapter: Adapter | None) -> Any:
    from vllm.lora.request import LoRARequest

    return adapter and LoRARequest(adapter.name, adapter.number, adapter.folder)


def _lora_arguments(rank: int | None) -> dict[str, Any]:
    """Room to compute with two adapters at once, the one that answers and the one before it, and to keep some more."""
    if rank is None:
        return {}
    size = next(size for size in LORA_RANKS if size >= rank)
    return {"enable_lora": True, "max_loras": 2, "max_cpu_loras": 8, "max_lora_rank": size}


def _scoring_params() -> "SamplingParams":
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
    )


def _prompt_logprobs(output: "RequestOutput") -> list[float]:
    assert output.prompt_token_ids is not None and output.prompt_logprobs is not None, "they were asked for"
    pairs = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
    return [place[token_id].logprob for token_id, place in pairs if place is not None]


def _outcome(carry_out: "Callable[[LLMEngine], None]", llm: "LLMEngine") -> Exception | None:
    try:
        return carry_out(llm)
    except Exception as error:  # whoever gave the command waits for it and decides what follows
        return error


def _reload(llm: "LLMEngine", model: str) -> None:
    try:
        llm.collective_rpc("reload_weights", kwargs={"weights_path": model})
        if not llm.reset_prefix_cache():  # it would keep the old weights' prefixes
            raise RuntimeError("a request still holds blocks of the old weights")
    except Exception as error:  # whatever it is, the engine is unusable now
        raise RuntimeError(f"weights could not be exchanged: {error}") from error


def _load_adapter(llm: "LLMEngine", adapter: Adapter) -> None:
    try:
        llm.add_lora(_lora_request(adapter))
    except Exception as error:  # whatever it is, the engine goes on without this adapter
        raise ValueError(f"the adapter in {adapter.folder} could not be loaded: {error}") from error


def _make_llm(
    model: str,
    revision: str | None,
    engine: config.Engine,
    on_cuda: bool,
    trust_remote_code: bool,
    threads: int,
    seed: int,
    lora: dict[str, Any],
) -> "LLMEngine":
    _set_environment(on_cuda)
    from vllm import EngineArgs, LLMEngine

    if not on_cuda:
        import torch

        torch.set_num_threads(threads)
    return LLMEngine.from_engine_args(
        EngineArgs(
            model=model,
            revision=revision,
            skip_tokenizer_init=True,
            trust_remote_code=trust_remote_code,
            seed=seed,
            dtype=engine.dtype if engine.dtype != "auto" else "bfloat16" if on_cuda else "float32",
            max_model_len=engine.max_model_len_tokens,
            max_num_seqs=engine.max_num_seqs,
            max_num_batched_tokens=max(engine.max_num_batched_tokens, engine.max_model_len_tokens),
            enable_prefix_caching=True,
            # vLLM 0.29 on CPU dies ("CPU Generator does not use offset") when the prefill of a seeded request is split.
            enable_chunked_prefill=on_cuda,
            tensor_parallel_size=engine.tensor_parallel_size if on_cuda else 1,
            distributed_executor_backend="mp" if on_cuda and engine.tensor_parallel_size > 1 else "uni",
            gpu_memory_utilization=engine.gpu_memory_utilization,
            kv_cache_memory_bytes=None if on_cuda else int(engine.kv_cache_gb * 2**30),
            enforce_eager=engine.enforce_eager or not on_cuda,  # on CPU compiling costs more than it brings to small models
            disable_log_stats=True,
            **lora,
        )
    )


def _set_environment(on_cuda: bool) -> None:
    """Set what vLLM reads when it is imported; values that the user has set are kept."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "1" if on_cuda else "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if not on_cuda:
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # else several engines share the same cores
