"""Questions from files of every shape: mapping, bad rows, splits without overlap, seeded choice, the real
data sets."""

import itertools
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stasc_ray.config import Questions
from stasc_ray.tasks.loading.nearness import Neighbours, words
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


@pytest.mark.parametrize("numbers", [["1", "2", "1"], [1, 2, 1]])
def test_choices_that_are_counted_from_1_are_refused_not_skipped(tmp_path: Path, numbers: list[Any]) -> None:
    """WinoGrande's shape."""
    rows = [
        {"question": f"q{n}", "one": "x", "two": "y", "answers": number} for n, number in enumerate(numbers)
    ]
    source = write_lines(tmp_path / "rows.jsonl", rows)
    columns = {"choices": ["one", "two"]}
    for on_bad_row in ("fail", "skip"):
        with pytest.raises(ValueError, match=r"line 2: .*choice_key = 'index_from_1' \(no row .*\)$"):
            load_test(source, columns=columns, on_bad_row=on_bad_row)
    loaded = load_test(source, columns={**columns, "choice_key": "index_from_1"}).rows
    assert {row["question"]: row["answers"] for row in loaded} == {"q0": ["A"], "q1": ["B"], "q2": ["A"]}
    source = write_lines(tmp_path / "rows.jsonl", [*rows, {**rows[0], "question": "q", "answers": 0}])
    assert load_test(source, columns=columns, on_bad_row="skip").skipped_bad_rows == 1


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
    rows = [{"question": "Who?", "answers": ["x"]}, {"question": "who?  ", "answers": ["X"]}]
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


# --- what makes two questions the same


def rows_of(tmp_path: Path, rows: list[dict[str, Any]], **fields: Any) -> list[dict[str, Any]]:
    return load_test(write_lines(tmp_path / "rows.jsonl", rows), **fields).rows


@pytest.mark.parametrize(
    ("field", "one", "other"),
    [
        ("documents", ["Tom had 5 apples and ate 2."], ["Ann had 9 apples and ate 1."]),
        ("choices", ["3", "8"], ["8", "3"]),
    ],
)
def test_documents_and_choices_make_another_question(
    tmp_path: Path, field: str, one: Any, other: Any
) -> None:
    answers = {"answers": 0 if field == "choices" else "3"}
    rows = [{"question": "How many apples?", field: value, **answers} for value in (one, other, one)]
    loaded = load_test(write_lines(tmp_path / "rows.jsonl", rows))
    assert (len(loaded.rows), loaded.dropped_duplicates) == (2, 1)
    assert {tuple(row[field]) for row in loaded.rows} == {tuple(one), tuple(other)}


def test_references_of_the_same_question_are_joined_whatever_the_order(tmp_path: Path) -> None:
    rows = [{"question": "who?", "answers": names} for names in (["Bob"], ["Bob Smith"], ["Bob", "Al"])]
    loaded = [
        load_test(write_lines(tmp_path / "rows.jsonl", list(order))) for order in itertools.permutations(rows)
    ]
    assert all(one == loaded[0] for one in loaded)
    assert [row["answers"] for row in loaded[0].rows] == [["Al", "Bob", "Bob Smith"]]
    assert loaded[0].dropped_duplicates == 2
    ids = {row["id"] for one in rows for row in rows_of(tmp_path, [one])}
    assert loaded[0].rows[0]["id"] == min(ids)
    same = [{"question": text, "answers": ["b", "a"]} for text in ("Who?", "who? ")]
    assert rows_of(tmp_path, same)[0]["answers"] == ["b", "a"]


