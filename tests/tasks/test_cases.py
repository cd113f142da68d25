"""Every graded vector of ../shared/cases: inputs from public reports that an earlier grader got wrong."""

import json
from pathlib import Path

import pytest

from stasc_ray.config import Reward
from stasc_ray.tasks.rewards import grader

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases" / "rewards.jsonl"
MARKER = "Final Answer:"


def _cases():
    if not CASES.is_file():
        return []
    return [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def graders():
    found = {}
    yield found
    for grade in found.values():
        grade.close()


def test_the_cases_are_here():
    if not CASES.is_file():
        pytest.skip("needs ../shared/cases/rewards.jsonl beside the repository")
    assert {case["kind"] for case in _cases()} >= {f"K{number}" for number in range(1, 14)}


@pytest.mark.parametrize("case", _cases(), ids=lambda case: f"{case['kind']}: {case['prediction'][:40]!r}")
def test_case(case, graders):
    setting = (case["metric"], case["scope"])
    if setting not in graders:
        graders[setting] = grader(Reward(name=setting[0], scope=setting[1]), MARKER)
    row = {"answers": case["references"], "choices": case.get("choices")}
    value, error = graders[setting](case["prediction"], row)
    assert error is None
    assert value == pytest.approx(case["expected"], abs=1e-3)
