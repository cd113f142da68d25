"""Units of work and the files that hold them: questions cut into row groups, and one rollout file per unit.

A unit's rollouts go to one Parquet file named after the unit, renamed into place when it is whole. So a unit that is done again,
because an actor, a node or the driver died, replaces its file: each question has exactly one rollout, and a resume runs only what
is missing.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stasc_ray.store import files

Row = dict[str, Any]
STRINGS, NUMBERS, COUNTS = pa.list_(pa.string()), pa.list_(pa.float64()), pa.list_(pa.int64())

QUESTION_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "question": pa.string(),
        "answers": STRINGS,
        "split": pa.string(),
        "documents": STRINGS,
        "choices": STRINGS,
    }
)
"""One question. Choice questions: `answers` holds the letter."""

ROLLOUT_SCHEMA = pa.schema(
    [
        *QUESTION_SCHEMA,
        ("initial_from", pa.string()),  # base | current: who wrote the initial answers
        ("model_version", pa.string()),  # base, iteration_01, ...: who wrote the corrections
        ("initial", STRINGS),  # (N_init,) initial answers as generated
        ("initial_finish", STRINGS),  # (N_init,) stop | length
        ("initial_tokens", COUNTS),  # (N_init,)
        ("initial_rewards", NUMBERS),  # (N_init,) in [0, 1]
        ("corrections", pa.list_(STRINGS)),  # (N_init, N_corr) corrections as generated
        ("correction_finish", pa.list_(STRINGS)),
        ("correction_tokens", pa.list_(COUNTS)),
        ("correction_rewards", pa.list_(NUMBERS)),
        ("prompt_tokens", pa.int64()),  # over all prompts of the row
        ("grader_errors", STRINGS),  # a grader's failures; each counts as reward 0
        ("error", pa.string()),  # why the row has no (whole) rollout; null when it has
    ]
)
"""One rollout: a question, its initial answers, their corrections and the rewards."""


MAX_UNITS = 4096
"""Of one split: a larger one gets larger units, since a unit costs the driver 21 kB and 17 ms, and its reader a look at the footer
of all units (docs/scaling.md)."""


@dataclass(frozen=True)
class Unit:
    """One piece of work: which rows to read, and the name of the file that its rollouts go to."""

    name: str
    source: str
    row_group: int | None
    """Row group of a questions file; None reads the whole file, whose rows bring their initial answers."""
    initial_from: str


def write_questions(rows: Sequence[Row], file: Path, unit_size: int) -> None:
    """Write one split's questions with one row group per unit of work: `unit_size` questions, or more if MAX_UNITS asks for it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unit_size = max(unit_size, math.ceil(len(rows) / MAX_UNITS))
    with pq.ParquetWriter(file, QUESTION_SCHEMA) as writer:
        for first in range(0, len(rows), unit_size):
            writer.write_table(
                pa.Table.from_pylist(list(rows[first : first + unit_size]), schema=QUESTION_SCHEMA)
            )


def question_units(file: Path, split: str) -> list[Unit]:
    """The units of a questions file; the current model writes the initial answers."""
    groups = files.footer(file).num_row_groups
    return [Unit(f"{split}-{group:06d}", str(file), group, "current") for group in range(groups)]


def given_units(files: Iterable[Path], split: str) -> list[Unit]:
    """Units that correct the initial answers of M0's rollouts (Fixed initialization)."""
    numbered = [(Path(file).stem.rpartition("-")[2], file) for file in of_split(files, split)]
    return [Unit(f"{split}-fixed-{number}", file, None, "base") for number, file in numbered]


def of_split(files: Iterable[Path], split: str, initial_from: str = "current") -> list[str]:
    """Those of a finished pass's files that hold a split's rollouts, of its own initial answers or of M0's."""
    pattern = f"{split}-fixed-[0-9]*.parquet" if initial_from == "base" else f"{split}-[0-9]*.parquet"
    return [str(file) for file in files if file.match(pattern)]


def written(destination: Path, units: Sequence[Unit]) -> list[Unit]:
    """The units whose file is there and whole. One cut short (a disk that lost power) is removed and done again."""
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
    """The rows of one unit, with the unit's name and `initial_from` beside them, in one row (see `as_one_row`)."""
    (unit,) = batch.to_pylist()
    with files.whole(unit["source"]):
        file = pq.ParquetFile(unit["source"])
        table = file.read() if unit["row_group"] is None else file.read_row_group(unit["row_group"])
    columns = [
        *QUESTION_SCHEMA.names,
        *(["initial", "initial_finish", "initial_tokens"] if unit["row_group"] is None else []),
    ]
    table = table.select(columns).append_column("unit", pa.repeat(unit["name"], len(table)))
    return as_one_row(table.append_column("initial_from", pa.repeat(unit["initial_from"], len(table))))


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
