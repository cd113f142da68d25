"""The choices of a raw row and the letter of the right one, in the shapes in which data sets publish them.
Pure.

Choices are a list of texts, a list of {label, text}, {label: [...], text: [...]}, an object by letter, one
column each, or one string such as `A) x B) y`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stasc_ray.tasks.loading.columns import MISSING, written_value
from stasc_ray.tasks.loading.values import as_list, as_text, normalize

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_TEXT_KEYS = ("text", "texts", "choice", "choices", "option", "options", "value", "content", "answer")
_LABEL_KEYS = ("label", "labels", "key", "letter", "id", "index")
_OWN_LETTER = re.compile(r"\(?\s*([A-Za-z])\s*(?:[).:\uff09\uff0e\u3001\uff1a]|-(?=\s))\s*")
_OWN_NUMBER = re.compile(r"\(?\s*(\d{1,2})\s*[)\uff09]\s*")
_MARK = re.compile(r"(?:^|(?<=[\s,;|]))\(?\s*([A-Za-z])\s*[).:\uff09\uff0e\u3001\uff1a]\s*")
_ANNOUNCED = re.compile(r"(?:answer\s+)?(?:options|choices)\s*[:\uff1a]\s*", re.IGNORECASE)
_KEY = re.compile(r"\(?\s*([A-Za-z]|\d{1,2})\s*[).:\uff09]\s*(.*)", re.DOTALL)

FROM_1 = ": if the first choice is number 1, set questions.columns.choice_key = 'index_from_1'"
"""Ends the message on an index that is one too large."""


class Choices(NamedTuple):
    """The texts of the choices, and their labels if the source gives them labels."""

    texts: list[str]
    labels: list[str]


def choices_of(found: Sequence[Any], column: object) -> Choices:
    """The choices in what the paths of a column word found; several paths are one choice each.

    Raises:
        ValueError: a shape that is none of those above, too few or too many choices, or an empty one.
    """
    if len(found) == 1:
        choices = _shaped(found[0], column)
    else:
        texts = [as_text(None if text is MISSING else text, column) for text in found]
        while texts and not texts[-1]:  # some questions have fewer choices than others
            texts.pop()
        choices = Choices(texts, [])
    texts, labels = choices
    present = bool(texts or labels or isinstance(found[0], Mapping))
    if present and not (2 <= len(texts) <= len(LETTERS) and all(texts)):
        raise ValueError(f"choices: expected 2 to {len(LETTERS)} texts, none empty, found {texts}")
    if len(set(labels)) < len(labels):
        raise ValueError(f"choices: expected one label per text, each another, found {labels}")
    return Choices(_without_own_letters(texts), labels)


def _shaped(value: Any, column: object) -> Choices:
    if isinstance(value, str):
        decoded = written_value(value)
        if decoded is value:
            return Choices(_split_string(value, column), []) if value.strip() else Choices([], [])
        value = decoded
    if isinstance(value, Mapping):
        return _object(value, column)
    elements = as_list(value)
    if elements and all(isinstance(element, Mapping) for element in elements):
        return _objects(elements, column)
    return Choices([as_text(element, column) for element in elements], [])


def _object(value: Mapping[str, Any], column: object) -> Choices:
    """{label: [...], text: [...]}, or an object by letter."""
    lists = [name for name, item in value.items() if isinstance(item, (list, tuple))]
    text_key = next((name for name in _TEXT_KEYS if name in lists), None)
    label_key = next((name for name in _LABEL_KEYS if name in lists), None)
    if text_key:
        texts = [as_text(text, column) for text in value[text_key]]
        labels = [as_text(label, column) for label in value[label_key]] if label_key else []
        if label_key and len(labels) != len(texts):
            raise ValueError(
                f"choices: expected one label per text, found {len(labels)} labels and {len(texts)} texts"
            )
        return Choices(texts, labels)
    # a Parquet file gives every row all letters that any row has
    given = {str(name).strip(): text for name, text in value.items() if text is not None}
    names = sorted(given, key=lambda name: (len(name), name))
    if names and _consecutive(names):
        return Choices([as_text(given[name], column) for name in names], names)
    raise ValueError(
        f"choices: expected in column {column!r} a list, lists under 'text' and 'label', or one text per "
        f"letter (A, B, ...), found an object with {', '.join(map(repr, value)) or 'nothing in it'}. Name "
        "the list by a path, or one path per choice: questions.columns.choices = ['a.b', 'a.c']"
    )


def _objects(elements: Sequence[Mapping[str, Any]], column: object) -> Choices:
    """A list of {label, text}."""
    names = list(elements[0])
    text_key = next((name for name in _TEXT_KEYS if name in names), None)
    label_key = next((name for name in _LABEL_KEYS if name in names), None)
    if text_key is None and len(names) == 2:
        # two keys of any name: the labels are those that look like some
        for one, other in (names, names[::-1]):
            if _consecutive([as_text(element.get(one)) for element in elements]):
                label_key, text_key = one, other
    if text_key is None or any(text_key not in element for element in elements):
        raise ValueError(
            f"choices: expected in column {column!r} texts or objects such as {{'label', 'text'}}, found "
            f"objects with {', '.join(map(repr, names))}: name the texts by a path, "
            f"questions.columns.choices = '{column}[].KEY'"
        )
    texts = [as_text(element[text_key], column) for element in elements]
    labels = [as_text(element.get(label_key), column) for element in elements] if label_key else []
    return Choices(texts, labels)


def _consecutive(names: Sequence[str]) -> bool:
    """A, B, C, ... or a, b, c, ... or numbers that begin at 0 or 1."""
    letters = "".join(names)
    if len(letters) == len(names) and letters in (LETTERS[: len(names)], LETTERS[: len(names)].lower()):
        return True
    numbers = [int(name) for name in names if name.isdecimal()]
    return len(numbers) == len(names) and numbers in ([*range(len(names))], [*range(1, len(names) + 1)])


def _split_string(text: str, column: object) -> list[str]:
    """The choices in one string, `A) x B) y` or `a ) x , b ) y` or lines that begin with `A.`."""
    whole = text.strip()
    if announced := _ANNOUNCED.match(whole):
        whole = whole[announced.end() :]
    marks = list(_MARK.finditer(whole))
    letters = "".join(mark.group(1) for mark in marks)
    alike = letters in (LETTERS[: len(letters)], LETTERS[: len(letters)].lower())
    if len(marks) < 2 or not alike or marks[0].start():
        raise ValueError(
            f"choices: expected in column {column!r} a list, or a string with the marks A) B) C) once each "
            f"and in their order, found {whole[:80]!r}: write a list, or name one column per choice, "
            "questions.columns.choices = ['A', 'B', 'C']"
        )
    ends = [*(mark.start() for mark in marks[1:]), len(whole)]
    return [
        re.sub(r"\s*[,;|]?\s*$", "", whole[mark.end() : end]) for mark, end in zip(marks, ends, strict=True)
    ]


def _without_own_letters(texts: Sequence[str]) -> list[str]:
    """Choices without the letter (or the number in brackets) that each of them carries: `A)21`, `B)22`."""
    for pattern in (_OWN_LETTER, _OWN_NUMBER):
        matches = [pattern.match(text) for text in texts]
        names = [match.group(1) for match in matches if match]
        if names and len(names) == len(texts) and _consecutive(names):
            bare = [text[match.end() :].strip() for text, match in zip(texts, matches, strict=True) if match]
            return bare if all(bare) else list(texts)
    return list(texts)


def letters_of(answers: Sequence[Any], choices: Choices, choice_key: str) -> list[str]:
    """The letter of the right choice; several references must name the same one.

    A 0 or 1 for each choice, with a single 1, names the choice that has the 1.

    Raises:
        ValueError: an answer fits no choice or several, or the answers name several choices.
    """
    marks = [answer for answer in answers if isinstance(answer, (bool, int, float)) and answer in (0, 1)]
    if len(marks) == len(answers) == len(choices.texts):
        if sum(marks) == 1:
            return [LETTERS[marks.index(1)]]
        raise ValueError(f"answer: expected a 1 for one choice and 0 for the others, found {list(answers)}")
    letters = list(dict.fromkeys(letter_of(answer, choices, choice_key) for answer in answers))
    if len(letters) > 1:
        raise ValueError(
            f"answer: expected one right choice, found {' and '.join(letters)} in {list(answers)}: any one "
            "of them alone would be paid"
        )
    return letters


def letter_of(answer: Any, choices: Choices, choice_key: str) -> str:
    """The letter of the right choice.

    Args:
        answer: its label, 0-based index, letter (also `(B)` or `B. text`), or text.
        choices: texts and labels.
        choice_key: `columns.choice_key`, which of these it is.

    Raises:
        ValueError: it fits no choice, or several.
    """
    if isinstance(answer, bool):
        names = ("true", "yes") if answer else ("false", "no")
        said = [LETTERS[place] for place, choice in enumerate(choices.texts) if normalize(choice) in names]
        if len(said) == 1:
            return said[0]
        raise ValueError(
            f"answer: expected an index, label, letter or text of one choice, found {str(answer).lower()}: "
            "leave out questions.columns.choices to ask for yes or no, or write the index of the right choice"
        )
    text = as_text(answer)
    if not isinstance(answer, str) and choice_key == "any" and text not in choices.labels:
        return _indexed(text, choices, 0)
    if choice_key.startswith("index"):
        return _indexed(text, choices, int(choice_key == "index_from_1"))
    found = _fitting(text, choices, choice_key)
    if len(found) == 1:
        return found.pop()
    fits = " and ".join(sorted(found)) or "none"
    advice = ""
    if found:
        advice = ": set questions.columns.choice_key to 'index', 'index_from_1', 'letter' or 'text'"
    elif text == str(len(choices.texts)):
        advice = FROM_1
    raise ValueError(
        f"answer: expected the index, label, letter or text of one choice, found {text!r}, which fits {fits} "
        f"of {_shown(choices)}{advice}"
    )


def _indexed(text: str, choices: Choices, first: int) -> str:
    last = len(choices.texts) - 1 + first
    numbered = bool(choices.labels) and all(label.isdecimal() for label in choices.labels)
    if numbered and choices.labels[0] != str(first):
        raise ValueError(f"answer: expected a label of {_shown(choices)}, found {text}")
    if not text.isdecimal() or not first <= int(text) <= last:
        advice = ""
        if text.isdecimal() and int(text) == last + 1:
            advice = FROM_1
        raise ValueError(f"answer: expected an index from {first} to {last}, found {text}{advice}")
    return LETTERS[int(text) - first]


def _fitting(text: str, choices: Choices, choice_key: str) -> set[str]:
    """Letters of the choices that a text names, in any of the ways that `choice_key` allows."""
    count = len(choices.texts)
    lettered = any(label.isalpha() for label in choices.labels)
    named = choices.labels if lettered else list(LETTERS[:count])
    marked = _KEY.fullmatch(text)
    found: set[str] = set()
    if choice_key != "text":
        if text in choices.labels:
            return {LETTERS[choices.labels.index(text)]}
        bare = {text.upper(), text.strip("()[]. :").upper()}
        found |= {LETTERS[place] for place, name in enumerate(named) if name.upper() in bare}
        if not choices.labels and choice_key == "any" and text.isdecimal() and int(text) < count:
            found.add(LETTERS[int(text)])
        if marked and not found:
            place = next((n for n, name in enumerate(named) if name.upper() == marked.group(1).upper()), None)
            if place is not None and normalize(marked.group(2)) == normalize(choices.texts[place]):
                return {LETTERS[place]}
    if choice_key != "letter":
        exact = {LETTERS[place] for place, choice in enumerate(choices.texts) if choice == text}
        folded = {
            LETTERS[place]
            for place, choice in enumerate(choices.texts)
            if normalize(choice) == normalize(text)
        }
        found |= exact or folded
    return found


def _shown(choices: Choices) -> str:
    if not choices.labels:
        return repr(choices.texts)
    return ", ".join(f"{label}: {text!r}" for label, text in zip(choices.labels, choices.texts, strict=True))
