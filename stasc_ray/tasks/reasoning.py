"""Where the reasoning in a text ends and its answer begins, as models of several families write it. Pure.

Blocks have an opening and a closing mark. Channels have a header before each message (gpt-oss's
`<|channel|>final<|message|>`, Muse's `to=user<|message|>`). A mark counts wherever it stands: an answer that
only mentions one is missed, which costs less than paying for what was only weighed.
"""

import re

BLOCKS = (
    ("<think>", "</think>"),  # Qwen3, DeepSeek-R1, GLM-4.5, Nemotron 3
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<|channel>", "<channel|>"),  # Gemma 4
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<thought>", "</thought>"),  # EXAONE Deep
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # OpenThinker
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),  # Kimi
    ("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ("<unused94>", "<unused95>"),  # MedGemma
    ("<longcat_think>", "</longcat_think>"),
    ("<mm:think>", "</mm:think>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
)
"""Opening and closing marks, as public model cards and templates have them."""
HEADER_END = "<|message|>"
CHANNEL_TOKENS = ("<|start|>", "<|channel|>", HEADER_END, "<|end|>", "<|eom|>")
"""Control tokens that are part of a text with channels."""
_HEADER = re.compile(r"(?:<\|channel\|>|(?:^|\s)to=)(\w+)[^<]{0,80}<\|message\|>")
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
    reopened = any(text.rfind(start) >= closed for start, _ in BLOCKS if start in text)
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
