"""The shipped datasets: each file reads three rows of the published shape as it should, and its reward grades
them.

published.json holds the rows. `source` says where each dataset's shape and rows are public, with the licence;
the first `quoted` rows are quotations, cut where `source` says so, and the others are ours in the same shape.
An expected row that is null is a question that is left out; `wrong` is a wrong answer to the first row.
"""

import json
import re
from pathlib import Path

import pytest

from stasc_ray.config import Config, as_text, dataset, load_config
from stasc_ray.recipes import section_of
from stasc_ray.tasks.canonical import canonical_row
from stasc_ray.tasks.questions import LoadedQuestions, load_questions
from stasc_ray.tasks.rewards import gradable, grader

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "stasc_ray" / "config" / "datasets"
MATH500 = ROOT.parent / "shared" / "data" / "math500.test.jsonl"
OURS = ("canonical", "sandbox")
NAMES = sorted(file.stem for file in FILES.glob("*.toml") if file.stem not in OURS)
PUBLISHED = json.loads((Path(__file__).parent / "published.json").read_text(encoding="utf-8"))

LEFT_OUT = {
    "squad_v2": "no answer: expected text",
    "drop": "expected one answer",
    "asdiv": "no answer: expected a match of answer_pattern",
}
"""What is wrong with the row that is left out."""


def settings_for(name: str, source: str) -> Config:
    """A config as a person makes it: the preset, and everything that suits it."""
    overrides = dataset(name)["suits"] | {"questions.preset": name, "questions.test.source": source}
    return load_config(None, [f"{field}={as_text(value)}" for field, value in overrides.items()], section_of)


def load(tmp_path: Path, name: str) -> tuple[Config, LoadedQuestions]:
    path = tmp_path / f"{name}.jsonl"
    lines = [json.dumps(row) + "\n" for row in PUBLISHED[name]["rows"]]
    path.write_text("".join(lines), encoding="utf-8")
    settings = settings_for(name, str(path))
    return settings, load_questions(settings.questions, 0, splits=("test",))


def test_every_dataset_has_rows_and_every_row_a_source() -> None:
    assert len(NAMES) >= 27
    assert sorted(PUBLISHED) == NAMES
    for name, published in PUBLISHED.items():
        assert "github.com/" in published["source"] or "huggingface.co/" in published["source"], name
        assert len(published["rows"]) == len(published["expected"]) == 3, name


@pytest.mark.parametrize("name", NAMES)
def test_file_says_what_the_dataset_is_and_where(name: str) -> None:
    file = dataset(name)
    assert set(file) == {"title", "licence", "source", "hub", "splits", "columns", "suits"}
    assert file["title"] and file["licence"] and file["source"].startswith("https://")
    assert set(file["hub"]) <= {"id", "config"} and re.fullmatch(r"[\w.-]+/[\w.-]+", file["hub"]["id"])
    assert set(file["splits"]) <= {"train", "dev", "test"} and "test" in file["splits"]
    assert {"prompts.preset", "reward.name"} <= set(file["suits"])


@pytest.mark.parametrize("name", NAMES)
def test_published_rows_become_questions(name: str, tmp_path: Path) -> None:
    settings, loaded = load(tmp_path, name)
    expected = [row for row in PUBLISHED[name]["expected"] if row]
    assert loaded.skipped_bad_rows == 3 - len(expected), loaded.bad_row_examples
    found = {row["question"]: row for row in loaded.rows}
    assert sorted(found) == sorted(row["question"] for row in expected)
    if name in LEFT_OUT:
        assert LEFT_OUT[name] in loaded.bad_row_examples[0]
    for row in expected:
        question = found[row["question"]]
        assert question["answers"] == row["answers"]
        assert question["choices"] == row.get("choices", [])
        documents, starts = question["documents"], row.get("documents", [])
        assert len(documents) == len(starts)
        assert all(text.startswith(start) for text, start in zip(documents, starts, strict=True))
    identity = settings.questions.columns.id
    if isinstance(identity, str):
        ids = {str(row[identity]) for row in PUBLISHED[name]["rows"]}
        assert {row["id"] for row in loaded.rows} <= ids