@pytest.mark.parametrize(
    ("one", "other", "count"),
    [
        (("Cross BB x bb?", ["1"]), ("Cross Bb x Bb?", ["2"]), 2),
        (("Solve x^2 = N", ["1"]), ("Solve X^2 = n", ["2"]), 2),
        (("if a:\n  b\nc", ["1"]), ("if a:\n  b\n  c", ["2"]), 2),
        (("Who?", ["1", "2"]), ("who?", ["2", "3"]), 2),
        (("Who?", ["a"]), ("who?", ["A"]), 1),
        (("Who?", ["1", "2"]), ("who?", ["2"]), 1),
        (("Who  is?", ["1"]), ("Who is?", ["1"]), 1),
        (("caf\u00e9?", ["1"]), (" cafe\u0301? ", ["2"]), 1),
    ],
)
def test_case_and_white_space_tell_questions_apart_whose_references_do(
    tmp_path: Path, one: Any, other: Any, count: int
) -> None:
    rows = [{"question": question, "answers": answers} for question, answers in (one, other)]
    loaded, turned = (load_test(write_lines(tmp_path / f"{n}.jsonl", rows[::n])) for n in (1, -1))
    assert loaded == turned
    assert (len(loaded.rows), loaded.dropped_duplicates) == (count, 2 - count)
    if count == 1:
        assert set(loaded.rows[0]["answers"]) == {*one[1], *other[1]}
    sources = [write_lines(tmp_path / f"{n}.jsonl", [row]) for n, row in enumerate(rows)]
    splits = {"train": {"source": sources[0]}, "test": {"source": sources[1]}}
    more = {"question": "Another one", "answers": "x"}
    write_lines(tmp_path / "0.jsonl", [rows[0], more])
    apart = load_questions(Questions.model_validate(splits), 0, ("train", "test"))
    assert (len(apart.rows), apart.dropped_duplicates) == (count + 1, 2 - count)


def test_spellings_of_one_question_settle_the_same_way_in_every_order(tmp_path: Path) -> None:
    names = [("WHO?", ["1"]), ("Who?", ["1", "2"]), ("who?", ["3"]), ("who?", ["2", "3"]), ("wHo?", ["2"])]
    rows = [
        {"id": n, "question": question, "answers": answers} for n, (question, answers) in enumerate(names)
    ]
    loaded = [
        load_test(write_lines(tmp_path / "rows.jsonl", list(order))) for order in itertools.permutations(rows)
    ]
    assert all(one == loaded[0] for one in loaded)
    assert {row["id"]: row["answers"] for row in loaded[0].rows} == {"0": ["1", "2"], "2": ["2", "3"]}
    assert loaded[0].dropped_duplicates == 3
    source = write_lines(tmp_path / "rows.jsonl", rows)
    splits = {"train": {"source": source}, "test": {"limit": 1}}
    assert len(load_questions(Questions.model_validate(splits), 0, ("train", "test")).rows) == 2


def test_a_repeated_id_names_the_first_place(tmp_path: Path) -> None:
    rows = [{"id": n, "question": f"q{n}", "answers": "a"} for n in range(50)]
    source = write_lines(tmp_path / "rows.jsonl", [*rows, {"id": 31, "question": "other", "answers": "a"}])
    with pytest.raises(ValueError, match=r"line 51: repeated id: '31' belongs to .*rows.jsonl, line 32"):
        load_test(source)


# --- train against dev and test

MEASURED = "What is the name of the river that flows through the old city of Prague"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("what's the name", (0, 0)),
        ("What is name of the river, that flows through old city of PRAGUE!?", (1, 0)),
        ("What is the name of the river that flows through the old city of Vienna", (0, 1)),
        ("What is the name of the river that flows through the new city of Vienna", (0, 0)),
    ],
)
def test_train_questions_near_test_are_counted_and_dropped(
    tmp_path: Path, text: str, expected: tuple[int, int]
) -> None:
    train = write_lines(tmp_path / "train.jsonl", [{"question": text, "answers": "x"}, *plain("y")])
    test = write_lines(tmp_path / "test.jsonl", [{"question": MEASURED, "answers": "Vltava"}, *plain("z")])
    fields: dict[str, Any] = {"train": {"source": train}, "test": {"source": test}, "near_duplicates": 0.75}
    kept = load_questions(Questions.model_validate(fields), 0, ("train", "test"))
    assert (kept.train_equal, kept.train_near) == expected
    assert len(kept.rows) == 4 and len(kept.near_examples) == sum(expected)
    if sum(expected):
        counts = f"^{expected[0]} train questions are in .* {expected[1]} more are near .* kept .*Prague"
        assert re.search(counts, "\n".join(kept.notes()))
    else:
        assert not kept.notes()
    dropped = load_questions(
        Questions.model_validate({**fields, "on_near_duplicate": "drop"}), 0, ("train", "test")
    )
    assert (dropped.train_equal, dropped.train_near) == expected and dropped.near_dropped
    assert dropped.rows == [row for row in kept.rows if row["question"] != text or not sum(expected)]


