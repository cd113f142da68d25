"""Messages to token ids and back, in the tokenizer's chat template: the one place where a conversation is
rendered.

Reads messages and a transformers tokenizer that is passed in; writes nothing.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING, Any

from stasc_ray.config import Config, Model
from stasc_ray.tasks import reasoning

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]
"""`role`, and `content` or, of an assistant, `pieces` [{text, token_ids?, train}]; `train`: loss falls on the
content."""

# Unicode noncharacters: no text that is meant for people holds them, and template filters keep them
_SEAM, _PLACE = "\ufdd0", "\ufdd1"
_ZERO_WIDTH_SPACE = "\u200b"
_TODAY = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
# <|user|>, [INST], [/INST], <<SYS>>
_MARKER = re.compile(r"<\|[^\s|<>'\"]+\|>|\[/?[A-Z][A-Z_]*\]|<</?[A-Z]+>>")


Patterns = list[tuple[re.Pattern[str], str]]
"""Pairs (matches the first character of a control string, what is put after it)."""


class Chat:
    """A tokenizer, and how a run renders conversations with it. What every rendering needs is worked out
    once.

    Args:
        tokenizer: with a chat template.
        model: its `chat_template_kwargs` and `template_date` reach the template.
        keep_reasoning: whether an earlier turn's reasoning stays in the prompt; None: as the template does.

    Raises:
        ValueError: the tokenizer has no chat template, or one that asks for today's date in a way that can't
            be fixed.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        model: Model | None = None,
        keep_reasoning: bool | None = None,
    ) -> None:
        model = model or Model()
        self.tokenizer, self.keep_reasoning = tokenizer, keep_reasoning
        day = date.fromisoformat(model.template_date)
        template = tokenizer.get_chat_template()  # raises ValueError when there is none
        self.template = _dated(template, day) if isinstance(template, str) else ""
        self._words = model.chat_template_kwargs
        self._has_system: dict[str, bool] = {}

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase", settings: Config) -> "Chat":
        """As the run's config says."""
        return cls(tokenizer, settings.model, settings.prompts.keep_reasoning)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> list[int]:
        """Token ids (T,) of `messages` in the chat template.

        Harmless text gives exactly the ids of `apply_chat_template`. Contents are data: a control token's
        string inside one is encoded as the plain text that it is and decodes unchanged; a marker that the
        template writes as plain text (`[INST]` for Llama 2, `<|user|>` for Zephyr) gets a zero-width space
        after its first character, since equal text would be the marker. Markers without brackets (`USER:`)
        are not recognised. Only in the assistant's own turns the marks of its reasoning stay what they are.

        System text goes into the first user turn when the template has no system role. When the last message
        is the assistant's, the ids begin with those of the prompt that asks for it, even where a newline
        would merge with it.

        Raises:
            jinja2.TemplateError: the template refuses the conversation.
        """
        *earlier, last = messages
        keeps = None if last["role"] == "assistant" and not add_generation_prompt else self.keep_reasoning
        shown = [
            *(self._plain(message, self.keep_reasoning) for message in earlier),
            self._plain(last, keeps),
        ]
        plain = self._fold_system(shown)
        text = self._apply(plain, add_generation_prompt)
        ids = self._encode(text)
        if add_generation_prompt or plain[-1]["role"] != "assistant":
            return ids
        prompt_text = self._apply(plain[:-1], True)
        prompt = self._encode(prompt_text)
        if ids[: len(prompt)] == prompt or not text.startswith(prompt_text):
            return ids
        return prompt + self._encode(_SEAM + text.removeprefix(prompt_text))

    def continuation(self, text: str) -> list[int]:
        """Token ids (T,) of a text that goes on in the middle of a turn; as harmless as in `render`."""
        pieces = self._disarmed(text, self._own_patterns).split(_SEAM)
        return [token for piece in pieces for token in self._encode_continuation(piece)]

    def opens(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt (T,) ends in reasoning that it opened, which may depend on what it says
        (`/no_think`).
        """
        starts, ends = (
            {number for number, token in self.control_tokens.items() if token in marks}
            for marks in zip(*reasoning.BLOCKS, strict=True)
        )
        if not starts:  # marks are plain text
            return bool(self.opening)
        last = next((token for token in reversed(prompt) if token in self.control_tokens), None)
        return last in starts and last not in ends

    @cached_property
    def opening(self) -> str:
        """What a prompt opens the model's reasoning with (R1-Distill's `<think>`); "" if it opens none."""
        asked = [{"role": "user", "content": "?"}]
        return reasoning.opening(
            self._apply(asked, True).removeprefix(self._apply(asked, add_generation_prompt=False))
        )

    @cached_property
    def closing(self) -> tuple[list[int], list[int]]:
        """What the template writes after an assistant's text, and the end of turn to train on: the former's
        start, or EOS.

        Found as the common end of two conversations that differ in the last character of the answer.

        Raises:
            ValueError: the template leaves the text out, or nothing ends a turn.
        """
        question = {"role": "user", "content": "?"}
        first, second = (
            self.render([question, {"role": "assistant", "content": answer}], add_generation_prompt=False)
            for answer in ("0", "1")
        )
        if first == second:
            raise ValueError(
                "model.path: chat template: expected the model's chat template to show an assistant's text, "
                "found that it leaves it out (those of image models want lists of parts); use a text model, "
                "or put another chat_template.jinja beside the model's tokenizer"
            )
        pairs = zip(reversed(first), reversed(second), strict=False)
        same = next(i for i, (a, b) in enumerate(pairs) if a != b)
        closing = first[len(first) - same :]
        eos: Any = self.tokenizer.eos_token_id  # an int or None; the annotation in transformers says more
        ends = {*self.control_tokens, eos}
        for position, token_id in enumerate(closing):
            if token_id in ends:
                return closing, closing[: position + 1]
        if eos is None:
            raise ValueError(
                "model.path: chat template: expected a control token after the assistant's text, found none, "
                "and the tokenizer has no eos_token; set one of them, or the model never learns to stop"
            )
        return closing, [eos]

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token: no text of n characters has fewer than n / this many tokens."""
        return max(map(len, self.tokenizer.get_vocab()))

    @cached_property
    def control_tokens(self) -> dict[int, str]:
        """Id and string of every added token that steers a conversation.

        Special tokens, tokens that the chat template names, and anything shaped like `<|...|>`. Not
        whitespace (Gemma adds runs of newlines) and no other added vocabulary (Gemma's HTML tags), which are
        ordinary text.
        """
        return {
            token_id: token.content
            for token_id, token in self.tokenizer.added_tokens_decoder.items()
            if len(token.content.strip()) > 1
            and (token.special or token.content in self.template or re.fullmatch(r"<\|.+\|>", token.content))
        }

    @cached_property
    def _patterns(self) -> Patterns:
        """What is broken up in contents, and with what."""
        return self._patterns_without(())

    @cached_property
    def _own_patterns(self) -> Patterns:
        """The same for the assistant's own texts, whose reasoning marks stay."""
        return self._patterns_without([mark for block in reasoning.BLOCKS for mark in block])

    def _patterns_without(self, left: Iterable[str]) -> Patterns:
        tokens = set(self.control_tokens.values())
        markers = set(_MARKER.findall(self.template))
        if "<|" in self.template:  # some templates build `<|role|>` from pieces
            markers |= {f"<|{role}|>" for role in ("system", "user", "assistant")}
        left = set(left)
        return [(_starts_of(markers - tokens - left), _ZERO_WIDTH_SPACE), (_starts_of(tokens - left), _SEAM)]

    def _plain(self, message: Message, keep_reasoning: bool | None) -> dict[str, str]:
        """The message as the template gets it: {role, content}, nothing in it but text."""
        text = content(message)
        if message["role"] != "assistant":
            return {"role": message["role"], "content": self._disarmed(text, self._patterns)}
        start = reasoning.answer_start(text)
        if not start:
            return {"role": "assistant", "content": self._disarmed(text, self._own_patterns)}
        if reasoning.HEADER_END in text and keep_reasoning:
            raise ValueError(
                "prompts.keep_reasoning: expected reasoning in one block (<think>), found channels, which "
                "this chat template never shows of an earlier turn; leave prompts.keep_reasoning out"
            )
        # Templates with channels refuse them in a content, and show no reasoning of earlier turns.
        if keep_reasoning is False or reasoning.HEADER_END in text:
            answer = text[start:].lstrip("\n")
            return {"role": "assistant", "content": self._disarmed(answer, self._own_patterns)}
        has_own = any(text.lstrip().startswith(mark) for mark, _ in reasoning.BLOCKS)
        whole = self._disarmed(text if has_own else self.opening + text, self._own_patterns)
        if keep_reasoning is None:
            return {"role": "assistant", "content": whole}
        return {"role": "assistant", "content": _PLACE + _PLACE, "whole": whole}

    @staticmethod
    def _disarmed(text: str, patterns: Patterns) -> str:
        """Break every control string after its first character, so that nothing recognises it."""
        text = text.replace(_SEAM, "").replace(_PLACE, "")
        for pattern, breaker in patterns:
            text = pattern.sub(lambda match, breaker=breaker: match.group() + breaker, text)
        return text

    def _fold_system(self, messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
        """Move the system text into the first user turn, unless a probe shows that the template renders
        it.
        """
        if messages[0]["role"] != "system":
            return list(messages)
        system = messages[0]["content"]
        if system not in self._has_system:
            self._has_system[system] = self._renders(system)
        if self._has_system[system]:
            return list(messages)
        return [{"role": "user", "content": f"{system}\n\n{messages[1]['content']}"}, *messages[2:]]

    def _renders(self, system: str) -> bool:
        from jinja2 import TemplateError

        probe = [{"role": "system", "content": system}, {"role": "user", "content": "probe"}]
        try:
            return system.strip() in self._apply(probe, True)
        except TemplateError:  # raise_exception('System role not supported')
            return False

    def _apply(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        text = self.tokenizer.apply_chat_template(
            [{"role": message["role"], "content": message["content"]} for message in messages],
            tokenize=False,
            chat_template=self.template or None,
            add_generation_prompt=add_generation_prompt,
            return_dict=False,
            **self._words,
        )
        assert isinstance(text, str), "one conversation renders to one text"
        for message in messages:  # texts that the template must not read, in their order
            if "whole" in message:
                text = text.replace(_PLACE + _PLACE, message["whole"], 1)
        return text

    def _encode(self, text: str) -> list[int]:
        """Encode rendered text piece by piece between the seams: no token can reach over one."""
        first, *rest = text.split(_SEAM)
        ids = list(self.tokenizer.encode(first, add_special_tokens=False)) if first else []
        for piece in rest:
            ids += self._encode_continuation(piece)
        return ids

    def _encode_continuation(self, piece: str) -> list[int]:
        """Encode `piece` as the middle of a text; at the start of one, SentencePiece would put a space before
        it.
        """
        for anchor in ("\n", _SEAM):  # the second is in no vocabulary, so it merges with nothing
            before = self.tokenizer.encode(anchor, add_special_tokens=False)
            ids = self.tokenizer.encode(anchor + piece, add_special_tokens=False)
            if ids[: len(before)] == before:
                return list(ids[len(before) :])
        return list(self.tokenizer.encode(piece, add_special_tokens=False))


def content(message: Message) -> str:
    """A message's whole text."""
    pieces = message.get("pieces")
    return "".join(piece["text"] for piece in pieces) if pieces else message["content"] or ""


def hidden_tokens(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """Ids that are left out of a decoded text: special tokens, except for those that mark its reasoning."""
    added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    marks = {mark for block in reasoning.BLOCKS for mark in block}
    if reasoning.HEADER_END in added.values():
        marks |= set(reasoning.CHANNEL_TOKENS)
    shown = {number for number, mark in added.items() if mark in marks}
    return frozenset({*special, *tokenizer.all_special_ids} - shown)


def _dated(template: str, day: date) -> str:
    """The template with a fixed date where it asks for today's; transformers gives it no other function."""
    fixed = _TODAY.sub(lambda call: json.dumps(day.strftime(call.group(2)), ensure_ascii=False), template)
    if "strftime_now(" in fixed:
        raise ValueError(
            "model.path: chat template: expected none that writes today's date in a format made up "
            f"elsewhere, found {fixed[fixed.index('strftime_now(') :][:40]!r}: prompts would change over "
            "night. In the model's chat_template.jinja, write a date instead, or a format such as "
            "strftime_now('%d %b %Y'), which gets model.template_date"
        )
    return fixed


def _starts_of(strings: Iterable[str]) -> re.Pattern[str]:
    """Match the first character of any of `strings`; the look-ahead also sees strings that overlap."""
    alternatives = "|".join(map(re.escape, sorted(strings)))
    return re.compile(f"(?=(?:{alternatives}))." if alternatives else "(?!)", re.DOTALL)
