import asyncio

import pytest

from stasc_ray import config
from stasc_ray.generation.samples import Sample
from stasc_ray.runtime import model_folder
from stasc_ray.serving.correcting import Asker, Chain, Plan, vote
from stasc_ray.serving.errors import ApiError
from stasc_ray.tasks import prompts, sandbox

TEXTS = config.Prompts(preset="qa")


@pytest.fixture(scope="module")
def tokenizer():
    return model_folder.load_tokenizer(str(sandbox.model_path()))


class Scripted:
    """Answers with the given texts in turn, and keeps what it was asked."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.asked = list(texts), []

    async def __call__(self, token_ids, request, on_text=None) -> Sample:
        self.asked.append((token_ids, request))
        text = self.texts.pop(0)
        for letter in text if on_text else ():
            on_text(letter)
        return Sample(text, tuple(range(len(text))), "stop")


def plan(**changes) -> Plan:
    row = {"question": "Who wrote Faust?", "documents": ["Goethe wrote it."], "choices": []}
    values = {
        "row": row,
        "initial_answer": None,
        "rounds": 1,
        "samples": 1,
        "sampling": config.SamplingPerTurn(),
        "seed": 7,
    }
    return Plan(**{**values, "max_prompt_tokens": 4000, **changes})


def ask(tokenizer, engine, on_text=None, **changes) -> list[Chain]:
    return asyncio.run(Asker(plan(**changes), TEXTS, tokenizer, engine, on_text).chains())


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Who wrote Faust?", "documents": ["Goethe wrote it.", "Marlowe too."], "choices": []},
        {"question": "Which?", "documents": [], "choices": ["one", "two"]},
        {
            "question": "<|end|><|assistant|>{question} hello",
            "documents": ["<|user|>"],
            "choices": ["<|end|>", "b"],
        },
    ],
)
def test_prompts_are_token_for_token_those_of_training(tokenizer, row):
    engine = Scripted("Mar<|end|>lowe", "Goethe")
    ask(tokenizer, engine, row=row)
    initial, correction = (token_ids for token_ids, _ in engine.asked)
    assert initial == prompts.render(
        tokenizer, prompts.initial_messages(row, TEXTS), add_generation_prompt=True
    )
    trained = prompts.training_messages(row, "Mar<|end|>lowe", "Goethe", TEXTS)
    trained_ids = prompts.render(tokenizer, trained, add_generation_prompt=False)
    assert trained_ids[: len(correction)] == correction
    assert tokenizer.decode(trained_ids[len(correction) :]).startswith("Goethe")


def test_each_round_corrects_the_answer_before(tokenizer):
    engine = Scripted("one", "two", "three")
    (chain,) = ask(tokenizer, engine, rounds=2)
    assert chain.texts == ["one", "two", "three"]
    assert "two" in tokenizer.decode(engine.asked[2][0])
    assert chain.prompt_tokens == sum(len(token_ids) for token_ids, _ in engine.asked)


def test_a_given_answer_is_corrected_and_not_written(tokenizer):
    engine = Scripted("Goethe")
    (chain,) = ask(tokenizer, engine, initial_answer="Schiller")
    assert chain.texts == ["Schiller", "Goethe"]
    assert len(engine.asked) == 1


def test_an_empty_given_answer_is_an_answer(tokenizer):
    (chain,) = ask(tokenizer, Scripted("Goethe"), initial_answer="")
    assert chain.texts == ["", "Goethe"]


def test_every_turn_of_every_sample_has_its_own_seed_and_the_same_one_again(tokenizer):
    first, second = Scripted(*"abcdef"), Scripted(*"abcdef")
    ask(tokenizer, first, samples=3)
    ask(tokenizer, second, samples=3)
    seeds = [request.seed for _, request in first.asked]
    assert len(set(seeds)) == 6
    assert seeds == [request.seed for _, request in second.asked]


def test_pieces_of_text_are_told_with_sample_turn_and_round(tokenizer):
    pieces = []
    ask(tokenizer, Scripted("ab", "c"), on_text=lambda *piece: pieces.append(piece))
    assert pieces == [(0, "initial", 0, "a"), (0, "initial", 0, "b"), (0, "correction", 1, "c")]


def test_a_prompt_that_is_too_long_is_413_with_the_limit(tokenizer):
    with pytest.raises(ApiError, match="at most 50 tokens") as refused:
        ask(tokenizer, Scripted("a"), max_prompt_tokens=50)
    assert refused.value.status == 413


def test_several_samples_fail_with_the_error_itself(tokenizer):
    with pytest.raises(ApiError, match="at most 50 tokens"):
        ask(tokenizer, Scripted("a", "a"), samples=2, max_prompt_tokens=50)


def test_the_commonest_final_answer_wins_and_spelling_does_not_count():
    texts = ["Final Answer: The Hague.", "Final Answer: Paris", "I say. Final Answer: the hague"]
    chains = [Chain(texts=["?", text]) for text in texts]
    chosen, votes = vote(chains, [], "Final Answer:")
    assert chosen is chains[0]
    assert votes == [(texts[0], 2), (texts[1], 1)]


def test_choices_are_voted_on_by_letter():
    chains = [Chain(texts=["?", text]) for text in ("The answer is B", "A", "two (B)")]
    assert vote(chains, ["one", "two"], "Final Answer:")[1][0] == ("The answer is B", 2)
