"""Rows of CSV, TSV and Parquet files, and of Arrow tables.

Reads open files; what the columns mean is decided in `canonical`.
"""

import csv
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any

from stasc_ray.tasks.loading.columns import Paths, as_paths, top_level
from stasc_ray.tasks.loading.record import Record, record, unreadable

BATCH_ROWS = 4096


def csv_rows(handle: IO[bytes], path: str, tabs: bool, required: Sequence[Paths]) -> Iterator[Record]:
    """Yield the rows of a file whose first line names the columns.

    Values stand between tabs (`tabs`), or between commas, or between semicolons or tabs if the first line has
    no comma.

    Raises:
        ValueError: not UTF-8, no such format, a column that is missing or there twice.
    """
    csv.field_size_limit(sys.maxsize)
    text = io.TextIOWrapper(handle, encoding="utf-8-sig", newline="")
    number = 0
    try:
        first = text.readline()
        delimiter = "\t" if tabs else _delimiter(first)
        reader = csv.reader(_with_first(first, text), delimiter=delimiter, strict=True)
        names = next(reader, [])
        twice = sorted({name for name in names if name and names.count(name) > 1})
        if twice:
            raise ValueError(f"{path}: expected each column once, found {', '.join(map(repr, twice))} twice")
        if names:
            pick_columns(path, names, required, ())
        number = reader.line_num
        for fields in reader:
            line, number = number + 1, reader.line_num
            if not fields:
                continue
            if delimiter == "\t" and reader.line_num > line:
                raise ValueError(
                    f"{path}: expected a row per line between tabs, found a quote at line {line} that ends "
                    f"only at line {reader.line_num}, as if the rows between were one. Write quotes that "
                    "belong to a text twice, and the text between quotes; texts with line breaks need commas "
                    "(.csv) or JSON lines"
                )
            if len(fields) != len(names):
                yield unreadable(
                    f"{path}, line",
                    line,
                    f"expected {len(names)} values as in the first line, found {len(fields)} (text with a "
                    f"{delimiter!r}, a quote or a line break stands between quotes)",
                )
            else:
                yield record(f"{path}, line", line, dict(zip(names, fields, strict=True)))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: expected text in UTF-8, found something else after line {number}: {error}. Save it "
            "as UTF-8"
        ) from error
    except csv.Error as error:
        raise ValueError(
            f"{path}: could not read it after line {number}: {error}. A quote in a text is written twice, "
            "and the text stands between quotes"
        ) from error


def _delimiter(first: str) -> str:
    return next((sign for sign in ",;\t" if sign in first), ",")


def _with_first(first: str, rest: Iterable[str]) -> Iterator[str]:
    if first:
        yield first
    yield from rest


def parquet_rows(
    handle: IO[bytes], path: str, required: Sequence[Paths], optional: Sequence[Paths]
) -> Iterator[Record]:
    """Yield the rows of a Parquet file, of which only the named columns are read.

    Raises:
        ValueError: no Parquet file, damaged, or a required column is missing.
    """
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        file = pyarrow.parquet.ParquetFile(handle)
        names = pick_columns(path, file.schema_arrow.names, required, optional)
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=names):
            for values in plain_rows(batch):
                number += 1
                yield record(f"{path}, row", number, values)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"{path}: expected a Parquet file, could not read it after row {number}: {error}"
        ) from error


def pick_columns(
    place: str, found: Sequence[str], required: Sequence[Paths], optional: Sequence[Paths]
) -> list[str]:
    """Those of a table's columns in which the paths begin.

    Raises:
        ValueError: none of the paths of a required column begins in the table.
    """
    missing = [word for word in required if all(top_level(path, found) is None for path in as_paths(word))]
    if missing:
        raise ValueError(
            f"{place}: expected column {', '.join(map(repr, missing))}, found {', '.join(map(repr, found))}: "
            "set questions.preset or questions.columns"
        )
    names = (top_level(path, found) for word in [*required, *optional] for path in as_paths(word))
    return [name for name in dict.fromkeys(names) if name is not None]


def plain_rows(batch: Any) -> list[dict[str, Any]]:
    """The rows of an Arrow batch or table as Python values; numbers of 32 and 16 bits as they are written."""
    rows = batch.to_pylist()
    for field in batch.schema:
        shorten = _shortener(field.type)
        if shorten:
            for row in rows:
                row[field.name] = shorten(row[field.name])
    return rows


def _shortener(kind: Any) -> Callable[[Any], Any] | None:
    """What makes 0.1 of a float32's 0.10000000149011612 in a column of this type; None if it has no such
    numbers.
    """
    import numpy
    import pyarrow.types as types

    if types.is_float32(kind) or types.is_float16(kind):
        number = numpy.float32 if types.is_float32(kind) else numpy.float16
        return lambda value: None if value is None else float(str(number(value)))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = _shortener(kind.value_type)
        return inner and (lambda value: None if value is None else [inner(part) for part in value])
    if types.is_struct(kind):
        fields = {field.name: _shortener(field.type) for field in kind}
        if any(fields.values()):
            return lambda value: (
                None
                if value is None
                else {
                    name: shorten(value[name]) if (shorten := fields[name]) else value[name] for name in value
                }
            )
    return None
