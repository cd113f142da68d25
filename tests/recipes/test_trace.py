"""The trace of a question: on disk and in memory, where chains end, how it is graded."""

import itertools
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from harness.traces import answered, row

from stasc_ray.recipes.trace import (
    ANSWER,
    CORRECTION,
    Text,
    corrections,
    depth,
    finals,
    grade,
    read_texts,
    roots,
    write_texts,
)
from stasc_ray.store import files
from stasc_ray.store.rows import text_columns, trace_schema

ANSWERS = (ANSWER, CORRECTION)


def tree() -> list[Text]:
    """Two answers of M0 and one of another model; of the first a verdict with two corrections, one corrected
    again."""
    first, second = Text(ANSWER, "a", 0), Text(ANSWER, "b", 1)
    own = Text(ANSWER, "own", 0, None, "iteration_01")
    verdict = Text("verdict", "wrong", 0, first, "iteration_01", token_ids=(5, 2), prompt_tokens=9)
    better, worse = (Text(CORRECTION, f"c{k}", k, verdict, "iteration_01", reward=k) for k in (0, 1))
    again = Text(CORRECTION, "d", 0, better, "iteration_01", logprob=-0.5, finish_reason="length")
    beside = Text(CORRECTION, "e", 0, second, "iteration_01", grader_error="TimeoutError: 5 s")
    return [first, second, own, verdict, better, worse, again, beside]


def shape(texts: list[Text]) -> list[tuple]:
    """All that a text says, its parents by their texts."""
    names = ("turn", "sample", "writer", "token_ids", "finish_reason", "prompt_tokens", "reward")
    rest = ("grader_error", "logprob")
    return [
        (
            *(one.text for one in text.lineage),
            *(
                tuple(value) if isinstance(value := getattr(text, name), list) else value
                for name in names + rest
            ),
        )
        for text in texts
    ]


def test_texts_survive_the_way_to_a_file_whatever_order_they_come_in(tmp_path):
    expected = write_texts(tree())
    assert [text["text"] for text in expected] == ["a", "b", "own", "wrong", "e", "c0", "c1", "d"]
    assert [text["parent"] for text in expected] == [-1, -1, -1, 0, 1, 3, 3, 5]
    generator = random.Random(1)
    for _ in range(20):
        texts = tree()
        generator.shuffle(texts)
        assert write_texts(texts) == expected
    file = tmp_path / "train-000000.parquet"
    pq.write_table(pa.Table.from_pylist([row(tree())], schema=trace_schema()), file)
    (found,) = pq.read_table(file).to_pylist()
    texts = read_texts(found)
    assert sorted(shape(texts)) == sorted(shape(tree()))
    assert write_texts(texts) == expected


def test_a_text_that_another_one_follows_comes_before_it():
    for texts in itertools.permutations(tree()[:5]):
        assert all(text["parent"] < number for number, text in enumerate(write_texts(texts)))


def test_fields_that_were_not_read_keep_their_defaults(tmp_path):
    file = tmp_path / "train-000000.parquet"
    pq.write_table(pa.Table.from_pylist([row(tree())], schema=trace_schema()), file)
    (found,) = files.read(file, ["id", *text_columns("turn", "parent", "text")]).to_pylist()
    texts = read_texts(found)
    assert [text.text for text in texts] == [text["text"] for text in write_texts(tree())]
    assert all(text.token_ids == () and text.reward is None for text in texts)
    assert read_texts({"texts": None}) == [] == read_texts({"texts": []})


def test_a_lineage_leads_from_the_root_to_the_text():
    texts = tree()
    first, again = texts[0], texts[6]
    assert [text.text for text in again.lineage] == ["a", "wrong", "c0", "d"] and again.root is first
    assert first.lineage == [first] and first.root is first
    assert [depth(text, ANSWERS) for text in again.lineage] == [0, 1, 1, 2]


def test_roots_are_the_first_answers_of_all_or_of_one_writer():
    texts = tree()
    assert roots(texts) == texts[:3]
    assert roots(texts, "base") == texts[:2] and roots(texts, "iteration_01") == texts[2:3]


def test_corrections_follow_an_answer_directly():
    texts = answered([0, 0], [[0, 1], [1]])
    assert [text.text for text in corrections(texts, texts[0])] == ["a0c0", "a0c1"]
    assert corrections(tree(), tree()[0]) == []


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [(0, ["a"]), (1, ["c0", "c1"]), (2, ["c1", "d"]), (9, ["c1", "d"]), (None, ["c1", "d"])],
)
def test_a_chain_ends_in_its_last_answer_after_so_many_rounds(rounds, expected):
    texts = tree()
    assert [text.text for text in finals(texts, texts[0], ANSWERS, rounds)] == expected


def test_an_answer_that_only_a_verdict_follows_is_final():
    answer = Text(ANSWER, "a")
    texts = [answer, Text("verdict", "right", 0, answer)]
    assert list(finals(texts, answer, ANSWERS)) == [answer]
    assert list(finals(texts, answer, (ANSWER,))) == [answer]


def test_answers_are_graded_by_the_reward_and_verdicts_by_whether_they_agree():
    right, wrong = Text(ANSWER, "right", 0), Text(ANSWER, "wrong", 1)
    said = {"yes": True, "no": False, "hm": None}
    verdicts = [Text("verdict", word, k, answer) for answer in (right, wrong) for k, word in enumerate(said)]
    correction = Text(CORRECTION, "half", 0, verdicts[4])
    broken = Text(CORRECTION, "broken", 0, verdicts[5])
    texts = [correction, broken, *verdicts, right, wrong]
    rewards = {"right": (1.0, None), "wrong": (0.0, None), "half": (0.5, None), "broken": (0.0, "failed")}
    grade(texts, ANSWERS, rewards.__getitem__, ("verdict",), said.get, 1.0)
    assert [text.reward for text in (right, wrong, correction, broken)] == [1.0, 0.0, 0.5, 0.0]
    assert (broken.grader_error, correction.grader_error) == ("failed", None)
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]


def test_a_verdict_is_judged_by_the_threshold():
    answer = Text(ANSWER, "half")
    verdict = Text("verdict", "yes", 0, answer)
    for threshold, reward in ((0.5, 1.0), (0.6, 0.0)):
        grade([answer, verdict], ANSWERS, lambda _: (0.5, None), ("verdict",), lambda _: True, threshold)
        assert verdict.reward == reward


def test_without_a_reader_of_verdicts_no_other_turn_is_graded():
    answer = Text(ANSWER, "a")
    plan = Text("plan", "yes", 0, answer)
    grade([answer, plan], ANSWERS, lambda _: (1.0, None), (), lambda _: True, 1.0)
    assert (answer.reward, plan.reward) == (1.0, None)


def test_a_text_that_was_cut_inside_its_reasoning_has_no_answer_and_no_reward():
    """Even if an empty answer would be paid, as by squad_em for a question without one."""
    cut, answered = (
        Text("answer", "It may be 52", answer_start=12),
        Text("answer", "a</think>52", answer_start=9),
    )
    seen = []
    grade(
        [cut, answered], ("answer",), lambda text: (seen.append(text) or 1.0, None), (), lambda _: None, 1.0
    )
    assert (cut.reward, answered.reward, seen) == (0.0, 1.0, ["52"])
