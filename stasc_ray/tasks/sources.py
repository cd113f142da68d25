"""Where raw question rows come from: JSON, CSV and Parquet files through fsspec, and datasets of the Hugging
Face Hub.

Reads files, folders, globs, fsspec URLs and Hub ids; writes nothing. What the columns mean is decided in
`canonical`.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from stasc_ray.tasks.loading.columns import Paths
from stasc_ray.tasks.loading.json_rows import json_rows
from stasc_ray.tasks.loading.opened import COMPRESSION_SUFFIXES, opened
from stasc_ray.tasks.loading.record import SPLIT_COLUMN, Record
from stasc_ray.tasks.loading.table_rows import BATCH_ROWS, csv_rows, parquet_rows, pick_columns, plain_rows

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
CSV_SUFFIXES = (".csv", ".tsv")
PARQUET_SUFFIXES = (".parquet", ".pq")
NO_DATA = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")
"""Files that `datasets` puts beside data."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def records(
    source: str,
    required: Sequence[Paths],
    optional: Sequence[Paths],
    labels: Collection[str | None],
    hub_config: str | None,
    rows: str | None = None,
) -> Iterator[Record]:
    """Yield the rows of a source, file by file in the order of their names.

    Args:
        source: file, folder, glob, fsspec URL or Hub dataset id.
        required: columns that a table must have, the question first, of several paths at least one; the
            caller checks JSON row by row.
        optional: further columns to read if they exist; of Parquet and the Hub no others are loaded.
        labels: splits to load from a Hub dataset, None for all of them; files always give every row.
        hub_config: configuration name of a Hub dataset.
        rows: path of the rows inside the objects of JSON files.

    Raises:
        FileNotFoundError: nothing at `source`.
        ValueError: a file that is not what its name says, is damaged, or lacks a required column.
        ImportError: a Hub id without the `datasets` package, or a URL without its fsspec driver.
    """
    found = _find_files(source)
    if found is None:
        yield from hub_records(source, required, optional, labels, hub_config)
        return
    filesystem, paths = found
    for path in paths:
        suffix, compression = _data_suffix(path)
        with opened(filesystem, path, suffix, compression) as handle:
            if suffix in JSON_SUFFIXES:
                yield from json_rows(handle, path, required[0], rows)
            elif suffix in CSV_SUFFIXES:
                yield from csv_rows(handle, path, suffix == ".tsv", required)
            else:
                yield from parquet_rows(handle, path, required, [*optional, SPLIT_COLUMN])


def _find_files(source: str) -> tuple[Any, list[str]] | None:
    """The file system and the sorted data files of `source`; None when it must be a Hub id."""
    from fsspec.core import url_to_fs

    filesystem, path = url_to_fs(source)
    if filesystem.isfile(path):
        if not _data_suffix(path)[0]:
            raise ValueError(f"questions: expected {_expected_files()}, found {source}")
        return filesystem, [path]
    if filesystem.isdir(path):
        paths = _files_under(filesystem, path)
    elif any(sign in source for sign in "*?["):
        matches = filesystem.glob(path, detail=True)
        folders = [
            _files_under(filesystem, name) for name, info in matches.items() if info["type"] == "directory"
        ]
        paths = [name for name, info in matches.items() if info["type"] == "file" and _is_data(name)]
        paths = sorted({*paths, *(name for names in folders for name in names)})
    elif HUB_ID.fullmatch(source) and not _data_suffix(source)[0]:
        return None
    else:
        raise FileNotFoundError(
            f"questions: expected a file, folder or glob, found nothing at {source} (read as {path})"
        )
    if not paths:
        arrow = any(name.endswith(".arrow") for name in filesystem.find(path))
        advice = ": it holds Arrow files of `datasets`, write them with `to_parquet`" if arrow else ""
        raise FileNotFoundError(f"questions: expected {_expected_files()} in {source}, found none{advice}")
    return filesystem, paths


def _files_under(filesystem: Any, folder: str) -> list[str]:
    """Data files in a folder and below it, without hidden ones and markers such as `_SUCCESS`."""
    paths = []
    for path in filesystem.find(folder):
        parts = PurePosixPath(path[len(folder) :]).parts
        if _is_data(path) and not any(part.startswith((".", "_")) for part in parts):
            paths.append(path)
    return sorted(paths)


def _data_suffix(path: str) -> tuple[str, str | None]:
    """`.jsonl` and `gzip` of `a.jsonl.gz` and of `https://host/a.jsonl.gz?download=true`; an empty suffix if
    it is no data file's.
    """
    pure = PurePosixPath(path.partition("?")[0].lower())
    compression = COMPRESSION_SUFFIXES.get(pure.suffix)
    suffix = PurePosixPath(pure.stem).suffix if compression else pure.suffix
    if suffix in JSON_SUFFIXES + CSV_SUFFIXES or (suffix in PARQUET_SUFFIXES and not compression):
        return suffix, compression
    return "", compression


def _is_data(path: str) -> bool:
    return bool(_data_suffix(path)[0]) and PurePosixPath(path).name not in NO_DATA


def _expected_files() -> str:
    texts, packed = ", ".join(JSON_SUFFIXES + CSV_SUFFIXES), ", ".join(COMPRESSION_SUFFIXES)
    parquet = ", ".join(PARQUET_SUFFIXES)
    return f"JSON lines, JSON, CSV ({texts}, also with {packed}) or Parquet ({parquet}) files"


def hub_records(
    source: str,
    required: Sequence[Paths],
    optional: Sequence[Paths],
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
        names = pick_columns(f"{source} [{label}]", dataset.column_names, required, optional)
        number = 0
        for batch in dataset.select_columns(names).with_format("arrow").iter(BATCH_ROWS):
            for values in plain_rows(batch):
                number += 1
                yield Record(f"{source} [{label}], row", number, str(label), values)
