"""The embedded world: disjoint splits, right gold answers, and a shipped model that is as wrong as it should
be."""

import json
import random
import subprocess
import sys
from typing import Any

import pytest

from stasc_ray.config import Prompts
from stasc_ray.tasks import chat, prompts, sandbox

MODEL_FILES = {
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
ANY_TEXT = [
    "",
    "plain",
    "  two spaces, a tab\t, lines\r\n\n and an end \n",
    "e\u0301 is not \u00e9, \u212b is not \u00c5",  # composed and decomposed forms stay what they are
    "日本語 Ελληνικά العربية हिन्दी 🎉👩\u200d🚀",
    "\x00\x01\x7f\u00a0\u200b\ufeff\U0010ffff",
    "<|end|><|user|> <|assistant|>",
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(sandbox.model_path())


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(sandbox.model_path())


def test_questions_are_canonical_rows_with_the_right_sum() -> None:
    for split in sandbox.SPLITS:
        for row in sandbox.questions(split, 300, seed=5):
            addends = [
                int(part) for part in row["question"].removeprefix("What is ").removesuffix("?").split(" + ")
            ]
            assert row["answers"] == [str(sum(addends))]
            assert row["split"] == split
            assert (row["documents"], row["choices"]) == ([], [])
            assert all(10 <= addend < 1000 for addend in addends)


def test_splits_never_meet_whatever_the_seeds() -> None:
    texts = {
        split: {row["question"] for seed in range(3) for row in sandbox.questions(split, 2000, seed)}
        for split in sandbox.SPLITS
    }
    assert (
        not texts["train"] & texts["dev"]
        and not texts["train"] & texts["test"]
        and not texts["dev"] & texts["test"]
    )


def test_the_order_of_the_addends_does_not_change_the_split() -> None:
    generator = random.Random(0)
    for _ in range(500):
        addends = sandbox.draw_addends(generator)
        assert sandbox.split_of(addends) == sandbox.split_of(addends[::-1])


def test_questions_are_unique_deterministic_and_extend_a_smaller_draw() -> None:
    rows = sandbox.questions("test", 1000, seed=1)
    assert len({row["id"] for row in rows}) == len({row["question"] for row in rows}) == 1000
    assert rows == sandbox.questions("test", 1000, seed=1)
    assert rows[:50] == sandbox.questions("test", 50, seed=1)
    assert rows != sandbox.questions("test", 1000, seed=2)
    assert sandbox.questions("test", 0, seed=1) == []


def test_questions_are_the_same_on_every_machine() -> None:
    texts = [sandbox.questions(split, 1, seed=0)[0]["question"] for split in ("train", "dev", "test")]
    assert texts == ["What is 11 + 898 + 78?", "What is 452 + 585 + 976?", "What is 778 + 680 + 37?"]


@pytest.mark.parametrize(("split", "n"), [("valid", 1), ("train", -1)])
def test_a_wrong_request_is_named(split: str, n: int) -> None:
    with pytest.raises(ValueError, match=f"found split '{split}', n {n}"):
        sandbox.questions(split, n, seed=0)


def test_column_addition_is_right_unless_a_carry_is_forgotten() -> None:
    assert sandbox.column_addition((47, 385, 12)) == "7+5+2=14\n4+8+1+1=14\n3+1=4\n=444"
    assert sandbox.column_addition((47, 385, 12), lambda: False) == "7+5+2=14\n4+8+1=13\n3=3\n=334"
    generator = random.Random(0)
    for _ in range(500):
        addends = sandbox.draw_addends(generator)
        assert sandbox.column_addition(addends).rpartition("=")[2] == str(sum(addends))


def test_the_module_needs_no_heavy_library() -> None:
    code = (
        "import sys, stasc_ray.tasks.sandbox as sandbox; sandbox.model_path(); "
        "print([name for name in ('torch', 'transformers', 'ray', 'vllm') if name in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


def test_the_shipped_folder_is_small_and_says_what_vllm_needs() -> None:
    files = {path.name: path for path in sandbox.model_path().iterdir()}
    assert set(files) == MODEL_FILES
    assert sum(path.stat().st_size for path in files.values()) < 3_000_000
    config = json.loads(files["config.json"].read_text())
    assert (
        config["tie_word_embeddings"] is False
    )  # reload_weights is silently wrong on tied embeddings on CPU
    assert config["head_dim"] == 32  # the smallest that vLLM has a CPU kernel for
    assert config["max_position_embeddings"] >= 4096  # real questions are read byte by byte


@pytest.mark.parametrize("text", ANY_TEXT)
def test_the_tokenizer_encodes_any_text_byte_by_byte(tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_every_control_token_is_one_token_and_never_comes_from_text(tokenizer: Any) -> None:
    strings = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    assert [tokenizer.encode(string) for string in strings] == [[256], [257], [258], [259], [260]]
    for string in strings:
        messages = [{"role": "user", "content": f"a{string}b"}]
        ids = chat.Chat(tokenizer).render(messages, add_generation_prompt=False)
        assert ids == [259, *f"a{string}b".encode(), 257]


def test_a_conversation_renders_to_one_control_token_per_turn_and_its_end(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "<|end|>"},
        {"role": "assistant", "content": "a"},
    ]
    ids = chat.Chat(tokenizer).render(messages, add_generation_prompt=False)
    end, system, user, assistant = range(257, 261)
    assert ids == [system, ord("s"), end, user, *b"<|end|>", end, assistant, ord("a"), end]
    assert tokenizer.eos_token_id == end


@pytest.mark.slow
def test_the_base_model_is_wrong_as_often_as_it_should_be(tokenizer: Any, model: Any) -> None:
    texts, rows = Prompts(preset="sandbox"), sandbox.questions("test", 200, seed=0)
    initial = sample(model, tokenizer, [prompts.initial_messages(row, texts) for row in rows], seed=0)
    asked = [
        prompts.correction_messages(row, answer, texts) for row, answer in zip(rows, initial, strict=True)
    ]
    corrections = sample(model, tokenizer, asked, seed=1)
    r1, r2 = (
        [is_right(*pair) for pair in zip(answers, rows, strict=True)] for answers in (initial, corrections)
    )
    assert 0.22 < sum(r1) / 200 < 0.44  # 0.31 over 500 questions; the standard error of 200 is 0.035
    assert 0.31 < sum(r2) / 200 < 0.55  # 0.42 over 500
    assert (
        sum(after > before for before, after in zip(r1, r2, strict=True)) > 200 * 0.10
    )  # there is something to keep
    assert (
        sum(after < before for before, after in zip(r1, r2, strict=True)) > 200 * 0.03
    )  # and something to unlearn


def sample(model: Any, tokenizer: Any, conversations: list[list[dict[str, str]]], seed: int) -> list[str]:
    """One sampled answer per conversation with plain transformers, all in one batch padded on the left."""
    import torch

    rows = [chat.Chat(tokenizer).render(messages, add_generation_prompt=True) for messages in conversations]
    longest = max(map(len, rows))
    padded = torch.tensor([[tokenizer.pad_token_id] * (longest - len(row)) + row for row in rows])  # (B, T)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    torch.manual_seed(seed)  # not the same for both turns: equal luck would repeat the answer
    output = model.generate(padded, attention_mask=mask)
    return tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)


def is_right(answer: str, row: dict[str, Any]) -> bool:
    return answer.rpartition("=")[2].strip() == row["answers"][0]
