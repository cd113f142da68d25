"""What an example trains, token by token, as the trainer sees it: by the sandbox's tokenizer, one token a byte."""

from functools import cache
from typing import Any

from transformers import AutoTokenizer

from stasc_ray.learning.encoding import IGNORED, encode
from stasc_ray.recipes.recipe import Example
from stasc_ray.recipes.trace import Text
from stasc_ray.tasks import sandbox
from stasc_ray.tasks.chat import Chat

END = "<|end|>"


@cache
def chat() -> Chat:
    return Chat(AutoTokenizer.from_pretrained(sandbox.model_path()))


def said(turn: str, text: str, reward: float | None, parent: Text | None = None, **fields: Any) -> Text:
    """A graded text with the ids that the sandbox's model would have written: its bytes and the end of turn."""
    ids = chat().tokenizer.encode(text + END, add_special_tokens=False)
    assert len(ids) == len(text.encode()) + 1
    return Text(turn, text, parent=parent, reward=reward, **{"token_ids": ids, **fields})


def trained(example: Example) -> list[str]:
    """The stretches of tokens that carry loss, as text; a token is a character, but for `END`, which is one."""
    sequences, found = encode(chat(), example.messages, 8192), []
    assert not isinstance(sequences, str), sequences
    for sequence in sequences:
        before = IGNORED
        for label in sequence["labels"].tolist():
            if label != IGNORED and before == IGNORED:
                found.append([])
            if label != IGNORED:
                found[-1].append(label)
            before = label
    return [str(chat().tokenizer.decode(ids)) for ids in found]


def trained_tokens(example: Example) -> int:
    """How many tokens carry loss."""
    sequences = encode(chat(), example.messages, 8192)
    assert not isinstance(sequences, str), sequences
    return sum(int((sequence["labels"] != IGNORED).sum()) for sequence in sequences)
