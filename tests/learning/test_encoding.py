"""stasc_ray.learning.encoding: the loss mask on six template families, and packing."""

import copy
from typing import Any, Literal

import numpy as np
import pytest
from harness.chat_templates import CHATML, FAMILIES, tokenizer_of

from stasc_ray.config import Prompts
from stasc_ray.learning.encoding import IGNORED, Encoded, encode, pack, pack_lengths, stack, stack_lengths
from stasc_ray.tasks.prompts import correction_messages, render, training_messages

QUESTION = {"id": "q1", "question": "Which river?", "choices": [], "documents": []}
CORRECTION = "It is the Danube.\nFinal Answer: the Danube"

all_families = pytest.mark.parametrize("name", FAMILIES)


def decode(tokenizer, ids) -> str:
    text = tokenizer.decode(ids)
    assert isinstance(text, str)
    return text


def conversation(
    correction: str = CORRECTION, initial: str = "Rhine", preset: Literal["qa", "sandbox"] = "qa"
) -> list[dict[str, str]]:
    return training_messages(QUESTION, initial, correction, Prompts(preset=preset))


def encoded(name: str, **texts: Any) -> Encoded:
    example = encode(tokenizer_of(name), conversation(**texts), 4096)
    assert not isinstance(example, str)
    return example


@all_families
def test_only_the_correction_and_its_end_of_turn_are_trained(name: str):
    tokenizer = tokenizer_of(name)
    example = encoded(name)
    trained = example["labels"] != IGNORED
    prompt = render(tokenizer, correction_messages(QUESTION, "Rhine", Prompts()), add_generation_prompt=True)
    assert example["input_ids"][: len(prompt)].tolist() == prompt
    assert trained.tolist() == [False] * len(prompt) + [True] * (len(trained) - len(prompt))
    assert np.array_equal(example["labels"][trained], example["input_ids"][trained])
    assert decode(tokenizer, example["labels"][trained]).strip() == CORRECTION + FAMILIES[name].end_of_turn


@all_families
@pytest.mark.parametrize(
    "correction", ["\n\nDanube", "Danube\n", "</s>", "<|im_end|>", "\u00fcber \U0001f30a", "01", "1"]
)
def test_awkward_corrections_end_with_the_end_of_turn(name: str, correction: str):
    tokenizer = tokenizer_of(name)
    example = encoded(name, correction=correction, initial="")
    target = decode(tokenizer, example["labels"][example["labels"] != IGNORED])
    assert target.strip().removesuffix(FAMILIES[name].end_of_turn).strip() == correction.strip()
    assert decode(tokenizer, example["labels"][-1:]).strip() == FAMILIES[name].end_of_turn


@all_families
@pytest.mark.parametrize("correction", ["", " \n"])
def test_an_empty_correction_has_no_target(name: str, correction: str):
    assert encode(tokenizer_of(name), conversation(correction), 4096) == "no_target"


@all_families
def test_one_token_more_than_allowed_is_too_long(name: str):
    length = len(encoded(name)["input_ids"])
    assert encode(tokenizer_of(name), conversation(), length - 1) == "too_long"
    assert encode(tokenizer_of(name), conversation(), length) != "too_long"


def with_template(template: str, eos: str | None = "<|im_end|>"):
    tokenizer = copy.deepcopy(tokenizer_of("chatml"))
    tokenizer.chat_template = template
    tokenizer.eos_token = eos
    return tokenizer


def test_a_template_that_rewrites_earlier_turns_is_named():
    template = "{{ '<|im_start|>n=' ~ messages | length }}" + CHATML
    with pytest.raises(ValueError, match="chat template: expected the prompt's tokens to begin"):
        encode(with_template(template), conversation(), 4096)


@pytest.mark.parametrize("correction", [CORRECTION, CORRECTION + "\n"])
def test_a_template_without_end_of_turn_gets_the_eos_token(correction: str):
    tokenizer = with_template(CHATML.replace("<|im_end|>", ""))
    example = encode(tokenizer, conversation(correction), 4096)
    assert not isinstance(example, str)
    target = decode(tokenizer, example["labels"][example["labels"] != IGNORED])
    assert target.removesuffix("<|im_end|>").strip() == CORRECTION
    assert target.endswith("<|im_end|>")


def test_a_template_that_ends_turns_by_what_they_say_is_named():
    odd = CHATML.replace("'<|im_end|>\\n'", "('<|im_end|>' if message.content | length < 5 else '')")
    assert odd != CHATML
    with pytest.raises(ValueError, match="expected every assistant turn to end alike"):
        encode(with_template(odd), conversation(), 4096)


def test_no_end_of_turn_and_no_eos_token_is_an_error():
    with pytest.raises(ValueError, match="never learns to stop"):
        encode(with_template(CHATML.replace("<|im_end|>", ""), eos=None), conversation(), 4096)


