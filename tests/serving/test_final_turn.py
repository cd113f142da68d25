"""Stop strings, schemas, biases and log-probabilities on the real vLLM, as the endpoint's engines have them."""

import asyncio
import json
from collections.abc import Iterator

import pytest

from stasc_ray import config
from stasc_ray.generation.engine import Engine
from stasc_ray.generation.engines import EngineActor
from stasc_ray.generation.samples import NOTHING_MORE, FinalTurn, RefusedError, Request, Sample
from stasc_ray.generation.spec import EngineSpec
from stasc_ray.tasks import chat, prompts, sandbox

pytestmark = [pytest.mark.slow, pytest.mark.served]
GREEDY = config.Sampling(temperature=0, max_tokens=48)
YES_OR_NO = {
    "type": "object",
    "properties": {"right": {"enum": ["yes", "no"]}},
    "required": ["right"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def actor() -> Iterator[EngineActor]:
    settings = config.Engine(max_model_len_tokens=512, kv_cache_gb=0.25, max_num_seqs=16)
    actor = EngineActor(
        str(sandbox.model_path()), EngineSpec(settings, on_cuda=False, threads=1, tokenizer=True)
    )
    yield actor
    actor._engine.close()


@pytest.fixture(scope="module")
def engine(actor: EngineActor) -> Engine:
    return actor._engine


@pytest.fixture(scope="module")
def prompt(engine: Engine) -> list[int]:
    return chat.Chat(engine.tokenizer).render(
        prompts.initial_messages({"question": "47+385+12"}, config.Prompts(preset="sandbox")),
        add_generation_prompt=True,
    )


def ask(engine: Engine, prompt: list[int], final: FinalTurn = NOTHING_MORE) -> Sample:
    (sample,) = engine.submit(prompt, Request(GREEDY, 1, 0, final=final)).result(timeout=300)
    return sample


def test_a_stop_string_ends_the_work_early_also_in_a_stream(actor, engine, prompt) -> None:
    whole = ask(engine, prompt)
    middle = len(whole.text) // 2
    stop = FinalTurn(stop=(whole.text[middle : middle + 2],))
    before = whole.text[: whole.text.index(stop.stop[0])]
    stopped = ask(engine, prompt, stop)
    assert (stopped.text, stopped.finish_reason) == (before, "stop")
    assert len(stopped.token_ids) < len(whole.token_ids)

    async def stream() -> list[str | Sample]:
        return [one async for one in actor.stream("c", prompt, Request(GREEDY, 1, 0, final=stop), None)]

    *pieces, sample = asyncio.run(stream())
    assert sample == stopped and "".join(map(str, pieces)) == before


def test_tokens_come_with_their_log_probabilities_and_the_likeliest_beside_them(engine, prompt) -> None:
    sample = ask(engine, prompt, FinalTurn(top_logprobs=3))
    assert "".join(token.token for token in sample.tokens) == sample.text
    of_all = engine.logprobs([*prompt, *sample.token_ids]).result(timeout=300)[len(prompt) - 1 :]
    found = [token.logprob for token in sample.tokens]
    assert found == pytest.approx(of_all[: len(found)], abs=1e-3)
    for token in sample.tokens:
        assert len(token.likeliest) == 3 and token.likeliest[0] == (token.token, token.logprob)
        assert [logprob for _, logprob in token.likeliest] == sorted(
            (logprob for _, logprob in token.likeliest), reverse=True
        )
    assert ask(engine, prompt, FinalTurn(top_logprobs=0)).tokens[0].likeliest == ()
    cut = ask(engine, prompt, FinalTurn(top_logprobs=0, stop=(sample.text[6:8],)))
    assert cut.tokens and len("".join(token.token for token in cut.tokens)) >= len(cut.text)
    assert len(cut.tokens) < len(sample.tokens)


def test_a_bias_forbids_a_token(engine, prompt) -> None:
    whole = ask(engine, prompt)
    first = whole.token_ids[0]
    assert ask(engine, prompt, FinalTurn(logit_bias={first: -100.0})).token_ids[0] != first


def test_a_text_follows_its_schema(engine, prompt) -> None:
    sample = ask(engine, prompt, FinalTurn(schema=json.dumps(YES_OR_NO)))
    assert sample.finish_reason == "stop"
    assert json.loads(sample.text) in ({"right": "yes"}, {"right": "no"})


@pytest.mark.parametrize(
    "final",
    [
        FinalTurn(schema='{"type": "nothing"}'),
        FinalTurn(schema='{"not": {"type": "string"}}'),
        FinalTurn(schema='{"type": "string", "pattern": "(?=x)y"}'),
        FinalTurn(schema='{"type": "array", "items":' * 200 + "{}" + "}" * 200),
        FinalTurn(schema='{"$ref": "https://example.com/schema.json"}'),
        FinalTurn(logit_bias={10_000_000: 1.0}),
        FinalTurn(top_logprobs=1000),
    ],
)
def test_what_cannot_be_done_is_refused_beforehand_and_the_engine_goes_on(engine, prompt, final) -> None:
    whole = ask(engine, prompt)
    with pytest.raises(RefusedError):
        engine.check(Request(GREEDY, 1, 0, final=final))
    with pytest.raises(RefusedError):
        ask(engine, prompt, final)
    assert ask(engine, prompt) == whole


def test_a_schema_that_no_text_satisfies_is_refused_in_the_end(engine, prompt) -> None:
    endless = FinalTurn(schema='{"$ref": "#"}')
    engine.check(Request(GREEDY, 1, 0, final=endless))  # it compiles
    with pytest.raises(RefusedError, match="no text can satisfy it"):
        ask(engine, prompt, endless)
    assert ask(engine, prompt).text
