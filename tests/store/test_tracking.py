"""Trackers: what they get, and that one which is down, hangs or fails never ends or holds a run.

MLflow's server is a real HTTP endpoint with the part of its REST interface that is used; where MLflow's
package is not installed a stand-in makes the same calls. W&B's is a stand-in function.
"""

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from harness.mlflow_server import Kept, free_port, hanging, serving

from stasc_ray import config, store
from stasc_ray.recipes import section_of
from stasc_ray.store import RunFolder, step_log, tracker_process, trackers, tracking

STANDINS = Path(__file__).parent.parent / "harness" / "standins"
LINES = [
    {"stage": "rollouts", "iteration": 0, "time": 1.5, "rollouts/questions": 9},
    {
        "stage": "evaluation",
        "iteration": 2,
        "time": 2.5,
        "evaluation/test/r_y2": 0.75,
        "evaluation/test/rss": None,
        "x": 1,
    },
]
SENT = [("run0", "rollouts/questions", 9.0, 0), ("run0", "evaluation/test/r_y2", 0.75, 2)]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    with store.open_run(tmp_path / "run", config.load_config(None, ["name=mine"], section_of)) as opened:
        yield opened


@pytest.fixture
def mlflow_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    if importlib.util.find_spec("mlflow") is None:
        monkeypatch.syspath_prepend(STANDINS)
        path = os.pathsep.join(filter(None, [str(STANDINS), os.environ.get("PYTHONPATH")]))
        monkeypatch.setenv("PYTHONPATH", path)
    return lambda port: monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def cursor(run: RunFolder, name: str = "mlflow") -> int:
    return trackers.Cursor.read(run.path / "tracking" / f"{name}.json").sent.get("iteration", 0)


def test_lines_wait_for_a_tracker_that_is_down_and_are_sent_once_on_resume(run, mlflow_at) -> None:
    mlflow_at(port := free_port())
    notes: list[str] = []
    with tracking.trackers(config.Tracking(mlflow=True), run.path, notes.append) as track:
        wait_for(lambda: notes)  # opened while it was down
        for line in LINES:
            run.log(line)
            track()
    assert len(notes) == 2 and "tracking.mlflow is down" in notes[0] and "goes on" in notes[0], notes
    assert "not everything was sent" in notes[1] and cursor(run) == 0
    kept, notes = Kept(), []
    for _ in range(2):  # the second time there is nothing left to send
        with (
            serving(port, kept),
            tracking.trackers(config.Tracking(mlflow=True), run.path, notes.append),
        ):
            pass
    assert (kept.metrics, kept.runs, kept.experiments, notes) == (SENT, ["run0"], ["stasc"], [])
    assert kept.params["name"] == '"mine"' and kept.params["sampling.initial.top_p"]
    assert kept.statuses == ["FINISHED", "RUNNING", "FINISHED"] and cursor(run) == 2


def test_a_tracker_that_comes_back_gets_what_waited_and_one_note_says_so(run, mlflow_at) -> None:
    mlflow_at(port := free_port())
    kept, notes = Kept(), []
    with (
        pytest.raises(ArithmeticError),
        tracking.trackers(config.Tracking(mlflow=True), run.path, notes.append) as track,
    ):
        run.log(LINES[0])
        wait_for(lambda: notes)
        with serving(port, kept):
            run.log(LINES[1])
            track()
            wait_for(lambda: len(notes) == 2)
            raise_later = ArithmeticError("the run's own")
            wait_for(lambda: len(kept.metrics) == 2)
        raise raise_later
    assert "tracking.mlflow answers again" in notes[1]
    assert kept.metrics == SENT and cursor(run) == 2


def test_a_fine_tunes_steps_are_sent_while_it_runs_and_once(run, mlflow_at, monkeypatch) -> None:
    mlflow_at(port := free_port())
    kept, notes = Kept(), []
    training = run.path / "iteration_01" / "training" / step_log.NAME
    training.parent.mkdir(parents=True)

    def step(number: int) -> dict[str, Any]:
        return {"step": number, "time": 1.0, "loss": 1 / number, "mfu": None}

    with serving(port, kept), tracking.trackers(config.Tracking(mlflow=True), run.path, notes.append):
        step_log.StepLog(training, None, 0).add([step(1), step(2)], last=True)
        wait_for(lambda: len(kept.metrics) == 2)  # the run has said nothing yet
    exported = run.path / "iteration_01" / "model" / step_log.NAME
    exported.parent.mkdir()
    training.rename(exported)
    again = run.path / "iteration_02" / "training" / step_log.NAME
    again.parent.mkdir(parents=True)
    with serving(port, kept), tracking.trackers(config.Tracking(mlflow=True), run.path, notes.append):
        log = step_log.StepLog(again, None, 0)
        log.add([step(1), step(2)], last=True)
        wait_for(lambda: len(kept.metrics) == 4)
        step_log.StepLog(again, None, 1).add([step(2), step(4)], last=True)  # it goes on from a checkpoint
        wait_for(lambda: len(kept.metrics) == 5)
    assert kept.metrics == [
        ("run0", "training/loss", loss, at) for at, loss in enumerate((1.0, 0.5, 1.0, 0.5, 0.25), start=1)
    ]
    assert notes == []