def test_text_that_the_template_writes_before_the_answer_is_no_end_of_turn():
    template = CHATML.replace(
        "message.content",
        "('<think>\\n\\n</think>\\n\\n' if loop.last and message.role == 'assistant' else '') + message.content",
    )
    tokenizer = with_template(template)
    tokenizer.add_tokens(["<think>", "</think>"])
    example = encode(tokenizer, conversation(), 4096)
    assert not isinstance(example, str)
    target = decode(tokenizer, example["labels"][example["labels"] != IGNORED])
    assert target == f"<think>\n\n</think>\n\n{CORRECTION}<|im_end|>"


def test_a_template_that_drops_the_answer_is_named():
    template = CHATML.replace("message.content", "('' if message.role == 'assistant' else message.content)")
    with pytest.raises(ValueError, match="found that it is left out"):
        encode(with_template(template), conversation(), 4096)


def test_the_last_message_must_be_the_assistants():
    with pytest.raises(ValueError, match="expected an assistant message last"):
        encode(tokenizer_of("chatml"), conversation()[:-1], 4096)


def test_packing_is_first_fit_decreasing_and_keeps_each_example_once():
    assert pack_lengths([3, 7, 5, 2, 3], capacity=10) == [[0, 1], [2, 3, 4]]
    lengths = np.random.default_rng(0).integers(1, 100, size=500).tolist()
    groups = pack_lengths(lengths, capacity=100)
    assert sorted(index for group in groups for index in group) == list(range(500))
    assert all(sum(lengths[index] for index in group) <= 100 for group in groups)
    assert len(groups) <= 1.25 * sum(lengths) / 100
    assert pack_lengths([], capacity=10) == []


def test_packing_refuses_what_cannot_fit():
    with pytest.raises(ValueError, match="found one of 11"):
        pack_lengths([3, 11], capacity=10)


def test_packing_restarts_positions_and_never_trains_across_examples():
    first = {"input_ids": [5, 6, 7], "labels": [5, 6, 7]}
    second = {"input_ids": np.array([8, 9]), "labels": np.array([-100, 9])}
    (row,) = pack([first, second], 5)
    assert row["input_ids"].tolist() == [5, 6, 7, 8, 9]
    assert row["labels"].tolist() == [-100, 6, 7, -100, 9]
    assert row["position_ids"].tolist() == [0, 1, 2, 0, 1]
    assert first["labels"] == [5, 6, 7], "the example itself is left as it is"
    assert [len(row["input_ids"]) for row in pack([first, second], 4)] == [3, 2]


def test_stacking_puts_examples_of_like_length_side_by_side():
    assert stack_lengths([3, 7, 5, 2, 3, 30], capacity=10) == [[5], [1], [2, 0], [4, 3]]
    stacked = stack(
        [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8, 9], "labels": [-100, 9]}]
    )
    assert stacked["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0]]
    assert stacked["labels"].tolist() == [[-100, 6, 7], [-100, 9, -100]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "attention"), [("LlamaForCausalLM", "sdpa"), ("Qwen2ForCausalLM", "eager")]
)
def test_the_packed_loss_equals_the_unpacked_one(family: str, attention: str):
    import torch

    model = tiny_model(family, attention)
    answers = ["Danube", "It is the Danube, not the Rhine.", "blue"]
    examples = [encoded("chatml", correction=text, initial=text[:4], preset="sandbox") for text in answers]
    with torch.no_grad():
        apart = [summed_loss(model, *pack([example], 4096)) for example in examples]
        (packed,) = pack(examples, 4096)
        together = summed_loss(model, packed)
        mixed = summed_loss(model, {**packed, "position_ids": np.arange(len(packed["labels"]))})
    tokens = sum(count for _, count in apart)
    assert together[1] == tokens
    assert together[0] / tokens == pytest.approx(sum(loss for loss, _ in apart) / tokens, abs=1e-5)
    assert abs(mixed[0] - together[0]) / tokens > 1e-4, (
        "the restarting positions are what keeps examples apart"
    )


def tiny_model(family: str, attention: str):
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, family).config_class(
        vocab_size=len(tokenizer_of("chatml")),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.3,
        attn_implementation=attention,
    )
    return getattr(transformers, family)(config).eval()


def summed_loss(model, row) -> tuple[float, int]:
    """Summed cross entropy over the trained tokens, and their number."""
    import torch

    inputs = {name: torch.from_numpy(row[name])[None] for name in ("input_ids", "position_ids")}  # (1, T)
    labels = torch.from_numpy(row["labels"])[1:]
    logits = model(**inputs, use_cache=False).logits[0, :-1]  # (T - 1, V)
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    return loss.item(), int((labels != IGNORED).sum())
