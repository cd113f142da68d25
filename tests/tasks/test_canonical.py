"""Canonical rows: column mapping, answers inside a rationale, choices in every form a source may have."""

import decimal
from typing import Any

import pytest

from stasc_ray.config import Questions, load_config
from stasc_ray.recipes import section_of
from stasc_ray.tasks.canonical import canonical_row
from stasc_ray.tasks.loading.columns import MISSING, find, steps
from stasc_ray.tasks.loading.values import normalize


def canonical(values: dict[str, Any], preset: str = "canonical", **columns: Any) -> dict[str, Any]:
    questions = Questions.model_validate({"preset": preset, "columns": columns})
    return canonical_row(values, questions.columns)


def test_equal_questions_normalize_to_the_same_text() -> None:
    assert normalize("  Caf\u00e9 \n MENU?") == normalize("cafe\u0301 menu?") != normalize("cafe menu?")


def test_canonical_row() -> None:
    given = {
        "id": 7,
        "question": " Who? ",
        "answers": ["a", "", "a", 3.0, 2.5, None],
        "documents": ["d"],
        "note": 1,
    }
    assert canonical(given) == {
        "id": "7",
        "question": "Who?",
        "answers": ["a", "3", "2.5"],
        "documents": ["d"],
        "choices": [],
    }


def test_gsm8k_answer_is_behind_the_marks() -> None:
    row = {"question": "q", "answer": "It is #### not this\n4 + 3 = <<4+3=7>>7\n#### 1,007 "}
    assert canonical(row, "gsm8k")["answers"] == ["1,007"]
    with pytest.raises(ValueError, match="no answer: expected a match of answer_pattern"):
        canonical({"question": "q", "answer": "seven"}, "gsm8k")


def test_column_mapping_overrides_preset() -> None:
    row = {"Frage": "q", "answer": 5, "Texte": ["one", " ", "two"]}
    found = canonical(row, "gsm8k", question="Frage", documents="Texte", answer_pattern=None)
    assert (found["question"], found["answers"], found["documents"]) == ("q", ["5"], ["one", "two"])


# --- columns inside others, and several

NESTED = {
    "answer": {"value": "a", "aliases": ["a", "b"], "normalized": None},
    "paragraphs": [
        {"idx": 0, "title": "T", "paragraph_text": "x", "is_supporting": True},
        {"paragraph_text": "y"},
    ],
    "spans": [{"texts": ["a", "b"]}, {"texts": ["c"]}, {}],
    "a.b": "dotted",
    "c.d": {"e": "under a dotted key"},
    "prompt": [{"content": "first"}, {"content": "second"}],
    "json": '{"text": ["in", "json"]}',
    "python": "{'text': ['in', 'python']}",
    "items": {"x": {"v": 1}, "y": {"v": 2}},
}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("answer.aliases", ["a", "b"]),
        ("answer.normalized", None),
        ("answer.missing", MISSING),
        ("missing.aliases", MISSING),
        ("answer.value.deeper", MISSING),
        ("paragraphs[].paragraph_text", ["x", "y"]),
        ("paragraphs[].title", ["T"]),
        ("spans[].texts", [["a", "b"], ["c"]]),
        ("spans[].texts[]", ["a", "b", "c"]),
        ("a.b", "dotted"),
        ("c.d.e", "under a dotted key"),
        ("prompt[1].content", "second"),
        ("prompt[2].content", MISSING),
        ("json.text", ["in", "json"]),
        ("python.text", ["in", "python"]),
        ("items.*.v", [1, 2]),
    ],
)
def test_paths(path: str, expected: Any) -> None:
    assert find(NESTED, path) == expected


def test_a_path_that_needs_brackets_or_is_none() -> None:
    with pytest.raises(ValueError, match=r"found a list: put `\[\]` before `.title`"):
        find(NESTED, "paragraphs.title")
    with pytest.raises(ValueError, match=r"expected a list at `\[\]`"):
        find(NESTED, "answer[].value")
    for wrong in ("a..b", "a[x].b", "[].a", "a]"):
        with pytest.raises(ValueError, match="expected keys with dots between them"):
            steps(wrong)


