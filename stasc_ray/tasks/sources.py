"""Where raw question rows come from: JSONL and Parquet through fsspec, and datasets of the Hugging Face Hub.

Reads files, folders, globs, fsspec URLs and Hub ids; writes nothing. What the columns mean is decided in
`questions`.
"""

import json
import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from stasc_ray.tasks.columns import Paths, as_paths, top_level

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
PARQUET_SUFFIXES = (".parquet", ".pq")
COMPRESSION_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
SPLIT_COLUMN = "split"


class Record(NamedTuple):
    """One raw row, or the reason why a row could not be read."""

    place: str
    """File and 1-based line or row number, for messages."""
    label: str | None
    """Split of a Hub dataset, or the value of the file's `split` column; None without one."""
    values: Mapping[str, Any]
    """Column name to value; empty when the row could not be read."""
    problem: str | None = None
    """Why the row could not be read."""


def records(
    source: str,
    required: Sequence[Paths],
    optional: Sequence[str],
    labels: Collection[str | None],
    hub_config: str | None,
) -> Iterator[Record]:
    """Yield the rows of a source, file by file in the order of their names.

    Args:
        source: file, folder, glob, fsspec URL or Hub dataset id.
        required: columns that a Parquet file or Hub dataset must have, of several paths at least one; the
            caller checks JSONL row by row.
        optional: further columns to read where they exist; all others are never loaded.
        labels: splits to load from a Hub dataset, None for all of them; files always give every row.
        hub_config: configuration name of a Hub dataset.

    Raises:
        FileNotFoundError: nothing at `source`.
        ValueError: a file that is neither JSONL nor Parquet, is damaged, or lacks a required column.
        ImportError: a Hub id without the `datasets` package, or a URL without its fsspec driver.
    """
    found = _find_files(source)
    if found is None:
        yield from hub_records(source, required, optional, labels, hub_config)
        return
    filesystem, paths = found
    for path in paths:
        read = _json_records if _data_suffix(path) in JSON_SUFFIXES else _parquet_records
        yield from read(filesystem, path, required, [*optional, SPLIT_COLUMN])


def _find_files(source: str) -> tuple[Any, list[str]] | None:
    """The file system and the sorted data files of `source`; None when it must be a Hub id."""
    from fsspec.core import url_to_fs

    filesystem, path = url_to_fs(source)
    if filesystem.isfile(path):
        if _data_suffix(path) is None:
            raise ValueError(f"questions: expected {_expected_files()}, found {source}")
        return filesystem, [path]
    if filesystem.isdir(path):
        paths = _files_under(filesystem, path)
    elif any(sign in source for sign in "*?["):
        matches = filesystem.glob(path, detail=True)
        folders = [
            _files_under(filesystem, name) for name, info in matches.items() if info["type"] == "directory"
        ]
        paths = [name for name, info in matches.items() if info["type"] == "file" and _data_suffix(name)]
        paths = sorted({*paths, *(name for names in folders for name in names)})
    elif HUB_ID.fullmatch(source) and _data_suffix(source) is None:
        return None
    else:
        raise FileNotFoundError(
            f"questions: expected a file, folder or glob, found nothing at {source} (read as {path})"
        )
    if not paths:
        raise FileNotFoundError(f"questions: expected {_expected_files()} in {source}, found none")
    return filesystem, paths


def _files_under(filesystem: Any, folder: str) -> list[str]:
    """Data files in a folder and below it, without hidden ones and markers such as `_SUCCESS`."""
    paths = []
    for path in filesystem.find(folder):
        parts = PurePosixPath(path[len(folder) :]).parts
        if _data_suffix(path) and not any(part.startswith((".", "_")) for part in parts):
            paths.append(path)
    return sorted(paths)


def _data_suffix(path: str) -> str | None:
    """`.jsonl` of `a.jsonl.gz` and of `https://host/a.jsonl?download=true`; None when it is no data file's
    suffix.
    """
    pure = PurePosixPath(path.partition("?")[0].lower())
    suffix = PurePosixPath(pure.stem).suffix if pure.suffix in COMPRESSION_SUFFIXES else pure.suffix
    if suffix in JSON_SUFFIXES or (pure.suffix in PARQUET_SUFFIXES):
        return suffix
    return None


