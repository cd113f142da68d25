"""What a pass says while it runs and at its end: errors of the reward stop it, and texts that were cut are told."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from harness.traces import QUESTION, answered, row, settings
from rich.console import Console

from stasc_ray.generation import unit_files
from stasc_ray.generation.collect import _Seen, collect
from stasc_ray.generation.run_engines import Engines
from stasc_ray.generation.unit_rollout import Job
from stasc_ray.recipes.trace import Text
from stasc_ray.runtime.display import Bar, Display
from stasc_ray.store.rows import trace_schema


def collected(folder: Path, texts: list[Text], *overrides: str) -> dict[str, Any]:
    """A pass whose only unit an earlier attempt has written: nothing is left to run."""
    questions = folder / "questions.parquet"
    unit_files.write_questions([{**QUESTION, "split": "train"}], questions, 1)
    (unit,) = unit_files.question_units(questions, "train")
    destination = folder / "rollouts"
    destination.mkdir()
    pq.write_table(
        pa.Table.from_pylist([row(texts)], schema=trace_schema()), destination / f"{unit.name}.parquet"
    )
    job = Job("model", 0, settings(*overrides), str(destination), on_cuda=False)
    return collect(Display(), job, [unit], "base", Engines(job.settings, on_cuda=False))


def test_shares_of_texts_that_were_cut_are_counted_by_turn_and_told(tmp_path: Path, capsys: Any):
    texts = answered([1, 0], [[1], [0]])
    texts[0].finish_reason = "length"
    found = collected(tmp_path, texts, "sampling.initial.max_tokens=40")
    assert (found["answer_truncated"], found["correction_truncated"]) == (0.5, 0)
    assert (found["truncated"], found["truncated_share"], found["graded"]) == (1, 0.25, 4)
    shown = capsys.readouterr().out
    assert "50% of the answers were cut at sampling.initial.max_tokens = 40: raise it" in shown
    assert "corrections were cut" not in shown


def test_a_reward_that_fails_too_often_stops_the_run_with_its_own_words(tmp_path: Path):
    texts = answered([0, 0, 0, 1])
    for text in texts[:3]:
        text.grader_error = "KeyError: 'score'"
    with pytest.raises(
        RuntimeError, match=r"(?s)found 3 of 4.*KeyError: 'score'.*reward\.max_error_fraction"
    ):
        collected(tmp_path, texts)


def test_a_few_failures_of_the_reward_are_counted(tmp_path: Path):
    texts = answered([0] * 30)
    texts[3].grader_error = "TimeoutError: 5 s"
    assert collected(tmp_path, texts)["grader_errors"] == 1


def test_what_engines_say_is_shown_before_any_unit_is_whole():
    """The engines' words are written here; a real pool says them in test_rollouts.py."""
    stream, now = io.StringIO(), [0.0]
    screen = Display()
    screen.console = Console(file=stream, width=140)
    bar = Bar(screen, "base", 108, 8, "questions", clock=lambda: now[0])
    said = {"engines_up": 0, "engines_starting": 2, "questions": 0, "texts": 0, "tokens": 0}
    seen = _Seen(lambda: said, 8, 80)
    for second in range(62):
        now[0] = float(second)
        if second >= 15:
            said |= {"engines_up": 1, "engines_starting": 1}
        if second >= 25:
            said |= {"engines_up": 2, "engines_starting": 0, "tokens": 94 * (second - 24)}
            said |= {"questions": max(0, second - 40)}
        seen.show(bar)
    lines = [line.strip() for line in stream.getvalue().splitlines()]
    assert lines[0] == "base: 8/108 questions, starting 2 engines, 10 s"
    assert lines[1] == "base: 8/108 questions, waiting for the first tokens, 20 s"
    assert lines[2] == "base: 8/108 questions, 94 tokens/s"  # how long texts are is not known yet
    assert lines[-1].startswith("base: 28/108 questions, 94 tokens/s, ") and lines[-1].endswith(" s left")
    assert seen.up_since is not None
