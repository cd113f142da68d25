"""One vLLM engine behind `submit(prompt_token_ids, sampling) -> Future`.

A thread makes the engine and steps it for as long as requests are there; requests may come in at any time, so
a question's corrections start the moment its initial answers end. On CPU the engine lives in this process; on
CUDA in vLLM's own. The engine is made in the thread that steps it because vLLM binds its OpenMP team to the
thread that made it. Cancelling a future stops the engine's work on it. Serving also watches tokens as they
come, reads the log-probabilities of a text, and exchanges the weights.
"""

import contextlib
import functools
import itertools
import json
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stasc_ray.generation import vllm_calls
from stasc_ray.generation.samples import Adapter, FinalTurn, Load, RefusedError, Request, Sample, cut
from stasc_ray.generation.spec import EngineSpec
from stasc_ray.generation.vllm_calls import LEAST_LOGPROB
from stasc_ray.recipes.trace import TokenLogprob
from stasc_ray.runtime import model_folder
from stasc_ray.tasks.chat import hidden_tokens

if TYPE_CHECKING:
    from vllm import LLMEngine, SamplingParams
    from vllm.outputs import CompletionOutput, RequestOutput


@dataclass(frozen=True)
class _Submission:
    """A prompt; `read` turns the finished output into the future's result."""

    prompt_token_ids: list[int]
    params: "Callable[[], SamplingParams]"
    read: "Callable[[RequestOutput], Any]"
    future: "Future[Any]"
    adapter: Adapter | None = None
    on_tokens: Callable[[Sequence[int]], None] | None = None
    arrived: float = field(default_factory=time.time)
    """By the clock that vLLM measures latencies with."""


@dataclass(frozen=True)
class _Abort:
    """The future was cancelled."""

    future: "Future[Any]"


@dataclass(frozen=True)
class _CoreDied:
    """vLLM's own process is gone."""


@dataclass(frozen=True)
class _Command:
    """Something else to do with vLLM between two steps."""

    carry_out: "Callable[[LLMEngine], None]"
    future: "Future[None]"


_Item = _Submission | _Abort | _Command | _CoreDied | None


