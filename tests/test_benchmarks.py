"""The benchmarks run, and their tables say what was measured."""

import subprocess
import sys
from pathlib import Path

import pytest
import speed

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def pairs(*rates: tuple[float, float]) -> list[dict]:
    return [{"ours": {"tokens_per_s": ours}, "against": {"tokens_per_s": against}} for ours, against in rates]


def test_a_ratio_is_taken_within_a_pair_and_its_range_is_shown() -> None:
    lines = list(speed.table({"training": pairs((90, 100), (50, 100), (190, 200))}))
    (row,) = lines[2:]
    assert row.startswith(
        "| fine-tuning, packed | 90 tokens/s | a bare torch loop on packed tensors: 100 tokens/s | 0.90 (0.50 to 0.95"
    )


def test_an_iteration_is_compared_with_the_same_tokens_at_the_bare_rates() -> None:
    run = {"wall": 100.0, "generated_tokens": 2000.0, "trained_on_tokens": 3000.0}
    found = {
        "generation": pairs((1, 40)),
        "training": pairs((1, 100)),
        "iteration": [{"iteration_2": run, "iteration_3": run, "reference": {"seconds": 250.0}}],
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


@pytest.mark.slow
def test_a_quick_benchmark_measures_both_sides(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(BENCHMARKS / "speed.py"),
        "--quick",
        "--rows",
        "generation",
        "training",
        "--folder",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| two-turn generation, engines warm |" in done.stdout and "| fine-tuning, packed |" in done.stdout