@pytest.mark.parametrize("name", NAMES)
def test_reward_pays_right_answers_and_no_wrong_one(name: str, tmp_path: Path) -> None:
    settings, loaded = load(tmp_path, name)
    marker = settings.prompts.answer_marker
    rows = gradable(loaded.rows, settings.reward, marker, skip=False)
    grade = grader(settings.reward, marker)
    try:
        for row in rows:
            assert grade(f"Let me think.\n{marker} {row['answers'][0]}", row) == (1.0, None)
            assert grade("Let me think.", row) == (0.0, None)
        first = next(row for row in rows if row["question"] == PUBLISHED[name]["expected"][0]["question"])
        assert grade(f"Let me think.\n{marker} {PUBLISHED[name]['wrong']}", first) == (0.0, None)
    finally:
        grade.close()


def test_both_shapes_of_commonsense_qa() -> None:
    columns = settings_for("commonsense_qa", "x").questions.columns
    row = {"id": 1, "question": "q", "choices": ["x", "y"], "answer": 1}
    published = {"id": 1, "question": "q", "choices": {"label": ["A", "B"], "text": ["x", "y"]}}
    assert canonical_row(row, columns) == canonical_row({**published, "answerKey": "B"}, columns)


def test_rows_of_hotpotqa_as_its_authors_publish_them() -> None:
    columns = settings_for("hotpot_qa", "x").questions.columns.model_copy(update={"id": "_id"})
    for row in PUBLISHED["hotpot_qa"]["rows"]:
        context = row["context"]
        pairs = [list(pair) for pair in zip(context["title"], context["sentences"], strict=True)]
        theirs = {**{key: row[key] for key in ("question", "answer")}, "_id": row["id"], "context": pairs}
        there = canonical_row(row, columns.model_copy(update={"id": "id"}))
        assert canonical_row(theirs, columns) == there


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"so $\boxed{\frac{1}{\sqrt{2^{3}}}}$.", r"\frac{1}{\sqrt{2^{3}}}"),
        (r"\boxed{1}, no: \boxed{\{1,2\}}", r"\{1,2\}"),
        (r"hence \boxed 2.", "2"),
        (r"\fbox{5}", "5"),
    ],
)
@pytest.mark.parametrize("name", ["math", "minerva"])
def test_the_last_box_is_the_answer(name: str, solution: str, answer: str) -> None:
    columns = settings_for(name, "x").questions.columns
    assert canonical_row({"problem": "q", "solution": solution}, columns)["answers"] == [answer]


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("9 (apples)", "9"),
        ("1,250", "1,250"),
        ("3/4 (mile)", "3/4"),
        ("Mrs. Hilt", "Mrs. Hilt"),
        ("Yes", "Yes"),
    ],
)
def test_answers_of_asdiv(answer: str, reference: str) -> None:
    columns = settings_for("asdiv", "x").questions.columns
    assert canonical_row({"body": "b", "question": "q", "answer": answer}, columns)["answers"] == [reference]


@pytest.mark.parametrize("answer", ["3 (plums); 2 (pears)", "3:30 p.m.", "5:6", "6th", "February 3rd"])
def test_answers_of_asdiv_that_a_part_would_match_are_bad_rows(answer: str) -> None:
    columns = settings_for("asdiv", "x").questions.columns
    with pytest.raises(ValueError, match="no answer: expected a match of answer_pattern"):
        canonical_row({"body": "b", "question": "q", "answer": answer}, columns)


@pytest.mark.parametrize("solution", ["no box", r"an open \boxed{1", r"an empty \boxed{}"])
def test_a_solution_without_an_answer_is_a_bad_row(solution: str) -> None:
    with pytest.raises(ValueError, match="no answer: expected a match of answer_pattern"):
        canonical_row({"problem": "q", "solution": solution}, settings_for("math", "x").questions.columns)


@pytest.mark.skipif(not MATH500.is_file(), reason="no shared data here")
def test_the_boxes_of_real_solutions() -> None:
    columns = settings_for("math", "x").questions.columns
    rows = [json.loads(line) for line in MATH500.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 500
    assert [canonical_row(row, columns)["answers"][0] for row in rows] == [row["answer"] for row in rows]


def table() -> str:
    """The table of docs/datasets.md."""
    lines = ["| preset | on the Hub | train, dev, test | reward | licence |", "|---|---|---|---|---|"]
    for name in NAMES:
        file = dataset(name)
        config = f" ({file['hub']['config']})" if "config" in file["hub"] else ""
        splits = ", ".join(file["splits"].get(split, "-") for split in ("train", "dev", "test"))
        reward = file["suits"]["reward.name"]
        cells = [f"`{name}`", file["hub"]["id"] + config, splits, reward, file["licence"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def test_docs_list_every_dataset() -> None:
    text = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
    assert table() in text, f"docs/datasets.md: expected this table\n{table()}"
