"""Rollouts: what is asked by split and model; then on real Ray Data and a real engine one trace per question."""

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stasc_ray import config, store
from stasc_ray.generation import rollouts, run_engines, unit_files
from stasc_ray.generation.engines import EngineActor
from stasc_ray.generation.samples import Request, Sample
from stasc_ray.generation.spec import EngineSpec
from stasc_ray.generation.unit_rollout import Job, UnitRollout
from stasc_ray.recipes import section_of
from stasc_ray.recipes.rft import Rft
from stasc_ray.recipes.trace import Text, write_texts
from stasc_ray.runtime import model_folder
from stasc_ray.store.rows import trace_schema
from stasc_ray.tasks import sandbox
from stasc_ray.tasks.chat import Chat

WARM = {"temperature": 0.7, "top_p": 1.0, "max_tokens": 48}


@pytest.fixture(scope="module")
def local_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    from stasc_ray.runtime import ray_session

    with ray_session.connect(None, tmp_path_factory.mktemp("logs")):
        yield


def settings_of(**algorithm: Any) -> config.Config:
    """2 answers of each train question and 3 corrections of each answer, unless `algorithm` says otherwise."""
    values = {
        "prompts": {"preset": "sandbox"},
        "reward": {"name": "exact_match", "scope": "after_marker"},
        "engine": {"max_model_len_tokens": 256, "kv_cache_gb": 0.25, "batch_size": 8, "device": "cpu"},
        "sampling": {"initial": WARM, "correction": WARM},
        "algorithm": {"n_initial": 2, "n_corrections": 3, **algorithm},
    }
    return config.validate(values, section_of)


