"""`stasc plan`: bounds without a machine, a calibration for real, and a plan beside what the run took."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from harness.traces import QUESTION, answered, settings

from stasc_ray import config
from stasc_ray.planning import bounds, calibration
from stasc_ray.recipes import section_of
from stasc_ray.report import planned
from stasc_ray.runtime import capacity, model_folder
from stasc_ray.tasks import sandbox

CONFIG = Path(__file__).parent.parent / "jobs" / "configs" / "demo.toml"
SMALL = [
    "questions.train.limit=30",
    "questions.dev.limit=8",
    "questions.test.limit=8",
    "engine.kv_cache_gb=0.25",
    "engine.actors=1",
    "algorithm.iterations=1",
]


def stasc(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stasc_ray.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)


def demo(*overrides: str) -> config.Config:
    return config.load_config(CONFIG, list(overrides), section_of)


def test_bounds_are_what_max_tokens_and_the_recipes_own_turns_allow() -> None:
    found = bounds.assume(demo("questions.train.limit=20"))
    sizes = found.sizes
    assert sizes.questions == {"train": 20, "dev": 250, "test": 500}
    assert sizes.base["train"].texts == 5 and sizes.base["train"].generated_tokens == 5 * 64
    assert sizes.base["test"].texts == 2 and sizes.base["test"].generated_tokens == 2 * 64
    assert sizes.learnt.kept_if_right == 4 and sizes.learnt.trained_tokens == 64
    assert found.speeds is None


def test_bounds_follow_the_recipe() -> None:
    rft = config.load_config(CONFIG.parent / "rft_sandbox.toml", ["algorithm.n_initial=6"], section_of)
    train = bounds.assume(rft).sizes.base["train"]
    assert train.texts == 6


def test_a_plan_without_questions_is_refused_at_once(tmp_path: Path) -> None:
    done = stasc("plan", str(CONFIG), "--no-calibration", f"questions.train.source={tmp_path}/none.jsonl")
    assert done.returncode == 1 and "none.jsonl" in done.stderr


@pytest.mark.parametrize(
    ("variant", "rewards", "corrections", "kept"),
    [
        ("ENE", [0], [[0, 0]], 2),  # right corrections of right answers
        ("EIE", [0], [[0, 0]], 0),  # nothing is left to improve
        ("FIE", [0], [[0, 0]], 2),  # M0's wrong answer stays
        ("FIE", [1], [[0, 0]], 0),
    ],
)
def test_what_would_be_kept_if_all_answers_were_right(
    variant: str, rewards: list[float], corrections: list[list[float]], kept: int
) -> None:
    given = settings(f"algorithm.variant={variant}", "algorithm.n_corrections=2")
    texts = answered(rewards, corrections)
    found = calibration.kept_if_right(given, [({**QUESTION, "split": "train"}, texts)])
    assert len(found) == kept


def test_the_shape_of_a_model_counts_tied_weights_once() -> None:
    path = str(sandbox.model_path())
    found = model_folder.shape(path, config.Model(), config.Lora(rank=2))
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(path)
    assert found.parameters == sum(weight.numel() for weight in model.parameters())
    assert found.vocabulary == model.config.vocab_size and found.layers == model.config.num_hidden_layers
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert found.adapter_parameters == adapted.get_nb_trainable_parameters()[0]
    assert isinstance(found, capacity.Shape)


def test_a_run_takes_the_plan_of_its_own_config_and_no_other(tmp_path: Path) -> None:
    folder, ours = tmp_path / "demo", demo()
    folder.mkdir()
    made = {"fingerprint": config.fingerprint(demo("seed=1")), "stages": []}
    planned.keep_plan(made, folder)
    planned.take_plan(folder, ours)
    assert planned.read_plan(folder) == {}
    planned.keep_plan({**made, "fingerprint": config.fingerprint(ours)}, folder)
    planned.take_plan(folder, ours)
    assert planned.read_plan(folder)["fingerprint"] == config.fingerprint(ours)


def test_a_run_that_was_not_planned_says_how_to_plan_one(tmp_path: Path) -> None:
    done = stasc("plan", str(tmp_path))
    assert done.returncode == 1
    assert "found none; plan a run before it starts" in done.stderr


@pytest.mark.slow
@pytest.mark.cluster  # a whole run beside the calibration: too long for CI
def test_a_calibration_leaves_nothing_and_the_run_shows_what_it_was_worth(tmp_path: Path) -> None:
    storage, before = tmp_path / "runs", set(Path(tempfile.gettempdir()).glob("stasc-plan-*"))
    asked = [str(CONFIG), *SMALL, f"storage={storage}"]
    done = stasc("plan", *asked, "--questions", "8", "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert set(Path(tempfile.gettempdir()).glob("stasc-plan-*")) <= before
    assert [file.name for file in storage.iterdir()] == ["demo.plan.json"]  # nothing in the run's folder
    assert made["calibrated"] and made["seconds"] > 5
    assert made["sizes"]["base"]["train"]["texts"] == 5 and made["sizes"]["later"]["test"]["texts"] == 2
    assert made["sizes"]["questions"] == {"train": 30, "dev": 8, "test": 8}
    run = stasc("run", *asked)
    assert run.returncode == 0, run.stderr
    assert "seconds of all stages" in run.stdout
    assert "for the run)" in run.stdout or "s left" not in run.stdout
    report = (storage / "demo" / "report.html").read_text(encoding="utf-8")
    assert "Planned and measured" in report
    found = {one["what"]: one for one in json.loads(stasc("plan", str(storage / "demo"), "--json").stdout)}
    assert abs(found["prompt tokens"]["error"]) < 1 / 3
    assert abs(found["generated tokens"]["error"]) < 1 / 3


def test_a_plan_for_people_says_what_was_measured_and_what_was_not() -> None:
    from stasc_ray.cli.plan import as_lines, as_plan
    from stasc_ray.planning.found import Found
    from stasc_ray.runtime.forecast import Asked, Learnt, Sizes, Speeds

    asked = {split: Asked(100, 200, 2) for split in ("train", "dev", "test")}
    sizes = Sizes({"train": 1000, "dev": 100, "test": 100}, asked, asked, Learnt(0.0, 2.0, 300, 50))
    speeds = Speeds(5, 20, 3, 0, 1000, 1, 10, 500, 2, 0.5)
    shape = capacity.Shape(1_540_000_000, 28, 2, 128, 151_936)
    found = Found(sizes, shape, cuda=True, engines=8, speeds=speeds, questions=50, seconds=61)
    made = as_plan(demo("algorithm.iterations=1"), found)
    lines = "\n".join(as_lines(made))
    assert "measured with 50 questions in 61 s, on 1 cuda engine(s) at 1,000 tokens/s" in lines
    assert "the run's 8 engines are taken as that many times as fast; not measured" in lines
    assert "base rollouts                    120,000       240,000             -      65 s" in lines
    assert "memory, engine: weights 2.9 GiB" in lines
    assert "! none of the calibration's corrections would be kept" in lines
    assert made["seconds"] == pytest.approx(5 + 65 + 0.5 + 2 + 10 + (3 + 7.5) + 0.5)
    without = as_plan(demo("algorithm.iterations=1"), Found(sizes, shape, cuda=False, engines=2))
    assert without["seconds"] is None
    assert "not measured: bounds" in "\n".join(as_lines(without))
