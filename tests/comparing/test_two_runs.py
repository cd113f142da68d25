"""`stasc compare RUN_A RUN_B`: configs, shared questions, and which answers flipped."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from harness.traces import settings

from stasc_ray import store
from stasc_ray.comparing import two_runs
from stasc_ray.recipes.trace import Text, write_texts
from stasc_ray.report.compared_page import write_runs_page
from stasc_ray.store.rows import trace_schema


def make_run(
    folder: Path,
    answers: dict[str, tuple[str, float]],
    *overrides: str,
    fixed: bool = False,
    first_reward: float = 0.0,
) -> Path:
    """A run whose version v0001 gave these last answers, with their rewards."""
    with store.open_run(folder, settings(f"name={folder.name}", *overrides)) as run:
        stage, writer = run.stage(1, "rollouts"), "iteration_01"
        stage.mkdir(parents=True)
        rows = []
        for name, (text, reward) in answers.items():
            first = Text("answer", "first", writer=writer, reward=first_reward)
            base = Text("answer", "M0's", reward=0.0)
            texts = [first, Text("correction", text, 0, first, writer, reward=0.0 if fixed else reward)]
            texts += (
                [base, Text("correction", f"of M0: {text}", 0, base, writer, reward=reward)] if fixed else []
            )
            question = {"id": name, "question": f"<b>{name}?", "answers": ["7"], "split": "test"}
            rows.append({**question, "texts": write_texts(texts), "error": None})
        pq.write_table(pa.Table.from_pylist(rows, schema=trace_schema()), stage / "test-000000.parquet")
        run.commit(stage, {"line": {}, "files": ["test-000000.parquet"]})
        run.publish({"version": "v0001", "iteration": 1, "model": "iteration_01/model"}, move_latest=True)
    return folder


def test_shared_questions_are_compared_and_flips_are_shown(tmp_path: Path):
    one = make_run(tmp_path / "one", {"a": ("6", 0), "b": ("7", 1), "c": ("7", 1), "only": ("7", 1)})
    other = make_run(
        tmp_path / "other", {"a": ("7", 1), "b": ("8", 0), "c": ("7", 1)}, "finetune.learning_rate=1e-4"
    )
    found = two_runs.compared(one, other)
    assert (found["paired"]["questions"], found["rewards"]) == (3, [2 / 3, 2 / 3])
    assert [flip["id"] for flip in found["gained"]] == ["a"] and [flip["id"] for flip in found["lost"]] == [
        "b"
    ]
    assert found["gained"][0]["texts"] == ["answer: first\n\ncorrection: 6", "answer: first\n\ncorrection: 7"]
    assert dict((name, (before, after)) for name, before, after in found["config"]) == {
        "name": ('"one"', '"other"'), "finetune.learning_rate": ("7e-06", "0.0001"),
    }  # fmt: skip
    assert any("3 questions are in both; 4 and 3 were asked" in note for note in found["notes"])
    assert any("only other has 1 right, only one 1" in line for line in two_runs.as_lines(found))
    page = write_runs_page(found, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;a?" in page and "<b>" not in page


def test_a_run_that_corrects_m0_is_compared_by_what_it_makes_of_m0s_answers(tmp_path: Path):
    one = make_run(tmp_path / "one", {"a": ("7", 1)}, "algorithm.initial_answers_from=base", fixed=True)
    other = make_run(tmp_path / "other", {"a": ("8", 0)})
    found = two_runs.compared(one, other)
    assert found["rewards"] == [1.0, 0.0] and found["lost"][0]["texts"][0].endswith("correction: of M0: 7")
    assert any("correcting M0's answers" in note for note in found["notes"])


def test_runs_that_share_no_question_or_measured_none_are_refused(tmp_path: Path):
    one, other = (make_run(tmp_path / name, {name: ("7", 1)}) for name in ("one", "other"))
    with pytest.raises(ValueError, match=r"expected test questions that .* share, found none of 1 and 1"):
        two_runs.compared(one, other)
    with store.open_run(tmp_path / "new", settings()):
        pass
    with pytest.raises(FileNotFoundError, match="expected a finished stage"):
        two_runs.compared(one, tmp_path / "new")
    with pytest.raises(FileNotFoundError):
        two_runs.compared(one, tmp_path / "nowhere")
    assert json.loads((one / "config.json").read_text())["name"] == "one", "nothing was touched"


def test_the_text_that_is_shown_is_the_one_whose_reward_counts(tmp_path: Path) -> None:
    stops = ("evaluation.policy=oracle_stop",)
    one = make_run(tmp_path / "one", {"a": ("wrong", 0.0)}, *stops)
    other = make_run(tmp_path / "other", {"a": ("broken", 0.0)}, *stops, first_reward=1.0)
    (shown,) = two_runs.compared(one, other)["gained"]
    assert shown["texts"][1] == "answer: first", "it stops at a right answer, whatever follows in the trace"
