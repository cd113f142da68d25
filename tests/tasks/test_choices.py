"""Reading a choice from an answer: letters, articles that look like letters, texts."""

# ruff: noqa: RUF001 (signs and letters of many scripts are meant)

import json
import time
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
    ("The correct answer is: B", "B"),
    ("The answer is B: library", "B"),
    ("The answer is B) library", "B"),
    ("The answer is (B) library, because it's quiet.", "B"),
    ("the correct option is b.", "B"),
    ("I believe the answer is option (d).", "D"),
    ("Answer - B", "B"),
    ("Answer – B", "B"),
    ("Answer = B", "B"),
    ("ANSWER: B", "B"),
    ("ans: B", "B"),
    ("Ans. B", "B"),
    ("**Answer: B**", "B"),
    ("*B*", "B"),
    ("B) ", "B"),
    ("(B", "B"),
    ("B]", "B"),
    ("'B'", "B"),
    ("$B$", "B"),
    ("$\\text{B}$", "B"),
    ("\\text{B}", "B"),
    ("\\boxed{(B)}", "B"),
    ("\\boxed{B. library}", "B"),
    ("$\\boxed{\\mathrm{B}}$", "B"),
    ("\\boxed{b}", "B"),
    ("\\boxed{library}", "B"),
    ("\\boxed{\\text{library}}", "B"),
    ("<answer>(B)</answer>", "B"),
    ("<answer> B. library </answer>", "B"),
    ("Final answer: <B>", "B"),
    ("[[B]]", "B"),
    ('{"answer": "B"}', "B"),
    ("answer: {B}", "B"),
    ("Both A and C are wrong. The answer is B.", "B"),
    ("A and C are incorrect, so B.", "B"),
    ("It can't be A. It must be B.", "B"),
    ("Eliminate A, C, D and E. B remains.", "B"),
    ("Not A, not C, so the answer is B", "B"),
    ("The answer isn't A; it's B.", "B"),
    ("The answer is not A but B", "B"),
    ("The answer is B rather than A", "B"),
    ("B rather than A", "B"),
    ("B instead of A", "B"),
    ("Although A is tempting, the answer is B.", "B"),
    ("Unlike A, B is correct", "B"),
    ("B is correct and A is not", "B"),
    ("B is better than A, so the answer is B", "B"),
    ("I considered A and B. I choose B.", "B"),
    ("Options A and B are close, but B is the best answer.", "B"),
    ("The answer is most likely B", "B"),
    ("The answer is probably (B).", "B"),
    ("Most likely B.", "B"),
    ("Definitely B", "B"),
    ("It's B", "B"),
    ("It is B.", "B"),
    ("that'd be B", "B"),
    ("B it is", "B"),
    ("B, I think.", "B"),
    ("B because A is closed", "B"),
    ("B since it's quiet", "B"),
    ("B (library)", "B"),
    ("library (B)", "B"),
    ("library - B", "B"),
    ("Letter B", "B"),
    ("choice B", "B"),
    ("Choice (B)", "B"),
    ("Option: B", "B"),
    ("option b", "B"),
    ("B.", "B"),
    ("B,", "B"),
    ("b)", "B"),
    ("(b) library", "B"),
    ("The library is the answer", "B"),
    ("The answer: library", "B"),
    ("The best place is a library.", "B"),
    ("Die Antwort lautet B.", "B"),
    ("Die Lösung ist B", "B"),
    ("Richtig ist B.", "B"),
    ("B ist die richtige Antwort", "B"),
    ("Antwort B", "B"),
    ("La réponse correcte est B.", "B"),
    ("Réponse : B", "B"),
    ("C'est B", "B"),
    ("C'est la réponse B", "B"),
    ("La respuesta es B", "B"),
    ("Respuesta: B", "B"),
    ("La opción correcta es B", "B"),
    ("Es la B", "B"),
    ("La risposta è B", "B"),
    ("Risposta: B", "B"),
    ("A resposta é B", "B"),
    ("A alternativa correta é B", "B"),
    ("Ответ: B", "B"),
    ("Правильный вариант — B", "B"),
    ("Правильный ответ — B.", "B"),
    ("B — правильный ответ", "B"),
    ("Відповідь: B", "B"),
    ("Odpowiedź: B", "B"),
    ("Prawidłowa odpowiedź to B", "B"),
    ("Svaret är B", "B"),
    ("Cevap: B", "B"),
    ("Doğru cevap B'dir.", "B"),
    ("Jawabannya adalah B", "B"),
    ("Đáp án đúng là B", "B"),
    ("答案为B", "B"),
    ("答案应该是B。", "B"),
    ("正确选项是B", "B"),
    ("选择B", "B"),
    ("我选B", "B"),
    ("因此,答案是 (B)。", "B"),
    ("所以选B。", "B"),
    ("答えはBだ", "B"),
    ("答え:B", "B"),
    ("正解:B", "B"),
    ("Bが正しい", "B"),
    ("Bです", "B"),
    ("답은 B이다", "B"),
    ("정답은 B번입니다", "B"),
    ("B가 정답이다", "B"),
    ("الإجابة الصحيحة هي B", "B"),
    ("الجواب: B", "B"),
    ("उत्तर: B", "B"),
    ("सही विकल्प B है", "B"),
    ("คำตอบ: B", "B"),
    ("ตอบ B", "B"),
    ("התשובה היא B", "B"),
    ("Απάντηση: B", "B"),
    ("Het juiste antwoord is B", "B"),
    ("Správná odpověď je B", "B"),
    ("A helyes válasz: B", "B"),
    ("Răspunsul corect este B", "B"),
    ("Oikea vastaus on B", "B"),
    ("Câu trả lời là B", "B"),
    ("The answer is B!", "B"),
    ("The answer is ... B", "B"),
    ('The answer is "B"', "B"),
    ("The answer is ‘B’.", "B"),
    ("The answer is “B”.", "B"),
    ("So, the answer would be B", "B"),
    ("Hence B is the answer.", "B"),
    ("Thus (B).", "B"),
    ("I'm going with B.", "B"),
    ("I'll go with B", "B"),
    ("My answer is B", "B"),
    ("My final answer: B", "B"),
    ("B\n\nExplanation: it is quiet.", "B"),
    ("B - It is quiet.", "B"),
    ("B: It is quiet there.", "B"),
    ("A", "A"),
    ("a", "A"),
    ("A.", "A"),
    ("(A)", "A"),
    ("A) bank", "A"),
    ("The answer is A, bank.", "A"),
    ("A is correct.", "A"),
    ("A is the answer", "A"),
    ("Option A", "A"),
    ("It's A.", "A"),
    ("It has to be A.", "A"),
    ("So A.", "A"),
    ("The correct answer is A: bank", "A"),
    ("Answer: A", "A"),
    ("Answer: a", "A"),
    ("D is the correct answer because A is closed", "D"),
    ("New York City? No, the library.", "B"),
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
    "A or B or C",
    "A/B/C",
    "A|B",
    "A; B",
    "A, B or C",
    "A & B",
    "A + B",
    "either a or b",
    "Maybe A, maybe B",
    "Perhaps A or B",
    "A, or B",
    "(A)/(B)",
    "(A), (B)",
    "A) or B)",
    "Answer: A or B",
    "Answer: A and B",
    "Answer: (A) (B)",
    "The answer is A, B, C, D, or E.",
    "The answer is both A and B",
    "The answer could be A or B",
    "The answer is A. Or B.",
    "I think A or B",
    "It's A or B",
    "It is either A or B.",
    "A oder B",
    "A ou B",
    "A o B",
    "A или B",
    "A和B",
    "A或B",
    "AとB",
    "A 또는 B",
    "ABC",
    "ABCDE",
    "A B",
    "A, B, C, D, E",
    "all",
    "All of the above",
    "none",
    "not B",
    "Not (B)",
    "It isn't B",
    "It's not B",
    "The answer is not B.",
    "The answer isn't B",
    "The correct answer cannot be B",
    "B is incorrect",
    "B is not the answer",
    "B is not right",
    "B is false",
    "Anything but B",
    "Everything except B",
    "I don't think it's B",
    "I would not choose B",
    "Don't choose B",
    "Die Antwort ist nicht B",
    "B ist falsch",
    "B ist nicht richtig",
    "Ce n'est pas B",
    "La réponse n'est pas B",
    "No es B",
    "La respuesta no es B",
    "Non è B",
    "A resposta não é B",
    "Ответ не B",
    "B неверно",
    "答案不是B",
    "不选B",
    "B不对",
    "B是错的",
    "Bではない",
    "答えはBではない",
    "정답은 B가 아니다",
    "B는 틀렸다",
    "not the library",
    "It is not a library",
    "anything except the library",
    "library or mall",
    "library, mall or bank",
    "library / mall",
    "a library and a mall",
    "neither the bank nor the library",
    "Not a bank, not a library",
    "",
    "?",
    "X",
    "Z",
    "6",
    "The answer is",
    "Answer:",
    "I am not sure",
    "A lot of people go there",
    "A library or a bank",
    "<answer></answer>",
    "\\boxed{}",
    "\\boxed{A,B}",
    "\\boxed{A \\text{ or } B}",
    "<answer>A, B</answer>",
    "The answer is A/B",
    "A? B?",
    "A, maybe B",
    "B or maybe C",
    "First A, then B, then C",
    "between A and B",
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


