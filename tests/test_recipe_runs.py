"""The other recipes for real: each runs on the sandbox through a kill, reports, publishes what it measured, and
answers at the endpoint."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest
from harness.served_run import served

from stasc_ray import store
from stasc_ray.recipes import RECIPES

CONFIGS = Path(__file__).parent.parent / "jobs" / "configs"
SMALL = [
    "questions.train.limit=96",
    "questions.dev.limit=24",
    "questions.test.limit=48",
    "engine.actors=1",
    "engine.kv_cache_gb=0.25",
    "engine.batch_size=32",
    "algorithm.iterations=1",
    "finetune.checkpoint_every_s=0.001",
    "finetune.batch_size=8",
    "publish.when=always",
]
TIMEOUT_S = 540


def start(name: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "stasc_ray.cli", "run", str(CONFIGS / f"{name}_sandbox.toml")]
    return subprocess.Popen(
        [*command, "--run-dir", str(folder), *SMALL],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.cluster  # with the other kills, outside CI: test_own_recipe.py runs, reports and serves a recipe there
@pytest.mark.parametrize("name", sorted(RECIPES.keys() - {"stasc"}))  # which is test_run.py's
def test_a_recipe_goes_on_after_a_kill_and_is_reported_published_and_served(
    name: str, tmp_path: Path
) -> None:
    folder = tmp_path / name
    progress = folder / "iteration_01" / "training" / "progress.json"
    deadline = time.monotonic() + TIMEOUT_S
    with start(name, folder) as driver:
        while not (progress.is_file() and json.loads(progress.read_text())["step"] >= 2):
            assert driver.poll() is None, driver.stdout and driver.stdout.read()
            assert time.monotonic() < deadline, "the moment to kill never came"
            time.sleep(0.05)
        driver.send_signal(signal.SIGKILL)
    before = (folder / "metrics.jsonl").read_text()
    with start(name, folder) as driver:
        output, _ = driver.communicate(timeout=TIMEOUT_S)
    assert driver.returncode == 0, output
    run = store.RunFolder(folder)
    assert (folder / "metrics.jsonl").read_text().startswith(before), "committed stages did not run again"
    lines = {(line["stage"], line["iteration"]): line for line in run.metrics()}
    assert Counter(stage for stage, _ in lines)["rollouts"] == 2 and len(lines) == len(run.metrics())
    assert lines["finetune", 1]["finetune/resumed_from_step"] >= 1
    for iteration in ("base", "iteration_01"):
        ids = pq.read_table(folder / iteration / "rollouts", columns=["id"])["id"].to_pylist()
        assert len(ids) == len(set(ids)) == (168 if iteration == "base" else 72)
    assert [manifest["recipe"] for manifest in run.versions()] == [name, name]
    page = (folder / "report.html").read_text()
    assert f"<strong>{name} " in page and "iteration 1" in page
    measured = lines["evaluation", 1]
    if name == "verdict":
        assert measured["evaluation/test/verdict_read"] is not None and "balanced" in page
        assert lines["examples", 1]["examples/kept_says_right"] > 0
    corrects = "correction" in asked_turns(folder)
    assert corrects or measured["evaluation/test/r_y2"] == measured["evaluation/test/r_y1"]
    with served(folder) as url:
        reply = httpx.post(
            f"{url}/v1/correct", json={"question": "What is 47 + 385 + 12?"}, timeout=120
        ).json()
    assert reply["model_version"] == "v0001", reply
    assert {turn["turn"] for turn in reply["turns"]} <= asked_turns(folder)


def asked_turns(folder: Path) -> set[str]:
    """Of the test questions, by the trained model."""
    rows = pq.read_table(folder / "iteration_01" / "rollouts", columns=["texts", "split"]).to_pylist()
    return {text["turn"] for row in rows if row["split"] == "test" for text in row["texts"]}
