"""Reading a choice from an answer: letters, articles that look like letters, texts."""

# ruff: noqa: RUF001 (signs and letters of many scripts are meant)

import json
from pathlib import Path

import pytest

from stasc_ray.config import Reward
from stasc_ray.tasks.choices import choice_letter
from stasc_ray.tasks.rewards import grader

COMMONSENSE_QA = Path(__file__).resolve().parents[3] / "shared" / "data" / "commonsense_qa.dev.jsonl"

CHOICES = ["bank", "library", "department store", "store", "New York"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(b)", "B"),
        ("B.", "B"),
        ("**B**", "B"),
        ("B) library", "B"),
        ("B. library", "B"),
        ("A bank", "A"),
        ("**B.** library", "B"),
        ("The answer is B", "B"),
        ("the answer is: (B).", "B"),
        ("The correct answer is **B**, I think.", "B"),
        ("Answer: B", "B"),
        ("**Answer:** B", "B"),
        ("The answer is option B because of it.", "B"),
        ("I choose option B here", "B"),
        ("So it must be B.", "B"),
        ("So it must be A.", "A"),
        ("The answer is A because banks are guarded.", "A"),
        ("\\boxed{\\text{B}}", "B"),
        # A statement counts more than a mention, and the last one counts.
        ("(A) no. (C) maybe. The answer is B. Not (D).", "B"),
        ("The answer is C. Wait, the answer is B.", "B"),
        ("A. bank\nB. library\nC. department store\n\nAnswer: B", "B"),
        ("First I thought (A), but (B) fits", "B"),
        # "A" and "I" before another word are words.
        ("The answer is A place with money", None),
        ("A revolving door is safe", None),
        ("I think so", None),
        ("The answer is I do not know", None),
        # Letters beyond the choices do not count.
        ("The answer is F", None),
        ("F", None),
        # Texts.
        ("library", "B"),
        ("The LIBRARY.", "B"),
        ("new york", "E"),
        ("It is not a bank, it is a library", "B"),
        ("a department store", "C"),
        ("a department store or rather any store", "D"),
        ("libraries", None),
        ("", None),
        ("I do not know", None),
    ],
)
def test_choice_letter(text, expected):
    assert choice_letter(text, CHOICES) == expected


def test_without_choices_any_letter_counts():
    assert choice_letter("The answer is K", ()) == "K"
    assert choice_letter("nothing", ()) is None


def test_a_choice_that_is_a_number_or_contains_another():
    assert choice_letter("4", ["3", "4", "14"]) == "B"
    assert choice_letter("it is 14", ["3", "4", "14"]) == "C"


def test_an_empty_choice_never_matches():
    assert choice_letter("anything at all", ["", "%"]) is None