def job(folder: Path, iteration: int = 0, **algorithm: Any) -> Job:
    return Job(
        model=str(sandbox.model_path()),
        iteration=iteration,
        settings=settings_of(**algorithm),
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


BESIDE = [("unit", pa.string()), ("engine_node", pa.string())]


def of_actor(rows: list[dict[str, Any]], unit: str) -> pa.Table:
    """What an actor hands on to be graded."""
    beside = {"unit": unit, "engine_node": "one"}
    return pa.Table.from_pylist([row | beside for row in rows], schema=pa.schema([*trace_schema(), *BESIDE]))


def passed(of: Job, units: list[unit_files.Unit]) -> list[dict[str, Any]]:
    """The summaries of a pass on engines that end with it."""
    with run_engines.engines(of.settings, of.on_cuda) as engines:
        return list(rollouts.roll_out(of, units, engines))


def shape(row: dict[str, Any]) -> list[tuple[str, str, int]]:
    """(turn, writer, parent) of each text."""
    return [(text["turn"], text["writer"], text["parent"]) for text in row["texts"]]


# --- what is asked of whom, without Ray and without an engine --------------------------------------------------------


def question(split: str, **columns: Any) -> dict[str, Any]:
    row = {"id": "q1", "question": "What is 1 + 2?", "answers": ["3"], "documents": [], "choices": []}
    return {**row, "split": split, "texts": [], **columns}


class Scripted:
    """A pass on an engine that is a script and keeps its requests."""

    def __init__(self, job: Job, *texts: str) -> None:
        self.texts, self.requests = texts, []
        chat = Chat(model_folder.load_tokenizer(job.model))
        self.rollout = UnitRollout(job, chat, self.generate, "here")

    async def generate(self, token_ids: list[int], request: Request, _: object) -> list[Sample]:
        self.requests.append(request)
        said = [self.texts[number % len(self.texts)] for number in range(request.n)]
        return [Sample(text, (1, 2), "stop") for text in said]

    def roll_out(self, row: dict[str, Any]) -> dict[str, Any]:
        return asyncio.run(self.rollout.row(row))


def test_train_is_explored_and_dev_and_test_are_measured() -> None:
    of = job(Path("nowhere"), 2)
    train, test = of.plan("train"), of.plan("test")
    assert (train.n_initial, train.n_corrections, train.learn, train.iteration) == (2, 3, True, 2)
    assert (test.n_initial, test.n_corrections, test.learn, test.rounds) == (1, 1, False, 1)
    changed = of.settings.model_copy(
        update={"evaluation": config.Evaluation(rounds=3, samples=4), "algorithm": Rft()}
    )
    of = replace(of, settings=changed)
    assert (of.plan("dev").rounds, of.plan("dev").n_initial, of.plan("dev").n_corrections) == (3, 4, 0)
    assert of.plan("train").rounds == 1, "learning goes one round"


def test_only_what_is_measured_is_greedy() -> None:
    of = job(Path("nowhere"))
    of = replace(of, settings=of.settings.model_copy(update={"evaluation": config.Evaluation(greedy=True)}))
    assert of.sampling("train").initial.temperature == 0.7
    assert {of.sampling("test").initial.temperature, of.sampling("dev").correction.temperature} == {0.0}
    assert of.sampling("test").initial.max_tokens == 48


def test_each_answer_of_a_train_question_is_corrected() -> None:
    actor = Scripted(job(Path("nowhere")), "=4", "=3")
    row = actor.roll_out(question("train"))
    answer, correction = ("answer", "base", -1), ("correction", "base")
    assert shape(row) == [answer, answer, *[(*correction, 0)] * 3, *[(*correction, 1)] * 3]
    assert [text["sample"] for text in row["texts"]] == [0, 1, 0, 1, 2, 0, 1, 2]
    assert row["error"] is None and row["texts"][0]["token_ids"] == [1, 2]
    seeds = [request.seed for request in actor.requests]
    assert len(set(seeds)) == 3
    again = Scripted(job(Path("nowhere")), "=4", "=3")
    again.roll_out(question("train"))
    assert [request.seed for request in again.requests] == seeds
    later = Scripted(job(Path("nowhere"), 1), "=4", "=3")
    later.roll_out(question("train"))
    assert not set(seeds) & {request.seed for request in later.requests}, "another model draws other samples"


def given_answers() -> list[dict[str, Any]]:
    return write_texts([Text("answer", "=5", 0, token_ids=(7,)), Text("answer", "=3", 1, token_ids=(8,))])


def test_fixed_initialization_corrects_m0s_answers_on_train() -> None:
    actor = Scripted(job(Path("nowhere"), 1, initial_answers_from="base", n_corrections=2), "=3")
    row = actor.roll_out(question("train", texts=given_answers()))
    given, own = ("answer", "base", -1), ("correction", "iteration_01")
    assert shape(row) == [given, given, (*own, 0), (*own, 0), (*own, 1), (*own, 1)]
    assert row["texts"][:2] == given_answers()


def test_fixed_initialization_measures_both_ways() -> None:
    """M0's answers corrected, as in the paper, and the model's own."""
    actor = Scripted(job(Path("nowhere"), 1, initial_answers_from="base"), "=3")
    row = actor.roll_out(question("dev", texts=given_answers()[:1]))
    assert sorted(shape(row)) == sorted(
        [
            ("answer", "base", -1),
            ("answer", "iteration_01", -1),
            ("correction", "iteration_01", 0),
            ("correction", "iteration_01", 1),
        ]
    )
    by_parent = {text["parent"]: text for text in row["texts"] if text["turn"] == "correction"}
    assert row["texts"][0]["writer"] == "base" and set(by_parent) == {0, 1}
    assert len({request.seed for request in actor.requests}) == 3, "the two ways draw their own samples"
    assert "no initial answer was given" in actor.roll_out(question("dev"))["error"]


def test_m0_itself_answers_even_with_fixed_initialization() -> None:
    actor = Scripted(job(Path("nowhere"), 0, initial_answers_from="base"), "=3")
    assert shape(actor.roll_out(question("test"))) == [("answer", "base", -1), ("correction", "base", 0)]


@pytest.mark.parametrize(
    ("policy", "rounds", "said", "turns"),
    [
        (None, 1, ["=3"], ["answer", "correction"]),
        (None, 3, ["=3"], ["answer"] + ["correction"] * 3),
        ("until_unchanged", 3, ["=3"], ["answer", "correction"]),
    ],
)
def test_the_policy_decides_on_the_rounds_that_are_measured(
    policy: str | None, rounds: int, said: list[str], turns: list[str]
) -> None:
    of = job(Path("nowhere"))
    evaluation = config.Evaluation(policy=policy, rounds=rounds)
    of = replace(of, settings=of.settings.model_copy(update={"evaluation": evaluation}))
    row = Scripted(of, *said).roll_out(question("test"))
    assert [text["turn"] for text in row["texts"]] == turns
    assert [text["parent"] for text in row["texts"]] == list(range(-1, len(turns) - 1))
    train = Scripted(of, *said).roll_out(question("train"))
    assert len(train["texts"]) == 2 + 2 * 3, "policies are for what is measured and served"


def test_a_bad_row_is_an_error_of_its_own() -> None:
    actor = Scripted(job(Path("nowhere")), "=3")
    row = actor.roll_out(question("train", question="1 + " * 200))
    assert row["texts"] == [] and row["error"].startswith(
        "PromptTooLongError: prompt: expected at most 255 tokens"
    )
    row = Scripted(job(Path("nowhere")), "=3", " ").roll_out(question("train"))
    assert row["error"] == "empty generation: 3 of this question's texts" and len(row["texts"]) == 8


def test_all_answers_are_graded_and_verdicts_by_what_they_judge(tmp_path: Path) -> None:
    of = job(tmp_path, recipe="verdict", n_verdicts=2)
    answer = Text("answer", "1+2=3")
    said = [Text("verdict", text, k, answer) for k, text in enumerate(["My answer is right.", "Who knows"])]
    row = question("train", texts=write_texts([answer, *said, Text("correction", "1+2=4", 0, answer)]))
    summary = rollouts.grade_and_write(of_actor([{**row, "error": None}], "train-000000"), of).to_pylist()[0]
    (found,) = read(tmp_path).values()
    assert [(text["turn"], text["reward"]) for text in found["texts"]] == [
        ("answer", 1.0),
        ("correction", 0.0),
        ("verdict", 1.0),
        ("verdict", 0.0),
    ]
    assert (summary["unit"], summary["questions"], summary["errors"]) == ("train-000000", 1, 0)


# --- on real Ray Data and a real engine ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def first_pass(
    local_ray: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, list[dict[str, Any]], list[dict[str, Any]]]:
    """20 questions, one of them far too long; the folder, the questions and the summaries."""
    folder = tmp_path_factory.mktemp("pass")
    questions = sandbox.questions("train", 20, seed=3)
    questions[5] = {**questions[5], "id": "long", "question": "What is 1 + " + "1 + " * 100 + "1?"}
    units = unit_files.question_units(question_file(folder / "questions", questions), "train")
    assert [unit.name for unit in units] == ["train-000000", "train-000001", "train-000002"]
    summaries = passed(job(folder / "rollouts"), units)
    return folder, questions, summaries


