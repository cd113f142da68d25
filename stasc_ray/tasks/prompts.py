"""Prompt wording and chat rendering: the one place where questions become messages, and messages become token ids.

Reads a Question row, the texts of `config.Prompts` and a transformers tokenizer that is passed in; writes nothing.

A correction conversation is, with strictly alternating roles after the optional system text:
system?, then per demonstration user / assistant / user / assistant, then user (documents, question, choices),
assistant (initial answer), user (correction prompt). Training adds one assistant turn, the correction.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stasc_ray.config import Demonstration, Prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]

_SEAM = "\ufdd0"  # a Unicode noncharacter: no text that is meant for people holds it, and template filters keep it
_ZERO_WIDTH_SPACE = "\u200b"
_FIELD = re.compile(r"\{(question|choices|documents)\}")
_MARKER = re.compile(
    r"<\|[^\s|<>'\"]+\|>|\[/?[A-Z][A-Z_]*\]|<</?[A-Z]+>>"
)  # <|user|>, [INST], [/INST], <<SYS>>


def initial_messages(question_row: Mapping[str, Any], prompts: Prompts) -> list[Message]:
    """The conversation that asks for an initial answer (Y1); ends with a user turn."""
    messages = _system(prompts)
    for demonstration in prompts.initial_demonstrations:
        messages += _initial_turns(prompts, demonstration)
    return [*messages, _user(_initial_text(question_row, prompts))]


def correction_messages(question_row: Mapping[str, Any], initial: str, prompts: Prompts) -> list[Message]:
    """The conversation that asks to correct `initial` (Y2); ends with a user turn. An empty `initial` is kept."""
    messages = _system(prompts)
    for demonstration in prompts.correction_demonstrations:
        request = _fill(prompts.correction, _fields({"question": demonstration.question}))
        messages += _initial_turns(prompts, demonstration)
        messages += [_user(request), _assistant(demonstration.correction or "")]
    request = _fill(prompts.correction, _fields(question_row))
    return [*messages, _user(_initial_text(question_row, prompts)), _assistant(initial), _user(request)]


def training_messages(
    question_row: Mapping[str, Any], initial: str, correction: str, prompts: Prompts
) -> list[Message]:
    """`correction_messages` and the correction itself as last message, the only one that is trained on."""
    return [*correction_messages(question_row, initial, prompts), _assistant(correction)]


def render(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], *, add_generation_prompt: bool
) -> list[int]:
    """Token ids (T,) of `messages` in the tokenizer's chat template.

    Harmless text gives exactly the ids of `apply_chat_template`. Contents are data: a control token's string inside
    one is encoded as the plain text that it is and decodes unchanged; a marker that the template writes as plain text
    (`[INST]` for Llama 2, `<|user|>` for Zephyr) gets a zero-width space after its first character, since equal text
    would be the marker. Markers without brackets (`USER:`) are not recognised.

    System text goes into the first user turn when the template has no system role. When the last message is the
    assistant's, the ids begin with those of the prompt that asks for it, even where a newline would merge with it.

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


def control_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[int, str]:
    """Id and string of every added token that steers a conversation.

    Special tokens, tokens that the chat template names, and anything shaped like `<|...|>`. Not whitespace (Gemma adds
    runs of newlines) and no other added vocabulary (Gemma's HTML tags), which are ordinary text.
    """
    template = _template(tokenizer)
    return {
        token_id: token.content
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if len(token.content.strip()) > 1
        and (token.special or token.content in template or re.fullmatch(r"<\|.+\|>", token.content))
    }


def _system(prompts: Prompts) -> list[Message]:
    return [{"role": "system", "content": prompts.system}] if prompts.system.strip() else []


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def _initial_turns(prompts: Prompts, demonstration: Demonstration) -> list[Message]:
    return [
        _user(_initial_text({"question": demonstration.question}, prompts)),
        _assistant(demonstration.initial),
    ]


def _initial_text(question_row: Mapping[str, Any], prompts: Prompts) -> str:
    """Documents, then the initial prompt; a text that places `{documents}` or `{choices}` itself is left to do so."""
    fields = _fields(question_row)
    question = fields["question"]
    if fields["choices"] and "{choices}" not in prompts.initial:
        question += _fill(prompts.choices, fields)
    text = _fill(prompts.initial, {**fields, "question": question})
    if fields["documents"] and "{documents}" not in prompts.initial:
        text = _fill(prompts.documents, fields) + text
    return text


def _fields(question_row: Mapping[str, Any]) -> dict[str, str]:
    choices = _texts(question_row.get("choices"))
    documents = _texts(question_row.get("documents"))
    return {
        "question": question_row["question"],
        "choices": "\n".join(f"{chr(ord('A') + i)}. {choice}" for i, choice in enumerate(choices)),
        "documents": "\n".join(f"[{i}] {document}" for i, document in enumerate(documents, start=1)),
    }


def _texts(column: Iterable[str] | None) -> list[str]:
    return (
        [] if column is None else list(column)
    )  # Parquet gives None or a NumPy array, whose truth value is an error


def _fill(text: str, fields: Mapping[str, str]) -> str:
    """Replace the fields in one pass, so that braces inside a question stay what they are."""
    return _FIELD.sub(lambda match: fields[match.group(1)], text)


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

    return [{**message, "content": disarmed(message["content"])} for message in messages]


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
        if system.strip() in _apply(tokenizer, [messages[0], _user("probe")], True):
            return list(messages)
    except TemplateError:  # raise_exception('System role not supported')
        pass
    return [_user(f"{system}\n\n{messages[1]['content']}"), *messages[2:]]


def _apply(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], add_generation_prompt: bool
) -> str:
    text = tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=add_generation_prompt, return_dict=False
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
    """Encode `piece` as the middle of a text; at the start of one, SentencePiece would put a space before it."""
    for anchor in ("\n", _SEAM):  # the second is in no vocabulary, so it merges with nothing
        before = tokenizer.encode(anchor, add_special_tokens=False)
        ids = tokenizer.encode(anchor + piece, add_special_tokens=False)
        if ids[: len(before)] == before:
            return list(ids[len(before) :])
    return list(tokenizer.encode(piece, add_special_tokens=False))
