"""The rewards squad_em and squad_f1: SQuAD's official evaluation script, for comparable figures.

Its rules (evaluate-v2.0.py, https://rajpurkar.github.io/SQuAD-explorer/; for questions with answers v1.1's
are the same): lower case, ASCII punctuation dropped, the words a, an and the dropped, single spaces; the best
reference counts. References that are empty then are left out; if none is left, the right answer is the empty
one. Nothing else is equal here: accents, hyphens and `1,000` are as the script has them. Pure.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def squad_em(answer: str, references: Sequence[str]) -> float:
    """1.0 if the answer is a reference in the official script's normal form, else 0.0."""
    given = _normal(answer)
    return float(any(given == wanted for wanted in _references(references)))


def squad_f1(answer: str, references: Sequence[str]) -> float:
    """F1 of the words in the official script's normal form, for the best reference; in [0, 1]."""
    given = _normal(answer).split()
    return max(_f1(given, wanted.split()) for wanted in _references(references))


def _references(references: Sequence[str]) -> list[str]:
    return [wanted for wanted in map(_normal, references) if wanted] or [""]


def _f1(given: list[str], wanted: list[str]) -> float:
    if not given or not wanted:
        return float(given == wanted)
    shared = sum((Counter(given) & Counter(wanted)).values())
    return 2 * shared / (len(given) + len(wanted))


def _normal(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())
