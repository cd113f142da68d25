"""Train questions that stand in dev or test under another spelling, or nearly: what a model has learnt there,
it is then measured on. Pure.

Near is a Jaccard similarity of the sets of word 3-grams of at least a threshold t. Of a question y with n
3-grams a near one shares at least t n; so it shares one of any n - ceil(t n) + 1 of them (prefix filtering,
Chaudhuri, Ganti and Kaushik 2006). The rarest ones are looked up, so nearly all train questions cost a set
of 3-grams and nothing more.
"""

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal

from stasc_ray.tasks.canonical import Row

ARTICLES = frozenset(("a", "an", "the"))
_N = 3
# A sign before a number or a variable is no punctuation: 5 - 3 is another question than 5 + 3.
_WORDS = re.compile(r"\d+(?:[.,]\d+)*|\w+|[+<>=\u00d7\u00f7\u2212\u221a]|[-*/^%](?=\s*(?:\d|[a-z]\b|\())")

Nearness = Literal["equal", "near"]


def words(text: str) -> list[str]:
    """The words that a question is compared by: no case, punctuation or articles."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return [word for word in _WORDS.findall(text.casefold()) if word not in ARTICLES]


class Neighbours:
    """The questions of dev and test, to look up the near ones of a train question."""

    def __init__(self, rows: Iterable[Row], threshold: float) -> None:
        self._rows = list(rows)
        self._threshold = threshold
        texts = [words(row["question"]) for row in self._rows]
        self._equal: dict[str, list[int]] = defaultdict(list)
        for place, text in enumerate(texts):
            self._equal[" ".join(text)].append(place)
        self._grams = [_grams(text) for text in texts]
        counts = Counter(gram for grams in self._grams for gram in grams)
        self._by_gram: dict[str, list[int]] = defaultdict(list)
        for place, grams in enumerate(self._grams):
            rarest = sorted(grams, key=lambda gram: (counts[gram], gram))
            # the small number is for products such as 0.8 * 5, which must not be rounded up
            for gram in rarest[: len(grams) - math.ceil(threshold * len(grams) - 1e-9) + 1]:
                self._by_gram[gram].append(place)

    def nearest(self, row: Row) -> tuple[Nearness, Row] | None:
        """How and to which question a train question is too near, or None.

        Questions with different documents or choices are different ones: their similarity must reach the
        threshold too.
        """
        text = words(row["question"])
        for place in self._equal.get(" ".join(text), ()):
            if self._same_context(row, self._rows[place]):
                return "equal", self._rows[place]
        grams = _grams(text)
        if self._by_gram.keys().isdisjoint(grams):
            return None
        for place in sorted({place for gram in grams for place in self._by_gram.get(gram, ())}):
            if self._near(grams, self._grams[place]) and self._same_context(row, self._rows[place]):
                return "near", self._rows[place]
        return None

    def _near(self, left: frozenset[str], right: frozenset[str]) -> bool:
        shared = len(left & right)
        return shared >= self._threshold * (len(left) + len(right) - shared) - 1e-9 and shared > 0

    def _same_context(self, left: Row, right: Row) -> bool:
        return all(
            not left[name] or not right[name] or self._near(_all_grams(left[name]), _all_grams(right[name]))
            for name in ("documents", "choices")
        )


def _grams(text: Sequence[str]) -> frozenset[str]:
    """The word 3-grams; a shorter text is one gram."""
    if len(text) <= _N:
        return frozenset((" ".join(text),))
    return frozenset(map(" ".join, zip(text, text[1:], text[2:], strict=False)))


def _all_grams(texts: Iterable[str]) -> frozenset[str]:
    return frozenset().union(*(_grams(words(text)) for text in texts))
