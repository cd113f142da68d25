"""Which choice of a multiple-choice question an answer names: by letter, or by the text of the choice.
Pure.
"""

import re
from collections.abc import Sequence
from string import ascii_uppercase

# What may follow "A" or "I" that stands for a choice: before other words it is an article ("the answer is A
# dog").
_ENDS = r"(?=[\W_]*(?:$|\n)|\s*[^\w\s]|\s+(?:because|since|as|which|is|due|for|and|with)\b)"
_LETTER_ENDS = rf"(?!\w|')(?:(?<=[B-HJ-Z])|(?<=[AI]){_ENDS})"
_MARKS = r"[\s*_`\"'(\[{$]*"
_STATEMENT = re.compile(
    rf"(?i:\b(?:answer|choice|option|correct one)\b)[*_`]*\s*(?i:is|would be|should be|must "
    rf"be|:|=)?{_MARKS}:?{_MARKS}"
    rf"(?i:(?:choice|option)\s+)?{_MARKS}(?<!\w)([A-Z]){_LETTER_ENDS}"
)
_PLAIN = re.compile(
    r"\\boxed\{(?:\\text\{)?\(?([A-Z])\)?\}"
    r"|\(([A-Za-z])\)"  # (B)
    r"|^[\W_]*([A-Za-z])[\W_]*$"  # a line of its own
    r"|^[\s*_#>-]*([A-Z])[.):][*_]*(?=\s)"  # B. the text
    r"|(?<![\w.'])([A-Z])[.!?*_\"')\]]*\s*$",  # ... so it is B.
    re.MULTILINE,
)


def choice_letter(text: str, choices: Sequence[str]) -> str | None:
    """The letter of the choice an answer names, or None.

    In this order: the whole text is a choice's text, alone or after its letter; the last statement ("the
    answer is B"); the last letter set apart ("(B)", "B." before a text, a line with B alone, B at the end of
    a line); the choice whose text is mentioned last.

    Args:
        text: the part of the answer that is graded.
        choices: the choices' texts, A first; without them any letter counts and texts cannot be read.
    """
    letters = ascii_uppercase[: len(choices)] if choices else ascii_uppercase
    plain = _plain(text)
    if len(plain) > 1:
        for letter, choice in zip(letters, choices, strict=False):
            if plain in (_plain(choice), _plain(f"{letter} {choice}")):
                return letter
    for pattern in (_STATEMENT, _PLAIN):
        named = [next(filter(None, match.groups())).upper() for match in pattern.finditer(text)]
        valid = [letter for letter in named if letter in letters]
        if valid:
            return valid[-1]
    return _last_mentioned(plain, choices)


def _last_mentioned(plain: str, choices: Sequence[str]) -> str | None:
    """The choice whose text ends last; of two that end together the longer ("department store", not
    "store").
    """
    ends = []
    for letter, choice in zip(ascii_uppercase, choices, strict=False):
        wanted = _plain(choice)
        at = f" {plain} ".rfind(f" {wanted} ") if wanted else -1
        if at >= 0:
            ends.append((at + len(wanted), len(wanted), letter))
    return max(ends)[2] if ends else None


def _plain(text: str) -> str:
    """Lower-case words with single spaces."""
    return " ".join(re.findall(r"\w+", text.casefold()))
