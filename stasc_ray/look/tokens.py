"""Prompts and examples token by token, and other pieces that both looks show."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stasc_ray import config
from stasc_ray.learning import encoding
from stasc_ray.recipes.recipe import Example
from stasc_ray.report.look_page import Block, Note, Token, Tokens
from stasc_ray.runtime import gguf, model_folder
from stasc_ray.stages import base_model
from stasc_ray.tasks.chat import Chat

MOST_PARTS = 4
"""Bytes of the longest character in UTF-8: as many tokens may be needed for one."""


def load_chat(settings: config.Config, run_folder: Path | None = None) -> Chat:
    """The base model's tokenizer, with the run's way to render.

    Args:
        run_folder: where a GGUF file was converted.

    Raises:
        OSError, ValueError: it can't be loaded, or has no chat template.
    """
    model = base_model(settings, run_folder)
    model_folder.check_model(model)
    if gguf.is_gguf(model):
        return Chat.of(gguf.load_tokenizer(Path(model)), settings)
    trusted = settings.model.trust_remote_code
    revision = model_folder.revision(model, settings.model)
    return Chat.of(model_folder.load_tokenizer(model, revision=revision, trust_remote_code=trusted), settings)


def facts(row: Mapping[str, Any]) -> Iterator[list[str]]:
    """(what, text) of what a question has besides its text."""
    yield ["references", " | ".join(map(str, row["answers"]))]
    if row["choices"]:
        yield ["choices", "; ".join(f"{chr(65 + at)}. {choice}" for at, choice in enumerate(row["choices"]))]
    for at, document in enumerate(row["documents"] or (), start=1):
        yield [f"document {at}", document]


def mask(chat: Chat, example: Example, most: int, how: str = "") -> Iterator[Block]:
    """The tokens of an example, of a pair both sides, with those that carry loss."""
    sides = list[list[encoding.Encoded]]()
    for messages in example.sides:
        encoded = encoding.encode(chat, messages, most)
        if isinstance(encoded, str):
            reason = encoded.replace("_", " ")
            yield Note(f"example {example.id} is left out of training: {reason}", warns=True)
            return
        sides.append(encoded)
    said = f"weight {example.weight:+.3g}, " if example.weight != 1 else ""
    for number, side in enumerate(sides):
        which = ("the chosen side, ", "the rejected side, ")[number] if len(sides) > 1 else ""
        for sequence in side:
            learnt = [int(label) != encoding.IGNORED for label in sequence["labels"]]
            what = "count as what to avoid" if number or example.weight < 0 else "are learnt"
            title = (
                f"example {example.id} ({example.kind}), {which}{said}{how}{sum(learnt)} of {len(learnt)} "
                f"tokens {what}"
            )
            yield Tokens(title, as_tokens(chat, [int(token) for token in sequence["input_ids"]], learnt))


def as_tokens(chat: Chat, ids: Sequence[int], learnt: Sequence[bool] | None = None) -> list[Token]:
    """Tokens as text, one by one; those that are parts of one character stand together."""
    learnt = learnt or [False] * len(ids)
    found: list[Token] = []
    waiting: tuple[int, ...] = ()
    for number, token in enumerate(ids):
        waiting += (token,)
        control = chat.control_tokens.get(token) if len(waiting) == 1 else None
        text = control or _decoded(chat, waiting)
        last = (
            number + 1 == len(ids)
            or learnt[number + 1] != learnt[number]
            or ids[number + 1] in chat.control_tokens
        )
        if not text.endswith("\ufffd") or len(waiting) == MOST_PARTS or last:
            found.append(Token(waiting, text, control is not None, learnt[number]))
            waiting = ()
    return found


def _decoded(chat: Chat, ids: Sequence[int]) -> str:
    """The text of tokens in the middle of a text: SentencePiece drops the space that begins one."""
    anchor = chat.tokenizer.encode("a", add_special_tokens=False)[-1:]
    words = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    before, whole = (str(chat.tokenizer.decode(part, **words)) for part in (anchor, [*anchor, *ids]))
    return whole.removeprefix(before)