@pytest.mark.slow
def test_every_question_has_one_trace_with_all_its_samples(first_pass: Any) -> None:
    folder, questions, summaries = first_pass
    rows = read(folder / "rollouts")
    assert set(rows) == {question["id"] for question in questions}
    for identity, row in rows.items():
        if identity == "long":
            continue
        answers, corrections = row["texts"][:2], row["texts"][2:]
        assert [text["parent"] for text in row["texts"]] == [-1, -1, 0, 0, 0, 1, 1, 1]
        assert {text["writer"] for text in row["texts"]} == {"base"} and len(corrections) == 6
        assert answers[0]["prompt_tokens"] > 0 and answers[1]["prompt_tokens"] == 0
        for text in row["texts"]:
            assert text["reward"] == float(text["text"].rpartition("=")[2].strip() == row["answers"][0])
            assert len(text["token_ids"]) > 1 and text["finish_reason"] in ("stop", "length")
    assert sum(summary["questions"] for summary in summaries) == 20
    generated = sum(len(text["token_ids"]) for row in rows.values() for text in row["texts"])
    counted = [json.loads(summary["tokens"]) for summary in summaries]
    assert sum(tokens["answer"] + tokens["correction"] for tokens in counted) == generated > 0


@pytest.mark.slow
def test_a_prompt_that_is_too_long_is_an_error_of_its_row_alone(first_pass: Any) -> None:
    folder, _, summaries = first_pass
    row = read(folder / "rollouts")["long"]
    assert (
        "expected at most 255 tokens (engine.max_model_len_tokens less one" in row["error"]
        and row["texts"] == []
    )
    assert sum(summary["errors"] for summary in summaries) == 1


@pytest.mark.slow
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
    summaries = passed(job(destination), units)
    assert [summary["unit"] for summary in summaries] == ["train-000001"]
    after = {file.name: file.stat().st_mtime_ns for file in destination.glob("*.parquet")}
    assert {name for name in before if before[name] != after[name]} == {"train-000001.parquet"}
    assert not list(destination.glob(".*.partial"))
    again = {
        name: len(list(destination.glob(f".{name}.*.begun"))) for name in ("train-000000", "train-000001")
    }
    assert again == {"train-000000": 1, "train-000001": 2}
    assert rollouts.done_again(destination) == 1 and not list(destination.glob(".*"))
    assert set(read(destination)) == set(content)


@pytest.mark.slow
def test_given_answers_are_kept_and_corrected(first_pass: Any, tmp_path: Path) -> None:
    folder, *_ = first_pass
    units = unit_files.given_units(sorted((folder / "rollouts").glob("*.parquet")), "train")
    assert [unit.name for unit in units] == ["train-000000", "train-000001", "train-000002"]
    fixed = job(tmp_path / "fixed", 1, initial_answers_from="base", n_corrections=2)
    passed(fixed, units)
    given, found = read(folder / "rollouts"), read(tmp_path / "fixed")
    assert set(found) == set(given)
    for identity, row in found.items():
        if identity == "long":
            assert "no initial answer was given" in row["error"]
        else:
            assert row["texts"][:2] == given[identity]["texts"][:2]
            assert shape(row)[2:] == [("correction", "iteration_01", parent) for parent in (0, 0, 1, 1)]
    files = list((tmp_path / "fixed").glob("*.parquet"))
    assert len(unit_files.of_split(files, "train")) == 3 and not unit_files.of_split(files, "dev")


