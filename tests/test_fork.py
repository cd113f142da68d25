"""`stasc fork` for real: a run is forked and deleted, the fork goes on, and what failed says how."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from test_run import STASC, TIMEOUT_S, assert_each_question_has_one_trace, lines, metric, stasc, traces

from stasc_ray import store

FEW = (
    "questions.train.limit=64",
    "questions.dev.limit=16",
    "questions.test.limit=16",
    "engine.batch_size=16",
    "finetune.learning_rate=1e-3",
)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*STASC, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def texts_of(folder: Path) -> dict[str, list[str]]:
    """What the model of iteration 1 wrote, by question."""
    return {id: [text.text for text in found] for id, _, found in traces(folder, "iteration_01")}


@pytest.mark.cluster
def test_a_fork_goes_on_without_its_origin_and_asks_only_what_is_missing(tmp_path: Path) -> None:
    origin, fork = tmp_path / "a", tmp_path / "b"
    done = stasc(*FEW, "algorithm.iterations=1", folder=origin)
    assert done.returncode == 0, done.stdout + done.stderr
    texts = texts_of(origin)
    done = command("fork", str(origin), "--from", "1", "b", "algorithm.iterations=2", "finetune.epochs=2")
    assert done.returncode == 0 and f"go on: stasc run {fork}" in done.stdout, done.stderr
    before = {file: file.stat().st_mtime_ns for file in fork.rglob("*") if file.suffix != ".jsonl"}
    figures = {n: metric(origin, n, "evaluation/test/r_y2") for n in (0, 1)}
    shutil.rmtree(origin)
    done = command("run", str(fork))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"forked from the model of iteration 1 of {origin}" in done.stdout
    changed = {
        file.name for file, time in before.items() if file.is_file() and file.stat().st_mtime_ns != time
    }
    assert changed <= {"config.json", "LATEST"}, "nothing that was shared was made again"
    assert metric(fork, 1, "rollouts/resumed_questions") == 32, "dev and test were there; train was asked"
    for n in (0, 1, 2):
        assert_each_question_has_one_trace(fork, store.iteration_name(n))
    assert {id: text for id, text in texts_of(fork).items() if id in texts} == texts
    assert {n: metric(fork, n, "evaluation/test/r_y2") for n in (0, 1)} == figures
    assert len({(line["stage"], line["iteration"]) for line in lines(fork)}) == len(lines(fork))
    kept = metric(fork, 2, "examples/kept")
    assert metric(fork, 2, "finetune/steps") > -(-kept // 32), "two epochs of batches of 32"
    assert [one["version"] for one in store.RunFolder(fork).versions()] == ["v0000", "v0001", "v0002"]
    assert "forked from the model of iteration 1" in (fork / "report.html").read_text()


@pytest.mark.cluster
def test_a_loss_that_is_no_number_names_the_fork_that_goes_on(tmp_path: Path) -> None:
    done = stasc(*FEW, "algorithm.iterations=1", "finetune.learning_rate=1e30", folder=tmp_path / "a")
    assert done.returncode == 1 and "expected a finite loss" in done.stderr, done.stdout + done.stderr
    (way,) = re.findall(r"to go on: (stasc fork .*) && (stasc run \S+)", done.stderr)
    assert "--from 0 finetune.learning_rate=1e+29" in way[0]
    done = command(*shlex.split(way[0])[1:])
    assert done.returncode == 0 and f"go on: {way[1]}" in done.stdout, done.stderr
    made = Path(shlex.split(way[1])[-1])
    assert os.path.samefile(
        made / "base" / "rollouts" / "train-000000.parquet",
        tmp_path / "a" / "base" / "rollouts" / "train-000000.parquet",
    )
