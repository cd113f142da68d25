"""`stasc compare CONFIG`: what a budget buys, what is refused, the page, and once for real."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness.pages import Page
from harness.traces import settings

from stasc_ray import store
from stasc_ray.comparing import contest
from stasc_ray.recipes.policies import POLICIES
from stasc_ray.report.compared_page import as_lines, write_page

DEMO = Path(__file__).resolve().parents[2] / "jobs" / "configs" / "demo.toml"


def test_a_budget_buys_the_number_whose_cost_is_nearest():
    assert contest.affordable("samples", [60.0, 60.0], 120) == 4
    assert contest.affordable("samples", [60.0], 134) == 4 and contest.affordable("samples", [60.0], 136) == 5
    assert contest.affordable("rounds", [30.0, 60.0, 90.0], 120) == 3
    assert contest.affordable("rounds", [30.0, 60.0, 90.0], 10) == 1, "one at least"
    assert contest.affordable("rounds", [30.0, 60.0, 60.0], 120) == 1, "a second round asks for nothing"
    assert contest.affordable("samples", [0.001], 1e9) == contest.MOST["samples"]


def test_strategies_are_checked_and_all_are_taken_if_none_is_named():
    of = settings()
    found = contest.check_strategies([], of)
    assert found[0] == "direct" and sorted(found) == sorted(POLICIES)
    assert contest.check_strategies(["rci", "direct"], of) == ["rci", "direct"], "the first stays the first"
    with pytest.raises(ValueError, match=r"expected some of recipe, direct, .*, found 'best'"):
        contest.check_strategies(["best"], of)
    with pytest.raises(ValueError, match="expected each once, found 'rci' twice"):
        contest.check_strategies(["rci", "rci"], of)


@pytest.mark.parametrize("greedy", ["evaluation.greedy=true", "sampling.initial.temperature=0"])
def test_greedy_answers_are_all_the_same_so_no_vote_is_taken(greedy: str):
    with pytest.raises(ValueError, match=r"--strategies self_consistency asks for several samples.*greedy"):
        contest.check_strategies(["direct", "self_consistency"], settings(greedy))
    left = contest.check_strategies([], settings(greedy))
    assert "direct" in left and not {"vote", "debate", "best_by_certainty"} & set(left)


MANIFEST = {"version": "v0000", "iteration": 0, "created": "2026-11-20T12:00:00Z"}


def test_versions_that_are_not_there_are_refused(tmp_path: Path):
    of = settings()
    assert [one.name for one in contest.versions_of([], of, "model")] == ["base"]
    with pytest.raises(FileNotFoundError):
        contest.versions_of([str(tmp_path / "none")], of, "model")
    with store.open_run(tmp_path / "run", of) as run:
        with pytest.raises(ValueError, match="found none published"):
            contest.versions_of([str(tmp_path / "run")], of, "model")
        run.publish({**MANIFEST, "model": "M0"}, move_latest=True)
    (found,) = contest.versions_of([str(tmp_path / "run")], of, "model")
    assert (found.model, found.iteration) == ("M0", 0)
    with pytest.raises(ValueError, match="expected one of v0000, found v0003"):
        contest.versions_of([f"{tmp_path / 'run'}:v0003"], of, "model")


def test_two_versions_of_one_name_are_refused_and_another_time_is_another_version(tmp_path: Path):
    of, found = settings(), []
    for folder, when in (("a/run", "10"), ("b/run", "11")):
        with store.open_run(tmp_path / folder, of) as run:
            run.publish({**MANIFEST, "created": f"2026-11-{when}T12:00:00Z", "model": "M"}, move_latest=True)
        found += contest.versions_of([str(tmp_path / folder)], of, "model")
    assert found[0].name == found[1].name and found[0].identity != found[1].identity
    with pytest.raises(ValueError, match="expected names that tell them apart, found run:v0000, run:v0000"):
        contest.versions_of([str(tmp_path / "a/run"), str(tmp_path / "b/run")], of, "model")


def made_up() -> dict[str, Any]:
    """What `contest` gives, of two cells."""
    against = {
        "questions": 60,
        "difference": -0.01,
        "low": -0.08,
        "high": 0.05,
        "gained": 2,
        "lost": 3,
        "p": 1.0,
    }
    cell = {
        "version": "base", "strategy": "direct", "grows": None, "n": 1, "questions": 60, "failed": 0,
        "reward": 0.38, "low": 0.26, "high": 0.5, "first_reward": 0.38, "i_to_c": 0.0, "c_to_i": 0.0, "cl": 1.0,
        "cs": None, "flips": [], "tokens": 29.7, "calls": 1.0, "seconds": 0.1, "needs_reward": False,
        "against_first": None,
    }  # fmt: skip
    rounds = {
        "strategy": "<oracle>",
        "grows": "rounds",
        "n": 2,
        "flips": [[0.1, 0.02], [0.05, 0.0]],
        "tokens": 90.0,
    }
    other = {**cell, **rounds, "needs_reward": True, "against_first": against}
    return {"name": "demo & co", "questions": 60, "budget_tokens": 118.8, "cells": [cell, other]}


def test_the_page_shows_every_cell_and_nothing_in_it_is_markup(tmp_path: Path):
    page = write_page(made_up(), tmp_path).read_text(encoding="utf-8")
    assert "<oracle>" not in page and "&lt;oracle&gt;" in page and "demo &amp; co" in page
    assert "knows which answer is right" in page and "1: 0.100 / 0.020; 2: 0.050 / 0.000" in page
    assert page.count("<circle") == 2 and "<script" not in page and "http:" not in page
    Page(page)  # its tags are closed in order


def test_the_table_for_a_terminal_has_a_line_for_each():
    lines = as_lines(made_up()).splitlines()
    assert [line.split()[:2] for line in lines[2:4]] == [["base", "direct"], ["base", "<oracle>*"]]
    assert "-0.010 [-0.080, +0.050], p 1.000" in lines[3]


@pytest.mark.slow
def test_ways_to_answer_are_compared_for_real_and_what_is_there_is_not_asked_again(tmp_path: Path):
    out, names = tmp_path / "out", "direct,best_by_certainty,oracle_stop"
    command = [
        sys.executable,
        "-m",
        "stasc_ray.cli",
        "compare",
        str(DEMO),
        "engine.actors=1",
        "--limit",
        "24",
    ]
    command += ["--output", str(out), "--strategies", names, "--tokens", "90"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((out / contest.FILE).read_text())
    cells = {cell["strategy"]: cell for cell in found["cells"]}
    assert list(cells) == names.split(",") and {cell["failed"] for cell in cells.values()} == {0}
    assert cells["direct"]["against_first"] is None and cells["direct"]["cl"] == 1.0
    best = cells["best_by_certainty"]
    assert best["n"] == 3 and 60 < best["tokens"] < 120, "three answers of 30 tokens"
    oracle = cells["oracle_stop"]
    assert oracle["c_to_i"] == 0 and oracle["against_first"]["lost"] == 0, "it never leaves a right answer"
    assert oracle["calls"] > 1 and len(oracle["flips"]) == oracle["n"] and best["flips"] == []
    assert (out / "compare.html").is_file()
    before = {file: file.stat().st_mtime_ns for file in (out / "answers").rglob("*.parquet")}
    again = subprocess.run(command, capture_output=True, text=True, timeout=540, check=False)
    assert again.returncode == 0 and json.loads((out / contest.FILE).read_text()) == found
    assert {file: file.stat().st_mtime_ns for file in (out / "answers").rglob("*.parquet")} == before
