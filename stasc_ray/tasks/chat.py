"""Messages to token ids, in the tokenizer's chat template: the one place where a conversation is rendered.

Reads messages and a transformers tokenizer that is passed in; writes nothing.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]
"""`role`, and `content` or, of an assistant, `pieces` [{text, token_ids?, train}]; `train`: loss falls on the
content."""

# a Unicode noncharacter: no text that is meant for people holds it, and template filters keep it
_SEAM = "\ufdd0"
_ZERO_WIDTH_SPACE = "\u200b"
# <|user|>, [INST], [/INST], <<SYS>>
_MARKER = re.compile(r"<\|[^\s|<>'\"]+\|>|\[/?[A-Z][A-Z_]*\]|<</?[A-Z]+>>")


def render(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], *, add_generation_prompt: bool
) -> list[int]:
    """Token ids (T,) of `messages` in the tokenizer's chat template.

    Harmless text gives exactly the ids of `apply_chat_template`. Contents are data: a control token's string
    inside one is encoded as the plain text that it is and decodes unchanged; a marker that the template
    writes as plain text (`[INST]` for Llama 2, `<|user|>` for Zephyr) gets a zero-width space after its first
    character, since equal text would be the marker. Markers without brackets (`USER:`) are not recognised.

    System text goes into the first user turn when the template has no system role. When the last message is
    the assistant's, the ids begin with those of the prompt that asks for it, even where a newline would merge
    with it.

    Raises:
        ValueError: the tokenizer has no chat template.
        jinja2.TemplateError: the template refuses the conversation.
    """
    messages = _fold_system(tokenizer, _disarm(tokenizer, messages))
    text = _apply(tokenizer, messages, add_generation_prompt)
    ids = _encode(tokenizer, text)
    if add_generation_prompt or messages[-1]["role"] != "assistant":
        return ids
    prompt_text = _apply(tokenizer, messages[:-1], True)
    prompt = _encode(tokenizer, prompt_text)
    if ids[: len(prompt)] == prompt or not text.startswith(prompt_text):
        return ids
    return prompt + _encode(tokenizer, _SEAM + text.removeprefix(prompt_text))


def continuation(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Token ids (T,) of a text that goes on in the middle of a turn; as harmless as in `render`."""
    (message,) = _disarm(tokenizer, [{"role": "assistant", "content": text}])
    return [
        token for piece in message["content"].split(_SEAM) for token in _encode_continuation(tokenizer, piece)
    ]


def content(message: Message) -> str:
    """A message's whole text."""
    pieces = message.get("pieces")
    return "".join(piece["text"] for piece in pieces) if pieces else message["content"] or ""


def control_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[int, str]:
    """Id and string of every added token that steers a conversation.

    Special tokens, tokens that the chat template names, and anything shaped like `<|...|>`. Not whitespace
    (Gemma adds runs of newlines) and no other added vocabulary (Gemma's HTML tags), which are ordinary text.
    """
    template = _template(tokenizer)
    return {
        token_id: token.content
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if len(token.content.strip()) > 1
        and (token.special or token.content in template or re.fullmatch(r"<\|.+\|>", token.content))
    }


def _template(tokenizer: "PreTrainedTokenizerBase") -> str:
    template = tokenizer.get_chat_template()  # raises ValueError when there is none
    return template if isinstance(template, str) else ""


def _disarm(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> list[Message]:
    """Break every control string in the contents after its first character, so that nothing recognises it."""
    template = _template(tokenizer)
    tokens = set(control_tokens(tokenizer).values())
    markers = set(_MARKER.findall(template))
    if "<|" in template:  # some templates build `<|role|>` from pieces
        markers |= {f"<|{role}|>" for role in ("system", "user", "assistant")}
    patterns = [(_starts_of(markers - tokens), _ZERO_WIDTH_SPACE), (_starts_of(tokens), _SEAM)]

    def disarmed(content: str) -> str:
        content = content.replace(_SEAM, "")
        for pattern, breaker in patterns:
            content = pattern.sub(lambda match, breaker=breaker: match.group() + breaker, content)
        return content

    return [{"role": message["role"], "content": disarmed(content(message))} for message in messages]


def _starts_of(strings: Iterable[str]) -> re.Pattern[str]:
    """Match the first character of any of `strings`; the look-ahead also sees strings that overlap."""
    alternatives = "|".join(map(re.escape, sorted(strings)))
    return re.compile(f"(?=(?:{alternatives}))." if alternatives else "(?!)", re.DOTALL)


def _fold_system(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> list[Message]:
    """Move the system text into the first user turn, unless a probe shows that the template renders it."""
    from jinja2 import TemplateError

    if messages[0]["role"] != "system":
        return list(messages)
    system = messages[0]["content"]
    try:
        if system.strip() in _apply(tokenizer, [messages[0], {"role": "user", "content": "probe"}], True):
            return list(messages)
    except TemplateError:  # raise_exception('System role not supported')
        pass
    return [{"role": "user", "content": f"{system}\n\n{messages[1]['content']}"}, *messages[2:]]


def _apply(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], add_generation_prompt: bool
) -> str:
    text = tokenizer.apply_chat_template(
        [dict(message) for message in messages],
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        return_dict=False,
    )
    assert isinstance(text, str), "one conversation renders to one text"
    return text


def _encode(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Encode rendered text piece by piece between the seams: no token can reach over one."""
    first, *rest = text.split(_SEAM)
    ids = list(tokenizer.encode(first, add_special_tokens=False)) if first else []
    for piece in rest:
        ids += _encode_continuation(tokenizer, piece)
    return ids


def _encode_continuation(tokenizer: "PreTrainedTokenizerBase", piece: str) -> list[int]:
    """Encode `piece` as the middle of a text; at the start of one, SentencePiece would put a space before
    it.
    """
    for anchor in ("\n", _SEAM):  # the second is in no vocabulary, so it merges with nothing
        before = tokenizer.encode(anchor, add_special_tokens=False)
        ids = tokenizer.encode(anchor + piece, add_special_tokens=False)
        if ids[: len(before)] == before:
            return list(ids[len(before) :])
    return list(tokenizer.encode(piece, add_special_tokens=False))
