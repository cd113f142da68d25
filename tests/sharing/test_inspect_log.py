"""`stasc export-log`: what is in the zip, and, if there is one, what inspect_ai itself reads in it."""

import dataclasses
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from harness.measured_runs import QUESTIONS, make_run

from stasc_ray.sharing import evaluations, inspect_log
from stasc_ray.sharing.samples import Answered
from stasc_ray.tasks.prompts import correction_messages

INSPECT = os.environ.get("STASC_TEST_INSPECT")


def exported(run: Any, output: Path | None = None, **chosen: Any) -> tuple[dict[str, Any], Path]:
    """The log as its names and JSON values, and its file."""
    found = evaluations.find(run.path, **chosen)
    file = inspect_log.export(found, output)
    with zipfile.ZipFile(file) as log:
        assert len(set(log.namelist())) == len(log.namelist()) and log.testzip() is None
        return {name: json.loads(log.read(name)) for name in log.namelist()}, file


def test_the_log_has_inspects_parts(tmp_path: Path):
    run = make_run(tmp_path / "sums")
    log, file = exported(run)
    ids = [question["id"] for question in QUESTIONS]
    samples = [f"samples/{name}_epoch_1.json" for name in ids]
    assert [*log] == ["_journal/start.json", *samples, "summaries.json", "header.json"]
    header, start = log["header.json"], log["_journal/start.json"]
    assert header.items() >= start.items() and (header["version"], header["status"]) == (2, "success")
    assert header["eval"]["model"] == "sums/v0001" and header["eval"]["dataset"]["samples"] == len(ids)
    assert [one["id"] for one in log["summaries.json"]] == ids
    assert file.parent == run.path / "inspect" and file.name.startswith("2027-01-15T08-00-00-00-00_sums-test")


def test_figures_are_the_runs(tmp_path: Path):
    run = make_run(tmp_path / "sums")
    log, _ = exported(run, version="v0001", split="dev")
    (line,) = [one for one in run.metrics() if (one["stage"], one["iteration"]) == ("evaluation", 1)]
    for score in log["header.json"]["results"]["scores"]:
        metrics = {name: one["value"] for name, one in score["metrics"].items()}
        assert metrics["mean"] == pytest.approx(line[f"evaluation/dev/{score['name']}"])
        assert metrics["low_95"] == line[f"evaluation/dev/{score['name']}_low"]
        values = [one["scores"][score["name"]]["value"] for one in log["summaries.json"]]
        mean = sum(values) / len(values)
        spread = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
        assert metrics["stderr"] == pytest.approx((spread / len(values)) ** 0.5)
    assert [score["name"] for score in log["header.json"]["results"]["scores"]] == ["r_y2", "r_y1"]


def test_a_sample_is_the_conversation_as_it_was_asked(tmp_path: Path):
    run = make_run(tmp_path / "sums")
    sample = exported(run)[0]["samples/q1_epoch_1.json"]
    said = [(one["role"], one["content"]) for one in sample["messages"]]
    question = {**QUESTIONS[1], "documents": [], "choices": []}
    asked = correction_messages(question, "so\n=x", evaluations.find(run.path).settings.prompts)
    assert said == [(one["role"], one["content"]) for one in asked] + [("assistant", "so\n=2")]
    assert (sample["input"], sample["target"]) == ("What is 1 + 1?", "2")
    assert {name: (one["value"], one["answer"]) for name, one in sample["scores"].items()} == {
        "r_y2": (1.0, "2"), "r_y1": (0.0, "x"),
    }  # fmt: skip
    assert sample["metadata"]["transition"] == "i->c" and sample["output"]["completion"] == "so\n=2"
    assert [(one["turn"], one["reward"]) for one in sample["metadata"]["texts"]] == [
        ("answer", 0.0),
        ("correction", 1.0),
    ]
    assert sample["model_usage"] == {
        "sums/v0001": {"input_tokens": 40, "output_tokens": 6, "total_tokens": 46}
    }


def test_a_question_that_failed_is_a_sample_with_an_error_and_no_reward(tmp_path: Path):
    bad = {"id": "q9", "question": "this fails", "answers": ["1"]}
    run = make_run(tmp_path / "sums", questions=[*QUESTIONS[:2], bad])
    log, _ = exported(run)
    sample, results = log["samples/q9_epoch_1.json"], log["header.json"]["results"]
    assert sample["error"]["message"] == "PromptTooLongError: too long" and sample["output"]["choices"] == []
    assert [one["value"] for one in sample["scores"].values()] == [0.0, 0.0]
    assert (results["total_samples"], results["completed_samples"]) == (3, 2)
    (r_y2, _) = results["scores"]
    assert r_y2["metrics"]["mean"]["value"] == pytest.approx(2 / 3), "it counts as wrong, as in the run"


