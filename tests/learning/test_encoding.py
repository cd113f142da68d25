"""stasc_ray.learning.encoding: the loss mask on six template families, and packing."""

import copy
from typing import Any, Literal

import numpy as np
import pytest
from harness.chat_templates import CHATML, FAMILIES, tokenizer_of

from stasc_ray.config import Prompts
from stasc_ray.learning.encoding import IGNORED, Encoded, encode, pack, pack_lengths, stack, stack_lengths
from stasc_ray.recipes.recipe import learnt, written
from stasc_ray.recipes.trace import Text
from stasc_ray.tasks.chat import Chat, Message, content
from stasc_ray.tasks.prompts import correction_messages, initial_messages, user

QUESTION = {"id": "q1", "question": "Which river?", "choices": [], "documents": []}
CORRECTION = "It is the Danube.\nFinal Answer: the Danube"

all_families = pytest.mark.parametrize("name", FAMILIES)


def decode(tokenizer, ids) -> str:
    text = tokenizer.decode(ids)
    assert isinstance(text, str)
    return text


def conversation(
    correction: str = CORRECTION, initial: str = "Rhine", preset: Literal["qa", "sandbox"] = "qa"
) -> list[Message]:
    """A correction that no model generated: its target is what the template makes of it."""
    return [*correction_messages(QUESTION, initial, Prompts(preset=preset)), written(correction)]


def sequences(tokenizer: Any, messages: list[Message]) -> list[Encoded]:
    found = encode(Chat(tokenizer), messages, 4096)
    assert not isinstance(found, str)
    return found


def one(tokenizer: Any, messages: list[Message]) -> Encoded:
    (found,) = sequences(tokenizer, messages)
    return found


def encoded(name: str, **texts: Any) -> Encoded:
    return one(tokenizer_of(name), conversation(**texts))


def targets(example: Encoded) -> list[int]:
    return example["labels"][example["labels"] != IGNORED].tolist()


@all_families
def test_only_the_correction_and_its_end_of_turn_are_trained(name: str):
    tokenizer = tokenizer_of(name)
    example = encoded(name)
    trained = example["labels"] != IGNORED
    prompt = Chat(tokenizer).render(
        correction_messages(QUESTION, "Rhine", Prompts()), add_generation_prompt=True
    )
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
    assert encode(Chat(tokenizer_of(name)), conversation(correction), 4096) == "no_target"


@all_families
def test_one_token_more_than_allowed_is_too_long(name: str):
    length = len(encoded(name)["input_ids"])
    assert encode(Chat(tokenizer_of(name)), conversation(), length - 1) == "too_long"
    assert encode(Chat(tokenizer_of(name)), conversation(), length) != "too_long"


def with_template(template: str, eos: str | None = "<|im_end|>"):
    tokenizer = copy.deepcopy(tokenizer_of("chatml"))
    tokenizer.chat_template = template
    tokenizer.eos_token = eos
    return tokenizer


def test_a_template_that_rewrites_earlier_turns_is_named():
    template = "{{ '<|im_start|>n=' ~ messages | length }}" + CHATML
    with pytest.raises(ValueError, match="chat template: expected the prompt's tokens to begin"):
        encode(Chat(with_template(template)), conversation(), 4096)


@pytest.mark.parametrize("correction", [CORRECTION, CORRECTION + "\n"])
def test_a_template_without_end_of_turn_gets_the_eos_token(correction: str):
    tokenizer = with_template(CHATML.replace("<|im_end|>", ""))
    example = one(tokenizer, conversation(correction))
    target = decode(tokenizer, example["labels"][example["labels"] != IGNORED])
    assert target.removesuffix("<|im_end|>").strip() == CORRECTION
    assert target.endswith("<|im_end|>")


def test_a_template_that_ends_turns_by_what_they_say_is_named():
    odd = CHATML.replace("'<|im_end|>\\n'", "('<|im_end|>' if message.content | length < 5 else '')")
    assert odd != CHATML
    with pytest.raises(ValueError, match="expected every assistant turn to end alike"):
        encode(Chat(with_template(odd)), conversation(), 4096)


def test_no_end_of_turn_and_no_eos_token_is_an_error():
    with pytest.raises(ValueError, match="never learns to stop"):
        encode(Chat(with_template(CHATML.replace("<|im_end|>", ""), eos=None)), conversation(), 4096)