PLACES = ["bank", "library", "department store", "mall", "New York"]
STATEMENTS = [
    ("The answer is b", "B"),
    ("the answer is (c).", "C"),
    ("answer: d", "D"),
    ("B is the correct answer.", "B"),
    ("(B) is the right choice; (A) is not.", "B"),
    ("I would pick B — a safe choice.", "B"),
    ("<answer>B</answer>", "B"),
    ("\\boxed{\\textbf{B}}", "B"),
    ("\\boxed{B}", "B"),
    ("\\boxed{\\text{(B)}}", "B"),
    ("答案是B", "B"),
    ("答案：B。", "B"),
    ("正确答案是 B", "B"),
    ("故选B。", "B"),
    ("选B", "B"),
    ("正解はBです。", "B"),
    ("答えはBです", "B"),
    ("정답은 B입니다.", "B"),
    ("정답: B", "B"),
    ("Die Antwort ist B, weil A falsch ist.", "B"),
    ("Die richtige Antwort ist B.", "B"),
    ("Antwort: B", "B"),
    ("La réponse est B.", "B"),
    ("La bonne réponse est la B", "B"),
    ("La respuesta correcta es B.", "B"),
    ("La respuesta es la opción B", "B"),
    ("La risposta corretta è B", "B"),
    ("A resposta correta é B", "B"),
    ("Resposta: B", "B"),
    ("Правильный ответ: B", "B"),
    ("Ответ B", "B"),
    ("Doğru cevap B", "B"),
    ("Jawaban: B", "B"),
    ("Đáp án: B", "B"),
    ("Het antwoord is B", "B"),
    ("الإجابة هي B", "B"),
    ("सही उत्तर B है", "B"),
    ("คำตอบคือ B", "B"),
    ("Option 2", "B"),
    ("I choose option 3.", "C"),
    ("So B. Also see Appendix A", "B"),
    ("Option B is correct.", "B"),
    ("B ist richtig.", "B"),
    ("B est la bonne réponse", "B"),
    ("B es la respuesta correcta", "B"),
    ("B是正确的", "B"),
    ("Ｂ", "B"),
    ("**B**", "B"),
    ("Answer: **B**", "B"),
    ("`B`", "B"),
    ("[B]", "B"),
    ("{B}", "B"),
    ("<B>", "B"),
    ("I'd go with D.", "D"),
    ("My choice is D", "D"),
    ("The best option would be (D) mall", "D"),
    ("Therefore, B.", "B"),
    ("Final choice → B", "B"),
    ("The correct option is\n\nB", "B"),
    ("Answer:\nB", "B"),
    ("**Answer**\nB. library", "B"),
    ("B. library because it is quiet", "B"),
    ("Answer: B. library", "B"),
    ("B: library", "B"),
    ("B - library", "B"),
    ("The answer is B, not A.", "B"),
    ("B, not A", "B"),
    ("Not A but B", "B"),
    ("A is wrong, so B.", "B"),
    ("The answer is B, since A is closed.", "B"),
    ("The answer is B and not C", "B"),
    ("It is a library rather than a bank.", "B"),
    ("It's not a bank, it is the library", "B"),
    ("library, not bank", "B"),
    ("A or B? The answer is B.", "B"),
    ("The answer is A or B. Finally, the answer is B.", "B"),
    ("Correct answer: D", "D"),
    ("I think it's B", "B"),
    ("A", "A"),
    ("The answer is A.", "A"),
    ("the answer is a", "A"),
    ("It must be A", "A"),
    ("The answer is E", "E"),
    ("E) New York", "E"),
    ("The answer is New York.", "E"),
    ("LIBRARY", "B"),
    ("It is a library.", "B"),
    ("“B”", "B"),
    ("B!", "B"),
    ("The correct choice is B (library).", "B"),
    ("Among the options, B is best", "B"),
    ("A. bank\nB. library\nC. department store\nD. mall\nE. New York\n\nThe answer is D", "D"),
    ("I choose B", "B"),
    ("Select D", "D"),
]
NO_STATEMENTS = [
    "The answer is A or B",
    "A or B",
    "A, B",
    "A, B, C, D, E",
    "A and B",
    "A/B",
    "A B C",
    "Either A or B.",
    "The answer is either (A) or (B).",
    "(A) or (B)",
    "The answer is not A",
    "Not A",
    "not A.",
    "It is not A.",
    "A is not correct.",
    "A is wrong",
    "Option A is incorrect",
    "The answer is neither A nor B",
    "It could be A, B or C.",
    "The answer could be A, C, or D.",
    "Answer: A, B",
    "Answer: B/C",
    "Die Antwort ist nicht A",
    "Die Antwort ist A oder B",
    "La réponse n'est pas A",
    "La respuesta no es A",
    "La respuesta es A o B",
    "答案不是A",
    "答案是A或B",
    "答案是A、B",
    "정답은 A가 아니다",
    "It is not a bank.",
    "bank or library",
    "bank, library, mall",
    "It is a bank or a library",
    "\\boxed{A, B}",
    "\\boxed{A} or \\boxed{B}",
    "<answer>A or B</answer>",
    "A. bank\nB. library\nC. department store\nD. mall\nE. New York",
    "The answer is F",
    "A place with books",
    "I do not know",
    "The answer is a place",
    "Vitamin A",
    "See Appendix A",
    "All of A, B and C are right",
    "The answer is B. Actually, the answer is A or B.",
    "\\boxed{B} \\boxed{",
    "A and B are both correct answers",
    "a or b",
    "the answer is a or b",
    "option 7",
    "(A), (B), (C)",
    "The answer is A.\nThe answer is not A.",
]


@pytest.mark.parametrize(("text", "expected"), STATEMENTS)
def test_a_statement_is_read(text, expected):
    assert choice_letter(text, PLACES) == expected


@pytest.mark.parametrize("text", NO_STATEMENTS)
def test_hedges_lists_and_denials_name_no_choice(text):
    assert choice_letter(text, PLACES) is None


