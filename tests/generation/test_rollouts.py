"""Rollouts on real Ray Data and a real engine: one per question, bad rows kept apart, what is written is not
done again."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stasc_ray import config, store
from stasc_ray.generation import rollouts, unit_files
from stasc_ray.recipes import section_of
from stasc_ray.tasks import sandbox

pytestmark = pytest.mark.slow

SETTINGS = config.validate(
    {
        "prompts": {"preset": "sandbox"},
        "reward": {"name": "exact_match", "scope": "after_marker"},
        "engine": {"max_model_len_tokens": 256, "kv_cache_gb": 0.25, "batch_size": 8, "device": "cpu"},
    },
    section_of,
)
WARM = config.Sampling(temperature=0.7, top_p=1.0, max_tokens=48)


@pytest.fixture(scope="module", autouse=True)
def local_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    from stasc_ray.runtime import ray_session

    with ray_session.connect(None, tmp_path_factory.mktemp("logs")):
        yield


def job(folder: Path, turns: rollouts.Turns, version: str = "base") -> rollouts.Job:
    return rollouts.Job(
        model=str(sandbox.model_path()),
        model_version=version,
        settings=SETTINGS,
        turns={"train": turns},
        destination=str(folder),
        on_cuda=False,
    )


def question_file(folder: Path, rows: list[dict[str, Any]]) -> Path:
    file = folder / "train.parquet"
    unit_files.write_questions([{**row, "split": "train"} for row in rows], file, unit_size=8)
    return file


def read(folder: Path) -> dict[str, dict[str, Any]]:
    rows = [row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


@pytest.fixture(scope="module")
def first_pass(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, list[dict[str, Any]], list[dict[str, Any]]]:
    """20 questions, one of them far too long; the folder, the questions and the summaries."""
    folder = tmp_path_factory.mktemp("pass")
    questions = sandbox.questions("train", 20, seed=3)
    questions[5] = {**questions[5], "id": "long", "question": "What is 1 + " + "1 + " * 100 + "1?"}
    units = unit_files.question_units(question_file(folder / "questions", questions), "train")
    assert [unit.name for unit in units] == ["train-000000", "train-000001", "train-000002"]
    summaries = list(rollouts.roll_out(job(folder / "rollouts", rollouts.Turns(2, 3, WARM, WARM)), units))
    return folder, questions, summaries


def test_every_question_has_one_rollout_with_all_its_samples(first_pass: Any) -> None:
    folder, questions, summaries = first_pass
    rows = read(folder / "rollouts")
    assert set(rows) == {question["id"] for question in questions}
    for identity, row in rows.items():
        if identity == "long":
            continue
        assert len(row["initial"]) == 2 and [len(part) for part in row["corrections"]] == [3, 3]
        assert [len(part) for part in row["correction_rewards"]] == [3, 3] and len(
            row["initial_rewards"]
        ) == 2
        assert (
            row["model_version"] == "base" and row["initial_from"] == "current" and row["prompt_tokens"] > 0
        )
        for answer, reward in zip(row["initial"], row["initial_rewards"], strict=True):
            assert reward == float(answer.rpartition("=")[2].strip() == row["answers"][0])
    assert sum(summary["questions"] for summary in summaries) == 20
    generated = sum(
        sum(row["initial_tokens"]) + sum(map(sum, row["correction_tokens"])) for row in rows.values()
    )
    assert (
        sum(summary["initial_tokens"] + summary["correction_tokens"] for summary in summaries)
        == generated
        > 0
    )


def test_a_prompt_that_is_too_long_is_an_error_of_its_row_alone(first_pass: Any) -> None:
    folder, _, summaries = first_pass
    row = read(folder / "rollouts")["long"]
    assert (
        "expected fewer than engine.max_model_len_tokens = 256 tokens" in row["error"]
        and row["initial"] == []
    )
    assert sum(summary["errors"] for summary in summaries) == 1


def test_only_what_has_no_file_is_done_again_and_half_files_are_never_read(
    first_pass: Any, tmp_path: Path
) -> None:
    folder, *_ = first_pass
    destination = folder / "rollouts"
    before = {file.name: file.stat().st_mtime_ns for file in destination.glob("*.parquet")}
    lost = destination / "train-000001.parquet"
    content = read(destination)
    (destination / ".train-000001.abc.partial").write_bytes(lost.read_bytes()[:100])
    lost.unlink()
    units = unit_files.question_units(folder / "questions" / "train.parquet", "train")
    summaries = list(rollouts.roll_out(job(destination, rollouts.Turns(2, 3, WARM, WARM)), units))
    assert [summary["unit"] for summary in summaries] == ["train-000001"]
    after = {file.name: file.stat().st_mtime_ns for file in destination.glob("*.parquet")}
    assert {name for name in before if before[name] != after[name]} == {"train-000001.parquet"}
    assert not list(destination.glob(".*.partial"))
    again = {
        name: len(list(destination.glob(f".{name}.*.begun"))) for name in ("train-000000", "train-000001")
    }
    assert again == {"train-000000": 1, "train-000001": 2}
    assert rollouts.done_again(destination, units) == 1 and not list(destination.glob(".*"))
    assert set(read(destination)) == set(content)


def test_given_initial_answers_are_kept_and_corrected_in_rounds(first_pass: Any, tmp_path: Path) -> None:
    folder, *_ = first_pass
    units = unit_files.given_units(sorted((folder / "rollouts").glob("*.parquet")), "train")
    assert [unit.name for unit in units] == ["train-fixed-000000", "train-fixed-000001", "train-fixed-000002"]
    turns = rollouts.Turns(2, 2, WARM, WARM, chained=True)
    list(rollouts.roll_out(job(tmp_path / "fixed", turns, version="iteration_01"), units))
    given, found = read(folder / "rollouts"), read(tmp_path / "fixed")
    assert set(found) == set(given)
    for identity, row in found.items():
        assert row["initial"] == given[identity]["initial"] and row["initial_from"] == "base"
        assert row["model_version"] == "iteration_01"
        if identity == "long":
            assert "no initial answer was given" in row["error"]
        else:
            assert [len(rounds) for rounds in row["corrections"]] == [2, 2]
    files = list((tmp_path / "fixed").glob("*.parquet"))
    assert unit_files.of_split(files, "train", "base") and not unit_files.of_split(files, "train")


# Ray gets classes made in a function by value, so that its workers need not import this file.


def dying_actor(starts: Path) -> Any:
    """Stands for an engine that dies at every question; notes each start."""

    class Dying:
        def __init__(self, job: rollouts.Job) -> None:
            with starts.open("a") as file:
                file.write("start\n")

        def __call__(self, batch: Any) -> Any:
            os._exit(1)

    return Dying


@pytest.mark.timeout(180)
def test_an_engine_that_always_dies_ends_the_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(rollouts, "MAX_RESTARTS", 2)
    units = unit_files.question_units(
        question_file(tmp_path, [{"id": "a", "question": "1+1", "answers": ["2"]}]), "train"
    )
    turns = rollouts.Turns(1, 1, WARM, WARM)
    with pytest.raises(ray.exceptions.RayError, match="died"):
        rollouts.pipeline(job(tmp_path, turns), units, dying_actor(tmp_path / "starts")).materialize()
    assert len((tmp_path / "starts").read_text().splitlines()) == 3


def wordy_actor() -> Any:
    """Stands for an engine whose answers are far longer than Ray Data's blocks are by default."""
    answered = {
        "model_version": "base",
        "initial": ["x" * 2**20],
        "initial_finish": ["stop"],
        "initial_tokens": [1],
        "initial_rewards": [],
        "corrections": [["y"]],
        "correction_finish": [["stop"]],
        "correction_tokens": [[1]],
        "correction_rewards": [],
        "prompt_tokens": 1,
        "grader_errors": [],
        "error": None,
        "engine_start_s": 0.0,
        "engine_node": "none",
    }
    beside = [("unit", pa.string()), ("engine_start_s", pa.float64()), ("engine_node", pa.string())]

    class Wordy:
        def __init__(self, job: rollouts.Job) -> None:
            pass

        def __call__(self, batch: Any) -> Any:
            rows = [row | answered for row in unit_files.from_one_row(batch).to_pylist()]
            return pa.Table.from_pylist(rows, schema=pa.schema([*unit_files.ROLLOUT_SCHEMA, *beside]))

    return Wordy


