"""The first half hour on a GPU: every step runs on a CPU, and one that fails hides no other."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks import first_gpu

STEPS = """
import os, subprocess, sys, time
from benchmarks import first_gpu

def good(case):
    yield {"folder": case.folder, "limit": case.limit_s}

def broken(case):
    yield {"seen": 1}
    raise RuntimeError("expected a kernel, found none")

def slow(case):
    yield {"seen": 2}
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    time.sleep(600)

def orphan(case):
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    yield {"child": child.pid}

def last(case):
    yield {"seen": 3}

if __name__ == "__main__":
    first_gpu.carry_out({one.__name__: one for one in (good, broken, slow, orphan, last)})
"""
MAIN = """
from benchmarks import first_gpu
names = ("good", "broken", "slow", "orphan", "last")
first_gpu.STEPS = tuple(first_gpu.Step(name, "steps", 20 if name != "slow" else 5) for name in names)
first_gpu.PATIENCE_S, first_gpu.SLOWER = 1.0, 1
first_gpu.main()
"""


def run(folder: Path, *words: str) -> dict[str, dict]:
    """The lines of the summary, by step, of a run of the steps above."""
    (folder / "steps.py").write_text(STEPS)
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "--device", "cpu", "--folder", str(folder / "out"), *words],
        env={"PYTHONPATH": f"{folder}:{Path(__file__).parents[1]}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    summary = json.loads((folder / "out" / "summary.json").read_text())
    assert (done.returncode == 0) == all(line["outcome"] == "ok" for line in summary["steps"]), done.stderr
    return {line["step"]: line for line in summary["steps"]}


def test_a_step_that_fails_stops_no_other_and_its_figures_are_kept(tmp_path: Path) -> None:
    found = run(tmp_path)
    outcomes = {name: line["outcome"] for name, line in found.items()}
    assert outcomes == {"good": "ok", "broken": "failed", "slow": "failed", "orphan": "failed", "last": "ok"}
    assert found["good"]["figures"] == {"folder": str(tmp_path / "out" / "work"), "limit": 20}
    assert found["broken"]["figures"] == {"seen": 1} and found["slow"]["figures"]["seen"] == 2
    assert found["broken"]["tail"][-1] == "RuntimeError: expected a kernel, found none"
    assert found["slow"]["why"] == "took longer than 5 s" and found["slow"]["seconds"] < 15
    assert found["orphan"]["why"] == "processes outlived it"
    assert not psutil.pid_exists(found["orphan"]["figures"]["child"])
    for line in found.values():  # of the killed one, too
        for left in line["figures"].get("left_over", ()):
            assert not psutil.pid_exists(int(left.split()[-1]))
    text = (tmp_path / "out" / "summary.txt").read_text()
    assert "broken     failed" in text and "    | RuntimeError: expected a kernel, found none" in text


def test_chosen_steps_come_beside_what_is_there_and_the_budget_is_kept(tmp_path: Path) -> None:
    assert set(run(tmp_path, "--steps", "good")) == {"good"}
    found = run(tmp_path, "--steps", "last", "broken", "--budget-s", "1")
    assert {name: line["outcome"] for name, line in found.items()} == {
        "good": "ok",
        "broken": "skipped",
        "last": "skipped",
    }
    assert found["last"]["why"] == "no time left of --budget-s"


def test_without_a_gpu_it_says_how_to_rehearse(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.first_gpu", "--folder", str(tmp_path / "out")]
    environment = {"PATH": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])}  # no nvidia-smi
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (
        done.returncode == 1 and "--device cpu rehearses" in done.stderr and not (tmp_path / "out").exists()
    )


def rehearse(folder: Path, *steps: str) -> dict[str, dict]:
    """What these steps find on a CPU; they must all be ok."""
    command = [sys.executable, "-m", "benchmarks.first_gpu", "--device", "cpu", "--folder", str(folder)]
    started = time.monotonic()
    done = subprocess.run([*command, "--steps", *steps], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{time.monotonic() - started:.0f} s: {done.stdout}{done.stderr}"
    lines = json.loads((folder / "summary.json").read_text())["steps"]
    return {line["step"]: line["figures"] for line in lines}


@pytest.mark.slow  # four trainers' imports
def test_the_steps_of_learning_run_on_a_cpu(tmp_path: Path) -> None:
    found = rehearse(tmp_path, "machine", "packed", "speed", "sharded", "exported")
    assert "torch" in found["machine"]["versions"]
    assert found["packed"]["packed"]["loss"] == pytest.approx(found["packed"]["alone"]["loss"], rel=1e-4)
    assert "plain attention in its place" in found["packed"]["skipped torch's varlen kernel"]
    assert found["speed"]["kernels"] and found["speed"]["1024 tokens"]["tokens_per_s"] > 0
    assert found["sharded"]["backend"] == "gloo" and found["sharded"]["lora"]["gathered"] > 0
    assert found["exported"]["canary on the device against the CPU, nats"] == pytest.approx(0, abs=1e-3)


@pytest.mark.slow
@pytest.mark.cluster  # engines, and two whole runs
@pytest.mark.timeout(900)
def test_the_steps_of_engines_run_on_a_cpu(tmp_path: Path) -> None:
    found = rehearse(tmp_path, "imports", "bare", "engine", "run", "bench")
    assert (
        found["engine"]["other weights"]["nats apart"] > 1e-3 > found["engine"]["first weights"]["nats apart"]
    )
    assert found["engine"]["killed"]["noticed_s"] < 10
    assert found["run"]["rollouts 1"]["hand_over_s"] > 0 and not found["run"]["rollouts 1"]["engines_started"]
    assert any("hand-over of weights" in line for line in found["bench"]["table"])


def test_every_step_has_its_function() -> None:
    for step in first_gpu.STEPS:
        source = Path(__file__).parents[1] / (step.module.replace(".", "/") + ".py")
        assert f"\ndef {step.name}(case: Case)" in source.read_text()
