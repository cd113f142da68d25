"""training.jsonl grows while a fine-tune runs, and holds each step once."""

import json
from pathlib import Path

import pytest
from harness.tiny_models import tiny

from stasc_ray.learning import flops
from stasc_ray.store import step_log


def lines(*steps: int) -> list[dict[str, float]]:
    return [{"step": step, "loss": 1 / step} for step in steps]


def test_lines_wait_for_a_while_and_the_last_ones_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / step_log.NAME
    log = step_log.StepLog(path, None, 0)
    log.add(lines(1))
    monkeypatch.setattr(step_log, "EVERY_S", 3600.0)
    log.add(lines(2))
    assert step_log.read(path) == lines(1)
    log.add(lines(3), last=True)
    assert step_log.read(path) == lines(1, 2, 3)


def test_a_resumed_fine_tune_repeats_no_step(tmp_path: Path) -> None:
    path = tmp_path / step_log.NAME
    step_log.StepLog(path, None, 0).add(lines(1, 2, 3), last=True)
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # killed while it wrote
    assert step_log.read(path) == lines(1, 2, 3)
    step_log.StepLog(path, None, 2).add(lines(3, 4), last=True)
    assert [json.loads(text)["step"] for text in path.read_text().splitlines()] == [1, 2, 3, 4]
    step_log.StepLog(path, None, 0)
    assert step_log.read(path) == [] and step_log.read(tmp_path / "none") == []


def test_iterations_are_read_in_their_order(tmp_path: Path) -> None:
    for number in (2, 10, 100):
        folder = tmp_path / f"iteration_{number:02d}" / ("model" if number < 100 else "training")
        folder.mkdir(parents=True)
        step_log.StepLog(folder / step_log.NAME, None, 0).add(lines(number), last=True)
    (tmp_path / "iteration_03").mkdir()
    assert step_log.read_of_run(tmp_path) == {number: lines(number) for number in (2, 10, 100)}


def test_arithmetic_counts_a_models_weights_as_they_are_used() -> None:
    model = tiny("LlamaConfig")
    weights = flops.of_model(model, frozen=False)
    assert weights == flops.Weights(
        inner=2 * (64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 96), head=512 * 64, attention=2 * 64
    )
    assert flops.training_flops(weights, 10, 0, 0) == 60 * weights.inner
    assert flops.training_flops(weights, 0, 100, 7) == 6 * (7 * weights.head + 100 * weights.attention)
    frozen = flops.of_model(model, frozen=True)
    assert frozen and flops.training_flops(frozen, 10, 0, 0) == 40 * weights.inner
    assert flops.of_model(tiny("Qwen3MoeConfig"), frozen=False) is None


def test_peaks_are_known_by_name() -> None:
    assert flops.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert flops.peak_flops("NVIDIA H100 PCIe") == 756e12
    assert flops.peak_flops("Radeon") is None