def test_text_that_the_template_writes_before_the_answer_is_no_end_of_turn():
    template = CHATML.replace(
        "message.content",
        "('<think>\\n\\n</think>\\n\\n' if loop.last and message.role == 'assistant' else '') + "
        "message.content",
    )
    tokenizer = with_template(template)
    tokenizer.add_tokens(["<think>", "</think>"])
    example = one(tokenizer, conversation())
    target = decode(tokenizer, example["labels"][example["labels"] != IGNORED])
    assert target == f"<think>\n\n</think>\n\n{CORRECTION}<|im_end|>"


def test_a_template_that_drops_the_answer_is_named():
    template = CHATML.replace("message.content", "('' if message.role == 'assistant' else message.content)")
    with pytest.raises(ValueError, match="found that it leaves it out"):
        encode(Chat(with_template(template)), conversation(), 4096)


def test_what_is_trained_must_be_there_and_the_assistants():
    asked = conversation()[:-1]
    with pytest.raises(ValueError, match=r"expected assistant messages to train on.*found none of"):
        encode(Chat(tokenizer_of("chatml")), asked, 4096)
    with pytest.raises(ValueError, match="found one of role 'user'"):
        encode(Chat(tokenizer_of("chatml")), [*asked[:-1], {**asked[-1], "train": True}], 4096)


# --- generated texts, several trained turns, pieces
# ---------------------------------------------------------------


def generated(name: str, asked: list[Message], text: str) -> Text:
    """A text with the ids that a model gives that writes it in the canonical way."""
    plain = [{"role": message["role"], "content": content(message)} for message in asked]
    return Text("answer", text, token_ids=targets(one(tokenizer_of(name), [*plain, written(text)])))


