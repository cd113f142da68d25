"""Rows of a JSON file: one object per line, an array of objects, or an object that holds the rows.

Reads an open file; what the columns mean is decided in `canonical`.
"""

import codecs
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

from stasc_ray.tasks.loading.columns import MISSING, Paths, as_paths, find, inner_rows
from stasc_ray.tasks.loading.record import Record, record, unreadable

_CHUNK_BYTES = 1 << 20
_MAX_DEPTH = 5
_MAX_SHOWN = 4
_SPLIT_NAMES = ("train", "training", "dev", "development", "val", "valid", "validation", "test", "eval")
_parse = json.JSONDecoder().decode
_SPACE = re.compile(r"[ \t\r\n]*")


def json_rows(handle: IO[bytes], path: str, question: Paths, rows: str | None) -> Iterator[Record]:
    """Yield the rows of a JSON file.

    Args:
        handle: its bytes.
        path: of the file, for messages.
        question: the question's column. An object without it that holds a list of objects holds the rows.
        rows: `columns.rows`, the path of the rows inside each object.

    Raises:
        ValueError: an array that is not JSON, or rows that stand deeper than the file's first lists.
    """
    lines = ((number, line) for number, line in enumerate(handle, start=1) if line.strip())
    begin = list(itertools.islice(lines, 1))
    if begin and _plain(begin[0][1]).startswith(b"["):
        chunks = iter(lambda: handle.read(_CHUNK_BYTES), b"")
        yield from _array(itertools.chain([begin[0][1]], chunks), path, rows)
        return
    begin += itertools.islice(lines, 1)
    if len(begin) < 2 or not any(_object(line) for _, line in begin):
        # a file of one line, or of lines that are no objects: perhaps one value over all of its lines
        begin += lines
        whole = _object(b"".join(line for _, line in begin))
        if whole is not None:
            yield from _held(whole, path, question, rows)
            return
    where = f"{path}, line"
    for number, line in itertools.chain(begin, lines):
        try:  # bytes, line by line: one line with a broken encoding must not hide where it is
            values = _line_value(line.removeprefix(codecs.BOM_UTF8).decode())
        except (ValueError, RecursionError) as error:
            yield unreadable(where, number, f"expected one JSON object per line in UTF-8: {error}")
            continue
        if rows is None and isinstance(values, dict):
            yield record(where, number, values)
        else:
            yield from _value_records(where, number, values, rows, "one JSON object per line")


def _line_value(text: str) -> Any:
    """The value of a line; one comma behind it, as in an array that lost its brackets, does no harm."""
    try:
        return _parse(text)
    except ValueError:
        bare = text.rstrip()
        if not bare.endswith(","):
            raise
        return _parse(bare[:-1])


def _plain(line: bytes) -> bytes:
    return line.removeprefix(codecs.BOM_UTF8).strip()


def _object(text: bytes) -> dict[str, Any] | None:
    if not _plain(text).startswith(b"{"):
        return None
    try:
        found = _line_value(text.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _value_records(where: str, number: int, values: Any, rows: str | None, expected: str) -> Iterator[Record]:
    if not isinstance(values, dict):
        kind = type(values).__name__
        article = "an" if kind[0] in "aeiou" else "a"
        yield unreadable(where, number, f"expected {expected}, found {article} {kind}")
    elif rows is None:
        yield record(where, number, values)
    else:
        try:
            for count, row in enumerate(inner_rows(values, rows), start=1):
                yield record(f"{where} {number}, row", count, row)
        except ValueError as error:
            yield unreadable(where, number, str(error))


def _array(chunks: Iterable[bytes], path: str, rows: str | None) -> Iterator[Record]:
    """The elements of a JSON array, one at a time: the whole need not fit into memory."""
    values = _elements(chunks)
    number = 0
    try:
        for number, value in enumerate(values, start=1):
            yield from _value_records(f"{path}, element", number, value, rows, "an array of JSON objects")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected a JSON array, could not read it after element {number}: {error}"
        ) from error