def test_a_limit_is_filled_with_questions_that_are_not_near(tmp_path: Path) -> None:
    train = write_lines(tmp_path / "train.jsonl", [*numbers(0, 20), *plain("A!", "B!", "C!", "D!")])
    test = write_lines(tmp_path / "test.jsonl", plain("a", "b", "c", "d"))
    fields: dict[str, Any] = {"train": {"source": train, "limit": 20}, "test": {"source": test}}
    fields["on_near_duplicate"] = "drop"
    loaded = load_questions(Questions.model_validate(fields), 0, ("train", "test"))
    assert len(by_split(loaded)["train"]) == 20 and loaded.train_equal >= 1
    write_lines(tmp_path / "train.jsonl", plain("A!", "B!"))
    with pytest.raises(ValueError, match=r"found none left .* in test already, and 2 are too near"):
        load_questions(Questions.model_validate(fields), 0, ("train", "test"))


@pytest.mark.parametrize("text", ["What is 5 - 3?", "What is 5 + 3?", "What is 5 * 3?", "What is -5 3?"])
def test_signs_make_another_sum(text: str) -> None:
    others = {"What is 5 - 3?", "What is 5 + 3?", "What is 5 * 3?", "What is -5 3?"} - {text}
    assert all(words(other) != words(text) for other in others)
    assert words("a well-known 'Thing', and/or 3.5") == words("Well known thing and or the 3.5!")


def test_nearness_finds_what_comparing_all_pairs_finds() -> None:
    draw = random.Random(0)

    def text() -> list[str]:
        return [draw.choice("abcdefgh") * 2 for _ in range(draw.randint(1, 14))]

    def row(parts: list[str], documents: list[str]) -> dict[str, Any]:
        return {"id": "x", "question": " ".join(parts), "documents": documents, "choices": []}

    bases = [text() for _ in range(300)]
    measured = [row(parts, draw.choice([[], ["one"], ["two"]])) for parts in bases]
    hits = 0
    for threshold in (0.3, 0.5, 0.8, 1.0):
        neighbours = Neighbours(measured, threshold)
        for _ in range(150):
            parts = list(draw.choice(bases))
            parts[draw.randrange(len(parts))] = draw.choice("abcdefgh") * 2
            asked = row(parts, draw.choice([[], ["one"], ["two"]]))
            expected = any(
                jaccard(asked, other) >= threshold
                and (
                    not asked["documents"]
                    or not other["documents"]
                    or asked["documents"] == other["documents"]
                )
                for other in measured
            )
            assert (neighbours.nearest(asked) is not None) == expected
            hits += expected
    assert 100 < hits < 550


