"""The benchmarks run, and their tables say what was measured."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from harness import traces
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import (
    baselines,
    fresh_processes,
    gpu,
    gpu_watch,
    gpu_work,
    simulate_scale,
    speed,
    speed_table,
    study,
    study_figures,
    study_recipes,
    study_report,
    supervised,
    whole_runs,
)
from stasc_ray import config, store
from stasc_ray.comparing import contest
from stasc_ray.generation import vllm_calls
from stasc_ray.generation.asking import Asker
from stasc_ray.generation.samples import Sample
from stasc_ray.recipes import section_of, trace
from stasc_ray.runtime import model_folder
from stasc_ray.store.rows import trace_schema
from stasc_ray.tasks import sandbox


def pairs(*rates: tuple[float, float]) -> list[dict]:
    return [{"ours": {"tokens_per_s": ours}, "against": {"tokens_per_s": against}} for ours, against in rates]


def test_a_ratio_is_taken_within_a_pair_and_its_range_is_shown() -> None:
    measured = [
        pair | {"all_cores": {"tokens_per_s": 150}} for pair in pairs((90, 100), (50, 100), (190, 200))
    ]
    cut_off = {"ours": {"tokens_per_s": 1}}
    lines = speed_table.page({"training": [*measured, cut_off]}, "2 cores.").splitlines()
    row, all_cores = (line for line in lines if "tokens/s" in line)
    against = "a bare torch loop on tensors made before, as many threads: 100 tokens/s"
    assert row.startswith(f"| fine-tuning the sandbox | 90 tokens/s | {against}")
    assert "| 0.90 (0.50 to 0.95, n = 3) | >= 0.95, missed |" in row
    assert "150 tokens/s | 0.60 (0.33 to 1.27" in all_cores and all_cores.endswith("| printed |")


def test_an_iteration_is_compared_with_the_same_tokens_at_the_bare_rates() -> None:
    run = {"wall": 100.0, "training": 60.0, "generated_tokens": 2000.0, "trained_on_tokens": 3000.0}
    fresh = {"seconds": 250.0, "sft": 99.0, "generated_tokens": 1900.0, "trained_on_tokens": 3100.0}
    bare = {"generation": 40.0, "generation_rest": 100.0, "training": 100.0}
    runs = {"iteration_2": run, "iteration_3": run}
    found = {"iteration": [{"run": runs, "bare": bare, "reference": fresh, "rft": fresh}]}
    page = speed_table.page(found, "")
    second, third, reference, rft = (
        line for line in page.splitlines() if line.startswith("| iteration") and "of the" in line
    )
    assert ": 80 s | 1.25" in second and second.endswith("| <= 1.5 |")  # 2000 / 40 + 3000 / 100
    assert ": 50 s | 2.00" in third and third.endswith("| <= 1.6, missed |")  # 2000 / 100 + 3000 / 100
    assert "the reference's way, fresh processes: 250 s | 2.50" in reference and "printed" in rft
    assert "sft 99 s; 1,900 tokens generated, 3,100 trained on." in page
    assert "iteration 2 of the demo: 100 s" in speed_table.short_page(found, "at abc")
    long = {"about": {"case": "SmolLM2-135M"}, "iteration": [{"run": {"iteration_1": run}, "bare": bare}]}
    assert "| <= 1.15, missed |" in speed_table.page(long, "")


def test_the_table_goes_between_the_marks(tmp_path: Path) -> None:
    page, (first, last) = tmp_path / "performance.md", speed_table.DEMO_MARKS
    page.write_text(f"before\n{first}\nold\n{last}\nafter\n")
    speed.write_between_marks(page, "new")
    assert page.read_text() == f"before\n{first}\n\nnew\n\n{last}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="expected the lines"):
        speed.write_between_marks(page, "new")


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("page", ["README.md", "docs/performance.md"])
def test_both_pages_have_room_for_both_tables(page: str, long: bool) -> None:
    speed_table.check_marks(Path(__file__).parents[1] / page, speed_table.marks(long))


@pytest.mark.parametrize(
    "words",
    [["--long"], ["--long", "--model", "nowhere", "--questions", "."], ["--quick", "--write", "x.md"]],
)
def test_a_measurement_that_can_not_be_made_or_written_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        speed.read_arguments(words)


def test_a_measurement_goes_on_with_the_side_that_is_missing(tmp_path: Path) -> None:
    asked: list[str] = []

    def side(name: str, broken: bool = False) -> dict:
        asked.append(name)
        if broken:
            raise RuntimeError("cut off")
        return {"tokens_per_s": 1}

    def bench() -> speed.Bench:
        case = speed.demo_case(quick=True)
        return speed.Bench(case, tmp_path, tmp_path / "speed.json", quick=True, pairs=2, against="abc")

    sides = {"a": lambda: side("a"), "b": lambda: side("b", broken=asked.count("b") == 1)}
    with pytest.raises(RuntimeError, match="cut off"):
        bench().turns("row", sides, 2)
    (tmp_path / "prepared").mkdir()
    bench().turns("row", sides, 2)
    assert asked == ["b", "a", "a", "b", "b"], "they take turns at being first"
    assert (tmp_path / "prepared").is_dir()
    assert [set(pair) for pair in bench().found["row"]] == [{"a", "b"}, {"a", "b"}]
    (tmp_path / "speed.json").unlink()
    bench()
    assert not (tmp_path / "prepared").exists(), "a new measurement starts from nothing old"


def test_the_seconds_of_an_iteration_add_up_to_its_wall_time(tmp_path: Path) -> None:
    lines = [
        {"stage": "publish", "iteration": 1, "time": 100.0},
        {"stage": "examples", "iteration": 2, "time": 102.0, "examples/duration_s": 1.5},
        {"stage": "finetune", "iteration": 2, "time": 120.0, "finetune/duration_s": 17.0}
        | {f"finetune/{name}_s": value for name, value in (("start", 4.0), ("train", 12.0), ("export", 0.5))}
        | {"finetune/tokens_per_s": 10.0},
        {"stage": "rollouts", "iteration": 2, "time": 131.0, "rollouts/duration_s": 11.0}
        | {"rollouts/hand_over_s": 1.0, "rollouts/engine_start_s": 0.0, "rollouts/engines_started": 0}
        | {"rollouts/generated_tokens": 50},
        {"stage": "evaluation", "iteration": 2, "time": 132.0, "evaluation/duration_s": 0.7},
        {"stage": "publish", "iteration": 2, "time": 132.2},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = speed.stage_seconds(tmp_path, 2)
    parts = {name: value for name, value in found.items() if name != "wall" and not name.endswith("tokens")}
    assert found["wall"] == pytest.approx(32.2) == sum(parts.values())
    assert (found["trainer start"], found["hand-over"], found["generation"]) == (4.0, 1.0, 10.0)
    assert 0 <= found["the rest"] < 2.5 and found["trained_on_tokens"] == 120
    assert whole_runs.published(tmp_path, 2) and not whole_runs.published(tmp_path, 3)


def test_a_commit_that_git_does_not_have_is_no_tree() -> None:
    with whole_runs.checkout("0" * 40) as tree:
        assert tree is None


def test_fresh_processes_learn_what_the_recipe_keeps(tmp_path: Path) -> None:
    """The first question's second correction is right, the second question's answer stays right."""
    settings = config.load_config(whole_runs.DEMO, [], section_of)
    rows = []
    for number, said in enumerate((["1", "1", "3"], ["3", "3", "4"])):
        answer, *more = (
            trace.Text("answer" if not at else "correction", f"1+2={said_text}")
            for at, said_text in enumerate(said)
        )
        for sample, text in enumerate(more):
            text.parent, text.sample, text.token_ids = answer, sample, [7, sample]
        row = {
            "id": f"q{number}",
            "question": "1+2",
            "answers": ["3"],
            "texts": trace.write_texts([answer, *more]),
        }
        rows.append(json.dumps(row) + "\n")
    (tmp_path / "traces.jsonl").write_text("".join(rows))
    work = {
        "config": config.to_json(settings),
        "folder": str(tmp_path),
        "examples": str(tmp_path / "examples.jsonl"),
    }
    fresh_processes.keep_examples(work)
    kept = [
        json.loads(line)["messages"][-1]["pieces"] for line in Path(work["examples"]).read_text().splitlines()
    ]
    assert [pieces[0]["token_ids"] for pieces in kept] == [[7, 1], [7, 0]]


def test_the_model_for_the_gpu_keeps_the_number_of_tokens_of_a_text(tmp_path: Path) -> None:
    path = gpu_work.model(gpu_work.TINY, tmp_path, "cpu")
    work = gpu_work.make_work(tmp_path / "work", path, gpu_work.ON_CPU, numbers=(3, 3))
    tokenizer = model_folder.load_tokenizer(path)
    text = tokenizer.decode([6, 999, 17])
    assert tokenizer.encode(text) == [6, 999, 17]
    assert model_folder.stop_token_ids(path, tokenizer) == [1]
    encoded = baselines.read_encoded(work)
    assert [len(one["input_ids"]) for one in encoded] == [2 * sum(gpu_work.LENGTHS) + 8] * 3


def test_a_real_model_is_asked_texts_of_its_own_tokens(tmp_path: Path) -> None:
    folder = str(sandbox.model_path())
    bench = gpu.Bench(tmp_path, folder, gpu_work.ON_CPU, 2, "cpu")
    assert bench.path() == folder == bench.work["model"] and bench.name == Path(folder).name
    row, _ = baselines.read_questions(bench.work)
    tokenizer = model_folder.load_tokenizer(folder)
    assert not set(tokenizer.encode(row["question"])) & set(tokenizer.all_special_ids)
    for words in (["--model", str(tmp_path)], ["--tiny", "--write", "x.md"]):
        with pytest.raises(SystemExit):
            gpu.read_arguments(words)


@pytest.mark.parametrize(("name", "weights"), [(gpu_work.QWEN, 1.54e9), (gpu_work.SMOLLM2, 1.345e8)])
def test_the_shapes_have_the_weights_of_the_models_cards(name: str, weights: float) -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**gpu_work.SHAPES[name]))
    assert sum(one.numel() for one in model.parameters()) == pytest.approx(weights, rel=0.01)


def test_the_other_side_samples_with_the_same_sampler_as_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict[str, str]())
    vllm_calls._set_environment(on_cuda=True)
    for name in ("VLLM_USE_FLASHINFER_SAMPLER", "VLLM_ENABLE_V1_MULTIPROCESSING"):
        assert baselines.vllm_environment(on_cuda=True)[name] == os.environ[name]
    assert baselines.vllm_environment(on_cuda=True)["VLLM_USE_FLASHINFER_SAMPLER"] == "0"


def test_the_gpus_table_has_each_goal_beside_its_figure(tmp_path: Path) -> None:
    parts = {"wall": 50.0, "training": 10.0, "hand-over": 2.5, "engines_started": 0}
    parts |= {"generated_tokens": 3000.0, "trained_on_tokens": 1000.0}
    watched = {"peak_gb": 70.0, "gpu_idle_share": 0.25, "peaks_gb": {"rollouts": 70.0, "finetune": 60.5}}
    trained = {"tokens_per_s": 100.0, "train_s": 400.0, "steps": 2, "mfu": 0.3}
    found: dict = {
        f"{gpu.QWEN}/generation/0/{side}": {"tokens_per_s": rate}
        for side, rate in (("ours", 98), ("bare", 100))
    }
    found[f"{gpu.QWEN}/generation/1/ours"] = {"tokens_per_s": 1}  # cut off before the other side
    found |= {f"{gpu.QWEN}/training/0/ours": trained, f"{gpu.QWEN}/run/0/ours": {**parts, **watched}}
    text = "\n".join(gpu.page(found, [gpu.QWEN, gpu.SMOLLM2], ["x: too slow"]))
    assert "bare `vllm.LLM`: 100 | 0.98 (0.98 to 0.98, n = 1) | >= 0.97 |" in text
    assert "20,000 tokens a step | 100 tokens/s" in text and "| >= 0.35, missed |" in text
    assert "the same tokens at these two rates: 40 s; 10 s more, which is 15% from 67 s | 1.25" in text
    assert "| 2.50 s | no engine started |" in text and "| <= 5 |" in text
    assert "rollouts 70.0, finetune 60.5; idle in 25% of the looks." in text
    assert text.endswith("Not measured: x: too slow") and gpu.SMOLLM2 not in text


def test_memory_is_told_stage_by_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        {"stage": "finetune", "iteration": 1, "time": 20.0, "finetune/duration_s": 10.0},
        {"stage": "rollouts", "iteration": 1, "time": 30.0, "rollouts/duration_s": 10.0},
        {"stage": "finetune", "iteration": 2, "time": 50.0, "finetune/duration_s": 10.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    samples = [gpu_watch.Sample(time, 0.0, gb) for time, gb in ((5, 99), (12, 3), (25, 7), (45, 4))]
    assert gpu_watch.peaks_by_stage(tmp_path, samples) == {"finetune": 4, "rollouts": 7}
    fake = tmp_path / "nvidia-smi"  # a stand-in: there is no GPU here
    fake.write_text("#!/bin/sh\necho '[N/A], 2048'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with gpu_watch.watching() as found:
        deadline = time.monotonic() + 30
        while not found and time.monotonic() < deadline:
            time.sleep(0.05)
    assert gpu_watch.figures(found) == {"peak_gb": 2.0, "gpu_idle_share": 0.0}


def test_what_there_is_no_time_for_is_named_and_measured_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(bench: gpu.Bench, limit_s: float) -> dict:
        raise RuntimeError("no")

    rate = {"tokens_per_s": 1.0}
    monkeypatch.setattr(gpu, "SIDES", dict.fromkeys(gpu.SIDES, lambda *_: rate) | {"training/ours": fails})
    benches = [gpu.Bench(tmp_path, gpu.TINY, (), 1, "cpu")]
    found, missing = gpu.measure(benches, 1, tmp_path / "gpu.json", budget_s=1, about={})
    assert found == {"about": {}} and len(missing) == 4 and "no time left" in missing[0]
    found, missing = gpu.measure(benches, 1, tmp_path / "gpu.json", budget_s=100, about={})
    assert found == json.loads((tmp_path / "gpu.json").read_text()) and missing == [
        "tiny/training/0/ours: no"
    ]
    with pytest.raises(SystemExit, match="move it away"):
        gpu.measure(benches, 1, tmp_path / "gpu.json", budget_s=100, about={"commit": "other"})
    assert [key for key, _ in gpu.plan("m", 2)][:4] == [
        f"m/generation/{n}" for n in ("0/ours", "0/bare", "1/bare", "1/ours")
    ]


@pytest.mark.slow
@pytest.mark.cluster  # engines and trainers four times
def test_the_gpus_benchmark_runs_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Not measured" not in done.stdout, done.stdout
    for words in ("two-turn generation", "fine-tuning", "iteration 2 of a run", "hand-over of weights"):
        assert f"| tiny: {words}" in done.stdout


@pytest.mark.slow
@pytest.mark.cluster  # 70 s: in `make test-cluster`
def test_a_quick_benchmark_measures_both_sides(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.speed",
        "--quick",
        "--rows",
        "training",
        "--folder",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| fine-tuning the sandbox |" in done.stdout and list(
        (tmp_path / "rollouts").glob("train-*.parquet")
    )


def cell(label: str, seed: int, rewards: list[float], part: str = "variants", **more) -> dict:
    """A cell, with these r(Y2) on dev and test; each fine-tune trained on 100 tokens."""

    def scores(r_y2: float) -> dict:
        of_both = {
            "r_y1": 0.3,
            "r_y2": r_y2,
            "delta": r_y2 - 0.3,
            "i_to_c": 0.2,
            "c_to_i": 0.1,
            "changed": 0.5,
        }
        return {**of_both, "cl": 0.9, "cs": None, "rss": 0.6}

    iterations = [
        {
            "iteration": number,
            "dev": scores(r_y2),
            "test": scores(r_y2 - 0.1),
            "answer_tokens": {"initial": 10, "correction": 20},
            "examples": {"kept_i_to_c": 5, "kept_c_to_c": 7},
            "trained_tokens": 100 if number else 0,
            **more,
        }
        for number, r_y2 in enumerate(rewards)
    ]
    about = {"name": f"{part}-{label}-{seed}"}
    about |= {"part": part, "label": label, "seed": seed, "sizes": [], "seconds": 90.0, "commit": "abc"}
    return {**about, "iterations": iterations}


def test_the_results_page_is_made_of_the_cells_alone(tmp_path: Path) -> None:
    voted = {"votes": {"1": 0.3, "3": 0.4, "5": 0.5, "9": 0.6}, "vote_tokens": 11}
    cells = [
        cell("ENE", 0, [0.4, 0.8, 0.6]),
        cell("ENE", 1, [0.4, 0.9, 0.9]),
        cell("EIE", 0, [0.4, 0.5]),
        cell("EIE", 1, [0.4, 0.5]),
    ]
    cells += [cell("rft", seed, [0.4, 0.6], "baselines", **voted) for seed in (0, 1)]
    cells += [recipe_cell("rft", 0, [0.4, 0.6])]
    with ThreadPoolExecutor(len(cells)) as pool:  # as cells that end together
        list(pool.map(partial(study.keep, tmp_path), cells))
    kept = study_figures.lines(tmp_path / study.CELLS)
    assert kept == sorted(cells, key=lambda one: one["name"])
    study.keep(tmp_path, kept[0])
    assert study_figures.lines(tmp_path / study.CELLS) == kept, "a cell that comes again takes its own place"
    expected = {"variants": 40, "baselines": 2, "samples": 27, "recipes": 15}
    compared = contest.Cell(
        "base",
        "oracle_stop",
        "rounds",
        3,
        9,
        0,
        0.5,
        0.4,
        0.6,
        0.3,
        0.2,
        0.0,
        1.0,
        0.2,
        (),
        99.5,
        3.0,
        0.1,
        True,
    )
    found = {"questions": 9, "budget_tokens": 100.0, "cells": [asdict(compared)]}
    (tmp_path / contest.FILE).write_text(json.dumps(found))
    study_report.write(tmp_path / study.CELLS, tmp_path / "results.md", expected)
    page = (tmp_path / "results.md").read_text()
    assert "| 1 | oracle_stop* | 3 rounds | 0.500 [0.400, 0.600] | 0.300 |" in page
    # Chosen on dev: 0.8 and 0.9 there, 0.7 and 0.8 on test; t for one degree of freedom is 12.706.
    assert "| ENE | 2 | 1 1 | 100 | 0.300 ± 0.000 | 0.750 ± 0.635 |" in page
    assert "- ENE against EIE: +0.350 ± 0.635 (2 seeds)" in page
    assert "| STaSC, variant ENE | 0.300 ± 0.000 | 0.750 ± 0.635 | - |" in page
    assert "own right first answers (dev keeps M0) | 0.300 ± 0.000 | 0.300 ± 0.000 | 0.400 ± 0.000 |" in page
    assert "| ENE | -0.100 ± 1.271 (2 seeds) | 0.000 | +0.350 ± 1.906 (2 seeds) |" in page
    assert (
        "**Not whole yet**, cells that are there: variants 4 of 40, samples 0 of 27, recipes 1 of 15." in page
    )
    assert "| `rft` | 1 | 1 | 300 | 100 | 1 | 0.300 | 0.500 |" in page
    assert "own right first answers: the commonest of 3 | 0 0 | 0 | 0.400 ± 0.000 | | 33 |" in page
    assert (
        "- ENE's correction against RFT's first answer: +0.450 ± 0.635 (2 seeds): **not told apart**" in page
    )
    assert {file.name for file in tmp_path.glob("*.png")} == {
        f"results-{name}.png" for name in ("curves", "transitions", "kept")
    }


def test_on_the_base_models_answers_dev_chooses_by_them_too() -> None:
    one = cell("FNE", 0, [0.4, 0.9, 0.5])
    for number, r_y2 in ((1, 0.6), (2, 0.8)):
        one["iterations"][number]["fixed"] = {"dev": {"r_y2": r_y2}, "test": {"r_y2": r_y2 + 0.1}}
    assert study_figures.chosen(one)["iteration"] == 1
    picked = study_figures.on_base_answers(study_figures.chosen)(one)
    assert picked["iteration"] == 2 and study_figures.by_seed([one], lambda _: picked) == {
        0: pytest.approx(0.9)
    }


def test_tokens_behind_a_version_add_up_unless_each_fine_tune_starts_from_the_base_model() -> None:
    for label, behind in (("ENE", 200), ("ENF", 100)):
        one = cell(label, 0, [0.4, 0.5, 0.6])
        assert study_figures.trained_behind(one, study_figures.last(one)) == behind
    assert study_figures.at_tokens(cell("ENE", 0, [0.4, 0.5, 0.6]), 150) == pytest.approx(0.45)


def recipe_cell(label: str, seed: int, r_y2: list[float], balanced: Sequence[float | None] = ()) -> dict:
    """A cell of the part `recipes`: 300 tokens generated on train and 100 trained on for each version."""
    one = cell(label, seed, r_y2, "recipes")
    for at in one["iterations"]:
        at["generated"] = {"train": {"answer": 100, "correction": 200}, "dev": {"answer": 9}}
        at["examples"] |= {"kept": 20, "kept_says_right": 1, "kept_says_wrong": 3, "kept_answer": 3}
        at["steps"] = min(1, at["iteration"])
    for at, value in zip(one["iterations"], balanced, strict=False):
        found = {f"verdict_{name}": value for name in ("accuracy", "balanced_accuracy", "recall", "read")}
        for split, less in (("dev", 0.0), ("test", 0.2)):
            at[split] |= {name: value and value - less for name, value in found.items()}
            at[split]["verdict_precision"] = None
    return one


def test_recipes_are_compared_at_equal_cost_by_their_cells_alone() -> None:
    recipes = {
        "stasc": [recipe_cell("stasc", seed, [0.4, 0.8, 0.6]) for seed in (0, 1)],
        "rft": [recipe_cell("rft", seed, [0.4, 0.5, 0.6 + 0.1 * seed]) for seed in (0, 1)],
        "verdict": [recipe_cell("verdict", seed, [0.4, 0.9], [0.5, 0.8 + 0.01 * seed]) for seed in (0, 1)],
    }
    # Chosen on dev; test is 0.1 below it. What was generated for a version lies in the iterations before.
    m0, stasc, rft, _ = list(study_recipes.table(recipes))[2:]
    assert m0.startswith(
        "| M0, corrected as `stasc` asks | 2 | 0 0 | 0 | 0 | 0 | 0.300 ± 0.000 | 0.300 ± 0.000 |"
    )
    assert stasc.startswith("| `stasc` | 2 | 1 1 | 300 | 100 | 1 | 0.300 ± 0.000 | 0.700 ± 0.000 |")
    assert rft.startswith("| `rft` | 2 | 2 2 | 600 | 200 | 2 | 0.300 ± 0.000 | 0.550 ± 0.635 |")
    assert m0.endswith("|  |") and stasc.endswith("| 0.500 ± 0.000 |"), "whatever dev chose"
    _, _, stasc, rft, judging = study_recipes.differences(recipes)
    less_m0 = "+0.400 ± 0.000 (2 seeds): **better**"
    against_rft = "+0.150 ± 0.635 (2 seeds): **not told apart**"
    assert stasc.startswith(f"| `stasc` | {less_m0} |  | {against_rft} | -0.100")
    assert "| -0.150 ± 0.635 (2 seeds): **not told apart** |  |" in rft
    assert "| +0.100 ± 0.000 (2 seeds): **better** |" in judging and judging.endswith("|  |")
    stays = {**recipes, "sharpening": [recipe_cell("sharpening", seed, [0.4, 0.3]) for seed in (0, 1)]}
    assert list(study_recipes.table(stays))[-1].startswith("| `sharpening` | 2 | 0 0 | 300 | 100 | 1 |")
    assert list(study_recipes.differences(stays))[-1].startswith("| `sharpening` |  | -0.400"), "it is M0"
    *_, last = study_recipes.verdicts(recipes)
    assert last == "| 1 | test | 2 | 0.605 ± 0.064 | 0.605 ± 0.064 | - | 0.605 ± 0.064 | 0.605 ± 0.064 |"
    assert list(study_recipes.enough(recipes)) == [
        f"- {name}, balanced accuracy on dev: 0.805 ± 0.064: **above 0.6**"
        for name in ("the version chosen on dev", "iteration 1")
    ]
    kept = "4 verdicts, 3 answers, 12 corrections; 1.60 passes over them"
    assert list(study_recipes.learnt(recipes)) == [f"- iteration 1: {kept}"]


def test_some_cells_of_the_recipes_will_do() -> None:
    sections = (
        study_recipes.table,
        study_recipes.differences,
        study_recipes.verdicts,
        study_recipes.enough,
        study_recipes.learnt,
    )
    assert not any(list(section({})) for section in sections)
    one = {"verdict": [recipe_cell("verdict", 3, [0.4], [0.5])]}
    assert [len(list(section(one))) for section in sections] == [3, 0, 4, 1, 0]
    assert next(study_recipes.enough(one)).endswith("on dev: 0.500, from one seed: **not above 0.6**")


def test_every_cell_is_a_run_of_the_studys_config() -> None:
    everything = [one for part in study.PARTS for one in study.cells(part, 5)]
    assert len({one.name for one in everything}) == len(everything) == 146
    for one in everything:
        settings = config.load_config(
            study.CONFIG, study.overrides(one, ["questions.test.limit=10"]), section_of
        )
        assert settings.seed == one.seed and settings.questions.test.limit == 10
        if one.part == "recipes":
            assert settings.algorithm.recipe == one.label.partition("-")[0]
            assert settings.finetune.trained_tokens == 120_000


def test_supervised_recipes_learn_what_no_model_wrote() -> None:
    asked = {**traces.QUESTION, "question": "What is 47 + 385 + 12?", "answers": ["444"]}
    for recipe, learnt in (
        (supervised.GOLD, "=444"),
        (supervised.WORKED, "7+5+2=14\n4+8+1+1=14\n3+1=4\n=444"),
    ):
        plan = traces.plan({"recipe": recipe.section().recipe})
        (example,) = recipe.examples(asked, [], plan, 0)
        assert [message["role"] for message in example.messages] == ["user", "assistant"]
        assert example.messages[-1]["content"] == learnt and example.messages[-1]["train"]
        for learn, turns in ((True, []), (False, ["answer"])):
            ask = traces.ScriptedAsk("=434")
            asyncio.run(recipe.turns(asked, ask, replace(plan, learn=learn), None))
            assert [turn for turn, *_ in ask.asked] == turns


def test_votes_are_counted_over_the_first_answers_and_the_last_ones() -> None:
    texts = traces.answered(
        [0, 1, 1], [[1], [0], [0]], ["=3", "=4", "=4"], [["=4"], ["=5"], ["=5"]], answers_by="base"
    )
    found = study.count_votes([(texts, ()), ([], ())], "=")
    assert found["votes"] == {"1": 0.0, "3": 0.5, "5": 0.5, "9": 0.5}, (
        "a question without answers is a wrong one"
    )
    assert found["corrected_votes"] == {"1": 0.5, "3": 0.0, "5": 0.0, "9": 0.0}


def finished_run(folder: Path, one: study.Cell) -> Path:
    """The folder of a run that wrote two traces on each split, in every iteration."""
    settings = config.load_config(study.CONFIG, study.overrides(one, []), section_of)
    figures = dict.fromkeys(study.FIGURES, 0.5) | {"verdict_read": 0.25, "r_y1_low": 0.1}
    with store.open_run(folder, settings) as run:
        run.write_environment({"git_commit": "0123456789"})
        for number in range(settings.algorithm.iterations + 1):
            stage = run.fresh_stage(run.stage(number, "rollouts"))
            texts = traces.answered([1, 0], [[1], [0]], writer=store.iteration_name(number))
            rows = [traces.row(texts, id=id) for id in ("q1", "q2")]
            names = [f"{split}-000000.parquet" for split in ("train", "dev", "test")]
            for name in names:
                pq.write_table(pa.Table.from_pylist(rows, schema=trace_schema()), stage / name)
            run.commit(stage, {"line": {}, "files": names})
            evaluated = {
                f"{split}/{name}": value for split in ("dev", "test") for name, value in figures.items()
            }
            stages = {"rollouts": {"generated_tokens": 24, "duration_s": 2.0}, "evaluation": evaluated}
            if number:
                stages |= {"examples": {"kept_answer": 3}, "finetune": {"trained_tokens": 7, "steps": 1}}
            for name, values in stages.items():
                values = {f"{name}/{key}": value for key, value in values.items()}
                run.log({"stage": name, "iteration": number, **values})
    return folder


def test_a_finished_run_becomes_a_cell(tmp_path: Path) -> None:
    one = next(one for one in study.cells("recipes", 1) if one.label == "verdict")
    run = finished_run(tmp_path / one.name, one)
    study.add(tmp_path, one, [], run)
    (kept,) = study_figures.lines(tmp_path / study.CELLS)
    assert (kept["name"], kept["commit"], kept["seconds"]) == ("recipes-verdict-0", "0123456", 4.0)
    last = kept["iterations"][1]
    assert last["dev"] == dict.fromkeys(study.FIGURES, 0.5) | {"verdict_read": 0.25}
    assert last["generated"]["train"] == {"answer": 8, "correction": 8} and last["generated_tokens"] == 24
    assert last["answer_tokens"] == {"initial": 2, "correction": 2} and "votes" not in last
    assert last["examples"] == {"kept_answer": 3} and last["trained_tokens"] == 7
    with pytest.raises(SystemExit, match="expected a run of recipes-verdict-1, found other seed"):
        study.add(tmp_path, replace(one, seed=1), [], run)


def test_a_run_that_answers_often_enough_votes(tmp_path: Path) -> None:
    one = next(one for one in study.cells("baselines", 1) if one.label == "consistency")
    (at,) = study.harvest(finished_run(tmp_path / "run", one))
    assert set(at["votes"]) == {"1", "3", "5", "9"} and at["corrected_vote_tokens"] == 4


def test_the_simulation_of_scale_renders_what_an_engine_is_asked():
    async def generate(token_ids, request, _):
        return [Sample("said", (1,), "stop")] * request.n

    sampling = config.SamplingPerTurn()
    ask = Asker(
        simulate_scale.NoChat(),
        generate,
        sampling=sampling,
        identity=(0,),
        writer="v0000",
        max_prompt_tokens=99,
    )
    (text,) = asyncio.run(ask("answer", [{"role": "user", "content": "Why? " * 1000}]))
    assert text.text == "said"
