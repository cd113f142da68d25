"""Which version LATEST names: dev decides, and where a gain must be sure, noise does not."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from harness.traces import settings

from stasc_ray import stages, store
from stasc_ray.evaluation import choosing, metrics
from stasc_ray.recipes import RECIPES
from stasc_ray.runtime.display import Display
from stasc_ray.store.run_folder import FORK_FILE

SURELY = "publish.when=dev_improves_surely"


def rows_of(rewards: Sequence[float]) -> list[dict[str, Any]]:
    nothing = dict.fromkeys(metrics.MEANS, 0.0)
    return [{**nothing, "id": f"q{n:04d}", "r_y2": reward} for n, reward in enumerate(rewards)]


def measured(
    run: store.RunFolder,
    iteration: int,
    rewards: Sequence[float],
    of: str = "",
    own: Sequence[float] | None = None,
) -> None:
    """An evaluation with these rewards on dev; on test nothing is right. `own`: of corrections of its own
    answers, where `rewards` are of M0's."""
    folder = run.stage(iteration, "evaluation")
    folder.mkdir(parents=True)
    scored = {("dev", of): rows_of(rewards), ("test", of): rows_of([0.0] * len(rewards))}
    scored |= {("dev", ""): rows_of(own)} if own else {}
    choosing.write_scores(folder, scored)
    mean = sum(rewards) / len(rewards)
    run.log({"stage": "evaluation", "iteration": iteration, f"evaluation/dev/{of}r_y2": mean})


def published(run: store.RunFolder, told, iteration: int) -> choosing.Choice:
    choice = choosing.choose(run, told, iteration)
    run.log({"stage": "publish", "iteration": iteration, "publish/latest": choice.moves})
    return choice


def flips(gained: int, lost: int, count: int = 200) -> list[float]:
    """What becomes of questions of which the first half was right."""
    half = count // 2
    return [1.0] * (half - lost) + [0.0] * lost + [1.0] * gained + [0.0] * (half - gained)


def test_noise_moves_latest_only_where_a_gain_need_not_be_sure(tmp_path: Path) -> None:
    for when, expected in (("dev_improves", 1), ("dev_improves_surely", 0), ("always", 1)):
        told = settings(f"publish.when={when}")
        with store.open_run(tmp_path / when, told) as run:
            measured(run, 0, flips(0, 0))
            assert published(run, told, 0).moves
            measured(run, 1, flips(6, 4))  # +0.01; its standard error is 0.016
            assert published(run, told, 1).moves == bool(expected)
            assert choosing.chosen(run, told) == expected


def test_a_sure_gain_is_told_with_its_interval_and_against_what(tmp_path: Path) -> None:
    told = settings(SURELY)
    with store.open_run(tmp_path / "run", told) as run:
        for iteration, (gained, lost) in enumerate([(0, 0), (3, 2), (20, 4), (22, 4), (30, 40)]):
            measured(run, iteration, flips(gained, lost))
            choice = published(run, told, iteration)
            assert choice.moves == (iteration in (0, 2)), "v0003 is better than v0002 by one question"
        assert choosing.chosen(run, told) == 2 and choosing.chosen(run, told, up_to=1) == 0
        assert choice.against == 2 and choice.gain and choice.gain.difference == pytest.approx(-0.13)
        assert choice.gain.low < -0.13 < choice.gain.high < 0.0 and choice.gain.probability < 0.01
        assert choosing.gain(run, told, "dev", 0, 2).difference == pytest.approx(0.08)
        assert choosing.gain(run, told, "test", 0, 2).difference == 0, "test is not dev"
        bold = settings(SURELY, "publish.min_probability=0.6")
        assert choosing.choose(run, bold, 3).moves, "one question more is likelier than not a gain"


