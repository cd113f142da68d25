"""One raw row, whatever its columns, as one canonical question row. Pure: reads and writes nothing."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from stasc_ray.config import Columns, hashing
from stasc_ray.tasks.loading.choice_columns import Choices, choices_of, letters_of
from stasc_ray.tasks.loading.columns import MISSING, Paths, as_paths, find, written_value
from stasc_ray.tasks.loading.documents import documents_of
from stasc_ray.tasks.loading.values import as_list, as_text, normalize

Row = dict[str, Any]
_NO_CHOICES = Choices([], [])
# Plain words: `2(x + 1)`, `2 (xy)` and `4 (pi)` are products, and `3 (million)` is not 3.
_NO_UNIT = "mod|base|sin|cos|tan|log|exp|sqrt|pi|ln|hundred|thousand|million|billion|trillion|dozen"
_WITH_UNIT = re.compile(
    rf"([-+]?\d[\d,]*(?:\.\d+)?) +\((?![^()]*\b(?:{_NO_UNIT})\b)([^\W\d_]{{3,}}(?:[ -][^\W\d_]{{2,}})*)\)",
    re.IGNORECASE,
)
_quoted = json.encoder.encode_basestring
WITHHELD = "<unk>"
"""What TriviaQA puts in the place of answers that are kept secret."""


def canonical_row(values: Mapping[str, Any], columns: Columns) -> Row:
    """One raw row as {id, question, answers, documents, choices}: a Question row without its split.

    With choices the answers are letters, whether the source gives an index, a label, a letter or the text.

    Raises:
        ValueError: what is wrong with the row.
    """
    question = _joined(values, columns.question, " ")
    if not question or _lacks_one(values, columns.question):
        raise ValueError(f"no question: expected text in {_found(values, columns.question)}")
    choices = _choices(values, columns)
    answers = _answers(values, columns, choices)
    found = _present(values, columns.documents) if columns.documents else None
    documents = documents_of(found, columns.documents) if found else []
    identity = _joined(values, columns.id, "-") or _content_hash(
        [question, answers, choices.texts, documents]
    )
    return {
        "id": identity,
        "question": question,
        "answers": answers if choices.texts else _with_plain_numbers(answers),
        "documents": documents,
        "choices": choices.texts,
    }


def _lacks_one(values: Mapping[str, Any], word: Paths) -> bool:
    """Whether one of several paths is not there: half a question is another question."""
    return not isinstance(word, str) and any(find(values, path) is MISSING for path in word)


def _present(values: Mapping[str, Any], word: Paths | None) -> list[Any]:
    """What the paths of a column word find, without those that find nothing."""
    if isinstance(word, str) and word.isidentifier():  # as in most files
        return [values[word]] if word in values else []
    found = [find(values, path) for path in as_paths(word)]
    return [value for value in found if value is not MISSING]


def _joined(values: Mapping[str, Any], word: Paths | None, between: str) -> str:
    """The texts that the paths find as one text; a path with `[]` gives all of its elements."""
    if isinstance(word, str) and (word in values or word.isidentifier()):  # as in most files
        return as_text(values.get(word), word)
    texts: list[str] = []
    for path in as_paths(word):
        value = find(values, path)
        if "[]" in path and isinstance(value, list):
            texts += [as_text(part, path) for part in value]
        elif value is not MISSING:
            texts.append(as_text(value, path))
    return between.join(filter(None, texts))


def _choices(values: Mapping[str, Any], columns: Columns) -> Choices:
    if columns.choices and _present(values, columns.choices):
        found = [find(values, path) for path in as_paths(columns.choices)]
        if any(value is not MISSING and value is not None for value in found):
            return choices_of(found, columns.choices)
    return _NO_CHOICES


def _answers(values: Mapping[str, Any], columns: Columns, choices: Choices) -> list[str]:
    raw, texts = _references(values, columns)
    if not raw and columns.no_answer and _present(values, columns.answers):
        return [columns.no_answer]
    if columns.answer_pattern:
        raw = texts = [_match(columns.answer_pattern, text) for text in texts]
    if choices.texts:
        texts = letters_of(raw, choices, columns.choice_key)
    if not texts:
        raise ValueError(f"no answer: expected text, a number or a list in {_found(values, columns.answers)}")
    if columns.one_answer and len({normalize(text) for text in texts}) > 1:
        raise ValueError(
            f"answers: expected one answer (questions.columns.one_answer), found {len(texts)}: {texts}"
        )
    return list(dict.fromkeys(texts)) if len(texts) > 1 else texts


def _references(values: Mapping[str, Any], columns: Columns) -> tuple[list[Any], list[str]]:
    """What the answers column gives, as a flat list without empty elements, and the same as texts."""
    raw = [part for path in as_paths(columns.answers) for part in _elements(values, path, columns)]
    texts = [as_text(element, columns.answers) for element in raw]
    if not all(texts) or WITHHELD in texts:
        kept = [n for n, text in enumerate(texts) if text and text != WITHHELD]
        return [raw[n] for n in kept], [texts[n] for n in kept]
    return raw, texts


def _elements(values: Mapping[str, Any], path: str, columns: Columns) -> list[Any]:
    value = find(values, path)
    if value is MISSING:
        return []
    if isinstance(value, str) and columns.decode_lists:
        value = _decoded(value)
    elements = as_list(value)
    if "[]" in path:  # a list of lists: each element's own
        return [part for element in elements for part in as_list(element)]
    return elements


def _decoded(text: str) -> Any:
    """A list of texts that was written as text; numbers alone, such as `[1, 2]`, are an answer.

    Raises:
        ValueError: an object or an array that was written as text.
    """
    if not text.lstrip().startswith(("[", "{", "array([")):
        return text
    found = written_value(text)
    if isinstance(found, Mapping) or text.lstrip().startswith("array(["):
        raise ValueError(
            f"answers: expected text or a list, found {text[:80]!r}, which was something else before it was "
            "written as text: name a key of an object by a path, such as 'answers.text', or set "
            "questions.columns.decode_lists = false if this is the answer"
        )
    if found is text or any(not isinstance(part, (str, int, float, type(None))) for part in found):
        return text
    return found if not found or any(isinstance(part, str) for part in found) else text


def _with_plain_numbers(answers: list[str]) -> list[str]:
    """`9 (apples)` also as `9`: no answer repeats the brackets."""
    if not any(answer[-1] == ")" for answer in answers):
        return answers
    numbers = [match.group(1) for match in map(_WITH_UNIT.fullmatch, answers) if match]
    return list(dict.fromkeys([*answers, *numbers])) if numbers else answers


def _found(values: Mapping[str, Any], word: Paths) -> str:
    paths = as_paths(word)
    shown = f"column {', '.join(map(repr, paths))}"
    found = [value for value in (find(values, path) for path in paths) if value is not MISSING]
    if not found:
        names = ", ".join(map(repr, values)) or "no column"
        return f"{shown}, found only {names} (questions.columns)"
    return f"{shown}, found {', '.join(repr(value)[:80] for value in found)}"


def _match(pattern: str, answer: str) -> str:
    """The first group of the last match, since a rationale comes before its answer."""
    matches = list(re.finditer(pattern, answer))
    found = (matches[-1].group(1) or "").strip() if matches else ""
    if not found:
        raise ValueError(f"no answer: expected a match of answer_pattern {pattern!r}, found {answer[-80:]!r}")
    return found


def _content_hash(content: Sequence[Any]) -> str:
    """Twenty hexadecimal digits that depend on the content only, so that equal ids mean equal rows."""
    return hashing.digest(_as_json(content), 10).hex()


def _as_json(value: Any) -> str:
    """What json.dumps(value, ensure_ascii=False) gives, in a third of its time for short lists of texts."""
    if not isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    parts = [_quoted(part) if isinstance(part, str) else _as_json(part) for part in value]
    return f"[{', '.join(parts)}]"
