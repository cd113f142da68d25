"""What a person reads: the table in a log file, the progress lines."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from stasc_ray.cli import errors
from stasc_ray.runtime import display


def test_a_table_in_a_log_file_is_not_folded(capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "iteration": 1,
        "evaluation/dev/r_y1": 0.25,
        "evaluation/test/r_y2": 0.5,
        "examples/kept": 1234,
        "publish/latest": True,
    }
    shown = display.Display()
    for _ in range(2):  # a resumed run comes by the same rows again
        shown.table([row, {"iteration": 2}])
    header, first, second = capsys.readouterr().out.splitlines()
    assert "test r(Y2)" in header and "LATEST" in header
    assert first.split() == ["1", "0.250", "-", "-", "0.500", "-", "-", "-", "-", "1234", "-", "moved"]
    assert second.split()[0] == "2"


def watched(console: Console, seconds: range, *, after_s: float | None = None, resumed: int = 0) -> None:
    """A pass of a slow model, looked at each second: engines start for 12 s, then 94 tokens come a second."""
    now = [0.0]
    screen = display.Display(console)
    screen.console = console
    bar = display.Bar(screen, "base: answers", 400, resumed, "questions", after_s, clock=lambda: now[0])
    bar.start()
    for second in seconds:
        now[0] = float(second)
        if second < 12:
            bar.wait("starting 2 engines")
        else:
            tokens = 94 * (second - 11)
            bar.set(resumed + tokens // 94, tokens=tokens, in_flight=0)
    bar.stop()


def test_a_log_file_shows_from_the_start_what_is_waited_for_a_true_rate_and_the_time_left() -> None:
    stream = io.StringIO()
    watched(Console(file=stream, width=140), range(41), after_s=1000)
    assert stream.getvalue().splitlines() == [
        "  base: answers ...",
        "  base: answers: 0/400 questions, starting 2 engines, 10 s",
        "  base: answers: 9/400 questions, 94 tokens/s, 7 min left (23 min for the run)",
        "  base: answers: 19/400 questions, 94 tokens/s, 6 min left (23 min for the run)",
        "  base: answers: 29/400 questions, 94 tokens/s, 6 min left (23 min for the run)",
    ]


def test_questions_of_an_earlier_attempt_say_nothing_about_this_ones_tokens() -> None:
    stream = io.StringIO()
    watched(Console(file=stream, width=140), range(41), resumed=300)
    assert stream.getvalue().splitlines()[-1] == (
        "  base: answers: 329/400 questions, 94 tokens/s, 71 s left"
    )


def test_a_stage_of_hours_gets_a_line_a_minute() -> None:
    stream = io.StringIO()
    watched(Console(file=stream, width=140), range(0, 7200), after_s=None)
    assert 120 < len(stream.getvalue().splitlines()) < 200


def test_a_stage_that_stands_still_says_for_how_long() -> None:
    stream, now = io.StringIO(), [0.0]
    screen = display.Display()
    screen.console = Console(file=stream, width=140)
    bar = display.Bar(screen, "tuning", 0, 0, "steps", clock=lambda: now[0])
    for second in range(0, 301):
        now[0] = float(second)
        bar.set(min(second // 100, 2) + 1, total=9, detail="loss 0.5")
    lines = stream.getvalue().splitlines()
    assert "tuning: 1/9 steps, loss 0.5" in lines[0]
    assert lines[-1].strip() == "tuning: 3/9 steps, loss 0.5, 8 min left, nothing new for 91 s"


def test_on_a_terminal_the_bar_is_live_and_leaves_nothing_behind() -> None:
    stream = io.StringIO()
    watched(Console(file=stream, force_terminal=True, width=140), range(41), after_s=1000)
    shown = stream.getvalue()
    assert "base: answers" in shown and "29/400" in shown
    assert "94 tokens/s, 6 min left (23 min for the run)" in shown
    assert "\x1b[2K" in shown.rpartition("left")[2]  # erased at the end


def test_errors_lose_the_layers_that_ray_puts_around_them() -> None:
    from ray.exceptions import RayTaskError

    inner = ValueError("expected a, found b")
    wrapped = RayTaskError("f", "Traceback ...\nValueError: expected a, found b", inner).as_instanceof_cause()
    assert errors.message(wrapped) == "expected a, found b"
    assert errors.message(KeyError("x")) == "KeyError: 'x'"


@pytest.mark.slow
def test_an_error_in_a_ray_data_task_reaches_the_reader_as_it_was_raised(tmp_path: Path) -> None:
    import ray

    from stasc_ray.runtime import ray_session

    def fill_the_disk(row: dict[str, int]) -> dict[str, int]:
        raise OSError(28, "No space left on device", "rollouts/train-000001.parquet")

    def refuse(row: dict[str, int]) -> dict[str, int]:
        raise ValueError("expected a, found b:\n  on two lines")

    with ray_session.connect(None, tmp_path):
        with pytest.raises(ray.exceptions.RayTaskError) as full:
            ray.data.from_items([{"a": 1}]).map(fill_the_disk).take_all()
        with pytest.raises(ray.exceptions.RayTaskError) as refused:
            ray.data.from_items([{"a": 1}]).map(refuse).take_all()
    assert errors.message(full.value) == (
        "[Errno 28] No space left on device: 'rollouts/train-000001.parquet'; the disk is full: free some "
        "space, "
        "and the same command continues"
    )
    assert errors.message(refused.value) == "expected a, found b:\n  on two lines"
