"""The engine on the real vLLM: samples, seeds, refusals, requests that come in while it steps."""

import math
import time
from collections.abc import Iterator
from concurrent.futures import wait
from types import SimpleNamespace
from typing import Any

import pytest

from stasc_ray import config
from stasc_ray.generation.engine import Engine
from stasc_ray.generation.samples import (
    CERTAINTY_TOKENS,
    SEED_SPACING,
    FinalTurn,
    Load,
    Request,
    request_seed,
)
from stasc_ray.generation.spec import EngineSpec
from stasc_ray.runtime import model_folder
from stasc_ray.tasks import chat, prompts, sandbox

GREEDY = config.Sampling(temperature=0, max_tokens=48)
WARM = config.Sampling(temperature=0.7, top_p=1.0, max_tokens=48)
TEXTS = config.Prompts(preset="sandbox")


def test_seeds_of_neighbouring_requests_and_their_children_never_collide() -> None:
    seeds = {
        request_seed(0, "base", f"q{question}", turn)
        for question in range(20_000)
        for turn in ("initial", "correction/0")
    }
    assert len(seeds) == 40_000
    children = {seed + child for seed in seeds for child in range(25)}
    assert len(children) == 25 * 40_000, "vLLM gives child k the seed s + k"
    assert all(seed % SEED_SPACING == 0 and 0 <= seed < 2**62 for seed in seeds)
    assert request_seed(0, "a") != request_seed(1, "a")


def test_every_token_of_a_text_has_its_log_probability_whatever_the_language() -> None:
    """Of a character of several tokens each is shown as one that is none."""
    tokenizer = model_folder.load_tokenizer(str(sandbox.model_path()))
    ids = tokenizer.encode("Zürich: 日本語です, it is 42", add_special_tokens=False)
    text = tokenizer.decode(ids)
    assert sum(len(tokenizer.decode([one])) for one in ids) > len(text)
    one: Any = SimpleNamespace(logprob=-1.0, rank=1)
    completion: Any = SimpleNamespace(token_ids=ids, logprobs=[{token: one} for token in ids])
    engine: Any = SimpleNamespace(
        tokenizer=tokenizer, hidden=(), _text=lambda token: tokenizer.decode([token])
    )

    def tokens(end: int | None) -> int:
        return len(list(Engine._tokens(engine, completion, FinalTurn(top_logprobs=0), end)))

    assert tokens(None) == len(ids)
    end = text.index(", it")  # a stop string
    assert len(tokenizer.decode(ids[: tokens(end)])) >= end > len(tokenizer.decode(ids[: tokens(end) - 1]))


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    settings = config.Engine(max_model_len_tokens=512, kv_cache_gb=0.25, max_num_seqs=64)
    engine = Engine(str(sandbox.model_path()), EngineSpec(settings, on_cuda=False, threads=1))
    yield engine
    engine.close()


def _prompt(engine: Engine, question: str) -> list[int]:
    return chat.Chat(engine.tokenizer).render(
        prompts.initial_messages({"question": question}, TEXTS), add_generation_prompt=True
    )


@pytest.mark.slow
def test_n_samples_come_back_and_a_seed_gives_the_same_ones(engine: Engine) -> None:
    prompt = _prompt(engine, "What is 47 + 385 + 12?")
    first, again, other = (
        engine.submit(prompt, Request(WARM, 8, seed)).result(timeout=120)
        for seed in (SEED_SPACING, SEED_SPACING, 2 * SEED_SPACING)
    )
    assert len(first) == 8 and len({sample.text for sample in first}) > 1
    assert first == again
    assert first != other
    assert all(sample.finish_reason in ("stop", "length") and len(sample.token_ids) <= 48 for sample in first)


@pytest.mark.slow
def test_a_log_probability_is_the_sum_over_the_texts_tokens_at_temperature_1(engine: Engine) -> None:
    prompt = _prompt(engine, "What is 47 + 385 + 12?")
    hot = WARM.model_copy(update={"temperature": 0.3})
    for sample in engine.submit(prompt, Request(hot, 2, SEED_SPACING, logprob=True)).result(timeout=120):
        of_all = engine.logprobs([*prompt, *sample.token_ids]).result(timeout=120)
        assert sample.logprob == pytest.approx(sum(of_all[len(prompt) - 1 :]), abs=1e-3)
    (silent,) = engine.submit(prompt, Request(GREEDY, 1, 0)).result(timeout=120)
    assert silent.logprob is None


