"""Documents for questions that have none, from a corpus of one's own by BM25 (Robertson and Zaragoza 2009;
the package `bm25s`). Reads the corpus file; writes nothing.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from stasc_ray.config import Questions
from stasc_ray.tasks.canonical import Row
from stasc_ray.tasks.loading.columns import MISSING, as_paths, find
from stasc_ray.tasks.loading.documents import documents_of
from stasc_ray.tasks.sources import records

_QUESTIONS_AT_ONCE = 1000


def check_corpus(questions: Questions) -> None:
    """Refuse a corpus that can't be read, before anything else is.

    Raises:
        FileNotFoundError: nothing at `questions.corpus`.
        ValueError: no document in it, or its first one can't be read.
        ImportError: `bm25s` is not installed.
    """
    if questions.corpus is None:
        return
    _bm25s()
    if next(_texts(questions), None) is None:
        raise ValueError(f"questions.corpus: expected documents in {questions.corpus}, found none")


def retrieve(rows: Sequence[Row], questions: Questions) -> int:
    """Give `questions.top_k` documents to each row that has none, the best first, in place.

    A document that shares no word with the question is never given.

    Returns:
        How many rows got documents.

    Raises:
        ValueError: a row of the corpus that can't be read.
    """
    wanting = [row for row in rows if not row["documents"]]
    if questions.corpus is None or not wanting:
        return 0
    texts = list(_texts(questions))
    index = _bm25s().BM25()
    index.index(_tokens(texts), show_progress=False)
    count = min(questions.top_k, len(texts))
    for first in range(0, len(wanting), _QUESTIONS_AT_ONCE):
        some = wanting[first : first + _QUESTIONS_AT_ONCE]
        asked = _tokens([row["question"] for row in some])
        places, scores = index.retrieve(asked, k=count, show_progress=False)
        for row, best, score in zip(some, places.tolist(), scores.tolist(), strict=True):
            row["documents"] = [texts[place] for place, value in zip(best, score, strict=True) if value > 0]
    return sum(bool(row["documents"]) for row in wanting)


def _texts(questions: Questions) -> Iterator[str]:
    """The documents of the corpus, empty ones left out."""
    word = questions.corpus_text
    try:
        for record in records(questions.corpus or "", list(as_paths(word)), (), (None,), None):
            found = [find(record.values, path) for path in as_paths(word)]
            if record.problem or MISSING in found:
                names = ", ".join(map(repr, record.values))
                problem = record.problem or f"expected column {word!r}, found only {names}"
                raise ValueError(f"{record.place}: {problem} (questions.corpus_text)")
            yield from documents_of(found, word)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"questions.corpus: {error}") from error
    except ValueError as error:
        raise ValueError(f"questions.corpus: {error}") from error


def _tokens(texts: list[str]) -> Any:
    """Words of any language: no stop words are left out, and words of one letter are kept."""
    return _bm25s().tokenize(texts, stopwords=None, token_pattern=r"(?u)\b\w+\b", show_progress=False)


def _bm25s() -> Any:
    try:
        import bm25s
    except ImportError as error:
        raise ImportError(
            "questions.corpus: looking up documents needs `bm25s`: pip install 'stasc-ray[bm25]'"
        ) from error
    return bm25s
