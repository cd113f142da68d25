"""Where the reasoning in a text ends and its answer begins, as models of several families write it. Pure.

Blocks have an opening and a closing mark (`<think>`, Qwen3, DeepSeek-R1, GLM-4.5, Nemotron 3; `[THINK]`,
Magistral; `<|channel>`, Gemma 4; `<seed:think>`, Seed-OSS; `<thought>`, EXAONE Deep). Channels have a header
before each message (gpt-oss's `<|channel|>final<|message|>`, Muse's `to=user<|message|>`).
"""

import re

BLOCKS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel>", "<channel|>"),
    ("<seed:think>", "</seed:think>"),
    ("<thought>", "</thought>"),
)
HEADER_END = "<|message|>"
CHANNEL_TOKENS = ("<|start|>", "<|channel|>", HEADER_END, "<|end|>", "<|eom|>")
"""Control tokens that are part of a text with channels."""
_HEADER = re.compile(r"(?:<\|channel\|>|(?:^|\s)to=)(\w+)[^<]*<\|message\|>")
_OPENS = re.compile("|".join(rf"^\s*{re.escape(start)}" for start, _ in BLOCKS), re.MULTILINE)
"""At the start of a line: a mark that a sentence mentions opens nothing."""
_TO_THE_USER = ("final", "user")


def answer_start(text: str, *, opened: bool = False) -> int:
    """How many characters come before the answer: 0 without reasoning, `len(text)` if it was cut inside it.

    Args:
        text: as generated.
        opened: the prompt opened the reasoning, so that it goes on until it is closed.
    """
    headers = list(_HEADER.finditer(text))
    if headers:
        return headers[-1].end() if headers[-1].group(1) in _TO_THE_USER else len(text)
    closed = max(text.rfind(end) + len(end) if end in text else 0 for _, end in BLOCKS)
    reopened = any(begin.start() >= closed for begin in _OPENS.finditer(text))
    return len(text) if reopened or (opened and not closed) else closed


def unfinished(text: str, start: int) -> bool:
    """Whether a text whose answer begins at `start` was cut inside its reasoning, so that it has no answer.

    One that ended its reasoning and then said nothing has an answer, an empty one.
    """
    ended = text.rstrip().endswith(tuple(end for _, end in BLOCKS)) or text.endswith(HEADER_END)
    return 0 < start == len(text) and not ended


def shaped(answer: str, template: str, opened: str) -> str:
    """An answer as a model with this chat template writes it after the least reasoning.

    Args:
        opened: what the prompt opened the reasoning with; "" if it did not.
    """
    if "<|channel|>final" in template:
        return f"<|channel|>final<|message|>{answer}"
    if "to=self<|message|>" in template:
        return f" to=user<|message|>{answer}"
    ends = [end for start, end in BLOCKS if start in opened]
    return f"{ends[0]}\n\n{answer}" if ends else answer


def opening(prompt: str) -> str:
    """What opens the reasoning at the end of a rendered prompt; "" if nothing does."""
    begins, ends = (max(map(prompt.rfind, marks)) for marks in zip(*BLOCKS, strict=True))
    return prompt[begins:] if begins > ends else ""