def test_each_first_answer_is_an_epoch_and_votes_are_one(tmp_path: Path):
    several = exported(make_run(tmp_path / "several", "evaluation.samples=3"))[0]
    assert [name for name in several if "q0" in name] == [f"samples/q0_epoch_{n}.json" for n in (1, 2, 3)]
    assert several["header.json"]["eval"]["config"]["epochs"] == 3
    assert several["header.json"]["results"]["scores"][0]["scored_samples"] == len(QUESTIONS)
    votes = exported(make_run(tmp_path / "votes", "evaluation.samples=3", "evaluation.policy=vote"))[0]
    assert [name for name in votes if "q0" in name] == ["samples/q0_epoch_1.json"]
    texts = votes["samples/q0_epoch_1.json"]["metadata"]["texts"]
    assert len(texts) == 6 and votes["header.json"]["plan"]["steps"][0]["solver"] == "vote"


def test_a_run_that_corrects_m0_shows_what_it_was_chosen_by_and_its_own_if_asked(tmp_path: Path):
    run = make_run(tmp_path / "fixed", "algorithm.initial_answers_from=base")
    log, file = exported(run)
    sample = log["samples/q1_epoch_1.json"]
    assert sample["messages"][1]["content"] == "=1" and set(sample["model_usage"]) == {
        "sandbox",
        "fixed/v0001",
    }
    assert "conversation" not in sample["metadata"]
    own, other = exported(run, own_answers=True)
    assert own["samples/q1_epoch_1.json"]["messages"][1]["content"] == "so\n=x" and other != file
    assert own["header.json"]["results"]["metadata"] != log["header.json"]["results"]["metadata"]
    with pytest.raises(ValueError, match=r"--own-answers: expected a model that corrects the base"):
        evaluations.find(run.path, 0, own_answers=True)


def test_a_given_answer_that_a_verdict_let_pass_has_its_prompt(tmp_path: Path):
    words = ("algorithm.recipe=verdict", "algorithm.initial_answers_from=base")
    run = make_run(tmp_path / "passed", *words, "algorithm.says_wrong=so", "algorithm.says_right==2")
    sample = exported(run)[0]["samples/q1_epoch_1.json"]
    assert [one["content"] for one in sample["messages"]] == ["What is 1 + 1?", "=1"]
    assert "conversation" not in sample["metadata"]
    assert [one["turn"] for one in sample["metadata"]["texts"]] == ["answer", "verdict"]


def test_texts_of_another_config_are_shown_without_prompts_and_say_so(tmp_path: Path):
    run = make_run(tmp_path / "sums")
    file = run.path / "config.json"
    values = json.loads(file.read_text())
    values["evaluation"]["rounds"] = 2  # asked once, told otherwise
    file.write_text(json.dumps(values))
    sample = exported(run)[0]["samples/q1_epoch_1.json"]
    assert "without prompts: expected 1 texts of turn 'correction'" in sample["metadata"]["conversation"]
    assert [one["content"] for one in sample["messages"]] == ["What is 1 + 1?", "so\n=x", "so\n=2"]


def test_choices_documents_and_several_references_are_there(tmp_path: Path):
    question = {
        "id": "q0",
        "question": "Which?",
        "answers": ["A", "B"],
        "choices": ["x", "y"],
        "documents": ["d"],
    }
    sample = exported(make_run(tmp_path / "one", questions=[question]))[0]["samples/q0_epoch_1.json"]
    assert (sample["choices"], sample["target"]) == (["x", "y"], ["A", "B"])
    assert "A. x" in sample["messages"][0]["content"] and "[1] d" in sample["messages"][0]["content"]


def test_a_run_that_only_measures_has_one_too(tmp_path: Path):
    run = make_run(tmp_path / "evaluate", "algorithm.iterations=0", iterations=[0])
    log, _ = exported(run)
    assert log["header.json"]["eval"]["model"] == "sandbox"
    with pytest.raises(ValueError, match="--split: expected one that was measured, found no dev questions"):
        evaluations.find(run.path, split="dev")


