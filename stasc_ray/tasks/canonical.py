"""One raw row, whatever its columns, as one canonical question row. Pure: reads and writes nothing."""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from stasc_ray.config import Columns, hashing

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Row = dict[str, Any]


def normalize(question: str) -> str:
    """The text by which two questions count as the same: composed Unicode, case folded, white space
    collapsed.
    """
    return " ".join(unicodedata.normalize("NFC", question).casefold().split())


def canonical_row(values: Mapping[str, Any], columns: Columns) -> Row:
    """One raw row as {id, question, answers, documents, choices}: a Question row without its split.

    With choices the answers are letters, whether the source gives an index, a label, a letter or the text.

    Raises:
        ValueError: what is wrong with the row.
    """
    question = _text(values.get(columns.question), columns.question)
    if not question:
        raise ValueError(f"no question: expected text in {_found(values, columns.question)}")
    choices, labels = _choices(values.get(columns.choices), columns.choices) if columns.choices else ([], [])
    answers = _answers(values, columns, choices, labels)
    documents = _as_list(values.get(columns.documents)) if columns.documents else []
    documents = [text for text in (_text(document, columns.documents) for document in documents) if text]
    identity = _text(values.get(columns.id), columns.id) if columns.id else ""
    return {
        "id": identity or _content_hash([question, answers, choices, documents]),
        "question": question,
        "answers": answers,
        "documents": documents,
        "choices": choices,
    }


def _answers(
    values: Mapping[str, Any], columns: Columns, choices: Sequence[str], labels: Sequence[str]
) -> list[str]:
    raw = [answer for answer in _as_list(values.get(columns.answers)) if _text(answer, columns.answers)]
    if columns.answer_pattern:
        raw = [_match(columns.answer_pattern, _text(answer)) for answer in raw]
    answers = [_letter(answer, choices, labels) if choices else _text(answer) for answer in raw]
    if not answers:
        raise ValueError(f"no answer: expected text, a number or a list in {_found(values, columns.answers)}")
    return list(dict.fromkeys(answers))


def _found(values: Mapping[str, Any], column: str) -> str:
    if column not in values:
        return (
            f"column {column!r}, found only {', '.join(map(repr, values)) or 'no column'} (questions.columns)"
        )
    return f"column {column!r}, found {repr(values[column])[:80]}"


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _text(value: Any, column: str | None = None) -> str:
    """Text or number as text without white space around it; None and NaN are empty."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            # half a surrogate pair, which JSON can spell but no file can store
            raise ValueError(f"column {column!r}: expected valid Unicode, found {error}") from error
        return value.strip()
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():  # 3.0 is what Parquet writers make of a nullable 3
        return str(int(value))
    if isinstance(value, (int, float, Decimal)):
        return str(value)
    raise ValueError(
        f"column {column!r}: expected text, a number or a list of them, found {repr(value)[:80]}"
    )


def _match(pattern: str, answer: str) -> str:
    """The first group of the last match, since a rationale comes before its answer."""
    matches = list(re.finditer(pattern, answer))
    found = (matches[-1].group(1) or "").strip() if matches else ""
    if not found:
        raise ValueError(f"no answer: expected a match of answer_pattern {pattern!r}, found {answer[-80:]!r}")
    return found


def _choices(value: Any, column: str) -> tuple[list[str], list[str]]:
    """Texts and labels of the choices: a list of texts, or {"label": [...], "text": [...]} as the Hub stores
    them.
    """
    labelled = isinstance(value, Mapping)
    texts = [_text(choice, column) for choice in _as_list(value.get("text") if labelled else value)]
    labels = [_text(label, column) for label in _as_list(value.get("label"))] if labelled else []
    if labelled and len(labels) != len(texts):
        raise ValueError(
            f"choices: expected one label per text, found {len(labels)} labels and {len(texts)} texts"
        )
    if (texts or labelled) and not (2 <= len(texts) <= len(LETTERS) and all(texts)):
        raise ValueError(f"choices: expected 2 to {len(LETTERS)} texts, none empty, found {texts}")
    return texts, labels


def _letter(answer: Any, choices: Sequence[str], labels: Sequence[str]) -> str:
    """The letter of the right choice, given by its label, 0-based index (a number), letter or full text."""
    text = _text(answer)
    if text in labels:
        return LETTERS[labels.index(text)]
    if not isinstance(answer, str):
        if not text.isdecimal() or int(text) >= len(choices):
            raise ValueError(f"answer: expected an index from 0 to {len(choices) - 1}, found {text}")
        return LETTERS[int(text)]
    matches = [
        letter
        for letter, choice in zip(LETTERS, choices, strict=False)
        if normalize(choice) == normalize(text)
    ]
    if not labels and text.upper() in LETTERS[: len(choices)] and len(text) == 1:
        matches.append(text.upper())
    if len(set(matches)) != 1:
        problem = (
            f"found {text!r}, which fits {' and '.join(sorted(set(matches))) or 'none'} of {list(choices)}"
        )
        raise ValueError(f"answer: expected the index, label, letter or text of one choice, {problem}")
    return matches[0]


def _content_hash(content: Sequence[Any]) -> str:
    """Twenty hexadecimal digits that depend on the content only, so that equal ids mean equal rows."""
    return hashing.digest(json.dumps(content, ensure_ascii=False), 10).hex()