def _expected_files() -> str:
    json_lines, parquet = ", ".join(JSON_SUFFIXES), ", ".join(PARQUET_SUFFIXES)
    return f"JSON lines ({json_lines}, also compressed) or Parquet ({parquet}) files"


def _label(values: Mapping[str, Any]) -> str | None:
    value = values.get(SPLIT_COLUMN)
    return None if value is None else str(value)


def _json_records(
    filesystem: Any, path: str, required: Sequence[Paths], optional: Sequence[str]
) -> Iterator[Record]:
    number = 0
    try:
        with filesystem.open(path, "rb", compression="infer") as handle:
            for number, line in enumerate(handle, start=1):
                if line.strip():
                    yield _json_record(f"{path}, line {number}", line)
    except (EOFError, zlib.error) as error:
        raise ValueError(f"{path}: the compressed file is damaged after line {number}: {error}") from error


def _json_record(place: str, line: bytes) -> Record:
    try:  # bytes, line by line: one line with a broken encoding must not hide where it is
        values = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return Record(place, None, {}, f"unreadable: expected one JSON object per line in UTF-8: {error}")
    if not isinstance(values, dict):
        return Record(
            place, None, {}, f"unreadable: expected one JSON object per line, found a {type(values).__name__}"
        )
    return Record(place, _label(values), values)


def _parquet_records(
    filesystem: Any, path: str, required: Sequence[Paths], optional: Sequence[str]
) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    with filesystem.open(path, "rb") as handle:
        try:
            file = pyarrow.parquet.ParquetFile(handle)
            names = _pick_columns(path, file.schema_arrow.names, required, optional)
            for batch in file.iter_batches(batch_size=4096, columns=names):
                for values in batch.to_pylist():
                    number += 1
                    yield Record(f"{path}, row {number}", _label(values), values)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(
                f"{path}: expected a Parquet file, could not read it after row {number}: {error}"
            ) from error


def _pick_columns(
    place: str, found: Sequence[str], required: Sequence[Paths], optional: Sequence[str]
) -> list[str]:
    missing = [word for word in required if all(top_level(path, found) is None for path in as_paths(word))]
    if missing:
        raise ValueError(
            f"{place}: expected column {', '.join(map(repr, missing))}, found {', '.join(map(repr, found))}: "
            "set questions.preset or questions.columns"
        )
    names = (top_level(path, found) for word in [*required, *optional] for path in as_paths(word))
    return [name for name in dict.fromkeys(names) if name is not None]


def hub_records(
    source: str,
    required: Sequence[Paths],
    optional: Sequence[str],
    labels: Collection[str | None],
    hub_config: str | None,
) -> Iterator[Record]:
    """Yield the rows of a Hub dataset (or of whatever else `datasets.load_dataset` takes); arguments as in
    `records`.

    Raises:
        ImportError: `datasets` is not installed.
        FileNotFoundError: no such dataset, or no way to reach the Hub.
        ValueError: no such configuration or split, or a required column is missing.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"questions: found no file at {source!r}, and reading it as a Hub dataset needs `datasets`: "
            "pip install 'stasc-ray[hub]'"
        ) from error
    wanted = sorted(label for label in labels if label is not None)
    try:
        loaded: dict[Any, Any] = (
            dict(datasets.load_dataset(source, hub_config).items())
            if None in labels
            else {label: datasets.load_dataset(source, hub_config, split=label) for label in wanted}
        )
    except OSError as error:
        raise FileNotFoundError(
            f"questions: {source!r} is no path here and did not load as Hub dataset: {error}"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"questions: Hub dataset {source!r} (questions.hub_config = {hub_config!r}, "
            f"splits {', '.join(wanted) or 'all'}): {error}"
        ) from error
    for label, dataset in loaded.items():
        names = _pick_columns(f"{source} [{label}]", dataset.column_names, required, optional)
        for number, values in enumerate(dataset.select_columns(names), start=1):
            yield Record(f"{source} [{label}], row {number}", str(label), values)