def test_many_questions_make_larger_units_not_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_files, "MAX_UNITS", 4)
    rows = [{"id": str(i), "question": "1+1", "answers": ["2"], "split": "train"} for i in range(10)]
    for unit_size, expected in ((5, 2), (2, 4)):
        unit_files.write_questions(rows, tmp_path / "train.parquet", unit_size)
        assert len(unit_files.question_units(tmp_path / "train.parquet", "train")) == expected


def test_a_unit_is_one_file_however_long_its_texts(tmp_path: Path) -> None:
    """300 MB in one unit: more than twice the block size at which Ray Data would split it."""
    rows = [{"id": str(i), "question": "1+1", "answers": ["2"], "split": "train"} for i in range(300)]
    unit_files.write_questions(rows, tmp_path / "train.parquet", unit_size=len(rows))
    (unit,) = unit_files.question_units(tmp_path / "train.parquet", "train")
    destination = tmp_path / "rollouts"
    destination.mkdir()
    (summary,) = rollouts.pipeline(
        job(destination, rollouts.Turns(1, 1, WARM, WARM)), [unit], wordy_actor()
    ).take_all()
    assert summary["questions"] == 300
    (file,) = destination.glob("*.parquet")
    assert pq.read_metadata(file).num_rows == 300


def test_a_worker_of_an_attempt_that_was_taken_over_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / "0002").touch()
    row = {
        "id": "a",
        "question": "What is 1 + 2?",
        "answers": ["3"],
        "split": "train",
        "documents": [],
        "choices": [],
    }
    row |= {"initial_from": "current", "model_version": "base", "initial": ["=3"], "initial_finish": ["stop"]}
    row |= {
        "initial_tokens": [2],
        "corrections": [["=3"]],
        "correction_finish": [["stop"]],
        "correction_tokens": [[2]],
        "prompt_tokens": 9,
        "error": None,
    }
    row |= {
        "initial_rewards": [],
        "correction_rewards": [],
        "grader_errors": [],
        "unit": "train-0",
        "engine_start_s": 0.0,
    }
    batch = pa.Table.from_pylist([row | {"engine_node": "one"}])
    folder = tmp_path / "rollouts"
    folder.mkdir()
    turns = rollouts.Turns(1, 1, SETTINGS.sampling.initial, SETTINGS.sampling.correction)
    with pytest.raises(RuntimeError, match="taken this run over"):
        rollouts.grade_and_write(batch, replace(job(folder, turns), lease=store.Lease(tmp_path / "lease", 1)))
    assert not list(folder.glob("*.parquet"))
    rollouts.grade_and_write(batch, replace(job(folder, turns), lease=store.Lease(tmp_path / "lease", 2)))
    assert [file.name for file in folder.glob("*.parquet")] == ["train-0.parquet"]
