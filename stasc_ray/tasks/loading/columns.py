"""What a column word of the config finds in a raw row: paths such as `answer.aliases` or `paragraphs[].text`.

Pure: reads and writes nothing. A path is a key, or keys with dots between them; `[]` after a key takes every
element of its list, `[0]` one of them, and the key `*` every value of an object. A key that itself contains
dots or brackets wins over the path of the same spelling.
"""

import ast
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

MISSING: Any = object()
"""What a path finds where one of its keys is not there."""
_STEP = re.compile(r"([^.\[\]]*)((?:\[\d*\])*)")

Paths = str | tuple[str, ...]


def as_paths(word: Paths | None) -> tuple[str, ...]:
    """A column word as a tuple of paths; None has none."""
    if word is None:
        return ()
    return (word,) if isinstance(word, str) else tuple(word)


def find(values: Mapping[str, Any], path: str) -> Any:
    """The value at a path; MISSING if there is none.

    Raises:
        ValueError: the path is no path, or meets a list where it names a key.
    """
    if path in values:
        return values[path]
    if path.isidentifier():  # one key, as in most files
        return MISSING
    for key in _dotted_keys(path):
        if key in values:
            return _follow(values[key], steps(path[len(key) + 1 :]), path)
    return _follow(values, steps(path), path)


@lru_cache(maxsize=256)
def steps(path: str) -> tuple[str | int | None, ...]:
    """The steps of a path: a key, an index into a list, or None for all elements.

    Raises:
        ValueError: not a path.
    """
    found: list[str | int | None] = []
    for part in path.split("."):
        match = _STEP.fullmatch(part)
        if not match or not match.group(1):
            raise ValueError(
                f"questions.columns: expected keys with dots between them, `[]` behind a list's key, such as "
                f"'paragraphs[].text', found {path!r}"
            )
        found.append(match.group(1))
        found += [int(index) if index else None for index in re.findall(r"\[(\d*)\]", match.group(2))]
    return tuple(found)


def top_level(path: str, names: Sequence[str]) -> str | None:
    """Which of a table's columns a path begins in; None if in none."""
    if path in names:
        return path
    first = re.split(r"[.\[]", path, maxsplit=1)[0]
    return next((key for key in [*_dotted_keys(path), first] if key in names), None)


@lru_cache(maxsize=256)
def _dotted_keys(path: str) -> tuple[str, ...]:
    """Beginnings of a path that have dots in them, the longest first: they may be keys."""
    parts = path.split(".")
    return tuple(".".join(parts[:count]) for count in range(len(parts) - 1, 1, -1))


def _follow(value: Any, rest: Sequence[str | int | None], path: str) -> Any:
    for number, step in enumerate(rest):
        if isinstance(value, str):  # a CSV file or a text column may hold JSON, or Python's spelling of it
            value = written_value(value)
        if value is None or value is MISSING:
            return value
        if step is None:
            return _each(value, rest[number + 1 :], path)
        if isinstance(step, int):
            value = value[step] if _is_list(value) and step < len(value) else MISSING
        elif step == "*" and isinstance(value, Mapping) and step not in value:
            return _each(list(value.values()), rest[number + 1 :], path)
        elif _is_list(value):
            raise ValueError(
                f"path {path!r}: expected an object with the key {step!r}, found a list: put `[]` before "
                f"`.{step}` to take it from every element"
            )
        else:
            value = value.get(step, MISSING) if isinstance(value, Mapping) else MISSING
    return value


def _each(value: Any, rest: Sequence[str | int | None], path: str) -> Any:
    """The rest of the path in every element; lists that further `[]` give are concatenated."""
    if not _is_list(value):
        raise ValueError(f"path {path!r}: expected a list at `[]`, found {repr(value)[:80]}")
    nested = None in rest or "*" in rest
    found: list[Any] = []
    for element in value:
        at = _follow(element, rest, path)
        if at is MISSING or at is None:
            continue
        found += at if nested and _is_list(at) else [at]
    return found


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def written_value(text: str) -> Any:
    """A list or object that was written as text, in JSON or as Python prints it; the text if it is none.

    Raises:
        ValueError: a printed NumPy array, whose texts have no commas between them.
    """
    bare = text.strip()
    if bare[:1] + bare[-1:] not in ("[]", "{}"):
        return text
    try:
        found = json.loads(bare)
    except (ValueError, RecursionError):
        try:
            found = ast.literal_eval(bare)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            return text
        if _has_adjacent_texts(bare):
            raise ValueError(
                f"expected a list, found a printed array whose texts have no commas between them, "
                f"{bare[:80]!r}: write the column as JSON"
            ) from None
    return found if isinstance(found, (list, tuple, Mapping)) else text


def _has_adjacent_texts(bare: str) -> bool:
    """Whether two literals follow each other, which Python reads as one text: `['a' 'b']` as `['ab']`."""
    import io
    import tokenize

    kinds = [
        token.type
        for token in tokenize.generate_tokens(io.StringIO(bare).readline)
        if token.type not in (tokenize.NL, tokenize.NEWLINE)
    ]
    return any(pair == (tokenize.STRING, tokenize.STRING) for pair in itertools.pairwise(kinds))


def inner_rows(values: Mapping[str, Any], path: str) -> Iterator[dict[str, Any]]:
    """The objects at a path such as `data[].paragraphs[].qas[]`, each with what stands above it.

    A key of a deeper object wins over the same key above; the lists that the path goes through are left out.

    Raises:
        ValueError: the path leads to no list of objects.
    """
    yield from _inner(values, {}, steps(path), path)


def _inner(
    value: Any, above: dict[str, Any], rest: Sequence[str | int | None], path: str
) -> Iterator[dict[str, Any]]:
    if not rest:
        if not isinstance(value, Mapping):
            raise ValueError(f"questions.columns.rows {path!r}: expected objects, found {repr(value)[:80]}")
        yield {**above, **value}
    elif rest[0] is None:
        if not _is_list(value):
            raise ValueError(
                f"questions.columns.rows {path!r}: expected a list at `[]`, found {repr(value)[:80]}"
            )
        for element in value:
            yield from _inner(element, above, rest[1:], path)
    elif not isinstance(value, Mapping) or not (rest[0] == "*" or rest[0] in value):
        found = ", ".join(map(repr, value)) if isinstance(value, Mapping) else repr(value)[:80]
        raise ValueError(f"questions.columns.rows {path!r}: expected the key {rest[0]!r}, found {found}")
    elif rest[0] == "*":
        for element in value.values():
            yield from _inner(element, above, rest[1:], path)
    else:
        beside = {key: item for key, item in value.items() if key != rest[0]}
        yield from _inner(value[rest[0]], {**above, **beside}, rest[1:], path)
