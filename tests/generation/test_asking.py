"""The one Ask: prompts as in training, seeds by place, bounds, what is counted, what grows."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from harness.traces import ScriptedGenerate

from stasc_ray import config
from stasc_ray.generation.asking import Asker, PromptTooLongError, empty, place
from stasc_ray.recipes.answering import as_trained
from stasc_ray.recipes.recipe import Plan
from stasc_ray.recipes.stasc import STASC, Stasc
from stasc_ray.recipes.trace import Text
from stasc_ray.runtime import model_folder
from stasc_ray.tasks import chat, prompts, sandbox

TEXTS = config.Prompts(preset="qa")
ROW = {"question": "Who wrote Faust?", "documents": ["Goethe wrote it."], "choices": []}
GREEDY = config.SamplingPerTurn(
    initial=config.Sampling(temperature=0), correction=config.Sampling(temperature=0)
)


@pytest.fixture(scope="module")
def tokenizer():
    return model_folder.load_tokenizer(str(sandbox.model_path()))


def asker(tokenizer, generate: ScriptedGenerate, **changes: Any) -> Asker:
    given = {
        "sampling": config.SamplingPerTurn(),
        "identity": (7,),
        "writer": "iteration_03",
        "max_prompt_tokens": 4000,
    }
    return Asker(chat.Chat(tokenizer), generate, **{**given, **changes})


def ask(
    tokenizer,
    generate: ScriptedGenerate,
    *,
    row=ROW,
    samples: int = 1,
    corrections: int = 1,
    rounds: int = 1,
    given: Sequence[Text] = (),
    **changes: Any,
) -> list[Text]:
    """STaSC's turns, in rounds, as the endpoint and the rollouts run them."""
    one = asker(tokenizer, generate, given=given, **changes)
    plan = Plan(TEXTS, Stasc(), n_initial=samples, n_corrections=corrections, rounds=rounds)
    asyncio.run(as_trained(STASC, row, one, plan, given or None))
    return one.texts


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
    generate = ScriptedGenerate("Mar<|end|>lowe", "Goethe")
    ask(tokenizer, generate, row=row)
    initial, correction = (token_ids for token_ids, _ in generate.asked)
    assert initial == chat.Chat(tokenizer).render(
        prompts.initial_messages(row, TEXTS), add_generation_prompt=True
    )
    trained = [*prompts.correction_messages(row, "Mar<|end|>lowe", TEXTS), prompts.assistant("Goethe")]
    trained_ids = chat.Chat(tokenizer).render(trained, add_generation_prompt=False)
    assert trained_ids[: len(correction)] == correction
    assert tokenizer.decode(trained_ids[len(correction) :]).startswith("Goethe")


def test_each_round_corrects_the_answer_before(tokenizer):
    generate = ScriptedGenerate("one", "two", "three")
    texts = ask(tokenizer, generate, rounds=2)
    assert [text.text for text in texts[-1].lineage] == ["one", "two", "three"]
    assert {text.writer for text in texts} == {"iteration_03"}
    assert "two" in tokenizer.decode(generate.asked[2][0])
    assert sum(text.prompt_tokens for text in texts) == sum(len(ids) for ids, _ in generate.asked)


@pytest.mark.parametrize("answer", ["Schiller", ""])
def test_a_given_answer_is_corrected_and_not_written(tokenizer, answer):
    generate = ScriptedGenerate("Goethe")
    first, correction = ask(tokenizer, generate, given=[Text("answer", answer, writer="user")])
    assert (first.text, first.writer, first.prompt_tokens) == (answer, "user", 0)
    assert (correction.text, correction.parent) == ("Goethe", first)
    assert len(generate.asked) == 1


def test_a_prompt_counts_once_for_its_samples(tokenizer):
    generate = ScriptedGenerate(*"abcdef")
    texts = ask(tokenizer, generate, samples=2, corrections=2)
    assert [request.n for _, request in generate.asked] == [2, 2, 2]
    assert sorted(text.prompt_tokens > 0 for text in texts) == [False] * 3 + [True] * 3
    assert sum(text.prompt_tokens for text in texts) == sum(len(ids) for ids, _ in generate.asked)