def test_a_policy_that_knows_the_reward_shows_no_text_after_a_right_answer(tmp_path: Path):
    run = make_run(tmp_path / "sums", "evaluation.policy=oracle_stop", "evaluation.rounds=2")
    log, _ = exported(run)
    assert [len(log[f"samples/q{n}_epoch_1.json"]["messages"]) for n in (0, 1)] == [2, 4]
    assert "conversation" not in log["samples/q1_epoch_1.json"]["metadata"]


def test_reasoning_stands_apart(tmp_path: Path):
    found = evaluations.find(make_run(tmp_path / "sums").path)
    (row, *_) = pq.read_table(found.files[0]).to_pylist()
    said = "<think>hm</think>so\n=1"
    row["texts"][-1] |= {"text": said, "answer_start": said.index("so"), "finish_reason": "length"}
    (sample,) = Answered(found, row).samples()
    assert sample["messages"][-1]["content"] == [
        {"type": "reasoning", "reasoning": "<think>hm</think>"}, {"type": "text", "text": "so\n=1"},
    ]  # fmt: skip
    assert sample["output"]["choices"][0]["stop_reason"] == "max_tokens"
    assert sample["scores"]["r_y2"]["answer"] == "1"


def test_what_is_not_there_is_refused(tmp_path: Path):
    run = make_run(tmp_path / "sums")
    with pytest.raises(ValueError, match=r"\(v0000, v0001\), found v0007"):
        evaluations.find(run.path, version="v0007")
    with pytest.raises(
        FileNotFoundError, match=r"evaluation of iteration_04 .*, found those of base, iteration_01"
    ):
        evaluations.find(run.path, 4)
    with pytest.raises(ValueError, match="found both"):
        evaluations.find(run.path, 0, "v0001")
    with pytest.raises(FileNotFoundError, match=r"expected config.json"):
        evaluations.find(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"ends in .eval"):
        inspect_log.export(evaluations.find(run.path), tmp_path / "log.json")


def test_a_log_that_breaks_off_leaves_the_old_one(tmp_path: Path):
    run = make_run(tmp_path / "sums")
    out = tmp_path / "out" / "log.eval"
    exported(run, out)
    before = out.read_bytes()
    found = evaluations.find(run.path)
    (run.path / "iteration_01/rollouts/test-000004.parquet").write_bytes(b"cut short")
    with pytest.raises(ValueError, match="expected a whole Parquet file"):
        inspect_log.export(found, out)
    assert out.read_bytes() == before and [*out.parent.iterdir()] == [out]


def test_no_path_of_this_machine_is_in_it(tmp_path: Path):
    run = make_run(
        tmp_path / "sums", f"questions.train.source={tmp_path}/mine.jsonl", f"model.path={tmp_path}/my-model"
    )
    log, _ = exported(run)
    assert str(tmp_path) not in json.dumps(log)
    assert log["header.json"]["eval"]["dataset"]["name"] == "mine.jsonl"


def test_rewards_and_recipes_of_ones_own_are_named_without_their_folder(tmp_path: Path):
    run = make_run(tmp_path / "sums")
    found = evaluations.find(run.path)
    own = found.settings.model_copy(deep=True)
    object.__setattr__(own.reward, "name", "/SECRET/my.py:grade")
    log, _ = exported(run)
    assert log["header.json"]["plan"]["steps"][0]["params"]["recipe"] == "stasc"
    spec = inspect_log._spec(dataclasses.replace(found, settings=own))
    assert spec["scorers"][0]["options"]["reward"] == "my.py:grade" and "SECRET" not in json.dumps(spec)


def test_only_a_log_of_the_same_evaluation_is_overwritten(tmp_path: Path):
    run = make_run(tmp_path / "sums")
    found, out = evaluations.find(run.path), tmp_path / "out.eval"
    inspect_log.export(evaluations.find(run.path, 0), out)
    before = out.read_bytes()
    with pytest.raises(ValueError, match=r"--output: expected a new file, or a log of the same evaluation"):
        inspect_log.export(found, out)
    assert out.read_bytes() == before
    out.write_text("precious")
    with pytest.raises(ValueError, match=r"--output: expected a new file, or a log of the same evaluation"):
        inspect_log.export(found, out)
    assert out.read_text() == "precious"
    for wrong, said in {
        tmp_path: "expected a file, found the folder",
        tmp_path / ".eval": r"expected a file that ends in .eval .*found '.*/.eval'",
    }.items():
        with pytest.raises(ValueError, match=f"--output: {said}"):
            inspect_log.export(found, wrong)


