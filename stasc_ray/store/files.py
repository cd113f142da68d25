"""Files of a run: written atomically; JSON and Parquet read whole, or an error that names the file and what
to do.
"""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the whole new one, also after a crash."""
    with replacing(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write in the block. It takes its place if the block ends well, whole, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")  # as short as it can be: names have a limit
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def move_into_place(built: Path, folder: Path) -> None:
    """Put a folder that was built beside its place there, in place of what an unfinished attempt left."""
    shutil.rmtree(folder, ignore_errors=True)
    built.rename(folder)


def read_json(path: Path, *fields: str) -> dict[str, Any]:
    """Raises ValueError where the file holds something else than an object with these fields."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also what is no UTF-8
        raise ValueError(
            f"{path}: expected JSON, found something else ({error}); restore it or delete its stage"
        ) from error
    if not isinstance(found, dict) or not set(fields) <= set(found):
        what = sorted(found) if isinstance(found, dict) else type(found).__name__
        raise ValueError(
            f"{path}: expected a JSON object with {', '.join(fields) or 'fields'}, found {what}; restore it "
            f"or delete its stage"
        )
    return found


def footer(file: str | Path) -> pq.FileMetaData:
    """A Parquet file's metadata.

    Raises:
        ValueError: it is cut short, or no Parquet file.
    """
    with whole(file):
        return pq.read_metadata(file)


def names(file: str | Path) -> list[str]:
    """A Parquet file's columns.

    Raises:
        ValueError: it is cut short, or no Parquet file.
    """
    with whole(file):
        return pq.read_schema(file).names


def read(file: str | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A committed file's rows; `columns` may be paths (`store.rows.text_columns`).

    Raises:
        ValueError: it is cut short, or no Parquet file.
    """
    with whole(file), pq.ParquetFile(file) as parquet:  # read_table knows no paths into lists of structs
        return parquet.read(columns=None if columns is None else list(columns))


@contextlib.contextmanager
def named(file: str | Path) -> Iterator[None]:
    """Say in which file it is, what a ValueError says about a row."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


@contextlib.contextmanager
def whole(file: str | Path) -> Iterator[None]:
    """Say which file is cut short or garbage, and what to do. What the file system says goes on as it is."""
    try:
        yield
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{file}: expected a whole Parquet file, found one that cannot be read ({error}). A run's: "
            f"delete "
            "_COMMITTED.json beside it, and the same command makes the file again; your own: restore it"
        ) from error