def test_turns_have_their_own_sampling_values(tokenizer):
    sampling = config.SamplingPerTurn(
        initial=config.Sampling(max_tokens=3), correction=config.Sampling(max_tokens=5)
    )
    generate = ScriptedGenerate("a", "b")
    ask(tokenizer, generate, sampling=sampling)
    assert [request.sampling.max_tokens for _, request in generate.asked] == [3, 5]


def test_greedy_texts_are_generated_once_and_stand_for_all(tokenizer):
    generate = ScriptedGenerate("a", "b", "c")
    texts = ask(tokenizer, generate, samples=2, corrections=3, sampling=GREEDY)
    assert [request.n for _, request in generate.asked] == [1, 1, 1]
    assert [(text.turn, text.text, text.sample) for text in texts] == [
        ("answer", "a", 0),
        ("answer", "a", 1),
        *[("correction", "b", number) for number in range(3)],
        *[("correction", "c", number) for number in range(3)],
    ]


def test_every_request_has_its_own_seed_and_the_same_one_again(tokenizer):
    first, second, other = (ScriptedGenerate(*"abcdefghi") for _ in range(3))
    ask(tokenizer, first, samples=3, rounds=2)
    ask(tokenizer, second, samples=3, rounds=2)
    ask(tokenizer, other, samples=3, rounds=2, identity=(8,))
    seeds = [request.seed for _, request in first.asked]
    assert len(set(seeds)) == len(seeds) == 1 + 3 + 3
    assert seeds == [request.seed for _, request in second.asked]
    assert not set(seeds) & {request.seed for _, request in other.asked}


def test_places_are_words_that_stay_as_they_are():
    """They seed requests: another word here is another answer of every run."""
    answer = Text("answer", "", 2)
    correction = Text("correction", "", 0, answer)
    assert place("answer", None) == "initial"
    assert place("correction", answer) == "correction/2"
    assert place("correction", correction) == "correction/2/round/1"
    assert place("correction", Text("correction", "", 0, correction)) == "correction/2/round/2"
    assert place("correction", Text("correction", "", 1, answer)) == "correction/2/correction/1"
    assert place("verdict", answer) == "verdict/2"
    assert place("correction", Text("verdict", "", 0, answer)) == "correction/2/verdict/0"
    assert place("plan", None) == "plan"


def test_pieces_come_with_the_text_that_they_belong_to(tokenizer):
    pieces: list[tuple[str, int, str]] = []

    def on_text(text: Text, piece: str) -> None:
        pieces.append((text.turn, text.sample, piece))

    ask(tokenizer, ScriptedGenerate("ab", "x", "c", "y"), samples=2, on_text=on_text)
    expected = [("answer", 0, "a"), ("answer", 0, "b"), ("answer", 1, "x")]
    assert pieces == [*expected, ("correction", 0, "c"), ("correction", 0, "y")]


def test_a_prompt_that_is_too_long_names_limit_and_length_and_is_never_sent(tokenizer):
    generate = ScriptedGenerate("a")
    with pytest.raises(PromptTooLongError, match=r"expected at most 50 tokens .*, found \d+; shorten"):
        ask(tokenizer, generate, max_prompt_tokens=50)
    assert not generate.asked
    length = len(
        chat.Chat(tokenizer).render(prompts.initial_messages(ROW, TEXTS), add_generation_prompt=True)
    )
    one = asker(tokenizer, generate, max_prompt_tokens=length)
    assert asyncio.run(one("answer", prompts.initial_messages(ROW, TEXTS)))[0].text == "a", "just fits"


def test_of_several_corrections_the_one_that_fails_raises_its_own_error(tokenizer):
    length = len(
        chat.Chat(tokenizer).render(prompts.initial_messages(ROW, TEXTS), add_generation_prompt=True)
    )
    with pytest.raises(PromptTooLongError, match=f"at most {length} tokens"):
        ask(tokenizer, ScriptedGenerate("a", "a"), samples=2, max_prompt_tokens=length)


def test_nothing_is_asked_for_no_texts(tokenizer):
    generate = ScriptedGenerate()
    assert asyncio.run(asker(tokenizer, generate)("answer", prompts.initial_messages(ROW, TEXTS), n=0)) == []
    assert not generate.asked


def test_empty_texts_are_counted_and_kept():
    texts = [Text("answer", text) for text in ("a", "", " \n")]
    assert empty(texts) == "empty generation: 2 of this question's texts"
    assert empty(texts[:1]) is None and empty([]) is None
