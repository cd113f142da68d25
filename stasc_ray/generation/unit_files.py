"""Units of work and the files that hold them: questions cut into row groups, and one trace file per unit.

A unit's traces go to one Parquet file named after the unit, renamed into place when it is whole. If a unit is
done again, because an actor, a node or the driver died, it replaces its file. So each question has exactly
one trace, and a resume runs only what is missing.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stasc_ray.store import files
from stasc_ray.store.rows import QUESTION_SCHEMA, TEXTS

Row = dict[str, Any]

MAX_UNITS = 4096
"""Of one split: a larger one gets larger units, since a unit costs the driver 21 kB and 17 ms, and its reader
a look at the footer of all units (docs/scaling.md)."""


@dataclass(frozen=True)
class Unit:
    """One piece of work: which rows to read, and the name of the file that its traces go to."""

    name: str
    source: str
    row_group: int | None
    """Row group of a questions file; None reads a whole file of M0's traces, whose first answers are
    given."""


def write_questions(rows: Sequence[Row], file: Path, unit_size: int) -> None:
    """Write one split's questions with one row group per unit of work: `unit_size` questions, or more if
    MAX_UNITS asks for it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    unit_size = max(unit_size, math.ceil(len(rows) / MAX_UNITS))
    with pq.ParquetWriter(file, QUESTION_SCHEMA) as writer:
        for first in range(0, len(rows), unit_size):
            writer.write_table(
                pa.Table.from_pylist(list(rows[first : first + unit_size]), schema=QUESTION_SCHEMA)
            )


def question_units(file: Path, split: str) -> list[Unit]:
    """The units of a questions file."""
    groups = files.footer(file).num_row_groups
    return [Unit(f"{split}-{group:06d}", str(file), group) for group in range(groups)]


def given_units(traces: Iterable[Path], split: str) -> list[Unit]:
    """The same units with M0's first answers (Fixed initialization), from the files of its finished pass."""
    return [Unit(Path(file).stem, file, None) for file in of_split(traces, split)]


def of_split(traces: Iterable[Path], split: str) -> list[str]:
    """Those of a finished pass's files that hold a split's traces."""
    return [str(file) for file in traces if file.match(f"{split}-[0-9]*.parquet")]


def written(destination: Path, units: Sequence[Unit]) -> list[Unit]:
    """The units whose file is there and whole. One cut short (a disk that lost power) is removed and done
    again.
    """
    found = []
    for unit in units:
        file = destination / f"{unit.name}.parquet"
        if file.exists():
            try:
                pq.read_metadata(file)  # the footer is written last
            except pa.ArrowInvalid:
                file.unlink()
            else:
                found.append(unit)
    return found


def read_unit(batch: pa.Table) -> pa.Table:
    """The rows of one unit, with `unit`, its name, beside them, in one row (see `as_one_row`).

    Rows of a trace file keep their first answers in `texts`; rows of a questions file have none.
    """
    (unit,) = batch.to_pylist()
    with files.whole(unit["source"]):
        file = pq.ParquetFile(unit["source"])
        table = file.read() if unit["row_group"] is None else file.read_row_group(unit["row_group"])
    if unit["row_group"] is None:
        first = [[text for text in texts if text["parent"] < 0] for texts in table["texts"].to_pylist()]
        table = table.drop_columns(["texts", "error"])
    else:
        first = [[]] * len(table)
    table = table.append_column("texts", pa.array(first, TEXTS))
    return as_one_row(table.append_column("unit", pa.repeat(unit["name"], len(table))))


def as_one_row(table: pa.Table) -> pa.Table:
    """A whole table as the bytes of one row, which Ray Data neither cuts nor joins with another."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return pa.table({"table": pa.array([sink.getvalue().to_pybytes()], pa.large_binary())})


def from_one_row(batch: pa.Table) -> pa.Table:
    """The table that `as_one_row` took."""
    (data,) = batch["table"]
    return pa.ipc.open_stream(data.as_buffer()).read_all()
