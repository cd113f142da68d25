"""Example files, a run's and a user's own, become rows or an error that says what is wrong with which file."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stasc_ray.learning import examples

MESSAGES = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]


def read(*files: Path) -> list[dict]:
    tables = examples._read(pa.table({"file": [str(file) for file in files]}))
    return [row for table in tables for row in table.to_pylist()]


def test_files_of_several_row_groups_with_columns_of_their_own_are_read(tmp_path: Path) -> None:
    rows = [{"id": number, "messages": MESSAGES, "kept": True} for number in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=2)
    pq.write_table(pa.Table.from_pylist([], schema=examples.EXAMPLE_SCHEMA), tmp_path / "empty.parquet")
    found = read(tmp_path / "a.parquet", tmp_path / "empty.parquet")
    assert found == [{"id": str(number), "messages": MESSAGES} for number in range(5)]


def test_a_file_without_the_columns_or_cut_short_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ["x"], "text": ["y"]}), file)
    with pytest.raises(
        ValueError, match=r"a\.parquet: expected the columns id and messages, found no messages"
    ):
        read(file)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"a\.parquet: expected a whole Parquet file"):
        read(file)