def test_what_is_published_says_why_latest_stays_or_moves(tmp_path: Path, capsys) -> None:
    told = settings(SURELY)
    with store.open_run(tmp_path / "run", told) as run:
        whole = stages.Run(run, told, False, Display(), lambda: None, None, None)  # type: ignore[arg-type]
        for iteration, (gained, lost) in enumerate([(0, 0), (6, 4), (20, 4)]):
            measured(run, iteration, flips(gained, lost))
            stages.publish(whole, iteration)
            stages.publish(whole, iteration)  # as after a crash
        lines = [line for line in run.metrics() if line["stage"] == "publish"]
        assert [line["publish/latest"] for line in lines] == [True, False, True] and run.latest() == "v0002"
        assert [line.get("publish/against") for line in lines] == [None, "v0000", "v0000"]
        assert lines[1]["publish/gain"] == pytest.approx(0.01) and lines[2]["publish/gain_probability"] > 0.99
        assert len(run.versions()) == 3
    stays, moves = capsys.readouterr().out.splitlines()
    assert stays.startswith("v0001 against v0000 on 200 dev questions: +0.010 [-0.0")
    assert stays.endswith("(at least 0.9 is wanted): LATEST stays at v0000") and moves.endswith(
        "LATEST moves"
    )


def test_a_recipe_that_no_question_alone_measures_is_refused_before_a_run(monkeypatch) -> None:
    own = "algorithm.recipe=verdict"
    monkeypatch.setitem(RECIPES, "verdict", replace(RECIPES["verdict"], chosen_by="verdict_accuracy"))
    with pytest.raises(ValueError, match="found 'verdict_accuracy', which is no mean over questions"):
        choosing.check(settings(SURELY, own))
    choosing.check(settings(own))
    assert not choosing.is_paired(settings(own)), "so no gain is told"


def test_a_model_that_says_the_same_is_no_gain(tmp_path: Path) -> None:
    told = settings(SURELY, "publish.min_probability=0.5")
    with store.open_run(tmp_path / "run", told) as run:
        for iteration in (0, 1):
            measured(run, iteration, flips(0, 0))
            assert published(run, told, iteration).moves == (iteration == 0)


def test_questions_in_another_order_are_still_paired(tmp_path: Path) -> None:
    told = settings(SURELY)
    with store.open_run(tmp_path / "run", told) as run:
        rows = rows_of([float(n % 2) for n in range(50)])
        for iteration in (0, 1):
            folder = run.stage(iteration, "evaluation")
            folder.mkdir(parents=True)
            choosing.write_scores(folder, {("dev", ""): random.Random(iteration).sample(rows, 50)})
        found = choosing.gain(run, told, "dev", 0, 1)
        assert (found.difference, found.low, found.high) == (0, 0, 0)


def test_with_fixed_initialization_corrections_of_m0s_answers_count(tmp_path: Path) -> None:
    told = settings(SURELY, "algorithm.variant=FNE")
    with store.open_run(tmp_path / "run", told) as run:
        measured(run, 0, flips(0, 0))
        published(run, told, 0)
        measured(run, 1, flips(20, 2), of="base/", own=flips(2, 20))
        choice = published(run, told, 1)
        assert choice.moves and choice.gain and choice.gain.difference == pytest.approx(0.09)


def test_what_an_older_version_measured_is_no_reason_to_guess(tmp_path: Path) -> None:
    told = settings(SURELY)
    with store.open_run(tmp_path / "run", told) as run:
        measured(run, 0, flips(0, 0))
        published(run, told, 0)
        (run.stage(0, "evaluation") / choosing.SCORES).unlink()
        measured(run, 1, flips(50, 0))
        assert not choosing.has_scores(run, 0) and choosing.has_scores(run, 1)
        with pytest.raises(
            FileNotFoundError, match=r"in base, found none .* delete the _COMMITTED.json beside it"
        ):
            choosing.choose(run, told, 1)


def test_a_fork_that_asks_otherwise_begins_its_choices_anew(tmp_path: Path) -> None:
    told = settings(SURELY)
    with store.open_run(tmp_path / "run", told) as run:
        for iteration, gained in enumerate((0, 40)):
            measured(run, iteration, flips(gained, 0))
            published(run, told, iteration)
        about = {"origin": "x", "iteration": 2, "compares_from": 2, "earlier": []}
        (run.path / FORK_FILE).write_text(json.dumps(about))
        assert choosing.chosen(run, told) is None and not choosing.has_scores(run, 1)
        measured(run, 2, flips(1, 0))
        assert published(run, told, 2) == choosing.Choice(True), "nothing before compares with it"
        assert choosing.chosen(run, told) == 2
