"""The final answer of a text: the line after the answer marker, or the box on it. Pure."""

import re
from functools import lru_cache

from stasc_ray.tasks.answer_words import CLOSING
from stasc_ray.tasks.math.text import denied_box, last_boxed

_BLOCK = re.compile(
    r"(?P<fence>```)\w*\s*\n(?P<code>.*?)(?:```|\Z)|\\\[.*?\\\]|\$\$.*?\$\$"
    r"|\\begin\{(?P<name>\w+)\}.*?\\end\{(?P=name)\}[^\n]*",
    re.DOTALL,
)
_NEXT_TURN = re.compile(
    r"^[ \t#*<|]*(?:question|problem|exercise|user|human|q)\s*\d*[*]*\s*[:.]", re.IGNORECASE | re.MULTILINE
)
_END_OF_TURN = re.compile(
    r"<\|(?:im_end|im_start|eot_id|endoftext|end|eos|start_header_id)\|>|</s>|<eos>|<(?:end|start)_of_turn>"
)
_WORKING = re.compile(r"^\W*(?:step\s*\d+\s*[:.)]|let(?:'s| me| us)\b[^\d\n]*[.:!]\s*$)", re.IGNORECASE)
"""A first line that only begins to work the answer out."""
_CLOSING = re.compile(rf"(?<=[.!?])\s+{CLOSING}.*")
_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_BULLET = r"^\s*[-*\u2022]\s+(\S.*)$"
_BULLETS = re.compile(r"(?:\s*[-*\u2022]\s+\S[^\n]*(?:\n|\Z)){2,}")
_TAG = re.compile(r"<(answer|result)>\s*(.*?)\s*</\1>", re.IGNORECASE)


def after_marker(text: str, marker: str) -> str:
    """`final_answer`, or "" if there is no marker."""
    return final_answer(text, marker) or ""


def final_answer(text: str, marker: str) -> str | None:
    r"""The answer that follows the last `marker`, or None if there is no marker.

    It is the rest of the marker's line, or the next line that is not empty; of a line with `\boxed{...}` the
    content of the box; of a formula or code block that spans lines, all of it. Markdown emphasis around it
    and a closing sentence ("I hope this helps") are left out, and so is a further question that the text goes
    on to ask and answer. Case and emphasis inside the marker do not matter: `**Final answer**:` is `Final
    Answer:`.
    """
    found = list(marker_pattern(marker).finditer(text))
    if not found:
        return None
    turns = [pattern.search(text, found[0].end()) for pattern in (_NEXT_TURN, _END_OF_TURN)]
    turn = min(filter(None, turns), key=re.Match.start, default=None)
    if turn:
        found = [match for match in found if match.end() <= turn.start()]
    rest = text[found[-1].end() : turn.start() if turn else None]
    rest = re.sub(r"^[\s*_`]*\n", "", rest).strip()
    line = _first_line(rest)
    boxed = last_boxed(line)
    if boxed and denied_box(line):
        return line.strip()
    if boxed:
        whole = _TEXT.fullmatch(boxed.strip())
        return (whole[1] if whole else boxed).strip()
    if len(line) > 4000:
        return line.strip()
    tagged = _TAG.search(line)
    bare = _bare(tagged[2] if tagged else _CLOSING.sub("", line))
    whole = _TEXT.fullmatch(bare.strip("$ "))
    return whole[1].strip() if whole else bare


@lru_cache(maxsize=16)
def marker_pattern(marker: str) -> re.Pattern[str]:
    """Finds a marker, whatever its case and with or without emphasis between its words."""
    parts = re.findall(r"\w+|[^\w\s]", marker)
    boundary = r"(?<!\w)" if parts[0][0].isalnum() else ""  # the marker "A:" is not in "data:"
    spelled = ["[:\uff1a]" if part == ":" else re.escape(part) for part in parts]
    return re.compile(boundary + r"[\s*_`]*".join(spelled), re.IGNORECASE)


def _first_line(text: str) -> str:
    """The first line, or the block or list that begins on it. A line that ends with a colon is left out."""
    block = _BLOCK.match(text)
    if block:
        return block["code"] or "" if block["fence"] else block[0]
    line, _, rest = text.partition("\n")
    if rest.strip() and _WORKING.match(line):
        return text.split("\n\n")[0].strip().splitlines()[-1]
    line = re.split(r"<br\s*/?>", line.strip(), maxsplit=1)[0]
    if rest.strip() and line.rstrip(" *_").endswith(":"):
        return _first_line(rest.strip())
    bullets = _BULLETS.match(text)
    return "; ".join(re.findall(_BULLET, bullets[0], re.MULTILINE)) if bullets else line


def _bare(text: str) -> str:
    """Without space and Markdown emphasis; `__73__` is 73, and a name keeps its own `_`, x**2 its stars."""
    text = re.sub(r"(?<![\w)])\*\*|\*\*(?![\w(])", "", text.strip().strip("*`")).strip()
    return text[2:-2].strip() if re.fullmatch(r"__.+__", text) else text
