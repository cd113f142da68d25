"""Parquet files of a run: read whole, or an error that names the file and what to do."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def footer(file: str | Path) -> pq.FileMetaData:
    """A Parquet file's metadata.

    Raises:
        ValueError: it is cut short, or no Parquet file.
    """
    with whole(file):
        return pq.read_metadata(file)


def read(file: str | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A committed file's rows.

    Raises:
        ValueError: it is cut short, or no Parquet file.
    """
    with whole(file):
        return pq.read_table(file, columns=columns)


@contextlib.contextmanager
def whole(file: str | Path) -> Iterator[None]:
    """Say which file is cut short or garbage, and what to do. What the file system says goes on as it is."""
    try:
        yield
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{file}: expected a whole Parquet file, found one that cannot be read ({error}). A run's: delete "
            "_COMMITTED.json beside it, and the same command makes the file again; your own: restore it"
        ) from error