@pytest.mark.slow
def test_self_certainty_is_that_of_the_models_own_logits(engine: Engine) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    prompt = _prompt(engine, "What is 47 + 385 + 12?")
    asked = Request(WARM, 2, SEED_SPACING, logprob=True, certainty=True)
    samples = engine.submit(prompt, asked).result(timeout=120)
    model = AutoModelForCausalLM.from_pretrained(sandbox.model_path(), dtype=torch.float32)
    for sample in samples:
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *sample.token_ids]])).logits[0, len(prompt) - 1 : -1]
        likeliest = logits.log_softmax(-1).topk(CERTAINTY_TOKENS).values  # (T, K)
        expected = -(math.log(CERTAINTY_TOKENS) + likeliest).mean()
        assert sample.certainty == pytest.approx(float(expected), abs=1e-3)
        assert sample.logprob is not None and sample.tokens == ()
    (plain,) = engine.submit(prompt, Request(GREEDY, 1, 0, logprob=True)).result(timeout=120)
    assert plain.certainty is None and plain.logprob is not None


@pytest.mark.slow
def test_greedy_answers_equal_those_of_plain_transformers(engine: Engine) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(sandbox.model_path(), dtype=torch.float32)
    for row in sandbox.questions("test", 8, seed=1):
        prompt = _prompt(engine, row["question"])
        (sample,) = engine.submit(prompt, Request(GREEDY, 1, 0)).result(timeout=120)
        output = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=48)[
            0, len(prompt) :
        ].tolist()
        assert list(sample.token_ids) == output, "vLLM keeps the end-of-turn token, as transformers does"


@pytest.mark.slow
def test_requests_that_come_in_while_it_steps_are_answered_and_a_refused_one_harms_no_other(
    engine: Engine,
) -> None:
    questions = [row["question"] for row in sandbox.questions("test", 40, seed=2)]
    early = [engine.submit(_prompt(engine, question), Request(WARM, 2, 0)) for question in questions]
    early[0].result(timeout=120)  # the others are under way now
    too_long = engine.submit([5] * 600, Request(WARM, 1, 0))
    late = [engine.submit(_prompt(engine, question), Request(WARM, 2, 0)) for question in questions]
    with pytest.raises(ValueError, match=r"fewer than engine\.max_model_len_tokens = 512 tokens, found 600"):
        too_long.result(timeout=120)
    done = wait([*early, *late], timeout=300)
    assert not done.not_done and all(len(future.result()) == 2 for future in done.done)


@pytest.mark.slow
def test_an_answer_from_a_callback_needs_no_second_round(engine: Engine) -> None:
    prompt = _prompt(engine, "What is 5 + 6?")
    first = engine.submit(prompt, Request(WARM, 1, 0))
    follow_ups = []
    first.add_done_callback(lambda _: follow_ups.append(engine.submit(prompt, Request(WARM, 3, 0))))
    first.result(timeout=120)
    while not follow_ups:
        pass  # the callback runs in the engine's thread, right after the result is set
    assert len(follow_ups[0].result(timeout=120)) == 3


@pytest.mark.slow
def test_a_watched_engine_tells_times_and_its_load_and_a_closed_one_says_so(engine: Engine) -> None:
    unwatched = engine.submit(_prompt(engine, "What is 5 + 6?"), Request(WARM, 1, 0)).result(timeout=120)
    assert unwatched[0].first_token_s is None is unwatched[0].token_s and engine.load == Load()
    settings = config.Engine(max_model_len_tokens=256, kv_cache_gb=0.25, max_num_seqs=2)
    spec = EngineSpec(settings, on_cuda=False, threads=1, watched=True)
    engine = Engine(str(sandbox.model_path()), spec)
    loads: list[Load] = []
    prompts = [_prompt(engine, f"What is 5 + {number}?") for number in range(12)]
    started = time.monotonic()
    asked = [
        engine.submit(
            prompt,
            Request(WARM.model_copy(update={"max_tokens": 24}), 1, number),
            on_tokens=lambda _: loads.append(engine.load),
        )
        for number, prompt in enumerate(prompts)
    ]
    first, *_, last = (future.result(timeout=120)[0] for future in asked)
    took_s = time.monotonic() - started
    assert any(load.running == 2 and load.waiting for load in loads)
    assert all(0 < load.kv_cache_usage < 1 for load in loads if load.running)
    assert first.first_token_s is not None and first.token_s is not None
    assert last.first_token_s is not None and last.first_token_s > first.first_token_s + first.token_s
    assert 0 < first.token_s * (len(first.token_ids) - 1) + first.first_token_s < took_s + 0.1
    assert engine.load == Load()
    engine.close()
    assert not engine.alive
    with pytest.raises(RuntimeError, match="not running"):
        engine.submit([1, 2, 3], Request(WARM, 1, 0)).result(timeout=10)
    with pytest.raises(RuntimeError, match="not running"):
        engine.reload(str(sandbox.model_path())).result(timeout=10)