DENIED_TEXTS = [
    "{} is wrong",
    "It cannot be {}.",
    "I would rule out {}.",
    "I don't think {} is right.",
    "The {} is not where you go.",
    "Eliminate {}.",
    "No {}",
    "everything but the {}",
    "{} is a wrong answer",
    "The {} seems unlikely",
]


@pytest.mark.parametrize("said", DENIED_TEXTS)
def test_a_choice_that_is_denied_by_its_text_is_not_paid(said):
    assert choice_letter(said.format("library"), PLACES) is None
    assert choice_letter(said.format("mall"), PLACES) is None


NOT_B = [
    "B, no",
    "I doubt it is B",
    "It is unlikely to be B",
    "Option B would be wrong",
    "Option B can be eliminated",
    "B can be ruled out",
    "I rule B out",
    "The answer is B. Wait, no.",
    "A > B",
    "B vs. C",
    "First guess: A. Second guess: B.",
    "1. A 2. B",
    "A. bank or B. library",
    "The answer is B, though A is just as good",
    "B, but A is also possible",
    "B\nC",
    "B\nC\nD",
    "- B\n- C",
    "library\nmall",
    "1. library\n2. mall",
    "library (or mall)",
    "library, possibly mall",
    "library vs. mall",
    "答えはBではありません",
    "정답은 B가 아닙니다",
    "Keine der Antworten: B",
    "A. library",
    "The answer is A: library",
    "The answer is A (library)",
    "library (A)",
    "(C) library",
    "The answer is B. But C is also correct.",
    "B as well as D",
    "B along with C",
    "A library would be silly, not B",
    "I can exclude the library",
    "B: mall",
    "The answer is (C) mall",
]


