"""Example files, a run's and a user's own, become rows or an error that says what is wrong with which
file."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from harness.traces import answered, row, settings

from stasc_ray.learning import examples
from stasc_ray.store.rows import trace_schema

MESSAGES = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]
NOTHING = {"train": None, "pieces": None}


def read(*files: Path) -> list[dict]:
    tables = examples._read(pa.table({"file": [str(file) for file in files]}))
    return [row for table in tables for row in table.to_pylist()]


def test_files_of_several_row_groups_with_columns_of_their_own_are_read(tmp_path: Path) -> None:
    rows = [{"id": number, "messages": MESSAGES, "kept": True} for number in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=2)
    pq.write_table(pa.Table.from_pylist([], schema=examples.EXAMPLE_SCHEMA), tmp_path / "empty.parquet")
    found = read(tmp_path / "a.parquet", tmp_path / "empty.parquet")
    messages = [message | NOTHING for message in MESSAGES]
    alone = {"class": "", "messages": messages, "rejected": None, "weight": None}
    assert found == [{"id": str(number), **alone} for number in range(5)]


def settings_of(*overrides: str):
    return settings("prompts.preset=sandbox", *overrides)


def selected(folder: Path, rows: list[dict], given, iteration: int = 1) -> tuple[dict, list[dict]]:
    """What `write_examples` does without Ray: counts of a trace file, and the examples that it gives."""
    file, job = folder / "train-000000.parquet", examples.Selecting(given, iteration)
    pq.write_table(pa.Table.from_pylist(rows, schema=trace_schema()), file)
    (folder / "examples").mkdir(exist_ok=True)
    counts = json.loads(examples._count({"file": str(file)}, job)["counts"])
    counts |= json.loads(examples._write({"file": str(file)}, job, {}, str(folder / "examples"))["counts"])
    written = folder / "examples" / file.name
    return counts, read(written) if written.exists() else []


def test_what_a_recipe_keeps_comes_back_with_the_generated_ids(tmp_path: Path) -> None:
    rows = [
        row(answered([0, 1], [[0, 1], [1, 1]]), id="q1"),
        row(answered([0], [[0]]), id="q2"),
        row([], id="q3", error="the prompt is too long"),
    ]
    given = settings_of(
        "algorithm.filter=non_decreasing", "algorithm.n_initial=2", "algorithm.n_corrections=2"
    )
    counts, found = selected(tmp_path, rows, given)
    assert [(one["id"], one["messages"][-1]["pieces"]) for one in found] == [
        (f"q1/{place}", [{"text": text, "token_ids": [3, 2], "train": True, "cut": False}])
        for place, text in (("0/1", "a0c1"), ("1/2", "a1c0"), ("1/3", "a1c1"))
    ]
    assert (counts["kept"], counts["questions_with_examples"], counts["attempts"]) == (3, 1, 5)
    assert [counts[name] for name in ("c_to_c", "c_to_i", "i_to_c", "i_to_i")] == [2, 0, 1, 2]
    assert (counts["kept_c_to_c"], counts["kept_i_to_c"]) == (2, 1)
    (file,) = (tmp_path / "examples").glob("*.parquet")
    assert pq.read_schema(file).names == ["id", "class", "messages", "rejected", "weight"]
    assert pq.read_table(file)["class"].to_pylist() == ["i->c", "c->c", "c->c"]


def test_a_recipe_that_ranks_by_likelihood_reads_it_from_the_trace(tmp_path: Path) -> None:
    texts = answered([1, 0, 1])
    for text, logprob in zip(texts, (-3.0, -1.0, -2.0), strict=True):
        text.logprob = logprob
    _, found = selected(tmp_path, [row(texts)], settings_of("algorithm.recipe=sharpening"))
    assert [one["id"] for one in found] == ["q1/1"]


def test_pieces_that_no_model_wrote_come_back_without_ids(tmp_path: Path) -> None:
    texts = answered([0, 1], answers=["1\n2\n=3", "1\n=2"])
    given = settings(algorithm={"recipe": "splice", "learn_answers": "none"})
    (example,) = selected(tmp_path, [row(texts)], given)[1]
    pieces = example["messages"][-1]["pieces"]
    assert [(piece["text"][:2], piece["token_ids"], piece["train"]) for piece in pieces] == [
        ("1\n", None, True),
        ("2\n", None, False),
        ("Wa", None, True),
    ]


def test_a_trace_that_the_grader_failed_on_is_not_learnt(tmp_path: Path) -> None:
    """Its 0 stands for "unknown": a correction of it must not look like an improvement."""
    texts = answered([0], [[1]])
    texts[0].grader_error = "timeout"
    counts, found = selected(tmp_path, [row(texts)], settings_of())
    assert found == [] and counts["kept"] == counts["attempts"] == 0


def test_the_plan_of_selection_is_that_of_the_model_that_wrote_the_traces(tmp_path: Path) -> None:
    """Verdicts are constructed for what M0 wrote; afterwards the sampled ones count."""
    given = settings_of(
        "algorithm.recipe=verdict", "algorithm.verdicts=constructed", "algorithm.n_verdicts=1"
    )
    rows = [row(answered([0]))]
    (one,) = selected(tmp_path, rows, given, iteration=1)[1]
    assert one["messages"][-1] == {
        "role": "assistant",
        "content": "My answer is wrong.",
        "train": True,
        "pieces": None,
    }
    (tmp_path / "examples" / "train-000000.parquet").unlink()
    assert selected(tmp_path, rows, given, iteration=2)[1] == []


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