# Ray gets classes made in a function by value, so that its workers need not import this file.


def dying_actor(starts: Path) -> type[EngineActor]:
    """Stands for an engine that dies at every question; notes each start."""

    class Dying(EngineActor):
        def __init__(self, model: str, spec: EngineSpec) -> None:
            with starts.open("a") as file:
                file.write("start\n")

        async def begin(self, job: Job) -> str:
            return "here"

        async def roll_out(self, unit: Any) -> Any:
            print("I die now", file=sys.stderr, flush=True)
            os._exit(1)

    return Dying


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_an_engine_that_always_dies_ends_the_pass(local_ray: None, tmp_path: Path) -> None:
    import ray

    units = unit_files.question_units(
        question_file(tmp_path, [{"id": "a", "question": "1+1", "answers": ["2"]}]), "train"
    )
    of = job(tmp_path)
    with (
        run_engines.engines(
            of.settings, False, actor=dying_actor(tmp_path / "starts"), max_restarts=2
        ) as engines,
        pytest.raises(
            ray.exceptions.RayError,
            match="expected it to stay alive, found 3 dead before one had finished a unit; last: "
            r"It wrote no error; killed for lack of memory\? Its last line: I die now \(.*worker-.*\.err\)",
        ),
    ):
        engines.begin(of, 1)
        rollouts.pipeline(of, units, engines.pool).materialize()
    assert len((tmp_path / "starts").read_text().splitlines()) == 3


def wordy_actor() -> type[EngineActor]:
    """Stands for an engine whose answers are far longer than Ray Data's blocks are by default."""
    texts = write_texts([answer := Text("answer", "x" * 2**20), Text("correction", "y", parent=answer)])
    answered = {"texts": texts, "error": None, "engine_node": "none"}
    schema = pa.schema([*trace_schema(), *BESIDE])

    class Wordy(EngineActor):
        def __init__(self, model: str, spec: EngineSpec) -> None:
            pass

        async def begin(self, job: Job) -> str:
            return "here"

        async def roll_out(self, unit: Any) -> Any:
            rows = [row | answered for row in unit_files.from_one_row(unit).to_pylist()]
            return pa.Table.from_pylist(rows, schema=schema)

    return Wordy


def test_many_questions_make_larger_units_not_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_files, "MAX_UNITS", 4)
    rows = [{"id": str(i), "question": "1+1", "answers": ["2"], "split": "train"} for i in range(10)]
    for unit_size, expected in ((5, 2), (2, 4)):
        unit_files.write_questions(rows, tmp_path / "train.parquet", unit_size)
        assert len(unit_files.question_units(tmp_path / "train.parquet", "train")) == expected


@pytest.mark.slow
def test_a_unit_is_one_file_however_long_its_texts(local_ray: None, tmp_path: Path) -> None:
    """300 MB in one unit: more than twice the block size at which Ray Data would split it."""
    rows = [{"id": str(i), "question": "1+1", "answers": ["2"], "split": "train"} for i in range(300)]
    unit_files.write_questions(rows, tmp_path / "train.parquet", unit_size=len(rows))
    (unit,) = unit_files.question_units(tmp_path / "train.parquet", "train")
    destination = tmp_path / "rollouts"
    destination.mkdir()
    of = job(destination)
    with run_engines.engines(of.settings, False, actor=wordy_actor()) as engines:
        (summary,) = rollouts.roll_out(of, [unit], engines)
    assert summary["questions"] == 300
    (file,) = destination.glob("*.parquet")
    assert pq.read_metadata(file).num_rows == 300


def test_a_worker_of_an_attempt_that_was_taken_over_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / "0002").touch()
    row = question("train", texts=write_texts([Text("answer", "=3")]), error=None)
    batch = of_actor([row], "train-0")
    folder = tmp_path / "rollouts"
    folder.mkdir()
    with pytest.raises(RuntimeError, match="taken this run over"):
        rollouts.grade_and_write(batch, replace(job(folder), lease=store.Lease(tmp_path / "lease", 1)))
    assert not list(folder.glob("*.parquet"))
    rollouts.grade_and_write(batch, replace(job(folder), lease=store.Lease(tmp_path / "lease", 2)))
    assert [file.name for file in folder.glob("*.parquet")] == ["train-0.parquet"]