def test_a_pass_that_was_completed_later_is_sent_again(run, mlflow_at) -> None:
    mlflow_at(port := free_port())
    kept, notes = Kept(), []
    more = LINES[0] | {"rollouts/questions": 12}
    for line in (*LINES, more):
        with serving(port, kept), tracking.trackers(config.Tracking(mlflow=True), run.path, notes.append):
            run.log(line)
    assert kept.metrics == [*SENT, ("run0", "rollouts/questions", 12.0, 0)] and notes == []


def test_how_a_run_ended_is_told(run, mlflow_at) -> None:
    mlflow_at(port := free_port())
    kept = Kept()
    with (
        serving(port, kept),
        pytest.raises(ArithmeticError),
        tracking.trackers(config.Tracking(mlflow=True), run.path, print) as track,
    ):
        run.log(LINES[0])
        track()
        raise ArithmeticError
    assert kept.statuses == ["FAILED"] and kept.metrics == SENT[:1]


def test_a_tracker_that_never_answers_does_not_hold_a_run(run, mlflow_at) -> None:
    run.log(LINES[0])
    notes: list[str] = []
    with hanging() as port:
        mlflow_at(port)
        with tracking.trackers(config.Tracking(mlflow=True), run.path, notes.append, end_s=0.5) as track:
            began = time.monotonic()
            for _ in range(1000):
                track()
            assert time.monotonic() - began < 2
        assert len(notes) == 1 and "not everything was sent" in notes[0] and cursor(run) == 0


def test_a_process_that_outlives_its_run_leaves_the_next_attempts_cursor_alone(tmp_path) -> None:
    settings, sent = config.load_config(None, ["name=mine"], section_of), []
    with store.open_run(tmp_path / "run", settings) as first:
        first.log(LINES[0])
        delivery = tracker_process.Delivery("mlflow", first.path, print)

    def late(*_: Any) -> trackers.Session:
        return trackers.Session(lambda axis, points: sent.append(axis), lambda _: None)

    with (
        store.open_run(tmp_path / "run", settings, fresh=True) as second,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setitem(trackers.TRACKERS, "mlflow", late)
        with pytest.raises(SystemExit):
            delivery.attempt("killed")
        assert not (second.path / "tracking").exists() and sent == []


def test_several_trackers_that_never_answer_end_together(run, mlflow_at, monkeypatch) -> None:
    run.log(LINES[0])
    both = {"tensorboard": "mlflow", "mlflow": "mlflow"}
    start = tracking._start
    monkeypatch.setattr(tracking, "check", lambda _: None)
    monkeypatch.setattr(tracking, "_start", lambda name, *rest: start(both[name], *rest))
    with hanging() as port:
        mlflow_at(port)
        began, section = time.monotonic(), config.Tracking(mlflow=True, tensorboard=True)
        with tracking.trackers(section, run.path, print, end_s=6):
            pass
        assert time.monotonic() - began < 11


def test_a_process_whose_run_was_killed_ends_itself(run, mlflow_at) -> None:
    run.log(LINES[0])
    with hanging() as port:
        mlflow_at(port)
        command = [sys.executable, "-m", "stasc_ray.store.tracker_process", "mlflow", str(run.path), "0.5"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, timeout=120, check=False)
    assert done.returncode == 1


def test_tensorboard_gets_the_numbers_once(run) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    notes: list[str] = []
    for line in LINES:  # and an attempt that finds the first line sent
        with tracking.trackers(config.Tracking(tensorboard=True), run.path, notes.append) as track:
            run.log(line)
            track()
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["rollouts/questions", "evaluation/test/r_y2"] and notes == []
    found = [(event.wall_time, event.step, event.value) for event in events.Scalars("evaluation/test/r_y2")]
    assert found == [(2.5, 2, 0.75)] and len(events.Scalars("rollouts/questions")) == 1


def test_lines_of_a_tracker_that_sends_late_are_kept_until_it_has_sent_them(run, monkeypatch) -> None:
    taken: list[int] = []
    fails = [True]

    def close(outcome: str) -> None:
        if fails.pop():
            raise ConnectionError("gone")

    def wandb(folder: Path, values: Any, cursor: trackers.Cursor) -> trackers.Session:
        def send(axis: str, points: Sequence[trackers.Point]) -> None:
            taken.extend(point.step for point in points)

        return trackers.Session(send, close, sends_late=True)

    monkeypatch.setitem(trackers.TRACKERS, "wandb", wandb)
    for line in LINES:
        run.log(line)
    notes: list[str] = []
    delivery = tracker_process.Delivery("wandb", run.path, notes.append)
    assert delivery.attempt() and cursor(run, "wandb") == 0
    assert (
        not delivery.attempt("finished") and cursor(run, "wandb") == 0 and "ConnectionError: gone" in notes[0]
    )
    fails.append(False)
    assert delivery.attempt("finished") and cursor(run, "wandb") == 2
    assert taken == [0, 2, 0, 2]


def test_a_tracker_that_is_not_installed_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed here")
    (tmp_path / "wandb").mkdir()  # as W&B makes one where it runs: not the package
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"tracking.wandb: .* pip install 'stasc-ray\[wandb\]'"):
        tracking.check(config.Tracking(wandb=True))
