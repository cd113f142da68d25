"""The default plan asks and learns token for token what commit 05a8cae did (ids_05a8cae.json was recorded
there)."""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from harness.chat_templates import FAMILIES, tokenizer_of
from harness.traces import plan

from stasc_ray.learning.encoding import IGNORED, encode
from stasc_ray.recipes.stasc import STASC
from stasc_ray.recipes.trace import Text
from stasc_ray.tasks import chat

RECORD = json.loads((Path(__file__).parent / "ids_05a8cae.json").read_text(encoding="utf-8"))
CASES = {f"{case['family']}-{case['preset']}-{number}": case for number, case in enumerate(RECORD["cases"])}


def digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def assert_recorded(found: Sequence[int], recorded: dict[str, Any]) -> None:
    """Of the short prompts the ids themselves are in the record, for a readable difference."""
    assert list(found) == recorded.get("ids", list(found))
    assert (len(found), digest(",".join(map(str, found)))) == (recorded["length"], recorded["digest"])


class RenderingAsk:
    """An `Ask` that renders what it is asked, and answers with the recorded texts and their canonical ids."""

    def __init__(self, tokenizer: Any, case: dict[str, Any]) -> None:
        self.tokenizer, self.prompts, self.texts = tokenizer, [], []
        self.left = [
            {"text": case["initial"]},
            {"text": case["correction"], "token_ids": tuple(case["target"])},
        ]

    async def __call__(
        self,
        turn: str,
        messages: Sequence[chat.Message],
        *,
        n: int = 1,
        parent: Text | None = None,
        logprob: bool = False,
        budget: float = 1.0,
    ) -> list[Text]:
        self.prompts.append(chat.Chat(self.tokenizer).render(messages, add_generation_prompt=True))
        self.texts.append(Text(turn, parent=parent, **self.left.pop(0)))
        return self.texts[-1:]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokenizers_are_those_of_the_record(family: str):
    assert (
        digest(json.dumps(sorted(tokenizer_of(family).get_vocab().items()))) == RECORD["vocabulary"][family]
    )


def test_the_record_covers_six_families_and_four_presets():
    kinds = {(case["family"], case["preset"]) for case in CASES.values()}
    assert len(kinds) == 24 and {family for family, _ in kinds} == set(FAMILIES)


@pytest.mark.parametrize("name", CASES)
def test_prompts_and_labels_are_those_of_the_record(name: str):
    case = CASES[name]
    tokenizer, question = (
        tokenizer_of(case["family"]),
        {"id": "q1", "answers": ["Danube"], **case["question"]},
    )
    default = plan({"n_corrections": 1}, case["preset"])
    ask = RenderingAsk(tokenizer, case)
    asyncio.run(STASC.turns(question, ask, default, None))
    asked, corrected = ask.prompts
    assert_recorded(asked, case["initial_prompt"])
    assert_recorded(corrected, case["correction_prompt"])
    for text, reward in zip(ask.texts, (0.0, 1.0), strict=True):
        text.reward = reward
    (example,) = STASC.examples(question, ask.texts, default, 0)
    (found,) = encode(chat.Chat(tokenizer), example.messages, 8192)
    assert not isinstance(found, str)
    assert_recorded(found["input_ids"].tolist(), case["input_ids"])
    assert found["labels"].tolist() == [IGNORED] * len(corrected) + case["target"]


@pytest.mark.parametrize("name", CASES)
def test_a_text_without_ids_gets_the_recorded_target(name: str):
    """As `training_messages` gave it at 05a8cae; a person's own examples have no ids."""
    case = CASES[name]
    tokenizer, question = tokenizer_of(case["family"]), {"id": "q1", **case["question"]}
    ask = RenderingAsk(tokenizer, case)
    asyncio.run(STASC.turns(question, ask, plan({"n_corrections": 1}, case["preset"]), None))
    ask.texts[0].reward, ask.texts[1].reward = 0.0, 1.0
    (example,) = STASC.examples(question, ask.texts, plan(preset=case["preset"]), 0)
    last = {"role": "assistant", "content": case["correction"], "train": True}
    (found,) = encode(chat.Chat(tokenizer), [*example.messages[:-1], last], 8192)
    assert not isinstance(found, str)
    assert_recorded(found["input_ids"].tolist(), case["input_ids"])
    assert found["labels"][found["labels"] != IGNORED].tolist() == case["target"]
