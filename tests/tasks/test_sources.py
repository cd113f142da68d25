"""Sources: every way to name files gives the same questions; damaged, missing and foreign files are named;
the Hub."""

import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from stasc_ray.config import Questions
from stasc_ray.tasks.questions import LoadedQuestions, load_questions

ROOT = Path(__file__).resolve().parents[2]


def write_lines(path: Path, rows: list[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def plain(*names: str) -> list[dict[str, Any]]:
    return [{"question": f"What is {name}?", "answers": [name]} for name in names]


def numbers(first: int, last: int) -> list[dict[str, Any]]:
    return plain(*map(str, range(first, last)))


def load_test(source: str, seed: int = 0, **fields: Any) -> LoadedQuestions:
    """All questions of one source, as the test split alone."""
    return load_questions(
        Questions.model_validate({"test": {"source": source}, **fields}), seed, splits=("test",)
    )


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def questions_of(loaded: LoadedQuestions) -> list[str]:
    return sorted(row["question"] for row in loaded.rows)


def test_every_source_gives_the_same_questions(tmp_path: Path) -> None:
    expected = sorted(row["question"] for row in numbers(0, 9))
    whole = write_lines(tmp_path / "whole.jsonl", numbers(0, 9))
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(Path(whole).read_bytes()))
    write_lines(tmp_path / "folder" / "a.jsonl", numbers(0, 3))
    write_lines(tmp_path / "folder" / "deeper" / "b.json", numbers(3, 6))
    write_parquet(tmp_path / "folder" / "c.parquet", numbers(6, 9))
    for ignored in ("README.md", "_SUCCESS", ".hidden.jsonl", "_temporary/d.jsonl"):
        write_lines(tmp_path / "folder" / ignored, ["not a row"])
    for source in (
        whole,
        str(packed),
        Path(whole).as_uri(),
        f"{tmp_path}/whole*",
        str(tmp_path / "folder"),
        f"{tmp_path}/fold*",
        write_parquet(tmp_path / "whole.parquet", numbers(0, 9)),
    ):
        assert questions_of(load_test(source)) == expected, source


def test_fsspec_url(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    source = write_lines(tmp_path / "a.jsonl", numbers(0, 4))
    memory.pipe("/questions_url/a.jsonl", Path(source).read_bytes())
    try:
        for url in (
            "memory://questions_url/a.jsonl",
            "memory://questions_url",
            "memory://questions_url/*.jsonl",
        ):
            assert len(load_test(url).rows) == 4
        with pytest.raises(FileNotFoundError, match=r"found nothing at memory://questions_url/b.jsonl"):
            load_test("memory://questions_url/b.jsonl")
    finally:
        memory.rm("/questions_url", recursive=True)


def test_parquet_reads_only_what_it_needs_and_numbers_its_rows(tmp_path: Path) -> None:
    rows = [{"problem": f"p{i}", "answer": float(i), "unique_id": f"u{i}", "big": b"\xff"} for i in range(3)]
    rows[2]["problem"] = None
    source = write_parquet(tmp_path / "math.parquet", rows)
    with pytest.raises(ValueError, match=r"math.parquet, row 3: no question"):
        load_test(source, preset="math500")
    loaded = load_test(source, preset="math500", on_bad_row="skip")
    assert sorted((row["id"], row["answers"][0]) for row in loaded.rows) == [("u0", "0"), ("u1", "1")]


def test_parquet_without_a_needed_column(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "rows.parquet", [{"query": "q", "answers": "a"}])
    with pytest.raises(
        ValueError, match=r"rows.parquet: expected column 'question', found 'query', 'answers'"
    ):
        load_test(source, on_bad_row="skip")


@pytest.mark.parametrize("name", ["broken.parquet", "broken.jsonl.gz"])
def test_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    good = Path(write_parquet(tmp_path / "good.parquet", numbers(0, 50))).read_bytes()
    if name.endswith("gz"):
        good = gzip.compress(json.dumps({"question": "q", "answers": "a"}).encode() * 50)
    (tmp_path / name).write_bytes(good[: len(good) // 2])
    with pytest.raises(ValueError, match=name):
        load_test(str(tmp_path / name), on_bad_row="skip")


@pytest.mark.parametrize(
    "source", ["missing.jsonl", "./missing", "/nowhere/missing", "a/b/c", "missing*.jsonl", "x.parquet"]
)
def test_missing_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="found no"):
        load_test(source)


def test_file_of_an_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected JSON lines .* or Parquet .*, found .*rows.csv"):
        load_test(write_lines(tmp_path / "rows.csv", ["question,answers"]))


HUB_SCRIPT = """
import json, os, pathlib, sys
home = pathlib.Path(sys.argv[1])
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_CACHE=str(home / "cache"), HF_HOME=str(home))
import datasets
datasets.load_dataset(str(home / "name"))  # leaves in the cache what a download would, under the name of the folder ...
(home / "cache" / "name").rename(home / "cache" / "owner___name")  # ... and now under that of a Hub id
from stasc_ray.config import Questions
from stasc_ray.tasks.questions import load_questions
hub = {"preset": "commonsense_qa", "columns": {"answers": "answerKey"}, "on_bad_row": "skip"}
train = {"source": "owner/name", "split": "train"}
loaded = load_questions(Questions(**hub, train=train, dev={"limit": 2}, test={"split": "validation"}), 0)
problems = []
for wrong in ({"source": "owner/name", "split": "dev"}, {"source": "owner/absent"}):
    try:
        load_questions(Questions(**hub, test=wrong), 0, splits=("test",))
    except (FileNotFoundError, ValueError) as error:
        problems.append(f"{type(error).__name__} {error}")
every = load_questions(Questions(**hub, test={"source": "owner/name"}), 0, splits=("test",))
print(json.dumps([loaded.rows, loaded.bad_row_examples, len(every.rows), problems]))
"""


@pytest.mark.slow
def test_hub_dataset_from_the_offline_cache(tmp_path: Path) -> None:
    def row(name: str, key: str) -> dict[str, Any]:
        choices = {"label": ["A", "B"], "text": [f"{name} one", f"{name} two"]}
        return {
            "id": name,
            "question": f"Which {name}?",
            "question_concept": "x",
            "choices": choices,
            "answerKey": key,
        }

    write_parquet(tmp_path / "name" / "train.parquet", [row(f"t{i}", "AB"[i % 2]) for i in range(6)])
    write_parquet(tmp_path / "name" / "validation.parquet", [row("v0", "B"), row("v1", "")])
    result = subprocess.run(
        [sys.executable, "-c", HUB_SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    rows, bad, every, problems = json.loads(result.stdout.splitlines()[-1])
    assert Counter(row["split"] for row in rows) == {"train": 4, "dev": 2, "test": 1}
    assert [row["answers"] for row in rows if row["id"] == "v0"] == [["B"]]
    assert bad[0].startswith("owner/name [validation], row 2: no answer") and every == 7
    assert problems[0].startswith("ValueError") and "train" in problems[0]
    assert problems[1].startswith("FileNotFoundError questions: 'owner/absent' is no path here")


def test_hub_id_without_datasets_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "datasets.py").write_text("raise ImportError('not installed')\n")
    script = "import stasc_ray.tasks.sources as s; list(s.records('owner/name', ['q'], [], [None], None))"
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert "pip install 'stasc-ray[hub]'" in result.stderr
