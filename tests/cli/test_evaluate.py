"""`stasc evaluate`: real questions through the real path, and correction rounds."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stasc_ray import store

pytestmark = pytest.mark.slow
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def evaluate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stasc_ray.cli", "evaluate", "--model", "sandbox", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=540, check=False)


def figures(folder: Path) -> dict[str, Any]:
    """What was measured on test."""
    (line,) = [line for line in store.RunFolder(folder).metrics() if line["stage"] == "evaluation"]
    return {name.removeprefix("evaluation/test/"): value for name, value in line.items()}


@pytest.mark.skipif(not DATA.is_dir(), reason="the real questions of ../shared/data are not here")
def test_real_questions_give_honest_figures_near_zero(tmp_path: Path) -> None:
    done = evaluate(
        "--data",
        str(DATA / "gsm8k.test.jsonl"),
        "--preset",
        "gsm8k",
        "--limit",
        "24",
        "--output",
        str(tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr
    found = figures(tmp_path / "out")
    assert found["questions"] == 24 and 0 <= found["r_y2"] <= 0.1
    assert done.stdout.splitlines()[-1].startswith("round 1:")


def test_rounds_are_measured_one_by_one(tmp_path: Path) -> None:
    done = evaluate("--data", "sandbox", "--limit", "60", "--rounds", "3", "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    found = figures(tmp_path / "out")
    rounds = [line for line in done.stdout.splitlines() if line.startswith("round ")]
    assert [line.partition(":")[0] for line in rounds] == ["round 1", "round 2", "round 3"]
    r_y1 = {found[f"{at}r_y1"] for at in ("round_1/", "round_2/", "")}
    assert len(r_y1) == 1, "every round is compared with the same initial answers"
    assert 0.1 < found["r_y1"] < 0.6
    assert f"r_y2 {found['round_1/r_y2']:.4f}" in rounds[0] and f"r_y2 {found['r_y2']:.4f}" in rounds[2]
    again = evaluate("--data", "sandbox", "--limit", "60", "--output", str(tmp_path / "out"))
    assert again.returncode == 1 and "evaluation.rounds: 3 in the folder, 1 now" in again.stderr
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    refused = evaluate("--data", "sandbox", "--limit", "60", "--output", str(tmp_path / "other"))
    assert refused.returncode == 1 and "found other files" in refused.stderr