def test_several_columns_for_one_thing() -> None:
    row = {
        "Body": " Tom has 3. ",
        "Question": "How many?",
        "Answer": 3.0,
        "hint": "",
        "title": "T",
        "text": "x",
    }
    found = canonical(
        row, question=["Body", "hint", "Question"], answers="Answer", documents=["title", "text"]
    )
    assert (found["question"], found["answers"], found["documents"]) == (
        "Tom has 3. How many?",
        ["3"],
        ["T x"],
    )
    both = {"question": "q", "one": ["a"], "two": None, "docs": ["d"], "more": ["e"]}
    found = canonical(both, answers=["two", "one", "three"], documents=["docs", "more"])
    assert (found["answers"], found["documents"]) == (["a"], ["d", "e"])
    with pytest.raises(ValueError, match="no question: expected text in column 'Body', 'Question'"):
        canonical({"Body": "b", "answers": "a"}, question=["Body", "Question"])
    with pytest.raises(ValueError, match=r"no answer: .* in column 'x', 'y', found only 'question'"):
        canonical({"question": "q"}, answers=["x", "y"])


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ("one", ["one"]),
        (["one", " ", "two"], ["one", "two"]),
        ([["T", ["s1 ", "s2"]], ["U", ["s3"]]], ["T: s1 s2", "U: s3"]),  # HotpotQA and 2Wiki, original
        ({"title": ["T", "U"], "sentences": [["s1 ", "s2"], ["s3"]]}, ["T: s1 s2", "U: s3"]),  # on the Hub
        ([{"idx": 0, "title": "T", "paragraph_text": "x", "is_supporting": True}], ["T: x"]),  # MuSiQue
        ({"title": "T", "text": "x"}, ["T: x"]),
        ([{"text": "x"}, {"contents": "y", "score": 0.5}], ["x", "y"]),
        ({"text": ["x", "y"]}, ["x", "y"]),
        ('["x", "y"]', ["x", "y"]),
        ("[sic]", ["[sic]"]),
        ("[1, 2]", ["[1, 2]"]),
        (None, []),
    ],
)
def test_documents_in_every_shape(documents: Any, expected: list[str]) -> None:
    row = {"question": "q", "answers": "a", "context": documents}
    assert canonical(row, documents="context")["documents"] == expected


@pytest.mark.parametrize("documents", [[{"a": "x", "b": "y"}], {"title": ["T"], "text": ["x", "y"]}])
def test_documents_that_are_not_understood(documents: Any) -> None:
    with pytest.raises(ValueError, match=r"expected (documents with a text|one title per text)"):
        canonical({"question": "q", "answers": "a", "context": documents}, documents="context")


