"""The documents of a raw row, in the shapes in which data sets publish them. Pure.

A document is a text, an object {title, text} or a pair [title, sentences]; documents are a list of these, one
of them, or {"title": [...], "sentences": [[...]]} as HotpotQA stands on the Hub.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from stasc_ray.tasks.loading.columns import written_value
from stasc_ray.tasks.loading.values import as_list, as_text

TITLES = ("title", "titles", "wikipedia_title", "page_title", "name", "heading")
TEXTS = (
    "text",
    "texts",
    "paragraph_text",
    "sentences",
    "content",
    "contents",
    "passage",
    "passage_text",
    "context",
    "body",
    "document",
    "paragraph",
    "snippet",
    "wiki_context",
    "search_context",
)


def documents_of(found: Sequence[Any], column: object) -> list[str]:
    """The documents in what the paths of a column word found: lists are put behind each other, single texts
    are joined with a space.

    Raises:
        ValueError: a shape that is none of these.
    """
    if len(found) > 1 and all(isinstance(value, str) or value is None for value in found):
        joined = " ".join(filter(None, (as_text(value, column) for value in found)))
        return [joined] if joined else []
    return [text for value in found for text in _documents(value, column)]


def _documents(value: Any, column: object) -> list[str]:
    if isinstance(value, str):
        decoded = written_value(value)
        if isinstance(decoded, Mapping) or (
            decoded is not value and any(isinstance(part, (str, list, dict)) for part in decoded)
        ):
            value = decoded
    if isinstance(value, Mapping):
        title, text = _named(value, column)
        if isinstance(title, (list, tuple)) and isinstance(text, (list, tuple)):
            if len(title) != len(text):
                raise ValueError(
                    f"column {column!r}: expected one title per text, found {len(title)} titles and "
                    f"{len(text)} texts"
                )
            value = [list(pair) for pair in zip(title, text, strict=True)]
        elif title is None and isinstance(text, (list, tuple)):
            value = text
    return [text for text in (_document(element, column) for element in as_list(value)) if text]


def _document(value: Any, column: object) -> str:
    """One document as text: `Title: text` if it has a title."""
    if isinstance(value, Mapping):
        title, text = _named(value, column)
        value = [title, as_list(text)]
    if not isinstance(value, (list, tuple)):
        return as_text(value, column)
    if len(value) == 2 and isinstance(value[1], (list, tuple)):
        title, text = as_text(value[0], column), _joined(value[1], column)
        return f"{title}: {text}" if title and text else text
    return _joined(value, column)


def _joined(sentences: Sequence[Any], column: object) -> str:
    return " ".join(filter(None, (as_text(sentence, column) for sentence in sentences)))


def _named(value: Mapping[str, Any], column: object) -> tuple[Any, Any]:
    """Title (or None) and text of a document that is an object."""
    title = next((value[name] for name in TITLES if name in value), None)
    names = [name for name in TEXTS if value.get(name) is not None]
    others = [name for name, item in value.items() if name not in TITLES and isinstance(item, str)]
    if not names and len(others) == 1:
        names = others
    if not names:
        raise ValueError(
            f"column {column!r}: expected documents with a text under one of {', '.join(TEXTS)}, found "
            f"{', '.join(map(repr, value))}: name the text by a path, such as "
            f"questions.columns.documents = '{column}[].KEY'"
        )
    return title, value[names[0]]