@pytest.mark.parametrize("text", NOT_B)
def test_doubts_rankings_lists_over_lines_and_contradictions_name_no_choice(text):
    assert choice_letter(text, PLACES) is None


@pytest.mark.parametrize("text", ["I prefer A to B", "I chose A over B", "The answer is B... no wait, A"])
def test_what_is_set_behind_another_or_revised_is_not_paid(text):
    assert choice_letter(text, PLACES) in (None, "A")


LEFT = [
    ("B is tempting, but A is correct.", "A"),
    ("While B seems plausible, A is best", "A"),
    ("While A is tempting, B is correct", "B"),
    ("A is wrong, B is correct.", "B"),
    ("The bank is wrong, the library is correct.", "B"),
    ("Not A; B.", "B"),
    ("Not the bank; the library.", "B"),
    ("A: wrong\nB: correct\nC: wrong", "B"),
    ("B (not A)", "B"),
    ("All but B are wrong", "B"),
    ("The answer is not (A), (C), (D) or (E), so it is (B).", "B"),
    ("Only B makes sense.", "B"),
    ("There is no doubt it is B", "B"),
    ("The correct option is 2", "B"),
    ("B\n\nA is for money, C is for shopping.", "B"),
    ("The bank and the mall are wrong; the library is right.", "B"),
    ("A is for money. C is for shopping. So the answer is (B) library.", "B"),
    ("**Answer: B. library**\n\nA bank is a place for money.", "B"),
    ("It is B, not C or D.", "B"),
    ("B选项是正确的", "B"),
    ("Nicht A, sondern B", "B"),
    ("不是A，而是B", "B"),
    ("Не A, а B", "B"),
    ("A ではなく B", "B"),
    ("A가 아니라 B입니다", "B"),
    ("答えはBではなくCです", "C"),
    ("La respuesta no es B sino C", "C"),
    ("Ce n'est pas B mais C", "C"),
    ("Non è B ma C", "C"),
]


@pytest.mark.parametrize(("text", "expected"), LEFT)
def test_the_one_choice_left_is_read_where_others_are_denied(text, expected):
    assert choice_letter(text, PLACES) == expected


@pytest.mark.parametrize(
    ("text", "choices", "expected"),
    [
        ("The answer is A and B.", ["A and B", "A or B", "A", "B"], "A"),
        ("The answer is A or B.", ["A and B", "A or B", "A", "B"], "B"),
        ("Answer: not hungry (B)", ["full", "not hungry", "sad"], "B"),
        ("have no money (C)", ["poor", "rich", "have no money"], "C"),
        ("He is not hungry", ["not hungry", "hungry"], "A"),
        ("red", ["1) red", "2) green", "3) blue"], "A"),
        ("2) green", ["1) red", "2) green", "3) blue"], "B"),
        ("x", ["A]x", "B]y"], "A"),
        ("1.5", ["1.5", "2.5"], "A"),
        ("1:2", ["1:2", "2:1"], "A"),
    ],
)
def test_a_choices_own_denials_letters_and_numbers_are_part_of_it(text, choices, expected):
    assert choice_letter(text, choices) == expected


def test_long_texts_are_read_in_time():
    started = time.monotonic()
    for text in ("(A" * 2000, "A, " * 1500, "B\n" * 2000, "library " * 600, "not A " * 800):
        choice_letter(text, PLACES)
    assert time.monotonic() - started < 15


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is rough because bumpy is wrong.", "A"),
        ("Not bumpy; plastic.", "D"),
        ("Not non smooth; rough.", "A"),
        ("rough or non smooth", None),
        ("non smooth\nrough", None),
        ("I rule out plastic, so bumpy.", "E"),
        ("The answer is non smooth.", "B"),
    ],
)
def test_texts_that_deny_by_themselves_are_weighed_like_others(text, expected):
    assert choice_letter(text, ["rough", "non smooth", "uneven", "plastic", "bumpy"]) == expected