class Engine:
    """A vLLM engine that keeps stepping while requests come in.

    Args:
        model: folder or Hub id.

    Raises:
        Exception: whatever kept vLLM from starting (unreadable model, too little memory, no GPU).
    """

    def __init__(self, model: str, spec: EngineSpec) -> None:
        revision = model_folder.revision(model, spec.model)
        self.tokenizer = model_folder.load_tokenizer(
            model, revision=revision, trust_remote_code=spec.model.trust_remote_code
        )
        self.hidden = hidden_tokens(self.tokenizer)
        self.max_model_len_tokens = spec.engine.max_model_len_tokens
        self._stop_token_ids = model_folder.stop_token_ids(model, self.tokenizer, revision=revision)
        self._inbox: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._pending: dict[str, _Submission] = {}
        self._failure: Exception | None = None
        self._watch: Any = None
        started: Future[None] = Future()
        make = functools.partial(vllm_calls.make_llm, model, spec)
        self._thread = threading.Thread(
            target=self._run, args=(make, started), name="vllm-engine", daemon=True
        )
        self._thread.start()
        started.result()

    @property
    def alive(self) -> bool:
        """Whether requests are still answered."""
        return self._failure is None and self._thread.is_alive()

    @property
    def load(self) -> Load:
        """How busy it is; zeros where it is not watched (`EngineSpec.watched`)."""
        # after an abort vLLM makes no step, and no figures, until the next request
        return vllm_calls.load(self._watch) if self._pending else Load()

    def submit(
        self,
        prompt_token_ids: Sequence[int],
        request: Request,
        adapter: Adapter | None = None,
        on_tokens: Callable[[Sequence[int]], None] | None = None,
    ) -> "Future[list[Sample]]":
        """Queue one prompt; the future gives `request.n` samples, and cancelling it stops the work.

        `on_tokens` is called in the engine's thread after each step with all token ids so far; it needs
        `request.n = 1`.

        The future raises:
            ValueError: the prompt leaves no room for an answer in the context.
            RefusedError: vLLM refused the request, or could not do what it asks.
            RuntimeError: the engine is closed or died.
        """
        params = functools.partial(
            vllm_calls.sampling_params, request, self._stop_token_ids, streaming=on_tokens is not None
        )
        read = functools.partial(self._samples, request)
        return self._put(prompt_token_ids, params, read, adapter, on_tokens)

    def check(self, request: Request) -> None:
        """Raise RefusedError if a request asks what cannot be done, such as a schema that does not compile.
        It takes no turn of the engine's thread.
        """
        if request.final.schema and not self.tokenizer.is_fast:
            raise RefusedError("a schema needs a tokenizer of the `tokenizers` library, this model's is none")
        params = vllm_calls.sampling_params(request, self._stop_token_ids, streaming=False)
        vllm_calls.check(self._llm, params)

    def logprobs(self, token_ids: Sequence[int], adapter: Adapter | None = None) -> "Future[list[float]]":
        """Log-probabilities (T - 1,) of token_ids[1:], each given all tokens before it, at temperature 1; as
        `submit`.
        """
        return self._put(token_ids, vllm_calls.scoring_params, vllm_calls.prompt_logprobs, adapter)

    def reload(self, model: str) -> "Future[None]":
        """Exchange the weights for those in the folder `model`, of the same architecture, and forget cached
        prefixes; an engine that sleeps wakes up.

        Nothing may be in flight. vLLM does not always notice that a weight was not loaded, so the caller
        compares log-probabilities afterwards (canary.py).
        """
        return self._command(functools.partial(vllm_calls.reload_weights, model=model))

    def forget_prefixes(self) -> "Future[None]":
        """Empty the prefix cache, so that what was asked before leaves no trace. Nothing may be in flight."""
        return self._command(vllm_calls.reset_prefix_cache)

    def sleep(self) -> "Future[None]":
        """Give the GPU's memory back, weights included, until `reload`. Nothing may be in flight."""
        return self._command(vllm_calls.sleep)

    def load_adapter(self, adapter: Adapter) -> "Future[None]":
        """Read an adapter, so that a broken one is found here and not by the requests that name it.

        The future raises:
            ValueError: vLLM cannot load it.
        """
        return self._command(functools.partial(vllm_calls.load_adapter, adapter=adapter))

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
                    f"prompt: expected fewer than engine.max_model_len_tokens = {self.max_model_len_tokens} "
                    f"tokens, "
                    f"found {len(prompt_token_ids)}"
                )
            )
        elif not self.alive:
            future.set_exception(
                RuntimeError(f"the engine is not running: {self._failure or 'it was closed'}")
            )
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
        """Stop stepping and end vLLM's own processes; unfinished requests fail. GPU memory is free once this
        process ends.
        """
        self._inbox.put(None)
        self._thread.join(timeout=60)

    def _run(self, make: "Callable[[], LLMEngine]", started: "Future[None]") -> None:
        try:
            llm = make()
        except Exception as error:  # whatever it is, the maker of this object waits for it and raises it
            started.set_exception(error)
            return
        self._llm = llm
        self._watch = llm.logger_manager
        started.set_result(None)
        vllm_calls.watch_core(llm, lambda: self._inbox.put(_CoreDied()))
        try:
            self._serve(llm)
        except Exception as error:  # a dead engine must not leave anybody waiting for ever
            traceback.print_exc()  # into the worker's log: an actor whose engine died just ends
            self._failure = error
        with contextlib.suppress(Exception):  # of a core that is dead already, whatever it says
            llm.engine_core.shutdown()
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
                    case _CoreDied():
                        raise RuntimeError("vLLM's engine process is gone; its output has the root cause")
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
            with vllm_calls.refusing():
                llm.add_request(
                    request_id,
                    prompt,
                    submission.params(),
                    arrival_time=submission.arrived,
                    lora_request=vllm_calls.lora_request(submission.adapter),
                )
        except RefusedError as error:  # one refused prompt is that prompt's failure
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
            try:
                result = submission.read(output)
            except RefusedError as error:  # that request's failure
                result = error
            _settle(submission.future, result)

    def _samples(self, request: Request, output: "RequestOutput") -> list[Sample]:
        times = vllm_calls.times(output)
        return [self._sample(completion, request, times) for completion in output.outputs]

    def _sample(self, completion: "CompletionOutput", request: Request, times: dict[str, float]) -> Sample:
        final, ids = request.final, tuple(completion.token_ids)
        shown = [token for token in completion.token_ids if token not in self.hidden]
        text, stopped = cut(str(self.tokenizer.decode(shown)), final.stop)
        why = "stop" if stopped else completion.finish_reason or "unknown"
        if final.schema and not stopped and why != "length":
            _check_json(text)
        end = len(text) if stopped else None
        tokens = () if final.top_logprobs is None else tuple(self._tokens(completion, final, end))
        certainty = vllm_calls.certainty(completion) if request.certainty else None
        return Sample(text, ids, why, completion.cumulative_logprob, certainty, tokens, **times)

    def _tokens(
        self, completion: "CompletionOutput", final: FinalTurn, end: int | None
    ) -> Iterator[TokenLogprob]:
        """The tokens of a text; where it was cut, those that begin before its `end` characters."""
        assert completion.logprobs is not None, "they were asked for"
        before: list[int] = []
        for token_id, found in zip(completion.token_ids, completion.logprobs, strict=True):
            if found is None or token_id in self.hidden:
                continue
            # by what is decoded together: a character may have several tokens, and a blank none
            if end is not None and len(self.tokenizer.decode(before)) >= end:
                return
            before.append(token_id)
            # vLLM gives the sampled token and the likeliest
            best = sorted(found.items(), key=lambda one: one[1].rank or 0)[: final.top_logprobs]
            likeliest = [(self._text(one), max(value.logprob, LEAST_LOGPROB)) for one, value in best]
            yield TokenLogprob(
                self._text(token_id), max(found[token_id].logprob, LEAST_LOGPROB), tuple(likeliest)
            )

    def _text(self, token_id: int) -> str:
        return str(self.tokenizer.decode([token_id]))

    def _fail_all(self, error: Exception) -> None:
        for submission in self._pending.values():
            _settle(submission.future, error)
        self._pending.clear()
        while not self._inbox.empty():
            if isinstance(item := self._inbox.get_nowait(), _Submission | _Abort | _Command):
                _settle(item.future, error)


def _check_json(text: str) -> None:
    """Raise RefusedError unless a text that ended by itself is JSON: a schema may lead nowhere, such as one
    that names itself.
    """
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        raise RefusedError("the schema could not be followed: no text can satisfy it") from None


def _settle(future: "Future[Any]", result: Any) -> None:
    with contextlib.suppress(InvalidStateError):  # cancelled a moment ago: nobody waits
        future.set_exception(result) if isinstance(result, Exception) else future.set_result(result)


def _outcome(carry_out: "Callable[[LLMEngine], None]", llm: "LLMEngine") -> Exception | None:
    try:
        return carry_out(llm)
    except Exception as error:  # whoever gave the command waits for it and decides what follows
        return error