# --- values that no answer could match


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (True, ["yes"]),
        ([False], ["no"]),
        (0.00001, ["0.00001"]),
        (6.02e23, ["602000000000000000000000"]),
        (-0.0, ["0"]),
        (decimal.Decimal("3.00"), ["3"]),
        (decimal.Decimal("1E+3"), ["1000"]),
        (b"caf\xc3\xa9", ["caf\u00e9"]),
        ('["a", "b"]', ["a", "b"]),  # PopQA's possible_answers
        ("['a', \"b's\"]", ["a", "b's"]),  # a CSV file that pandas wrote
        ('["a", 1, null]', ["a", "1"]),
        ("[1, 2]", ["[1, 2]"]),  # an interval or a list is an answer
        ("[a, b]", ["[a, b]"]),
        ("{1, 2}", ["{1, 2}"]),
        ("9 (apples)", ["9 (apples)", "9"]),  # ASDiv
        ("1,007.5 (square feet)", ["1,007.5 (square feet)", "1,007.5"]),
        ("2 (mod 7)", ["2 (mod 7)"]),
        ("f (x)", ["f (x)"]),
        ("12 (eggs in all)", ["12 (eggs in all)", "12"]),
        *((text, [text]) for text in ("2(x+1)", "5(a+b)", "2 (n - 1)", "4(pi)", "4 (pi)", "3(a)", "2 (xy)")),
        *((text, [text]) for text in ("3(apples)", "2 (sin x)", "2 (sin theta)", "101 (base two)")),
        *((text, [text]) for text in ("3 (million)", "4 (x dollars)", "5 (or 6)", "2 (foo+bar)")),
    ],
)
def test_values_become_what_an_answer_can_match(answers: Any, expected: list[str]) -> None:
    assert canonical({"question": "q", "answers": answers})["answers"] == expected


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (float("inf"), "expected a number, found Infinity"),
        (decimal.Decimal("-Infinity"), "expected a number, found -Infinity"),
        (float("nan"), "no answer"),
        ("[]", "no answer"),
        ("<unk>", "no answer"),
        (b"\xff", "expected text in UTF-8"),
        ("['a' 'b']", "whose texts have no commas"),  # a NumPy array, printed
        ("{'text': ['a']}", "which was something else before it was written as text"),
        ("array(['a'], dtype=object)", "which was something else before"),
        ({"text": ["a"]}, "name one of its keys by a path, such as 'answers.text'"),
    ],
)
def test_values_that_are_refused(answers: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        canonical({"question": "q", "answers": answers})


def test_words_about_the_answers() -> None:
    code = {"question": "q", "answers": "['a', 'b']"}
    assert canonical(code, decode_lists=False)["answers"] == ["['a', 'b']"]
    empty = {"question": "q", "answers": {"text": []}}
    assert canonical(empty, answers="answers.text", no_answer="unanswerable")["answers"] == ["unanswerable"]
    with pytest.raises(ValueError, match="no answer"):
        canonical({"question": "q"}, answers="answers.text", no_answer="unanswerable")
    assert canonical({"question": "q", "answers": ["3", "3 "]}, one_answer=True)["answers"] == ["3"]
    with pytest.raises(ValueError, match=r"expected one answer .*, found 2: "):
        canonical({"question": "q", "answers": ["3", "4"]}, one_answer=True)
    with pytest.raises(ValueError, match="threshold"):
        load_config(None, ["algorithm.threshold=nan"], section_of)
    for wrong in ("0", "100", "inf"):
        with pytest.raises(ValueError, match="threshold"):
            load_config(None, [f"algorithm.threshold={wrong}"], section_of)


# --- choices

HUB_CHOICES = {"label": ["1", "2", "3"], "text": ["bank", "mall", "Big Shop"]}


@pytest.mark.parametrize(
    ("choices", "answer", "letter"),
    [
        (["bank", "mall"], 1, "B"),
        (["bank", "mall"], 0, "A"),
        (["bank", "mall"], "b", "B"),
        (["bank", "mall"], ["A"], "A"),
        (["bank", "mall"], "Mall", "B"),
        (["10", "20"], "20", "B"),
        (HUB_CHOICES, "3", "C"),
        (HUB_CHOICES, 1, "A"),  # a label before an index
        (HUB_CHOICES, "big  shop", "C"),
        ({"label": ["A", "B"], "text": ["x", "y"]}, "B", "B"),
    ],
)
def test_choice_answers_become_letters(choices: Any, answer: Any, letter: str) -> None:
    row = canonical({"id": 1, "question": "q", "choices": choices, "answer": answer}, "commonsense_qa")
    assert row["answers"] == [letter]
    assert row["choices"] == (choices["text"] if isinstance(choices, dict) else choices)


@pytest.mark.parametrize(
    ("choices", "answer", "message"),
    [
        (["bank", "mall"], 2, "expected an index from 0 to 1, found 2"),
        (["bank", "mall"], -1, "expected an index"),
        (["bank", "mall"], True, "expected an index"),
        (["bank", "mall"], "C", "fits none"),
        (["B", "A"], "A", "fits A and B"),
        (["bank", "bank"], "bank", "fits A and B"),
        (["bank"], 0, "expected 2 to 26 texts"),
        (["bank", ""], 0, "expected 2 to 26 texts"),
        (["x"] * 27, 0, "expected 2 to 26 texts"),
        ({"label": ["A"], "text": ["bank", "mall"]}, "A", "one label per text"),
        (["bank", "mall"], "", "no answer"),
        ({"label": [], "text": []}, "A", "expected 2 to 26 texts"),
    ],
)
def test_bad_choices(choices: Any, answer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        canonical({"id": 1, "question": "q", "choices": choices, "answer": answer}, "commonsense_qa")


XY = ["x", "y"]


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ([{"label": "A", "text": "x"}, {"label": "B", "text": "y"}], XY),
        ([{"text": "x"}, {"text": "y"}], XY),
        ([{"n": "1", "wording": "x"}, {"n": "2", "wording": "y"}], XY),
        ({"A": "x", "B": "y"}, XY),
        ({"B": "y", "A": "x", "C": None}, XY),
        ({"text": ["x", "y"]}, XY),
        ("A) x B) y", XY),
        ("(A) x (B) y", XY),
        ("A. x\nB. y", XY),
        ("Options: A. x; B. y", XY),
        ("a ) x , b ) y", XY),  # MathQA
        ("['a ) x', 'b ) y']", XY),
        ('["x", "y"]', XY),
        ("{'text': ['x', 'y'], 'label': ['A', 'B']}", XY),
        (["A)x", "B)y"], XY),  # AQuA
        (["1) x", "2) y"], XY),
        (["A. x", "y"], ["A. x", "y"]),
        (["1.5", "2.5"], ["1.5", "2.5"]),
        ("a ) 1,000 , b ) 2 , c ) none of these", ["1,000", "2", "none of these"]),
    ],
)
def test_choices_in_every_shape(choices: Any, expected: list[str]) -> None:
    row = canonical({"question": "q", "options": choices, "answers": "B"}, choices="options")
    assert (row["choices"], row["answers"]) == (expected, ["B"])


