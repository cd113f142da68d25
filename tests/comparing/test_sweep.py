"""`stasc sweep`: which runs there are, that a typo costs nothing, what is put side by side."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from stasc_ray import store
from stasc_ray.cli.main import app
from stasc_ray.comparing import sweep

DEMO = Path(__file__).resolve().parents[2] / "jobs" / "configs" / "demo.toml"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("seed=0..3", ["0", "1", "2", "3"]),
        ("seed=-1..1", ["-1", "0", "1"]),
        ("algorithm.variant=EIE, ENE", ["EIE", "ENE"]),
        ("finetune.learning_rate=1e-5", ["1e-5"]),
    ],
)
def test_values(text: str, values: list[str]) -> None:
    assert sweep.values_of(text) == (text.partition("=")[0], values)


@pytest.mark.parametrize("text", ["seed", "seed=", "=1", "seed=1,,2", "seed=3..1", "seed=1,1"])
def test_values_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"--vary: expected field=a,b,c or field=0\.\.4, each value once"):
        sweep.values_of(text)


def test_all_combinations_are_run_seed_after_seed() -> None:
    found = sweep.runs_of(DEMO, [], ["algorithm.variant=EIE,ENE", "seed=0..1"])
    assert [(one.seed, one.settings.algorithm.variant) for one in found] == [
        (0, "EIE"), (0, "ENE"), (1, "EIE"), (1, "ENE"),
    ]  # fmt: skip
    assert [one.settings.name for one in found][:2] == ["demo-seed_0-variant_EIE", "demo-seed_0-variant_ENE"]
    assert {one.label for one in found} == {"algorithm.variant=EIE", "algorithm.variant=ENE"}


@pytest.mark.parametrize(
    ("vary", "said"),
    [
        (["algorithm.variant=ENE,EXE"], "expected one of EIE"),
        (["seed=0..1", "seed=2..3"], "expected each field once"),
        (["seed=0..2000"], "expected at most 1000 runs, found 2001"),
        (["finetune.learning=1,2"], "finetune.learning"),
        (["algorithm.n_corrections=1, 1 "], "each value once"),
    ],
)
def test_a_value_that_makes_no_config_is_found_before_anything_starts(vary: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        sweep.runs_of(DEMO, [], vary)


BASE = {"base/r_y2": 0.9, "base/r_y1": 0.2}


def measured(folder: Path, one: sweep.SweptRun, last: int, **figures: float) -> None:
    """A run folder that has measured so far; the figures are the last iteration's."""
    with store.open_run(folder / one.settings.name, one.settings) as run:
        for k in range(last + 1):
            better = {f"evaluation/dev/{name}": value + k for name, value in figures.items()}
            values = {f"evaluation/test/{name}": value * k / last for name, value in figures.items()}
            run.log({"stage": "evaluation", "iteration": k, "time": 0.0, **values, **better})
            run.log({"stage": "publish", "iteration": k, "time": 0.0})


def test_runs_that_differ_in_their_seed_alone_are_one_line_with_its_error(tmp_path: Path) -> None:
    runs = sweep.runs_of(DEMO, [], ["algorithm.variant=EIE,FIE", "seed=0..1"])
    for one, reward in zip(runs, (0.5, 0.3, 0.7, 0.3), strict=True):
        measured(tmp_path, one, 3, r_y1=0.1, r_y2=reward, **(BASE if "FIE" in one.label else {}))
    found: list[Any] = [sweep.figures(one, tmp_path) for one in runs]
    assert [line["finished"] for line in found] == [True] * 4
    assert {line["r_y2"] for line in found if "FIE" in line["label"]} == {0.9}, "M0's answers corrected"
    lines = list(sweep.lines_of([{**line, "r_y2": reward} for line, reward in zip(found, (0.5, 0.3, 0.7, 0.3), strict=True)]))  # fmt: skip
    assert "0.600 ± 0.100" in lines[1] and "0.300 ± 0.000" in lines[2] and len(lines) == 3
    assert sweep.figures(runs[0], tmp_path / "nowhere") is None


def test_the_gain_over_m0_has_its_interval_and_over_seeds_its_error(tmp_path: Path) -> None:
    runs = sweep.runs_of(DEMO, [], ["seed=0..2"])
    gain = {"gain": 0.25, "gain_low": -0.125, "gain_high": 0.5}
    for one in runs:
        measured(tmp_path, one, 3, r_y1=0.1, r_y2=0.5, **gain)
    found: list[Any] = [sweep.figures(one, tmp_path) for one in runs]
    found[2] |= {"iteration": 0, "gain": None}
    (_, alone), (_, unchanged) = sweep.lines_of(found[:1]), sweep.lines_of(found[2:])
    assert alone.endswith("r(Y2) +0.250 [-0.125, +0.500]") and unchanged.endswith("M0 chosen")
    (_, line) = sweep.lines_of(found)
    assert line.endswith("r(Y2) 0.167 ± 0.083"), "a run that chose M0 gained 0"
    found[1]["gain"] = None  # measured by an older version
    assert list(sweep.lines_of(found))[1].endswith(" -")


def test_runs_of_another_config_are_not_taken_for_these(tmp_path: Path) -> None:
    (one,) = sweep.runs_of(DEMO, [], ["seed=0"])
    measured(tmp_path, one, 3, r_y1=0.1, r_y2=0.5)
    sweep.check_folders([one], tmp_path)
    others = sweep.runs_of(DEMO, ["finetune.epochs=3"], ["seed=0"])
    with pytest.raises(
        ValueError, match=r"found one with other finetune.epochs; choose another folder for the runs"
    ):
        sweep.check_folders(others, tmp_path)


def test_a_run_that_is_stopped_with_the_sweep_is_told_so(tmp_path: Path) -> None:
    script = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('told'), sys.exit(0)))\n"
        "print('up', flush=True); time.sleep(60)"
    )
    log = tmp_path / "log"

    def stop() -> None:
        while not (log.exists() and "up" in log.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in a background job it is ignored
    try:
        threading.Thread(target=stop, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            sweep.run_one([sys.executable, "-c", script], log)
    finally:
        signal.signal(signal.SIGINT, before)
    assert "told" in log.read_text()


def test_finished_runs_are_not_run_again_and_one_that_fails_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = sweep.runs_of(DEMO, [], ["seed=0..2"])
    measured(tmp_path, runs[0], 3, r_y1=0.1, r_y2=0.5)
    measured(tmp_path, runs[1], 1, r_y1=0.1, r_y2=0.4)
    # the run itself is stood in for: a process that notes that it was started, and fails for seed 1
    script = "import sys; sys.exit(int('seed=1' in sys.argv))"
    monkeypatch.setattr(sweep, "command", lambda file, values, folder: [sys.executable, "-c", script, *values])  # fmt: skip
    arguments = ["sweep", str(DEMO), "--vary", "seed=0..2", "--output", str(tmp_path)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1
    assert "demo-seed_0: finished before" in done.output and "demo-seed_1: failed" in done.output
    assert "3 of 3, demo-seed_2" in done.output, "the others go on"
    assert [line["seed"] for line in json.loads((tmp_path / sweep.FILE).read_text())] == [0, 1]