def jaccard(left: dict[str, Any], right: dict[str, Any]) -> float:
    sets = []
    for row in (left, right):
        parts = row["question"].split()
        sets.append({tuple(parts[n : n + 3]) for n in range(max(1, len(parts) - 2))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


# --- documents from a corpus

CORPUS = [
    {
        "title": "Vltava",
        "text": "The Vltava is the longest river in the Czech Republic and flows through Prague.",
    },
    {"title": "Danube", "text": "The Danube flows through Vienna, Bratislava, Budapest and Belgrade."},
    {"title": "Mont Blanc", "text": "Mont Blanc is the highest mountain in the Alps."},
    {"title": "Empty", "text": " "},
]


def test_documents_come_from_a_corpus(tmp_path: Path) -> None:
    corpus = write_lines(tmp_path / "corpus.jsonl", CORPUS)
    questions = [
        {"question": "Which river flows through Vienna?", "answers": "Danube"},
        {
            "question": "Which mountain of the Alps is highest?",
            "answers": "Mont Blanc",
            "documents": ["mine"],
        },
        {"question": "Zzyzx?", "answers": "none"},
    ]
    source = write_lines(tmp_path / "rows.jsonl", questions)
    fields: dict[str, Any] = {"corpus": corpus, "corpus_text": ["title", "text"], "top_k": 2}
    loaded = load_test(source, **fields)
    documents = {row["answers"][0]: row["documents"] for row in loaded.rows}
    assert (
        documents["Danube"][0] == "Danube The Danube flows through Vienna, Bratislava, Budapest and Belgrade."
    )
    assert len(documents["Danube"]) == 2 and documents["Mont Blanc"] == ["mine"] and documents["none"] == []
    assert loaded.retrieved == 1
    assert {row["id"] for row in loaded.rows} == {row["id"] for row in load_test(source).rows}
    assert load_test(source, **{**fields, "top_k": 50}).retrieved == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "questions.corpus: expected documents in .*corpus.jsonl, found none"),
        ([{"text": ""}], "expected documents in .*, found none"),
        ([{"body": "x"}], r"line 1: expected column 'text', found only 'body' \(questions.corpus_text\)"),
        (["{"], "line 1: unreadable"),
    ],
)
def test_a_corpus_that_is_none_is_refused_first(tmp_path: Path, lines: list[Any], message: str) -> None:
    corpus = write_lines(tmp_path / "corpus.jsonl", lines)
    with pytest.raises(ValueError, match=message):
        load_test(str(tmp_path / "missing.jsonl"), corpus=corpus)
    with pytest.raises(FileNotFoundError, match=r"questions.corpus: .* found nothing at"):
        load_test(str(tmp_path / "missing.jsonl"), corpus=str(tmp_path / "no.jsonl"))


def test_a_corpus_without_bm25s_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "bm25s.py").write_text("raise ImportError('not installed')\n")
    corpus = write_lines(tmp_path / "corpus.jsonl", CORPUS)
    script = (
        "from stasc_ray.config import Questions; from stasc_ray.tasks.questions import load_questions;"
        f"load_questions(Questions(corpus={corpus!r}), 0)"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).resolve().parents[2])])
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert "pip install 'stasc-ray[bm25]'" in result.stderr


# --- many questions

MEMORY_SCRIPT = """
import json, pathlib, resource, sys
from stasc_ray.config import Questions
from stasc_ray.tasks.questions import load_questions
folder = pathlib.Path(sys.argv[1])
def peak(count):
    with open(folder / f"{count}.jsonl", "w") as file:
        for n in range(count):
            row = {"question": f"What does number {n} of {count} do?", "answers": [str(n)], "documents": ["x" * 999]}
            print(json.dumps(row), file=file)
    splits = {"train": {"source": str(folder / f"{count}.jsonl"), "limit": 100}, "dev": {"limit": 10}, "test": {"limit": 10}}
    loaded = load_questions(Questions.model_validate(splits), 0)
    assert len(loaded.rows) == 120
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
first = peak(15_000)
print((peak(45_000) - first) / 30_000)
"""


def test_the_memory_of_a_question_does_not_grow_with_its_documents(tmp_path: Path) -> None:
    """A million questions stay under a gigabyte: below 600 bytes each, whose documents alone have 999."""
    root = str(Path(__file__).resolve().parents[2])
    result = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=root,
        check=True,
    )
    assert float(result.stdout) < 600


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