def changed(run: Any, change: Any) -> None:
    """Change the first trace file of test."""
    file = run.path / "iteration_01/rollouts/test-000000.parquet"
    table = pq.read_table(file)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[0].update(id="q1"), "found 'q1' twice"),
        (lambda rows: rows[0].update(id="q\0x"), r"found 'q\\x00x' with a NUL in it"),
        (lambda rows: rows[0].update(id="x" * 70_000), r"found 'x{100}'\.\.\. of 70000 bytes"),
        (lambda rows: rows[0]["texts"][1].update(parent=57), r"test-000000.parquet: question 'q0': .* 57"),
        (lambda rows: rows[0]["texts"][1].update(reward=float("nan")), r"0.parquet: question 'q0': .* nan"),
    ],
)
def test_a_trace_that_no_log_can_hold_is_refused_by_its_question(tmp_path: Path, change: Any, said: str):
    run = make_run(tmp_path / "sums")
    changed(run, change)
    with pytest.raises(ValueError, match=said):
        exported(run)
    assert not [*(run.path / "inspect").iterdir()]


def test_a_run_with_a_long_name_has_a_log(tmp_path: Path):
    _, file = exported(make_run(tmp_path / ("n" * 240)))
    assert file.is_file() and "-v0001_" in file.name


def test_a_mark_without_time_and_a_folder_beside_are_told_of(tmp_path: Path):
    run = make_run(tmp_path / "sums")
    mark = run.path / "iteration_01/evaluation/_COMMITTED.json"
    values = json.loads(mark.read_text())
    del values["line"]["time"]
    mark.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"_COMMITTED.json: expected a line with its time and config"):
        evaluations.find(run.path)
    mark.unlink()
    (run.path / "iteration_zz/evaluation").mkdir(parents=True)
    (run.path / "iteration_zz/evaluation/_COMMITTED.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"found those of base;"):
        evaluations.find(run.path, 1)


def test_the_command_writes_it(tmp_path: Path):
    run = make_run(tmp_path / "sums")
    command = [sys.executable, "-m", "stasc_ray.cli", "export-log", str(run.path), "--output"]
    done = subprocess.run([*command, str(tmp_path / "a.eval")], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (
        0,
        f"{tmp_path}/a.eval; to look at it: inspect view --log-dir {tmp_path}\n",
    )
    done = subprocess.run([*command, str(tmp_path / "a.zip")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.startswith(
        "error: --output: expected a file that ends in .eval"
    )


READ = """
import json, sys
from inspect_ai.log import read_eval_log, read_eval_log_sample, read_eval_log_sample_summaries
log = read_eval_log(sys.argv[1])
one = read_eval_log_sample(sys.argv[1], id="q1/ü b", epoch=1)
json.dump({
    "status": log.status, "samples": len(log.samples),
    "figures": {score.name: score.metrics["mean"].value for score in log.results.scores},
    "said": [(message.role, message.text) for message in one.messages],
    "usage": one.model_usage["sums/v0001"].total_tokens,
    "errors": [sample.error is not None for sample in log.samples],
    "summaries": len(read_eval_log_sample_summaries(sys.argv[1])),
}, sys.stdout)
"""


@pytest.mark.skipif(not INSPECT, reason="STASC_TEST_INSPECT names no Python that has inspect_ai (0.3.285)")
@pytest.mark.parametrize(
    "overrides", [(), ("evaluation.samples=2",), ("evaluation.samples=3", "evaluation.policy=vote")]
)
def test_inspect_reads_it(tmp_path: Path, overrides: tuple[str, ...]):
    bad = {"id": "q9", "question": "this fails", "answers": ["1"]}
    odd = {**QUESTIONS[1], "id": "q1/ü b"}
    run = make_run(tmp_path / "sums", *overrides, questions=[QUESTIONS[0], odd, *QUESTIONS[2:], bad])
    log, file = exported(run)
    # a Python of its own, with its own packages
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(INSPECT), "-c", READ, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=True)
    found = json.loads(done.stdout)
    wanted = {name: value for name, value in log.items() if name.startswith("samples/")}
    assert (found["status"], found["samples"], found["summaries"]) == ("success", len(wanted), len(wanted))
    assert found["errors"].count(True) == 1
    assert found["figures"] == {
        score["name"]: score["metrics"]["mean"]["value"] for score in log["header.json"]["results"]["scores"]
    }
    sample = log["samples/q1/ü b_epoch_1.json"]
    assert found["said"] == [[one["role"], one["content"]] for one in sample["messages"]]
    assert found["usage"] == sample["model_usage"]["sums/v0001"]["total_tokens"]