LOOK_ALIKES = [
    ["-2", "2"],
    ["x+1", "x-1"],
    ["Na+", "Na-"],
    ["BB BB", "BB Bb", "Bb Bb", "Bb bb"],
    ["$\\frac{1}{2}$", "$-\\frac{1}{2}$"],
    ["x < 3", "x > 3", "x = 3", "x ≤ 3"],
    ["f'(x)", "f(x)", "f''(x)"],
    ["5 m/s", "5 m/s^2", "-5 m/s", "5 m"],
    ["2^3", "23", "2*3", "2/3"],
    ["H2O", "H2O2", "H3O+", "OH-"],
    ["10%", "10", "0.10", "10°"],
    ["(0, 1)", "[0, 1]", "(0, 1]", "[0, 1)"],
    ["1 only", "2 only", "1 and 2 only", "1, 2 and 3"],
    ["True, True", "True, False", "False, True", "False, False"],
    ["p → q", "q → p", "p ∧ q", "p ∨ q"],
    ["~p", "p", "~~p", "p & ~p"],
    ["AaBb", "aabb", "AABB", "AaBB"],
    ["a b c", "a  b d", "a.b c", "ab c"],
    ["e^x", "e^-x", "-e^x", "e^x + C"],
    ["8/5", "5/8", "-8/5", "1.6e1"],
    ["$x^2$", "$x_2$", "$x2$", "$2x$"],
    ["Only I", "Only II", "I and II", "Neither I nor II"],
    ["0", "1", "2", "3"],
    ["4", "14", "40", "400"],
    ["1.5", "15", "1,5", "0.15"],
    ["sin x", "cos x", "-sin x", "-cos x"],
    ["I", "II", "III", "IV"],
    ["$20", "$200", "$2,000", "$20,000"],
    ["increase", "decrease", "no increase", "not decrease"],
    ["Cu2+", "Cu+", "Cu", "CuO"],
    ["1:2", "2:1", "1:1", "1:4"],
    ["yes", "no", "Yes, but no", "maybe"],
    ["√5 + 1", "√5 - 1", "5(√5 + 1)", "6(√5 + √7)"],
    ["a > b", "a < b", "a >= b", "a = b"],
]


@pytest.mark.parametrize("choices", LOOK_ALIKES, ids=" | ".join)
def test_choices_that_look_alike_are_told_apart_by_their_own_text(choices):
    for letter, text in zip("ABCD", choices, strict=False):
        forms = (text, f"{text}.", f" {text}\n", f"**{text}**", f"{letter}. {text}", f"({letter}) {text}")
        assert [choice_letter(form, choices) for form in forms] == [letter] * len(forms)
        for form in (f"The answer is {text}", f"It is {text}.", f"So it is {text}"):
            assert choice_letter(form, choices) in (letter, None), form


@pytest.mark.parametrize("choices", [["C", "C++", "C#"], ["x", "y", "z", "A"]])
def test_a_letter_that_is_another_choices_text_names_none(choices):
    for letter in "ABCD"[: len(choices)]:
        expected = None if letter in choices else letter
        assert (
            choice_letter(letter, choices) == choice_letter(f"The answer is {letter}.", choices) == expected
        )


AQUA = ["A)21", "B)21.5", "C)22", "D)22.5", "E)23"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("21", "A"),
        ("22.5", "D"),
        ("22.50", "D"),
        ("$22", "C"),
        ("A)21", "A"),
        ("D) 22.5", "D"),
        ("E", "E"),
        ("The answer is 23", "E"),
        ("(B) 21.5", "B"),
        ("2", None),
        ("24", None),
        ("21 or 22", None),
    ],
)
def test_choices_that_carry_their_own_letter_are_read_by_value(text, expected):
    assert choice_letter(text, AQUA) == expected
    assert choice_letter(text, [f"({choice[0]}) {choice[2:]}" for choice in AQUA]) == expected
    assert choice_letter(text, [f"{choice[0]}. {choice[2:]}" for choice in AQUA]) == expected


def test_a_letter_is_stripped_only_where_all_choices_carry_the_one_of_their_place():
    assert choice_letter("B. Dylan", ["B. Dylan", "A. Berg"]) == "A"
    assert choice_letter("E. coli", ["virus", "E. coli"]) == "B"


def test_a_choice_that_stands_twice_is_right_under_both_letters():
    grade = grader(Reward(name="choice"), "")
    row = {"answers": ["D"], "choices": ["clumsy", "dull", "stupid", "clumsy"]}
    assert [grade(text, row)[0] for text in ("clumsy", "D", "A", "B", "dull")] == [1.0, 1.0, 1.0, 0.0, 0.0]


def test_commonsense_qa_by_text():
    if not COMMONSENSE_QA.is_file():
        pytest.skip("needs ../shared/data/commonsense_qa.dev.jsonl beside the repository")
    rows = [json.loads(line) for line in COMMONSENSE_QA.read_text(encoding="utf-8").splitlines()]
    grade = grader(Reward(name="choice"), "")
    for row in rows:
        right = row["choices"][row["answer"]]
        question = {"answers": ["ABCDE"[row["answer"]]], "choices": row["choices"]}
        for text in row["choices"]:
            assert grade(text, question) == (float(text == right), None), (text, row)