def _elements(chunks: Iterable[bytes]) -> Iterator[Any]:
    decode, text, at = codecs.getincrementaldecoder("utf-8")().decode, "", 0
    parse = json.JSONDecoder().raw_decode
    pending, ended, opening = iter(chunks), False, True
    while True:
        at = _SPACE.match(text, at).end()  # pyright: ignore[reportOptionalMemberAccess]
        try:
            if at == len(text):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
            if text[at] == "]" and not opening:
                break
            if text[at] not in ("[\ufeff" if opening else ","):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
            if text[at] == "\ufeff":
                at += 1
                continue
            begin = _SPACE.match(text, at + 1).end()  # pyright: ignore[reportOptionalMemberAccess]
            if opening and text[begin : begin + 1] == "]":
                return
            value, at = parse(text, begin)
            opening = False
        except json.JSONDecodeError as error:
            cut = error.pos >= len(text) - 12 or error.msg.startswith("Unterminated string")
            chunk = b"" if ended else next(pending, b"")
            ended = not chunk
            if not cut or ended:
                raise
            text, at = text[at:] + decode(chunk), 0
            continue
        yield value
    rest = text[at + 1 :] + decode(b"".join(pending), True)
    if rest.strip():
        raise ValueError(f"expected nothing behind its end, found {rest.strip()[:40]!r}")


def _held(values: dict[str, Any], path: str, question: Paths, rows: str | None) -> Iterator[Record]:
    """The rows of a file that is one object: at `rows`, or in the one list of objects that has them."""
    inner = rows or _found_rows(values, path, question)
    if inner is None:
        yield record(f"{path}, line", 1, values)
        return
    for number, row in enumerate(inner_rows(values, inner), start=1):
        yield record(f"{path}, {inner} row", number, row)


def _found_rows(values: dict[str, Any], path: str, question: Paths) -> str | None:
    if _has(values, question):
        _check_columns(values, path, question)
        return None
    found = list(itertools.islice(rows_paths(values, question), _MAX_SHOWN))
    if not found:
        lists = [name for name, item in values.items() if _sample(item, question) is not None]
        return f"{lists[0]}[]" if len(lists) == 1 else None
    if len(found) > 1:
        raise ValueError(
            f"{path}: expected rows with {question!r} in one place, found them at "
            f"{', '.join(map(repr, found))}: set questions.columns.rows = {found[0]!r} to read one of them "
            "(`*` in the place of a key reads all), or write a file for each"
        )
    if len(re.findall(r"\[\]|\*", found[0])) > 1:
        raise ValueError(
            f"{path}: expected rows with {question!r}, found them deeper in the file: set "
            f"questions.columns.rows = {found[0]!r}"
        )
    return found[0]


def _check_columns(values: Mapping[str, Any], path: str, question: Paths) -> None:
    """Refuse {"question": [...], "answers": [...]}, a table by column."""
    at = [find(values, one) for one in as_paths(question) if "[]" not in one]
    by_number = [value for value in at if isinstance(value, Mapping) and all(map(str.isdecimal, value))]
    if by_number or any(isinstance(value, list) for value in at):
        raise ValueError(
            f"{path}: expected one object per row, found one object with all values of {question!r}, a table "
            "by column: write it by row (pandas: `to_json(path, orient='records', lines=True)`)"
        )


def rows_paths(values: Mapping[str, Any], question: Paths, depth: int = 0) -> Iterator[str]:
    """Where objects with a question stand inside another object: `data[].qas[]`, `train[]` and `test[]`."""
    if depth > _MAX_DEPTH:
        return
    objects = [item for item in values.values() if isinstance(item, Mapping)]
    splits = any(name.lower() in _SPLIT_NAMES for name in values)
    if len(objects) == len(values) > 1 and not splits:  # rows by id, some of them perhaps with a key less
        one = next((item for item in objects if _has(item, question)), None)
        if one or all(item.keys() == objects[0].keys() for item in objects):
            yield from _join("*", one or objects[0], question, depth)
            return
    for name, item in values.items():
        sample = item if isinstance(item, Mapping) else _sample(item, question)
        if sample:
            yield from _join(name if sample is item else f"{name}[]", sample, question, depth)


def _join(step: str, values: Mapping[str, Any], question: Paths, depth: int) -> Iterator[str]:
    if _has(values, question):
        yield step
    else:
        yield from (f"{step}.{inner}" for inner in rows_paths(values, question, depth + 1))


def _sample(item: Any, question: Paths) -> Mapping[str, Any] | None:
    """One object of a list of objects: the first with a question, or the first."""
    if not (isinstance(item, list) and item and isinstance(item[0], Mapping)):
        return None
    return next((part for part in item if isinstance(part, Mapping) and _has(part, question)), item[0])


def _has(values: Mapping[str, Any], word: Paths) -> bool:
    try:
        return any(find(values, path) is not MISSING for path in as_paths(word))
    except ValueError:
        return False