def one_by_one(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text that no encoder gives: its characters, each encoded alone."""
    return [
        token for character in text for token in tokenizer.encode(character, add_special_tokens=False)[-1:]
    ]


@all_families
def test_the_target_is_the_generated_ids_as_they_are(name: str):
    asked = conversation()[:-1]
    text = generated(name, asked, CORRECTION)
    assert one(tokenizer_of(name), [*asked, learnt(text)])["input_ids"].tolist() == (
        encoded(name)["input_ids"].tolist()
    )
    tokenizer, prompt = tokenizer_of(name), Chat(tokenizer_of(name)).render(asked, add_generation_prompt=True)
    ids = [*one_by_one(tokenizer, "Danube"), text.token_ids[-1]]
    assert ids[:-1] != tokenizer.encode("Danube", add_special_tokens=False), "not the canonical ones"
    example = one(tokenizer, [*asked, learnt(Text("answer", "Danube", token_ids=ids))])
    assert example["input_ids"].tolist() == prompt + ids and targets(example) == ids


@all_families
def test_an_answer_that_was_cut_off_has_no_end_of_turn(name: str):
    asked = conversation()[:-1]
    text = generated(name, asked, CORRECTION)
    cut = Text("answer", CORRECTION, token_ids=text.token_ids[:-1], finish_reason="length")
    assert targets(one(tokenizer_of(name), [*asked, learnt(cut)])) == list(text.token_ids[:-1])
    assert targets(one(tokenizer_of(name), [*asked, learnt(text)])) == list(text.token_ids)


def test_another_control_token_ends_a_turn_as_well():
    """A model may stop at any of its end tokens (`<|endoftext|>`); a second end would never be generated."""
    tokenizer = tokenizer_of("chatml")
    (end,) = tokenizer.encode("<|endoftext|>")
    ids = [*tokenizer.encode("Danube"), end]
    assert (
        targets(one(tokenizer, [*conversation()[:-1], learnt(Text("answer", "Danube", token_ids=ids))]))
        == ids
    )


def two_turns(first: Text, second: Text, preset: Literal["qa", "sandbox"] = "sandbox") -> list[Message]:
    prompts = Prompts(preset=preset)
    return [*initial_messages(QUESTION, prompts), learnt(first), user(prompts.correction), learnt(second)]


@all_families
def test_two_trained_turns_share_one_sequence(name: str):
    tokenizer, prompts = tokenizer_of(name), Prompts(preset="sandbox")
    asked = initial_messages(QUESTION, prompts)
    first = generated(name, asked, "It is the Rhine.")
    second = generated(name, [*asked, learnt(first), user(prompts.correction)], CORRECTION)
    example = one(tokenizer, two_turns(first, second))
    prompt = Chat(tokenizer).render(asked, add_generation_prompt=True)
    later = Chat(tokenizer).render(two_turns(first, second)[:-1], add_generation_prompt=True)
    ids, labels = example["input_ids"].tolist(), example["labels"].tolist()
    assert ids == later + list(second.token_ids)
    between = len(later) - len(prompt) - len(first.token_ids)
    assert labels == (
        [IGNORED] * len(prompt) + list(first.token_ids) + [IGNORED] * between + list(second.token_ids)
    )
    trained = len(first.token_ids) + len(second.token_ids)
    assert len(targets(example)) == trained
    unlearnt = [*two_turns(first, second)]
    unlearnt[-3] = learnt(first, train=False)
    assert targets(one(tokenizer, unlearnt)) == list(second.token_ids)


@all_families
def test_ids_that_are_not_canonical_get_a_sequence_for_each_turn(name: str):
    tokenizer, prompts = tokenizer_of(name), Prompts(preset="sandbox")
    asked = initial_messages(QUESTION, prompts)
    end = generated(name, asked, "Rhine").token_ids[-1]
    first = Text("answer", "Rhine", token_ids=[*one_by_one(tokenizer, "Rhine"), end])
    second = generated(name, [*asked, learnt(first), user(prompts.correction)], CORRECTION)
    found = sequences(tokenizer, two_turns(first, second))
    assert [targets(example) for example in found] == [list(first.token_ids), list(second.token_ids)]
    later = Chat(tokenizer).render(two_turns(first, second)[:-1], add_generation_prompt=True)
    assert found[1]["input_ids"].tolist() == later + list(second.token_ids)


def test_a_template_that_rewrites_earlier_turns_gives_a_sequence_for_each_turn():
    """As templates do that drop the thoughts of earlier turns."""
    content = "message.content.split('</think>')[-1] if not loop.last else message.content"
    tokenizer = with_template(CHATML.replace("message.content", f"({content})"))
    thought, plain = "<think>hm</think>Rhine", "Danube"
    ids = [tokenizer.encode(f"{text}<|im_end|>", add_special_tokens=False) for text in (thought, plain)]
    first, second = Text("answer", thought, token_ids=ids[0]), Text("correction", plain, token_ids=ids[1])
    found = sequences(tokenizer, two_turns(first, second))
    assert [targets(example) for example in found] == ids
    assert "<think>" in decode(tokenizer, found[0]["input_ids"])
    assert "<think>" not in decode(tokenizer, found[1]["input_ids"]), (
        "as the prompt of the second turn had it"
    )


@all_families
def test_of_two_pieces_only_the_trained_one_has_labels(name: str):
    tokenizer, asked = tokenizer_of(name), conversation()[:-1]
    whole = generated(name, asked, CORRECTION)
    for at in (1, 3, len(whole.token_ids) - 1):
        parts = (whole.token_ids[:at], whole.token_ids[at:])
        texts = [Text("answer", f"part {number}.", token_ids=ids) for number, ids in enumerate(parts)]
        pieces = [*learnt(texts[0], train=False)["pieces"], *learnt(texts[1])["pieces"]]
        example = one(tokenizer, [*asked, {"role": "assistant", "pieces": pieces}])
        assert example["input_ids"].tolist() == encoded(name)["input_ids"].tolist()
        assert targets(example) == list(whole.token_ids[at:])


@all_families
def test_a_piece_that_another_follows_loses_its_end_of_turn(name: str):
    """A verdict that ended its own turn, set into the middle of an answer."""
    asked = conversation()[:-1]
    verdict, answer = generated(name, asked, "Wrong."), generated(name, asked, "Danube")
    message = {
        "role": "assistant",
        "pieces": [*learnt(verdict, train=False)["pieces"], *learnt(answer)["pieces"]],
    }
    example = one(tokenizer_of(name), [*asked, message])
    prompt = Chat(tokenizer_of(name)).render(asked, add_generation_prompt=True)
    assert example["input_ids"].tolist() == [*prompt, *verdict.token_ids[:-1], *answer.token_ids]
    assert targets(example) == list(answer.token_ids)


@all_families
def test_a_trained_turn_without_text_is_passed_over(name: str):
    first = Text("answer", " ", token_ids=(1,))
    asked = initial_messages(QUESTION, Prompts(preset="sandbox"))
    second = generated(name, [*asked, learnt(first), user("?")], "Danube")
    assert targets(one(tokenizer_of(name), two_turns(first, second))) == list(second.token_ids)
    assert encode(Chat(tokenizer_of(name)), two_turns(first, first), 4096) == "no_target"


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
