"""`stasc evaluate`: real questions through the real path, and correction rounds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
DATA = Path(__file__).parent.parent.parent / "shared" / "data"


def evaluate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stasc_ray.cli", "evaluate", "--model", "sandbox", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=540, check=False)


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
    (found,) = json.loads((tmp_path / "out" / "metrics.json").read_text())["rounds"]
    assert found["questions"] == 24 and 0 <= found["r_y2"] <= 0.1
    assert done.stdout.splitlines()[-1].startswith("round 1:")


def test_rounds_are_measured_one_by_one(tmp_path: Path) -> None:
    done = evaluate("--data", "sandbox", "--limit", "60", "--rounds", "3", "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    rounds = json.loads((tmp_path / "out" / "metrics.json").read_text())["rounds"]
    assert [row["round"] for row in rounds] == [1, 2, 3]
    assert len({row["r_y1"] for row in rounds}) == 1, "every round is compared with the same initial answers"
    assert 0.1 < rounds[0]["r_y1"] < 0.6
    again = evaluate("--data", "sandbox", "--limit", "60", "--output", str(tmp_path / "out"))
    assert again.returncode == 1 and "expected a new or an empty folder" in again.stderr