def test_one_column_per_choice() -> None:
    columns = {"choices": ["opa", "opb", "opc"], "answers": "cop"}
    row = {"question": "q", "opa": "x", "opb": "y", "opc": "", "cop": 1}  # MedMCQA
    assert canonical(row, **columns)["choices"] == XY and canonical(row, **columns)["answers"] == ["B"]
    with pytest.raises(ValueError, match="expected 2 to 26 texts, none empty"):
        canonical({**row, "opa": None, "opc": "z"}, **columns)
    row = {"question": "q", "option1": "x", "option2": "y", "answers": "2"}  # Winogrande
    with pytest.raises(ValueError, match=r"fits none .*choice_key = 'index_from_1'"):
        canonical(row, choices=["option1", "option2"])
    assert canonical(row, choices=["option1", "option2"], choice_key="index_from_1")["answers"] == ["B"]


@pytest.mark.parametrize(
    "key", ["B", "b", "(B)", "B.", "B)", "b.", "B. y", "(B) y", "y", " Y", 1, "1", 1.0, [1]]
)
def test_every_way_to_name_the_second_choice(key: Any) -> None:
    assert canonical({"question": "q", "choices": XY, "answers": key})["answers"] == ["B"]


def test_commonsense_qa_as_published() -> None:
    choices = [{"label": "A", "text": "x"}, {"label": "B", "text": "y"}]
    row = {
        "answerKey": "B",
        "id": "1",
        "question": {"question_concept": "c", "stem": "q", "choices": choices},
    }
    columns = {"question": "question.stem", "choices": "question.choices", "answers": "answerKey"}
    found = canonical(row, "commonsense_qa", **columns)
    assert (found["question"], found["choices"], found["answers"]) == ("q", XY, ["B"])


@pytest.mark.parametrize(
    ("choices", "key", "word", "expected"),
    [
        (["1", "2", "3"], "2", "any", "fits B and C of .*: set questions.columns.choice_key"),
        (["1", "2", "3"], "2", "index", "C"),
        (["1", "2", "3"], "2", "index_from_1", "B"),
        (["1", "2", "3"], "2", "text", "B"),
        (["B", "A"], "A", "any", "fits A and B"),
        (["B", "A"], "A", "letter", "A"),
        (["B", "A"], "A", "text", "B"),
        (["x", "X"], "X", "any", "B"),
        (["x", "y"], "B. x", "any", "fits none"),
        (["x", "y"], 2, "any", "expected an index from 0 to 1, found 2: if the first choice is number 1"),
        (["x", "y"], 0, "index_from_1", "expected an index from 1 to 2, found 0"),
        (["x", "y"], True, "any", "found true: leave out questions.columns.choices"),
        ({"label": ["1", "2"], "text": XY}, 0, "any", "expected a label of 1: 'x', 2: 'y', found 0"),
        ({"label": ["1", "2"], "text": XY}, 2, "any", "B"),
        (["True", "False"], True, "any", "A"),
        (["Yes", "No", "Maybe"], [False], "any", "B"),
        (["True", "Yes"], True, "any", "found true: leave out questions.columns.choices"),
        (["x", "y", "z"], [1, 0, 0], "any", "A"),
        (["x", "y", "z"], [0, 0, 1], "index", "C"),
        (["x", "y", "z"], [False, True, False], "any", "B"),
        (["x", "y"], [0, 1.0], "any", "B"),
        (["x", "y"], [1, 1], "any", "expected a 1 for one choice and 0 for the others"),
        (["x", "y", "z"], [0, 0, 0], "any", "expected a 1 for one choice and 0 for the others"),
        (["x", "y", "z"], [0, 2], "any", "expected one right choice, found A and C"),
        (["x", "y", "z"], ["A", "C"], "any", "expected one right choice, found A and C"),
        (["x", "y", "z"], ["B", "y"], "any", "B"),
        ({"label": ["A", "A"], "text": XY}, "A", "any", "one label per text, each another"),
        ({"a": "x", "c": "y"}, "a", "any", "found an object with 'a', 'c'"),
        ([{"p": "x", "q": "y"}] * 2, "x", "any", "found objects with 'p', 'q'"),
        ("x, y or z", "x", "any", "a string with the marks"),
        ("A) x C) y", "A", "any", "a string with the marks"),
    ],
)
def test_a_choice_is_never_guessed(choices: Any, key: Any, word: str, expected: str) -> None:
    row = {"question": "q", "options": choices, "answers": key}
    if len(expected) == 1:
        assert canonical(row, choices="options", choice_key=word)["answers"] == [expected]
    else:
        with pytest.raises(ValueError, match=expected):
            canonical(row, choices="options", choice_key=word)
