"""Messages -> token ids and labels, and several examples -> the arrays of one forward pass.

Reads Example messages and a transformers tokenizer that is passed in; writes NumPy arrays with -100 where
nothing is trained. The loss mask comes from rendering the prompt and the whole conversation and comparing the
two, never from known token ids.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

import numpy as np

from stasc_ray.tasks.chat import Chat, Message, content

IGNORED = -100
"""Label of a token that is not trained on (the default of torch's cross entropy)."""

LeftOut = Literal["too_long", "no_target"]


class Encoded(TypedDict):
    """One example for the trainer."""

    input_ids: np.ndarray
    """(T,) int32: the conversation, up to and including the last trained turn's end-of-turn token."""
    labels: np.ndarray
    """(T,) int32: `input_ids` over what is trained, end-of-turn tokens included; -100 elsewhere."""


class Row(TypedDict):
    """What is trained on as one, whose sequences stay together: one sequence, or both sides of a pair."""

    id: str
    input_ids: np.ndarray
    """(T,) int32: of its sequences, one after another."""
    labels: np.ndarray
    """(T,) int32"""
    lengths: list[int]
    """Tokens of each sequence."""
    chosen: int
    """How many of them are the chosen side; the others are the rejected one. All: it is no pair."""
    weight: float
    trained_tokens: int
    """Of all its sequences."""


class Packed(TypedDict):
    """One sequence of one or more examples; int64, as torch's embedding and cross entropy want it."""

    input_ids: np.ndarray
    """(T,)"""
    labels: np.ndarray
    """(T,): -100 at each example's first token too."""
    position_ids: np.ndarray
    """(T,): restarts at 0 with each example."""


class Stacked(TypedDict):
    """B examples side by side, filled up at their ends; int64."""

    input_ids: np.ndarray
    """(B, T)"""
    labels: np.ndarray
    """(B, T): -100 where a row is filled up."""


def encode(chat: Chat, messages: Sequence[Message], max_length_tokens: int) -> list[Encoded] | LeftOut:
    """Token ids and labels of a conversation: of every message and piece with `train`.

    A turn's sequence is the prompt that asked for it, rendered as it was for generation, and its target. If a
    text was generated, its `token_ids` are the target as they are, so one that was cut at `max_tokens` has no
    end of turn. Otherwise the target is what the template makes of the text.

    Such a target ends with the end-of-turn token; what the template writes after that (ChatML's newline,
    Phi-3's end of text) is dropped, as a model stops before it. A template that ends the turn with plain text
    or with nothing gets the tokenizer's end-of-sequence token instead, without which the model would never
    learn to stop.

    Several trained turns share a sequence if each earlier one stands in the later one's prompt token by
    token. If not (templates that rewrite earlier turns, ids that are not the canonical ones), each gets its
    own sequence.

    Returns:
        The sequences, or why the example is left out: `too_long` (one of more than `max_length_tokens`),
            `no_target` (every trained text is empty or whitespace).

    Raises:
        ValueError: nothing is trained, or a message that is not the assistant's; the prompt is not a prefix
            of the conversation; nothing ends the assistant's turn; the template drops the assistant's text.
    """
    trained = [place for place, message in enumerate(messages) if _is_trained(message)]
    wrong = [messages[place]["role"] for place in trained if messages[place]["role"] != "assistant"]
    if not trained or wrong:
        found = f"one of role {wrong[0]!r}" if wrong else f"none of {len(messages)} messages"
        raise ValueError(f"encoding: expected assistant messages to train on (`train`), found {found}")
    sequences: list[tuple[list[int], list[int]]] = []
    for place in trained:
        if not content(messages[place]).strip():
            continue
        ids = chat.render(messages[:place], add_generation_prompt=True)
        target, learnt = _target(chat, messages, place, ids)
        labels = [IGNORED] * len(ids) + [
            token if learn else IGNORED for token, learn in zip(target, learnt, strict=True)
        ]
        ids = ids + target
        if sequences and ids[: len(sequences[-1][0])] == sequences[-1][0]:
            earlier = sequences.pop()[1]
            labels[: len(earlier)] = earlier
        sequences.append((ids, labels))
    if not sequences:
        return "no_target"
    if max(len(ids) for ids, _ in sequences) > max_length_tokens:
        return "too_long"
    return [
        Encoded(input_ids=np.array(ids, np.int32), labels=np.array(labels, np.int32))
        for ids, labels in sequences
    ]


def as_row(id: str, sequences: Sequence[Encoded], *, chosen: int | None = None, weight: float = 1.0) -> Row:
    """The row of these sequences, the first `chosen` of which are a pair's chosen side; None: no pair."""
    return Row(
        id=id,
        input_ids=np.concatenate([one["input_ids"] for one in sequences]),
        labels=np.concatenate([one["labels"] for one in sequences]),
        lengths=[len(one["input_ids"]) for one in sequences],
        chosen=len(sequences) if chosen is None else chosen,
        weight=weight,
        trained_tokens=sum(int((one["labels"] != IGNORED).sum()) for one in sequences),
    )


def _is_trained(message: Message) -> bool:
    pieces = message.get("pieces")
    return any(piece["train"] for piece in pieces) if pieces else bool(message.get("train"))


def _target(
    chat: Chat, messages: Sequence[Message], place: int, prompt: list[int]
) -> tuple[list[int], list[bool]]:
    """The tokens of a trained message, end of turn included, and which of them are learnt."""
    _, end_of_turn = chat.closing
    pieces = messages[place].get("pieces")
    if not pieces or all(piece.get("token_ids") is None and piece["train"] for piece in pieces):
        target = _canonical(chat, messages[: place + 1], prompt)
        return target, [True] * len(target)
    ids, learnt = [], []
    for number, piece in enumerate(pieces):
        tokens = piece.get("token_ids")
        if tokens is None:
            tokens = chat.continuation(piece["text"]) + (end_of_turn if number == len(pieces) - 1 else [])
        elif number < len(pieces) - 1 and list(tokens[-len(end_of_turn) :]) == end_of_turn:
            tokens = tokens[: -len(end_of_turn)]  # the turn goes on
        ids += [int(token) for token in tokens]
        learnt += [bool(piece["train"])] * len(tokens)
    return ids, learnt


def _canonical(chat: Chat, messages: Sequence[Message], prompt: list[int]) -> list[int]:
    """What the template makes of the last message after the prompt, and the end of turn."""
    tokenizer = chat.tokenizer
    whole = chat.render(messages, add_generation_prompt=False)
    if whole[: len(prompt)] != prompt:
        raise ValueError(_not_a_prefix(tokenizer, prompt, whole))
    closing, end_of_turn = chat.closing
    end = len(whole) - len(closing)
    if whole[end:] != closing and end_of_turn[-1] in closing:
        raise ValueError(
            "model.path: chat template: expected every assistant turn to end alike, "
            f"found {tokenizer.decode(whole[end - 4 :])!r} instead of {tokenizer.decode(closing)!r}; "
            "use a template that does not look at the answer's text"
        )
    # Plain text may have merged with the answer.
    return whole[len(prompt) : end if whole[end:] == closing else None] + end_of_turn


def pack(examples: Sequence[Mapping[str, Any]], max_length_tokens: int) -> list[Packed]:
    """Put encoded examples (`input_ids`, `labels`) one after another into sequences of at most
    `max_length_tokens`.

    Call the model with the `position_ids`, `use_cache=False` and no attention mask: transformers then lets no
    example attend to another. The first label of each example becomes -100, so that no last token is trained
    to predict the first token of the next example; the loss is that of the examples alone. One example gives
    one sequence.

    Raises:
        ValueError: one example alone is longer than `max_length_tokens`.
    """
    groups = pack_lengths([len(example["input_ids"]) for example in examples], max_length_tokens)
    return [concatenate([examples[index] for index in group]) for group in groups]


def pack_lengths(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of `lengths` in groups of at most `capacity` tokens, by first-fit decreasing.

    Deterministic: each group lists its indices in rising order, groups are ordered by their first index.

    Raises:
        ValueError: one length alone is above `capacity`.
    """
    groups: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        if length > capacity:
            raise ValueError(
                f"packing: expected examples of at most {capacity} tokens, found one of {length}; leave it "
                f"out before"
            )
        fits = next((group for group, free in enumerate(room) if free >= length), None)
        if fits is None:
            fits = len(groups)
            groups.append([])
            room.append(capacity)
        groups[fits].append(index)
        room[fits] -= length
    return sorted(sorted(group) for group in groups)


def stack(examples: Sequence[Mapping[str, Any]]) -> Stacked:
    """Put encoded examples side by side. No attention mask is needed: what fills a row up comes after all
    that looks back.
    """
    shape = (len(examples), max(len(example["input_ids"]) for example in examples))
    stacked = Stacked(input_ids=np.zeros(shape, np.int64), labels=np.full(shape, IGNORED, np.int64))
    for row, example in enumerate(examples):
        length = len(example["input_ids"])
        stacked["input_ids"][row, :length] = example["input_ids"]
        stacked["labels"][row, :length] = example["labels"]
    return stacked


def stack_lengths(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of `lengths` in groups whose number times greatest length is at most `capacity`, longest first.

    A length above `capacity` is a group of its own.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= capacity:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def concatenate(examples: Sequence[Mapping[str, Any]]) -> Packed:
    """Encoded examples one after another, as `pack` describes."""
    labels = [np.array(example["labels"], np.int64) for example in examples]
    for label in labels:
        label[0] = IGNORED
    return Packed(
        input_ids=np.concatenate([np.asarray(example["input_ids"], np.int64) for example in examples]),
        labels=np.concatenate(labels),
        position_ids=np.concatenate([np.arange(len(label), dtype=np.int64) for label in labels]),
    )


def _not_a_prefix(tokenizer: Any, prompt: list[int], whole: list[int]) -> str:
    same = next(
        (i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b),
        min(len(prompt), len(whole)),
    )
    start = max(0, same - 8)
    return (
        "model.path: chat template: expected the prompt's tokens to begin the tokens of the whole "
        f"conversation, found that they part at token {same}: the prompt has "
        f"{tokenizer.decode(prompt[start : same + 8])!r}, the conversation "
        f"{tokenizer.decode(whole[start : same + 8])!r}. A text that no model generated can be "
        "learnt only if the template writes earlier turns the same way whether or not an answer follows; use "
        "another chat template, or learn generated texts alone"
    )
