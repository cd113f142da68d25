"""The benchmarks run, and their tables say what was measured."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from benchmarks import gpu, speed, study, study_figures, study_report
from stasc_ray import config
from stasc_ray.learning import encoding
from stasc_ray.recipes import section_of
from stasc_ray.runtime import model_folder


def pairs(*rates: tuple[float, float]) -> list[dict]:
    return [{"ours": {"tokens_per_s": ours}, "against": {"tokens_per_s": against}} for ours, against in rates]


def test_a_ratio_is_taken_within_a_pair_and_its_range_is_shown() -> None:
    measured = [
        pair | {"all_cores": {"tokens_per_s": 150}} for pair in pairs((90, 100), (50, 100), (190, 200))
    ]
    row, all_cores = list(speed.table({"training": measured}))[2:]
    assert row.startswith(
        "| fine-tuning | 90 tokens/s | a bare torch loop on tensors made before, as many threads: 100 tokens/s"
    )
    assert "| 0.90 (0.50 to 0.95" in row and "150 tokens/s | 0.60 (0.33 to 1.27" in all_cores


def test_an_iteration_is_compared_with_the_same_tokens_at_the_bare_rates() -> None:
    run = {"wall": 100.0, "generated_tokens": 2000.0, "trained_on_tokens": 3000.0}
    bare = {"generation": 40.0, "training": 100.0}
    found = {
        "iteration": [{"iteration_2": run, "iteration_3": run, "bare": bare, "reference": {"seconds": 250.0}}]
    }
    lines = [line for line in speed.table(found) if line.startswith("| iteration")]
    assert "bare generation and bare training: 80 s | 1.25" in lines[0]  # 2000 / 40 + 3000 / 100
    assert "the reference's way: 250 s | 2.50" in lines[2]


def test_the_table_goes_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{speed.MARKS[0]}\nold\n{speed.MARKS[1]}\nafter\n")
    speed.write_between_marks(page, "new")
    assert page.read_text() == f"before\n{speed.MARKS[0]}\n\nnew\n\n{speed.MARKS[1]}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="expected the lines"):
        speed.write_between_marks(page, "new")


def test_the_model_for_the_gpu_keeps_the_number_of_tokens_of_a_text(tmp_path: Path) -> None:
    shape = gpu.QWEN_1_5B | {
        "num_hidden_layers": 1,
        "hidden_size": 24,
        "intermediate_size": 32,
        "vocab_size": 1000,
    }
    work = gpu.make_work(tmp_path, shape, 3, "cpu")
    tokenizer = model_folder.load_tokenizer(work["model"])
    text = tokenizer.decode([6, 999, 17])
    assert tokenizer.encode(text) == [6, 999, 17] and model_folder.stop_token_ids(
        work["model"], tokenizer
    ) == [1]
    for line in Path(work["examples"]).read_text().splitlines():
        encoded = encoding.encode(tokenizer, json.loads(line)["messages"], 4096)
        assert not isinstance(encoded, str)
        assert [len(one["input_ids"]) for one in encoded] == [2 * (gpu.QUESTION_WORDS + gpu.ANSWER_WORDS) + 8]


def test_utilization_counts_the_weights_of_the_real_shape() -> None:
    """Qwen2.5-1.5B's card: 1.54 billion parameters."""
    assert gpu.utilization(1.0, gpu.QWEN_1_5B, 0, 1.0, 6.0) == pytest.approx(1.54e9, rel=0.01)


@pytest.mark.slow
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
    assert "| fine-tuning |" in done.stdout and list((tmp_path / "rollouts").glob("train-*.parquet"))


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
    with ThreadPoolExecutor(len(cells)) as pool:  # as cells that end together
        list(pool.map(partial(study.keep, tmp_path), cells))
    kept = study_figures.lines(tmp_path / study.CELLS)
    assert kept == sorted(cells, key=lambda one: one["name"])
    study.keep(tmp_path, kept[0])
    assert study_figures.lines(tmp_path / study.CELLS) == kept, "a cell that comes again takes its own place"
    expected = {"variants": 40, "baselines": 2, "samples": 27}
    study_report.write(tmp_path / study.CELLS, tmp_path / "results.md", expected)
    page = (tmp_path / "results.md").read_text()
    # Chosen on dev: 0.8 and 0.9 there, 0.7 and 0.8 on test; t for one degree of freedom is 12.706.
    assert "| ENE | 2 | 1 1 | 100 | 0.300 ± 0.000 | 0.750 ± 0.635 |" in page
    assert "- ENE against EIE: +0.350 ± 0.635 (2 seeds)" in page
    assert "| STaSC, variant ENE | 0.300 ± 0.000 | 0.750 ± 0.635 | - |" in page
    assert "own right first answers (dev keeps M0) | 0.300 ± 0.000 | 0.300 ± 0.000 | 0.400 ± 0.000 |" in page
    assert "| ENE | -0.100 ± 1.271 (2 seeds) | 0.000 | +0.350 ± 1.906 (2 seeds) |" in page
    assert "**Not whole yet**, cells that are there: variants 4 of 40, samples 0 of 27." in page
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


def test_a_baselines_examples_come_again_until_the_budget_is_met() -> None:
    settings = config.load_config(study.CONFIG, [], section_of)
    asked = {"role": "user", "content": "What is 10 + 11 + 1?"}
    examples = [
        {"id": text, "messages": [asked, {"role": "assistant", "content": text}]} for text in ("=1", "=22")
    ]
    few, many = (study.within(examples, tokens, settings) for tokens in (1, 100))
    assert len(few) == 1 and len(many) > 20 and len({one["id"] for one in many}) == len(many)
    assert {one["messages"][-1]["content"] for one in many} == {"=1", "=22"}
