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


def test_progress_in_a_log_file_is_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(display, "PLAIN_LINE_EVERY_S", 0.0)
    with display.Display().progress("base: answers", total=30, done=10, unit="questions") as bar:
        bar.advance(5)
        bar.advance(5, "100 tokens/s")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "base: answers ..."
    assert lines[1].strip() == "base: answers: 15/30 questions"
    assert "20/30 questions 100 tokens/s" in lines[2] and lines[2].endswith("s left")


def test_on_a_terminal_the_bar_is_live_and_leaves_nothing_behind() -> None:
    stream = io.StringIO()
    screen = display.Display(Console(file=stream, force_terminal=True, width=120))
    with screen.progress("fine-tuning", total=4) as bar:
        bar.advance(4, "loss 0.1")
    assert "fine-tuning" in stream.getvalue() and "4/4" in stream.getvalue()


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
