"""Questions from files of every shape: mapping, bad rows, splits without overlap, seeded choice, the real
data sets."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stasc_ray.config import Questions
from stasc_ray.tasks.questions import LoadedQuestions, load_questions

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


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


def only_row(tmp_path: Path, row: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return load_test(write_lines(tmp_path / "one.jsonl", [row]), **fields).rows[0]


def by_split(loaded: LoadedQuestions) -> dict[str, list[str]]:
    return {
        split: [row["id"] for row in loaded.rows if row["split"] == split]
        for split in ("train", "dev", "test")
    }


# --- columns


def test_ids_depend_on_content_only(tmp_path: Path) -> None:
    here = load_test(write_lines(tmp_path / "a.jsonl", plain("x", "y")))
    there = load_test(write_lines(tmp_path / "b" / "c.jsonl", plain("y", "z", "x")))
    ids = {row["question"]: row["id"] for row in there.rows}
    assert all(ids[row["question"]] == row["id"] for row in here.rows)
    other = only_row(tmp_path, {"question": "What is x?", "answers": ["other"]})
    assert other["id"] not in ids.values()


@pytest.mark.parametrize("field", ["id", "documents"])
def test_misspelt_optional_column_is_named(tmp_path: Path, field: str) -> None:
    with pytest.raises(ValueError, match=rf"questions.columns.{field}: expected column 'nmae'"):
        only_row(tmp_path, plain("x")[0], columns={field: "nmae"})


@pytest.mark.parametrize(
    ("pattern", "message"), [("a(", "not a regular expression"), ("a.*", "expected a group")]
)
def test_wrong_answer_pattern(tmp_path: Path, pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"questions.columns.answer_pattern: {message}"):
        only_row(tmp_path, plain("x")[0], columns={"answer_pattern": pattern})


@pytest.mark.parametrize("choices", [[], None])
def test_multiple_choice_needs_choices_in_every_row(tmp_path: Path, choices: Any) -> None:
    with pytest.raises(ValueError, match=r"one.jsonl, line 1: no choices"):
        only_row(tmp_path, {"question": "q", "choices": choices, "answer": 0}, preset="commonsense_qa")


# --- bad rows

BAD_LINES: list[tuple[Any, str]] = [
    ('{"question": "q"', "unreadable"),
    ('["q", "a"]', "unreadable.*found a list"),
    ({"answers": ["a"]}, "no question: expected text in column 'question', found only 'answers'"),
    ({"question": "  ", "answers": ["a"]}, "no question"),
    ({"question": "q"}, "no answer: .*'answers', found only 'question'"),
    ({"question": "q", "answers": []}, r"no answer.*found \[\]"),
    ({"question": "q", "answers": [" "]}, "no answer"),
    ({"question": "q", "answers": {"value": "a"}}, "column 'answers': expected text"),
    ({"question": ["q"], "answers": "a"}, "column 'question': expected text"),
    ('{"question": "half \\ud83d", "answers": "a"}', "column 'question': expected valid Unicode"),
    (
        {"id": "first", "question": "q", "answers": ["a"]},
        "repeated id: 'first' belongs to another question at .*line 1",
    ),
    ({"id": "first", "question": "What is it?", "answers": ["b"]}, "repeated id"),
]


@pytest.mark.parametrize(("bad", "message"), BAD_LINES)
def test_bad_row_fails_with_file_and_line_or_is_skipped_and_counted(
    tmp_path: Path, bad: Any, message: str
) -> None:
    good = [{"id": "first", "question": "What is it?", "answers": ["it"]}, *plain("x")]
    source = write_lines(tmp_path / "rows.jsonl", [good[0], "", bad, good[1]])
    with pytest.raises(ValueError, match=rf"rows.jsonl, line 3: {message}"):
        load_test(source)
    loaded = load_test(source, on_bad_row="skip")
    assert (len(loaded.rows), loaded.skipped_bad_rows, loaded.dropped_duplicates) == (2, 1, 0)
    assert "rows.jsonl, line 3: " in loaded.bad_row_examples[0]


def test_line_in_another_encoding_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"question": "q", "answers": "a"}\r\n{"question": "caf\xe9", "answers": "a"}\n'
    )
    with pytest.raises(ValueError, match=r"rows.jsonl, line 2: unreadable"):
        load_test(str(path))
    assert [row["question"] for row in load_test(str(path), on_bad_row="skip").rows] == ["q"]


def test_bad_line_of_a_file_that_serves_three_splits_counts_once(tmp_path: Path) -> None:
    rows = [
        {**row, "split": split}
        for row, split in zip(numbers(0, 6), ["train", "dev", "test"] * 2, strict=True)
    ]
    source = write_lines(tmp_path / "rows.jsonl", [*rows, "broken"])
    splits = {split: {"source": source, "split": split} for split in ("train", "dev", "test")}
    loaded = load_questions(Questions.model_validate({**splits, "on_bad_row": "skip"}), 0)
    assert (loaded.skipped_bad_rows, [len(ids) for ids in by_split(loaded).values()]) == (1, [2, 2, 2])


def test_wholly_repeated_row_is_a_duplicate_not_an_error(tmp_path: Path) -> None:
    row = {"id": 1, "question": "q", "answers": ["a"]}
    loaded = load_test(write_lines(tmp_path / "rows.jsonl", [row, row]))
    assert (len(loaded.rows), loaded.dropped_duplicates) == (1, 1)


def test_only_bad_rows_is_an_error_that_shows_one(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "rows.jsonl", [{"text": "q", "answers": "a"}])
    with pytest.raises(
        ValueError, match=r"found none \(1 bad rows; .*rows.jsonl, line 1: no question: .* found only 'text'"
    ):
        load_test(source, on_bad_row="skip")


# --- splits


def carved(source: str, seed: int = 0, **limits: int | None) -> LoadedQuestions:
    splits: dict[str, dict[str, Any]] = {split: {"limit": limit} for split, limit in limits.items()}
    splits["train"] = {"source": source, **splits.get("train", {})}
    return load_questions(Questions.model_validate(splits), seed)


def test_carved_splits_share_nothing_and_take_everything(tmp_path: Path) -> None:
    loaded = carved(write_lines(tmp_path / "rows.jsonl", numbers(0, 100)), dev=10, test=20)
    splits = by_split(loaded)
    assert {split: len(ids) for split, ids in splits.items()} == {"train": 70, "dev": 10, "test": 20}
    assert len({row["question"] for row in loaded.rows}) == len({row["id"] for row in loaded.rows}) == 100
    assert loaded.dropped_duplicates == 0


def test_choice_depends_on_seed_and_not_on_file_order(tmp_path: Path) -> None:
    rows = numbers(0, 60)
    forward = write_lines(tmp_path / "rows.jsonl", rows)
    backward = write_lines(tmp_path / "back.jsonl", rows[::-1])
    limits = {"train": 20, "dev": 10, "test": 10}
    assert carved(forward, **limits) == carved(backward, **limits)
    assert by_split(carved(forward, 1, **limits)) != by_split(carved(forward, 2, **limits))
    more = carved(write_lines(tmp_path / "more.jsonl", [*rows, *numbers(60, 63)]), **limits)
    kept = set(by_split(more)["test"]) & set(by_split(carved(forward, **limits))["test"])
    assert len(kept) >= 7  # new questions may enter, the others do not move


def test_which_duplicate_stays_does_not_depend_on_file_order(tmp_path: Path) -> None:
    rows = [{"question": "Who?", "answers": ["x"]}, {"question": "who?  ", "answers": ["y"]}]
    first, second = (load_test(write_lines(tmp_path / f"{n}.jsonl", rows[::n])) for n in (1, -1))
    assert first == second
    assert (len(first.rows), first.dropped_duplicates) == (1, 1)


def test_overlap_between_splits_stays_in_test_then_dev(tmp_path: Path) -> None:
    names = {"train": "abcdef", "dev": "ABx", "test": "ay"}
    sources = {
        split: {"source": write_lines(tmp_path / f"{split}.jsonl", plain(*letters))}
        for split, letters in names.items()
    }
    loaded = load_questions(Questions.model_validate(sources), 0)
    found = {split: {row["answers"][0] for row in loaded.rows if row["split"] == split} for split in names}
    assert found == {"train": set("cdef"), "dev": {"B", "x"}, "test": {"a", "y"}}
    assert loaded.dropped_duplicates == 3  # a twice (dev, train), b once (train)


def test_limit_is_filled_from_what_does_not_overlap(tmp_path: Path) -> None:
    train = write_lines(tmp_path / "train.jsonl", numbers(0, 30))
    test = write_lines(tmp_path / "test.jsonl", numbers(0, 10))
    questions = {"train": {"source": train, "limit": 20}, "dev": {"limit": 5}, "test": {"source": test}}
    loaded = load_questions(Questions.model_validate(questions), 0)
    assert [len(ids) for ids in by_split(loaded).values()] == [15, 5, 10]
    assert loaded.dropped_duplicates == 10 + 10  # ten each for dev and train


def test_same_id_for_different_questions_gets_the_split_in_front(tmp_path: Path) -> None:
    def counted(*names: str) -> list[dict[str, Any]]:
        return [{"id": number, **row} for number, row in enumerate(plain(*names))]

    train = write_lines(tmp_path / "train.jsonl", counted("a", "b", "c"))
    test = write_lines(tmp_path / "test.jsonl", counted("x", "b"))
    questions = {"train": {"source": train}, "dev": {"limit": 1}, "test": {"source": test}}
    loaded = load_questions(Questions.model_validate(questions), 0)
    ids = {row["question"]: row["id"] for row in loaded.rows}
    assert ids["What is x?"] == "test/0" and ids["What is a?"] in ("train/0", "dev/0")
    assert ids["What is b?"] == "1" and ids["What is c?"] == "2"


def test_split_column_and_other_split_of_the_source_of_train(tmp_path: Path) -> None:
    rows = [
        {**row, "split": "validation" if number < 5 else "train"} for number, row in enumerate(numbers(0, 20))
    ]
    source = write_lines(tmp_path / "rows.jsonl", rows)
    questions = {
        "train": {"source": source, "split": "train"},
        "dev": {"limit": 3},
        "test": {"split": "validation"},
    }
    loaded = load_questions(Questions.model_validate(questions), 0)
    assert [len(ids) for ids in by_split(loaded).values()] == [12, 3, 5]
    assert {row["answers"][0] for row in loaded.rows if row["split"] == "test"} == set("01234")
    with pytest.raises(
        ValueError, match=r"expected rows of split 'dev' in .*, found splits train, validation"
    ):
        load_questions(Questions.model_validate({**questions, "dev": {"source": source, "split": "dev"}}), 0)


def test_limit_beyond_the_source_takes_all_but_never_leaves_a_split_empty(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "rows.jsonl", numbers(0, 10))
    assert len(by_split(carved(source, train=500, dev=2, test=3))["train"]) == 5
    with pytest.raises(
        ValueError, match=r"questions.train: expected questions, found none left .* in test and dev already"
    ):
        carved(source, dev=5, test=5)


def test_carving_needs_a_limit_and_train_a_source(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "rows.jsonl", numbers(0, 10))
    with pytest.raises(ValueError, match=r"questions.dev.limit: expected a number"):
        carved(source, dev=None, test=3)
    with pytest.raises(ValueError, match=r"source: expected a file, folder"):
        load_questions(Questions.model_validate({"train": {}, "test": {"source": source}}), 0)
    with pytest.raises(ValueError, match=r"questions.train.limit: expected a number, the sandbox"):
        load_questions(Questions.model_validate({"train": {"source": "sandbox"}}), 0)


def test_empty_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected questions in .*rows.jsonl, found none"):
        load_test(write_lines(tmp_path / "rows.jsonl", []))


def test_sandbox() -> None:
    splits = {"train": {"source": "sandbox", "limit": 30}, "dev": {"limit": 10}, "test": {"limit": 20}}
    loaded = load_questions(Questions.model_validate({**splits, "preset": "commonsense_qa"}), 3)
    assert [len(ids) for ids in by_split(loaded).values()] == [30, 10, 20]
    assert loaded == load_questions(Questions.model_validate(splits), 3)
    assert len({row["question"] for row in loaded.rows}) == 60
    mixed = load_questions(Questions.model_validate({**splits, "dev": {"source": "sandbox", "limit": 4}}), 3)
    assert len(by_split(mixed)["dev"]) == 4


# --- the real data sets


@pytest.mark.parametrize(
    ("preset", "file", "count"),
    [
        ("nq_open", "nq_open.dev.jsonl", 3610),
        ("gsm8k", "gsm8k.test.jsonl", 1319),
        ("gsm8k", "gsm8k.train.jsonl", 7473),
        ("math500", "math500.test.jsonl", 500),
        ("commonsense_qa", "commonsense_qa.dev.jsonl", 1221),
    ],
)
def test_real_data(preset: str, file: str, count: int) -> None:
    source = SHARED_DATA / file
    if not source.is_file():
        pytest.skip(f"no {file} in shared/data beside the repository")
    loaded = load_test(str(source), preset=preset)
    assert len(loaded.rows) + loaded.dropped_duplicates == count
    assert loaded.dropped_duplicates <= count // 100 and loaded.skipped_bad_rows == 0
    assert len({row["id"] for row in loaded.rows}) == len(loaded.rows)
    if preset == "commonsense_qa":
        assert all(len(row["choices"]) == 5 and row["answers"][0] in "ABCDE" for row in loaded.rows)
    if preset == "gsm8k":
        assert all(
            "#" not in answer and any(sign.isdigit() for sign in answer)
            for row in loaded.rows
            for answer in row["answers"]
        )


def test_pure() -> None:
    script = """
import sys
from stasc_ray.config import Questions
from stasc_ray.tasks.questions import load_questions
load_questions(Questions(), 0)
heavy = ("ray", "torch", "vllm", "transformers", "datasets", "pyarrow", "fsspec")
print([name for name in heavy if name in sys.modules])
"""
    root = str(Path(__file__).resolve().parents[2])
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=root, check=True
    )
    assert result.stdout.strip() == "[]"
